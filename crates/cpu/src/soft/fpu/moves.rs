//! Moves: no arithmetic, no status.

use super::vector::zero;
use super::{Effect, Env, FpOp, Outcome, memory_u32, memory_u64, state};

/// MOVUPS, MOVAPS, MOVDQU, MOVDQA, LDDQU, MOVNTDQA…: all 128 bits to a register.
pub(super) fn load(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = op.vector_source(env);
    env.fpu.set_xmm(op.dst, value);
    Ok(Effect::Done)
}

/// The same towards `xmm/m128`, and the non-temporal stores.
pub(super) fn store(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = env.fpu.xmm(op.src);
    if op.in_memory() {
        state::store_vector(env.mem, value);
    } else {
        env.fpu.set_xmm(op.dst, value);
    }
    Ok(Effect::Done)
}

/// MOVSS xmm, xmm/m32: memory clears the rest, a register keeps it.
pub(super) fn movss_load(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    if op.in_memory() {
        env.fpu.set_xmm(op.dst, zero());
        env.fpu.set_xmm_u32(op.dst, 0, memory_u32(env.mem));
    } else {
        env.fpu.set_xmm_u32(op.dst, 0, env.fpu.xmm_u32(op.src, 0));
    }
    Ok(Effect::Done)
}

/// MOVSS xmm/m32, xmm.
pub(super) fn movss_store(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = env.fpu.xmm_u32(op.src, 0);
    if op.in_memory() {
        env.mem[..4].copy_from_slice(&value.to_le_bytes());
    } else {
        env.fpu.set_xmm_u32(op.dst, 0, value);
    }
    Ok(Effect::Done)
}

/// MOVSD xmm, xmm/m64: memory clears the rest, a register keeps it.
pub(super) fn movsd_load(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = op.low_source(env);
    env.fpu.set_xmm_u64(op.dst, 0, value);
    if op.in_memory() {
        env.fpu.set_xmm_u64(op.dst, 1, 0);
    }
    Ok(Effect::Done)
}

/// MOVSD xmm/m64, xmm; MOVLPS, MOVLPD to memory.
pub(super) fn movsd_store(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = env.fpu.xmm_u64(op.src, 0);
    if op.in_memory() {
        env.mem[..8].copy_from_slice(&value.to_le_bytes());
    } else {
        env.fpu.set_xmm_u64(op.dst, 0, value);
    }
    Ok(Effect::Done)
}

/// MOVQ xmm, xmm/m64 and xmm/m64, xmm between registers: clears the rest.
pub(super) fn movq_load(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = op.low_source(env);
    env.fpu.set_xmm_u64(op.dst, 0, value);
    env.fpu.set_xmm_u64(op.dst, 1, 0);
    Ok(Effect::Done)
}

/// MOVQ xmm/m64, xmm.
pub(super) fn movq_store(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = env.fpu.xmm_u64(op.src, 0);
    if op.in_memory() {
        env.mem[..8].copy_from_slice(&value.to_le_bytes());
    } else {
        env.fpu.set_xmm_u64(op.dst, 0, value);
        env.fpu.set_xmm_u64(op.dst, 1, 0);
    }
    Ok(Effect::Done)
}

/// MOVD, MOVQ from a general register or memory.
pub(super) fn from_general(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = op.general_source(env);
    env.fpu.set_xmm_u64(op.dst, 0, value);
    env.fpu.set_xmm_u64(op.dst, 1, 0);
    Ok(Effect::Done)
}

/// MOVD to a general register or memory.
pub(super) fn movd_to_general(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    op.set_general(env, env.fpu.xmm_u32(op.src, 0).into());
    Ok(Effect::Done)
}

/// MOVQ to a general register or memory.
pub(super) fn movq_to_general(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    op.set_general(env, env.fpu.xmm_u64(op.src, 0));
    Ok(Effect::Done)
}

/// MOVLPS, MOVLPD xmm, m64.
pub(super) fn load_low(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.set_xmm_u64(op.dst, 0, memory_u64(env.mem));
    Ok(Effect::Done)
}

/// MOVHPS, MOVHPD xmm, m64.
pub(super) fn load_high(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.set_xmm_u64(op.dst, 1, memory_u64(env.mem));
    Ok(Effect::Done)
}

/// MOVHPS, MOVHPD m64, xmm.
pub(super) fn store_high(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.mem[..8].copy_from_slice(&env.fpu.xmm_u64(op.src, 1).to_le_bytes());
    Ok(Effect::Done)
}

/// MOVHLPS.
pub(super) fn movhlps(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.set_xmm_u64(op.dst, 0, env.fpu.xmm_u64(op.src, 1));
    Ok(Effect::Done)
}

/// MOVLHPS.
pub(super) fn movlhps(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.fpu.set_xmm_u64(op.dst, 1, env.fpu.xmm_u64(op.src, 0));
    Ok(Effect::Done)
}

/// MOVDDUP.
pub(super) fn movddup(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = op.low_source(env);
    env.fpu.set_xmm_u64(op.dst, 0, value);
    env.fpu.set_xmm_u64(op.dst, 1, value);
    Ok(Effect::Done)
}

/// MOVNTI.
pub(super) fn movnti(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let value = env.gprs[usize::from(op.src & 15)];
    env.mem[..8].copy_from_slice(&value.to_le_bytes());
    Ok(Effect::Done)
}

/// MASKMOVDQU: the operand was loaded; bytes whose mask has its sign bit set are replaced.
pub(super) fn maskmovdqu(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    for half in 0..2 {
        let (data, mask) = (env.fpu.xmm_u64(op.dst, half), env.fpu.xmm_u64(op.src, half));
        masked_bytes(&mut env.mem[8 * half..8 * half + 8], data, mask);
    }
    Ok(Effect::Done)
}

/// Replaces those of eight bytes whose mask byte has its sign bit set.
pub(super) fn masked_bytes(place: &mut [u8], data: u64, mask: u64) {
    for ((byte, new), select) in place.iter_mut().zip(data.to_le_bytes()).zip(mask.to_le_bytes()) {
        if select & 0x80 != 0 {
            *byte = new;
        }
    }
}

/// Fences, prefetches: memory is always in order here.
pub(super) fn nothing(_op: &FpOp, _env: &mut Env<'_>) -> Outcome {
    Ok(Effect::Done)
}
