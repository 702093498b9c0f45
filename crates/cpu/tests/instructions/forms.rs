//! Which instruction forms are tested, and why the others are not.

use crate::cases::Case;
use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind};
use viv_cpu::soft;

/// A form: an encoding in a mode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) code: Code,
    /// 64, or 32: compatibility mode.
    pub(crate) bits: u32,
}

impl std::fmt::Debug for Form {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mode = if self.bits == 32 { "@32" } else { "" };
        write!(f, "{:?}{mode}", self.code)
    }
}

/// Why a form is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Excluded {
    /// Not of our CPU level, or not valid in 64-bit mode.
    Level,
    /// Enters the kernel: SYSCALL, INT n and the like.
    Kernel,
    /// Far transfers, and what changes or shows descriptor tables or segment registers: the host's differ from the guest's.
    Descriptors,
    /// Its result depends on the machine: time, CPUID, XCR0.
    Machine,
    /// The makers differ: the 66 prefix on near branches (Intel ignores it, AMD truncates RIP), 0F 0D with a
    /// register (Intel: nothing, AMD: #UD).
    Vendor,
}

/// Whether `code` is one of our level in the mode.
fn of_our_level(code: Code, bits: u32) -> bool {
    use CpuidFeature::*;
    let info = code.op_code();
    let mode = if bits == 32 { info.mode32() } else { info.mode64() };
    let names = info.is_instruction() && mode && code.encoding() == EncodingKind::Legacy;
    names
        && code.cpuid_features().iter().all(|feature| {
            matches!(
                feature,
                INTEL8086 | INTEL186 | INTEL286 | INTEL386 | INTEL486 | X64 | FPU | FPU287 | FPU387 | CMOV | MMX | SSE | SSE2
                    | SSE3 | SSSE3 | SSE4_1 | SSE4_2 | POPCNT | AES | PCLMULQDQ | FXSR | CX8 | CMPXCHG16B | MULTIBYTENOP
                    | PAUSE | PREFETCHW | CLFSH | CPUID | TSC | RDPMC | SYSCALL | SEP | MSR | MONITOR | XSAVE | XSAVEOPT
                    | RDTSCP | SMM | INVEPT
            )
        })
        && !matches!(code.cpuid_features(), [SMM] | [INVEPT])
        // WAIT and the instruction behind it are two instructions.
        && !info.fwait()
}

/// Why the form is not tested, if it is not.
pub(crate) fn excluded(form: Form) -> Option<Excluded> {
    use Mnemonic::*;
    let Form { code, bits } = form;
    if !of_our_level(code, bits) {
        return Some(Excluded::Level);
    }
    let name = format!("{code:?}");
    let info = code.op_code();
    match code.mnemonic() {
        Syscall | Sysenter | Sysexit | Sysexitq | Sysret | Sysretq | Int | Int3 | Int1 | Into | Iret
        | Iretd | Iretq => {
            return Some(Excluded::Kernel);
        }
        Sgdt | Sidt | Sldt | Str | Smsw | Lar | Lsl | Verr | Verw | Lds | Les | Lfs | Lgs | Lss | Retf => {
            return Some(Excluded::Descriptors);
        }
        Rdtsc | Rdtscp | Rdpmc | Cpuid | Xgetbv | Xsetbv | Monitor | Mwait => {
            return Some(Excluded::Machine);
        }
        _ => {}
    }
    let segment = |kind: &OpCodeOperandKind| {
        use OpCodeOperandKind::{cs, ds, es, fs, gs, seg_reg, ss};
        matches!(kind, es | cs | ss | ds | fs | gs | seg_reg)
    };
    let far = ["m1616", "m1632", "m1664", "ptr16"].iter().any(|part| name.contains(part));
    if far && code.mnemonic() != Bound {
        return Some(Excluded::Descriptors);
    }
    let reads_segment = code.mnemonic() == Push || code.mnemonic() == Mov && !segment(&info.op0_kind());
    if info.op_kinds().iter().any(segment) && !reads_segment {
        return Some(Excluded::Descriptors);
    }
    let short_branch =
        |kind: &OpCodeOperandKind| matches!(kind, OpCodeOperandKind::br16_1 | OpCodeOperandKind::br16_2);
    if name.ends_with("_0F0D")
        || bits == 64
            && (info.op_kinds().iter().any(short_branch)
                || matches!(name.as_str(), "Jmp_rm16" | "Call_rm16" | "Retnw" | "Retnw_imm16"))
    {
        return Some(Excluded::Vendor);
    }
    // Privileged instructions are tested: in ring 3 they are #GP(0).
    None
}

/// The forms to test, in a fixed order.
pub(crate) fn covered() -> Vec<Form> {
    all().filter(|form| excluded(*form).is_none()).collect()
}

fn all() -> impl Iterator<Item = Form> {
    [64, 32].into_iter().flat_map(|bits| Code::values().map(move |code| Form { code, bits }))
}

/// Forms that the software CPU does not know in 64-bit mode though they are of its level.
pub(crate) fn unsupported() -> Vec<Form> {
    let known =
        |form: &Form| (0..40).filter_map(|seed| Case::new(seed, *form)).all(|case| knows(&case.instruction));
    covered().into_iter().filter(|form| form.bits == 64 && !known(form)).collect()
}

fn knows(instruction: &Instruction) -> bool {
    // Undefined on purpose.
    matches!(instruction.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2)
        || soft::supports(instruction)
}

pub(crate) fn print() {
    let covered = covered();
    println!("covered, {} forms:", covered.len());
    println!("{}", covered.iter().map(|form| format!("{form:?}")).collect::<Vec<_>>().join(" "));
    for reason in [Excluded::Kernel, Excluded::Descriptors, Excluded::Machine, Excluded::Vendor] {
        let forms: Vec<_> =
            all().filter(|form| excluded(*form) == Some(reason)).map(|form| format!("{form:?}")).collect();
        println!("excluded ({reason:?}), {} forms: {}", forms.len(), forms.join(" "));
    }
}
