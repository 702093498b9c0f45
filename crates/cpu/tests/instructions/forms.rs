//! Which instruction forms are tested, and why the others are not.

use iced_x86::{Code, CpuidFeature, EncodingKind, Instruction, Mnemonic, OpCodeOperandKind};
use viv_cpu::soft;

/// Why a form is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Excluded {
    /// Not of our CPU level, or not valid in 64-bit mode.
    Level,
    /// Enters the kernel: SYSCALL, INT n and the like.
    Kernel,
    /// Changes or shows descriptor tables or segment registers: the host's differ from the guest's.
    Descriptors,
    /// Its result depends on the machine: time, randomness, CPUID, extended state in use.
    Machine,
    /// The makers differ: the 66 prefix on near branches (Intel ignores it, AMD truncates RIP), 0F 0D with a
    /// register (Intel: nothing, AMD: #UD).
    Vendor,
}

/// Whether `code` is one of our level in 64-bit mode.
fn of_our_level(code: Code) -> bool {
    use CpuidFeature::*;
    let info = code.op_code();
    let names = info.is_instruction() && info.mode64() && code.encoding() == EncodingKind::Legacy;
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

/// Why `code` is not tested, if it is not.
pub(crate) fn excluded(code: Code) -> Option<Excluded> {
    use Mnemonic::*;
    if !of_our_level(code) {
        return Some(Excluded::Level);
    }
    let name = format!("{code:?}");
    let info = code.op_code();
    match code.mnemonic() {
        Syscall | Sysenter | Sysexit | Sysexitq | Sysret | Sysretq | Int | Int3 | Int1 | Into | Iret
        | Iretd | Iretq => {
            return Some(Excluded::Kernel);
        }
        Sgdt | Sidt | Sldt | Str | Smsw | Lar | Lsl | Verr | Verw | Lfs | Lgs | Lss | Retf => {
            return Some(Excluded::Descriptors);
        }
        Rdtsc | Rdtscp | Rdpmc | Cpuid | Xgetbv | Xsetbv | Monitor | Mwait | Xsave | Xsave64 | Xsaveopt
        | Xsaveopt64 | Xrstor | Xrstor64 => return Some(Excluded::Machine),
        _ => {}
    }
    let segment = |kind: &OpCodeOperandKind| {
        use OpCodeOperandKind::{es, fs, gs, seg_reg};
        matches!(kind, es | fs | gs | seg_reg)
    };
    if name.contains("m1616") || name.contains("m1632") || name.contains("m1664") || name.contains("Sreg") {
        return Some(Excluded::Descriptors);
    }
    if info.op_kinds().iter().any(segment) && code.mnemonic() != Push {
        return Some(Excluded::Descriptors);
    }
    if info
        .op_kinds()
        .iter()
        .any(|kind| matches!(kind, OpCodeOperandKind::br16_1 | OpCodeOperandKind::br16_2))
        || matches!(name.as_str(), "Jmp_rm16" | "Call_rm16" | "Retnw" | "Retnw_imm16")
        || name.ends_with("_0F0D")
    {
        return Some(Excluded::Vendor);
    }
    // Privileged instructions are tested: in ring 3 they are #GP(0).
    None
}

/// The forms to test, in a fixed order.
pub(crate) fn covered() -> Vec<Code> {
    Code::values().filter(|code| excluded(*code).is_none()).collect()
}

/// Forms that the software CPU does not know though they are of its level.
pub(crate) fn unsupported() -> Vec<Code> {
    covered()
        .into_iter()
        .filter(|code| {
            (0..40)
                .filter_map(|seed| crate::cases::Case::new(seed, *code))
                .any(|case| !knows(&case.instruction))
        })
        .collect()
}

fn knows(instruction: &Instruction) -> bool {
    // Undefined on purpose.
    matches!(instruction.mnemonic(), Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2)
        || soft::supports(instruction)
}

pub(crate) fn print() {
    let covered = covered();
    println!("covered, {} forms:", covered.len());
    println!("{}", covered.iter().map(|code| format!("{code:?}")).collect::<Vec<_>>().join(" "));
    for reason in [Excluded::Kernel, Excluded::Descriptors, Excluded::Machine, Excluded::Vendor] {
        let forms: Vec<_> = Code::values()
            .filter(|code| excluded(*code) == Some(reason))
            .map(|code| format!("{code:?}"))
            .collect();
        println!("excluded ({reason:?}), {} forms: {}", forms.len(), forms.join(" "));
    }
}
