//! Vector instructions on XMM registers: `xmm, xmm/m128` and `xmm, xmm/m128, imm8`.
//!
//! Integer and logical instructions touch no status; arithmetic runs under the guest's MXCSR with all
//! exceptions masked, and the flags that it raised decide what the guest sees.

use super::state::MXCSR_RESET;
use super::{CR4_OSXMMEXCPT, Effect, Env, FpFault, FpOp, Outcome};
use core::arch::asm;
use core::arch::x86_64::{__m128i, _mm_set_epi64x, _mm_setzero_si128};

/// `op xmm, xmm/m` without any status.
macro_rules! packed {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let mut value = env.fpu.xmm(op.dst);
            let source = op.vector_source(env);
            // SAFETY: one instruction on two declared vector registers.
            unsafe {
                asm!(
                    concat!(stringify!($name), " {d}, {s}"),
                    d = inout(xmm_reg) value,
                    s = in(xmm_reg) source,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            env.fpu.set_xmm(op.dst, value);
            Ok(Effect::Done)
        }
    )*};
}

packed! {
    andps andpd andnps andnpd orps orpd xorps xorpd unpcklps unpcklpd unpckhps unpckhpd
    movsldup movshdup rcpps rcpss rsqrtps rsqrtss
    punpcklbw punpcklwd punpckldq punpcklqdq punpckhbw punpckhwd punpckhdq punpckhqdq
    packsswb packssdw packuswb packusdw
    pcmpgtb pcmpgtw pcmpgtd pcmpgtq pcmpeqb pcmpeqw pcmpeqd pcmpeqq
    psrlw psrld psrlq psraw psrad psllw pslld psllq
    paddb paddw paddd paddq psubb psubw psubd psubq
    paddsb paddsw paddusb paddusw psubsb psubsw psubusb psubusw
    pmullw pmulhw pmulhuw pmuludq pmaddwd pmulld pmuldq pmulhrsw pmaddubsw psadbw
    pand pandn por pxor pavgb pavgw
    pminub pminsw pminsb pminsd pminuw pminud pmaxub pmaxsw pmaxsb pmaxsd pmaxuw pmaxud
    pshufb phaddw phaddd phaddsw phsubw phsubd phsubsw psignb psignw psignd pabsb pabsw pabsd
    pmovsxbw pmovsxbd pmovsxbq pmovsxwd pmovsxwq pmovsxdq
    pmovzxbw pmovzxbd pmovzxbq pmovzxwd pmovzxwq pmovzxdq
    phminposuw aesimc aesenc aesenclast aesdec aesdeclast
}

/// Shifts by an immediate: the same as by a register that holds it.
macro_rules! shift {
    ($($name:ident: $by_register:literal;)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let mut value = env.fpu.xmm(op.dst);
            // SAFETY: SSE2 is part of x86-64.
            let count = unsafe { _mm_set_epi64x(0, op.imm.into()) };
            // SAFETY: one instruction on two declared vector registers.
            unsafe {
                asm!(
                    concat!($by_register, " {d}, {s}"),
                    d = inout(xmm_reg) value,
                    s = in(xmm_reg) count,
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            env.fpu.set_xmm(op.dst, value);
            Ok(Effect::Done)
        }
    )*};
}

shift! {
    psrlw_imm: "psrlw"; psrld_imm: "psrld"; psrlq_imm: "psrlq";
    psraw_imm: "psraw"; psrad_imm: "psrad";
    psllw_imm: "psllw"; pslld_imm: "pslld"; psllq_imm: "psllq";
}

/// The mask of these is XMM0.
macro_rules! blend {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let mut value = env.fpu.xmm(op.dst);
            // SAFETY: one instruction on three declared vector registers.
            unsafe {
                asm!(
                    concat!(stringify!($name), " xmm1, xmm2"),
                    in("xmm0") env.fpu.xmm(0),
                    inout("xmm1") value,
                    in("xmm2") op.vector_source(env),
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            env.fpu.set_xmm(op.dst, value);
            Ok(Effect::Done)
        }
    )*};
}

blend! { pblendvb blendvps blendvpd }

/// `op xmm0, xmm1, imm8` given by its bytes: one slot for each value of the immediate.
macro_rules! packed_imm {
    ($($name:ident: $bytes:literal;)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let mut value = env.fpu.xmm(op.dst);
            // SAFETY: the table has a slot of eight bytes (instruction and return) for each immediate;
            // the instruction works on XMM0 and XMM1 only.
            unsafe {
                asm!(
                    "lea {t}, [rip + 3f]",
                    "lea {t}, [{t} + {i} * 8]",
                    "call {t}",
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
                    t = out(reg) _,
                    i = in(reg) u64::from(op.imm),
                    inout("xmm0") value,
                    in("xmm1") op.vector_source(env),
                );
            }
            env.fpu.set_xmm(op.dst, value);
            Ok(Effect::Done)
        }
    )*};
}

packed_imm! {
    pshufd: "0x66, 0x0f, 0x70, 0xc1";
    pshufhw: "0xf3, 0x0f, 0x70, 0xc1";
    pshuflw: "0xf2, 0x0f, 0x70, 0xc1";
    shufps: "0x0f, 0xc6, 0xc1";
    shufpd: "0x66, 0x0f, 0xc6, 0xc1";
    psrldq: "0x66, 0x0f, 0x73, 0xd8";
    pslldq: "0x66, 0x0f, 0x73, 0xf8";
    palignr: "0x66, 0x0f, 0x3a, 0x0f, 0xc1";
    blendps: "0x66, 0x0f, 0x3a, 0x0c, 0xc1";
    blendpd: "0x66, 0x0f, 0x3a, 0x0d, 0xc1";
    pblendw: "0x66, 0x0f, 0x3a, 0x0e, 0xc1";
    mpsadbw: "0x66, 0x0f, 0x3a, 0x42, 0xc1";
    pclmulqdq: "0x66, 0x0f, 0x3a, 0x44, 0xc1";
    aeskeygenassist: "0x66, 0x0f, 0x3a, 0xdf, 0xc1";
    insertps_reg: "0x66, 0x0f, 0x3a, 0x21, 0xc1";
}

/// MXCSR: exception flags.
const FLAGS: u32 = 0x3f;
/// MXCSR: exception masks.
const MASKS: u32 = 0x1f80;
/// Invalid, denormal, divide by zero: found before the result is computed.
const BEFORE: u32 = 0x07;
const UNDERFLOW: u32 = 0x10;
const FLUSH_TO_ZERO: u32 = 0x8000;

/// Runs `native`, which consists of assembly only, under the guest's MXCSR and records what it raised. It
/// must have no lasting effects: it may run twice.
#[inline(always)]
pub(super) fn under_mxcsr<T>(env: &mut Env<'_>, mut native: impl FnMut() -> T) -> Result<T, FpFault> {
    let guest = env.fpu.mxcsr();
    if guest & MASKS != MASKS {
        return under_unmasked(env, native);
    }
    env.fpu.load_mxcsr();
    let value = native();
    env.fpu.store_mxcsr();
    // With default control bits the host's register may keep the guest's flags: Rust code does not look at them.
    if guest & !FLAGS != MXCSR_RESET {
        set_host_mxcsr(MXCSR_RESET);
    }
    Ok(value)
}

/// The same for a guest that wants exceptions: runs with all of them masked, and the flags tell whether one
/// would have come.
#[cold]
#[inline(never)]
fn under_unmasked<T>(env: &mut Env<'_>, mut native: impl FnMut() -> T) -> Result<T, FpFault> {
    let guest = env.fpu.mxcsr();
    set_host_mxcsr((guest | MASKS) & !FLAGS);
    let value = native();
    let mut raised = host_mxcsr() & FLAGS;
    let unmasked = !(guest >> 7) & FLAGS;
    if unmasked & UNDERFLOW != 0 {
        // Unmasked, underflow means tiny, exact or not. Flushing shows every tiny result.
        set_host_mxcsr((guest | MASKS | FLUSH_TO_ZERO) & !FLAGS);
        native();
        raised |= host_mxcsr() & UNDERFLOW;
    }
    set_host_mxcsr(MXCSR_RESET);
    if raised & unmasked & BEFORE != 0 {
        raised &= BEFORE;
    }
    env.fpu.set_mxcsr(guest | raised);
    if raised & unmasked == 0 {
        Ok(value)
    } else if env.cr4 & CR4_OSXMMEXCPT != 0 {
        Err(FpFault::Xm)
    } else {
        Err(FpFault::Ud)
    }
}

#[inline(always)]
fn host_mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: stores four bytes.
    unsafe { asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack, preserves_flags)) }
    value
}

/// Rust code expects the default rounding and masks: whoever sets others puts them back.
#[inline(always)]
fn set_host_mxcsr(value: u32) {
    // SAFETY: guests cannot set reserved bits, and callers mask all exceptions.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, preserves_flags)) }
}

/// `op xmm, xmm/m` that rounds or raises exceptions.
macro_rules! float {
    ($($name:ident)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let target = env.fpu.xmm(op.dst);
            let source = op.vector_source(env);
            let value = under_mxcsr(env, || {
                let mut value = target;
                // SAFETY: one instruction on two declared vector registers under a valid MXCSR with
                // all exceptions masked; the caller puts the host's control bits back.
                unsafe {
                    asm!(
                        concat!(stringify!($name), " {d}, {s}"),
                        d = inout(xmm_reg) value,
                        s = in(xmm_reg) source,
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

float! {
    addps addpd addss addsd subps subpd subss subsd mulps mulpd mulss mulsd divps divpd divss divsd
    minps minpd minss minsd maxps maxpd maxss maxsd sqrtps sqrtpd sqrtss sqrtsd
    haddps haddpd hsubps hsubpd addsubps addsubpd
    cvtps2pd cvtpd2ps cvtss2sd cvtsd2ss cvtdq2ps cvtps2dq cvttps2dq cvttpd2dq cvtdq2pd cvtpd2dq
}

/// The same with an immediate, as in `packed_imm`.
macro_rules! float_imm {
    ($($name:ident: $bytes:literal;)*) => {$(
        pub(super) fn $name(op: &FpOp, env: &mut Env<'_>) -> Outcome {
            let target = env.fpu.xmm(op.dst);
            let source = op.vector_source(env);
            let value = under_mxcsr(env, || {
                let mut value = target;
                // SAFETY: as in `packed_imm`, under a valid MXCSR with all exceptions masked; the
                // caller puts the host's control bits back.
                unsafe {
                    asm!(
                        "lea {t}, [rip + 3f]",
                        "lea {t}, [{t} + {i} * 8]",
                        "call {t}",
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
                        t = out(reg) _,
                        i = in(reg) u64::from(op.imm),
                        inout("xmm0") value,
                        in("xmm1") source,
                    );
                }
                value
            })?;
            env.fpu.set_xmm(op.dst, value);
            Ok(Effect::Done)
        }
    )*};
}

float_imm! {
    cmpps: "0x0f, 0xc2, 0xc1";
    cmppd: "0x66, 0x0f, 0xc2, 0xc1";
    cmpss: "0xf3, 0x0f, 0xc2, 0xc1";
    cmpsd: "0xf2, 0x0f, 0xc2, 0xc1";
    roundps: "0x66, 0x0f, 0x3a, 0x08, 0xc1";
    roundpd: "0x66, 0x0f, 0x3a, 0x09, 0xc1";
    roundss: "0x66, 0x0f, 0x3a, 0x0a, 0xc1";
    roundsd: "0x66, 0x0f, 0x3a, 0x0b, 0xc1";
    dpps: "0x66, 0x0f, 0x3a, 0x40, 0xc1";
    dppd: "0x66, 0x0f, 0x3a, 0x41, 0xc1";
}

/// INSERTPS: with a memory operand the source lane is always the one that was loaded.
pub(super) fn insertps(op: &FpOp, env: &mut Env<'_>) -> Outcome {
    let mut op = *op;
    if op.in_memory() {
        op.imm &= 0x3f;
    }
    insertps_reg(&op, env)
}

/// A vector of zeros.
pub(super) fn zero() -> __m128i {
    // SAFETY: SSE2 is part of x86-64.
    unsafe { _mm_setzero_si128() }
}
