//! Instructions for random blocks: of every form, and those that compilers emit most.

use crate::cases::Case;
use crate::forms::Form;
use crate::random::Random;
use crate::window::{DATA, State};
use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction, InstructionInfoFactory,
    IntelFormatter, MemoryOperand, Mnemonic as M, OpAccess, OpKind, Register,
};

/// Registers that point into the data pages, and where: in the middle, near a page border, near the read-only page.
pub(crate) const BASES: [(Register, u64); 4] = [
    (Register::RBX, DATA + 0x500),
    (Register::RSI, DATA + 0x1000 - 40),
    (Register::RBP, DATA + 0x1900),
    (Register::R14, DATA + 0x2000 - 24),
];
/// Where the stack is.
pub(crate) const RSP: u64 = DATA + 0x1700;

/// Whether a form may stand in a block.
fn fits(x: &Instruction) -> bool {
    let own = matches!(
        x.mnemonic(),
        // These change modes, or give pointers away.
        M::Popf | M::Popfq | M::Fnstenv | M::Fnsave | M::Leave | M::Enter
    );
    let names_rsp = (0..x.op_count())
        .any(|n| x.op_kind(n) == OpKind::Register && x.op_register(n).full_register() == Register::RSP);
    x.flow_control() == FlowControl::Next
        && !own
        && !names_rsp
        && !x.is_privileged()
        && !x.is_string_instruction()
        // Larger operands hold x87 pointers, which translated code does not keep.
        && (!has_memory(x) || (1..=16).contains(&x.memory_size().size()))
}

/// Seldom the one at whose page border writes fault.
fn some_base(random: &mut Random) -> Register {
    let often = if random.percent(92) { 3 } else { 4 };
    random.pick(&BASES[..often]).0
}

fn has_memory(x: &Instruction) -> bool {
    (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory)
}

pub(crate) fn loses_base(x: &Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let base = |register: Register| BASES.iter().any(|base| base.0 == register.full_register());
    let writes = |access| !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
    factory.info(x).used_registers().iter().any(|used| base(used.register()) && writes(used.access()))
}

/// An instruction of a covered form, its memory operand at one of the bases.
pub(crate) fn draw(random: &mut Random, forms: &[Form]) -> Option<(Instruction, State)> {
    let form = forms[random.below(forms.len() as u64) as usize];
    let case = Case::new(random.word(), form)?;
    let mut x = case.instruction;
    // Where the bases are lost, the block soon ends in a fault.
    if !fits(&x) || loses_base(&x) && random.percent(95) {
        return None;
    }
    if has_memory(&x) {
        // Mostly aligned, so that vectors do not always fault.
        let aligned = x.memory_size().size() == 16 && random.percent(92);
        let base = if aligned { random.pick(&[Register::RBX, Register::RBP]) } else { some_base(random) };
        let disp = random.below(40) as i64 - 8;
        let disp = if aligned || random.percent(70) { disp & !15 } else { disp };
        x.set_segment_prefix(Register::None);
        let memory = MemoryOperand::with_base_displ(base, disp);
        x.set_memory_base(memory.base);
        x.set_memory_index(Register::None);
        x.set_memory_index_scale(1);
        x.set_memory_displacement64(disp as u64);
        x.set_memory_displ_size(8);
    }
    Some((x, case.before))
}

/// Plain moves, arithmetic and stack accesses at the bases: what compilers emit most.
pub(crate) fn common(random: &mut Random) -> Option<Instruction> {
    let register = |random: &mut Random| {
        random.pick(&[
            Register::RAX,
            Register::RCX,
            Register::RDX,
            Register::RDI,
            Register::R8,
            Register::R10,
            Register::R15,
        ])
    };
    let (to, base) = (register(random), some_base(random));
    let memory = MemoryOperand::with_base_displ(base, random.below(64) as i64 - 16);
    let from = register(random);
    let x = match random.below(11) {
        0 | 1 => Instruction::with2(Code::Mov_r64_rm64, to, memory),
        2 | 3 => Instruction::with2(Code::Mov_rm64_r64, memory, from),
        4 => Instruction::with2(Code::Add_rm64_r64, memory, from),
        5 => Instruction::with2(Code::Cmp_r64_rm64, to, memory),
        6 => Instruction::with2(Code::Adc_r64_rm64, to, memory),
        7 => Instruction::with1(Code::Push_r64, from),
        8 => Instruction::with1(Code::Pop_r64, to),
        9 if random.percent(30) => Instruction::with2(Code::Lea_r64_m, random.pick(&BASES).0, memory),
        9 => Instruction::with2(Code::Lea_r64_m, to, memory),
        _ => Instruction::with1(Code::Inc_rm64, memory),
    };
    x.ok()
}

/// The instructions of code at `at`, a line each.
pub(crate) fn listing(bytes: &[u8], at: u64) -> String {
    let mut decoder = Decoder::with_ip(64, bytes, at, DecoderOptions::NONE);
    let mut text = String::new();
    while decoder.can_decode() {
        let x = decoder.decode();
        text += &format!("\n    {:x} ", x.ip());
        IntelFormatter::new().format(&x, &mut text);
    }
    text
}
