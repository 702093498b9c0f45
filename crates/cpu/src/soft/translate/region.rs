//! What is translated together: the blocks of one page that the interpreter has met and that are not translated yet, from
//! one of them on.

use super::super::block::INSTRUCTION_MAX;
use super::super::cpu::Cpu;
use super::super::mmu::Place;
use super::super::reader::Reader;
use iced_x86::{Code, FlowControl, Instruction, OpKind};
use viv_mem::{GuestMemory, PAGE_SIZE};

/// Most instructions of a region, and most blocks.
pub(super) const INSTRUCTIONS_MAX: usize = 256;
pub(super) const BLOCKS_MAX: usize = 48;

/// A straight run of instructions. Their IPs are offsets in the page.
pub(super) struct Block {
    pub(super) start: u16,
    pub(super) code: Vec<Instruction>,
    /// The instruction behind them, if that ends in the next page.
    pub(super) across: Option<Across>,
    /// Where the flow goes on behind the last instruction, if it does: may be the page's end.
    pub(super) next: Option<u16>,
    /// Somebody else than the block emitted before jumps here.
    pub(super) joins: bool,
    /// A jump from behind leads here, or from here in another way than `turns`.
    pub(super) loops: bool,
    /// It ends with a conditional jump to itself.
    pub(super) turns: bool,
    /// The flow goes on behind its last instruction in a block of the region before which nobody looks whether somebody wants attention.
    pub(super) flows: bool,
}

/// An instruction that ends in the next page.
#[derive(Clone)]
pub(super) struct Across {
    pub(super) instruction: Instruction,
    pub(super) bytes: [u8; INSTRUCTION_MAX],
}

/// Blocks in the order of their addresses.
pub(super) struct Region {
    pub(super) page: u32,
    pub(super) version: u32,
    /// Where it is entered.
    pub(super) start: u16,
    pub(super) blocks: Vec<Block>,
    /// What the page held.
    bytes: Box<[u8; PAGE_SIZE as usize]>,
}

/// Where a direct jump leads, as an offset from the page's start.
pub(super) fn target(x: &Instruction) -> Option<i64> {
    matches!(x.op0_kind(), OpKind::NearBranch64).then(|| x.near_branch_target() as i64)
}

fn in_page(target: i64) -> Option<u16> {
    u16::try_from(target).ok().filter(|offset| u64::from(*offset) < PAGE_SIZE)
}

/// The region around `start` of RAM page `page`. `warm` says whether code at an offset has been executed.
pub(super) fn find(
    cpu: &mut Cpu,
    page: u32,
    rip: u64,
    longest: usize,
    warm: impl Fn(u16) -> bool,
) -> Option<Region> {
    let memory = cpu.shared.memory.clone();
    let start = (rip % PAGE_SIZE) as u16;
    let version = memory.code().version(page);
    let bytes = snapshot(&memory, page)?;
    let mut across = None;
    // The instruction that begins at an offset, from 1.
    let mut at = vec![0u16; PAGE_SIZE as usize];
    let mut code: Vec<Instruction> = Vec::with_capacity(64);
    let mut leads = vec![start];
    let mut open = vec![start];
    // Where a flow comes upon what is decoded: a block begins there, so that no instruction belongs to two.
    let mut meets = Vec::new();
    while let Some(offset) = open.pop() {
        let mut offset = offset;
        loop {
            if u64::from(offset) >= PAGE_SIZE {
                break;
            }
            if at[usize::from(offset)] != 0 {
                meets.push(offset);
                break;
            }
            if code.len() >= longest {
                break;
            }
            let Some(x) = decode(&bytes[..], offset) else {
                if PAGE_SIZE as usize - usize::from(offset) < INSTRUCTION_MAX {
                    across = across.or_else(|| straddling(cpu, rip, &bytes[..], offset));
                }
                break;
            };
            code.push(x);
            at[usize::from(offset)] = code.len() as u16;
            let next = offset + x.len() as u16;
            let mut lead = |to: u16| {
                if leads.len() < BLOCKS_MAX && warm(to) {
                    leads.push(to);
                    open.push(to);
                }
            };
            match x.flow_control() {
                FlowControl::Next => offset = next,
                FlowControl::UnconditionalBranch => {
                    target(&x).and_then(in_page).into_iter().for_each(&mut lead);
                    break;
                }
                FlowControl::ConditionalBranch => {
                    target(&x).and_then(in_page).into_iter().for_each(&mut lead);
                    if u64::from(next) < PAGE_SIZE {
                        lead(next);
                    }
                    break;
                }
                FlowControl::Call | FlowControl::IndirectCall => {
                    if u64::from(next) < PAGE_SIZE && x.code() != Code::Syscall {
                        lead(next);
                    }
                    break;
                }
                _ => break,
            }
        }
    }
    let across_at = across.as_ref().map(|across: &Across| across.instruction.ip() as u16);
    leads.append(&mut meets);
    leads.sort_unstable();
    leads.dedup();
    leads.retain(|offset| at[usize::from(*offset)] != 0 || across_at == Some(*offset));
    if leads.binary_search(&start).is_err() {
        return None;
    }
    let blocks = divide(&leads, &at, &code, across.as_ref());
    let mut region = Region { page, version, start, blocks, bytes };
    region.connect();
    Some(region)
}

fn divide(leads: &[u16], at: &[u16], code: &[Instruction], across: Option<&Across>) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(leads.len());
    for lead in leads {
        let (mut offset, mut run) = (*lead, Vec::new());
        let next = loop {
            let index = at.get(usize::from(offset)).copied().unwrap_or(0);
            if index == 0 || (offset != *lead && leads.binary_search(&offset).is_ok()) {
                break Some(offset);
            }
            let x = code[usize::from(index) - 1];
            offset += x.len() as u16;
            run.push(x);
            match x.flow_control() {
                FlowControl::Next => {}
                FlowControl::ConditionalBranch => break Some(offset),
                _ => break None,
            }
        };
        let across = across.filter(|across| {
            let ip = across.instruction.ip();
            next.is_some_and(|next| {
                ip == next.into() && (next == *lead || leads.binary_search(&next).is_err())
            })
        });
        blocks.push(Block {
            start: *lead,
            code: run,
            across: across.cloned(),
            next,
            joins: false,
            loops: false,
            turns: false,
            flows: false,
        });
    }
    blocks
}

fn decode(bytes: &[u8], offset: u16) -> Option<Instruction> {
    // What goes on in the next page, and what is none, is the interpreter's.
    Reader::new(64, bytes.get(usize::from(offset)..)?, u64::from(offset)).next().filter(|x| !x.is_invalid())
}

/// The instruction that begins at `offset` and ends in the page that follows at the moment.
fn straddling(cpu: &mut Cpu, rip: u64, page: &[u8], offset: u16) -> Option<Across> {
    let next = (rip & !(PAGE_SIZE - 1)).wrapping_add(PAGE_SIZE);
    let Ok(Place::Ram(host)) = cpu.fetch_place(next) else { return None };
    let head = page.get(usize::from(offset)..)?;
    let mut bytes = [0; INSTRUCTION_MAX];
    bytes.get_mut(..head.len())?.copy_from_slice(head);
    let tail = bytes.get_mut(head.len()..)?;
    // SAFETY: the begin of a page of guest RAM, which is longer than any instruction.
    unsafe { std::ptr::copy_nonoverlapping(host, tail.as_mut_ptr(), tail.len()) };
    let instruction = Reader::new(64, &bytes, u64::from(offset)).next().filter(|x| !x.is_invalid())?;
    Some(Across { instruction, bytes })
}

fn snapshot(memory: &GuestMemory, page: u32) -> Option<Box<[u8; PAGE_SIZE as usize]>> {
    let host = memory.ram_host(u64::from(page) * PAGE_SIZE)?;
    let mut bytes = Box::new([0; PAGE_SIZE as usize]);
    // SAFETY: a page of guest RAM, which stays mapped; a racing guest changes values only.
    unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), bytes.len()) };
    Some(bytes)
}

impl Region {
    /// Finds out where flows join: everywhere but where one jump, or the flow itself, leads from a block before.
    fn connect(&mut self) {
        let mut edges = Vec::new();
        for block in &mut self.blocks {
            block.turns = block.code.last().is_some_and(|x| {
                x.is_jcc_short_or_near() && target(x).and_then(in_page) == Some(block.start)
            });
            if block.turns {
                // It is left after its first round and after another one.
                edges.extend(block.next.map(|to| (block.start, to)));
                edges.extend(block.next.map(|to| (block.start, to)));
                continue;
            }
            let jump = block.code.last().and_then(|x| match x.flow_control() {
                FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch => target(x),
                _ => None,
            });
            edges.extend(jump.and_then(in_page).map(|to| (block.start, to)));
            edges.extend(block.next.map(|to| (block.start, to)));
        }
        for block in &mut self.blocks {
            let mut from = edges.iter().filter(|edge| edge.1 == block.start).map(|edge| edge.0);
            let (first, second) = (from.next(), from.next());
            let one = first.filter(|from| second.is_none() && *from < block.start);
            block.joins = block.start == self.start || one.is_none();
            block.loops = edges.iter().any(|edge| edge.1 == block.start && edge.0 >= block.start);
        }
        let quiet: Vec<u16> = self
            .blocks
            .iter()
            .filter(|block| !block.loops && !block.code.is_empty())
            .map(|block| block.start)
            .collect();
        for block in &mut self.blocks {
            let next = block.next.filter(|_| block.across.is_none());
            block.flows = next.is_some_and(|next| quiet.binary_search(&next).is_ok());
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..]
    }

    pub(super) fn instructions(&self) -> usize {
        self.blocks.iter().map(|block| block.code.len()).sum()
    }

    fn ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        self.blocks.iter().map(|block| {
            let len: usize = block.code.iter().map(Instruction::len).sum();
            (u64::from(block.start), len as u64)
        })
    }

    /// Marks its bytes as code. Returns the vCPUs that may write there unseen.
    pub(super) fn mark(&self, memory: &GuestMemory) -> u64 {
        self.ranges().fold(0, |writers, (at, len)| writers | memory.code().mark(self.page, at, len))
    }

    /// Whether the bytes are still those that were decoded: asked after nobody can write there unseen.
    pub(super) fn still_true(&self, memory: &GuestMemory) -> bool {
        let Some(now) = snapshot(memory, self.page) else { return false };
        let same = |(at, len): (u64, u64)| {
            let range = at as usize..(at + len) as usize;
            now[range.clone()] == self.bytes[range]
        };
        memory.code().version(self.page) == self.version && self.ranges().all(same)
    }
}
