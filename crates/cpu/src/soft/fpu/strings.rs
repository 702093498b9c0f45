//! SSE4.2 string comparisons: PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM.

use super::{Effect, Env, FpOp, Outcome, WIDE, set_status_flags};
use core::arch::asm;
use core::arch::x86_64::__m128i;

/// What one comparison gives: RCX, XMM0, RFLAGS.
struct Compared {
    index: u64,
    mask: __m128i,
    flags: u64,
}

macro_rules! compare {
    ($($name:ident: $bytes:literal;)*) => {$(
        fn $name(a: __m128i, b: __m128i, lengths: (u64, u64), control: u8) -> Compared {
            let (index, mask, flags);
            // SAFETY: the table has a slot of eight bytes (instruction and return) for each value of
            // the control byte; the instruction writes RCX or XMM0 and the status flags.
            unsafe {
                asm!(
                    "lea r8, [rip + 3f]",
                    "lea r8, [r8 + r9 * 8]",
                    "xor ecx, ecx",
                    "call r8",
                    "pushfq",
                    "pop r8",
                    "jmp 4f",
                    ".balign 16",
                    "3:",
                    ".set .Lviv_imm, 0",
                    ".rept 256",
                    concat!(".byte ", $bytes, ", .Lviv_imm"),
                    "ret",
                    ".balign 8",
                    ".set .Lviv_imm, .Lviv_imm + 1",
                    ".endr",
                    "4:",
                    in("xmm1") a,
                    in("xmm2") b,
                    in("rax") lengths.0,
                    in("rdx") lengths.1,
                    in("r9") u64::from(control),
                    out("r8") flags,
                    out("rcx") index,
                    out("xmm0") mask,
                );
            }
            Compared { index, mask, flags }
        }
    )*};
}

compare! {
    estrm: "0x66, 0x0f, 0x3a, 0x60, 0xca";
    estrm_wide: "0x66, 0x48, 0x0f, 0x3a, 0x60, 0xca";
    estri: "0x66, 0x0f, 0x3a, 0x61, 0xca";
    estri_wide: "0x66, 0x48, 0x0f, 0x3a, 0x61, 0xca";
    istrm: "0x66, 0x0f, 0x3a, 0x62, 0xca";
    istri: "0x66, 0x0f, 0x3a, 0x63, 0xca";
}

type Compare = fn(__m128i, __m128i, (u64, u64), u8) -> Compared;

fn compare(op: &FpOp, env: &mut Env<'_>, narrow: Compare, wide: Compare) -> Compared {
    let native = if op.bits & WIDE != 0 { wide } else { narrow };
    let lengths = (env.gprs[0], env.gprs[2]);
    let result = native(env.fpu.xmm(op.dst), op.vector_source(env), lengths, op.imm);
    set_status_flags(env, result.flags);
    result
}

pub(super) fn pcmpestrm(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let result = compare(op, env, estrm, estrm_wide);
    env.fpu.set_xmm(0, result.mask);
    Ok(Effect::Done)
}

pub(super) fn pcmpestri(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.gprs[1] = compare(op, env, estri, estri_wide).index;
    Ok(Effect::Done)
}

pub(super) fn pcmpistrm(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let result = compare(op, env, istrm, istrm);
    env.fpu.set_xmm(0, result.mask);
    Ok(Effect::Done)
}

pub(super) fn pcmpistri(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    env.gprs[1] = compare(op, env, istri, istri).index;
    Ok(Effect::Done)
}
