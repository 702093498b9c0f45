//! Instructions between vector registers and general registers or flags: conversions, comparisons,
//! sign masks, insertion and extraction.

use super::vector::under_mxcsr;
use super::{Effect, Env, FpOp, Outcome, WIDE, set_status_flags};
use core::arch::asm;

/// CVTSI2SS, CVTSI2SD.
macro_rules! from_integer {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let target = env.fpu.xmm(op.dst);
            let source = op.general_source(env);
            let wide = op.bits & WIDE != 0;
            let value = under_mxcsr(env, || {
                let mut value = target;
                // SAFETY: one conversion on declared registers under a valid MXCSR with all
                // exceptions masked; the caller puts the host's control bits back.
                unsafe {
                    if wide {
                        asm!( concat!(stringify!($name), " {d}, {s}"), d = inout(xmm_reg) value, s = in(reg) source, options(nostack),
                        );
                    } else {
                        asm!( concat!(stringify!($name), " {d}, {s:e}"), d = inout(xmm_reg) value, s = in(reg) source, options(nostack),
                        );
                    }
                }
                value
            })?;
            env.fpu.set_xmm(op.dst, value);
            Ok(Effect::Done)
        }
    )*};
}

from_integer! { cvtsi2ss cvtsi2sd }

/// CVT(T)SS2SI, CVT(T)SD2SI.
macro_rules! to_integer {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let source = op.vector_source(env);
            let wide = op.bits & WIDE != 0;
            let value: u64 = under_mxcsr(env, || {
                let value;
                // SAFETY: one conversion on declared registers under a valid MXCSR with all
                // exceptions masked; the caller puts the host's control bits back.
                unsafe {
                    if wide {
                        asm!( concat!(stringify!($name), " {d}, {s}"), d = out(reg) value, s = in(xmm_reg) source, options(nostack),
                        );
                    } else {
                        asm!( concat!(stringify!($name), " {d:e}, {s}"), d = out(reg) value, s = in(xmm_reg) source, options(nostack),
                        );
                    }
                }
                value
            })?;
            env.gprs[usize::from(op.dst & 15)] = value;
            Ok(Effect::Done)
        }
    )*};
}

to_integer! { cvtss2si cvtsd2si cvttss2si cvttsd2si }

/// (U)COMISS, (U)COMISD.
macro_rules! compare {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let left = env.fpu.xmm(op.dst);
            let right = op.vector_source(env);
            let flags: u64 = under_mxcsr(env, || {
                let flags;
                // SAFETY: one comparison of declared registers under a valid MXCSR with all
                // exceptions masked; the caller puts the host's control bits back.
                unsafe {
                    asm!(
                        concat!(stringify!($name), " {a}, {b}"),
                        "pushfq",
                        "pop {f}",
                        a = in(xmm_reg) left,
                        b = in(xmm_reg) right,
                        f = out(reg) flags,
                    );
                }
                flags
            })?;
            set_status_flags(env, flags);
            Ok(Effect::Done)
        }
    )*};
}

compare! { ucomiss ucomisd comiss comisd }

/// PTEST.
pub(super) fn ptest(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let flags: u64;
    // SAFETY: one comparison of declared registers.
    unsafe {
        asm!(
            "ptest {a}, {b}",
            "pushfq",
            "pop {f}",
            a = in(xmm_reg) env.fpu.xmm(op.dst),
            b = in(xmm_reg) op.vector_source(env),
            f = out(reg) flags,
        );
    }
    set_status_flags(env, flags);
    Ok(Effect::Done)
}

/// Sign masks into a general register.
macro_rules! mask {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let value: u64;
            // SAFETY: one instruction on declared registers.
            unsafe {
                asm!(
                    concat!(stringify!($name), " {d:e}, {s}"),
                    d = out(reg) value,
                    s = in(xmm_reg) env.fpu.xmm(op.src),
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            env.gprs[usize::from(op.dst & 15)] = value;
            Ok(Effect::Done)
        }
    )*};
}

mask! { pmovmskb movmskps movmskpd }

/// PEXTRB.
pub(super) fn pextrb(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let half = env.fpu.xmm_u64(op.src, usize::from(op.imm >> 3 & 1));
    op.set_general(env, half >> (8 * (op.imm & 7)) & 0xff);
    Ok(Effect::Done)
}

/// PEXTRW, both encodings.
pub(super) fn pextrw(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let half = env.fpu.xmm_u64(op.src, usize::from(op.imm >> 2 & 1));
    op.set_general(env, half >> (16 * (op.imm & 3)) & 0xffff);
    Ok(Effect::Done)
}

/// PEXTRD, EXTRACTPS.
pub(super) fn pextrd(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    op.set_general(env, env.fpu.xmm_u32(op.src, usize::from(op.imm)).into());
    Ok(Effect::Done)
}

/// PEXTRQ.
pub(super) fn pextrq(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    op.set_general(env, env.fpu.xmm_u64(op.src, usize::from(op.imm)));
    Ok(Effect::Done)
}

/// Replaces the `bits`-wide lane `lane` of an XMM register.
fn insert(op: &FpOp, env: &mut Env<'_>, bits: u32, lane: u32, value: u64) -> Outcome {
    let per_half = 64 / bits;
    let half = ((lane / per_half) & 1) as usize;
    let shift = lane % per_half * bits;
    let field = (u64::MAX >> (64 - bits)) << shift;
    let old = env.fpu.xmm_u64(op.dst, half);
    env.fpu.set_xmm_u64(op.dst, half, (old & !field) | (value << shift & field));
    Ok(Effect::Done)
}

/// PINSRB.
pub(super) fn pinsrb(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = op.general_source(env);
    insert(op, env, 8, (op.imm & 15).into(), value)
}

/// PINSRW.
pub(super) fn pinsrw(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = op.general_source(env);
    insert(op, env, 16, (op.imm & 7).into(), value)
}

/// PINSRD.
pub(super) fn pinsrd(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = op.general_source(env);
    insert(op, env, 32, (op.imm & 3).into(), value)
}

/// PINSRQ.
pub(super) fn pinsrq(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = op.general_source(env);
    env.fpu.set_xmm_u64(op.dst, usize::from(op.imm), value);
    Ok(Effect::Done)
}
