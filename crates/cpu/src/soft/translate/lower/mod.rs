//! From guest instructions to host code.
//!
//! Most instructions become themselves: the decoded form with other registers and another memory operand, encoded again
//! ([`integer`], [`vector`]). [`memory`] looks addresses up, [`branch`] has the flow. What none of them admits becomes a
//! call of the interpreter's function.

mod branch;
mod count;
mod effect;
mod flags;
mod group;
mod integer;
mod memory;
mod operand;
mod turn;
mod vector;

use super::super::mmu::Tlb;
use super::asm::{Alu, Asm, Label, at, at_index, cc};
use super::layout::{self, T0, T1};
use super::region::{self, Block, Region};
use super::stubs::Stubs;
use super::{Context, Lookups, Ops};
use effect::Effect;
use flags::{Fate, FlagsIn, IN_AX, IN_HOST, Recipe};
use group::Groups;
use iced_x86::{Encoder, FlowControl, Instruction, Mnemonic};
use turn::{Again, Turn};
use viv_mem::CodeMap;

/// The guest's registers in the host's vector and x87 registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Units {
    Unknown,
    Vectors,
    All,
}

/// What is known at a place of the code.
#[derive(Clone)]
struct Known {
    flags: FlagsIn,
    /// What made them.
    recipe: Option<Recipe>,
    units: Units,
    groups: Groups,
    /// The delta that T1 holds, unless something has changed T1.
    delta: Option<usize>,
}

/// Where flows join, only this is known.
fn nothing() -> Known {
    Known { flags: IN_AX, recipe: None, units: Units::Unknown, groups: Groups::default(), delta: None }
}

/// Code that stands behind the region: what happens rarely.
enum Late {
    /// Leave for the dispatcher with RIP at this offset.
    Exit(Label, u16, Option<Recipe>),
    /// Leave because the code at this offset is stale.
    Stale(Label, u16),
    /// Leave for the interpreter with RIP at this offset.
    Interpret(Label, u16, Option<Recipe>),
    /// A jump to this offset of the page that can be linked; the address of its distance, and whether it leads forward.
    Link(Label, u16, u64, bool),
    /// A jump to this offset of the page from a block that starts at the other one, on whose way the flags are saved.
    Save(Label, u16, u16),
    /// A jump to another page, and whether the flags are in AX.
    Cross(Label, i64, bool),
    /// A TLB miss: T0 holds address XOR tag, T1 the entry's offset.
    Fill { from: Label, retry: Label, access: u64, tag: i32, flags: Option<Recipe> },
    /// As `Fill` for a group of so many bytes. Where they lie across a page border, each access is looked up.
    FillGroup { from: Label, retry: Label, access: u64, tag: i32, bytes: i32, flags: Option<Recipe> },
    /// A lookup that earlier rounds have kept is for another page.
    Keep { from: Label, retry: Label, again: Again, flags: Option<Recipe> },
    /// The vector or x87 registers are needed.
    Units { from: Label, back: Label, units: Units },
    /// The target in T0 is not in the table: look further; T1 becomes its code.
    Seek { from: Label, found: Label, otherwise: Otherwise },
}

/// Where the flow goes on without code for its target.
#[derive(Clone, Copy)]
enum Otherwise {
    /// Leave for the dispatcher with RIP in T0.
    ExitTo,
    /// The branch at this offset is the interpreter's: it has not changed anything yet.
    Interpret(u16),
}

/// What a guard compares: the version of a page, for code at an offset of it.
#[derive(Clone, Copy)]
pub(super) struct Guard {
    pub(super) page: u32,
    pub(super) offset: u16,
    pub(super) version: u32,
}

/// A region's ways in.
pub(super) struct Ways {
    pub(super) guarded: u64,
    /// Behind the guard.
    pub(super) linked: u64,
    /// Where nobody looks whether somebody wants attention.
    pub(super) forward: u64,
}

/// Says that the jump to be linked leads forward: the code memory is smaller.
const FORWARD: u64 = 1 << 31;

/// Where in the code memory the distance of a jump that asked to be linked stands, and whether it leads forward.
pub(super) fn linked_site(link: u64) -> (u64, bool) {
    (link & !FORWARD, link & FORWARD != 0)
}

pub(super) struct Lower<'a> {
    asm: Asm,
    encoder: &'a mut Encoder,
    stubs: &'a Stubs,
    ops: &'a mut Ops,
    context: Context,
    lookups: Lookups,
    known: Known,
    late: Vec<Late>,
    /// Code of the page that was translated before, by offset, for jumps that lead forward or not.
    outside: &'a dyn Fn(u16, bool) -> Option<u64>,
    /// Labels of the region's blocks, and whether flows join there.
    labels: Vec<(u16, Label, bool)>,
    /// The block that jumps to itself, while it is emitted.
    turn: Option<Turn>,
    /// What is known at blocks that one jump leads to.
    expected: Vec<(u16, Known)>,
    /// What the instructions of the block do, and those of the blocks that may follow.
    effects: Vec<Effect>,
    fates: Vec<Fate>,
    /// The page, and what it holds.
    page: u32,
    bytes: &'a [u8],
    /// Where the block starts.
    start: u16,
    /// Instructions of the block, and which of them is emitted.
    length: usize,
    place: usize,
    /// The instruction at `place` has made the flags.
    fresh: bool,
    infos: iced_x86::InstructionInfoFactory,
    /// The code counts what it executes (see [`count`]).
    counting: bool,
    /// Instructions that are emitted and not yet counted.
    uncounted: i32,
}

impl<'a> Lower<'a> {
    pub(super) fn new(
        asm: Asm,
        encoder: &'a mut Encoder,
        stubs: &'a Stubs,
        ops: &'a mut Ops,
        context: Context,
        lookups: Lookups,
        outside: &'a dyn Fn(u16, bool) -> Option<u64>,
    ) -> Lower<'a> {
        Lower {
            asm,
            encoder,
            stubs,
            ops,
            context,
            lookups,
            known: nothing(),
            late: Vec::new(),
            outside,
            labels: Vec::new(),
            turn: None,
            expected: Vec::new(),
            effects: Vec::new(),
            fates: Vec::new(),
            page: 0,
            bytes: &[],
            start: 0,
            length: 0,
            place: 0,
            fresh: false,
            infos: iced_x86::InstructionInfoFactory::new(),
            counting: false,
            uncounted: 0,
        }
    }

    /// Emits the whole region. Also returns the addresses of blocks that can be jumped to.
    pub(super) fn region(mut self, region: &'a Region) -> (Asm, Ways, Vec<(u16, u64)>) {
        (self.page, self.bytes) = (region.page, region.bytes());
        self.labels =
            region.blocks.iter().map(|block| (block.start, self.asm.label(), block.joins)).collect();
        let guarded = self.guard(Guard { page: region.page, offset: region.start, version: region.version });
        let linked = self.asm.here();
        self.count_single();
        let first = region.blocks.first().filter(|first| first.start == region.start);
        // What looks up each access goes on in the middle of a block, maybe in the shadow of an STI, to the block's end.
        let looks = self.lookups == Lookups::Grouped;
        // A loop looks up by itself.
        if looks && first.is_none_or(|first| !first.loops) {
            self.look_up(region.start);
        }
        let forward = self.asm.here();
        if let Some((label, _)) = self.label_of(region.start).filter(|_| first.is_none()) {
            self.asm.jmp(label);
        }
        let effects: Vec<Vec<Effect>> = region
            .blocks
            .iter()
            .map(|block| block.code.iter().map(|x| effect::of(x, &mut self.infos)).collect())
            .collect();
        let mut falls = None;
        for (at, (block, follower)) in region.blocks.iter().zip(followers(region)).enumerate() {
            if block.joins {
                self.known = nothing();
            } else if falls != Some(block.start) {
                let expected = self.expected.iter().find(|(start, _)| *start == block.start);
                self.known = expected.map_or_else(nothing, |(_, known)| known.clone());
            }
            if let Some((label, _)) = self.label_of(block.start) {
                self.asm.bind(label);
            }
            if looks && block.loops {
                self.look_up(block.start);
            }
            let its = effects.get(at).map(Vec::as_slice).unwrap_or_default();
            self.effects.clear();
            self.effects.extend(its.iter().chain(ahead(region, &effects, at)));
            let fell = if looks && block.turns {
                self.turning(block, follower)
            } else {
                self.block(block, follower)
            };
            falls = fell.then_some(follower).flatten();
        }
        self.finish();
        self.asm.finish();
        let joined = region.blocks.iter().filter(|block| block.joins);
        let address = |block: &Block| Some((block.start, self.asm.address(self.label_of(block.start)?.0)));
        let middles = joined.filter_map(address).collect();
        (self.asm, Ways { guarded, linked, forward }, middles)
    }

    /// The guard against stale code.
    fn guard(&mut self, guard: Guard) -> u64 {
        let guarded = self.asm.here();
        let stale = self.asm.label();
        self.asm.load(T0, layout::versions());
        let version = CodeMap::version_at(guard.page);
        let version = match i32::try_from(version) {
            Ok(version) => at(T0, version),
            Err(_) => {
                self.asm.mov_imm(T1, version);
                at_index(T0, T1, 0)
            }
        };
        self.asm.cmp32_imm(version, guard.version as i32);
        self.asm.jcc(cc::NE, stale);
        self.late.push(Late::Stale(stale, guard.offset));
        guarded
    }

    /// Leaves if somebody wants attention.
    fn look_up(&mut self, offset: u16) {
        self.look_up_with(offset, None);
    }

    /// The same with flags that are to be made on the way out.
    fn look_up_with(&mut self, offset: u16, flags: Option<Recipe>) {
        self.asm.load(T0, layout::attention());
        self.asm.cmp32_imm(at(T0, 0), 0);
        let out = self.asm.label();
        self.asm.jcc(cc::NE, out);
        self.late.push(Late::Exit(out, offset, flags));
    }

    /// Where in the code memory an address is: code does not know where that is, so that it can be kept ([`super::kept`]).
    fn site(&self, address: u64) -> u64 {
        address.wrapping_sub(self.stubs.start)
    }

    /// The label of a block of the region, and whether flows join there.
    fn label_of(&self, offset: u16) -> Option<(Label, bool)> {
        let place = self.labels.binary_search_by_key(&offset, |label| label.0).ok()?;
        self.labels.get(place).map(|(_, label, joins)| (*label, *joins))
    }

    /// Emits a block, whose `effects` are there. `follower` is the block emitted next. Whether the flow falls into that one.
    fn block(&mut self, block: &Block, follower: Option<u16>) -> bool {
        (self.start, self.length) = (block.start, block.code.len());
        flags::fates(&block.code, &mut self.fates);
        if self.turns_again() {
            self.place = 0;
            self.look_up_again(block.start);
        }
        self.count_block();
        for (place, x) in block.code.iter().enumerate() {
            self.place = place;
            self.count(x);
            let flows = block.flows && self.lookups == Lookups::Grouped;
            let shadowed = place + 1 < block.code.len() || flows;
            if x.mnemonic() == Mnemonic::Sti && self.supervisor() && shadowed {
                self.sti(x);
            } else if x.flow_control() == FlowControl::Next {
                self.instruction(x);
            } else {
                return self.branch(x, block.next, follower);
            }
            let effect = self.effects[place];
            self.known.groups.follow(&effect);
            self.follow_flags(&effect);
        }
        self.place = block.code.len();
        self.settle(i32::from(block.across.is_some()));
        if let Some(across) = &block.across {
            return self.straddle(across);
        }
        match block.next {
            Some(next) => self.fall(next, follower),
            None => false,
        }
    }

    fn instruction(&mut self, x: &Instruction) {
        if !(self.integer(x) || self.vector(x)) {
            self.interpret(x);
        }
    }

    fn supervisor(&self) -> bool {
        self.context.mmu != Tlb::USER as u8
    }

    /// The interpreter's own function for the instruction.
    fn interpret(&mut self, x: &Instruction) {
        self.leaves_turn();
        self.save_flags();
        let place = x.ip() as usize;
        let bytes = self.bytes.get(place..place + x.len()).unwrap_or_default();
        let number = self.ops.keep(self.page, x, bytes);
        self.asm.mov_imm(T0, number.into());
        self.asm.mov_imm(T1, x.ip());
        self.asm.call_at(self.stubs.interpret);
        self.known = nothing();
    }

    /// An instruction that ends in the next page, whose bytes are compared each time.
    fn straddle(&mut self, across: &region::Across) -> bool {
        self.save_flags();
        let x = &across.instruction;
        let number = self.ops.keep(self.page, x, across.bytes.get(..x.len()).unwrap_or_default());
        self.asm.mov_imm(T0, number.into());
        self.asm.mov_imm(T1, x.ip());
        self.asm.call_at(self.stubs.straddle);
        self.known = nothing();
        self.cross(x.next_ip() as i64);
        false
    }

    // ---- what happens rarely ------------------------------------------------------------------------------

    fn finish(&mut self) {
        self.fates.clear();
        // Late code may add late code.
        while let Some(late) = self.late.pop() {
            match late {
                Late::Exit(label, offset, flags) => {
                    self.asm.bind(label);
                    self.save_late(flags.as_ref());
                    self.asm.mov_imm(T0, offset.into());
                    self.asm.jmp_at(self.stubs.exit_at);
                }
                Late::Stale(label, offset) => {
                    self.asm.bind(label);
                    self.asm.mov_imm(T0, offset.into());
                    self.asm.jmp_at(self.stubs.exit_stale);
                }
                Late::Interpret(label, offset, flags) => {
                    self.asm.bind(label);
                    self.save_late(flags.as_ref());
                    self.asm.mov_imm(T0, offset.into());
                    self.asm.jmp_at(self.stubs.exit_interpret);
                }
                Late::Link(label, offset, site, forward) => {
                    self.asm.bind(label);
                    self.asm.mov_imm(T0, offset.into());
                    self.asm.mov_imm(T1, self.site(site) | if forward { FORWARD } else { 0 });
                    self.asm.jmp_at(self.stubs.exit_link);
                }
                Late::Save(label, offset, from) => {
                    self.asm.bind(label);
                    self.start = from;
                    self.known = Known { flags: IN_HOST, ..nothing() };
                    self.go_to(offset.into(), None);
                }
                Late::Cross(label, target, saved) => {
                    self.asm.bind(label);
                    self.known = Known { flags: if saved { IN_AX } else { IN_HOST }, ..nothing() };
                    self.cross(target);
                }
                Late::Fill { from, retry, access, tag, flags } => {
                    self.asm.bind(from);
                    self.asm.alu_mem(Alu::Xor, T0, at_index(layout::CPU, T1, tag));
                    self.save_late(flags.as_ref());
                    self.asm.mov_imm(T1, access);
                    self.asm.call_at(self.stubs.fill);
                    self.asm.jmp(retry);
                }
                Late::FillGroup { from, retry, access, tag, bytes, flags } => {
                    self.asm.bind(from);
                    self.asm.alu_mem(Alu::Xor, T0, at_index(layout::CPU, T1, tag));
                    self.save_late(flags.as_ref());
                    self.asm.mov32(T1, T0);
                    self.asm.alu_imm(false, Alu::And, T1, 0xfff);
                    self.asm.alu_imm(false, Alu::Cmp, T1, 0x1000 - bytes);
                    let across = self.asm.label();
                    let site = self.asm.jcc(cc::A, across);
                    self.asm.mov_imm(T1, access);
                    self.asm.call_at(self.stubs.fill);
                    self.asm.jmp(retry);
                    self.asm.bind(across);
                    self.asm.mov_imm(T0, access & 0xfff);
                    self.asm.mov_imm(T1, self.site(site));
                    self.asm.jmp_at(self.stubs.exit_single);
                }
                Late::Keep { from, retry, again, flags } => {
                    self.asm.bind(from);
                    self.keep_again(again, retry, flags);
                }
                Late::Units { from, back, units } => {
                    self.asm.bind(from);
                    let all = units == Units::All;
                    self.asm.call_at(if all { self.stubs.load_x87 } else { self.stubs.load_vectors });
                    self.asm.jmp(back);
                }
                Late::Seek { from, found, otherwise } => {
                    self.asm.bind(from);
                    self.asm.call_at(self.stubs.seek);
                    self.asm.test(true, T1, T1);
                    self.asm.jcc(cc::NE, found);
                    match otherwise {
                        Otherwise::ExitTo => self.asm.jmp_at(self.stubs.exit_to),
                        Otherwise::Interpret(offset) => {
                            self.asm.mov_imm(T0, offset.into());
                            self.asm.jmp_at(self.stubs.exit_interpret);
                        }
                    }
                }
            }
        }
    }
}

/// A way into the middle of a region, to the block whose code is at `block`.
pub(super) fn way_in(asm: Asm, stubs: &Stubs, guard: Guard, block: u64) -> (Asm, Ways) {
    let (mut encoder, mut ops) = (Encoder::new(64), Ops::default());
    let context = Context { mmu: 0, units: false };
    let mut lower = Lower::new(asm, &mut encoder, stubs, &mut ops, context, Lookups::Single, &|_, _| None);
    let guarded = lower.guard(guard);
    let linked = lower.asm.here();
    lower.look_up(guard.offset);
    lower.asm.jmp_at(block);
    lower.finish();
    lower.asm.finish();
    (lower.asm, Ways { guarded, linked, forward: block })
}

/// Instructions looked at beyond a block's end.
const AHEAD: usize = 24;

/// The effects of what follows the block at `place` and finds what is known at its end: blocks that the flow falls into,
/// and nobody else jumps to.
fn ahead<'e>(region: &Region, effects: &'e [Vec<Effect>], place: usize) -> impl Iterator<Item = &'e Effect> {
    let next = |from: &usize| {
        let offset = region.blocks.get(*from)?.next?;
        let at = region.blocks.binary_search_by_key(&offset, |block| block.start).ok()?;
        region.blocks.get(at).filter(|block| !block.joins).map(|_| at)
    };
    std::iter::successors(next(&place), next).filter_map(|at| effects.get(at)).flatten().take(AHEAD)
}

/// For each block the one emitted after it.
fn followers(region: &Region) -> impl Iterator<Item = Option<u16>> {
    region.blocks.iter().skip(1).map(|block| Some(block.start)).chain([None])
}
