//! MMX: the host's MMX unit on the guest's values, with EMMS after each instruction.

use super::moves::masked_bytes;
use super::vector::under_mxcsr;
use super::{Effect, Env, FpOp, Outcome, memory_u64};
use core::arch::asm;

/// The source operand: an MMX register or memory. Call after `enter_mmx`.
#[inline]
fn source(op: &FpOp, env: &Env<'_>) -> u64 {
    if op.in_memory() { memory_u64(env.mem) } else { env.fpu.mm(op.src) }
}

macro_rules! mmx {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            env.fpu.enter_mmx();
            let source = source(op, env);
            binary(op, env, source, |target, source| {
                let mut value = target;
                // SAFETY: one instruction on two MMX registers; EMMS gives the x87 back empty.
                unsafe {
                    asm!(
                        "movq mm0, {d}",
                        "movq mm1, {s}",
                        concat!(stringify!($name), " mm0, mm1"),
                        "movq {d}, mm0",
                        "emms",
                        d = inout(reg) value,
                        s = in(reg) source,
                        out("mm0") _, out("mm1") _, out("st(0)") _, out("st(1)") _,
                        options(nomem, nostack, preserves_flags),
                    );
                }
                value
            })
        }
    )*};
}

/// Applies `native` to the target register.
#[inline(always)]
fn binary(op: &FpOp, env: &mut Env<'_>, source: u64, native: impl Fn(u64, u64) -> u64) -> Outcome {
    let value = native(env.fpu.mm(op.dst), source);
    env.fpu.set_mm(op.dst, value);
    Ok(Effect::Done)
}

mmx! {
    punpcklbw punpcklwd punpckldq punpckhbw punpckhwd punpckhdq packsswb packssdw packuswb
    pcmpgtb pcmpgtw pcmpgtd pcmpeqb pcmpeqw pcmpeqd
    psrlw psrld psrlq psraw psrad psllw pslld psllq
    paddb paddw paddd paddq psubb psubw psubd psubq
    paddsb paddsw paddusb paddusw psubsb psubsw psubusb psubusw
    pmullw pmulhw pmulhuw pmuludq pmaddwd pmulhrsw pmaddubsw psadbw
    pand pandn por pxor pavgb pavgw pminub pminsw pmaxub pmaxsw
    pshufb phaddw phaddd phaddsw phsubw phsubd phsubsw psignb psignw psignd pabsb pabsw pabsd
}

/// Shifts by an immediate: the same as by a register that holds it.
macro_rules! shift {
    ($($name:ident: $by_register:ident;)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            env.mem[..8].copy_from_slice(&u64::from(op.imm).to_le_bytes());
            $by_register(&FpOp { bits: op.bits | super::MEM, ..*op }, env)
        }
    )*};
}

shift! {
    psrlw_imm: psrlw; psrld_imm: psrld; psrlq_imm: psrlq;
    psraw_imm: psraw; psrad_imm: psrad;
    psllw_imm: psllw; pslld_imm: pslld; psllq_imm: psllq;
}

/// PSHUFW.
pub(super) fn pshufw(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let source = source(op, env);
    let lane = |index: u8| source >> (16 * (op.imm >> (2 * index) & 3)) & 0xffff;
    env.fpu.set_mm(op.dst, lane(0) | lane(1) << 16 | lane(2) << 32 | lane(3) << 48);
    Ok(Effect::Done)
}

/// PALIGNR.
pub(super) fn palignr(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let joined = u128::from(env.fpu.mm(op.dst)) << 64 | u128::from(source(op, env));
    let value = joined.checked_shr(8 * u32::from(op.imm)).unwrap_or(0);
    env.fpu.set_mm(op.dst, value as u64);
    Ok(Effect::Done)
}

/// PINSRW.
pub(super) fn pinsrw(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let shift = 16 * (op.imm & 3);
    let value = (op.general_source(env) & 0xffff) << shift;
    let kept = env.fpu.mm(op.dst) & !(0xffff << shift);
    env.fpu.set_mm(op.dst, kept | value);
    Ok(Effect::Done)
}

/// PEXTRW.
pub(super) fn pextrw(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let value = env.fpu.mm(op.src) >> (16 * (op.imm & 3)) & 0xffff;
    op.set_general(env, value);
    Ok(Effect::Done)
}

/// PMOVMSKB.
pub(super) fn pmovmskb(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let bytes = env.fpu.mm(op.src).to_le_bytes();
    let mask = bytes.iter().rev().fold(0, |mask, byte| mask << 1 | u64::from(byte >> 7));
    op.set_general(env, mask);
    Ok(Effect::Done)
}

/// MOVD, MOVQ from a general register or memory.
pub(super) fn from_general(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let value = op.general_source(env);
    env.fpu.set_mm(op.dst, value);
    Ok(Effect::Done)
}

/// MOVD to a general register or memory.
pub(super) fn movd_to_general(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let value = env.fpu.mm(op.src) & 0xffff_ffff;
    op.set_general(env, value);
    Ok(Effect::Done)
}

/// MOVQ to a general register or memory; MOVNTQ.
pub(super) fn movq_to_general(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let value = env.fpu.mm(op.src);
    op.set_general(env, value);
    Ok(Effect::Done)
}

/// MOVQ mm, mm/m64.
pub(super) fn load(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let value = source(op, env);
    env.fpu.set_mm(op.dst, value);
    Ok(Effect::Done)
}

/// MOVQ mm/m64, mm.
pub(super) fn store(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    let value = env.fpu.mm(op.src);
    if op.in_memory() {
        env.mem[..8].copy_from_slice(&value.to_le_bytes());
    } else {
        env.fpu.set_mm(op.dst, value);
    }
    Ok(Effect::Done)
}

/// MASKMOVQ: the operand was loaded; bytes whose mask has its sign bit set are replaced.
pub(super) fn maskmovq(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    masked_bytes(&mut env.mem[..8], env.fpu.mm(op.dst), env.fpu.mm(op.src));
    Ok(Effect::Done)
}

/// MOVQ2DQ.
pub(super) fn movq2dq(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    env.fpu.set_xmm_u64(op.dst, 0, env.fpu.mm(op.src));
    env.fpu.set_xmm_u64(op.dst, 1, 0);
    Ok(Effect::Done)
}

/// MOVDQ2Q.
pub(super) fn movdq2q(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    env.fpu.set_mm(op.dst, env.fpu.xmm_u64(op.src, 0));
    Ok(Effect::Done)
}

/// EMMS.
pub(super) fn emms(_op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.enter_mmx();
    env.fpu.set_ftw(0);
    Ok(Effect::Done)
}

/// CVTPI2PS, CVTPI2PD.
macro_rules! from_mmx {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            if !op.in_memory() {
                env.fpu.enter_mmx();
            }
            let source = source(op, env);
            let target = env.fpu.xmm(op.dst);
            let value = under_mxcsr(env, || {
                let mut value = target;
                // SAFETY: one conversion on declared registers under a valid MXCSR with all exceptions
                // masked; EMMS gives the x87 back empty, the caller puts the control bits back.
                unsafe {
                    asm!(
                        "movq mm0, {s}",
                        concat!(stringify!($name), " {d}, mm0"),
                        "emms",
                        d = inout(xmm_reg) value,
                        s = in(reg) source,
                        out("mm0") _, out("st(0)") _,
                        options(nostack),
                    );
                }
                value
            })?;
            env.fpu.set_xmm(op.dst, value);
            Ok(Effect::Done)
        }
    )*};
}

from_mmx! { cvtpi2ps cvtpi2pd }

/// CVT(T)PS2PI, CVT(T)PD2PI.
macro_rules! to_mmx {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            // Also if the conversion then raises #XM.
            env.fpu.enter_mmx();
            let source = op.vector_source(env);
            let value: u64 = under_mxcsr(env, || {
                let value;
                // SAFETY: as in `from_mmx`.
                unsafe {
                    asm!(
                        concat!(stringify!($name), " mm0, {s}"),
                        "movq {d}, mm0",
                        "emms",
                        d = out(reg) value,
                        s = in(xmm_reg) source,
                        out("mm0") _, out("st(0)") _,
                        options(nostack),
                    );
                }
                value
            })?;
            env.fpu.set_mm(op.dst, value);
            Ok(Effect::Done)
        }
    )*};
}

to_mmx! { cvtps2pi cvttps2pi cvtpd2pi cvttpd2pi }
