//! The table of instructions: which unit an instruction belongs to and what runs it.
//!
//! Operand kinds, sizes and directions come from the decoder. The third column of an x87 row is the
//! place of its encoding in the tables of [`super::x87`]; the tests check it against the decoder's.

use super::{ALIGN16, FLAGS, FpOp, LOAD, LONG, MEM, Run, STORE, Unit, WIDE};
use super::{mmx, moves, save, scalar, strings, vector, x87};
use iced_x86::{Code, CodeSize, CpuidFeature, Instruction, Mnemonic, OpKind};

/// Unit, function and argument of an instruction; `None` if it is none of ours.
#[rustfmt::skip]
pub(super) fn row(code: Code) -> Option<(Unit, Run, u16)> {
    use Code::*;
    use Unit::{Fxsr, Mmx, Plain, Sse, SseMmx, X87, X87NoWait};
    let row: (Unit, Run, u16) = match code {
        Fadd_m32fp => (X87, x87::load, 0x0),
        Fmul_m32fp => (X87, x87::load, 0x1),
        Fcom_m32fp => (X87, x87::load, 0x2),
        Fcomp_m32fp => (X87, x87::load, 0x3),
        Fsub_m32fp => (X87, x87::load, 0x4),
        Fsubr_m32fp => (X87, x87::load, 0x5),
        Fdiv_m32fp => (X87, x87::load, 0x6),
        Fdivr_m32fp => (X87, x87::load, 0x7),
        Fld_m32fp => (X87, x87::load, 0x8),
        Fiadd_m32int => (X87, x87::load, 0x10),
        Fimul_m32int => (X87, x87::load, 0x11),
        Ficom_m32int => (X87, x87::load, 0x12),
        Ficomp_m32int => (X87, x87::load, 0x13),
        Fisub_m32int => (X87, x87::load, 0x14),
        Fisubr_m32int => (X87, x87::load, 0x15),
        Fidiv_m32int => (X87, x87::load, 0x16),
        Fidivr_m32int => (X87, x87::load, 0x17),
        Fild_m32int => (X87, x87::load, 0x18),
        Fld_m80fp => (X87, x87::load, 0x1d),
        Fadd_m64fp => (X87, x87::load, 0x20),
        Fmul_m64fp => (X87, x87::load, 0x21),
        Fcom_m64fp => (X87, x87::load, 0x22),
        Fcomp_m64fp => (X87, x87::load, 0x23),
        Fsub_m64fp => (X87, x87::load, 0x24),
        Fsubr_m64fp => (X87, x87::load, 0x25),
        Fdiv_m64fp => (X87, x87::load, 0x26),
        Fdivr_m64fp => (X87, x87::load, 0x27),
        Fld_m64fp => (X87, x87::load, 0x28),
        Fiadd_m16int => (X87, x87::load, 0x30),
        Fimul_m16int => (X87, x87::load, 0x31),
        Ficom_m16int => (X87, x87::load, 0x32),
        Ficomp_m16int => (X87, x87::load, 0x33),
        Fisub_m16int => (X87, x87::load, 0x34),
        Fisubr_m16int => (X87, x87::load, 0x35),
        Fidiv_m16int => (X87, x87::load, 0x36),
        Fidivr_m16int => (X87, x87::load, 0x37),
        Fild_m16int => (X87, x87::load, 0x38),
        Fbld_m80bcd => (X87, x87::load, 0x3c),
        Fild_m64int => (X87, x87::load, 0x3d),
        Fadd_st0_sti => (X87, x87::register, 0x0),
        Fmul_st0_sti => (X87, x87::register, 0x8),
        Fcom_st0_sti => (X87, x87::register, 0x10),
        Fcomp_st0_sti => (X87, x87::register, 0x18),
        Fsub_st0_sti => (X87, x87::register, 0x20),
        Fsubr_st0_sti => (X87, x87::register, 0x28),
        Fdiv_st0_sti => (X87, x87::register, 0x30),
        Fdivr_st0_sti => (X87, x87::register, 0x38),
        Fld_sti => (X87, x87::register, 0x40),
        Fxch_st0_sti => (X87, x87::register, 0x48),
        Fnop => (X87, x87::register, 0x50),
        Fstpnce_sti => (X87, x87::register, 0x58),
        Fchs => (X87, x87::register, 0x60),
        Fabs => (X87, x87::register, 0x61),
        Ftst => (X87, x87::register, 0x64),
        Fxam => (X87, x87::register, 0x65),
        Fld1 => (X87, x87::register, 0x68),
        Fldl2t => (X87, x87::register, 0x69),
        Fldl2e => (X87, x87::register, 0x6a),
        Fldpi => (X87, x87::register, 0x6b),
        Fldlg2 => (X87, x87::register, 0x6c),
        Fldln2 => (X87, x87::register, 0x6d),
        Fldz => (X87, x87::register, 0x6e),
        F2xm1 => (X87, x87::register, 0x70),
        Fyl2x => (X87, x87::register, 0x71),
        Fptan => (X87, x87::register, 0x72),
        Fpatan => (X87, x87::register, 0x73),
        Fxtract => (X87, x87::register, 0x74),
        Fprem1 => (X87, x87::register, 0x75),
        Fdecstp => (X87, x87::register, 0x76),
        Fincstp => (X87, x87::register, 0x77),
        Fprem => (X87, x87::register, 0x78),
        Fyl2xp1 => (X87, x87::register, 0x79),
        Fsqrt => (X87, x87::register, 0x7a),
        Fsincos => (X87, x87::register, 0x7b),
        Frndint => (X87, x87::register, 0x7c),
        Fscale => (X87, x87::register, 0x7d),
        Fsin => (X87, x87::register, 0x7e),
        Fcos => (X87, x87::register, 0x7f),
        Fcmovb_st0_sti => (X87, x87::register, 0x80),
        Fcmove_st0_sti => (X87, x87::register, 0x88),
        Fcmovbe_st0_sti => (X87, x87::register, 0x90),
        Fcmovu_st0_sti => (X87, x87::register, 0x98),
        Fucompp => (X87, x87::register, 0xa9),
        Fcmovnb_st0_sti => (X87, x87::register, 0xc0),
        Fcmovne_st0_sti => (X87, x87::register, 0xc8),
        Fcmovnbe_st0_sti => (X87, x87::register, 0xd0),
        Fcmovnu_st0_sti => (X87, x87::register, 0xd8),
        Fucomi_st0_sti => (X87, x87::register, 0xe8),
        Fcomi_st0_sti => (X87, x87::register, 0xf0),
        Fadd_sti_st0 => (X87, x87::register, 0x100),
        Fmul_sti_st0 => (X87, x87::register, 0x108),
        Fcom_st0_sti_DCD0 => (X87, x87::register, 0x110),
        Fcomp_st0_sti_DCD8 => (X87, x87::register, 0x118),
        Fsubr_sti_st0 => (X87, x87::register, 0x120),
        Fsub_sti_st0 => (X87, x87::register, 0x128),
        Fdivr_sti_st0 => (X87, x87::register, 0x130),
        Fdiv_sti_st0 => (X87, x87::register, 0x138),
        Ffree_sti => (X87, x87::register, 0x140),
        Fxch_st0_sti_DDC8 => (X87, x87::register, 0x148),
        Fst_sti => (X87, x87::register, 0x150),
        Fstp_sti => (X87, x87::register, 0x158),
        Fucom_st0_sti => (X87, x87::register, 0x160),
        Fucomp_st0_sti => (X87, x87::register, 0x168),
        Faddp_sti_st0 => (X87, x87::register, 0x180),
        Fmulp_sti_st0 => (X87, x87::register, 0x188),
        Fcomp_st0_sti_DED0 => (X87, x87::register, 0x190),
        Fcompp => (X87, x87::register, 0x199),
        Fsubrp_sti_st0 => (X87, x87::register, 0x1a0),
        Fsubp_sti_st0 => (X87, x87::register, 0x1a8),
        Fdivrp_sti_st0 => (X87, x87::register, 0x1b0),
        Fdivp_sti_st0 => (X87, x87::register, 0x1b8),
        Ffreep_sti => (X87, x87::register, 0x1c0),
        Fxch_st0_sti_DFC8 => (X87, x87::register, 0x1c8),
        Fstp_sti_DFD0 => (X87, x87::register, 0x1d0),
        Fstp_sti_DFD8 => (X87, x87::register, 0x1d8),
        Fucomip_st0_sti => (X87, x87::register, 0x1e8),
        Fcomip_st0_sti => (X87, x87::register, 0x1f0),
        Fst_m32fp => (X87, x87::store, 0xa),
        Fstp_m32fp => (X87, x87::store, 0xb),
        Fisttp_m32int => (X87, x87::store, 0x19),
        Fist_m32int => (X87, x87::store, 0x1a),
        Fistp_m32int => (X87, x87::store, 0x1b),
        Fstp_m80fp => (X87, x87::store, 0x1f),
        Fisttp_m64int => (X87, x87::store, 0x29),
        Fst_m64fp => (X87, x87::store, 0x2a),
        Fstp_m64fp => (X87, x87::store, 0x2b),
        Fisttp_m16int => (X87, x87::store, 0x39),
        Fist_m16int => (X87, x87::store, 0x3a),
        Fistp_m16int => (X87, x87::store, 0x3b),
        Fbstp_m80bcd => (X87, x87::store, 0x3e),
        Fistp_m64int => (X87, x87::store, 0x3f),
        Fldenv_m14byte => (X87, x87::environment, 0x4c),
        Fldenv_m28byte => (X87, x87::environment, 0xc),
        Fldcw_m2byte => (X87, x87::environment, 0xd),
        Frstor_m94byte => (X87, x87::environment, 0x6c),
        Frstor_m108byte => (X87, x87::environment, 0x2c),
        Fnstenv_m14byte => (X87NoWait, x87::environment, 0x4e),
        Fnstenv_m28byte => (X87NoWait, x87::environment, 0xe),
        Fnsave_m94byte => (X87NoWait, x87::environment, 0x6e),
        Fnsave_m108byte => (X87NoWait, x87::environment, 0x2e),
        Fnstcw_m2byte => (X87NoWait, x87::fnstcw, 0xf),
        Fneni => (X87NoWait, x87::control, 0xe0),
        Fndisi => (X87NoWait, x87::control, 0xe1),
        Fnclex => (X87NoWait, x87::control, 0xe2),
        Fninit => (X87NoWait, x87::control, 0xe3),
        Fnsetpm => (X87NoWait, x87::control, 0xe4),
        Fnstsw_m2byte => (X87NoWait, x87::fnstsw, 0x2f),
        Fnstsw_AX => (X87NoWait, x87::fnstsw_ax, 0),
        Prefetch_m8 | Prefetchw_m8 | Prefetchnta_m8 | Prefetcht0_m8 | Prefetcht1_m8 | Prefetcht2_m8 | Lfence | Lfence_E9 | Lfence_EA | Lfence_EB | Lfence_EC | Lfence_ED | Lfence_EE | Lfence_EF | Mfence | Mfence_F1 | Mfence_F2 | Mfence_F3 | Mfence_F4 | Mfence_F5 | Mfence_F6 | Mfence_F7 | Sfence | Sfence_F9 | Sfence_FA | Sfence_FB | Sfence_FC | Sfence_FD | Sfence_FE | Sfence_FF => (Plain, moves::nothing, 0),
        Movups_xmm_xmmm128 | Movupd_xmm_xmmm128 | Movaps_xmm_xmmm128 | Movapd_xmm_xmmm128 | Movdqa_xmm_xmmm128 | Movdqu_xmm_xmmm128 | Lddqu_xmm_m128 | Movntdqa_xmm_m128 => (Sse, moves::load, 0),
        Movss_xmm_xmmm32 => (Sse, moves::movss_load, 0),
        Movsd_xmm_xmmm64 => (Sse, moves::movsd_load, 0),
        Movups_xmmm128_xmm | Movupd_xmmm128_xmm | Movaps_xmmm128_xmm | Movapd_xmmm128_xmm | Movntps_m128_xmm | Movntpd_m128_xmm | Movdqa_xmmm128_xmm | Movdqu_xmmm128_xmm | Movntdq_m128_xmm => (Sse, moves::store, 0),
        Movss_xmmm32_xmm => (Sse, moves::movss_store, 0),
        Movsd_xmmm64_xmm | Movlps_m64_xmm | Movlpd_m64_xmm => (Sse, moves::movsd_store, 0),
        Movhlps_xmm_xmm => (Sse, moves::movhlps, 0),
        Movlps_xmm_m64 | Movlpd_xmm_m64 => (Sse, moves::load_low, 0),
        Movsldup_xmm_xmmm128 => (Sse, vector::movsldup, 0),
        Movddup_xmm_xmmm64 => (Sse, moves::movddup, 0),
        Unpcklps_xmm_xmmm128 => (Sse, vector::unpcklps, 0),
        Unpcklpd_xmm_xmmm128 => (Sse, vector::unpcklpd, 0),
        Unpckhps_xmm_xmmm128 => (Sse, vector::unpckhps, 0),
        Unpckhpd_xmm_xmmm128 => (Sse, vector::unpckhpd, 0),
        Movlhps_xmm_xmm => (Sse, moves::movlhps, 0),
        Movhps_xmm_m64 | Movhpd_xmm_m64 => (Sse, moves::load_high, 0),
        Movshdup_xmm_xmmm128 => (Sse, vector::movshdup, 0),
        Movhps_m64_xmm | Movhpd_m64_xmm => (Sse, moves::store_high, 0),
        Cvtpi2ps_xmm_mmm64 => (SseMmx, mmx::cvtpi2ps, 0),
        Cvtpi2pd_xmm_mmm64 => (SseMmx, mmx::cvtpi2pd, 0),
        Cvtsi2ss_xmm_rm32 | Cvtsi2ss_xmm_rm64 => (Sse, scalar::cvtsi2ss, 0),
        Cvtsi2sd_xmm_rm32 | Cvtsi2sd_xmm_rm64 => (Sse, scalar::cvtsi2sd, 0),
        Cvttps2pi_mm_xmmm64 => (SseMmx, mmx::cvttps2pi, 0),
        Cvttpd2pi_mm_xmmm128 => (SseMmx, mmx::cvttpd2pi, 0),
        Cvttss2si_r32_xmmm32 | Cvttss2si_r64_xmmm32 => (Sse, scalar::cvttss2si, 0),
        Cvttsd2si_r32_xmmm64 | Cvttsd2si_r64_xmmm64 => (Sse, scalar::cvttsd2si, 0),
        Cvtps2pi_mm_xmmm64 => (SseMmx, mmx::cvtps2pi, 0),
        Cvtpd2pi_mm_xmmm128 => (SseMmx, mmx::cvtpd2pi, 0),
        Cvtss2si_r32_xmmm32 | Cvtss2si_r64_xmmm32 => (Sse, scalar::cvtss2si, 0),
        Cvtsd2si_r32_xmmm64 | Cvtsd2si_r64_xmmm64 => (Sse, scalar::cvtsd2si, 0),
        Ucomiss_xmm_xmmm32 => (Sse, scalar::ucomiss, 0),
        Ucomisd_xmm_xmmm64 => (Sse, scalar::ucomisd, 0),
        Comiss_xmm_xmmm32 => (Sse, scalar::comiss, 0),
        Comisd_xmm_xmmm64 => (Sse, scalar::comisd, 0),
        Movmskps_r32_xmm | Movmskps_r64_xmm => (Sse, scalar::movmskps, 0),
        Movmskpd_r32_xmm | Movmskpd_r64_xmm => (Sse, scalar::movmskpd, 0),
        Sqrtps_xmm_xmmm128 => (Sse, vector::sqrtps, 0),
        Sqrtpd_xmm_xmmm128 => (Sse, vector::sqrtpd, 0),
        Sqrtss_xmm_xmmm32 => (Sse, vector::sqrtss, 0),
        Sqrtsd_xmm_xmmm64 => (Sse, vector::sqrtsd, 0),
        Rsqrtps_xmm_xmmm128 => (Sse, vector::rsqrtps, 0),
        Rsqrtss_xmm_xmmm32 => (Sse, vector::rsqrtss, 0),
        Rcpps_xmm_xmmm128 => (Sse, vector::rcpps, 0),
        Rcpss_xmm_xmmm32 => (Sse, vector::rcpss, 0),
        Andps_xmm_xmmm128 => (Sse, vector::andps, 0),
        Andpd_xmm_xmmm128 => (Sse, vector::andpd, 0),
        Andnps_xmm_xmmm128 => (Sse, vector::andnps, 0),
        Andnpd_xmm_xmmm128 => (Sse, vector::andnpd, 0),
        Orps_xmm_xmmm128 => (Sse, vector::orps, 0),
        Orpd_xmm_xmmm128 => (Sse, vector::orpd, 0),
        Xorps_xmm_xmmm128 => (Sse, vector::xorps, 0),
        Xorpd_xmm_xmmm128 => (Sse, vector::xorpd, 0),
        Addps_xmm_xmmm128 => (Sse, vector::addps, 0),
        Addpd_xmm_xmmm128 => (Sse, vector::addpd, 0),
        Addss_xmm_xmmm32 => (Sse, vector::addss, 0),
        Addsd_xmm_xmmm64 => (Sse, vector::addsd, 0),
        Mulps_xmm_xmmm128 => (Sse, vector::mulps, 0),
        Mulpd_xmm_xmmm128 => (Sse, vector::mulpd, 0),
        Mulss_xmm_xmmm32 => (Sse, vector::mulss, 0),
        Mulsd_xmm_xmmm64 => (Sse, vector::mulsd, 0),
        Cvtps2pd_xmm_xmmm64 => (Sse, vector::cvtps2pd, 0),
        Cvtpd2ps_xmm_xmmm128 => (Sse, vector::cvtpd2ps, 0),
        Cvtss2sd_xmm_xmmm32 => (Sse, vector::cvtss2sd, 0),
        Cvtsd2ss_xmm_xmmm64 => (Sse, vector::cvtsd2ss, 0),
        Cvtdq2ps_xmm_xmmm128 => (Sse, vector::cvtdq2ps, 0),
        Cvtps2dq_xmm_xmmm128 => (Sse, vector::cvtps2dq, 0),
        Cvttps2dq_xmm_xmmm128 => (Sse, vector::cvttps2dq, 0),
        Subps_xmm_xmmm128 => (Sse, vector::subps, 0),
        Subpd_xmm_xmmm128 => (Sse, vector::subpd, 0),
        Subss_xmm_xmmm32 => (Sse, vector::subss, 0),
        Subsd_xmm_xmmm64 => (Sse, vector::subsd, 0),
        Minps_xmm_xmmm128 => (Sse, vector::minps, 0),
        Minpd_xmm_xmmm128 => (Sse, vector::minpd, 0),
        Minss_xmm_xmmm32 => (Sse, vector::minss, 0),
        Minsd_xmm_xmmm64 => (Sse, vector::minsd, 0),
        Divps_xmm_xmmm128 => (Sse, vector::divps, 0),
        Divpd_xmm_xmmm128 => (Sse, vector::divpd, 0),
        Divss_xmm_xmmm32 => (Sse, vector::divss, 0),
        Divsd_xmm_xmmm64 => (Sse, vector::divsd, 0),
        Maxps_xmm_xmmm128 => (Sse, vector::maxps, 0),
        Maxpd_xmm_xmmm128 => (Sse, vector::maxpd, 0),
        Maxss_xmm_xmmm32 => (Sse, vector::maxss, 0),
        Maxsd_xmm_xmmm64 => (Sse, vector::maxsd, 0),
        Punpcklbw_mm_mmm32 => (Mmx, mmx::punpcklbw, 0),
        Punpcklbw_xmm_xmmm128 => (Sse, vector::punpcklbw, 0),
        Punpcklwd_mm_mmm32 => (Mmx, mmx::punpcklwd, 0),
        Punpcklwd_xmm_xmmm128 => (Sse, vector::punpcklwd, 0),
        Punpckldq_mm_mmm32 => (Mmx, mmx::punpckldq, 0),
        Punpckldq_xmm_xmmm128 => (Sse, vector::punpckldq, 0),
        Packsswb_mm_mmm64 => (Mmx, mmx::packsswb, 0),
        Packsswb_xmm_xmmm128 => (Sse, vector::packsswb, 0),
        Pcmpgtb_mm_mmm64 => (Mmx, mmx::pcmpgtb, 0),
        Pcmpgtb_xmm_xmmm128 => (Sse, vector::pcmpgtb, 0),
        Pcmpgtw_mm_mmm64 => (Mmx, mmx::pcmpgtw, 0),
        Pcmpgtw_xmm_xmmm128 => (Sse, vector::pcmpgtw, 0),
        Pcmpgtd_mm_mmm64 => (Mmx, mmx::pcmpgtd, 0),
        Pcmpgtd_xmm_xmmm128 => (Sse, vector::pcmpgtd, 0),
        Packuswb_mm_mmm64 => (Mmx, mmx::packuswb, 0),
        Packuswb_xmm_xmmm128 => (Sse, vector::packuswb, 0),
        Punpckhbw_mm_mmm64 => (Mmx, mmx::punpckhbw, 0),
        Punpckhbw_xmm_xmmm128 => (Sse, vector::punpckhbw, 0),
        Punpckhwd_mm_mmm64 => (Mmx, mmx::punpckhwd, 0),
        Punpckhwd_xmm_xmmm128 => (Sse, vector::punpckhwd, 0),
        Punpckhdq_mm_mmm64 => (Mmx, mmx::punpckhdq, 0),
        Punpckhdq_xmm_xmmm128 => (Sse, vector::punpckhdq, 0),
        Packssdw_mm_mmm64 => (Mmx, mmx::packssdw, 0),
        Packssdw_xmm_xmmm128 => (Sse, vector::packssdw, 0),
        Punpcklqdq_xmm_xmmm128 => (Sse, vector::punpcklqdq, 0),
        Punpckhqdq_xmm_xmmm128 => (Sse, vector::punpckhqdq, 0),
        Movd_mm_rm32 | Movq_mm_rm64 => (Mmx, mmx::from_general, 0),
        Movd_xmm_rm32 | Movq_xmm_rm64 => (Sse, moves::from_general, 0),
        Movq_mm_mmm64 => (Mmx, mmx::load, 0),
        Pshufw_mm_mmm64_imm8 => (Mmx, mmx::pshufw, 0),
        Pshufd_xmm_xmmm128_imm8 => (Sse, vector::pshufd, 0),
        Pshufhw_xmm_xmmm128_imm8 => (Sse, vector::pshufhw, 0),
        Pshuflw_xmm_xmmm128_imm8 => (Sse, vector::pshuflw, 0),
        Psrlw_mm_imm8 => (Mmx, mmx::psrlw_imm, 0),
        Psrlw_xmm_imm8 => (Sse, vector::psrlw_imm, 0),
        Psraw_mm_imm8 => (Mmx, mmx::psraw_imm, 0),
        Psraw_xmm_imm8 => (Sse, vector::psraw_imm, 0),
        Psllw_mm_imm8 => (Mmx, mmx::psllw_imm, 0),
        Psllw_xmm_imm8 => (Sse, vector::psllw_imm, 0),
        Psrld_mm_imm8 => (Mmx, mmx::psrld_imm, 0),
        Psrld_xmm_imm8 => (Sse, vector::psrld_imm, 0),
        Psrad_mm_imm8 => (Mmx, mmx::psrad_imm, 0),
        Psrad_xmm_imm8 => (Sse, vector::psrad_imm, 0),
        Pslld_mm_imm8 => (Mmx, mmx::pslld_imm, 0),
        Pslld_xmm_imm8 => (Sse, vector::pslld_imm, 0),
        Psrlq_mm_imm8 => (Mmx, mmx::psrlq_imm, 0),
        Psrlq_xmm_imm8 => (Sse, vector::psrlq_imm, 0),
        Psrldq_xmm_imm8 => (Sse, vector::psrldq, 0),
        Psllq_mm_imm8 => (Mmx, mmx::psllq_imm, 0),
        Psllq_xmm_imm8 => (Sse, vector::psllq_imm, 0),
        Pslldq_xmm_imm8 => (Sse, vector::pslldq, 0),
        Pcmpeqb_mm_mmm64 => (Mmx, mmx::pcmpeqb, 0),
        Pcmpeqb_xmm_xmmm128 => (Sse, vector::pcmpeqb, 0),
        Pcmpeqw_mm_mmm64 => (Mmx, mmx::pcmpeqw, 0),
        Pcmpeqw_xmm_xmmm128 => (Sse, vector::pcmpeqw, 0),
        Pcmpeqd_mm_mmm64 => (Mmx, mmx::pcmpeqd, 0),
        Pcmpeqd_xmm_xmmm128 => (Sse, vector::pcmpeqd, 0),
        Emms => (Mmx, mmx::emms, 0),
        Haddpd_xmm_xmmm128 => (Sse, vector::haddpd, 0),
        Haddps_xmm_xmmm128 => (Sse, vector::haddps, 0),
        Hsubpd_xmm_xmmm128 => (Sse, vector::hsubpd, 0),
        Hsubps_xmm_xmmm128 => (Sse, vector::hsubps, 0),
        Movd_rm32_mm => (Mmx, mmx::movd_to_general, 0),
        Movq_rm64_mm => (Mmx, mmx::movq_to_general, 0),
        Movd_rm32_xmm => (Sse, moves::movd_to_general, 0),
        Movq_rm64_xmm => (Sse, moves::movq_to_general, 0),
        Movq_xmm_xmmm64 => (Sse, moves::movq_load, 0),
        Movq_mmm64_mm | Movntq_m64_mm => (Mmx, mmx::store, 0),
        Fxsave_m512byte | Fxsave64_m512byte => (Fxsr, save::fxsave, 0),
        Fxrstor_m512byte | Fxrstor64_m512byte => (Fxsr, save::fxrstor, 0),
        Ldmxcsr_m32 => (Sse, save::ldmxcsr, 0),
        Stmxcsr_m32 => (Sse, save::stmxcsr, 0),
        Cmpps_xmm_xmmm128_imm8 => (Sse, vector::cmpps, 0),
        Cmppd_xmm_xmmm128_imm8 => (Sse, vector::cmppd, 0),
        Cmpss_xmm_xmmm32_imm8 => (Sse, vector::cmpss, 0),
        Cmpsd_xmm_xmmm64_imm8 => (Sse, vector::cmpsd, 0),
        Movnti_m32_r32 | Movnti_m64_r64 => (Plain, moves::movnti, 0),
        Pinsrw_mm_r32m16_imm8 | Pinsrw_mm_r64m16_imm8 => (Mmx, mmx::pinsrw, 0),
        Pinsrw_xmm_r32m16_imm8 | Pinsrw_xmm_r64m16_imm8 => (Sse, scalar::pinsrw, 0),
        Pextrw_r32_mm_imm8 | Pextrw_r64_mm_imm8 => (Mmx, mmx::pextrw, 0),
        Pextrw_r32_xmm_imm8 | Pextrw_r64_xmm_imm8 | Pextrw_r32m16_xmm_imm8 | Pextrw_r64m16_xmm_imm8 => (Sse, scalar::pextrw, 0),
        Shufps_xmm_xmmm128_imm8 => (Sse, vector::shufps, 0),
        Shufpd_xmm_xmmm128_imm8 => (Sse, vector::shufpd, 0),
        Addsubpd_xmm_xmmm128 => (Sse, vector::addsubpd, 0),
        Addsubps_xmm_xmmm128 => (Sse, vector::addsubps, 0),
        Psrlw_mm_mmm64 => (Mmx, mmx::psrlw, 0),
        Psrlw_xmm_xmmm128 => (Sse, vector::psrlw, 0),
        Psrld_mm_mmm64 => (Mmx, mmx::psrld, 0),
        Psrld_xmm_xmmm128 => (Sse, vector::psrld, 0),
        Psrlq_mm_mmm64 => (Mmx, mmx::psrlq, 0),
        Psrlq_xmm_xmmm128 => (Sse, vector::psrlq, 0),
        Paddq_mm_mmm64 => (Mmx, mmx::paddq, 0),
        Paddq_xmm_xmmm128 => (Sse, vector::paddq, 0),
        Pmullw_mm_mmm64 => (Mmx, mmx::pmullw, 0),
        Pmullw_xmm_xmmm128 => (Sse, vector::pmullw, 0),
        Movq_xmmm64_xmm => (Sse, moves::movq_store, 0),
        Movq2dq_xmm_mm => (SseMmx, mmx::movq2dq, 0),
        Movdq2q_mm_xmm => (SseMmx, mmx::movdq2q, 0),
        Pmovmskb_r32_mm | Pmovmskb_r64_mm => (Mmx, mmx::pmovmskb, 0),
        Pmovmskb_r32_xmm | Pmovmskb_r64_xmm => (Sse, scalar::pmovmskb, 0),
        Psubusb_mm_mmm64 => (Mmx, mmx::psubusb, 0),
        Psubusb_xmm_xmmm128 => (Sse, vector::psubusb, 0),
        Psubusw_mm_mmm64 => (Mmx, mmx::psubusw, 0),
        Psubusw_xmm_xmmm128 => (Sse, vector::psubusw, 0),
        Pminub_mm_mmm64 => (Mmx, mmx::pminub, 0),
        Pminub_xmm_xmmm128 => (Sse, vector::pminub, 0),
        Pand_mm_mmm64 => (Mmx, mmx::pand, 0),
        Pand_xmm_xmmm128 => (Sse, vector::pand, 0),
        Paddusb_mm_mmm64 => (Mmx, mmx::paddusb, 0),
        Paddusb_xmm_xmmm128 => (Sse, vector::paddusb, 0),
        Paddusw_mm_mmm64 => (Mmx, mmx::paddusw, 0),
        Paddusw_xmm_xmmm128 => (Sse, vector::paddusw, 0),
        Pmaxub_mm_mmm64 => (Mmx, mmx::pmaxub, 0),
        Pmaxub_xmm_xmmm128 => (Sse, vector::pmaxub, 0),
        Pandn_mm_mmm64 => (Mmx, mmx::pandn, 0),
        Pandn_xmm_xmmm128 => (Sse, vector::pandn, 0),
        Pavgb_mm_mmm64 => (Mmx, mmx::pavgb, 0),
        Pavgb_xmm_xmmm128 => (Sse, vector::pavgb, 0),
        Psraw_mm_mmm64 => (Mmx, mmx::psraw, 0),
        Psraw_xmm_xmmm128 => (Sse, vector::psraw, 0),
        Psrad_mm_mmm64 => (Mmx, mmx::psrad, 0),
        Psrad_xmm_xmmm128 => (Sse, vector::psrad, 0),
        Pavgw_mm_mmm64 => (Mmx, mmx::pavgw, 0),
        Pavgw_xmm_xmmm128 => (Sse, vector::pavgw, 0),
        Pmulhuw_mm_mmm64 => (Mmx, mmx::pmulhuw, 0),
        Pmulhuw_xmm_xmmm128 => (Sse, vector::pmulhuw, 0),
        Pmulhw_mm_mmm64 => (Mmx, mmx::pmulhw, 0),
        Pmulhw_xmm_xmmm128 => (Sse, vector::pmulhw, 0),
        Cvttpd2dq_xmm_xmmm128 => (Sse, vector::cvttpd2dq, 0),
        Cvtdq2pd_xmm_xmmm64 => (Sse, vector::cvtdq2pd, 0),
        Cvtpd2dq_xmm_xmmm128 => (Sse, vector::cvtpd2dq, 0),
        Psubsb_mm_mmm64 => (Mmx, mmx::psubsb, 0),
        Psubsb_xmm_xmmm128 => (Sse, vector::psubsb, 0),
        Psubsw_mm_mmm64 => (Mmx, mmx::psubsw, 0),
        Psubsw_xmm_xmmm128 => (Sse, vector::psubsw, 0),
        Pminsw_mm_mmm64 => (Mmx, mmx::pminsw, 0),
        Pminsw_xmm_xmmm128 => (Sse, vector::pminsw, 0),
        Por_mm_mmm64 => (Mmx, mmx::por, 0),
        Por_xmm_xmmm128 => (Sse, vector::por, 0),
        Paddsb_mm_mmm64 => (Mmx, mmx::paddsb, 0),
        Paddsb_xmm_xmmm128 => (Sse, vector::paddsb, 0),
        Paddsw_mm_mmm64 => (Mmx, mmx::paddsw, 0),
        Paddsw_xmm_xmmm128 => (Sse, vector::paddsw, 0),
        Pmaxsw_mm_mmm64 => (Mmx, mmx::pmaxsw, 0),
        Pmaxsw_xmm_xmmm128 => (Sse, vector::pmaxsw, 0),
        Pxor_mm_mmm64 => (Mmx, mmx::pxor, 0),
        Pxor_xmm_xmmm128 => (Sse, vector::pxor, 0),
        Psllw_mm_mmm64 => (Mmx, mmx::psllw, 0),
        Psllw_xmm_xmmm128 => (Sse, vector::psllw, 0),
        Pslld_mm_mmm64 => (Mmx, mmx::pslld, 0),
        Pslld_xmm_xmmm128 => (Sse, vector::pslld, 0),
        Psllq_mm_mmm64 => (Mmx, mmx::psllq, 0),
        Psllq_xmm_xmmm128 => (Sse, vector::psllq, 0),
        Pmuludq_mm_mmm64 => (Mmx, mmx::pmuludq, 0),
        Pmuludq_xmm_xmmm128 => (Sse, vector::pmuludq, 0),
        Pmaddwd_mm_mmm64 => (Mmx, mmx::pmaddwd, 0),
        Pmaddwd_xmm_xmmm128 => (Sse, vector::pmaddwd, 0),
        Psadbw_mm_mmm64 => (Mmx, mmx::psadbw, 0),
        Psadbw_xmm_xmmm128 => (Sse, vector::psadbw, 0),
        Maskmovq_rDI_mm_mm => (Mmx, mmx::maskmovq, 0),
        Maskmovdqu_rDI_xmm_xmm => (Sse, moves::maskmovdqu, 0),
        Psubb_mm_mmm64 => (Mmx, mmx::psubb, 0),
        Psubb_xmm_xmmm128 => (Sse, vector::psubb, 0),
        Psubw_mm_mmm64 => (Mmx, mmx::psubw, 0),
        Psubw_xmm_xmmm128 => (Sse, vector::psubw, 0),
        Psubd_mm_mmm64 => (Mmx, mmx::psubd, 0),
        Psubd_xmm_xmmm128 => (Sse, vector::psubd, 0),
        Psubq_mm_mmm64 => (Mmx, mmx::psubq, 0),
        Psubq_xmm_xmmm128 => (Sse, vector::psubq, 0),
        Paddb_mm_mmm64 => (Mmx, mmx::paddb, 0),
        Paddb_xmm_xmmm128 => (Sse, vector::paddb, 0),
        Paddw_mm_mmm64 => (Mmx, mmx::paddw, 0),
        Paddw_xmm_xmmm128 => (Sse, vector::paddw, 0),
        Paddd_mm_mmm64 => (Mmx, mmx::paddd, 0),
        Paddd_xmm_xmmm128 => (Sse, vector::paddd, 0),
        Pshufb_mm_mmm64 => (Mmx, mmx::pshufb, 0),
        Pshufb_xmm_xmmm128 => (Sse, vector::pshufb, 0),
        Phaddw_mm_mmm64 => (Mmx, mmx::phaddw, 0),
        Phaddw_xmm_xmmm128 => (Sse, vector::phaddw, 0),
        Phaddd_mm_mmm64 => (Mmx, mmx::phaddd, 0),
        Phaddd_xmm_xmmm128 => (Sse, vector::phaddd, 0),
        Phaddsw_mm_mmm64 => (Mmx, mmx::phaddsw, 0),
        Phaddsw_xmm_xmmm128 => (Sse, vector::phaddsw, 0),
        Pmaddubsw_mm_mmm64 => (Mmx, mmx::pmaddubsw, 0),
        Pmaddubsw_xmm_xmmm128 => (Sse, vector::pmaddubsw, 0),
        Phsubw_mm_mmm64 => (Mmx, mmx::phsubw, 0),
        Phsubw_xmm_xmmm128 => (Sse, vector::phsubw, 0),
        Phsubd_mm_mmm64 => (Mmx, mmx::phsubd, 0),
        Phsubd_xmm_xmmm128 => (Sse, vector::phsubd, 0),
        Phsubsw_mm_mmm64 => (Mmx, mmx::phsubsw, 0),
        Phsubsw_xmm_xmmm128 => (Sse, vector::phsubsw, 0),
        Psignb_mm_mmm64 => (Mmx, mmx::psignb, 0),
        Psignb_xmm_xmmm128 => (Sse, vector::psignb, 0),
        Psignw_mm_mmm64 => (Mmx, mmx::psignw, 0),
        Psignw_xmm_xmmm128 => (Sse, vector::psignw, 0),
        Psignd_mm_mmm64 => (Mmx, mmx::psignd, 0),
        Psignd_xmm_xmmm128 => (Sse, vector::psignd, 0),
        Pmulhrsw_mm_mmm64 => (Mmx, mmx::pmulhrsw, 0),
        Pmulhrsw_xmm_xmmm128 => (Sse, vector::pmulhrsw, 0),
        Pblendvb_xmm_xmmm128 => (Sse, vector::pblendvb, 0),
        Blendvps_xmm_xmmm128 => (Sse, vector::blendvps, 0),
        Blendvpd_xmm_xmmm128 => (Sse, vector::blendvpd, 0),
        Ptest_xmm_xmmm128 => (Sse, scalar::ptest, 0),
        Pabsb_mm_mmm64 => (Mmx, mmx::pabsb, 0),
        Pabsb_xmm_xmmm128 => (Sse, vector::pabsb, 0),
        Pabsw_mm_mmm64 => (Mmx, mmx::pabsw, 0),
        Pabsw_xmm_xmmm128 => (Sse, vector::pabsw, 0),
        Pabsd_mm_mmm64 => (Mmx, mmx::pabsd, 0),
        Pabsd_xmm_xmmm128 => (Sse, vector::pabsd, 0),
        Pmovsxbw_xmm_xmmm64 => (Sse, vector::pmovsxbw, 0),
        Pmovsxbd_xmm_xmmm32 => (Sse, vector::pmovsxbd, 0),
        Pmovsxbq_xmm_xmmm16 => (Sse, vector::pmovsxbq, 0),
        Pmovsxwd_xmm_xmmm64 => (Sse, vector::pmovsxwd, 0),
        Pmovsxwq_xmm_xmmm32 => (Sse, vector::pmovsxwq, 0),
        Pmovsxdq_xmm_xmmm64 => (Sse, vector::pmovsxdq, 0),
        Pmuldq_xmm_xmmm128 => (Sse, vector::pmuldq, 0),
        Pcmpeqq_xmm_xmmm128 => (Sse, vector::pcmpeqq, 0),
        Packusdw_xmm_xmmm128 => (Sse, vector::packusdw, 0),
        Pmovzxbw_xmm_xmmm64 => (Sse, vector::pmovzxbw, 0),
        Pmovzxbd_xmm_xmmm32 => (Sse, vector::pmovzxbd, 0),
        Pmovzxbq_xmm_xmmm16 => (Sse, vector::pmovzxbq, 0),
        Pmovzxwd_xmm_xmmm64 => (Sse, vector::pmovzxwd, 0),
        Pmovzxwq_xmm_xmmm32 => (Sse, vector::pmovzxwq, 0),
        Pmovzxdq_xmm_xmmm64 => (Sse, vector::pmovzxdq, 0),
        Pcmpgtq_xmm_xmmm128 => (Sse, vector::pcmpgtq, 0),
        Pminsb_xmm_xmmm128 => (Sse, vector::pminsb, 0),
        Pminsd_xmm_xmmm128 => (Sse, vector::pminsd, 0),
        Pminuw_xmm_xmmm128 => (Sse, vector::pminuw, 0),
        Pminud_xmm_xmmm128 => (Sse, vector::pminud, 0),
        Pmaxsb_xmm_xmmm128 => (Sse, vector::pmaxsb, 0),
        Pmaxsd_xmm_xmmm128 => (Sse, vector::pmaxsd, 0),
        Pmaxuw_xmm_xmmm128 => (Sse, vector::pmaxuw, 0),
        Pmaxud_xmm_xmmm128 => (Sse, vector::pmaxud, 0),
        Pmulld_xmm_xmmm128 => (Sse, vector::pmulld, 0),
        Phminposuw_xmm_xmmm128 => (Sse, vector::phminposuw, 0),
        Aesimc_xmm_xmmm128 => (Sse, vector::aesimc, 0),
        Aesenc_xmm_xmmm128 => (Sse, vector::aesenc, 0),
        Aesenclast_xmm_xmmm128 => (Sse, vector::aesenclast, 0),
        Aesdec_xmm_xmmm128 => (Sse, vector::aesdec, 0),
        Aesdeclast_xmm_xmmm128 => (Sse, vector::aesdeclast, 0),
        Roundps_xmm_xmmm128_imm8 => (Sse, vector::roundps, 0),
        Roundpd_xmm_xmmm128_imm8 => (Sse, vector::roundpd, 0),
        Roundss_xmm_xmmm32_imm8 => (Sse, vector::roundss, 0),
        Roundsd_xmm_xmmm64_imm8 => (Sse, vector::roundsd, 0),
        Blendps_xmm_xmmm128_imm8 => (Sse, vector::blendps, 0),
        Blendpd_xmm_xmmm128_imm8 => (Sse, vector::blendpd, 0),
        Pblendw_xmm_xmmm128_imm8 => (Sse, vector::pblendw, 0),
        Palignr_mm_mmm64_imm8 => (Mmx, mmx::palignr, 0),
        Palignr_xmm_xmmm128_imm8 => (Sse, vector::palignr, 0),
        Pextrb_r32m8_xmm_imm8 | Pextrb_r64m8_xmm_imm8 => (Sse, scalar::pextrb, 0),
        Pextrd_rm32_xmm_imm8 | Extractps_rm32_xmm_imm8 | Extractps_r64m32_xmm_imm8 => (Sse, scalar::pextrd, 0),
        Pextrq_rm64_xmm_imm8 => (Sse, scalar::pextrq, 0),
        Pinsrb_xmm_r32m8_imm8 | Pinsrb_xmm_r64m8_imm8 => (Sse, scalar::pinsrb, 0),
        Insertps_xmm_xmmm32_imm8 => (Sse, vector::insertps, 0),
        Pinsrd_xmm_rm32_imm8 => (Sse, scalar::pinsrd, 0),
        Pinsrq_xmm_rm64_imm8 => (Sse, scalar::pinsrq, 0),
        Dpps_xmm_xmmm128_imm8 => (Sse, vector::dpps, 0),
        Dppd_xmm_xmmm128_imm8 => (Sse, vector::dppd, 0),
        Mpsadbw_xmm_xmmm128_imm8 => (Sse, vector::mpsadbw, 0),
        Pclmulqdq_xmm_xmmm128_imm8 => (Sse, vector::pclmulqdq, 0),
        Pcmpestrm_xmm_xmmm128_imm8 | Pcmpestrm64_xmm_xmmm128_imm8 => (Sse, strings::pcmpestrm, 0),
        Pcmpestri_xmm_xmmm128_imm8 | Pcmpestri64_xmm_xmmm128_imm8 => (Sse, strings::pcmpestri, 0),
        Pcmpistrm_xmm_xmmm128_imm8 => (Sse, strings::pcmpistrm, 0),
        Pcmpistri_xmm_xmmm128_imm8 => (Sse, strings::pcmpistri, 0),
        Aeskeygenassist_xmm_xmmm128_imm8 => (Sse, vector::aeskeygenassist, 0),
        Wait => (Unit::Wait, x87::wait, 0),
        _ => return None,
    };
    Some(row)
}

/// The instructions of this module, for the test generator.
pub fn codes() -> impl Iterator<Item = Code> {
    Code::values().filter(|code| row(*code).is_some())
}

/// Prepares an instruction for execution. `None`: it is not an x87 or SIMD instruction of our
/// processor (level x86-64-v2 with AES and PCLMULQDQ).
pub fn decode(instruction: &Instruction) -> Option<FpOp> {
    let (unit, run, mut arg) = row(instruction.code())?;
    if !host_has(instruction.code()) {
        return None;
    }
    let x87 = matches!(unit, Unit::X87 | Unit::X87NoWait | Unit::Wait);
    let mut op = FpOp { run, arg, bytes: 0, bits: 0, unit, dst: 0, src: 0, imm: 0 };
    let mut registers = [0u8; 2];
    for index in 0..instruction.op_count() {
        match instruction.op_kind(index) {
            OpKind::Register => {
                let register = instruction.op_register(index);
                if register.is_st() {
                    // The other operand, if there is one, is ST(0).
                    arg += register.number() as u16;
                } else if register.is_gpr64() {
                    op.bits |= WIDE;
                }
                if let Some(place) = registers.get_mut(index as usize) {
                    *place = register.number() as u8;
                }
            }
            OpKind::Immediate8 => op.imm = instruction.immediate8(),
            OpKind::Memory | OpKind::MemorySegRDI | OpKind::MemorySegEDI | OpKind::MemorySegDI => {
                op.bits |= MEM;
                op.bytes = instruction.memory_size().size() as u16;
                op.bits |= direction(instruction, index, x87);
                if matches!(instruction.code(), Code::Cvtsi2ss_xmm_rm64 | Code::Cvtsi2sd_xmm_rm64) {
                    op.bits |= WIDE;
                }
            }
            _ => {}
        }
    }
    [op.dst, op.src] = registers;
    if op.bits & MEM != 0
        && matches!(unit, Unit::Sse | Unit::SseMmx)
        && op.bytes == 16
        && !unaligned(instruction)
    {
        op.bits |= ALIGN16;
    }
    match instruction.mnemonic() {
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu => {
            // Operand 0 is memory at rDI, the registers are operands 1 and 2.
            op.dst = registers[1];
            op.src = instruction.op_register(2).number() as u8;
        }
        Mnemonic::Fxsave | Mnemonic::Fxsave64 | Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => op.bits |= ALIGN16,
        Mnemonic::Pcmpestrm64 | Mnemonic::Pcmpestri64 => op.bits |= WIDE,
        // From memory these do not touch the MMX state.
        Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd if op.in_memory() => op.unit = Unit::Sse,
        _ => {}
    }
    if matches!(instruction.mnemonic(), Mnemonic::Fxsave64 | Mnemonic::Fxrstor64) {
        op.bits |= WIDE;
    }
    if instruction.code_size() == CodeSize::Code64 {
        op.bits |= LONG;
    }
    let flags = matches!(
        instruction.mnemonic(),
        Mnemonic::Comiss
            | Mnemonic::Comisd
            | Mnemonic::Ucomiss
            | Mnemonic::Ucomisd
            | Mnemonic::Ptest
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestrm64
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm
    );
    if x87 || flags {
        op.bits |= FLAGS;
    }
    op.arg = arg;
    Some(op)
}

/// Whether the host can run the instruction. Level x86-64-v2 is what we ask of a host, but a guest must not
/// be able to kill its process on an older one.
fn host_has(code: Code) -> bool {
    code.cpuid_features().iter().all(|feature| match feature {
        CpuidFeature::SSE3 => is_x86_feature_detected!("sse3"),
        CpuidFeature::SSSE3 => is_x86_feature_detected!("ssse3"),
        CpuidFeature::SSE4_1 => is_x86_feature_detected!("sse4.1"),
        CpuidFeature::SSE4_2 => is_x86_feature_detected!("sse4.2"),
        CpuidFeature::AES => is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => is_x86_feature_detected!("pclmulqdq"),
        _ => true,
    })
}

/// Whether the memory operand is read, written or (masked stores) both.
fn direction(instruction: &Instruction, index: u32, x87: bool) -> u8 {
    match instruction.mnemonic() {
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Fxsave | Mnemonic::Fxsave64 => LOAD | STORE,
        Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchw => 0,
        Mnemonic::Fst
        | Mnemonic::Fstp
        | Mnemonic::Fist
        | Mnemonic::Fistp
        | Mnemonic::Fisttp
        | Mnemonic::Fbstp
        | Mnemonic::Fnstenv
        | Mnemonic::Fnsave
        | Mnemonic::Fnstcw
        | Mnemonic::Fnstsw
        | Mnemonic::Stmxcsr => STORE,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 | Mnemonic::Ldmxcsr => LOAD,
        _ if x87 || index != 0 => LOAD,
        _ => STORE,
    }
}

/// 16-byte operands that need no alignment.
fn unaligned(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Movups
            | Mnemonic::Movupd
            | Mnemonic::Movdqu
            | Mnemonic::Lddqu
            | Mnemonic::Maskmovdqu
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestrm64
            | Mnemonic::Pcmpistri
            | Mnemonic::Pcmpistrm
    )
}
