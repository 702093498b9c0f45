//! What an instruction does to the addresses of those behind it.

use super::operand::writes;
use iced_x86::{Code, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind, Register};
use viv_arch::x86::gpr;

/// Values that addresses build on: the general registers, then these.
pub(super) const GS: u8 = 16;
pub(super) const FS: u8 = 17;
/// The linear address of the running page.
pub(super) const PAGE: u8 = 18;
/// Nothing: 0.
pub(super) const NONE: u8 = 19;
pub(super) const BASES: usize = 20;

/// A memory operand: a value, maybe another one shifted left, and a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) base: u8,
    pub(super) index: Option<(u8, u8)>,
    pub(super) disp: i32,
    pub(super) size: u32,
    pub(super) write: bool,
}

/// A register becomes another (or itself) plus a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) to: u8,
    pub(super) from: u8,
    pub(super) by: i32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// The explicit memory operand.
    pub(super) operand: Option<Place>,
    /// The word of the stack (or for LEAVE, of the frame) that it reads or writes besides.
    pub(super) stack: Option<Place>,
    /// Done before `writes`.
    pub(super) moves: Option<Move>,
    /// General registers that change in any other way: a bit each.
    pub(super) writes: u16,
}

pub(super) fn of(x: &Instruction, infos: &mut InstructionInfoFactory) -> Effect {
    let info = infos.info(x);
    let mut changed = 0u16;
    for used in info.used_registers() {
        if writes(used.access()) && used.register().is_gpr() {
            changed |= 1 << (used.register().full_register().number() & 15);
        }
    }
    let written = |n: u32| writes(info.op_access(n));
    let operand = (0..x.op_count())
        .find(|n| x.op_kind(*n) == OpKind::Memory && writes_or_reads(info.op_access(*n)))
        .and_then(|n| place(x, written(n)));
    let moves = moves(x);
    if let Some(moved) = moves {
        changed &= !(1 << moved.to);
    }
    Effect { operand, stack: stack(x), moves, writes: changed }
}

/// Not LEA, NOP or a prefetch.
fn writes_or_reads(access: OpAccess) -> bool {
    !matches!(access, OpAccess::None | OpAccess::NoMemAccess)
}

fn place(x: &Instruction, write: bool) -> Option<Place> {
    let size = x.memory_size().size() as u32;
    if x.is_ip_rel_memory_operand() {
        let plain = x.memory_base() == Register::RIP && x.segment_prefix() == Register::None;
        let disp = i32::try_from(x.ip_rel_memory_address() as i64).ok()?;
        return plain.then_some(Place { base: PAGE, index: None, disp, size, write });
    }
    let disp = i32::try_from(x.memory_displacement64() as i64).ok()?;
    let index = match x.memory_index() {
        Register::None => None,
        index if index.is_gpr64() => {
            Some((index.number() as u8, x.memory_index_scale().trailing_zeros() as u8))
        }
        _ => return None,
    };
    let base = match (x.memory_segment(), x.memory_base()) {
        (Register::GS, Register::None) if index.is_none() && x.memory_displ_size() == 8 => GS,
        (Register::FS, Register::None) if index.is_none() && x.memory_displ_size() == 8 => FS,
        (Register::FS | Register::GS, _) => return None,
        (_, Register::None) if index.is_some() => NONE,
        (_, base) if base.is_gpr64() => base.number() as u8,
        _ => return None,
    };
    Some(Place { base, index, disp, size, write })
}

fn is_wide_register(x: &Instruction, n: u32) -> bool {
    x.op_kind(n) == OpKind::Register && x.op_register(n).is_gpr64()
}

fn moves(x: &Instruction) -> Option<Move> {
    const RSP: u8 = gpr::RSP as u8;
    let number = |n: u32| x.op_register(n).number() as u8;
    match x.mnemonic() {
        M::Push | M::Pushfq if x.stack_pointer_increment() == -8 => Some(Move { to: RSP, from: RSP, by: -8 }),
        M::Pop if x.stack_pointer_increment() == 8 && x.op0_register() != Register::RSP => {
            Some(Move { to: RSP, from: RSP, by: 8 })
        }
        M::Leave if x.code() == Code::Leaveq => Some(Move { to: RSP, from: gpr::RBP as u8, by: 8 }),
        M::Mov if is_wide_register(x, 0) && is_wide_register(x, 1) => {
            Some(Move { to: number(0), from: number(1), by: 0 })
        }
        M::Lea if is_wide_register(x, 0) => {
            let plain = x.memory_base().is_gpr64() && x.memory_index() == Register::None;
            let by = i32::try_from(x.memory_displacement64() as i64).ok()?;
            plain.then(|| Move { to: number(0), from: x.memory_base().number() as u8, by })
        }
        M::Add | M::Sub if is_wide_register(x, 0) => {
            let by = match x.op1_kind() {
                OpKind::Immediate8to64 => x.immediate8to64(),
                OpKind::Immediate32to64 => x.immediate32to64(),
                _ => return None,
            };
            let by = if x.mnemonic() == M::Sub { -by } else { by };
            Some(Move { to: number(0), from: number(0), by: i32::try_from(by).ok()? })
        }
        M::Inc if is_wide_register(x, 0) => Some(Move { to: number(0), from: number(0), by: 1 }),
        M::Dec if is_wide_register(x, 0) => Some(Move { to: number(0), from: number(0), by: -1 }),
        _ => None,
    }
}

fn stack(x: &Instruction) -> Option<Place> {
    let word = |base: usize, disp: i32, write: bool| {
        Some(Place { base: base as u8, index: None, disp, size: 8, write })
    };
    match x.mnemonic() {
        M::Push | M::Pushfq | M::Call if x.stack_pointer_increment() == -8 => word(gpr::RSP, -8, true),
        M::Pop if x.stack_pointer_increment() == 8 => word(gpr::RSP, 0, false),
        M::Ret if matches!(x.code(), Code::Retnq | Code::Retnq_imm16) => word(gpr::RSP, 0, false),
        M::Leave if x.code() == Code::Leaveq => word(gpr::RBP, 0, false),
        _ => None,
    }
}
