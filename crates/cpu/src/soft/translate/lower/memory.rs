//! Memory operands: the effective address, and the lookup in the software TLB.

use super::super::Lookups;
use super::super::asm::{Alu, Label, Mem, Shift, at, at_index, cc};
use super::super::layout::{self, CPU, DELTAS, HOMES, T0, T1};
use super::super::stubs;
use super::effect::{FS, GS, NONE, PAGE, Place};
use super::group::Plan;
use super::turn::Kept;
use super::{Late, Lower};
use iced_x86::{Instruction, Register};
use viv_arch::x86::{gpr, seg};
use viv_mem::PAGE_SIZE;

/// What an access needs of the TLB.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub(super) size: u32,
    pub(super) write: bool,
    /// Faults if it is not aligned to its 16 bytes.
    pub(super) aligned: bool,
}

pub(super) fn read(size: u32) -> Access {
    Access { size, write: false, aligned: false }
}
pub(super) fn write(size: u32) -> Access {
    Access { size, write: true, aligned: false }
}

/// Whether [`Lower::effective_address`] can compute the operand's address.
pub(super) fn addressable(x: &Instruction) -> bool {
    if x.is_ip_rel_memory_operand() {
        let offset = x.ip_rel_memory_address() as i64;
        return i32::try_from(offset).is_ok() && x.memory_base() == Register::RIP;
    }
    let plain = |register: Register| register == Register::None || register.is_gpr64();
    let short = |register: Register| register == Register::None || register.is_gpr32();
    let registers = (x.memory_base(), x.memory_index());
    let none = registers == (Register::None, Register::None);
    i32::try_from(x.memory_displacement64() as i64).is_ok()
        && !(none && x.memory_displ_size() != 8)
        && (plain(registers.0) && plain(registers.1) || short(registers.0) && short(registers.1))
}

/// Segment of the operand, if its base counts in 64-bit mode.
fn based_segment(x: &Instruction) -> Option<usize> {
    match x.memory_segment() {
        Register::FS => Some(seg::FS),
        Register::GS => Some(seg::GS),
        _ => None,
    }
}

impl Lower<'_> {
    /// The operand's effective address into `to`, without a segment's base. Uses T0 and T1; changes no flags.
    pub(super) fn effective_address(&mut self, x: &Instruction, to: u8) {
        if x.is_ip_rel_memory_operand() {
            self.asm.load(T0, layout::page());
            self.asm.lea(to, at(T0, x.ip_rel_memory_address() as i32));
            return;
        }
        let mut register = |register: Register, scratch: u8| {
            let number = register.full_register().number();
            (register != Register::None).then(|| match HOMES[number & 15] {
                Some(home) => home,
                None => {
                    self.asm.load(scratch, layout::reg(number));
                    scratch
                }
            })
        };
        let base = register(x.memory_base(), T0);
        let index = register(x.memory_index(), T1);
        let shift = x.memory_index_scale().trailing_zeros() as u8;
        let disp = x.memory_displacement64() as i32;
        let short = x.memory_base().is_gpr32() || x.memory_index().is_gpr32();
        match (base, index) {
            (None, None) => self.asm.mov_imm(to, disp as i64 as u64),
            (Some(base), None) if disp == 0 && !short => {
                if base != to {
                    self.asm.mov(to, base);
                }
            }
            _ => {
                let mem = Mem { base, index: index.map(|index| (index, shift)), disp };
                if short { self.asm.lea32(to, mem) } else { self.asm.lea(to, mem) }
            }
        }
    }

    /// The linear address of the operand into T0. Changes the host's flags where a segment has a base.
    pub(super) fn linear_address(&mut self, x: &Instruction) {
        self.effective_address(x, T0);
        if let Some(segment) = based_segment(x) {
            self.clobber_flags();
            self.asm.alu_mem(Alu::Add, T0, layout::segment_base(segment));
        }
    }

    /// T0 holds a linear address: becomes the offset in its page if an access of `bytes` fits there, and T1 the offset
    /// of its entry in the TLB. Otherwise goes to the label returned, where T0 is still XORed with the entry's tag.
    pub(super) fn find_entry(&mut self, bytes: i32, access: Access) -> (Label, Label, i32) {
        self.clobber_flags();
        let retry = self.asm.bound();
        self.asm.mov(T1, T0);
        self.asm.shift(true, Shift::Shr, T1, 12 - layout::TLB_SHIFT);
        self.asm.alu_imm(false, Alu::And, T1, layout::TLB_MASK);
        let tag = layout::tlb_tag(self.context.mmu, access.write);
        self.asm.alu_mem(Alu::Xor, T0, at_index(CPU, T1, tag));
        let miss = self.asm.label();
        if access.aligned && bytes == 16 {
            self.asm.test_imm(T0, !(PAGE_SIZE as i32 - 16));
            self.asm.jcc(cc::NE, miss);
        } else {
            self.asm.alu_imm(true, Alu::Cmp, T0, PAGE_SIZE as i32 - bytes);
            self.asm.jcc(cc::A, miss);
        }
        (miss, retry, tag)
    }

    /// Finds the host memory of the linear address in T0: `[T1 + T0]`. On a miss that cannot be filled, the
    /// instruction at `ip` goes to the interpreter.
    pub(super) fn look_up_address(&mut self, ip: u64, access: Access) -> Mem {
        let (from, retry, tag) = self.find_entry(access.size as i32, access);
        self.asm.load(T1, at_index(CPU, T1, layout::tlb_host(self.context.mmu)));
        let access = stubs::access(ip as u16, access.size, access.write, access.aligned);
        let flags = self.pending();
        self.late.push(Late::Fill { from, retry, access, tag, flags });
        at_index(T1, T0, 0)
    }

    /// The host memory of the instruction's memory operand. It may use T0 and T1.
    pub(super) fn memory_operand(&mut self, x: &Instruction, access: Access) -> Mem {
        let place = self.effects.get(self.place).and_then(|effect| effect.operand);
        if let Some(place) = place
            && let Some(mem) =
                self.grouped(Place { size: access.size, write: access.write, ..place }, x, access)
        {
            return mem;
        }
        self.linear_address(x);
        self.look_up_address(x.ip(), access)
    }

    /// The host memory of a word at a distance from RSP or RBP. It may use T0 and T1.
    pub(super) fn stack_operand(&mut self, x: &Instruction, base: usize, disp: i32, write: bool) -> Mem {
        let access = Access { size: 8, write, aligned: false };
        let place = Place { base: base as u8, index: None, disp, size: 8, write };
        if let Some(mem) = self.grouped(place, x, access) {
            return mem;
        }
        let home = HOMES[base & 15].unwrap_or(T0);
        self.asm.lea(T0, at(home, disp));
        self.look_up_address(x.ip(), access)
    }

    // ---- groups ---------------------------------------------------------------------------------------------

    /// The host memory of an access that a group has, or gets now.
    fn grouped(&mut self, place: Place, x: &Instruction, access: Access) -> Option<Mem> {
        let away = |register: u8| register < 16 && HOMES[usize::from(register)].is_none();
        // Only one of them fits beside the delta.
        let fits = place.index.is_none_or(|(index, _)| !(away(index) && away(place.base)));
        if self.lookups == Lookups::Single || !fits {
            return None;
        }
        if let Some(group) = self.known.groups.find(&place, access.aligned) {
            if self.asm.r15_changed || self.known.delta != Some(group.slot) {
                self.asm.load(T1, layout::delta(group.slot));
                self.has_delta(group.slot);
            }
            return Some(self.relative_to_base(place));
        }
        let rest = self.effects.get(self.place + 1..).unwrap_or_default();
        let sure = self.length.saturating_sub(self.place + 1);
        let plan = self.known.groups.plan(&place, access.aligned, rest, sure);
        let kept = self.keeps(place);
        let (mut plan, _) = plan.filter(|(_, others)| *others != 0 || kept.is_some())?;
        if let Some(kept) = &kept {
            plan.group.slot = DELTAS + kept.slot;
        }
        match kept {
            Some(Kept { slot, again: true }) => self.look_up_kept(slot, place, plan, x, access),
            _ => self.look_up_group(kept.map(|kept| kept.slot), place, plan, x, access),
        }
        self.known.groups.enter(plan.group);
        self.has_delta(plan.group.slot);
        Some(self.relative_to_base(place))
    }

    fn has_delta(&mut self, slot: usize) {
        self.known.delta = Some(slot);
        self.asm.r15_changed = false;
    }

    /// The operand with the delta in T1.
    fn relative_to_base(&mut self, place: Place) -> Mem {
        match place {
            Place { base: FS | GS | PAGE, .. } => at(T1, place.disp),
            Place { index: None, base, .. } => {
                let base = self.at_home(base, T0);
                at_index(base, T1, place.disp)
            }
            _ => {
                self.address(place, place.disp);
                at_index(T0, T1, 0)
            }
        }
    }

    /// The register that holds a value: `scratch`, after a load, if it lives in memory.
    fn at_home(&mut self, value: u8, scratch: u8) -> u8 {
        let from = match value {
            FS => layout::segment_base(seg::FS),
            GS => layout::segment_base(seg::GS),
            PAGE => layout::page(),
            register => match HOMES[usize::from(register) & 15] {
                Some(home) => return home,
                None => layout::reg(register.into()),
            },
        };
        self.asm.load(scratch, from);
        scratch
    }

    /// A place's address at another displacement into T0. At most one of its registers may live in memory.
    pub(super) fn address(&mut self, place: Place, disp: i32) {
        let base = (place.base != NONE).then(|| self.at_home(place.base, T0));
        let index = place.index.map(|(index, shift)| (self.at_home(index, T0), shift));
        self.asm.lea(T0, Mem { base, index, disp });
    }

    /// T1 becomes the delta of a group. Its page is kept if a slot is given.
    fn look_up_group(
        &mut self,
        kept: Option<usize>,
        place: Place,
        plan: Plan,
        x: &Instruction,
        access: Access,
    ) {
        self.address(place, plan.disp);
        let asked = Access { write: plan.group.write, aligned: false, ..access };
        let (from, retry, tag) = self.find_entry(plan.bytes, asked);
        if access.aligned {
            self.must_be_aligned(x);
        }
        if let Some(slot) = kept {
            self.keep(slot, tag);
        }
        self.delta_from_entry(place.base, plan.group.slot);
        // What fills the TLB asks for the page alone: the group lies in one.
        let asked = stubs::access_of_group(x.ip() as u16, access.write, plan.group.write);
        let flags = self.pending();
        self.late.push(Late::FillGroup { from, retry, access: asked, tag, bytes: plan.bytes, flags });
    }

    /// T0 ends as a linear address does: where it is not on a boundary of 16 bytes, the instruction is the interpreter's.
    pub(super) fn must_be_aligned(&mut self, x: &Instruction) {
        let misaligned = self.asm.label();
        self.asm.test_imm(T0, 15);
        self.asm.jcc(cc::NE, misaligned);
        self.late.push(Late::Interpret(misaligned, x.ip() as u16, self.pending()));
    }

    /// T1 becomes the delta, from its entry in the TLB, of a group with this base.
    pub(super) fn delta_from_entry(&mut self, base: u8, slot: usize) {
        self.asm.load(T1, at_index(CPU, T1, layout::tlb_addend(self.context.mmu)));
        match base {
            FS => self.asm.alu_mem(Alu::Add, T1, layout::segment_base(seg::FS)),
            GS => self.asm.alu_mem(Alu::Add, T1, layout::segment_base(seg::GS)),
            PAGE => self.asm.alu_mem(Alu::Add, T1, layout::page()),
            _ => {}
        }
        self.asm.store(layout::delta(slot), T1);
    }
}

/// The base of stack accesses.
pub(super) const RSP: usize = gpr::RSP;
