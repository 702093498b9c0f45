//! What must be equal, and how a difference is shown.

use crate::cases::{Case, narrow};
use crate::makers;
use crate::operands::is_xsave;
use crate::window::{DATA, Fault, Outcome, State};
use iced_x86::{Formatter, Instruction, IntelFormatter, Mnemonic, RflagsBits};

/// Status flags and DF.
const FLAGS: u64 = 0xcd5;

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// RFLAGS bits that the manual leaves undefined after this instruction.
pub(crate) fn undefined(instruction: &Instruction) -> u64 {
    rflags(instruction.rflags_undefined())
}

/// The decoder's flag bits as those of RFLAGS.
pub(crate) fn rflags(bits: u32) -> u64 {
    [
        (RflagsBits::CF, 0),
        (RflagsBits::PF, 2),
        (RflagsBits::AF, 4),
        (RflagsBits::ZF, 6),
        (RflagsBits::SF, 7),
        (RflagsBits::DF, 10),
        (RflagsBits::OF, 11),
    ]
    .iter()
    .filter(|(bit, _)| bits & bit != 0)
    .fold(0, |mask, (_, place)| mask | 1 << place)
}

/// Bytes of the FXSAVE image that are no architectural state: the x87 opcode and pointers (kept only for
/// pending exceptions, by some processors), MXCSR_MASK, the padding of the 80-bit registers, the tail.
fn counts(offset: usize) -> bool {
    match offset {
        5..24 | 28..32 => false,
        32..160 => offset % 16 < 10,
        _ => offset < 416,
    }
}

/// Memory that saved x87 pointers went to.
fn saved_pointers(case: &Case) -> Vec<std::ops::Range<u64>> {
    let instruction = &case.instruction;
    let place = instruction.virtual_address(0, 0, |register, _, _| {
        if register.is_segment_register() {
            return Some(0);
        }
        Some(narrow(case.before.gprs[register.full_register().number() & 15], register))
    });
    let Some(at) = place else { return Vec::new() };
    let field = |from: u64, to: u64| at.wrapping_add(from)..at.wrapping_add(to);
    match instruction.mnemonic() {
        // Which components are in use (byte 512) may depend on what they hold.
        Mnemonic::Fxsave
        | Mnemonic::Fxsave64
        | Mnemonic::Xsave
        | Mnemonic::Xsave64
        | Mnemonic::Xsaveopt
        | Mnemonic::Xsaveopt64 => vec![field(5, 24), field(28, 32), field(416, 512)]
            .into_iter()
            .chain((0..8).map(|register| field(42 + 16 * register, 48 + 16 * register)))
            .collect(),
        Mnemonic::Fnstenv | Mnemonic::Fnsave => {
            if matches!(instruction.memory_size().size(), 14 | 94) {
                vec![field(6, 14)]
            } else {
                vec![field(12, 28)]
            }
        }
        _ => Vec::new(),
    }
}

/// Environments and save areas are moved in pieces: which piece faults first is the processor's own business,
/// and so is whether FXSAVE calls a bad alignment #GP or #AC.
pub(crate) fn same_fault(instruction: &Instruction, truth: Option<Fault>, ours: Option<Fault>) -> bool {
    let Some((a, b)) = truth.zip(ours) else { return truth == ours };
    let size = if is_xsave(instruction.code()) { 512 } else { instruction.memory_size().size() };
    let pieces = !matches!(size, 0..=10 | 16) && (a.vector, b.vector) == (14, 14);
    let alignment = size == 512 && matches!((a.vector, b.vector), (13, 17) | (17, 13));
    // Which of its two operands it reads first, too: Zen 4 the one at RDI.
    let either = matches!(
        instruction.mnemonic(),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq
    ) && instruction.is_string_instruction();
    a == b || pieces || alignment || either
}

/// MXCSR bits that count: with an unmasked overflow or underflow, precision is about a result of
/// unlimited exponent range, which running masked cannot tell.
fn mxcsr_mask(instruction: &Instruction, truth: &Outcome) -> u8 {
    let mxcsr = u16::from_le_bytes([truth.state.fx.0[24], truth.state.fx.0[25]]);
    let unmasked = mxcsr & !(mxcsr >> 7);
    if truth.fault.is_none_or(|fault| fault.vector != 19) {
        return 0xff;
    }
    match instruction.mnemonic() {
        // Products and sums are separate steps, and #XM comes after the first that raised something.
        Mnemonic::Dpps | Mnemonic::Dppd => 0xc0,
        _ if unmasked & 0x18 != 0 => !0x20,
        _ => 0xff,
    }
}

/// What may differ.
struct Free {
    /// RFLAGS bits that are undefined.
    flags: u64,
    /// The instruction at which both ended, if they did at one.
    last: Option<Instruction>,
    memory: Vec<std::ops::Range<u64>>,
    same_fault: bool,
}

/// What differs after one instruction, a line each.
pub(crate) fn differences(case: &Case, truth: &Outcome, ours: &Outcome) -> Vec<String> {
    if makers::may_part(&case.instruction, truth, ours) {
        return Vec::new();
    }
    let free = Free {
        flags: undefined(&case.instruction),
        last: Some(case.instruction),
        memory: if truth.state.data == ours.state.data { Vec::new() } else { saved_pointers(case) },
        same_fault: same_fault(&case.instruction, truth.fault, ours.fault),
    };
    differ(&case.before, truth, ours, &free)
}

/// What differs after a block that ended at `last`, or behind its end, for us at `our_last`; `undefined` are the flags that it may leave
/// so.
pub(crate) fn block_differences(
    before: &State,
    last: Option<Instruction>,
    our_last: Option<Instruction>,
    undefined: u64,
    truth: &Outcome,
    ours: &Outcome,
) -> Vec<String> {
    if [last, our_last].iter().flatten().any(|last| makers::may_part(last, truth, ours)) {
        return Vec::new();
    }
    // Which pages of the host's kernel are there is its own business.
    let kernel =
        |fault: Option<Fault>| fault.filter(|fault| fault.vector == 14 && fault.address >> 47 == 0x1_ffff);
    let same_fault = match kernel(truth.fault).zip(kernel(ours.fault)) {
        Some((a, b)) => a.address == b.address && (a.error ^ b.error) & !1 == 0,
        None => last.map_or(truth.fault == ours.fault, |last| same_fault(&last, truth.fault, ours.fault)),
    };
    differ(before, truth, ours, &Free { flags: undefined, last, memory: Vec::new(), same_fault })
}

fn differ(before: &State, truth: &Outcome, ours: &Outcome, free: &Free) -> Vec<String> {
    let mut out = Vec::new();
    if !free.same_fault {
        out.push(format!("fault: cpu {:x?}, soft {:x?}", truth.fault, ours.fault));
    }
    let (a, b) = (&truth.state, &ours.state);
    // Some processors have changed registers when POPA faults half-way; the instruction restarts all the same.
    let faulted_at = |mnemonics: &[Mnemonic]| {
        truth.fault.is_some() && free.last.is_some_and(|last| mnemonics.contains(&last.mnemonic()))
    };
    let by_maker =
        |differ: fn(&Instruction, &Outcome) -> bool| free.last.is_some_and(|last| differ(&last, truth));
    let repeats_freely = by_maker(makers::repeats_freely);
    let half_done = faulted_at(&[Mnemonic::Popa, Mnemonic::Popad]) || repeats_freely;
    for (name, (a, b)) in NAMES.iter().zip(a.gprs.iter().zip(&b.gprs)) {
        if a != b && !half_done {
            out.push(format!("{name}: cpu {a:#x}, soft {b:#x}"));
        }
    }
    if a.rip != b.rip {
        out.push(format!("rip: cpu {:#x}, soft {:#x}", a.rip, b.rip));
    }
    let mask = FLAGS & !free.flags;
    if (a.rflags ^ b.rflags) & mask != 0 && !repeats_freely {
        out.push(format!(
            "flags: cpu {:#x}, soft {:#x} (before {:#x})",
            a.rflags & mask,
            b.rflags & mask,
            before.rflags
        ));
    }
    let precision = free.last.map_or(0xff, |last| mxcsr_mask(&last, truth));
    // Whether MASKMOVQ has entered MMX mode when it faults is the processor's own business.
    let no_x87 = faulted_at(&[Mnemonic::Maskmovq]) || by_maker(makers::may_enter_mmx);
    let equal = |at: usize| (a.fx.0[at] ^ b.fx.0[at]) & if at == 24 { precision } else { 0xff } == 0;
    if a.fx.0 != b.fx.0 {
        for chunk in (if no_x87 { 160 } else { 0 }..416).step_by(16) {
            if (chunk..chunk + 16).any(|at| counts(at) && !equal(at)) {
                let name = match chunk {
                    0 => "fcw fsw ftw".to_string(),
                    16 => "mxcsr".to_string(),
                    32..160 => format!("st{}", (chunk - 32) / 16),
                    _ => format!("xmm{}", (chunk - 160) / 16),
                };
                let show = |bytes: &[u8; 512]| hex(&bytes[chunk..chunk + 16]);
                out.push(format!(
                    "{name}: cpu {}, soft {} (before {})",
                    show(&a.fx.0),
                    show(&b.fx.0),
                    show(&before.fx.0)
                ));
            }
        }
    }
    if a.data != b.data && !by_maker(makers::writes_freely) {
        let different = |at: &usize| {
            a.data[*at] != b.data[*at]
                && !free.memory.iter().any(|range| range.contains(&(DATA + *at as u64)))
        };
        if let Some(first) = (0..a.data.len()).find(different) {
            let line = first & !15;
            out.push(format!(
                "memory {:#x}: cpu {}, soft {} (before {})",
                DATA + line as u64,
                hex(&a.data[line..line + 16]),
                hex(&b.data[line..line + 16]),
                hex(&before.data[line..line + 16])
            ));
        }
    }
    out
}

/// Bytes in memory order.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Everything that is needed to understand a difference and to run it again.
pub(crate) fn report(case: &Case, truth: &Outcome, ours: &Outcome, differences: &[String]) -> String {
    let mut text = String::new();
    IntelFormatter::new().format(&case.instruction, &mut text);
    let mut out = format!(
        "{text}    [{:?}] bytes {} (again: VIV_CASE={:#x})\n",
        case.instruction.code(),
        hex(&case.bytes),
        case.seed
    );
    for difference in differences {
        out += &format!("    {difference}\n");
    }
    out += &format!("    cpu fault {:x?}; soft fault {:x?}\n   ", truth.fault, ours.fault);
    for (name, value) in NAMES.iter().zip(case.before.gprs) {
        out += &format!(" {name}={value:x}");
    }
    let fx = &case.before.fx.0;
    out += &format!(
        " flags={:x} fcw={} fsw={} ftw={:02x}",
        case.before.rflags,
        hex(&fx[..2]),
        hex(&fx[2..4]),
        fx[4]
    );
    out += &format!(" mxcsr={:x}\n   ", u32::from_le_bytes([fx[24], fx[25], fx[26], fx[27]]));
    for index in 0..case.instruction.op_count() {
        let register = case.instruction.op_register(index);
        let base = if register.is_xmm() {
            160
        } else if register.is_mm() || register.is_st() {
            32
        } else {
            continue;
        };
        let at = base + 16 * register.number();
        out += &format!(" {register:?}={}", hex(&fx[at..at + 16]));
    }
    out + "\n"
}
