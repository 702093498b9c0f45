//! A guest instruction with host operands, encoded again.

use super::super::asm::{Mem, at};
use super::super::layout::{self, HOMES, T0, T1};
use super::Lower;
use iced_x86::{Code, Instruction, MemoryOperand, Mnemonic, OpAccess, OpKind, Register};

/// The host register in which a guest general register lives; `None`: in memory.
fn home(register: Register) -> Option<u8> {
    HOMES[register.full_register().number() & 15]
}

/// The part of host register `host` that has the size of `like`.
fn sized(host: u8, like: Register) -> Register {
    let first = match like.size() {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    // Byte registers are listed with AH to BH in between.
    let index = if like.size() == 1 && host >= 4 { host + 4 } else { host };
    first + u32::from(index)
}

pub(super) fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// Registers of the host as iced's.
pub(super) fn wide(host: u8) -> Register {
    Register::RAX + u32::from(host)
}

/// The general form of an instruction that names the accumulator in its opcode.
pub(super) fn general_form(code: Code) -> Code {
    use Code::*;
    match code {
        Add_AL_imm8 => Add_rm8_imm8,
        Add_AX_imm16 => Add_rm16_imm16,
        Add_EAX_imm32 => Add_rm32_imm32,
        Add_RAX_imm32 => Add_rm64_imm32,
        Or_AL_imm8 => Or_rm8_imm8,
        Or_AX_imm16 => Or_rm16_imm16,
        Or_EAX_imm32 => Or_rm32_imm32,
        Or_RAX_imm32 => Or_rm64_imm32,
        Adc_AL_imm8 => Adc_rm8_imm8,
        Adc_AX_imm16 => Adc_rm16_imm16,
        Adc_EAX_imm32 => Adc_rm32_imm32,
        Adc_RAX_imm32 => Adc_rm64_imm32,
        Sbb_AL_imm8 => Sbb_rm8_imm8,
        Sbb_AX_imm16 => Sbb_rm16_imm16,
        Sbb_EAX_imm32 => Sbb_rm32_imm32,
        Sbb_RAX_imm32 => Sbb_rm64_imm32,
        And_AL_imm8 => And_rm8_imm8,
        And_AX_imm16 => And_rm16_imm16,
        And_EAX_imm32 => And_rm32_imm32,
        And_RAX_imm32 => And_rm64_imm32,
        Sub_AL_imm8 => Sub_rm8_imm8,
        Sub_AX_imm16 => Sub_rm16_imm16,
        Sub_EAX_imm32 => Sub_rm32_imm32,
        Sub_RAX_imm32 => Sub_rm64_imm32,
        Xor_AL_imm8 => Xor_rm8_imm8,
        Xor_AX_imm16 => Xor_rm16_imm16,
        Xor_EAX_imm32 => Xor_rm32_imm32,
        Xor_RAX_imm32 => Xor_rm64_imm32,
        Cmp_AL_imm8 => Cmp_rm8_imm8,
        Cmp_AX_imm16 => Cmp_rm16_imm16,
        Cmp_EAX_imm32 => Cmp_rm32_imm32,
        Cmp_RAX_imm32 => Cmp_rm64_imm32,
        Test_AL_imm8 => Test_rm8_imm8,
        Test_AX_imm16 => Test_rm16_imm16,
        Test_EAX_imm32 => Test_rm32_imm32,
        Test_RAX_imm32 => Test_rm64_imm32,
        Xchg_r16_AX => Xchg_rm16_r16,
        Xchg_r32_EAX => Xchg_rm32_r32,
        Xchg_r64_RAX => Xchg_rm64_r64,
        other => other,
    }
}

/// `op r, r/m` for `op r/m, r` and the other way round, for those that have both.
fn flipped(code: Code) -> Option<Code> {
    use Mnemonic::{Adc, Add, And, Cmp, Mov, Or, Sbb, Sub, Xor};
    if !matches!(code.mnemonic(), Add | Or | Adc | Sbb | And | Sub | Xor | Cmp | Mov) {
        return None;
    }
    // Four sizes of one, then four sizes of the other (a test asks the encoder's tables).
    let first = to_memory(code.mnemonic())? as usize;
    let place = (code as usize).checked_sub(first)?;
    let other = if place < 4 { place + 4 } else { place.checked_sub(4).filter(|place| *place < 4)? };
    Code::try_from(first + other).ok()
}

/// `op r/m8, r8`.
fn to_memory(mnemonic: Mnemonic) -> Option<Code> {
    Some(match mnemonic {
        Mnemonic::Add => Code::Add_rm8_r8,
        Mnemonic::Or => Code::Or_rm8_r8,
        Mnemonic::Adc => Code::Adc_rm8_r8,
        Mnemonic::Sbb => Code::Sbb_rm8_r8,
        Mnemonic::And => Code::And_rm8_r8,
        Mnemonic::Sub => Code::Sub_rm8_r8,
        Mnemonic::Xor => Code::Xor_rm8_r8,
        Mnemonic::Cmp => Code::Cmp_rm8_r8,
        Mnemonic::Mov => Code::Mov_rm8_r8,
        _ => return None,
    })
}

/// Whether the first operand of a form with two registers is `r/m`, for what [`flipped`] knows.
fn is_to_memory(code: Code) -> bool {
    to_memory(code.mnemonic()).is_some_and(|first| (code as usize).wrapping_sub(first as usize) < 4)
}

/// An instruction on registers, one of which lives in memory, as one that works there; if it has such a form. No upper
/// half may have to be cleared in memory.
fn in_memory(x: &Instruction) -> Option<(Instruction, u32)> {
    use Mnemonic as M;
    let plain = |n: u32| match x.op_kind(n) {
        OpKind::Register => !is_high_byte(x.op_register(n)),
        OpKind::Memory => false,
        _ => true,
    };
    let away = |n: &u32| {
        x.op_kind(*n) == OpKind::Register && x.op_register(*n).is_gpr() && home(x.op_register(*n)).is_none()
    };
    let mut aways = (0..x.op_count()).filter(away);
    let n = aways.next()?;
    if aways.next().is_some() || !(0..x.op_count()).all(plain) {
        return None;
    }
    let register = x.op_register(n);
    let mut y = *x;
    y.set_code(general_form(x.code()));
    let (code, other_register) = (y.code(), x.op_count() > 1 && x.op_kind(1) == OpKind::Register);
    let at = match (x.mnemonic(), n) {
        (M::Cmp | M::Test, 0) if !other_register => 0,
        (M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor, 0)
            if !other_register && register.size() != 4 =>
        {
            0
        }
        // By an immediate, or by CL.
        (M::Inc | M::Dec | M::Neg | M::Not | M::Shl | M::Sal | M::Shr | M::Sar | M::Rol | M::Ror, 0)
            if register.size() != 4 =>
        {
            0
        }
        (M::Mov, 0) if matches!(code, Code::Mov_rm64_imm32) => 0,
        (M::Test, 0) => 0,
        (M::Test, 1) => {
            y.set_op1_register(x.op0_register());
            0
        }
        (M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Mov, 0)
            if other_register
                && (register.size() != 4 || x.mnemonic() == M::Cmp)
                && to_memory(x.mnemonic()).is_some() =>
        {
            if !is_to_memory(code) {
                y.set_code(flipped(code)?);
            }
            0
        }
        (M::Add | M::Or | M::Adc | M::Sbb | M::And | M::Sub | M::Xor | M::Cmp | M::Mov, 1) => {
            let flipped = flipped(code)?;
            if is_to_memory(code) {
                y.set_code(flipped);
            }
            1
        }
        (M::Movzx | M::Movsx | M::Movsxd | M::Imul, 1) => 1,
        (M::Cvtsi2sd | M::Cvtsi2ss, 1) => 1,
        (M::Movq | M::Movd, 1) if matches!(code, Code::Movq_xmm_rm64 | Code::Movd_xmm_rm32) => 1,
        _ => return None,
    };
    let Mem { disp, .. } = layout::reg(register.full_register().number());
    y.set_op_kind(at, OpKind::Memory);
    y.set_memory_base(Register::RSP);
    y.set_memory_index(Register::None);
    y.set_memory_displacement64(disp as u64);
    y.set_memory_displ_size(8);
    y.set_segment_prefix(Register::None);
    Some((y, at))
}

impl Lower<'_> {
    /// Whether all general register operands can take another register's place. AH, BH, CH and DH are rotated into a low
    /// byte, which must not be part of a register that the instruction changes elsewhere.
    pub(super) fn registers_fit(x: &Instruction) -> bool {
        let registers = |n: &u32| x.op_kind(*n) == OpKind::Register;
        let mut high =
            (0..x.op_count()).filter(registers).filter(|n| is_high_byte(x.op_register(*n))).peekable();
        if high.peek().is_none() {
            return true;
        }
        let full = |n: u32| x.op_register(n).full_register();
        std::arch::is_x86_feature_detected!("bmi2")
            && !matches!(x.mnemonic(), Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Cmpxchg)
            && high.all(|n| {
                n == 0
                    || !(0..n).filter(registers).any(|m| full(m) == full(n) && is_high_byte(x.op_register(m)))
            })
    }

    /// Encodes `x` with its registers where they live. Its memory operand, if it has one, is `mem`; then only T0 is free for
    /// registers that live in memory, and `mem` may use T0 and T1.
    ///
    /// `before` runs after the operands are in place: it may set up flags, but not use T0 or T1.
    pub(super) fn encode(&mut self, x: &Instruction, mem: Option<Mem>, before: impl FnOnce(&mut Self)) {
        if let Some((mut y, at)) = in_memory(x).filter(|_| mem.is_none()) {
            for n in 0..y.op_count() {
                let register = y.op_register(n);
                if n != at
                    && y.op_kind(n) == OpKind::Register
                    && register.is_gpr()
                    && let Some(host) = home(register)
                {
                    y.set_op_register(n, sized(host, register));
                }
            }
            before(self);
            return self.emit(&y);
        }
        let mut y = *x;
        y.set_code(general_form(x.code()));
        let mut scratch = [T0, T1].into_iter();
        let mut mem = mem;
        let mut rotate_back = None;
        let mut write_back: [Option<(u8, usize)>; 2] = [None; 2];
        let mut loaded: [Option<(usize, u8)>; 2] = [None; 2];
        for n in 0..x.op_count() {
            if x.op_kind(n) != OpKind::Register || !x.op_register(n).is_gpr() {
                continue;
            }
            let register = x.op_register(n);
            let number = register.full_register().number();
            if let Some(home) = home(register).filter(|_| is_high_byte(register)) {
                mem = mem.map(|mem| self.without_t0(mem));
                let host = scratch.next().unwrap_or(T0);
                self.asm.rorx(host, home, 8);
                if writes(self.infos.info(x).op_access(n)) {
                    rotate_back = Some((home, host));
                }
                y.set_op_register(n, sized(host, register));
                continue;
            }
            let host = match home(register) {
                Some(host) => host,
                None => {
                    if let Some((_, host)) = loaded.iter().flatten().find(|(have, _)| *have == number) {
                        *host
                    } else {
                        mem = mem.map(|mem| self.without_t0(mem));
                        let host = scratch.next().unwrap_or(T0);
                        let replaced =
                            self.infos.info(x).op_access(n) == OpAccess::Write && register.size() >= 4;
                        let read_too = (0..x.op_count()).any(|m| {
                            m != n
                                && x.op_kind(m) == OpKind::Register
                                && x.op_register(m).full_register() == register.full_register()
                        });
                        if !replaced || read_too {
                            self.asm.load(host, layout::reg(number));
                        }
                        if let Some(place) = loaded.iter_mut().find(|place| place.is_none()) {
                            *place = Some((number, host));
                        }
                        host
                    }
                }
            };
            if home(register).is_none() && writes(self.infos.info(x).op_access(n)) {
                let place = usize::from(write_back[0].is_some());
                write_back[place] = Some((host, number));
            }
            y.set_op_register(n, sized(host, register));
        }
        if let Some(mem) = mem {
            let register = |host: Option<u8>| host.map_or(Register::None, wide);
            let operand = MemoryOperand::new(
                register(mem.base),
                register(mem.index.map(|index| index.0)),
                1 << mem.index.map_or(0, |index| index.1),
                mem.disp.into(),
                if mem.disp == 0 { 0 } else { 8 },
                false,
                Register::None,
            );
            y.set_memory_base(operand.base);
            y.set_memory_index(operand.index);
            y.set_memory_index_scale(operand.scale);
            y.set_memory_displacement64(operand.displacement as u64);
            y.set_memory_displ_size(operand.displ_size);
            y.set_segment_prefix(Register::None);
        }
        before(self);
        self.emit(&y);
        for (host, number) in write_back.into_iter().flatten() {
            self.asm.store(layout::reg(number), host);
        }
        if let Some((home, host)) = rotate_back {
            self.asm.rorx(home, host, 56);
        }
    }

    /// The same operand, with T1 for the whole address where T0 is part of it.
    pub(super) fn without_t0(&mut self, mem: Mem) -> Mem {
        if mem.base != Some(T0) && mem.index.is_none_or(|(index, _)| index != T0) {
            return mem;
        }
        self.asm.lea(T1, mem);
        at(T1, 0)
    }

    /// Appends an instruction whose operands are the host's.
    pub(super) fn emit(&mut self, y: &Instruction) {
        let names_r15 =
            |n: u32| y.op_kind(n) == OpKind::Register && y.op_register(n).full_register() == Register::R15;
        self.asm.r15_changed |= (0..y.op_count()).any(names_r15);
        self.encoder.set_buffer(std::mem::take(&mut self.asm.bytes));
        let before = self.encoder.encode(y, 0);
        self.asm.bytes = self.encoder.take_buffer();
        debug_assert!(before.is_ok(), "{y:?}: {before:?}");
        if before.is_err() {
            // Never reached for what is admitted; UD2 rather than wrong code.
            self.asm.raw(&[0x0f, 0x0b]);
        }
    }
}

pub(super) fn writes(access: OpAccess) -> bool {
    matches!(access, OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::OpCodeOperandKind as Kind;

    /// The flipped form is the same operation with its kinds of operands exchanged, for every code there is.
    #[test]
    fn flipped_forms_are_mirrored() {
        let mut seen = 0;
        for code in Code::values() {
            let Some(other) = flipped(code) else { continue };
            let (one, two) = (code.op_code(), other.op_code());
            assert_eq!(code.mnemonic(), other.mnemonic());
            assert_eq!((one.op_kind(0), one.op_kind(1)), (two.op_kind(1), two.op_kind(0)), "{code:?}");
            let memory = [Kind::r8_or_mem, Kind::r16_or_mem, Kind::r32_or_mem, Kind::r64_or_mem]
                .contains(&one.op_kind(0));
            assert_eq!(is_to_memory(code), memory, "{code:?}");
            seen += 1;
        }
        assert_eq!(seen, 9 * 8);
    }
}
