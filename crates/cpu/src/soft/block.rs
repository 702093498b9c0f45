//! Blocks: straight runs of pre-decoded instructions, kept by physical address.
//!
//! A block is valid while the version of its page (and of the next one, for an instruction across the
//! border) stands: see [`viv_mem::CodeMap`]. The jump cache in front maps linear addresses to blocks directly; it is
//! emptied whenever a translation may have changed.
#![allow(unsafe_code)]

use super::cpu::{Cpu, Mode, R, RIP};
use super::decode::decode;
use super::fpu::FpOp;
use super::mmu::Place;
use super::op::Op;
use super::reader::Reader;
use std::cell::Cell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::Ordering;
use viv_arch::x86::{seg, vector};
use viv_mem::PAGE_SIZE;

/// Most instructions in a block: an interrupt waits no longer than that.
const OPS_MAX: usize = 64;
/// Longest instruction (SDM vol. 2 §2.3.11).
pub(crate) const INSTRUCTION_MAX: usize = 15;
const JUMPS: usize = 4096;
/// Instructions of a generation of blocks: what the guest did not come back to for a whole one is dropped. What a boot
/// executes once, and what has been translated, does not stay in the host's memory.
const GENERATION: usize = 96 << 10;

/// A run of instructions.
pub(crate) struct Block {
    pub(crate) ops: Box<[Op]>,
    /// Decoded vector instructions that `ops` point to: each in a box, so that it stays where it is.
    #[allow(clippy::vec_box)]
    _fp: Vec<Box<FpOp>>,
    pub(crate) page: u32,
    pub(crate) version: u32,
    /// The second page of an instruction across a page border, and its version.
    pub(crate) next: Option<(u32, u32)>,
    /// How often it was run, for the translator.
    pub(crate) heat: Cell<u32>,
}

impl Block {
    /// Its first instruction.
    pub(crate) fn first(&self) -> Option<&[Op]> {
        self.ops.get(..1)
    }
}

#[derive(Clone, Copy)]
struct Jump {
    linear: u64,
    context: u32,
    /// The code's page is global: the entry outlives a change of CR3.
    global: bool,
    /// [`Blocks::stamps`] when it was made.
    stamp: u32,
    block: *const Block,
}

const NO_JUMP: Jump = Jump { linear: 0, context: u32::MAX, global: false, stamp: 0, block: std::ptr::null() };

/// Which entries of the jump cache a change of translations takes away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum JumpFlush {
    #[default]
    Nothing,
    /// Those of pages that are not global.
    Local,
    /// Those of the page at this linear address.
    Page(u64),
    All,
}

impl JumpFlush {
    /// This and then `other`.
    pub(crate) fn and(self, other: JumpFlush) -> JumpFlush {
        if self == JumpFlush::Nothing || self == other { other } else { JumpFlush::All }
    }
}

/// Multiplies and folds: keys are page numbers and offsets that we made.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);
impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }
    fn write_u64(&mut self, value: u64) {
        let x = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = x ^ x >> 32;
    }
}

/// Blocks by address in RAM (counted through all regions) and context.
type Map = HashMap<u64, Box<Block>, BuildHasherDefault<KeyHasher>>;

/// All blocks of one vCPU.
pub(crate) struct Blocks {
    /// Looked up in this generation.
    young: Map,
    /// Looked up in the one before, and not since.
    old: Map,
    jumps: Box<[Jump; JUMPS]>,
    /// Replaced blocks that the jump cache may still name; freed with its next flush.
    #[allow(clippy::vec_box)]
    retired: Vec<Box<Block>>,
    /// Instructions in `young`.
    held: usize,
    /// Entries of local and of global pages are valid with these stamps.
    stamps: [u32; 2],
    pub(crate) decoded: u64,
}

// SAFETY: the raw pointers of the jump cache point into `young`, `old` or `retired`, which move with it.
unsafe impl Send for Blocks {}

impl Blocks {
    pub(crate) fn new() -> Blocks {
        let jumps = Box::new([NO_JUMP; JUMPS]);
        Blocks {
            young: Map::default(),
            old: Map::default(),
            jumps,
            retired: Vec::new(),
            held: 0,
            stamps: [0; 2],
            decoded: 0,
        }
    }

    fn flush_jumps(&mut self) {
        self.jumps.fill(NO_JUMP);
        self.retired.clear();
    }

    fn forget(&mut self, what: JumpFlush) {
        match what {
            JumpFlush::Nothing => {}
            JumpFlush::Local => {
                self.stamps[0] = self.stamps[0].wrapping_add(1);
                if self.stamps[0] == 0 {
                    self.flush_jumps();
                }
            }
            JumpFlush::Page(linear) => {
                for jump in self.jumps.iter_mut() {
                    if (jump.linear ^ linear) & !(PAGE_SIZE - 1) == 0 {
                        *jump = NO_JUMP;
                    }
                }
            }
            JumpFlush::All => self.flush_jumps(),
        }
    }

    /// Enters a block whose code was just fetched.
    fn remember(&mut self, cpu: &Cpu, linear: u64, context: u32, block: *const Block) {
        let global = cpu.fetch_is_global(linear);
        let stamp = self.stamps[usize::from(global)];
        self.jumps[Self::slot(linear)] = Jump { linear, context, global, stamp, block };
    }

    fn slot(linear: u64) -> usize {
        (linear ^ linear >> 12) as usize % JUMPS
    }

    /// Whether a block at this offset of a RAM page has been run in the present context.
    pub(crate) fn knows(&self, page: u32, offset: u16, context: u32) -> bool {
        let key = key(u64::from(page) * PAGE_SIZE + u64::from(offset), context);
        self.young.contains_key(&key) || self.old.contains_key(&key)
    }

    /// The block at RIP, decoded if need be. It stays valid until the next call.
    #[inline(always)]
    pub(crate) fn find(&mut self, cpu: &mut Cpu) -> R<*const Block> {
        match self.known(cpu)? {
            Some(block) => Ok(block),
            None => self.decode(cpu),
        }
    }

    /// The block at RIP, if it has been decoded. It stays valid until the next call.
    #[inline(always)]
    pub(crate) fn known(&mut self, cpu: &mut Cpu) -> R<Option<*const Block>> {
        match self.at_hand(cpu) {
            Some(block) => Ok(Some(block)),
            None => self.look_up(cpu),
        }
    }

    /// The block at RIP, if it was there lately.
    #[inline(always)]
    fn at_hand(&mut self, cpu: &mut Cpu) -> Option<*const Block> {
        if cpu.flush_jumps != JumpFlush::Nothing {
            self.forget(std::mem::take(&mut cpu.flush_jumps));
        }
        // Code segments differ in their bases outside 64-bit mode.
        let linear = cpu.rip().wrapping_add(cpu.code_base);
        let jump = self.jumps[Self::slot(linear)];
        let current = jump.stamp == self.stamps[usize::from(jump.global)];
        if jump.linear == linear && jump.context == context(cpu) && current {
            // SAFETY: the jump cache only names blocks in `young`, `old` or `retired`; they keep them until it is flushed.
            let block = unsafe { &*jump.block };
            if block.next.is_none() && cpu.shared.memory.code().version(block.page) == block.version {
                return Some(jump.block);
            }
        }
        None
    }

    #[cold]
    #[inline(never)]
    fn look_up(&mut self, cpu: &mut Cpu) -> R<Option<*const Block>> {
        let At { linear, host, jump, context } = at(cpu)?;
        let key = key(cpu.shared.memory.ram_offset(host), context);
        if let Some(block) = self.old.remove(&key) {
            self.keep(key, block);
        }
        let Some(block) = self.young.get(&key) else { return Ok(None) };
        let current = cpu.shared.memory.code().version(block.page) == block.version;
        let fits = current
            && match block.next {
                None => true,
                Some(second) => next_page(cpu, linear)? == Some(second),
            };
        let block: *const Block = &**block;
        if fits {
            self.remember(cpu, jump, context, block);
        }
        Ok(fits.then_some(block))
    }

    /// Decodes the block at RIP. It stays valid until the next call.
    #[cold]
    #[inline(never)]
    pub(crate) fn decode(&mut self, cpu: &mut Cpu) -> R<*const Block> {
        let At { linear, host, jump, context } = at(cpu)?;
        let ram = cpu.shared.memory.ram_offset(host);
        if self.held >= GENERATION {
            self.old = std::mem::take(&mut self.young);
            self.held = 0;
            self.flush_jumps();
        }
        let block = Box::new(build(cpu, linear, cpu.rip(), host, ram)?);
        self.decoded += block.ops.len() as u64;
        let pointer: *const Block = &*block;
        self.keep(key(ram, context), block);
        if self.retired.len() > 4096 {
            self.flush_jumps();
        }
        self.remember(cpu, jump, context, pointer);
        Ok(pointer)
    }

    /// Enters a block of this generation. Where it is in memory does not change.
    fn keep(&mut self, key: u64, block: Box<Block>) {
        self.held += block.ops.len();
        if let Some(old) = self.young.insert(key, block) {
            self.held -= old.ops.len();
            self.retired.push(old);
        }
    }
}

/// Where the code at RIP is.
struct At {
    /// Its linear address.
    linear: u64,
    /// In the host's memory.
    host: *const u8,
    /// By which the jump cache knows it.
    jump: u64,
    context: u32,
}

fn at(cpu: &mut Cpu) -> R<At> {
    let (rip, context) = (cpu.rip(), context(cpu));
    let linear = cpu.code_linear(rip)?;
    let Place::Ram(host) = cpu.fetch_place(linear)? else {
        cpu.failed = Some(format!("the guest jumped to {rip:#x}, where there is no memory"));
        return cpu.raise(vector::MC, None);
    };
    Ok(At { linear, host, jump: rip.wrapping_add(cpu.code_base), context })
}

/// The key of a block at an offset of RAM.
fn key(ram: u64, context: u32) -> u64 {
    ram << 8 | u64::from(context & 0xff)
}

/// What a block's decoding and its right to run depend on: code size and privilege.
pub(crate) fn context(cpu: &Cpu) -> u32 {
    cpu.mode as u32 | u32::from(cpu.cpl == 3) << 7
}

/// Number and version of the page after the one of `linear`.
fn next_page(cpu: &mut Cpu, linear: u64) -> R<Option<(u32, u32)>> {
    let next = cpu.wrap_linear((linear & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE));
    match cpu.fetch_place(next)? {
        Place::Ram(host) => {
            let page = (cpu.shared.memory.ram_offset(host) / PAGE_SIZE) as u32;
            Ok(Some((page, cpu.shared.memory.code().version(page))))
        }
        Place::Device(_) => Ok(None),
    }
}

fn build(cpu: &mut Cpu, linear: u64, rip: u64, host: *const u8, ram: u64) -> R<Block> {
    let memory = cpu.shared.memory.clone();
    let page = (ram / PAGE_SIZE) as u32;
    let in_page = (PAGE_SIZE - ram % PAGE_SIZE) as usize;
    loop {
        let version = memory.code().version(page);
        let mut bytes = [0u8; OPS_MAX * INSTRUCTION_MAX];
        let have = in_page.min(bytes.len());
        // SAFETY: `host` is guest RAM, mapped to the end of its page.
        unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), have) };
        let (ops, fp, used, short) = decode_run(cpu.mode, rip, &bytes[..have]);
        if ops.is_empty() && short {
            return build_across(cpu, linear, rip, &bytes[..have], page, version);
        }
        // Whoever can write here unseen must stop that before the bytes are trusted.
        let writers = memory.code().mark(page, ram % PAGE_SIZE, used as u64);
        if writers != 0 {
            cpu.forbid_writes(page, writers);
        }
        let mut again = [0u8; OPS_MAX * INSTRUCTION_MAX];
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(host, again.as_mut_ptr(), used) };
        if again[..used] == bytes[..used] && memory.code().version(page) == version {
            return Ok(Block { ops: ops.into(), _fp: fp, page, version, next: None, heat: Cell::new(0) });
        }
    }
}

/// One instruction that begins in one page and ends in the next.
fn build_across(cpu: &mut Cpu, linear: u64, rip: u64, head: &[u8], page: u32, version: u32) -> R<Block> {
    let memory = cpu.shared.memory.clone();
    let mut bytes = [0u8; 2 * INSTRUCTION_MAX];
    let head = &head[..head.len().min(INSTRUCTION_MAX)];
    bytes[..head.len()].copy_from_slice(head);
    let next = cpu.wrap_linear((linear & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE));
    let Place::Ram(host) = cpu.fetch_place(next)? else {
        cpu.failed = Some(format!("the guest ran into {next:#x}, where there is no memory"));
        return cpu.raise(vector::MC, None);
    };
    let second = (memory.ram_offset(host) / PAGE_SIZE) as u32;
    let writers = memory.code().mark(page, PAGE_SIZE - head.len() as u64, head.len() as u64);
    if writers != 0 {
        cpu.forbid_writes(page, writers);
    }
    let second_version = memory.code().version(second);
    let writers = memory.code().mark(second, 0, INSTRUCTION_MAX as u64);
    if writers != 0 {
        cpu.forbid_writes(second, writers);
    }
    // SAFETY: `host` is the start of a page of guest RAM.
    unsafe { std::ptr::copy_nonoverlapping(host, bytes[head.len()..].as_mut_ptr(), INSTRUCTION_MAX) };
    let instruction = Reader::new(cpu.mode as u32, &bytes, rip).next().unwrap_or_default();
    let mut decoded = decode(&instruction, cpu.mode);
    decoded.op.len = instruction.len().max(1) as u8;
    let fp: Vec<Box<FpOp>> = decoded.fp.map(Box::new).into_iter().collect();
    if let Some(fp) = fp.first() {
        decoded.op.imm = std::ptr::from_ref::<FpOp>(fp) as u64;
    }
    Ok(Block {
        ops: Box::new([decoded.op]),
        _fp: fp,
        page,
        version,
        next: Some((second, second_version)),
        heat: Cell::new(0),
    })
}

type Run = (Vec<Op>, Vec<Box<FpOp>>, usize, bool);

/// Decodes up to the end of a block: its instructions, the bytes they take, and whether bytes ran out.
fn decode_run(mode: Mode, rip: u64, bytes: &[u8]) -> Run {
    let mut reader = Reader::new(mode as u32, bytes, rip);
    let (mut ops, mut fp, mut used) = (Vec::with_capacity(16), Vec::new(), 0);
    while ops.len() < OPS_MAX {
        let Some(instruction) = reader.next() else {
            return (ops, fp, used, true);
        };
        let mut decoded = decode(&instruction, mode);
        if let Some(unit) = decoded.fp {
            let unit = Box::new(unit);
            decoded.op.imm = std::ptr::from_ref::<FpOp>(&unit) as u64;
            fp.push(unit);
        }
        used = reader.position();
        ops.push(decoded.op);
        if decoded.ends {
            break;
        }
    }
    (ops, fp, used, false)
}

impl Cpu {
    /// Linear address of RIP, with the segment's limit outside 64-bit mode.
    pub(crate) fn code_linear(&mut self, rip: u64) -> R<u64> {
        if self.code64() {
            return Ok(rip);
        }
        let cs = self.segs[seg::CS];
        if rip > u64::from(cs.limit) {
            return self.gp(0);
        }
        Ok(cs.base.wrapping_add(rip) & 0xffff_ffff)
    }

    /// Runs the instructions of a block until its end, a stop or a fault. Returns how many were begun.
    #[inline(always)]
    pub(crate) fn execute(&mut self, ops: &[Op]) -> R<()> {
        self.stop = false;
        for op in ops {
            let start = self.regs[RIP];
            self.start = start;
            self.regs[RIP] = start.wrapping_add(op.len.into());
            self.instructions += 1;
            if (op.run)(self, op).is_err() {
                // Not `start`: a task switch may have gone past its point of no return.
                self.regs[RIP] = self.start;
                self.stack_fault(op);
                return Err(super::cpu::Trap);
            }
            if self.stop {
                break;
            }
        }
        Ok(())
    }

    /// A non-canonical address in a stack reference is #SS, not #GP.
    fn stack_fault(&mut self, op: &Op) {
        let fault = &mut self.fault;
        if fault.vector == vector::GP && fault.address == super::mmu::NOT_CANONICAL && op.seg == seg::SS as u8
        {
            fault.vector = vector::SS;
        }
    }

    /// Makes vCPUs forget their unseen write permission to `page` and waits until they have: ours at once, others
    /// at their next block.
    pub(crate) fn forbid_writes(&mut self, page: u32, writers: u64) {
        let shared = self.shared.clone();
        if writers & 1 << (self.index & 63) != 0
            && let Some(host) = shared.memory.ram_host(u64::from(page) * PAGE_SIZE)
        {
            self.tlb.forbid_writes(Some(host as u64));
        }
        for other in 0..shared.cpus() {
            if other == self.index || writers & 1 << (other & 63) == 0 {
                continue;
            }
            let slot = shared.attention(other);
            let ticket = slot.request_flush();
            while !slot.flushed(ticket) && slot.running.load(Ordering::SeqCst) {
                // It may be waiting for us in the same way.
                self.answer_flush();
                std::hint::spin_loop();
                std::thread::yield_now();
            }
        }
    }

    /// Answers other vCPUs' wish that we forget unseen write permissions.
    pub(crate) fn answer_flush(&mut self) {
        let shared = self.shared.clone();
        let slot = shared.attention(self.index);
        if let Some(ticket) = slot.flush_wanted() {
            self.tlb.forbid_writes(None);
            slot.answer(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mmu::Want;
    use super::super::{NO_BUS, Shared, SoftCpu};
    use super::*;
    use crate::Vcpu;
    use viv_arch::x86::{CpuState, Segment, cr0, cr4, efer, gpr};
    use viv_mem::{Gpa, GuestMemory};

    const CODE: u64 = 0x4000;

    fn state() -> CpuState {
        let segment = |selector, rights| Segment { selector, base: 0, limit: u32::MAX, rights };
        let mut state = CpuState {
            rip: CODE,
            cr0: cr0::PE | cr0::PG | cr0::ET,
            cr3: 0x1000,
            cr4: cr4::PAE,
            efer: efer::LME | efer::LMA,
            segments: [segment(0x10, 0xc093); 6],
            ..CpuState::default()
        };
        state.segments[1] = segment(8, 0xa09b);
        state
    }

    /// With tables for its first 2 MiB as they are.
    fn memory() -> GuestMemory {
        let memory = GuestMemory::new(&[(Gpa(0), 1 << 20)]).unwrap();
        for (at, entry) in [(0x1000u64, 0x2003u64), (0x2000, 0x3003), (0x3000, 0x83)] {
            memory.write(Gpa(at), &entry.to_le_bytes()).unwrap();
        }
        memory
    }

    /// A processor is about to write, another one decodes the old bytes, then the write takes place: they are stale.
    #[test]
    fn what_is_decoded_during_a_write_is_stale() {
        type Step = fn(&mut SoftCpu) -> Result<(), super::super::Exception>;
        let steps: [Step; 2] = [|cpu| cpu.step(&NO_BUS), |cpu| cpu.step_translated(&NO_BUS, 1)];
        for (step, rewritten) in steps.into_iter().flat_map(|step| [(step, 0), (step, 10)]) {
            let memory = memory();
            // mov eax, 1. Beside it is code, so that nobody writes to the page unseen.
            memory.write(Gpa(CODE), &[0xb8, 1, 0, 0, 0]).unwrap();
            (0..rewritten).for_each(|_| memory.code().invalidate((CODE / PAGE_SIZE) as u32));
            memory.code().mark((CODE / PAGE_SIZE) as u32, 0x800, 1);
            let shared = Shared::new(&memory, 2);
            let (mut writer, mut reader) = (SoftCpu::new(0, shared.clone()), SoftCpu::new(1, shared));
            writer.load(&state()).unwrap();
            let mmu = writer.cpu.mmu;
            let Ok(Place::Ram(host)) = writer.cpu.place(mmu, CODE + 1, Want::Write, 4) else {
                panic!("RAM is there");
            };
            let mut runs = || {
                reader.load(&state()).unwrap();
                step(&mut reader).unwrap();
                reader.save().unwrap().gprs[gpr::RAX]
            };
            assert_eq!(runs(), 1);
            // SAFETY: four bytes of guest RAM.
            unsafe { host.cast::<u32>().write_unaligned(2) };
            writer.finish_code_write();
            assert_eq!(runs(), 2);
        }
    }

    /// However much is executed, what is kept is bounded; what is executed again and again is decoded once.
    #[test]
    fn blocks_that_nobody_comes_back_to_go() {
        let memory = memory();
        memory.write(Gpa(CODE), &[0x90; 0xfc000]).unwrap();
        let mut cpu = SoftCpu::new(0, Shared::new(&memory, 1));
        let mut run = |rip| {
            cpu.load(&CpuState { rip, ..state() }).unwrap();
            cpu.step(&NO_BUS).unwrap();
            let instructions = |map: &Map| map.values().map(|block| block.ops.len()).sum::<usize>();
            let blocks = &cpu.blocks;
            assert_eq!(instructions(&blocks.young), blocks.held);
            (blocks.decoded, blocks.held + instructions(&blocks.old))
        };
        run(CODE);
        let (mut decoded, mut most) = (0, 0);
        for (n, rip) in (CODE + 1..0x10_0000).step_by(131).enumerate() {
            let held;
            (decoded, held) = run(rip);
            most = most.max(held);
            if n % 500 == 0 {
                assert_eq!(run(CODE).0, decoded, "it was kept");
            }
        }
        assert!(decoded as usize > 4 * GENERATION, "{decoded}");
        assert!(most > GENERATION && most <= 2 * (GENERATION + OPS_MAX), "{most}");
    }
}
