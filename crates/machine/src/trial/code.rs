//! Random code on a whole board: in every mode and at every privilege, with tables that are half right.
//!
//! Where things are in RAM: GDT 0x1000, IDT 0x2000, TSS 0x3000, code 0x5000 (begins a little before, across the
//! page border), stacks around 0x8000, page tables from 0x1_0000, and the real-mode IVT at 0.
use super::{Entropy, Trial};
use crate::layout::{ECAM, HIGH_RAM_START, IOAPIC, LAPIC, VIRTIO_MMIO};
use viv_arch::x86::{CpuState, Segment, TableRegister, cr0, cr4, efer, rflags, seg};
use viv_cpu::{CpuBus, Exit, Vcpu};
use viv_mem::{Gpa, GuestMemory};

/// RAM of the board, bytes.
const RAM: u64 = 1 << 20;
const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const CODE: u64 = 0x5000;
const STACK: u64 = 0x8000;
const TABLES: u64 = 0x1_0000;
/// Blocks and exceptions between two looks at the machine.
const ROUNDS: u64 = 64;
/// Looks.
const LOOKS: usize = 4;

/// Selectors of the GDT below.
const CODE64: u16 = 0x08;
const DATA: u16 = 0x10;
const CODE32: u16 = 0x18;
const CODE16: u16 = 0x20;
const USER_CODE64: u16 = 0x28 | 3;
const USER_DATA: u16 = 0x30 | 3;
const USER_CODE32: u16 = 0x38 | 3;
const TASK: u16 = 0x40;

/// The table that the guest begins with; a call gate, a task gate and a second TSS are for its far transfers.
const DESCRIPTORS: &[u64] = &[
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x000f_9b00_0000_ffff,
    0x00af_fb00_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00cf_fb00_0000_ffff,
    0x0000_8900_3000_0067,
    0,
    0x0000_ec00_0008_5000,
    0,
    0x0000_e500_0068_0000,
    0x0000_8900_3100_0067,
    0x0000_8200_1000_007f,
    0,
];

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Real,
    Protected16,
    Protected32,
    Paged32,
    Pae,
    Long,
    Compatible,
    Virtual8086,
}

const MODES: &[Mode] = &[
    Mode::Long,
    Mode::Real,
    Mode::Protected32,
    Mode::Paged32,
    Mode::Pae,
    Mode::Compatible,
    Mode::Protected16,
    Mode::Virtual8086,
];

/// Runs random code: see [`super`].
pub fn run_code(data: &[u8]) {
    let mut entropy = Entropy::new(data);
    let split = entropy.one_in(4);
    let translated = entropy.one_in(2);
    let Ok(trial) = Trial::new(RAM, split, 2, Vec::new()) else { return };
    let state = set_up(&mut entropy, trial.memory());
    let code = entropy.rest();
    place_code(trial.memory(), code);
    let Ok(mut cpu) = trial.cpu(0, &state) else { return };
    let Ok(mut second) = trial.cpu(1, &CpuState { activity: viv_arch::x86::Activity::WaitForSipi, ..state })
    else {
        return;
    };
    let (bus, other_bus) = (trial.bus(0), trial.bus(1));
    let run = if translated { run_translated } else { run };
    for _ in 0..LOOKS {
        let exit = run(&mut cpu, &bus);
        // If the first one has sent it a start-up IPI, it runs.
        let other = run(&mut second, &other_bus);
        if over(&exit) || over(&other) || trial.ended() {
            break;
        }
        trial.tick(None);
    }
    // Whatever it did, a kick still ends a run, and its state can be saved and loaded again.
    for (cpu, bus) in [(&mut cpu, &bus as &dyn CpuBus), (&mut second, &other_bus)] {
        cpu.kicker().kick();
        let exit = cpu.run(bus);
        assert!(
            matches!(exit, Exit::Kicked | Exit::Shutdown | Exit::Failed(_) | Exit::Halted),
            "{exit:?} after a kick"
        );
        let saved = cpu.save();
        assert!(saved.is_ok_and(|state| cpu.load(&state).is_ok()), "its state is lost");
    }
}

fn run(cpu: &mut viv_cpu::soft::SoftCpu, bus: &dyn CpuBus) -> Exit {
    let exit = cpu.run_for(bus, ROUNDS);
    if matches!(exit, Exit::Halted) && bus.interrupt_pending() { cpu.run_for(bus, ROUNDS) } else { exit }
}

/// The same with every block translated at once. Translated code counts no rounds: a kick ends it.
fn run_translated(cpu: &mut viv_cpu::soft::SoftCpu, bus: &dyn CpuBus) -> Exit {
    cpu.translate_after(Some(0));
    let kicker = cpu.kicker();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(std::time::Duration::from_micros(80));
            kicker.kick();
        });
        cpu.run(bus)
    })
}

fn over(exit: &Exit) -> bool {
    matches!(exit, Exit::Shutdown | Exit::Failed(_))
}

fn put(memory: &GuestMemory, gpa: u64, bytes: &[u8]) {
    // RAM is larger than all that is put there.
    let _ = memory.write(Gpa(gpa), bytes);
}

fn put_words(memory: &GuestMemory, gpa: u64, words: &[u64]) {
    for (at, word) in (gpa..).step_by(8).zip(words) {
        put(memory, at, &word.to_le_bytes());
    }
}

/// The code, repeated to a page and a half, so that handlers and wild jumps land in it too.
fn place_code(memory: &GuestMemory, code: &[u8]) {
    if code.is_empty() {
        return;
    }
    let filled: Vec<u8> = code.iter().copied().cycle().take(code.len().clamp(6000, 0x2800)).collect();
    put(memory, CODE - 64, &filled);
    put(memory, CODE, code.get(..0x2800).unwrap_or(code));
}

/// A value for a register: a place that means something, or a number.
fn value(entropy: &mut Entropy<'_>) -> u64 {
    let near = u64::from(entropy.u8());
    let base = match near % 12 {
        0 => 0,
        1 => GDT,
        2 => IDT,
        3 => TSS,
        4 => CODE,
        5 => STACK,
        6 => TABLES,
        7 => RAM / 2 - 8,
        8 => RAM - 8,
        9 => return entropy.number(),
        10 => return device(entropy),
        _ => return near,
    };
    base + (near >> 4)
}

/// An address without RAM.
fn device(entropy: &mut Entropy<'_>) -> u64 {
    let base =
        entropy.pick(&[LAPIC, IOAPIC, VIRTIO_MMIO, ECAM, ECAM + (1 << 15), HIGH_RAM_START, 0xc000_0000]);
    base + u64::from(entropy.u8()) * 8
}

fn set_up(entropy: &mut Entropy<'_>, memory: &GuestMemory) -> CpuState {
    let mode = entropy.pick(MODES);
    let flags = entropy.u8();
    let user = flags & 1 != 0 && mode != Mode::Real || mode == Mode::Virtual8086;
    let mut state = CpuState::default();
    for gpr in &mut state.gprs {
        *gpr = value(entropy);
    }
    state.gprs[4] = STACK + u64::from(entropy.u8() & 15);
    state.rip = CODE - u64::from(flags >> 4);
    state.rflags |= entropy.u64() & (rflags::IF | rflags::DF | rflags::IOPL | rflags::STATUS | rflags::AC);
    if flags & 0xe == 0xe {
        state.rflags |= entropy.u64() & (rflags::TF | rflags::NT | rflags::RF);
    }
    let mut table = DESCRIPTORS.to_vec();
    for _ in 0..entropy.u8() % 4 {
        let at = usize::from(entropy.u8()) % table.len();
        table[at] = entropy.u64();
    }
    put_words(memory, GDT, &table);
    let wild = entropy.u8();
    state.gdtr = TableRegister { base: GDT, limit: if wild & 1 != 0 { 0x47 } else { 0x7f } };
    state.idtr = TableRegister { base: IDT, limit: if wild & 2 != 0 { 0x7f } else { 0xfff } };
    if wild & 0x1c == 0x1c {
        state.gdtr.base = entropy.number();
    }
    if wild & 0xe0 == 0xe0 {
        state.idtr.base = entropy.number();
    }
    let task = match entropy.u8() % 8 {
        0 => value(entropy),
        _ => TSS,
    };
    state.tr = Segment { selector: TASK, base: task, limit: 0x67, rights: 0x8b };
    // Stacks of the inner levels, and an I/O map that ends at once; IST 1 points into nothing or somewhere.
    put(memory, TSS, &[0; 0x80]);
    put(memory, TSS + 4, &(STACK + 0x800).to_le_bytes());
    put(memory, TSS + 8, &u64::from(DATA).to_le_bytes());
    put(memory, TSS + 0x24, &value(entropy).to_le_bytes());
    put(memory, TSS + 0x66, &0x67u16.to_le_bytes());
    fill_tss(memory, TSS + 0x100);
    idt(entropy, memory, mode);
    modes(entropy, memory, mode, user, &mut state);
    state
}

/// A task that can be switched to.
fn fill_tss(memory: &GuestMemory, tss: u64) {
    put(memory, tss, &[0; 0x68]);
    put(memory, tss + 0x1c, &(TABLES as u32).to_le_bytes());
    put(memory, tss + 0x20, &(CODE as u32).to_le_bytes());
    put(memory, tss + 0x38, &(STACK as u32).to_le_bytes());
    for (n, selector) in (0u64..).zip([DATA, CODE32, DATA, DATA, DATA, DATA]) {
        put(memory, tss + 0x48 + 4 * n, &selector.to_le_bytes());
    }
}

/// Gates into the code, some of them bad.
fn idt(entropy: &mut Entropy<'_>, memory: &GuestMemory, mode: Mode) {
    let long = matches!(mode, Mode::Long | Mode::Compatible);
    let (bad_at, bad) = (u64::from(entropy.u8() & 31), entropy.u64());
    for vector in 0..if long { 256 } else { 512u64 } {
        // Handlers begin all over the code.
        let target = CODE + (vector * 37) % 0x400;
        let kind: u64 = if vector % 5 == 4 { 0xef } else { 0xee };
        let (selector, kind) = match (mode, vector) {
            (_, 29) if !long => (0x68, 0xe5),
            (Mode::Protected16, _) => (CODE16, kind & !8),
            _ if long => (CODE64, kind),
            _ => (CODE32, kind),
        };
        let ist = u64::from(long && vector % 7 == 6);
        let low = target & 0xffff | u64::from(selector) << 16 | ist << 32 | kind << 40;
        let low = if vector == bad_at { bad } else { low };
        if long {
            put_words(memory, IDT + 16 * vector, &[low, 0]);
        } else if vector < 256 {
            put_words(memory, IDT + 8 * vector, &[low]);
            if mode == Mode::Real {
                // IP:CS pairs.
                put(memory, 4 * vector, &(target as u32 & 0xffff).to_le_bytes());
            }
        }
    }
}

fn modes(entropy: &mut Entropy<'_>, memory: &GuestMemory, mode: Mode, user: bool, state: &mut CpuState) {
    let rights = |selector: u16| {
        let raw = DESCRIPTORS.get(usize::from(selector >> 3)).copied().unwrap_or_default();
        let limit = if raw >> 55 & 1 != 0 { u32::MAX } else { 0xf_ffff };
        Segment { selector, base: 0, limit, rights: (raw >> 40) as u16 & 0xf0ff }
    };
    let (code, data) = match (mode, user) {
        (Mode::Real | Mode::Virtual8086, _) => (0, 0),
        (Mode::Protected16, false) => (CODE16, DATA),
        (Mode::Long, false) => (CODE64, DATA),
        (Mode::Long, true) => (USER_CODE64, USER_DATA),
        (_, true) => (USER_CODE32, USER_DATA),
        (_, false) => (CODE32, DATA),
    };
    state.segments = [rights(data); 6];
    state.segments[seg::CS] = rights(code);
    if code == 0 {
        let (kind, code_kind) = if mode == Mode::Real { (0x93, 0x9b) } else { (0xf3, 0xf3) };
        state.segments = [Segment { selector: 0, base: 0, limit: 0xffff, rights: kind }; 6];
        state.segments[seg::CS].rights = code_kind;
    }
    // A segment with a limit, or one that grows down.
    if entropy.one_in(4) {
        let index = usize::from(entropy.u8()) % 6;
        if index != seg::CS && index != seg::SS {
            state.segments[index].limit = entropy.number() as u32;
            state.segments[index].base = entropy.number();
            state.segments[index].rights ^= u16::from(entropy.u8() & 0x0e);
        }
    }
    if mode == Mode::Real {
        state.idtr = TableRegister { base: 0, limit: 0x3ff };
        return;
    }
    let own = entropy.u64();
    state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::MP | own & (cr0::WP | cr0::AM | cr0::TS | cr0::EM);
    if own >> 32 & 3 != 0 {
        state.cr0 &= !(cr0::TS | cr0::EM);
    }
    let optional =
        cr4::TSD | cr4::DE | cr4::PSE | cr4::PGE | cr4::UMIP | cr4::FSGSBASE | cr4::SMEP | cr4::SMAP;
    state.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | own >> 8 & optional;
    state.xcr0 = 3;
    if mode == Mode::Virtual8086 {
        state.rflags |= rflags::VM;
    }
    let paged = match mode {
        Mode::Virtual8086 => own >> 40 & 1 != 0,
        Mode::Protected16 | Mode::Protected32 => false,
        _ => true,
    };
    if !paged {
        return;
    }
    state.cr0 |= cr0::PG;
    state.cr3 = TABLES;
    let long = matches!(mode, Mode::Long | Mode::Compatible);
    if long || mode == Mode::Pae {
        state.cr4 |= cr4::PAE;
        state.efer = own >> 16 & efer::NXE;
    }
    if long {
        state.efer |= efer::LME | efer::LMA | efer::SCE;
        state.cr4 |= if own >> 41 & 1 != 0 { cr4::PCIDE } else { 0 };
    }
    tables(entropy, memory, mode);
    if entropy.one_in(8) {
        state.debug[0] = value(entropy);
        state.debug[5] = u64::from(entropy.u32()) & 0xffff_2fff | 0x401;
    }
}

/// An identity map of the RAM, the local APIC and a few devices behind it, and some entries of noise.
fn tables(entropy: &mut Entropy<'_>, memory: &GuestMemory, mode: Mode) {
    const PRESENT: u64 = 7;
    let wide = mode == Mode::Long || mode == Mode::Compatible || mode == Mode::Pae;
    let entry = |gpa: u64, value: u64| {
        if wide {
            put(memory, gpa, &value.to_le_bytes())
        } else {
            put(memory, gpa, &(value as u32).to_le_bytes())
        }
    };
    let bytes = if wide { 8 } else { 4 };
    let leaf = TABLES + 0x3000;
    match mode {
        Mode::Long | Mode::Compatible => {
            entry(TABLES, (TABLES + 0x1000) | PRESENT);
            entry(TABLES + 0xff8, (TABLES + 0x1000) | PRESENT);
            entry(TABLES + 0x1000, (TABLES + 0x2000) | PRESENT);
            entry(TABLES + 0x2000, leaf | PRESENT);
        }
        Mode::Pae => {
            entry(TABLES, (TABLES + 0x2000) | 1);
            entry(TABLES + 0x2000, leaf | PRESENT);
        }
        _ => entry(TABLES, leaf | PRESENT),
    }
    for page in 0..256u64 {
        // A few are for supervisors only, or read-only, or not there.
        let rights = match page {
            0x60..0x68 => 3,
            0x68..0x70 => 5,
            0x70..0x78 => 0,
            _ => PRESENT,
        };
        entry(leaf + bytes * page, page << 12 | rights);
    }
    for page in 256..272u64 {
        entry(leaf + bytes * page, device(entropy) & !0xfff | PRESENT);
    }
    for _ in 0..entropy.u8() % 8 {
        let at = TABLES + u64::from(entropy.u16()) % 0x4000 / bytes * bytes;
        let random = match entropy.u8() % 3 {
            0 => entropy.u64(),
            1 => TABLES | entropy.number() & 0xfff,
            _ => value(entropy) & !0xfff | u64::from(entropy.u8()),
        };
        entry(at, random);
    }
}
