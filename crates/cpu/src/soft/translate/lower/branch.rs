//! Where the flow goes: within the region, to other code of the page, to other pages.

use super::super::Lookups;
use super::super::asm::{Alu, Label, Shift, at, at_index, cc};
use super::super::layout::{self, CPU, HOMES, T0, T1};
use super::super::region::target;
use super::super::targets::{HASH, HASH_MASK, HASH_SHIFT};
use super::integer::home_of;
use super::memory::{RSP, addressable, read};
use super::{Known, Late, Lower, Otherwise};
use iced_x86::{Code, Instruction, OpKind};
use viv_arch::x86::gpr;
use viv_mem::PAGE_SIZE;

impl Lower<'_> {
    /// Emits the instruction that ends a block; `next` is what follows it. Whether the flow falls into `follower`.
    pub(super) fn branch(&mut self, x: &Instruction, next: Option<u16>, follower: Option<u16>) -> bool {
        if let Some(to) = target(x).filter(|_| x.is_jcc_short_or_near()) {
            self.conditional(x, to);
            return next.is_some_and(|next| self.fall(next, follower));
        }
        if let Some(to) = target(x)
            && matches!(x.code(), Code::Jrcxz_rel8_64 | Code::Loop_rel8_64_RCX)
        {
            self.counter(x, to);
            return next.is_some_and(|next| self.fall(next, follower));
        }
        match (x.code(), target(x)) {
            (Code::Jmp_rel8_64 | Code::Jmp_rel32_64, Some(to)) => return self.go_to(to, follower),
            (Code::Call_rel32_64, Some(to)) => {
                self.push_return(x);
                self.go_to(to, None);
            }
            (Code::Retnq, _) => self.ret(x, 8),
            (Code::Retnq_imm16, _) => self.ret(x, 8 + i32::from(x.immediate16())),
            (Code::Jmp_rm64, _) if x.op0_kind() == OpKind::Register || addressable(x) => self.jump_to(x),
            (Code::Call_rm64, _) if x.op0_kind() == OpKind::Register || addressable(x) => self.call_to(x),
            _ => {
                self.interpret(x);
                // It came back: the next instruction follows.
                if let Some(next) = next {
                    return self.fall(next, follower);
                }
                // A flow that no block counts among those that lead to it.
                self.asm.mov_imm(T0, x.next_ip());
                self.asm.jmp_at(self.stubs.exit_at);
            }
        }
        false
    }

    /// The flow goes on at `next`. Whether that is emitted right behind.
    pub(super) fn fall(&mut self, next: u16, follower: Option<u16>) -> bool {
        self.go_to(next.into(), follower)
    }

    /// Goes to an offset of the page, or beyond it. Whether the flow falls into `follower`.
    pub(super) fn go_to(&mut self, to: i64, follower: Option<u16>) -> bool {
        let place = u16::try_from(to).ok().filter(|to| u64::from(*to) < PAGE_SIZE);
        let Some(place) = place else {
            self.cross(to);
            return false;
        };
        let label = self.label_within(place);
        match label {
            Some((_, false)) => self.expect(place),
            _ => self.save_flags(),
        }
        if follower == Some(place) {
            return true;
        }
        if let Some((label, _)) = label {
            self.asm.jmp(label);
        } else if let Some(code) = (self.outside)(place, self.leads_forward(place)) {
            self.asm.jmp_at(code);
        } else {
            let late = self.asm.label();
            let site = self.asm.jmp(late);
            self.late.push(Late::Link(late, place, site, self.leads_forward(place)));
        }
        false
    }

    /// Whether a jump from the present block leads to a block further on in the page. No loop consists of such jumps, so
    /// their targets need not look whether somebody wants attention.
    fn leads_forward(&self, place: u16) -> bool {
        place > self.start
    }

    /// The label of a block of the region that a jump may lead to. Code that looks up each access goes back to the
    /// grouped code with its first jump: only what is left of this block lies across a border.
    fn label_within(&self, offset: u16) -> Option<(Label, bool)> {
        if self.lookups == Lookups::Single { None } else { self.label_of(offset) }
    }

    /// Remembers what is known for the block at `place`, to which only this jump leads.
    fn expect(&mut self, place: u16) {
        // The block is emitted when T1 has been used for others.
        self.expected.push((place, Known { delta: None, ..self.known.clone() }));
    }

    /// A conditional jump's taken way, on a condition of the host's flags.
    fn take(&mut self, condition: u8, to: i64) {
        let place = u16::try_from(to).ok().filter(|to| u64::from(*to) < PAGE_SIZE);
        match place.map(|place| (place, self.label_within(place))) {
            Some((_, Some((label, _)))) => {
                self.asm.jcc(condition, label);
            }
            // The flags are saved on the way.
            Some((place, None)) if !self.known.flags.ax => {
                let late = self.asm.label();
                self.asm.jcc(condition, late);
                self.late.push(Late::Save(late, place, self.start));
            }
            Some((place, None)) => {
                let forward = self.leads_forward(place);
                if let Some(code) = (self.outside)(place, forward) {
                    return self.asm.jcc_at(condition, code);
                }
                let late = self.asm.label();
                let site = self.asm.jcc(condition, late);
                self.late.push(Late::Link(late, place, site, forward));
            }
            None => {
                let late = self.asm.label();
                self.asm.jcc(condition, late);
                self.late.push(Late::Cross(late, to, self.known.flags.ax));
            }
        }
    }

    /// Before a conditional jump: what its target must find.
    fn prepare(&mut self, to: i64) {
        let place = u16::try_from(to).ok().filter(|to| u64::from(*to) < PAGE_SIZE);
        match place.and_then(|place| Some((place, self.label_within(place)?.1))) {
            Some((_, true)) => self.save_flags(),
            Some((place, false)) => self.expect(place),
            None => {}
        }
    }

    fn conditional(&mut self, x: &Instruction, to: i64) {
        if self.known.flags.rough {
            self.save_flags();
        }
        let again = self.turn_to(to);
        if again.is_none() {
            self.prepare(to);
        }
        let condition = x.code().condition_number();
        let condition = if self.known.flags.host { condition } else { self.test_in_ax(condition) };
        match again {
            Some(again) => {
                self.asm.jcc(condition, again);
            }
            None => self.take(condition, to),
        }
    }

    /// Tests a condition of the guest's flags in AX; the host condition to ask then.
    fn test_in_ax(&mut self, condition: u8) -> u8 {
        let negated = condition & 1;
        match condition >> 1 {
            // O, B, E, BE, S, P: any of some bits (see `flags::bit`).
            0 => self.asm.test_al(1),
            1 => self.asm.test_ah(0x01),
            2 => self.asm.test_ah(0x40),
            3 => self.asm.test_ah(0x41),
            4 => self.asm.test_ah(0x80),
            5 => self.asm.test_ah(0x04),
            _ => {
                // L and LE need SF against OF: all flags, from a copy, so that AX stays.
                self.asm.mov32(T0, super::super::layout::FLAGS);
                self.asm.flags_from_ax();
                self.asm.mov32(super::super::layout::FLAGS, T0);
                return condition;
            }
        }
        cc::NE ^ negated
    }

    /// JRCXZ and LOOP with a 64-bit counter.
    fn counter(&mut self, x: &Instruction, to: i64) {
        self.clobber_flags();
        self.prepare(to);
        let rcx = home_of(gpr::RCX);
        let condition = if x.code() == Code::Jrcxz_rel8_64 {
            cc::E
        } else {
            self.asm.lea(rcx, at(rcx, -1));
            cc::NE
        };
        self.asm.test(true, rcx, rcx);
        self.take(condition, to);
    }

    // ---- calls and returns -------------------------------------------------------------------------------------

    fn push_return(&mut self, x: &Instruction) {
        let place = self.stack_operand(x, RSP, -8, true);
        let place = self.without_t0(place);
        self.asm.load(T0, layout::page());
        self.asm.lea(T0, at(T0, x.next_ip() as i32));
        self.asm.store(place, T0);
        let rsp = home_of(gpr::RSP);
        self.asm.lea(rsp, at(rsp, -8));
    }

    /// T0 holds a linear address: T1 becomes its code.
    fn find_target(&mut self, otherwise: Otherwise) {
        let (miss, found) = (self.asm.label(), self.asm.label());
        self.late.push(Late::Seek { from: miss, found, otherwise });
        self.clobber_flags();
        self.asm.imul32_imm(T1, T0, HASH as i32);
        self.asm.shift(false, Shift::Shr, T1, HASH_SHIFT);
        self.asm.alu_imm(false, Alu::And, T1, HASH_MASK);
        self.asm.alu_mem(Alu::Cmp, T0, at_index(CPU, T1, layout::target_linear(self.context.mmu)));
        self.asm.jcc(cc::NE, miss);
        self.asm.load(T1, at_index(CPU, T1, layout::target_code(self.context.mmu)));
        self.asm.bind(found);
    }

    /// T0's page becomes the running page.
    fn change_page(&mut self) {
        self.asm.alu_imm(true, Alu::And, T0, -(PAGE_SIZE as i32));
        self.asm.store(layout::page(), T0);
    }

    /// A direct jump to another page: `to` counts from the start of this one.
    pub(super) fn cross(&mut self, to: i64) {
        self.asm.load(T0, layout::page());
        match i32::try_from(to) {
            Ok(to) => self.asm.lea(T0, at(T0, to)),
            Err(_) => {
                self.asm.mov_imm(T1, to as u64);
                self.asm.lea(T0, at_index(T0, T1, 0));
            }
        }
        self.find_target(Otherwise::ExitTo);
        self.change_page();
        self.asm.jmp_reg(T1);
    }

    fn ret(&mut self, x: &Instruction, bytes: i32) {
        let rsp = home_of(gpr::RSP);
        let place = self.stack_operand(x, RSP, 0, false);
        self.asm.load(T0, place);
        self.find_target(Otherwise::Interpret(x.ip() as u16));
        self.asm.lea(rsp, at(rsp, bytes));
        self.change_page();
        self.asm.jmp_reg(T1);
    }

    /// The target of an indirect branch into T0.
    fn indirect_target(&mut self, x: &Instruction) {
        if x.op0_kind() == OpKind::Register {
            match HOMES[x.op0_register().number() & 15] {
                Some(home) => self.asm.mov(T0, home),
                None => self.asm.load(T0, layout::reg(x.op0_register().number())),
            }
        } else {
            let mem = self.memory_operand(x, read(8));
            self.asm.load(T0, mem);
        }
    }

    fn jump_to(&mut self, x: &Instruction) {
        self.indirect_target(x);
        self.find_target(Otherwise::Interpret(x.ip() as u16));
        self.change_page();
        self.asm.jmp_reg(T1);
    }

    fn call_to(&mut self, x: &Instruction) {
        let (target, place, code) = (layout::scratch(0), layout::scratch(1), layout::scratch(2));
        self.indirect_target(x);
        self.asm.store(target, T0);
        let pushed = self.stack_operand(x, RSP, -8, true);
        self.asm.lea(T1, pushed);
        self.asm.store(place, T1);
        self.asm.load(T0, target);
        self.find_target(Otherwise::Interpret(x.ip() as u16));
        // Found: from here on nothing can fail.
        self.asm.store(code, T1);
        self.asm.load(T1, layout::page());
        self.change_page();
        self.asm.load(T0, place);
        self.asm.lea(T1, at(T1, x.next_ip() as i32));
        self.asm.store(at(T0, 0), T1);
        let rsp = home_of(gpr::RSP);
        self.asm.lea(rsp, at(rsp, -8));
        self.asm.jmp_mem(code);
    }
}

/// The condition of a Jcc as its opcode has it.
trait ConditionNumber {
    fn condition_number(self) -> u8;
}
impl ConditionNumber for Code {
    fn condition_number(self) -> u8 {
        use iced_x86::ConditionCode::*;
        [None, o, no, b, ae, e, ne, be, a, s, ns, p, np, l, ge, le, g]
            .iter()
            .position(|condition| *condition == self.condition_code())
            .map_or(0, |position| position.saturating_sub(1) as u8)
    }
}
