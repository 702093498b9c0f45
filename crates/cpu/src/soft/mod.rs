//! The software CPU: x86-64 system mode, level x86-64-v2, without any help of the host's virtualization.
//!
//! ```text
//!  run: attention? ── interrupts, events, kicks (bus)
//!    │
//!    ├─ block ── RIP → jump cache → blocks by physical address → [decode: iced → Op]
//!    │             │
//!    │             └─ each Op's code: integer, control, vector → fpu, system, transfer
//!    │                                   └─ memory through mmu (software TLB → page walk → RAM or bus)
//!    └─ fault? ── deliver (transfer) ── double fault ── shutdown
//! ```
//! Tier 1, the interpreter: the reference for everything else. Arithmetic runs on the host's own instructions
//! ([`native`]), so that results and flags are the hardware's.
//!
//! Start reading at [`SoftCpu::run`]. What is deliberately not as on hardware stands in `docs/software-cpu.md`.

mod block;
mod breakpoint;
mod check;
mod control;
mod cpu;
mod cpuid;
mod decode;
mod flags;
pub mod fpu;
mod integer;
mod mmu;
mod msr;
mod native;
mod op;
mod perf;
mod reader;
mod run;
mod slots;
mod state;
mod stats;
mod system;
mod transfer;
mod translate;
mod vector;
mod walk;

pub use check::Checked;
pub use cpu::Exception;
pub use cpuid::{has, processor};
pub use decode::supports;
pub use perf::PerfMap;
pub use run::SoftCpu;
pub use stats::{Events, ShownStats, SoftStats, Translated};
#[cfg(feature = "trial")]
pub use translate::trial;
pub use translate::{KeptCode, KeptMark, TranslatorStats};

use crate::timebase::Timebase;
use crate::{CpuBus, CpuEvent};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use viv_arch::processor::Processor;
use viv_mem::{Gpa, GuestMemory};

/// What the vCPUs of one machine have in common.
pub struct Shared {
    memory: GuestMemory,
    attention: Vec<std::sync::Arc<Attention>>,
    /// Held by locked accesses that no host atomic covers.
    split_lock: Mutex<()>,
    shown: Shown,
}

/// What the guest sees of its processor, which may have been another one before.
struct Shown {
    processor: Processor,
    /// What of the level it must not see.
    hidden: Vec<(u32, usize, u32)>,
    time: Timebase,
}

impl Shared {
    /// For `cpus` vCPUs on `memory`.
    pub fn new(memory: &GuestMemory, cpus: u32) -> std::sync::Arc<Shared> {
        Shared::showing(memory, cpus, processor(), Timebase::default())
    }

    /// Likewise, of a machine whose guest knows its processor as `processor` and its clocks as `time`.
    pub fn showing(
        memory: &GuestMemory,
        cpus: u32,
        processor: Processor,
        time: Timebase,
    ) -> std::sync::Arc<Shared> {
        let attention: Vec<std::sync::Arc<Attention>> =
            (0..cpus.max(1)).map(|_| std::sync::Arc::default()).collect();
        let all = attention.clone();
        memory.code().watch(move || all.iter().for_each(|slot| slot.set(Attention::CODE)));
        let shown = Shown { hidden: processor.hidden(), processor, time };
        std::sync::Arc::new(Shared { memory: memory.clone(), attention, split_lock: Mutex::new(()), shown })
    }

    fn cpus(&self) -> u32 {
        self.attention.len() as u32
    }

    /// Whether the guest knows its processor as one of Intel's.
    fn is_intel(&self) -> bool {
        self.shown.processor.vendor == "GenuineIntel"
    }

    fn attention(&self, index: u32) -> &std::sync::Arc<Attention> {
        &self.attention[index as usize % self.attention.len()]
    }
}

/// Why a vCPU should look up at its next block.
#[derive(Default)]
pub(crate) struct Attention {
    bits: AtomicU32,
    /// Whether it executes guest code now.
    running: AtomicBool,
    flush_asked: AtomicU64,
    flush_done: AtomicU64,
}

impl Attention {
    /// Leave `run`.
    const KICK: u32 = 1;
    /// Ask the bus for interrupts and events.
    const POKE: u32 = 2;
    /// Forget unseen write permissions.
    const FLUSH: u32 = 4;
    /// An NMI that was masked can be taken.
    const NMI: u32 = 8;
    /// Code may be stale: where it does not look by itself, it ends.
    const CODE: u32 = 16;

    /// The word that translated code looks at.
    fn word(&self) -> *const AtomicU32 {
        &raw const self.bits
    }
    fn set(&self, bits: u32) {
        self.bits.fetch_or(bits, Ordering::SeqCst);
    }
    #[inline(always)]
    fn any(&self) -> bool {
        self.bits.load(Ordering::Relaxed) != 0
    }
    fn has(&self, bits: u32) -> bool {
        self.bits.load(Ordering::SeqCst) & bits != 0
    }
    fn clear(&self, bits: u32) {
        self.bits.fetch_and(!bits, Ordering::SeqCst);
    }
    fn take(&self) -> u32 {
        self.bits.swap(0, Ordering::SeqCst)
    }
    fn request_flush(&self) -> u64 {
        let ticket = self.flush_asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.set(Attention::FLUSH);
        ticket
    }
    fn flush_wanted(&self) -> Option<u64> {
        let asked = self.flush_asked.load(Ordering::SeqCst);
        (asked != self.flush_done.load(Ordering::SeqCst)).then_some(asked)
    }
    fn answer(&self, ticket: u64) {
        self.flush_done.store(ticket, Ordering::SeqCst);
    }
    fn flushed(&self, ticket: u64) -> bool {
        self.flush_done.load(Ordering::SeqCst) >= ticket
    }
}

impl crate::Kick for Attention {
    fn kick(&self) {
        self.set(Attention::KICK);
    }
    fn poke(&self) {
        self.set(Attention::POKE);
    }
}

/// Whether the host is an AMD processor, whose corner cases our CPUID promises.
fn host_is_amd() -> bool {
    true
}

/// The bus outside `run`: nothing is there.
struct NoBus;
static NO_BUS: NoBus = NoBus;

impl CpuBus for NoBus {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        u32::MAX
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: Gpa, _: u8) -> u64 {
        u64::MAX
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
