//! `soft.check=on`: whatever translated code did is done again by the interpreter, and must be the same.
//!
//! ```text
//!  translated code runs ── as always, until it leaves ──► state, pages written, answers of the bus
//!  the shadow           ── the state before, the pages as they were, the same answers, as many instructions ──► compare
//! ```
//! The shadow is an interpreter on a private view of the guest's RAM. The page of each first write is kept as it was
//! before. Devices write to RAM at any time: if one did meanwhile, nothing is compared. For one vCPU.
#![allow(unsafe_code)]

mod bus;
mod journal;

pub(crate) use journal::Journal;

use super::block::Blocks;
use super::cpu::Cpu;
use super::mmu::Place;
use super::reader::Reader;
use super::translate::Leave;
use super::{Shared, SoftCpu};
use crate::{CpuError, Vcpu};
use bus::{Call, Recorder, Replayer, exchange_bus};
use iced_x86::Instruction;
use journal::page_at;
use std::collections::VecDeque;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use viv_arch::x86::{CpuState, rflags};
use viv_mem::{GuestMemory, MemError, PAGE_SIZE};

/// What was checked so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Stretches of translated code, from entering it to leaving it, that were done again with the same result.
    pub stretches: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Stretches during which a device wrote to memory: not compared.
    pub disturbed: u64,
}

/// The second processor, and what it knows.
pub(super) struct Checker {
    shadow: SoftCpu,
    view: GuestMemory,
    /// [`GuestMemory::host_writes`] when the shadow's decoded code was last known to be true.
    host_writes: u64,
    pub(super) checked: Checked,
    /// Spoils what translated code did, so that tests can see that it is noticed.
    #[cfg(test)]
    spoil: Option<Spoil>,
}

/// What a test does to the state behind translated code.
#[cfg(test)]
type Spoil = fn(&mut Cpu);

/// Blocks of the shadow that a report shows.
const TRACE: usize = 24;
/// How long a device may take from writing to saying so.
const PATIENCE: Duration = Duration::from_millis(20);
/// Bits of page-table entries that processors set when they like (SDM vol. 3 §4.8): accessed, dirty.
const MARKS: u64 = 0x60;
/// FOP, FIP and FDP in the FXSAVE image: translated code keeps none (docs/software-cpu.md, Quirks).
const POINTERS: std::ops::Range<usize> = 6..24;

impl Checker {
    fn new(shared: &Shared) -> Result<Checker, CpuError> {
        let view = shared.memory.private_view().map_err(|error| match error {
            MemError::Host { source, .. } => CpuError::Os { what: "map the guest's RAM once more", source },
            other => CpuError::Missing { what: other.to_string() },
        })?;
        let mut shadow =
            SoftCpu::new(0, Shared::showing(&view, 1, shared.shown.processor.clone(), shared.shown.time));
        shadow.translate_after(None);
        shadow.cpu.journal = Some(Box::new(Journal::of_shadow()));
        Ok(Checker {
            shadow,
            host_writes: view.host_writes(),
            view,
            checked: Checked::default(),
            #[cfg(test)]
            spoil: None,
        })
    }
}

/// What translated code did.
struct Stretch {
    before: CpuState,
    instructions: u64,
    leave: Leave,
    calls: Vec<Call>,
    host_writes: u64,
}

impl SoftCpu {
    /// All that translated code does is done again by the interpreter from now on; a difference ends the VM. For the only
    /// vCPU of a machine.
    pub fn check_translated(&mut self) -> Result<(), CpuError> {
        self.count_translated();
        self.cpu.flush_tlb(true);
        self.cpu.journal = Some(Box::default());
        self.checker = Some(Box::new(Checker::new(&self.cpu.shared)?));
        Ok(())
    }

    /// What has been checked; `None`: nothing is.
    pub fn checked(&self) -> Option<Checked> {
        self.checker.as_ref().map(|checker| checker.checked)
    }

    /// Enters translated code, and checks what it did. `resumed`: it looks up each access, and its first instruction was
    /// counted before.
    pub(super) fn enter_checked(&mut self, code: u64, resumed: bool) -> Option<Leave> {
        let (mut checker, mut journal) = (self.checker.take()?, self.cpu.journal.take()?);
        let before = super::state::save(&self.cpu);
        let host_writes = checker.view.host_writes();
        journal.begin(&mut self.cpu.tlb);
        self.cpu.journal = Some(journal);
        let first = self.retired();
        // SAFETY: the bus of the present `run`.
        let recorder = Recorder { real: unsafe { self.cpu.bus?.as_ref() }, calls: Mutex::default() };
        let real = exchange_bus(&mut self.cpu, &recorder);
        let leave = self.translator.as_mut()?.enter(&mut self.cpu, code);
        self.cpu.bus = real;
        #[cfg(test)]
        if let Some(spoil) = checker.spoil {
            spoil(&mut self.cpu);
        }
        if let Some(journal) = &mut self.cpu.journal {
            journal.on = false;
        }
        let counted = self.retired().wrapping_sub(first).wrapping_add(u64::from(resumed));
        let stretch = Stretch {
            before,
            instructions: counted.wrapping_sub(u64::from(leave == Leave::Single)),
            leave,
            calls: recorder.calls.into_inner().unwrap_or_else(PoisonError::into_inner),
            host_writes,
        };
        if stretch.instructions != 0
            && let Err(difference) = checker.check(&mut self.cpu, stretch)
        {
            self.cpu.failed = Some(difference);
            self.cpu.stop = true;
            return Some(Leave::Stop);
        }
        self.checker = Some(checker);
        Some(leave)
    }

    /// Instructions begun, by the interpreter and by translated code.
    fn retired(&self) -> u64 {
        self.cpu.instructions.wrapping_add(self.cpu.native.counted.instructions)
    }
}

impl Checker {
    fn check(&mut self, cpu: &mut Cpu, stretch: Stretch) -> Result<(), String> {
        let Some(mut journal) = cpu.journal.take() else { return Ok(()) };
        self.forget_changed(&mut journal);
        let (replayed, trace) = self.replay(&stretch, &journal);
        let result = replayed.and_then(|()| self.compare(cpu, &journal, &stretch, &trace));
        let disturbed = |patience: Duration| {
            std::thread::sleep(patience);
            self.view.host_writes() != stretch.host_writes
        };
        let disturbed = disturbed(Duration::ZERO) || result.is_err() && disturbed(PATIENCE);
        let report = match result {
            Err(difference) if !disturbed => Err(self.report(&stretch, &difference, &trace)),
            _ => Ok(()),
        };
        self.view.discard();
        cpu.journal = Some(journal);
        if disturbed {
            self.checked.disturbed += 1;
        } else {
            self.checked.stretches += 1;
            self.checked.instructions += stretch.instructions;
        }
        report
    }

    /// Forgets what the shadow has decoded of pages that changed since. Pages that the stretch wrote change back for the replay, and
    /// once more behind it: they stay listed.
    fn forget_changed(&mut self, journal: &mut Journal) {
        if std::mem::replace(&mut self.host_writes, self.view.host_writes()) != self.host_writes {
            self.shadow.blocks = Blocks::new();
        }
        for page in &journal.changed {
            self.view.code().written(*page, PAGE_SIZE);
        }
        journal.changed = journal.pages.keys().copied().collect();
    }

    /// The same instructions by the interpreter. Also the last blocks that it executed: RIP and instructions of each.
    fn replay(&mut self, stretch: &Stretch, journal: &Journal) -> (Result<(), String>, VecDeque<(u64, u64)>) {
        let mut trace = VecDeque::with_capacity(TRACE);
        if let Err(error) = self.shadow.load(&stretch.before) {
            return (Err(error.to_string()), trace);
        }
        for (ram, before) in &journal.pages {
            if let Some(host) = self.view.ram_host(*ram) {
                // SAFETY: a whole page of the private view, which nobody else uses.
                unsafe { std::ptr::copy_nonoverlapping(before.as_ptr(), host, before.len()) };
            }
        }
        let calls = Mutex::new(VecDeque::from(stretch.calls.clone()));
        let replayer = Replayer { calls, other: Mutex::default() };
        let SoftCpu { cpu, blocks, .. } = &mut self.shadow;
        if let Some(mut own) = cpu.journal.take() {
            own.begin(&mut cpu.tlb);
            own.randoms.clone_from(&journal.randoms);
            own.batches.clone_from(&journal.batches);
            cpu.journal = Some(own);
        }
        exchange_bus(cpu, &replayer);
        let first = cpu.instructions;
        let mut fault = None;
        while fault.is_none() {
            let left = stretch.instructions.wrapping_sub(cpu.instructions.wrapping_sub(first));
            if left == 0 {
                break;
            }
            // What follows STI or MOV SS in translated code has no more to wait for.
            (cpu.shadow, cpu.stack_shadow) = (false, false);
            let (rip, begun) = (cpu.rip(), cpu.instructions);
            let done = blocks.find(cpu).and_then(|block| {
                // SAFETY: `find` keeps the block until it is called again.
                let ops = &unsafe { &*block }.ops;
                cpu.execute(&ops[..ops.len().min(left as usize)])
            });
            let executed = cpu.instructions.wrapping_sub(begun);
            if trace.len() == TRACE {
                trace.pop_front();
            }
            trace.push_back((rip, executed));
            if done.is_err() {
                fault = Some(cpu.fault);
            } else if executed == 0 {
                break;
            }
        }
        cpu.bus = None;
        let done = cpu.instructions.wrapping_sub(first);
        let other = replayer.other.into_inner().unwrap_or_else(PoisonError::into_inner);
        let result = match (other, fault) {
            (Some(other), _) => Err(other),
            _ if done != stretch.instructions => Err(format!(
                "the interpreter stops after {done} of {} instructions ({fault:?})",
                stretch.instructions
            )),
            (_, Some(fault)) if stretch.leave != Leave::Fault => {
                Err(format!("the interpreter raises {fault:?}, translated code nothing"))
            }
            (_, None) if stretch.leave == Leave::Fault => {
                Err("only translated code raises an exception".into())
            }
            _ => Ok(()),
        };
        (result, trace)
    }

    fn compare(
        &mut self,
        cpu: &Cpu,
        journal: &Journal,
        stretch: &Stretch,
        trace: &VecDeque<(u64, u64)>,
    ) -> Result<(), String> {
        let (ours, mut theirs) = (comparable(cpu), comparable(&self.shadow.cpu));
        // The interpreter goes on at once with the instruction that the shadow of a translated STI covers.
        theirs.interrupt_shadow &= stretch.leave != Leave::Interpret;
        let mut text = String::new();
        let mut differs = |name: &str, translated: u64, interpreted: u64| {
            if translated != interpreted {
                let _ = write!(text, "\n  {name}: translated {translated:#x}, interpreted {interpreted:#x}");
            }
        };
        for (name, (a, b)) in REGISTERS.iter().zip(ours.gprs.iter().zip(theirs.gprs)) {
            differs(name, *a, b);
        }
        differs("rip", ours.rip, theirs.rip);
        let undefined = match (ours.rflags ^ theirs.rflags) & rflags::STATUS {
            0 => 0,
            bits => self.undefined(trace, bits),
        };
        differs("rflags", ours.rflags & !undefined, theirs.rflags & !undefined);
        if stretch.leave == Leave::Fault && cpu.fault != self.shadow.cpu.fault {
            let _ = write!(text, "\n  exceptions: {:?}, {:?}", cpu.fault, self.shadow.cpu.fault);
        }
        for at in (0..ours.xsave.len()).filter(|at| ours.xsave[*at] != theirs.xsave[*at]) {
            let _ = write!(
                text,
                "\n  byte {at} of the FXSAVE image: {:#x}, {:#x}",
                ours.xsave[at], theirs.xsave[at]
            );
        }
        let system = |state: &CpuState| CpuState {
            gprs: [0; 16],
            rip: 0,
            rflags: 0,
            xsave: Vec::new(),
            ..state.clone()
        };
        let (a, b) = (format!("{:x?}", system(&ours)), format!("{:x?}", system(&theirs)));
        for (a, b) in a.split(", ").zip(b.split(", ")).filter(|(a, b)| a != b) {
            let _ = write!(text, "\n  translated {a}, interpreted {b}");
        }
        let theirs = self.shadow.cpu.journal.iter().flat_map(|journal| journal.pages.keys());
        for ram in journal.pages.keys().chain(theirs) {
            let (Some(real), Some(private)) = (cpu.shared.memory.ram_host(*ram), self.view.ram_host(*ram))
            else {
                continue;
            };
            // SAFETY: whole pages of RAM.
            let (real, private) = unsafe { (page_at(real), page_at(private)) };
            for (at, (a, b)) in real.chunks_exact(8).zip(private.chunks_exact(8)).enumerate() {
                let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
                let (a, b) = (word(a), word(b));
                if (a ^ b) & !MARKS != 0 {
                    let _ = write!(text, "\n  RAM byte {:#x}: {a:#x}, {b:#x}", ram + 8 * at as u64);
                }
            }
        }
        if text.is_empty() { Ok(()) } else { Err(text) }
    }

    /// Those of the flags `bits` that the last instruction that touched them leaves undefined.
    fn undefined(&mut self, trace: &VecDeque<(u64, u64)>, bits: u64) -> u64 {
        let (mut open, mut undefined) = (bits as u32, 0);
        for x in self.executed(trace).iter().rev() {
            let touched = flags(x.rflags_modified()) & open;
            undefined |= touched & flags(x.rflags_undefined());
            open &= !touched;
        }
        u64::from(undefined)
    }

    /// The instructions of the trace, where their bytes can still be read.
    fn executed(&mut self, trace: &VecDeque<(u64, u64)>) -> Vec<Instruction> {
        let mut all = Vec::new();
        for (rip, count) in trace {
            let mut at = *rip;
            for _ in 0..*count {
                let (mut bytes, mut len) = ([0; 15], 0);
                while len < bytes.len()
                    && let Ok(Place::Ram(host)) = self.shadow.cpu.fetch_place(at.wrapping_add(len as u64))
                {
                    // SAFETY: a byte of guest RAM.
                    bytes[len] = unsafe { host.read() };
                    len += 1;
                }
                let read = Reader::new(64, &bytes[..len], at).next();
                let Some(x) = read.filter(|x| !x.is_invalid()) else { break };
                at = x.next_ip();
                all.push(x);
            }
        }
        all
    }

    fn report(&mut self, stretch: &Stretch, difference: &str, trace: &VecDeque<(u64, u64)>) -> String {
        let mut text = format!(
            "soft.check: translated code and interpreter differ after {} instructions from {:#x} ({:?}): {difference}",
            stretch.instructions, stretch.before.rip, stretch.leave,
        );
        let _ = write!(text, "\n  before: {:x?} rflags {:#x}", stretch.before.gprs, stretch.before.rflags);
        for (rip, count) in trace {
            let _ = write!(text, "\n    {rip:#x}, {count} instructions:");
            for x in self.executed(&VecDeque::from([(*rip, *count)])) {
                let _ = write!(text, " {:?}", x.code());
            }
        }
        text
    }
}

const REGISTERS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// The state without what may differ.
fn comparable(cpu: &Cpu) -> CpuState {
    let mut state = super::state::save(cpu);
    state.xsave[POINTERS].fill(0);
    CpuState { nmi_pending: false, pending: None, ..state }
}

/// iced's flag bits as those of RFLAGS.
fn flags(iced: u32) -> u32 {
    use iced_x86::RflagsBits as B;
    [(B::CF, 0), (B::PF, 2), (B::AF, 4), (B::ZF, 6), (B::SF, 7), (B::OF, 11)]
        .iter()
        .filter(|(bit, _)| iced & bit != 0)
        .fold(0, |flags, (_, at)| flags | 1 << at)
}

#[cfg(test)]
mod tests {
    use super::super::NO_BUS;
    use super::*;
    use crate::Exit;
    use viv_arch::x86::{Segment, cr0, cr4, efer, gpr};
    use viv_mem::Gpa;

    const CODE: u64 = 0x4000;
    const DATA: u64 = 0x6000;

    #[rustfmt::skip]
    const PROGRAM: &[u8] = &[
        0xb9, 0x40, 0x00, 0x00, 0x00, //             mov ecx, 64
        0x48, 0xc7, 0xc3, 0xfc, 0x5f, 0x00, 0x00, // mov rbx, 0x5ffc
        0x48, 0x01, 0xc8, //                         again: add rax, rcx
        0x48, 0x89, 0x03, //                         mov [rbx], rax: across pages
        0x0f, 0x31, //                               rdtsc
        0x0f, 0xc7, 0xf2, //                         rdrand edx
        0x48, 0x89, 0x53, 0x40, //                   mov [rbx+64], rdx
        0xe6, 0x80, //                               out 0x80, al
        0x48, 0x0f, 0xaf, 0xc1, //                   imul rax, rcx: undefined flags
        0xd9, 0xe8, 0xdd, 0xd8, //                   fld1; fstp st: pointers
        0xe8, 0x05, 0x00, 0x00, 0x00, //             call function
        0xff, 0xc9, //                               dec ecx
        0x75, 0xde, //                               jnz again
        0xf4, //                                     hlt
        0x57, 0x5f, //                               function: push rdi; pop rdi
        0xff, 0xc7, //                               inc edi
        0xc3, //                                     ret
    ];

    /// Runs the program, checked, to its end.
    fn run(spoil: Option<Spoil>) -> (Exit, Checked) {
        let memory = GuestMemory::viewable(&[(Gpa(0), 2 << 20)]).unwrap();
        for (at, entry) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
            memory.write(Gpa(at), &entry.to_le_bytes()).unwrap();
        }
        memory.write(Gpa(CODE), PROGRAM).unwrap();
        let segment = |selector, rights| Segment { selector, base: 0, limit: u32::MAX, rights };
        let mut state = CpuState {
            rip: CODE,
            cr0: cr0::PE | cr0::PG | cr0::ET | cr0::NE,
            cr3: 0x1000,
            cr4: cr4::PAE | cr4::OSFXSR,
            efer: efer::LME | efer::LMA,
            segments: [segment(0x10, 0xc093); 6],
            ..CpuState::default()
        };
        state.segments[1] = segment(8, 0xa09b);
        state.gprs[gpr::RSP] = 0x8000;
        let mut cpu = SoftCpu::new(0, Shared::new(&memory, 1));
        cpu.translate_after(Some(2));
        cpu.load(&state).unwrap();
        cpu.check_translated().unwrap();
        if let Some(checker) = &mut cpu.checker {
            checker.spoil = spoil;
        }
        let exit = cpu.run(&NO_BUS);
        (exit, cpu.checked().unwrap_or_default())
    }

    #[test]
    fn what_is_right_passes() {
        let (exit, checked) = run(None);
        assert_eq!(exit, Exit::Halted);
        assert!(checked.stretches > 60 && checked.instructions > 700, "{checked:?}");
        assert_eq!(checked.disturbed, 0);
    }

    #[test]
    fn what_is_wrong_ends_the_vm_and_is_named() {
        let spoils: [(&str, Spoil); 5] = [
            ("rdi: translated", |cpu| cpu.regs[gpr::RDI] ^= 1 << 40),
            ("rip: translated", |cpu| cpu.regs[16] += 1),
            ("rflags: translated", |cpu| cpu.rflags ^= rflags::DF),
            ("byte 160 of the FXSAVE image", |cpu| {
                let mut image = *cpu.fpu.image();
                image[160] ^= 7;
                cpu.fpu.set_image(&image);
            }),
            ("RAM byte 0x6000", |cpu| {
                if cpu.journal.as_ref().is_some_and(|journal| journal.pages.contains_key(&DATA)) {
                    cpu.shared
                        .memory
                        .atomic_u64(Gpa(DATA))
                        .unwrap()
                        .fetch_xor(0xee, std::sync::atomic::Ordering::SeqCst);
                }
            }),
        ];
        for (name, spoil) in spoils {
            let (exit, _) = run(Some(spoil));
            let Exit::Failed(text) = exit else { panic!("{name}: {exit:?}") };
            assert!(text.contains("soft.check") && text.contains(name), "{name}: {text}");
        }
    }
}
