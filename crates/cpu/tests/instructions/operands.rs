//! The operands that an instruction names: registers, immediates, branch targets, memory in all addressing forms.

use crate::cases::{Builder, RSP};
use crate::window::{CODE, DATA, START};
use iced_x86::{Code, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register};

const GPR8: [Register; 20] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
    Register::SPL,
    Register::BPL,
    Register::SIL,
    Register::DIL,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
];

/// XSAVE, XSAVEOPT, XRSTOR.
pub(crate) fn is_xsave(code: Code) -> bool {
    matches!(
        code.mnemonic(),
        Mnemonic::Xsave
            | Mnemonic::Xsave64
            | Mnemonic::Xsaveopt
            | Mnemonic::Xsaveopt64
            | Mnemonic::Xrstor
            | Mnemonic::Xrstor64
    )
}

impl Builder {
    pub(crate) fn operands(&mut self, code: Code) -> Option<()> {
        let kinds = code.op_code().op_kinds();
        let mut immediates = 0;
        // String instructions with 32-bit addresses.
        let short = self.random.percent(10);
        for (index, kind) in kinds.iter().enumerate() {
            let index = index as u32;
            let memory = self.random.percent(60);
            let number =
                self.random.below(self.bits as u64 / 4) as u32 & if self.bits == 32 { 7 } else { 15 };
            let small = self.random.below(8) as u32;
            let value = self.random.integer();
            let byte = self.random.pick(if self.bits == 32 { &GPR8[..8] } else { &GPR8 });
            let register = match kind {
                Kind::r8_reg | Kind::r8_opcode => byte,
                Kind::r8_or_mem if !memory => byte,
                Kind::r16_reg | Kind::r16_rm | Kind::r16_opcode => Register::AX + number,
                Kind::r16_or_mem if !memory => Register::AX + number,
                Kind::r32_reg | Kind::r32_rm | Kind::r32_opcode => Register::EAX + number,
                Kind::r32_or_mem if !memory => Register::EAX + number,
                Kind::r64_reg | Kind::r64_rm | Kind::r64_opcode => Register::RAX + number,
                Kind::r64_or_mem if !memory => Register::RAX + number,
                Kind::mm_reg | Kind::mm_rm => Register::MM0 + small,
                Kind::mm_or_mem if !memory => Register::MM0 + small,
                Kind::xmm_reg | Kind::xmm_rm => Register::XMM0 + number,
                Kind::xmm_or_mem if !memory => Register::XMM0 + number,
                Kind::cr_reg => Register::CR0 + self.random.pick(&[0u32, 2, 3, 4, 8]),
                Kind::dr_reg => Register::DR0 + small,
                Kind::st0 => Register::ST0,
                Kind::sti_opcode => Register::ST0 + small,
                Kind::al => Register::AL,
                Kind::cl => Register::CL,
                Kind::ax => Register::AX,
                Kind::dx => Register::DX,
                Kind::eax => Register::EAX,
                Kind::rax => Register::RAX,
                Kind::seg_reg => Register::ES + number % 6,
                Kind::es => Register::ES,
                Kind::cs => Register::CS,
                Kind::ss => Register::SS,
                Kind::ds => Register::DS,
                Kind::fs => Register::FS,
                Kind::gs => Register::GS,
                _ => Register::None,
            };
            if register != Register::None {
                self.instruction.set_op_kind(index, OpKind::Register);
                self.instruction.set_op_register(index, register);
                continue;
            }
            let instruction = &mut self.instruction;
            match kind {
                Kind::mem
                | Kind::r8_or_mem
                | Kind::r16_or_mem
                | Kind::r32_or_mem
                | Kind::r64_or_mem
                | Kind::mm_or_mem
                | Kind::xmm_or_mem => {
                    instruction.set_op_kind(index, OpKind::Memory);
                    self.memory(code);
                }
                Kind::mem_offs => {
                    instruction.set_op_kind(index, OpKind::Memory);
                    instruction.set_memory_displ_size(self.bits / 8);
                    self.size = instruction.memory_size().size() as u64;
                    let address = self.address(self.size);
                    self.instruction.set_memory_displacement64(address);
                }
                Kind::imm8 => {
                    let value = if self.random.percent(50) { value as u8 } else { self.random.word() as u8 };
                    if immediates == 0 {
                        self.instruction.set_op_kind(index, OpKind::Immediate8);
                        self.instruction.set_immediate8(value);
                    } else {
                        self.instruction.set_op_kind(index, OpKind::Immediate8_2nd);
                        self.instruction.set_immediate8_2nd(value);
                    }
                    immediates += 1;
                }
                Kind::imm8_const_1 => {
                    instruction.set_op_kind(index, OpKind::Immediate8);
                    instruction.set_immediate8(1);
                }
                Kind::imm8sex16 => {
                    instruction.set_op_kind(index, OpKind::Immediate8to16);
                    instruction.set_immediate8to16(i16::from(value as i8));
                }
                Kind::imm8sex32 => {
                    instruction.set_op_kind(index, OpKind::Immediate8to32);
                    instruction.set_immediate8to32(i32::from(value as i8));
                }
                Kind::imm8sex64 => {
                    instruction.set_op_kind(index, OpKind::Immediate8to64);
                    instruction.set_immediate8to64(i64::from(value as i8));
                }
                Kind::imm16 => {
                    immediates += 1;
                    instruction.set_op_kind(index, OpKind::Immediate16);
                    instruction.set_immediate16(value as u16);
                }
                Kind::imm32 => {
                    instruction.set_op_kind(index, OpKind::Immediate32);
                    instruction.set_immediate32(value as u32);
                }
                Kind::imm32sex64 => {
                    instruction.set_op_kind(index, OpKind::Immediate32to64);
                    instruction.set_immediate32to64(i64::from(value as i32));
                }
                Kind::imm64 => {
                    instruction.set_op_kind(index, OpKind::Immediate64);
                    instruction.set_immediate64(value);
                }
                Kind::seg_rSI if short && self.bits == 32 => {
                    instruction.set_op_kind(index, OpKind::MemorySegSI)
                }
                Kind::es_rDI if short && self.bits == 32 => {
                    instruction.set_op_kind(index, OpKind::MemoryESDI)
                }
                Kind::seg_rDI if short && self.bits == 32 => {
                    instruction.set_op_kind(index, OpKind::MemorySegDI)
                }
                Kind::seg_rSI if short || self.bits == 32 => {
                    instruction.set_op_kind(index, OpKind::MemorySegESI)
                }
                Kind::es_rDI if short || self.bits == 32 => {
                    instruction.set_op_kind(index, OpKind::MemoryESEDI)
                }
                Kind::seg_rDI if short || self.bits == 32 => {
                    instruction.set_op_kind(index, OpKind::MemorySegEDI)
                }
                Kind::seg_rSI => instruction.set_op_kind(index, OpKind::MemorySegRSI),
                Kind::es_rDI => instruction.set_op_kind(index, OpKind::MemoryESRDI),
                Kind::seg_rDI => instruction.set_op_kind(index, OpKind::MemorySegRDI),
                Kind::seg_rBX_al => {
                    instruction.set_op_kind(index, OpKind::Memory);
                    instruction.set_memory_base(if self.bits == 32 { Register::EBX } else { Register::RBX });
                    instruction.set_memory_index(Register::AL);
                    let address = self.address(1);
                    let al = self.before.gprs[0] & 0xff;
                    self.set_gpr(Register::RBX, address.wrapping_sub(al));
                }
                Kind::br16_1 | Kind::br32_1 | Kind::br64_1 => {
                    // Not into the instruction itself.
                    let target = START + 16 + self.random.below(96);
                    let target =
                        if self.random.percent(50) { target } else { START - 1 - self.random.below(100) };
                    self.near_branch(index, *kind, target);
                }
                Kind::br16_2 | Kind::br32_4 | Kind::br64_4 => {
                    let target = self.branch_target() & 0x7fff_ffff;
                    self.near_branch(index, *kind, target);
                }
                other => panic!("{code:?}: no generator for an operand of kind {other:?}"),
            }
        }
        Some(())
    }

    fn near_branch(&mut self, operand: u32, kind: Kind, target: u64) {
        let instruction = &mut self.instruction;
        match kind {
            Kind::br16_1 | Kind::br16_2 => {
                instruction.set_op_kind(operand, OpKind::NearBranch16);
                instruction.set_near_branch16(target as u16);
            }
            Kind::br32_1 | Kind::br32_4 => {
                instruction.set_op_kind(operand, OpKind::NearBranch32);
                instruction.set_near_branch32(target as u32);
            }
            _ => {
                instruction.set_op_kind(operand, OpKind::NearBranch64);
                instruction.set_near_branch64(target);
            }
        }
    }

    /// Mostly INT3s of the code page; sometimes pages that cannot be fetched from.
    pub(crate) fn branch_target(&mut self) -> u64 {
        match self.random.below(10) {
            0..6 => START + 32 + self.random.below(0x700),
            6..8 => CODE + self.random.below(0x7f0),
            8 => DATA + self.random.below(0x4000),
            _ => 0x4000_0000 + self.random.below(0x1000_0000),
        }
    }

    /// A ModRM memory operand: draws the address first, then a form, then makes the registers fit.
    fn memory(&mut self, code: Code) {
        let size = self.instruction.memory_size();
        self.size = if is_xsave(code) { 576 } else { size.size() as u64 };
        let mut address = self.address(self.size.max(1));
        if matches!(
            code.mnemonic(),
            Mnemonic::Fxsave | Mnemonic::Fxrstor | Mnemonic::Fxsave64 | Mnemonic::Fxrstor64
        ) && self.random.percent(80)
        {
            address &= !15;
        }
        if is_xsave(code) && self.random.percent(80) {
            address &= !63;
        }
        self.fill(address, size);
        self.contents(code, address);
        if self.bits == 32 && self.random.percent(5) {
            return self.memory16();
        }
        let wide = self.bits == 64 && (self.random.percent(90) || address > u64::from(u32::MAX));
        let first = if wide { Register::RAX } else { Register::EAX };
        let registers = if self.bits == 32 { 8 } else { 16 };
        let base = first + self.random.below(registers) as u32;
        let index = first + self.random.below(registers) as u32;
        let displacement = match self.random.below(3) {
            0 => i64::from(self.random.word() as i8),
            _ => i64::from(self.random.word() as i32),
        };
        if self.random.percent(5) {
            let segments = [Register::ES, Register::CS, Register::SS, Register::DS, Register::GS];
            self.instruction.set_segment_prefix(self.random.pick(&segments));
        }
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        match self.random.below(10) {
            // Absolute or relative to RIP.
            0 if address < 0x7000_0000 => {
                self.instruction.set_memory_displ_size(self.bits / 8);
                if self.bits == 64 && self.random.percent(50) {
                    self.instruction.set_memory_base(Register::RIP);
                }
                self.instruction.set_memory_displacement64(address);
            }
            1..5 if index != base && index.number() != RSP => {
                let scale = 1 << self.random.below(4);
                let step = self.random.integer() & mask;
                self.instruction.set_memory_base(base);
                self.instruction.set_memory_index(index);
                self.instruction.set_memory_index_scale(scale);
                self.displacement(displacement, wide);
                self.set_gpr(index, step);
                let rest =
                    address.wrapping_sub(step.wrapping_mul(scale.into())).wrapping_sub(displacement as u64);
                self.set_gpr(base, rest & mask);
            }
            5..8 => {
                self.instruction.set_memory_base(base);
                self.displacement(displacement, wide);
                self.set_gpr(base, address.wrapping_sub(displacement as u64) & mask);
            }
            _ => {
                self.instruction.set_memory_base(base);
                self.set_gpr(base, address);
            }
        }
        if !wide && self.bits == 64 {
            // The upper halves do not count.
            let noise = self.random.word() << 32;
            for register in [self.instruction.memory_base(), self.instruction.memory_index()] {
                if register.is_gpr32() {
                    self.before.gprs[register.number()] |= noise;
                }
            }
        }
    }

    /// 16-bit addressing: nothing is mapped so low, but the page fault shows the address.
    fn memory16(&mut self) {
        const FORMS: [(Register, Register); 8] = [
            (Register::BX, Register::SI),
            (Register::BX, Register::DI),
            (Register::BP, Register::SI),
            (Register::BP, Register::DI),
            (Register::SI, Register::None),
            (Register::DI, Register::None),
            (Register::BP, Register::None),
            (Register::BX, Register::None),
        ];
        let (base, index) = self.random.pick(&FORMS);
        let displacement = self.random.word() & 0xffff;
        self.instruction.set_memory_base(base);
        self.instruction.set_memory_index(index);
        self.instruction.set_memory_displ_size(2);
        self.instruction.set_memory_displacement64(displacement);
    }

    fn displacement(&mut self, displacement: i64, wide: bool) {
        self.instruction.set_memory_displ_size(if wide { 8 } else { 4 });
        self.instruction.set_memory_displacement64(if wide {
            displacement as u64
        } else {
            u64::from(displacement as u32)
        });
    }
}
