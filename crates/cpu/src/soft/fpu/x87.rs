//! x87 instructions, executed by the host's x87.
//!
//! The guest's image is loaded with FXRSTOR64, the very instruction runs out of a table of all
//! encodings, FXSAVE64 takes the state back and FNINIT leaves nothing behind. Callers have checked
//! that no exception is pending where the instruction would wait, so the host never sees #MF.

use super::state::MXCSR_RESET;
use super::{Effect, Env, FpOp, Outcome, set_status_flags};
use core::arch::asm;

/// D8 to DF with a register operand: `arg` is `(opcode - 0xd8) * 64 + (modrm - 0xc0)`.
pub(super) fn register(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let slot = usize::from(op.arg & 0x1ff);
    let mut flags = (*env.flags & super::STATUS_FLAGS) | 2;
    // SAFETY: the image is 512 bytes, 64-byte aligned, with valid MXCSR bits; every slot of the table
    // is one x87 register instruction of two bytes and a return. It may write x87 state (emptied by
    // FNINIT), status flags and AX; the direction and system flags stay, as `flags` has only
    // status flags. XMM registers are declared through the C ABI's clobbers; MXCSR is put back.
    unsafe {
        asm!(
            "fxrstor64 [{image}]",
            "lea rcx, [rip + 3f]",
            "lea rcx, [rcx + rdx * 4]",
            "push rsi",
            "popfq",
            "call rcx",
            "pushfq",
            "pop rsi",
            "fxsave64 [{image}]",
            "fninit",
            "ldmxcsr [{mxcsr}]",
            "jmp 4f",
            ".balign 16",
            "3:",
            ".set .Lviv_x87, 0",
            ".rept 512",
            ".byte 0xd8 + .Lviv_x87 / 64, 0xc0 + .Lviv_x87 % 64",
            "ret",
            "nop",
            ".set .Lviv_x87, .Lviv_x87 + 1",
            ".endr",
            "4:",
            image = in(reg) env.fpu.as_mut_ptr(),
            mxcsr = in(reg) &MXCSR_RESET,
            inout("rdx") slot => _,
            inout("rsi") flags,
            // Written before the image is used again: no operand may share it.
            out("rcx") _,
            clobber_abi("C"),
        );
    }
    set_status_flags(env, flags);
    env.fpu.settle_mask();
    env.fpu.set_pointers(0, env.rip, 0);
    Ok(Effect::Done)
}

/// D8 to DF with a memory operand: `arg` is `operand-size prefix * 64 + (opcode - 0xd8) * 8 + reg`.
fn memory(op: &FpOp, env: &mut Env<'_>) {
    let slot = usize::from(op.arg & 0x7f);
    // SAFETY: as in `register`; each slot is one x87 instruction on [RDI]. The longest operand is the
    // 108 bytes of FSAVE, and the operand buffer has 512.
    unsafe {
        asm!(
            "fxrstor64 [{image}]",
            "lea rcx, [rip + 3f]",
            "lea rcx, [rcx + rdx * 4]",
            "call rcx",
            "fxsave64 [{image}]",
            "fninit",
            "ldmxcsr [{mxcsr}]",
            "jmp 4f",
            ".balign 16",
            "3:",
            ".set .Lviv_x87, 0",
            ".rept 64",
            ".byte 0xd8 + .Lviv_x87 / 8, 0x07 + .Lviv_x87 % 8 * 8",
            "ret",
            "nop",
            ".set .Lviv_x87, .Lviv_x87 + 1",
            ".endr",
            ".set .Lviv_x87, 0",
            ".rept 64",
            ".byte 0x66, 0xd8 + .Lviv_x87 / 8, 0x07 + .Lviv_x87 % 8 * 8",
            "ret",
            ".set .Lviv_x87, .Lviv_x87 + 1",
            ".endr",
            "4:",
            image = in(reg) env.fpu.as_mut_ptr(),
            mxcsr = in(reg) &MXCSR_RESET,
            inout("rdx") slot => _,
            in("rdi") env.mem.as_mut_ptr(),
            // Written before the image is used again: no operand may share it.
            out("rcx") _,
            clobber_abi("C"),
        );
    }
    env.fpu.settle_mask();
}

/// Loads, arithmetic and comparisons with a memory operand.
pub(super) fn load(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    memory(op, env);
    env.fpu.set_pointers(0, env.rip, 0);
    Ok(Effect::Done)
}

/// FST, FSTP, FIST, FISTP, FISTTP, FBSTP: an unmasked exception other than precision leaves memory alone.
pub(super) fn store(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    memory(op, env);
    env.fpu.set_pointers(0, env.rip, 0);
    if env.fpu.fsw() & !env.fpu.fcw() & 0x1f != 0 { Ok(Effect::NoStore) } else { Ok(Effect::Done) }
}

/// FLDCW, FLDENV, FRSTOR, FNSTENV, FNSAVE: they leave the saved pointers as they are or load them.
pub(super) fn environment(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    memory(op, env);
    env.fpu.settle_summary();
    Ok(Effect::Done)
}

/// FNINIT, FNCLEX and the instructions that do nothing any more (FNENI, FNDISI, FNSETPM).
pub(super) fn control(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    register(op, env)?;
    env.fpu.set_pointers(0, 0, 0);
    Ok(Effect::Done)
}

/// FNSTSW AX.
pub(super) fn fnstsw_ax(_op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let rax = &mut env.gprs[0];
    *rax = (*rax & !0xffff) | u64::from(env.fpu.fsw());
    Ok(Effect::Done)
}

/// FNSTSW m16.
pub(super) fn fnstsw(_op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.mem[..2].copy_from_slice(&env.fpu.fsw().to_le_bytes());
    Ok(Effect::Done)
}

/// FNSTCW m16.
pub(super) fn fnstcw(_op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.mem[..2].copy_from_slice(&env.fpu.fcw().to_le_bytes());
    Ok(Effect::Done)
}

/// WAIT: everything it does is in the checks.
pub(super) fn wait(_op: &FpOp, _env: &mut Env<'_>) -> Outcome {
    Ok(Effect::Done)
}
