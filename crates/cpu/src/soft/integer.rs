//! Integer instructions: moves, arithmetic, shifts, bits, multiplication, division, decimal.

use super::cpu::{Cpu, R};
use super::flags::{self, bit};
use super::mmu::Want;
use super::native::{self, Alu, Shift, Unary, Width};
use super::op::{Imm, Op, Source, Target};
use viv_arch::x86::{gpr, rflags, vector};

const RAX: u8 = gpr::RAX as u8;
const RDX: u8 = gpr::RDX as u8;
const AH: u8 = 0x80;

pub(crate) fn alu<A: Alu, T: Target, S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let b: W = S::get(cpu, op)?;
    cpu.flags = T::update(cpu, op, |cpu, a: W| W::alu::<A>(a, b, cpu.flags))?;
    Ok(())
}

/// CMP and TEST: nothing is written.
pub(crate) fn compare<A: Alu, T: Source, S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    const { assert!(!A::WRITES) };
    let a: W = T::get(cpu, op)?;
    let b: W = S::get(cpu, op)?;
    cpu.flags = W::alu::<A>(a, b, cpu.flags).1;
    Ok(())
}

pub(crate) fn unary<U: Unary, T: Target, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.flags = T::update(cpu, op, |cpu, a: W| W::unary::<U>(a, cpu.flags))?;
    Ok(())
}

/// Shifts and rotates; the count is `op.imm`, or CL if the source says so.
pub(crate) fn shift<S: Shift, T: Target, C: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let count: u8 = C::get(cpu, op)?;
    cpu.flags = T::update(cpu, op, |cpu, a: W| W::shift::<S>(a, count, cpu.flags))?;
    Ok(())
}

/// CL as a source.
pub(crate) struct Cl;
impl Source for Cl {
    fn get<W: Width>(cpu: &mut Cpu, _: &Op) -> R<W> {
        Ok(W::of(cpu.regs[gpr::RCX] & 0xff))
    }
}

/// SHLD (`LEFT`) and SHRD.
pub(crate) fn double_shift<const LEFT: bool, T: Target, C: Source, W: Width>(
    cpu: &mut Cpu,
    op: &Op,
) -> R<()> {
    let count: u8 = C::get(cpu, op)?;
    let b: W = cpu.reg(op.src);
    cpu.flags = T::update(cpu, op, |cpu, a: W| {
        let (a, b, fl) = (a.wide(), b.wide(), cpu.flags);
        let (result, fl) = match (W::BYTES, LEFT) {
            (2, true) => wide(native::shld16(a as u16, b as u16, count, fl)),
            (2, false) => wide(native::shrd16(a as u16, b as u16, count, fl)),
            (4, true) => wide(native::shld32(a as u32, b as u32, count, fl)),
            (4, false) => wide(native::shrd32(a as u32, b as u32, count, fl)),
            (_, true) => native::shld64(a, b, count, fl),
            (_, false) => native::shrd64(a, b, count, fl),
        };
        (W::of(result), fl)
    })?;
    Ok(())
}

fn wide<W: Width>((value, fl): (W, flags::Flags)) -> (u64, flags::Flags) {
    (value.wide(), fl)
}

// ---- moves ---------------------------------------------------------------------------------------

pub(crate) fn mov<T: Target, S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let value: W = S::get(cpu, op)?;
    T::set(cpu, op, value)
}

/// MOVZX: `F` to `W`.
pub(crate) fn movzx<S: Source, F: Width, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let value: F = S::get(cpu, op)?;
    cpu.set_reg(op.dst, W::of(value.wide()));
    Ok(())
}

/// MOVSX and MOVSXD: `F` to `W`.
pub(crate) fn movsx<S: Source, F: Width, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let value: F = S::get(cpu, op)?;
    cpu.set_reg(op.dst, W::of(value.signed() as u64));
    Ok(())
}

pub(crate) fn movbe<T: Target, S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let value: W = S::get(cpu, op)?;
    T::set(cpu, op, W::of(value.wide().swap_bytes() >> (64 - W::BITS)))
}

pub(crate) fn lea<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let offset = op.offset(cpu) & op.address_mask();
    cpu.set_reg(op.dst, W::of(offset));
    Ok(())
}

pub(crate) fn xchg<T: Target, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let mine: W = cpu.reg(op.src);
    let other = T::update(cpu, op, |_, a: W| (mine, a))?;
    cpu.set_reg(op.src, other);
    Ok(())
}

pub(crate) fn xadd<T: Target, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let mine: W = cpu.reg(op.src);
    let (old, fl) = T::update(cpu, op, |cpu, a: W| {
        let (sum, fl) = W::alu::<native::Add>(a, mine, cpu.flags);
        (sum, (a, fl))
    })?;
    cpu.flags = fl;
    // With two equal registers the sum wins.
    let sum_in_register: bool = T::IS_REGISTER && op.src == op.dst;
    if !sum_in_register {
        cpu.set_reg(op.src, old);
    }
    Ok(())
}

pub(crate) fn cmpxchg<T: Target, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let expected: W = cpu.reg(RAX);
    let new: W = cpu.reg(op.src);
    let before = cpu.regs[usize::from(op.dst & 15)];
    let (old, fl) = T::update(cpu, op, |cpu, a: W| {
        let fl = W::alu::<native::Cmp>(expected, a, cpu.flags).1;
        (if a == expected { new } else { a }, (a, fl))
    })?;
    cpu.flags = fl;
    if old != expected {
        if T::IS_REGISTER {
            // A failed register form keeps the upper half, too.
            cpu.regs[usize::from(op.dst & 15)] = before;
        }
        cpu.set_reg(RAX, old);
    }
    Ok(())
}

pub(crate) fn cmpxchg8b<T: Target>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let pair = |cpu: &Cpu, high: usize, low: usize| cpu.regs[high] << 32 | cpu.regs[low] & 0xffff_ffff;
    let expected = pair(cpu, gpr::RDX, gpr::RAX);
    let new = pair(cpu, gpr::RCX, gpr::RBX);
    let old = T::update(cpu, op, |_, a: u64| (if a == expected { new } else { a }, a))?;
    if old == expected {
        cpu.flags |= bit::ZF;
    } else {
        cpu.flags &= !bit::ZF;
        cpu.set_reg(RAX, old as u32);
        cpu.set_reg(RDX, (old >> 32) as u32);
    }
    Ok(())
}

#[allow(unsafe_code)]
pub(crate) fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> R<()> {
    let linear = op.linear(cpu, 16, Want::Write)?;
    if linear & 15 != 0 {
        return cpu.gp(0);
    }
    let old = (cpu.regs[gpr::RAX], cpu.regs[gpr::RDX]);
    let new = (cpu.regs[gpr::RBX], cpu.regs[gpr::RCX]);
    let found = match cpu.modify_slow(linear, 16)? {
        // SAFETY: `modify_slow` gives host memory of guest RAM with 16 bytes, and pages keep the alignment.
        Some(host) => unsafe { native::compare_exchange_16(host, old, new) },
        None => {
            let found = (cpu.load(linear)?, cpu.load(linear + 8)?);
            let value = if found == old { new } else { found };
            cpu.store(linear, value.0)?;
            cpu.store(linear + 8, value.1)?;
            found
        }
    };
    if found == old {
        cpu.flags |= bit::ZF;
    } else {
        cpu.flags &= !bit::ZF;
        (cpu.regs[gpr::RAX], cpu.regs[gpr::RDX]) = found;
    }
    Ok(())
}

pub(crate) fn bswap<W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let value: W = cpu.reg(op.dst);
    let swapped = match W::BYTES {
        // Undefined by the manuals; processors clear the word.
        2 => 0,
        _ => value.wide().swap_bytes() >> (64 - W::BITS),
    };
    cpu.set_reg(op.dst, W::of(swapped));
    Ok(())
}

/// SALC (undocumented, everywhere, not in 64-bit mode): AL becomes CF in all bits.
pub(crate) fn salc(cpu: &mut Cpu, _: &Op) -> R<()> {
    let carry = cpu.flags & bit::CF != 0;
    cpu.set_reg(RAX, if carry { 0xffu8 } else { 0 });
    Ok(())
}

/// CBW, CWDE, CDQE: `F` to `W` in the accumulator.
pub(crate) fn extend_accumulator<F: Width, W: Width>(cpu: &mut Cpu, _: &Op) -> R<()> {
    let value: F = cpu.reg(RAX);
    cpu.set_reg(RAX, W::of(value.signed() as u64));
    Ok(())
}

/// CWD, CDQ, CQO.
pub(crate) fn spread_sign<W: Width>(cpu: &mut Cpu, _: &Op) -> R<()> {
    let value: W = cpu.reg(RAX);
    cpu.set_reg(RDX, W::of((value.signed() >> 63) as u64));
    Ok(())
}

pub(crate) fn xlat(cpu: &mut Cpu, op: &Op) -> R<()> {
    // The decoder gave base RBX; AL is added here.
    let al = u64::from(cpu.reg::<u8>(RAX));
    let at = Op { disp: op.disp.wrapping_add(al as i64), ..*op };
    let linear = at.linear(cpu, 1, Want::Read)?;
    let value: u8 = cpu.load(linear)?;
    cpu.set_reg(RAX, value);
    Ok(())
}

// ---- multiplication and division -----------------------------------------------------------------

/// One-operand MUL (`SIGNED` false) and IMUL.
/// Flags after a multiplication: those that it leaves undefined are zero here.
const MULTIPLIED: flags::Flags = flags::bit::CF | flags::bit::OF;

pub(crate) fn multiply<const SIGNED: bool, S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let b = S::get::<W>(cpu, op)?.wide();
    let a = cpu.regs[gpr::RAX];
    let (low, high, fl) = match (W::BYTES, SIGNED) {
        (1, signed) => {
            let pick = if signed { native::wide_imul8 } else { native::mul8 };
            let (ax, fl) = pick(a as u8, b as u8);
            cpu.set_reg(RAX, ax);
            cpu.flags = fl & MULTIPLIED;
            return Ok(());
        }
        (2, false) => widen(native::mul16(a as u16, b as u16)),
        (2, true) => widen(native::wide_imul16(a as u16, b as u16)),
        (4, false) => widen(native::mul32(a as u32, b as u32)),
        (4, true) => widen(native::wide_imul32(a as u32, b as u32)),
        (_, false) => native::mul64(a, b),
        (_, true) => native::wide_imul64(a, b),
    };
    cpu.set_reg(RAX, W::of(low));
    cpu.set_reg(RDX, W::of(high));
    cpu.flags = fl & MULTIPLIED;
    Ok(())
}

fn widen<W: Width>((low, high, fl): (W, W, flags::Flags)) -> (u64, u64, flags::Flags) {
    (low.wide(), high.wide(), fl)
}

/// Two- and three-operand IMUL: destination, `A` times `B`.
pub(crate) fn imul<A: Source, B: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let a = A::get::<W>(cpu, op)?.wide();
    let b = B::get::<W>(cpu, op)?.wide();
    let fl = cpu.flags;
    let (value, fl) = match W::BYTES {
        2 => wide(native::imul16(a as u16, b as u16, fl)),
        4 => wide(native::imul32(a as u32, b as u32, fl)),
        _ => native::imul64(a, b, fl),
    };
    cpu.set_reg(op.dst, W::of(value));
    cpu.flags = fl & MULTIPLIED;
    Ok(())
}

/// DIV (`SIGNED` false) and IDIV.
pub(crate) fn divide<const SIGNED: bool, S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let b = S::get::<W>(cpu, op)?.wide();
    let (low, high) = (cpu.regs[gpr::RAX], cpu.regs[gpr::RDX]);
    if W::BYTES == 1 {
        let ax = low as u16;
        let divide = if SIGNED { native::idiv8 } else { native::div8 };
        let Some((quotient, remainder)) = divide((ax >> 8) as u8, ax as u8, b as u8) else {
            return cpu.raise(vector::DE, None);
        };
        cpu.set_reg(RAX, u16::from(remainder) << 8 | u16::from(quotient));
        return Ok(());
    }
    let pair = |p: Option<(u64, u64)>| p;
    let result = match (W::BYTES, SIGNED) {
        (2, false) => native::div16(high as u16, low as u16, b as u16).map(|(q, r)| (q.into(), r.into())),
        (2, true) => native::idiv16(high as u16, low as u16, b as u16).map(|(q, r)| (q.into(), r.into())),
        (4, false) => native::div32(high as u32, low as u32, b as u32).map(|(q, r)| (q.into(), r.into())),
        (4, true) => native::idiv32(high as u32, low as u32, b as u32).map(|(q, r)| (q.into(), r.into())),
        (_, false) => pair(native::div64(high, low, b)),
        (_, true) => pair(native::idiv64(high, low, b)),
    };
    let Some((quotient, remainder)) = result else { return cpu.raise(vector::DE, None) };
    cpu.set_reg(RAX, W::of(quotient));
    cpu.set_reg(RDX, W::of(remainder));
    Ok(())
}

// ---- bits ------------------------------------------------------------------------------------------

/// What BT, BTS, BTR and BTC make of the bit.
pub(crate) trait BitChange {
    const WRITES: bool;
    fn apply(word: u64, mask: u64) -> u64;
}
pub(crate) struct Keep;
pub(crate) struct Set;
pub(crate) struct Reset;
pub(crate) struct Complement;
impl BitChange for Keep {
    const WRITES: bool = false;
    fn apply(word: u64, _: u64) -> u64 {
        word
    }
}
impl BitChange for Set {
    const WRITES: bool = true;
    fn apply(word: u64, mask: u64) -> u64 {
        word | mask
    }
}
impl BitChange for Reset {
    const WRITES: bool = true;
    fn apply(word: u64, mask: u64) -> u64 {
        word & !mask
    }
}
impl BitChange for Complement {
    const WRITES: bool = true;
    fn apply(word: u64, mask: u64) -> u64 {
        word ^ mask
    }
}

fn set_carry(cpu: &mut Cpu, carry: bool) {
    cpu.flags = cpu.flags & !bit::CF | if carry { bit::CF } else { 0 };
}

/// BT and relatives on a register, or on a memory operand with an immediate bit number.
pub(crate) fn bit_test<B: BitChange, T: Target + Source, S: Source, W: Width>(
    cpu: &mut Cpu,
    op: &Op,
) -> R<()> {
    let number = S::get::<W>(cpu, op)?.wide() & u64::from(W::BITS - 1);
    let mask = 1u64 << number;
    let old: u64 = if B::WRITES {
        T::update(cpu, op, |_, a: W| (W::of(B::apply(a.wide(), mask)), a.wide()))?
    } else {
        T::get::<W>(cpu, op)?.wide()
    };
    set_carry(cpu, old & mask != 0);
    Ok(())
}

/// BT and relatives on memory with the bit number in a register: it reaches any word around the address.
pub(crate) fn bit_test_far<B: BitChange, T: Target + Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let number = cpu.reg::<W>(op.src).signed();
    let word = (number >> W::BITS.trailing_zeros()).wrapping_mul(W::BYTES as i64);
    let near = Op { disp: op.disp.wrapping_add(word), imm: number as u64, ..*op };
    bit_test::<B, T, Imm, W>(cpu, &near)
}

/// BSF (`FORWARD`) and BSR. Processors differ in the flags besides ZF, and in what a source of zero leaves: here the flags
/// are TEST's of the source, and zero leaves the register alone.
pub(crate) fn bit_scan<const FORWARD: bool, S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let source = S::get::<W>(cpu, op)?;
    (_, cpu.flags) = W::alu::<native::Test>(source, source, cpu.flags);
    let bits = source.wide();
    if bits != 0 {
        let place = if FORWARD { bits.trailing_zeros() } else { bits.ilog2() };
        cpu.set_reg(op.dst, W::of(place.into()));
    }
    Ok(())
}

pub(crate) fn popcnt<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let count = S::get::<W>(cpu, op)?.wide().count_ones();
    cpu.set_reg(op.dst, W::of(count.into()));
    cpu.flags = native::zero_only(count.into());
    Ok(())
}

/// CRC32 over a source of `W`; the destination has 32 bits, or 64 with the upper half cleared.
pub(crate) fn crc32<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let data = S::get::<W>(cpu, op)?.wide();
    let crc = native::crc32c(cpu.reg::<u32>(op.dst), data, W::BYTES);
    cpu.set_reg(op.dst, crc);
    Ok(())
}

// ---- conditions ------------------------------------------------------------------------------------

/// SETcc: the condition is `op.imm`.
pub(crate) fn setcc<T: Target>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let value = u8::from(flags::condition(op.imm as u8, cpu.flags));
    T::set(cpu, op, value)
}

/// CMOVcc: the source is read in any case, and a 32-bit form always clears the upper half.
pub(crate) fn cmovcc<S: Source, W: Width>(cpu: &mut Cpu, op: &Op) -> R<()> {
    let value: W = S::get(cpu, op)?;
    let taken = flags::condition(op.imm as u8, cpu.flags);
    let value = if taken { value } else { cpu.reg(op.dst) };
    cpu.set_reg(op.dst, value);
    Ok(())
}

pub(crate) fn lahf(cpu: &mut Cpu, _: &Op) -> R<()> {
    cpu.set_reg(AH, flags::to_rflags(cpu.flags) as u8 | 2);
    Ok(())
}

pub(crate) fn sahf(cpu: &mut Cpu, _: &Op) -> R<()> {
    let low = u64::from(cpu.reg::<u8>(AH)) & (rflags::STATUS & 0xff);
    cpu.flags = flags::from_rflags(low) | cpu.flags & bit::OF;
    Ok(())
}

/// CLC, STC and CMC: `op.imm` 0, 1 and 2.
pub(crate) fn carry(cpu: &mut Cpu, op: &Op) -> R<()> {
    let carry = match op.imm {
        0 => false,
        1 => true,
        _ => cpu.flags & bit::CF == 0,
    };
    set_carry(cpu, carry);
    Ok(())
}

/// CLD and STD: `op.imm` is DF.
pub(crate) fn direction(cpu: &mut Cpu, op: &Op) -> R<()> {
    cpu.rflags = cpu.rflags & !rflags::DF | if op.imm != 0 { rflags::DF } else { 0 };
    Ok(())
}

// ---- decimal (not in 64-bit mode) --------------------------------------------------------------------

fn decimal_flags(cpu: &mut Cpu, al: u8, carry: bool, adjust: bool) {
    let value = native_flags(al);
    cpu.flags = value & (bit::SF | bit::ZF | bit::PF)
        | if carry { bit::CF } else { 0 }
        | if adjust { bit::AF } else { 0 };
}

fn native_flags(al: u8) -> flags::Flags {
    <u8 as Width>::alu::<native::Or>(al, 0, 0).1
}

/// DAA and DAS (SDM vol. 2).
pub(crate) fn decimal_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> R<()> {
    let old: u8 = cpu.reg(RAX);
    let (old_carry, old_adjust) = (cpu.flags & bit::CF != 0, cpu.flags & bit::AF != 0);
    let (mut al, mut carry) = (old, false);
    let step = |al: u8, by: u8| if SUBTRACT { al.overflowing_sub(by) } else { al.overflowing_add(by) };
    let adjust = old & 15 > 9 || old_adjust;
    if adjust {
        let (next, over) = step(al, 6);
        al = next;
        carry = old_carry || over;
    }
    if old > 0x99 || old_carry {
        al = step(al, 0x60).0;
        carry = true;
    } else if !SUBTRACT {
        carry = false;
    }
    cpu.set_reg(RAX, al);
    decimal_flags(cpu, al, carry, adjust);
    Ok(())
}

/// AAA and AAS.
pub(crate) fn ascii_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> R<()> {
    let ax: u16 = cpu.reg(RAX);
    let adjust = ax & 15 > 9 || cpu.flags & bit::AF != 0;
    let ax = match (adjust, SUBTRACT) {
        (false, _) => ax,
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(6).wrapping_sub(0x100),
    };
    cpu.set_reg(RAX, ax & 0xff0f);
    decimal_flags(cpu, (ax & 15) as u8, adjust, adjust);
    Ok(())
}

pub(crate) fn aam(cpu: &mut Cpu, op: &Op) -> R<()> {
    let (al, by) = (cpu.reg::<u8>(RAX), op.imm as u8);
    let (Some(high), Some(low)) = (al.checked_div(by), al.checked_rem(by)) else {
        return cpu.raise(vector::DE, None);
    };
    cpu.set_reg(RAX, u16::from(high) << 8 | u16::from(low));
    decimal_flags(cpu, low, false, false);
    Ok(())
}

pub(crate) fn aad(cpu: &mut Cpu, op: &Op) -> R<()> {
    let ax: u16 = cpu.reg(RAX);
    let al = (ax as u8).wrapping_add(((ax >> 8) as u8).wrapping_mul(op.imm as u8));
    cpu.set_reg(RAX, u16::from(al));
    decimal_flags(cpu, al, false, false);
    Ok(())
}
