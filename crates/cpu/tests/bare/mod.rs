//! What small guests run on: a bus without anything, and a processor in long mode.
#![allow(dead_code)]

use viv_arch::x86::{CpuState, Segment, cr0, cr4, efer};
use viv_cpu::{CpuBus, CpuEvent};
use viv_mem::{Gpa, GuestMemory};

/// Nobody is there.
pub(crate) struct Nothing;

impl CpuBus for Nothing {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        0
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: Gpa, _: u8) -> u64 {
        0
    }
    fn mmio_write(&self, _: Gpa, _: u8, _: u64) {}
    fn interrupt_pending(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&self) -> Option<u8> {
        None
    }
    fn take_event(&self) -> Option<CpuEvent> {
        None
    }
    fn msr_read(&self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _: u32, _: u64) -> Option<()> {
        None
    }
    fn cr8(&self) -> u64 {
        0
    }
    fn set_cr8(&self, _: u64) {}
    fn now_ns(&self) -> u64 {
        0
    }
    fn wall_ns(&self) -> u64 {
        0
    }
}

/// The first 2 MiB in one page, by tables below 0x4000: CR3 is 0x1000.
pub(crate) fn long_mode_memory() -> GuestMemory {
    let memory = GuestMemory::new(&[(Gpa(0), 2 << 20)]).unwrap();
    for (at, entry) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
        memory.write(Gpa(at), &entry.to_le_bytes()).unwrap();
    }
    memory
}

/// A processor in there, about to run the code at an address, with a stack below 0x8000.
pub(crate) fn long_mode(rip: u64) -> CpuState {
    let segment = |selector, rights| Segment { selector, base: 0, limit: u32::MAX, rights };
    let mut state = CpuState {
        rip,
        cr0: cr0::PE | cr0::PG | cr0::ET | cr0::NE,
        cr3: 0x1000,
        cr4: cr4::PAE | cr4::OSFXSR,
        efer: efer::LME | efer::LMA,
        segments: [segment(0x10, 0xc093); 6],
        ..CpuState::default()
    };
    state.segments[1] = segment(8, 0xa09b);
    state.gprs[4] = 0x8000;
    state
}
