//! Tier 2: the translator, x86-64 to x86-64. Hot code of 64-bit mode becomes host code; everything else, and every
//! case that is not the common one, stays with the interpreter.
//!
//! ```text
//!  run ─► Targets (linear → code) ─► enter ═══► translated regions ═══► leave: why ─► run
//!           │ miss                                │ a TLB miss: fill and try again
//!  interpreter's block ─ hot ─► region ─► lower   │ anything rare: the interpreter's own function for the instruction
//! ```
//! - **Registers.** Twelve guest registers live in host registers, four in [`Cpu`]; RSP points to the `Cpu`, so that its
//!   fields are one displacement away and the stack for calls back lies below it ([`home`], [`layout`]).
//! - **Flags** are the host's own after a guest instruction, or a flag word in AX (see [`super::flags`]), or both. Code of
//!   our own that changes the host's flags saves them to AX before. Where flows join they are in AX.
//! - **Units.** XMM and x87 registers are the host's own while `Frame::units` says so, else in the FXSAVE image.
//! - **Memory** goes through the software TLB, looked up inline. A miss calls [`Cpu::fill`]; what still does not fit (devices,
//!   page borders, faults, decoded code) leaves to the interpreter *before* the instruction changed anything. Accesses
//!   near each other share one lookup (`lower::group`), and so do the rounds of a loop (`lower::turn`).
//! - **Regions** are blocks of one physical page that have been executed, with their jumps to each other. Their code does
//!   not know at which linear address it runs (`Frame::page` says it), so it serves every address space.
//! - **Validity.** A region is entered from elsewhere through a guard that compares its page's version in
//!   [`viv_mem::CodeMap`]. Every way in but for jumps forward in the page, and every loop, looks at [`super::Attention`].
#![allow(unsafe_code)]

mod asm;
mod home;
mod kept;
mod layout;
mod lower;
mod memory;
mod ops;
mod region;
mod stubs;
mod targets;
#[cfg(feature = "trial")]
pub mod trial;

pub(crate) use home::{CpuBox, Table};
pub use kept::{KeptCode, KeptMark};
pub(crate) use layout::Frame;
pub(crate) use targets::Targets;

use super::block::{Block, Blocks, KeyHasher};
use super::cpu::{Cpu, Mode};
use super::mmu::{Place, Tlb};
use super::perf::{PerfMap, guest_name};
use asm::Asm;
use kept::{Kept, Made};
use lower::Lower;
use memory::CodeMemory;
use ops::Ops;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use stubs::Stubs;
use viv_arch::x86::{Activity, cr0, cr4, rflags};
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
    /// A group of accesses lies across a page border: what follows runs with a lookup for each of them.
    Single,
}

impl Leave {
    const ALL: [Leave; 7] = [
        Leave::Dispatch,
        Leave::Interpret,
        Leave::Link,
        Leave::Fault,
        Leave::Stop,
        Leave::Stale,
        Leave::Single,
    ];

    fn from_code(code: u32) -> Leave {
        Leave::ALL.get(code as usize).copied().unwrap_or(Leave::Dispatch)
    }
}

/// What a translation depends on besides its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// Which software TLB serves its accesses: says the privilege, too.
    pub(crate) mmu: u8,
    /// Vector and x87 instructions are enabled, and all their exceptions masked: they may run as they are.
    pub(crate) units: bool,
}

/// How a region's accesses are looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lookups {
    /// Once for accesses near each other.
    Grouped,
    /// One by one.
    Single,
}

/// Names a translation: where its code is in RAM, and what it depends on.
fn key(page: u32, offset: u64, context: Context, lookups: Lookups) -> u64 {
    let ram = u64::from(page) * PAGE_SIZE + offset;
    let single = u64::from(lookups == Lookups::Single) << 3;
    ram << 8 | single | u64::from(context.units) << 2 | u64::from(context.mmu)
}

/// The page of a [`key`].
fn page_of(key: u64) -> u32 {
    ((key >> 8) / PAGE_SIZE) as u32
}

impl Cpu {
    /// The context of the current state, if the translator serves it at all.
    #[inline(always)]
    pub(crate) fn context(&self) -> Option<Context> {
        let aligned = self.cpl == 3 && self.rflags & rflags::AC != 0 && self.cr0 & cr0::AM != 0;
        // Translated code takes a supervisor's TLB for CPL 0; the rings between are rare enough.
        let between = matches!(self.cpl, 1 | 2);
        if self.mode != Mode::Code64 || aligned || between {
            return None;
        }
        let units = self.cr0 & (cr0::TS | cr0::EM) == 0
            && self.cr4 & cr4::OSFXSR != 0
            && self.fpu.mxcsr() & MXCSR_MASKS == MXCSR_MASKS
            && self.fpu.fcw() & FCW_MASKS == FCW_MASKS;
        Some(Context { mmu: self.mmu as u8, units })
    }

    /// Whether the loop of `run` has something to do before the next instruction.
    fn must_stop(&self) -> bool {
        self.shadow
            || self.rflags & (rflags::TF | rflags::RF) != 0
            || self.dr[5] & 0xff != 0
            || self.breakpoint_hits != 0
            || !self.wrote_code.is_empty()
            || self.failed.is_some()
            || self.activity != Activity::Running
            || self.attention_wanted()
    }

    fn attention_wanted(&self) -> bool {
        // SAFETY: the word lives in `Shared`, of which we hold a share.
        unsafe { &*self.native.attention }.load(Ordering::Relaxed) != 0
    }

    /// Whether code at `linear` has these bytes, fetched as the processor would.
    fn code_is(&mut self, linear: u64, bytes: &[u8]) -> bool {
        let in_page = ((PAGE_SIZE - linear % PAGE_SIZE) as usize).min(bytes.len());
        let (head, tail) = bytes.split_at(in_page);
        let mut same = |at: u64, bytes: &[u8]| match self.fetch_place(at) {
            // SAFETY: guest RAM to the end of the page, in which the bytes lie.
            Ok(Place::Ram(host)) => unsafe { std::slice::from_raw_parts(host, bytes.len()) == bytes },
            _ => false,
        };
        same(linear, head) && same(linear.wrapping_add(in_page as u64), tail)
    }
}

/// All exceptions masked (SDM vol. 1 §10.2.3).
const MXCSR_MASKS: u32 = 0x1f80;
/// All exceptions masked (SDM vol. 1 §8.1.5).
const FCW_MASKS: u16 = 0x3f;

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
    /// Searches for a jump's target that the table did not have.
    pub seeks: u64,
    /// Times that translated code was entered.
    pub entries: u64,
    /// Pages whose code was translated in another process.
    pub taken: u64,
    /// Reasons for leaving: dispatch, interpret, link, fault, stop, stale, single.
    pub leaves: [u64; 7],
}

/// Times that the interpreter runs a block before it is translated.
const HOT: u32 = 12;
/// Code memory of one vCPU.
const CODE_BYTES: usize = 48 << 20;
/// Room that a region may need.
const REGION_BYTES: usize = 256 << 10;

/// A translation of the code at one address.
#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Through the guard. 0: this is the middle of a region, whose way in is made when it is asked for.
    guarded: u64,
    /// Behind the guard: for jumps of the same page. In the middle of a region: the block itself.
    linked: u64,
    /// For jumps that lead forward in the page.
    forward: u64,
    version: u32,
}

/// The translator of one vCPU.
pub(crate) struct Translator {
    memory: CodeMemory,
    stubs: Stubs,
    entries: HashMap<u64, Entry, BuildHasherDefault<KeyHasher>>,
    /// Instructions that translated code gives to the interpreter.
    ops: Ops,
    /// All code, in the order in which it was made.
    made: Vec<Made>,
    /// What was translated before this process was.
    kept: Kept,
    encoder: iced_x86::Encoder,
    scratch: Vec<u8>,
    /// Whether the tables in `Cpu::targets` are for contexts with the units.
    units: bool,
    hot: u32,
    /// Code counts what it executes.
    counting: bool,
    /// Where code is named.
    map: Option<Arc<PerfMap>>,
    /// Most instructions of a region.
    longest: usize,
    /// Grows whenever all code is dropped.
    pub(crate) generation: u32,
    pub(crate) stats: TranslatorStats,
}

impl Translator {
    /// `None` where the host gives no executable memory: the interpreter does all.
    pub(crate) fn new() -> Option<Translator> {
        let mut memory = CodeMemory::new(CODE_BYTES)?;
        let stubs = Stubs::make(&mut memory);
        Some(Translator {
            memory,
            stubs,
            entries: HashMap::default(),
            ops: Ops::default(),
            made: Vec::new(),
            kept: Kept::default(),
            encoder: iced_x86::Encoder::new(64),
            scratch: Vec::new(),
            units: false,
            hot: HOT,
            counting: false,
            map: None,
            longest: region::INSTRUCTIONS_MAX,
            generation: 1,
            stats: TranslatorStats::default(),
        })
    }

    /// Translates blocks after so many runs: 0 in tests.
    pub(crate) fn set_hot(&mut self, runs: u32) {
        self.hot = runs;
    }

    /// Code counts what it executes; what does not is dropped.
    pub(crate) fn count(&mut self, cpu: &mut Cpu) {
        if !self.entries.is_empty() {
            self.evict(cpu);
        }
        self.counting = true;
    }

    pub(crate) fn counts(&self) -> bool {
        self.counting
    }

    /// Names code in `map`.
    pub(crate) fn map_to(&mut self, map: Arc<PerfMap>) {
        map.name(self.memory.start(), self.stubs.len, "viv_translator_stubs");
        self.map = Some(map);
    }

    /// Translates each block at once, and so many instructions together.
    pub(crate) fn translate_at_once(&mut self, longest: usize) {
        (self.hot, self.longest) = (0, longest);
    }

    /// Whether it has code that was translated before this process was.
    #[inline(always)]
    pub(crate) fn has_taken(&self) -> bool {
        self.kept.is_some()
    }

    // ---- finding code -----------------------------------------------------------------------------------

    /// Code for RIP by its linear address, if it is at hand.
    #[inline(always)]
    pub(crate) fn at_hand(&mut self, cpu: &mut Cpu, context: Context) -> Option<u64> {
        if context.units != self.units {
            self.units = context.units;
            cpu.targets.flush();
        }
        cpu.targets.find(context.mmu, cpu.rip())
    }

    /// Code for a linear address, in the present context, that the table of targets does not have.
    pub(crate) fn seek(&mut self, cpu: &mut Cpu, linear: u64) -> Option<u64> {
        self.stats.seeks += 1;
        let context = cpu.context()?;
        let Ok(Place::Ram(host)) = cpu.fetch_place(linear) else { return None };
        let page = (cpu.shared.memory.ram_offset(host) / PAGE_SIZE) as u32;
        if !self.kept.is_empty() {
            self.adopt(cpu, page);
        }
        let version = cpu.shared.memory.code().version(page);
        let entry = self.known(page, linear, context, version)?;
        let global = cpu.fetch_is_global(linear);
        cpu.targets.enter(context.mmu, linear, entry.guarded, global);
        Some(entry.guarded)
    }

    /// Code for RIP after an instruction that changed more than the next instruction's place.
    fn go_on(&mut self, cpu: &mut Cpu) -> Option<u64> {
        let context = cpu.context()?;
        let rip = cpu.rip();
        self.at_hand(cpu, context).or_else(|| self.seek(cpu, rip))
    }

    /// Code for the block at RIP that the interpreter found, if it is hot.
    pub(crate) fn for_block(
        &mut self,
        cpu: &mut Cpu,
        blocks: &Blocks,
        block: &Block,
        context: Context,
    ) -> Option<u64> {
        let heat = block.heat.get();
        if heat < self.hot {
            block.heat.set(heat + 1);
            return None;
        }
        let rip = cpu.rip();
        let known = self.known(block.page, rip, context, block.version);
        let entry = known.or_else(|| self.translate(cpu, blocks, block.page, rip, context, Lookups::Grouped));
        let Some(entry) = entry else {
            block.heat.set(0);
            return None;
        };
        let global = cpu.fetch_is_global(rip);
        cpu.targets.enter(context.mmu, rip, entry.guarded, global);
        Some(entry.guarded)
    }

    /// The present translation of an address of a RAM page, with its way in.
    fn known(&mut self, page: u32, linear: u64, context: Context, version: u32) -> Option<Entry> {
        let offset = linear % PAGE_SIZE;
        let key = key(page, offset, context, Lookups::Grouped);
        let entry = *self.entries.get(&key).filter(|entry| entry.version == version)?;
        if entry.guarded != 0 {
            return Some(entry);
        }
        if self.memory.room() < REGION_BYTES {
            return None;
        }
        let asm = Asm::new(self.memory.next(), std::mem::take(&mut self.scratch));
        let guard = lower::Guard { page, offset: offset as u16, version };
        let (asm, ways) = lower::way_in(asm, &self.stubs, guard, entry.linked);
        let done = self.append(page, version, &asm.bytes);
        self.scratch = asm.bytes;
        if let Some(map) = &self.map {
            let name = guest_name(linear, context.mmu != Tlb::USER as u8);
            map.name(ways.guarded, self.scratch.len(), &name);
        }
        let entry = Entry { guarded: ways.guarded, linked: ways.linked, forward: ways.forward, version };
        done.then(|| {
            self.entries.insert(key, entry);
            entry
        })
    }

    /// Links the jump that left with [`Leave::Link`] to its target's code.
    pub(crate) fn link(&mut self, cpu: &Cpu, block: &Block, context: Context, generation: u32) {
        let (site, forward) = lower::linked_site(cpu.native.link);
        if generation == self.generation
            && let Some(entry) = self.known(block.page, cpu.rip(), context, block.version)
        {
            self.memory.patch(site, if forward { entry.forward } else { entry.linked });
            self.stats.links += 1;
        }
    }

    /// Code for RIP that looks up each access, after [`Leave::Single`]; the jump is linked to it.
    pub(crate) fn single(
        &mut self,
        cpu: &mut Cpu,
        blocks: &Blocks,
        block: &Block,
        context: Context,
    ) -> Option<u64> {
        let (rip, site, generation) = (cpu.rip(), cpu.native.link, self.generation);
        let key = key(block.page, rip % PAGE_SIZE, context, Lookups::Single);
        let known = self.entries.get(&key).copied().filter(|entry| entry.version == block.version);
        let entry =
            known.or_else(|| self.translate(cpu, blocks, block.page, rip, context, Lookups::Single))?;
        if generation == self.generation {
            self.memory.patch(site, entry.linked);
        }
        Some(entry.guarded)
    }

    // ---- running it -----------------------------------------------------------------------------------------

    /// Runs translated code.
    pub(crate) fn enter(&mut self, cpu: &mut Cpu, code: u64) -> Leave {
        cpu.native.page = cpu.rip() & !(PAGE_SIZE - 1);
        cpu.native.translator = self;
        self.stats.entries += 1;
        // SAFETY: `code` is an entry of a live region of this vCPU, and `cpu` stands in its `CpuBox` with the stack below it.
        let leave = Leave::from_code(unsafe { (self.stubs.enter)(cpu, code) });
        self.stats.leaves[leave as usize] += 1;
        if self.counting && leave == Leave::Interpret {
            // Counted, and yet to be executed by the interpreter, which counts it again.
            cpu.native.counted.take_back();
        }
        if let Some(panic) = cpu.native.panic.take() {
            std::panic::resume_unwind(panic);
        }
        leave
    }

    // ---- making it ------------------------------------------------------------------------------------------

    fn translate(
        &mut self,
        cpu: &mut Cpu,
        blocks: &Blocks,
        page: u32,
        rip: u64,
        context: Context,
        lookups: Lookups,
    ) -> Option<Entry> {
        let begun = std::time::Instant::now();
        if self.memory.room() < REGION_BYTES {
            self.evict(cpu);
        }
        let version = cpu.shared.memory.code().version(page);
        let known = |offset: u16| {
            let key = key(page, offset.into(), context, Lookups::Grouped);
            self.entries.get(&key).filter(|entry| entry.version == version)
        };
        let of_blocks = super::block::context(cpu);
        // What has been translated is jumped to, not translated again.
        let warm = |offset: u16| {
            lookups == Lookups::Grouped
                && (self.hot == 0 || blocks.knows(page, offset, of_blocks))
                && known(offset).is_none()
        };
        let region = region::find(cpu, page, rip, self.longest, warm)?;
        let writers = region.mark(&cpu.shared.memory);
        if writers != 0 {
            cpu.forbid_writes(page, writers);
        }
        if region.version != version || !region.still_true(&cpu.shared.memory) {
            return None;
        }
        let asm = Asm::new(self.memory.next(), std::mem::take(&mut self.scratch));
        let outside = |offset: u16, forward: bool| {
            let entry = known(offset)?;
            if forward { Some(entry.forward) } else { Some(entry.linked).filter(|_| entry.guarded != 0) }
        };
        let lower =
            Lower::new(asm, &mut self.encoder, &self.stubs, &mut self.ops, context, lookups, &outside);
        let (asm, ways, middles) = lower.counting(self.counting).region(&region);
        let done = self.append(page, version, &asm.bytes);
        self.scratch = asm.bytes;
        if !done {
            return None;
        }
        if let Some(map) = &self.map {
            map.name(ways.guarded, self.scratch.len(), &guest_name(rip, context.mmu != Tlb::USER as u8));
        }
        if lookups == Lookups::Grouped {
            for (offset, linked) in middles {
                let key = key(page, offset.into(), context, lookups);
                self.entries.insert(key, Entry { guarded: 0, linked, forward: linked, version });
            }
        }
        let entry = Entry { guarded: ways.guarded, linked: ways.linked, forward: ways.forward, version };
        self.entries.insert(key(page, region.start.into(), context, lookups), entry);
        self.stats.regions += 1;
        self.stats.instructions += region.instructions() as u64;
        self.stats.bytes += self.scratch.len() as u64;
        self.stats.nanoseconds += begun.elapsed().as_nanos() as u64;
        Some(entry)
    }

    /// Code of a page comes into the code memory. False: no room.
    fn append(&mut self, page: u32, version: u32, code: &[u8]) -> bool {
        let start = self.memory.used();
        let done = self.memory.append(code);
        if done {
            self.made.push(Made { page, version, code: start..start + code.len() });
        }
        done
    }

    /// Drops all translations. Only outside of translated code.
    fn evict(&mut self, cpu: &mut Cpu) {
        self.memory.truncate(self.stubs.len);
        self.entries.clear();
        self.ops = Ops::default();
        self.made.clear();
        self.kept = Kept::default();
        cpu.targets.flush();
        self.generation = self.generation.wrapping_add(1);
        self.stats.evictions += 1;
    }
}
