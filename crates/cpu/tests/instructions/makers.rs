//! Where processors of other makers than AMD may do something else than ours, which calls itself one of AMD's: so found on Intel's.
//! On AMD's nothing of this is forgiven.
use crate::window::{Fault, Outcome};
use iced_x86::{Instruction, Mnemonic as M, OpKind, Register};
use std::sync::LazyLock;

/// Page fault and alignment check.
const PF: u8 = 14;
const AC: u8 = 17;
/// An unmasked exception is pending: bit 7 of the x87 status word, which is at byte 2 of the FXSAVE image.
const ERROR_SUMMARY: (usize, u8) = (2, 0x80);

/// Whether this is another maker's.
pub(crate) fn other_maker() -> bool {
    static OTHER: LazyLock<bool> = LazyLock::new(|| {
        let leaf = std::arch::x86_64::__cpuid(0);
        [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() != *b"AuthenticAMD"
    });
    *OTHER
}

fn has_memory(x: &Instruction) -> bool {
    (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory)
}

/// Whether the outcome of an instruction may be another altogether, as one has a fault that the other has not.
pub(crate) fn may_part(x: &Instruction, truth: &Outcome, ours: &Outcome) -> bool {
    if !other_maker() {
        return false;
    }
    let is = |fault: Option<Fault>, vector| fault.is_some_and(|fault| fault.vector == vector);
    match x.mnemonic() {
        // Which of the bounds is read first, and whether both before they are compared.
        M::Bound => truth.fault.is_some() && ours.fault.is_some(),
        // A pending exception is told before memory is looked at.
        M::Fist | M::Fistp | M::Fisttp | M::Fst | M::Fstp | M::Fbstp => {
            let (at, bit) = ERROR_SUMMARY;
            has_memory(x) && ours.fault.is_some() && truth.state.fx.0[at] & bit != 0
        }
        // SDM vol. 2: whether 16 bytes that need not be aligned are checked depends on the implementation.
        M::Lddqu | M::Movdqu | M::Movups | M::Movupd => is(ours.fault, AC),
        M::Pcmpestri | M::Pcmpestri64 | M::Pcmpestrm | M::Pcmpestrm64 | M::Pcmpistri | M::Pcmpistrm => {
            is(ours.fault, AC)
        }
        // SDM vol. 2 PUSH: of a segment register two bytes may be written instead of four.
        M::Push => x.op0_register().is_segment_register() && is(ours.fault, PF) | is(ours.fault, AC),
        // Where nothing is to be saved or loaded, memory may not be looked at.
        M::Xsaveopt | M::Xsaveopt64 | M::Xrstor | M::Xrstor64 => is(ours.fault, PF),
        // Which of the bytes that are written is told to be missing.
        M::Maskmovdqu | M::Maskmovq => is(truth.fault, PF) && is(ours.fault, PF),
        _ => false,
    }
}

/// What the flags and registers are after a repeated string instruction that faulted half-way, or had nothing to do with a 32-bit count.
pub(crate) fn repeats_freely(x: &Instruction, truth: &Outcome) -> bool {
    let repeated = x.is_string_instruction() && (x.has_rep_prefix() || x.has_repne_prefix());
    let memory = [Register::ESI, Register::EDI];
    let narrow = (0..x.op_count()).any(|n| match x.op_kind(n) {
        OpKind::MemorySegESI | OpKind::MemoryESEDI => true,
        OpKind::Memory => memory.contains(&x.memory_base()),
        _ => false,
    });
    other_maker() && repeated && (truth.fault.is_some() || narrow)
}

/// Whether an instruction that faulted may have entered MMX mode.
pub(crate) fn may_enter_mmx(x: &Instruction, truth: &Outcome) -> bool {
    let mmx = (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Register && x.op_register(n).is_mm());
    other_maker() && mmx && truth.fault.is_some()
}

/// Whether memory may hold something else: the upper half of a segment register's slot on the stack (SDM vol. 2 PUSH), and the first of
/// ten bytes of which the last could not be written.
pub(crate) fn writes_freely(x: &Instruction, truth: &Outcome) -> bool {
    let segment = x.mnemonic() == M::Push && x.op0_register().is_segment_register();
    let ten = matches!(x.mnemonic(), M::Fbstp | M::Fstp) && truth.fault.is_some();
    other_maker() && (segment || ten)
}
