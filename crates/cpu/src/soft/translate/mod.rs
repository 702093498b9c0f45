//! Tier 2: the translator, x86-64 to x86-64. Hot code of 64-bit mode becomes host code; everything else, and every
//! case that is not the common one, stays with the interpreter.
//!
//! ```text
//!  run ─► Targets (linear → code) ─► enter ═══► translated regions ═══► leave: why ─► run
//!           │ miss                                │ a TLB miss: fill and try again
//!  interpreter's block ─ hot ─► region ─► lower   │ anything rare: the interpreter's own function for the instruction
//! ```
//! - **Registers.** Twelve guest registers live in host registers, four in [`super::cpu::Cpu`]; RSP points to the `Cpu`, so that
//!   its fields are one displacement away and the stack for calls back lies below it ([`home`], [`layout`]).
//! - **Flags** are the host's own after a guest instruction, or a flag word in AX (see [`super::flags`]), or both. Code of
//!   our own that changes the host's flags saves them to AX before. Between blocks they are in AX.
//! - **Vectors.** XMM registers and MXCSR are the host's own while `Frame::vectors` is set, else in the FXSAVE image.
//! - **Memory** goes through the software TLB, looked up inline. A miss calls [`Cpu::fill`]; what still does not fit (devices,
//!   page borders, faults, decoded code) leaves to the interpreter *before* the instruction changed anything.
//! - **Regions** are the blocks of one physical page that have been executed, with their jumps to each other. Their code
//!   does not know at which linear address it runs (`Frame::page` says it), so it serves every address space.
//! - **Validity.** A region is entered from elsewhere through a guard that compares its page's version in
//!   [`viv_mem::CodeMap`]. Every way in, and every loop, looks at [`super::Attention`].
#![allow(unsafe_code)]

mod asm;
mod home;
mod layout;
mod lower;
mod memory;
mod region;
mod stubs;
mod targets;

pub(crate) use home::CpuBox;
pub(crate) use layout::Frame;
pub(crate) use targets::Targets;

use super::block::Blocks;
use super::cpu::{Cpu, Mode};
use super::decode::Decoded;
use super::fpu::FpOp;
use super::op::Op;
use asm::Asm;
use lower::Lower;
use memory::CodeMemory;
use std::collections::HashMap;
use stubs::Stubs;
use viv_arch::x86::{cr0, cr4, rflags};
use viv_mem::PAGE_SIZE;

/// Why translated code came back. RIP is where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// No translation is known for RIP, or somebody wants attention.
    Dispatch,
    /// The instruction at RIP is the interpreter's.
    Interpret,
    /// As `Dispatch`; the jump that came here may be linked to the translation of RIP.
    Link,
    /// An instruction faulted.
    Fault,
    /// An instruction asked to stop after it.
    Stop,
    /// The page at RIP has changed since it was translated.
    Stale,
}

impl Leave {
    fn from_code(code: u32) -> Leave {
        [Leave::Dispatch, Leave::Interpret, Leave::Link, Leave::Fault, Leave::Stop, Leave::Stale]
            .into_iter()
            .find(|leave| *leave as u32 == code)
            .unwrap_or(Leave::Dispatch)
    }
}

/// What a translation depends on besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// Which software TLB serves its accesses: says the privilege, too.
    pub(crate) mmu: u8,
    /// Vector instructions neither fault nor are emulated: they may run as they are.
    pub(crate) vectors: bool,
}

impl Context {
    fn key(self) -> u64 {
        u64::from(self.mmu) | u64::from(self.vectors) << 2
    }
}

impl Cpu {
    /// The context of the current state, if the translator serves it at all.
    pub(crate) fn context(&self) -> Option<Context> {
        let aligned = self.cpl == 3 && self.rflags & rflags::AC != 0 && self.cr0 & cr0::AM != 0;
        if self.mode != Mode::Code64 || aligned {
            return None;
        }
        let vectors = self.cr0 & (cr0::TS | cr0::EM) == 0
            && self.cr4 & cr4::OSFXSR != 0
            && self.fpu.mxcsr() & MXCSR_MASKS == MXCSR_MASKS;
        Some(Context { mmu: self.mmu as u8, vectors })
    }
}

/// All exceptions masked (SDM vol. 1 §10.2.3).
const MXCSR_MASKS: u32 = 0x1f80;

/// Counts for `--stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TranslatorStats {
    /// Regions translated.
    pub regions: u64,
    /// Guest instructions translated.
    pub instructions: u64,
    /// Bytes of host code made.
    pub bytes: u64,
    /// Nanoseconds spent translating.
    pub nanoseconds: u64,
    /// Times that all code was dropped because the code memory was full.
    pub evictions: u64,
    /// Jumps linked to their target.
    pub links: u64,
    /// Times that translated code was entered.
    pub entries: u64,
    /// Reasons for leaving: dispatch, interpret, link, fault, stop, stale.
    pub leaves: [u64; 6],
}

/// Times that the interpreter runs a block before it is translated.
const HOT: u32 = 12;
/// Code memory of one vCPU.
const CODE_BYTES: usize = 32 << 20;
/// Room that a region may need.
const REGION_BYTES: usize = 256 << 10;

/// A translation's ways in.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Through the guard.
    guarded: u64,
    /// Behind the guard: for jumps of the same page.
    linked: u64,
    page: u32,
    version: u32,
}

/// The translator of one vCPU.
pub(crate) struct Translator {
    memory: CodeMemory,
    stubs: Stubs,
    /// By address in RAM and context.
    entries: HashMap<u64, Entry>,
    /// Instructions that translated code gives to the interpreter.
    ops: Ops,
    encoder: iced_x86::Encoder,
    scratch: Vec<u8>,
    /// Of what the tables in `Cpu::targets` are full.
    vectors: bool,
    hot: u32,
    /// Most instructions of a region.
    longest: usize,
    /// Grows whenever all code is dropped.
    pub(crate) generation: u32,
    pub(crate) stats: TranslatorStats,
}

/// Decoded instructions that translated code names by address.
#[derive(Default)]
struct Ops(Vec<(Box<Op>, Option<Box<FpOp>>)>);

impl Ops {
    fn keep(&mut self, mut decoded: Decoded) -> *const Op {
        let unit = decoded.fp.take().map(Box::new);
        if let Some(unit) = &unit {
            decoded.op.imm = std::ptr::from_ref::<FpOp>(unit) as u64;
        }
        self.0.push((Box::new(decoded.op), unit));
        self.0.last().map_or(std::ptr::null(), |(op, _)| std::ptr::from_ref::<Op>(op))
    }
}

impl Translator {
    /// `None` where the host gives no executable memory: the interpreter does all.
    pub(crate) fn new() -> Option<Translator> {
        let mut memory = CodeMemory::new(CODE_BYTES)?;
        let stubs = Stubs::make(&mut memory);
        Some(Translator {
            memory,
            stubs,
            entries: HashMap::new(),
            ops: Ops::default(),
            encoder: iced_x86::Encoder::new(64),
            scratch: Vec::new(),
            vectors: false,
            hot: HOT,
            longest: region::INSTRUCTIONS_MAX,
            generation: 1,
            stats: TranslatorStats::default(),
        })
    }

    /// Translates blocks after so many runs: 0 in tests.
    pub(crate) fn set_hot(&mut self, runs: u32) {
        self.hot = runs;
    }

    /// Translates each instruction at once and alone.
    pub(crate) fn for_single_steps(&mut self) {
        (self.hot, self.longest) = (0, 1);
    }

    /// Code for RIP by its linear address, if it is at hand.
    #[inline(always)]
    pub(crate) fn at_hand(&mut self, cpu: &mut Cpu, context: Context) -> Option<u64> {
        if context.vectors != self.vectors {
            self.vectors = context.vectors;
            cpu.targets.flush();
        }
        cpu.targets.find(context.mmu, cpu.rip())
    }

    /// Code for the block at RIP that the interpreter found, if it is hot.
    pub(crate) fn for_block(
        &mut self,
        cpu: &mut Cpu,
        blocks: &Blocks,
        block: &super::block::Block,
        context: Context,
    ) -> Option<u64> {
        let heat = block.heat.get();
        if heat < self.hot {
            block.heat.set(heat + 1);
            return None;
        }
        let rip = cpu.rip();
        let key = (u64::from(block.page) * PAGE_SIZE + rip % PAGE_SIZE) << 8 | context.key();
        let current = |entry: &&Entry| entry.version == block.version;
        let entry = match self.entries.get(&key).filter(current) {
            Some(entry) => *entry,
            None => {
                if block.next.is_some() {
                    block.heat.set(0);
                    return None;
                }
                let Some(entry) = self.translate(cpu, blocks, block.page, rip, context, key) else {
                    block.heat.set(0);
                    return None;
                };
                entry
            }
        };
        let global = cpu.fetch_is_global(rip);
        cpu.targets.enter(context.mmu, rip, entry.guarded, global);
        Some(entry.guarded)
    }

    /// Links the jump that left with [`Leave::Link`] to its target's code.
    pub(crate) fn link(&mut self, cpu: &Cpu, blocks_version: u32, context: Context, page: u32, site: u64, generation: u32) {
        let key = (u64::from(page) * PAGE_SIZE + cpu.rip() % PAGE_SIZE) << 8 | context.key();
        if generation != self.generation {
            return;
        }
        if let Some(entry) = self.entries.get(&key).filter(|entry| entry.version == blocks_version) {
            self.memory.patch(site, entry.linked);
            self.stats.links += 1;
        }
    }

    /// Runs translated code.
    pub(crate) fn enter(&mut self, cpu: &mut Cpu, code: u64) -> Leave {
        cpu.native.page = cpu.rip() & !(PAGE_SIZE - 1);
        self.stats.entries += 1;
        // SAFETY: `code` is an entry of a live region of this vCPU, and `cpu` stands in its `CpuBox` with the stack below it.
        let leave = Leave::from_code(unsafe { (self.stubs.enter)(cpu, code) });
        self.stats.leaves[leave as usize] += 1;
        if let Some(panic) = cpu.native.panic.take() {
            std::panic::resume_unwind(panic);
        }
        leave
    }

    fn translate(
        &mut self,
        cpu: &mut Cpu,
        blocks: &Blocks,
        page: u32,
        rip: u64,
        context: Context,
        key: u64,
    ) -> Option<Entry> {
        let begun = std::time::Instant::now();
        if self.memory.room() < REGION_BYTES {
            self.evict(cpu);
        }
        let start = (rip % PAGE_SIZE) as u16;
        let warm = |offset: u16| self.hot == 0 || blocks.knows(page, offset, cpu);
        let region = region::find(cpu.shared.memory.clone(), page, start, self.longest, warm)?;
        let writers = region.mark(&cpu.shared.memory);
        if writers != 0 {
            cpu.forbid_writes(page, writers);
        }
        if !region.still_true(&cpu.shared.memory) {
            return None;
        }
        let cell = std::ptr::from_ref(cpu.shared.memory.code().version_cell(page)) as u64;
        let asm = Asm::new(self.memory.next(), std::mem::take(&mut self.scratch));
        let lower = Lower::new(asm, &mut self.encoder, &self.stubs, &mut self.ops, context);
        let (asm, ways) = lower.region(&region, cell);
        let done = self.memory.append(&asm.bytes);
        self.scratch = asm.bytes;
        if !done {
            return None;
        }
        let entry = Entry { guarded: ways.guarded, linked: ways.linked, page, version: region.version };
        self.entries.insert(key, entry);
        self.stats.regions += 1;
        self.stats.instructions += region.instructions() as u64;
        self.stats.bytes += self.scratch.len() as u64;
        self.stats.nanoseconds += begun.elapsed().as_nanos() as u64;
        Some(entry)
    }

    /// Drops all translations. Only outside of translated code.
    pub(crate) fn evict(&mut self, cpu: &mut Cpu) {
        self.memory.truncate(self.stubs.len);
        self.entries.clear();
        self.ops = Ops::default();
        cpu.targets.flush();
        self.generation = self.generation.wrapping_add(1);
        self.stats.evictions += 1;
    }
}

#[allow(dead_code)]
fn _page_of(entry: &Entry) -> u32 {
    entry.page
}
