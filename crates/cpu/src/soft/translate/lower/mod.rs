//! From guest instructions to host code.
//!
//! Most instructions become themselves: the decoded form with other registers and another memory operand, encoded again
//! ([`integer`], [`vector`]). [`memory`] looks addresses up, [`branch`] has the flow. What none of them admits becomes a
//! call of the interpreter's function.

mod branch;
mod integer;
mod memory;
mod operand;
mod vector;

use super::super::cpu::Mode;
use super::super::decode::decode;
use super::asm::{Alu, Asm, Label, cc};
use super::layout::{self, T0, T1};
use super::region::{Block, Region};
use super::stubs::Stubs;
use super::{Context, Ops};
use iced_x86::{Encoder, FlowControl, Instruction};

/// Where the guest's status flags are.
#[derive(Clone, Copy, Debug)]
struct FlagsIn {
    host: bool,
    ax: bool,
}

const IN_AX: FlagsIn = FlagsIn { host: false, ax: true };

/// Code that stands behind the region: what happens rarely.
enum Late {
    /// Leave for the dispatcher with RIP at this offset.
    Exit(Label, u16),
    /// Leave because the code at this offset is stale.
    Stale(Label, u16),
    /// Leave for the interpreter with RIP at this offset.
    Interpret(Label, u16),
    /// A jump to this offset of the page that can be linked; the address of its distance.
    Link(Label, u16, u64),
    /// A jump to another page.
    Cross(Label, i64),
    /// A TLB miss: T0 holds address XOR tag, T1 the entry's offset.
    Fill { from: Label, retry: Label, access: u64, tag: i32 },
    /// The vector registers are needed.
    Vectors { from: Label, back: Label },
    /// Leave with RIP in T0.
    ExitTo(Label),
}

/// A region's ways in.
pub(super) struct Ways {
    pub(super) guarded: u64,
    pub(super) linked: u64,
}

pub(super) struct Lower<'a> {
    asm: Asm,
    encoder: &'a mut Encoder,
    stubs: &'a Stubs,
    ops: &'a mut Ops,
    context: Context,
    flags: FlagsIn,
    /// The vector registers are known to be in the host's.
    vectors: bool,
    late: Vec<Late>,
    /// Labels of the region's blocks.
    labels: Vec<(u16, Label)>,
    infos: iced_x86::InstructionInfoFactory,
}

impl<'a> Lower<'a> {
    pub(super) fn new(
        asm: Asm,
        encoder: &'a mut Encoder,
        stubs: &'a Stubs,
        ops: &'a mut Ops,
        context: Context,
    ) -> Lower<'a> {
        Lower {
            asm,
            encoder,
            stubs,
            ops,
            context,
            flags: IN_AX,
            vectors: false,
            late: Vec::new(),
            labels: Vec::new(),
            infos: iced_x86::InstructionInfoFactory::new(),
        }
    }

    /// Emits the whole region. `version` is the address of its page's version.
    pub(super) fn region(mut self, region: &Region, version: u64) -> (Asm, Ways) {
        self.labels = region.blocks.iter().map(|block| (block.start, self.asm.label())).collect();
        let ways = self.entry(region, version);
        let mut falls = None;
        for (block, follower) in region.blocks.iter().zip(followers(region)) {
            if block.joins || falls != Some(block.start) {
                self.flags = IN_AX;
                self.vectors = false;
            }
            if let Some(label) = self.label_of(block.start) {
                self.asm.bind(label);
            }
            if block.loops {
                self.look_up(block.start);
            }
            falls = self.block(block, follower).then_some(follower).flatten();
        }
        self.finish();
        self.asm.finish();
        (self.asm, ways)
    }

    /// The guard against stale code, then a look at who wants attention.
    fn entry(&mut self, region: &Region, version: u64) -> Ways {
        let guarded = self.asm.here();
        let stale = self.asm.label();
        self.asm.mov_imm(T0, version);
        self.asm.cmp32_imm(super::asm::at(T0, 0), region.version as i32);
        self.asm.jcc(cc::NE, stale);
        self.late.push(Late::Stale(stale, region.start));
        let linked = self.asm.here();
        self.look_up(region.start);
        if region.blocks.first().is_none_or(|first| first.start != region.start)
            && let Some(label) = self.label_of(region.start)
        {
            self.asm.jmp(label);
        }
        Ways { guarded, linked }
    }

    /// Leaves if somebody wants attention.
    fn look_up(&mut self, offset: u16) {
        self.save_flags();
        self.asm.load(T0, layout::attention());
        self.asm.cmp32_imm(super::asm::at(T0, 0), 0);
        self.flags = IN_AX;
        let out = self.asm.label();
        self.asm.jcc(cc::NE, out);
        self.late.push(Late::Exit(out, offset));
    }

    fn label_of(&self, offset: u16) -> Option<Label> {
        self.labels.iter().find(|(start, _)| *start == offset).map(|(_, label)| *label)
    }

    /// Emits a block. `follower` is the block emitted next. Whether the flow falls into that one with the state kept.
    fn block(&mut self, block: &Block, follower: Option<u16>) -> bool {
        for x in &block.code {
            if x.flow_control() == FlowControl::Next {
                self.instruction(x);
            } else {
                return self.branch(x, block.next, follower);
            }
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

    /// The interpreter's own function for the instruction.
    fn interpret(&mut self, x: &Instruction) {
        self.save_flags();
        let op = self.ops.keep(decode(x, Mode::Code64));
        self.asm.mov_imm(T0, op as u64);
        self.asm.mov_imm(T1, x.ip());
        self.asm.call_at(self.stubs.interpret);
        self.flags = IN_AX;
        self.vectors = false;
    }

    // ---- flags ------------------------------------------------------------------------------------------

    /// After this the host's flags may be changed.
    fn save_flags(&mut self) {
        if !self.flags.ax {
            self.asm.flags_to_ax();
            self.flags.ax = true;
        }
    }

    /// The host's flags are about to be changed by code of our own.
    fn clobber_flags(&mut self) {
        self.save_flags();
        self.flags.host = false;
    }

    /// After this the host's flags are the guest's.
    fn restore_flags(&mut self) {
        if !self.flags.host {
            self.asm.flags_from_ax();
            self.flags = FlagsIn { host: true, ax: false };
        }
    }

    // ---- what happens rarely ------------------------------------------------------------------------------

    fn finish(&mut self) {
        // Late code may add late code.
        while let Some(late) = self.late.pop() {
            match late {
                Late::Exit(label, offset) => {
                    self.asm.bind(label);
                    self.asm.mov_imm(T0, offset.into());
                    self.asm.jmp_at(self.stubs.exit_at);
                }
                Late::Stale(label, offset) => {
                    self.asm.bind(label);
                    self.asm.mov_imm(T0, offset.into());
                    self.asm.jmp_at(self.stubs.exit_stale);
                }
                Late::Interpret(label, offset) => {
                    self.asm.bind(label);
                    self.asm.mov_imm(T0, offset.into());
                    self.asm.jmp_at(self.stubs.exit_interpret);
                }
                Late::Link(label, offset, site) => {
                    self.asm.bind(label);
                    self.asm.mov_imm(T0, offset.into());
                    self.asm.mov_imm(T1, site);
                    self.asm.jmp_at(self.stubs.exit_link);
                }
                Late::Cross(label, target) => {
                    self.asm.bind(label);
                    self.flags = IN_AX;
                    self.cross(target);
                }
                Late::Fill { from, retry, access, tag } => {
                    self.asm.bind(from);
                    self.asm.alu_mem(Alu::Xor, T0, super::asm::at_index(layout::CPU, T1, tag));
                    self.asm.mov_imm(T1, access);
                    self.asm.call_at(self.stubs.fill);
                    self.asm.jmp(retry);
                }
                Late::Vectors { from, back } => {
                    self.asm.bind(from);
                    self.asm.call_at(self.stubs.load_vectors);
                    self.asm.jmp(back);
                }
                Late::ExitTo(label) => {
                    self.asm.bind(label);
                    self.asm.jmp_at(self.stubs.exit_to);
                }
            }
        }
    }
}

/// For each block the one emitted after it.
fn followers(region: &Region) -> impl Iterator<Item = Option<u16>> {
    region.blocks.iter().skip(1).map(|block| Some(block.start)).chain([None])
}
