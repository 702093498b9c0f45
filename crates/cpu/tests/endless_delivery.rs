//! A guest can make the delivery of an exception fault for ever; its vCPU still comes back when it is kicked.

mod bare;

use bare::Nothing;
use std::sync::mpsc::channel;
use std::time::Duration;
use viv_arch::x86::{CpuState, Segment, TableRegister, cr0, rflags};
use viv_cpu::soft::{Shared, SoftCpu};
use viv_cpu::{Exit, Vcpu};
use viv_mem::{Gpa, GuestMemory};

/// Ring 3 with alignment checks, a misaligned stack, and handlers in ring 3: pushing the frame of #AC raises #AC.
/// Real processors hang in that (CVE-2015-5307); here only the guest may.
#[test]
fn alignment_checks_of_their_own_delivery_do_not_hang_the_processor() {
    const GDT: u64 = 0x1000;
    const IDT: u64 = 0x2000;
    const CODE: u64 = 0x3000;
    let memory = GuestMemory::new(&[(Gpa(0), 0x1_0000)]).unwrap();
    memory.write(Gpa(GDT + 8), &0x00cf_fb00_0000_ffffu64.to_le_bytes()).unwrap();
    memory.write(Gpa(GDT + 16), &0x00cf_f300_0000_ffffu64.to_le_bytes()).unwrap();
    for vector in 0..32 {
        let gate = CODE | 0x0b << 16 | 0xee00 << 32;
        memory.write(Gpa(IDT + 8 * vector), &gate.to_le_bytes()).unwrap();
    }
    // push eax
    memory.write(Gpa(CODE), &[0x50]).unwrap();
    let segment = |selector, rights| Segment { selector, base: 0, limit: u32::MAX, rights };
    let mut state = CpuState {
        rip: CODE,
        cr0: cr0::PE | cr0::AM | cr0::ET,
        segments: [segment(0x13, 0xc0f3); 6],
        gdtr: TableRegister { base: GDT, limit: 0x17 },
        idtr: TableRegister { base: IDT, limit: 0xff },
        ..CpuState::default()
    };
    state.segments[1] = segment(0x0b, 0xc0fb);
    state.rflags |= rflags::AC;
    state.gprs[4] = 0x8001;
    let mut cpu = SoftCpu::new(0, Shared::new(&memory, 1));
    cpu.load(&state).unwrap();
    let kicker = cpu.kicker();
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(cpu.run(&Nothing)));
    assert!(receiver.recv_timeout(Duration::from_millis(100)).is_err(), "the guest gets nowhere");
    kicker.kick();
    assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Ok(Exit::Kicked));
}
