//! Blocks that jump to themselves: the hot loops of copies, sums, searches.
//!
//! They are emitted twice. The first time round, nothing is known where the block begins. It falls into the code of all
//! further rounds, at whose begin is known what is so at the end of each: the flags are still the host's, the vector
//! registers are there. And an address that moves by a constant in each round seldom leaves its page, so what the first
//! round has looked up is kept ([`super::super::layout::KEPT`]): further rounds compare the page, and look up another one.

use super::super::asm::{Alu, Label, at_index, cc};
use super::super::layout::{self, CPU, KEPT, T0, T1};
use super::super::region::Block;
use super::super::stubs;
use super::effect::Place;
use super::flags::Recipe;
use super::group::{Groups, Plan};
use super::memory::Access;
use super::{IN_AX, IN_HOST, Known, Late, Lower, nothing};
use iced_x86::Instruction;
use viv_mem::PAGE_SIZE;

/// A block that jumps to itself, while it is emitted.
pub(super) struct Turn {
    start: u16,
    /// Code of the further rounds.
    again: Label,
    /// What is known there, when the first round has been emitted.
    known: Option<Known>,
    /// What the first round keeps of its lookups: the instruction's number, and the access.
    kept: Vec<(usize, Place)>,
    /// Translated code alone: nothing in between changes where addresses lead.
    alone: bool,
}

/// Where what is looked up for an access is kept.
#[derive(Clone, Copy)]
pub(super) struct Kept {
    pub(super) slot: usize,
    /// It is there: this is a further round.
    pub(super) again: bool,
}

impl Lower<'_> {
    /// Emits a block that jumps to itself, as [`Lower::block`] does others.
    pub(super) fn turning(&mut self, block: &Block, follower: Option<u16>) -> bool {
        // Both rounds find the same groups.
        self.known.groups = Groups::default();
        self.known.delta = None;
        let again = self.asm.label();
        self.turn = Some(Turn { start: block.start, again, known: None, kept: Vec::new(), alone: true });
        self.block(block, None);
        self.asm.bind(again);
        let known = self.turn.as_ref().and_then(|turn| turn.known.clone());
        self.known = known.unwrap_or_else(nothing);
        let falls = self.block(block, follower);
        self.turn = None;
        falls
    }

    /// The jump of a block that turns has been emitted up to its condition: it leads to this code.
    pub(super) fn turn_to(&mut self, to: i64) -> Option<Label> {
        let Known { flags, recipe, units, .. } = self.known.clone();
        let turn = self.turn.as_mut().filter(|turn| i64::from(turn.start) == to)?;
        let again = turn.again;
        match &turn.known {
            None => {
                let flags = if flags.host { IN_HOST } else { IN_AX };
                turn.known = Some(Known { flags, recipe, units, ..nothing() });
            }
            Some(known) if known.flags.host => self.restore_flags(),
            Some(_) => self.save_flags(),
        }
        Some(again)
    }

    /// Whether a further round is emitted.
    pub(super) fn turns_again(&self) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.known.is_some())
    }

    /// Where the first round keeps what it looks up for this access, and whether this is a further one.
    pub(super) fn keeps(&mut self, place: Place) -> Option<Kept> {
        let at = self.place;
        let turn = self.turn.as_mut().filter(|turn| turn.alone)?;
        if turn.known.is_some() {
            let slot = turn.kept.iter().position(|kept| *kept == (at, place))?;
            return Some(Kept { slot, again: true });
        }
        let slot = turn.kept.len();
        let round = self.effects.get(..self.length).unwrap_or_default();
        if slot >= KEPT || !self.known.groups.moves_steadily(&place, round) {
            return None;
        }
        turn.kept.push((at, place));
        Some(Kept { slot, again: false })
    }

    /// What follows may change where addresses lead.
    pub(super) fn leaves_turn(&mut self) {
        if let Some(turn) = &mut self.turn {
            turn.alone = false;
        }
    }

    /// Leaves a further round, before its first instruction, if somebody wants attention.
    pub(super) fn look_up_again(&mut self, offset: u16) {
        if self.known.recipe.is_none() {
            self.save_flags();
        }
        self.clobber_flags();
        let flags = self.pending();
        self.look_up_with(offset, flags);
    }

    /// T1 becomes the delta of a group that an earlier round has looked up, in this slot.
    pub(super) fn look_up_kept(
        &mut self,
        slot: usize,
        place: Place,
        plan: Plan,
        x: &Instruction,
        access: Access,
    ) {
        self.clobber_flags();
        let retry = self.asm.bound();
        self.address(place, plan.disp);
        self.asm.alu_mem(Alu::Xor, T0, layout::kept_tag(slot));
        self.asm.alu_imm(true, Alu::Cmp, T0, PAGE_SIZE as i32 - plan.bytes);
        let from = self.asm.label();
        self.asm.jcc(cc::A, from);
        if access.aligned {
            self.must_be_aligned(x);
        }
        self.asm.load(T1, layout::delta(plan.group.slot));
        let again = Again { slot, place, plan, access, offset: x.ip() as u16 };
        let flags = self.pending();
        self.late.push(Late::Keep { from, retry, again, flags });
    }

    /// Late code: another page for a kept lookup. T0 holds the address XOR the tag that was kept.
    pub(super) fn keep_again(&mut self, again: Again, retry: Label, flags: Option<Recipe>) {
        let Again { slot, place, plan, access, offset } = again;
        self.known = nothing();
        self.asm.alu_mem(Alu::Xor, T0, layout::kept_tag(slot));
        let asked = Access { write: plan.group.write, aligned: false, ..access };
        let (from, find, tag) = self.find_entry(plan.bytes, asked);
        self.keep(slot, tag);
        self.delta_from_entry(place.base, plan.group.slot);
        self.asm.jmp(retry);
        let access = stubs::access_of_group(offset, access.write, plan.group.write);
        self.late.push(Late::FillGroup { from, retry: find, access, tag, bytes: plan.bytes, flags });
    }

    /// Keeps the page of the entry at T1.
    pub(super) fn keep(&mut self, slot: usize, tag: i32) {
        self.asm.load(T0, at_index(CPU, T1, tag));
        self.asm.store(layout::kept_tag(slot), T0);
    }
}

/// A kept lookup that is done again: where, for which access of the instruction at this offset.
#[derive(Clone, Copy)]
pub(super) struct Again {
    slot: usize,
    place: Place,
    plan: Plan,
    access: Access,
    offset: u16,
}
