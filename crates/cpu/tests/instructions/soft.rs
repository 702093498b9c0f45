//! The software CPU in the same situation: long mode, ring 3, the same windows at the same addresses.

use crate::cases::Case;
use crate::window::{CODE, DATA, DATA_SIZE, Fault, Fx, Outcome, START, State};
use std::fs::File;
use std::sync::Arc;
use viv_arch::x86::{Activity, CpuState, Segment, cr0, cr4, efer, rflags, seg};
use viv_cpu::soft::{Exception, KeptCode, Shared, SoftCpu};
use viv_cpu::{CpuBus, CpuEvent, Vcpu};
use viv_mem::{Gpa, GuestMemory};

/// A bus without anything: ring 3 without I/O permission never gets here.
pub(crate) struct Nothing;

impl CpuBus for Nothing {
    fn port_read(&self, port: u16, _: u8) -> u32 {
        panic!("IN from {port:#x}")
    }
    fn port_write(&self, port: u16, _: u8, _: u32) {
        panic!("OUT to {port:#x}")
    }
    fn mmio_read(&self, gpa: Gpa, _: u8) -> u64 {
        panic!("MMIO read from {:#x}", gpa.0)
    }
    fn mmio_write(&self, gpa: Gpa, _: u8, _: u64) {
        panic!("MMIO write to {:#x}", gpa.0)
    }
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

/// What executes the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tier {
    Interpreter,
    Translator,
}

pub(crate) struct Soft {
    tier: Tier,
    memory: GuestMemory,
    cpu: SoftCpu,
    /// Everything that is the same in each case.
    state: CpuState,
}

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const USER: u64 = 4;
const NO_EXECUTE: u64 = 1 << 63;
const PML4: u64 = 0x1000;
/// Page of the task state segment.
const TASK: u64 = 0x21_0000;

const CODE64: Segment = Segment { selector: 0x33, base: 0, limit: u32::MAX, rights: 0xa0fb };
const CODE32: Segment = Segment { selector: 0x23, base: 0, limit: u32::MAX, rights: 0xc0fb };

impl Soft {
    pub(crate) fn new(tier: Tier) -> Self {
        let memory = GuestMemory::new(&[(Gpa(0), 4 << 20)]).expect("4 MiB of guest memory");
        let entry = |table: u64, index: u64, value: u64| {
            memory.write(Gpa(table + 8 * index), &value.to_le_bytes()).expect("page tables are in RAM");
        };
        let all = PRESENT | WRITE | USER;
        entry(PML4, 0, 0x2000 | all);
        entry(0x2000, 0, 0x3000 | all);
        entry(0x3000, 1, 0x4000 | all);
        let page = |address: u64| address >> 12 & 511;
        entry(0x4000, page(CODE), CODE | PRESENT | USER);
        for index in 0..2 {
            entry(0x4000, page(DATA) + index, (DATA + 0x1000 * index) | all | NO_EXECUTE);
        }
        entry(0x4000, page(DATA) + 2, (DATA + 0x2000) | PRESENT | USER | NO_EXECUTE);
        // A task state segment whose I/O permission map is beyond its limit: no ports in ring 3.
        entry(0x4000, page(TASK), TASK | PRESENT | NO_EXECUTE);
        memory.write(Gpa(TASK + 0x66), &0x68u16.to_le_bytes()).expect("the task state segment is in RAM");
        memory.fill(Gpa(CODE), 4096, 0xcc).expect("the code page is in RAM");

        let mut state = CpuState::default();
        let data = Segment { selector: 0x2b, base: 0, limit: u32::MAX, rights: 0xc0f3 };
        let null = Segment { selector: 0, base: 0, limit: 0, rights: 0 };
        // ES, CS, SS, DS, FS, GS as in the test's own process.
        state.segments = [data, CODE64, data, data, null, null];
        state.tr = Segment { selector: 0x40, base: TASK, limit: 0x67, rights: 0x8b };
        state.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
        state.cr3 = PML4;
        state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE | cr4::PGE;
        state.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
        state.xcr0 = 3;
        state.xsave = vec![0; 576];
        state.xsave[512] = 3;
        state.activity = Activity::Running;
        let cpu = SoftCpu::new(0, Shared::new(&memory, 1));
        Self { tier, memory, cpu, state }
    }

    /// The same in another process: with all that was translated here, and nothing else but memory.
    pub(crate) fn carried(&self) -> Soft {
        let mut other = Soft::new(Tier::Translator);
        let mut page = [0; 4096];
        self.memory.read(Gpa(CODE), &mut page).expect("the code page is in RAM");
        other.memory.write(Gpa(CODE), &page).expect("the code page is in RAM");
        let path = std::env::temp_dir().join(format!("viv-carried-{}", std::process::id()));
        std::fs::write(&path, self.cpu.translated(None).expect("something was translated"))
            .expect("room for it");
        let code = File::open(&path).and_then(KeptCode::open).expect("a file");
        std::fs::remove_file(&path).expect("the file just written");
        assert!(other.cpu.take_translated(&Arc::new(code)), "of the same build");
        other
    }

    /// Pages whose code was translated elsewhere, and instructions translated here.
    pub(crate) fn taken(&self) -> (u64, u64) {
        let stats = self.cpu.translator_stats().unwrap_or_default();
        (stats.taken, stats.instructions)
    }

    pub(crate) fn tier(&self) -> Tier {
        self.tier
    }

    fn step(&mut self) -> Result<(), Exception> {
        match self.tier {
            Tier::Interpreter => self.cpu.step(&Nothing),
            Tier::Translator => self.cpu.step_translated(&Nothing, 1),
        }
    }

    /// Puts code before `end`.
    pub(crate) fn place_block(&mut self, code: &[u8], end: u64) {
        self.memory.write(Gpa(end - code.len() as u64), code).expect("the code page is in RAM");
    }

    /// Runs the code that was placed before `end`, until it gets there or faults.
    pub(crate) fn run_block(&mut self, before: &State, end: u64) -> Outcome {
        self.memory.write(Gpa(DATA), &before.data[..]).expect("the data pages are in RAM");
        self.state.segments[seg::CS] = CODE64;
        self.state.gprs = before.gprs;
        self.state.rip = before.rip;
        self.state.rflags = before.rflags;
        self.state.xsave[..512].copy_from_slice(&before.fx.0);
        self.cpu.load(&self.state).expect("a state that the software CPU takes");
        let mut result = Ok(());
        let mut after = self.cpu.save().expect("the software CPU can save");
        while result.is_ok() && after.rip != end {
            result = match self.tier {
                Tier::Interpreter => self.cpu.step(&Nothing),
                Tier::Translator => self.cpu.step_translated(&Nothing, 256),
            };
            after = self.cpu.save().expect("the software CPU can save");
        }
        self.outcome(after, result)
    }

    fn outcome(&self, after: CpuState, result: Result<(), Exception>) -> Outcome {
        let mut data = Box::new([0; DATA_SIZE]);
        self.memory.read(Gpa(DATA), &mut data[..]).expect("the data pages are in RAM");
        let mut fx = Fx([0; 512]);
        fx.0.copy_from_slice(&after.xsave[..512]);
        Outcome {
            state: State { gprs: after.gprs, rip: after.rip, rflags: after.rflags | rflags::FIXED, fx, data },
            fault: result.err().map(|exception| Fault {
                vector: exception.vector,
                error: exception.error.unwrap_or(0),
                address: if exception.vector == 14 { exception.address } else { 0 },
            }),
        }
    }

    pub(crate) fn run(&mut self, case: &Case) -> Outcome {
        let before = &case.before;
        let length = case.bytes.len();
        self.memory.write(Gpa(START), &case.bytes).expect("the code page is in RAM");
        self.memory.written(Gpa(START), length as u64);
        self.memory.write(Gpa(DATA), &before.data[..]).expect("the data pages are in RAM");
        self.state.segments[seg::CS] = if case.bits == 64 { CODE64 } else { CODE32 };
        self.state.gprs = before.gprs;
        self.state.rip = before.rip;
        self.state.rflags = before.rflags;
        self.state.xsave[..512].copy_from_slice(&before.fx.0);
        self.cpu.load(&self.state).expect("a state that the software CPU takes");
        let mut result = self.step();
        let mut after = self.cpu.save().expect("the software CPU can save");
        // Repeated string instructions stop now and then to look for interrupts.
        while result.is_ok() && after.rip == START {
            result = self.step();
            after = self.cpu.save().expect("the software CPU can save");
        }
        // A branch out of the page faults at its target.
        if result.is_ok() && after.rip >> 12 != CODE >> 12 {
            result = self.step();
            after = self.cpu.save().expect("the software CPU can save");
        }
        self.memory.write(Gpa(START), &vec![0xcc; length]).expect("the code page is in RAM");
        self.memory.written(Gpa(START), length as u64);
        self.outcome(after, result)
    }
}
