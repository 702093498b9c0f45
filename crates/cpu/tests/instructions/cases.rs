//! One case: an instruction with random operands, and everything that it will find.

use crate::forms::Form;
use crate::random::Random;
use crate::window::{CODE, DATA, DATA_SIZE, Fx, START, State};
use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Instruction, MemorySize, Mnemonic,
    OpCodeOperandKind as Kind, OpKind, Register,
};

/// One case.
pub(crate) struct Case {
    pub(crate) seed: u64,
    /// 64, or 32: compatibility mode.
    pub(crate) bits: u32,
    pub(crate) instruction: Instruction,
    pub(crate) bytes: Vec<u8>,
    pub(crate) before: State,
}

const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

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

struct Builder {
    random: Random,
    bits: u32,
    instruction: Instruction,
    before: State,
    /// Bytes of the memory operand.
    size: u64,
}

impl Case {
    /// The case of `seed` for `form`; `None` if the operands drawn cannot be encoded together.
    pub(crate) fn new(seed: u64, form: Form) -> Option<Case> {
        let Form { code, bits } = form;
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        let mut builder = Builder {
            random: Random::new(seed),
            bits,
            instruction,
            before: State {
                gprs: [0; 16],
                rip: START,
                rflags: 0,
                fx: Fx([0; 512]),
                data: Box::new([0; DATA_SIZE]),
            },
            size: 0,
        };
        builder.registers();
        builder.memory_noise();
        builder.operands(code)?;
        builder.implicit(code);
        let mut encoder = Encoder::new(bits);
        encoder.encode(&builder.instruction, START).ok()?;
        let mut bytes = encoder.take_buffer();
        builder.prefixes(code, &mut bytes);
        let instruction = Decoder::with_ip(bits, &bytes, START, DecoderOptions::NONE).decode();
        if instruction.len() != bytes.len() || instruction.mnemonic() != code.mnemonic() {
            return None;
        }
        // A prefix moved the target into the instruction itself.
        if (START..START + 16).contains(&instruction.near_branch_target()) {
            return None;
        }
        // The upper half of the address space is the host kernel's: its pages are there or not as it likes.
        let kernel = |address: u64| address >> 47 == 0x1_ffff;
        let gprs = &builder.before.gprs;
        let memory = instruction.virtual_address(0, 0, |register, _, _| {
            Some(if register.is_segment_register() {
                0
            } else {
                narrow(gprs[register.full_register().number() & 15], register)
            })
        });
        let bit = if instruction.op1_kind() == OpKind::Register
            && matches!(code.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        {
            sign_extend(gprs[instruction.op1_register().full_register().number()], instruction.op1_register())
                >> 3
        } else {
            0
        };
        let stack = instruction.is_stack_instruction() && kernel(gprs[RSP].wrapping_sub(8));
        if stack || memory.is_some_and(|address| kernel(address) || kernel(address.wrapping_add(bit as u64)))
        {
            return None;
        }
        if code == Code::Movsxd_r16_rm16 {
            // Reads two bytes, but wants them aligned to four here.
            builder.before.rflags &= !0x4_0000;
        }
        if bits == 32 {
            for value in &mut builder.before.gprs {
                *value &= 0xffff_ffff;
            }
        }
        Some(Case { seed, bits, instruction, bytes, before: builder.before })
    }
}

/// What an address register contributes.
pub(crate) fn narrow(value: u64, register: Register) -> u64 {
    match register.size() {
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    }
}

fn sign_extend(value: u64, register: Register) -> i64 {
    match register.size() {
        2 => i64::from(value as i16),
        4 => i64::from(value as i32),
        _ => value as i64,
    }
}

impl Builder {
    fn registers(&mut self) {
        let random = &mut self.random;
        for value in &mut self.before.gprs {
            *value = random.integer();
        }
        self.before.gprs[RSP] = DATA + 0x1000 + 8 * random.below(32);
        // Status flags and, seldom, DF; IF is always set in ring 3 here, bit 1 always.
        let direction = if random.percent(20) { 0x400 } else { 0 };
        // AC: unaligned accesses are #AC (the kernel has set CR0.AM).
        let alignment = if random.percent(8) { 0x4_0000 } else { 0 };
        self.before.rflags = random.word() & 0x8d5 | direction | alignment | 0x202;
        let fx = &mut self.before.fx.0;
        for register in 0..16 {
            fx[160 + 16 * register..176 + 16 * register].copy_from_slice(&random.vector());
        }
        let mxcsr: u32 = match random.below(10) {
            0..5 => 0x1f80,
            5..8 => 0x1f80 | (random.word() as u32 & 0xe07f),
            _ => random.word() as u32 & 0xffff,
        };
        fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        for register in 0..8 {
            let value = if random.percent(10) {
                // An MMX register.
                let mut value = [0xff; 10];
                value[..8].copy_from_slice(&random.integer().to_le_bytes());
                value
            } else {
                random.float80()
            };
            fx[32 + 16 * register..42 + 16 * register].copy_from_slice(&value);
        }
        let fcw = match random.below(10) {
            0..5 => 0x37f,
            5..8 => 0x7f | (random.word() as u16 & 0x0f00),
            _ => 0x40 | (random.word() as u16 & 0x0f3f),
        };
        let mut fsw = random.word() as u16 & 0x7f00;
        if random.percent(30) {
            fsw |= random.word() as u16 & 0x7f;
        }
        if random.percent(80) {
            fsw &= !(!fcw & 0x3f);
        }
        if fsw & !fcw & 0x3f != 0 {
            fsw |= 0x8080;
        }
        if random.percent(50) {
            fsw &= !0x3800;
        }
        fx[..2].copy_from_slice(&fcw.to_le_bytes());
        fx[2..4].copy_from_slice(&fsw.to_le_bytes());
        fx[4] = match random.below(4) {
            0..2 => 0xff,
            2 => random.word() as u8,
            _ => 0,
        };
    }

    fn memory_noise(&mut self) {
        thread_local! {
            static POOL: Vec<u8> = {
                let mut random = Random::new(0);
                (0..0x2000).flat_map(|_| random.vector()).collect()
            };
        }
        POOL.with(|pool| {
            let from = 16 * self.random.below(((pool.len() - DATA_SIZE) / 16) as u64) as usize;
            self.before.data.copy_from_slice(&pool[from..from + DATA_SIZE]);
        });
    }

    /// Where a memory operand of `size` bytes goes: mostly good places, some that fault.
    fn address(&mut self, size: u64) -> u64 {
        let random = &mut self.random;
        let inside = 0x2000 - size.min(0x800) - 64;
        let across = |random: &mut Random| random.below(size.max(1)) + u64::from(size == 1);
        match random.below(100) {
            0..55 => DATA + (random.below(inside) & !63),
            55..78 => DATA + random.below(inside),
            78..84 => DATA + 0x1000 - across(random),
            84..88 => DATA + 0x2000 - across(random),
            88..91 => DATA + 0x2000 + random.below(0x1000 - size.min(0x800)),
            91..94 => DATA + 0x3000 - across(random),
            94..96 => DATA - across(random),
            96..98 => 0x4000_0000 + random.below(0x1000_0000),
            _ if self.bits == 32 => 0xf000_0000 + random.below(0x0fff_0000),
            _ => 0x8000_0000_0000 + random.below(1 << 40),
        }
    }

    fn set_gpr(&mut self, register: Register, value: u64) {
        self.before.gprs[register.full_register().number()] = value;
    }

    /// Fills the operand's place with values of its type.
    fn fill(&mut self, address: u64, size: MemorySize) {
        let bytes = size.size();
        let element = size.element_size().clamp(1, 16);
        let mut at = address;
        let end = address + bytes as u64;
        while at < end {
            let value: Vec<u8> = match size.element_type() {
                MemorySize::Float32 => self.random.float32().to_le_bytes().to_vec(),
                MemorySize::Float64 => self.random.float64().to_le_bytes().to_vec(),
                MemorySize::Float80 => self.random.float80().to_vec(),
                MemorySize::Bcd => {
                    (0..10).map(|_| (self.random.below(10) | self.random.below(10) << 4) as u8).collect()
                }
                _ if bytes > 16 => return,
                _ => self.random.integer().to_le_bytes().into_iter().cycle().take(element).collect(),
            };
            self.poke(at, &value);
            at += value.len() as u64;
        }
    }

    /// Writes initial memory, where there is some.
    fn poke(&mut self, address: u64, bytes: &[u8]) {
        for (place, byte) in (address..).zip(bytes) {
            if let Some(cell) =
                place.checked_sub(DATA).and_then(|offset| self.before.data.get_mut(offset as usize))
            {
                *cell = *byte;
            }
        }
    }

    fn operands(&mut self, code: Code) -> Option<()> {
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
    fn branch_target(&mut self) -> u64 {
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
        self.size = size.size() as u64;
        let mut address = self.address(self.size.max(1));
        if matches!(
            code.mnemonic(),
            Mnemonic::Fxsave | Mnemonic::Fxrstor | Mnemonic::Fxsave64 | Mnemonic::Fxrstor64
        ) && self.random.percent(80)
        {
            address &= !15;
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

    /// Operands that must make sense: branch targets, save images.
    fn contents(&mut self, code: Code, address: u64) {
        match code.mnemonic() {
            Mnemonic::Jmp | Mnemonic::Call => {
                let wild = code.mnemonic() == Mnemonic::Jmp && self.random.percent(10);
                let target = if wild { 1 << 63 } else { self.branch_target() };
                self.poke(address, &target.to_le_bytes());
            }
            Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => {
                let mut image = self.before.fx.0;
                let mut other = Random::new(self.random.word());
                for place in (32..416).step_by(16) {
                    image[place..place + 16].copy_from_slice(&other.vector());
                }
                if other.percent(90) {
                    image[26..28].fill(0);
                } else {
                    image[24..28].copy_from_slice(&(other.word() as u32).to_le_bytes());
                }
                self.poke(address, &image);
            }
            Mnemonic::Ldmxcsr => {
                let mask = if self.random.percent(80) { 0xffff } else { u32::MAX };
                let value = self.random.word() as u32 & mask;
                self.poke(address, &value.to_le_bytes());
            }
            _ => {}
        }
    }

    /// Registers that the instruction uses without naming them, and memory operands through named ones.
    fn implicit(&mut self, code: Code) {
        let kinds = code.op_code().op_kinds();
        let string = |kind: &Kind| matches!(kind, Kind::seg_rSI | Kind::es_rDI | Kind::seg_rDI);
        if kinds.iter().any(string) {
            let size = self.instruction.memory_size().size() as u64;
            self.before.gprs[RSI] = self.address(size);
            self.before.gprs[RDI] = self.address(size);
            let (rsi, rdi) = (self.before.gprs[RSI], self.before.gprs[RDI]);
            self.fill(rsi, self.instruction.memory_size());
            if self.random.percent(50) {
                // Equal runs, so that comparisons go on for a while.
                let run = vec![0x5a; 256];
                self.poke(rsi.saturating_sub(128), &run);
                self.poke(rdi.saturating_sub(128), &run);
                if self.random.percent(50) {
                    self.before.gprs[0] = 0x5a5a_5a5a_5a5a_5a5a;
                }
            }
            self.before.gprs[1] = if self.random.percent(90) { self.random.below(40) } else { 1 << 40 };
        }
        let mnemonic = code.mnemonic();
        if matches!(mnemonic, Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
            && self.instruction.op0_kind() == OpKind::Memory
            && self.instruction.op1_kind() == OpKind::Register
        {
            let register = self.instruction.op1_register();
            let used = [
                self.instruction.memory_base().full_register(),
                self.instruction.memory_index().full_register(),
            ];
            if !used.contains(&register.full_register()) {
                let bit = self.random.below(4096).wrapping_sub(2048);
                let noise = if register.is_gpr64() { 0 } else { self.random.word() << 32 };
                let value = if noise == 0 { bit } else { bit & 0xffff_ffff | noise };
                self.set_gpr(register, value);
            }
        }
        let size = self.bits as u64 / 8;
        match mnemonic {
            Mnemonic::Push
            | Mnemonic::Pushf
            | Mnemonic::Pushfd
            | Mnemonic::Pushfq
            | Mnemonic::Pusha
            | Mnemonic::Pushad
            | Mnemonic::Call => {
                if !self.addressed_by(Register::RSP)
                    && self.instruction.op0_register().full_register() != Register::RSP
                {
                    self.before.gprs[RSP] = self.address(size).wrapping_add(size);
                }
            }
            Mnemonic::Pop
            | Mnemonic::Popf
            | Mnemonic::Popfd
            | Mnemonic::Popfq
            | Mnemonic::Popa
            | Mnemonic::Popad
            | Mnemonic::Ret => {
                if !self.addressed_by(Register::RSP) {
                    self.before.gprs[RSP] = self.address(size);
                }
                let top = self.before.gprs[RSP];
                let value = match mnemonic {
                    Mnemonic::Ret if self.bits == 64 && self.random.percent(10) => 1 << 63,
                    Mnemonic::Ret => self.branch_target(),
                    Mnemonic::Pop => self.random.integer(),
                    // Not TF: it would strike before the end; NT belongs to the kernel.
                    _ => self.random.word() & !0x4100,
                };
                self.poke(top, &value.to_le_bytes());
            }
            Mnemonic::Leave => {
                self.before.gprs[RBP] = self.address(size);
            }
            Mnemonic::Enter => {
                self.before.gprs[RBP] = self.address(size);
                self.before.gprs[RSP] = self.address(size).wrapping_add(size);
            }
            _ => {}
        }
        // Branches through a register.
        if matches!(mnemonic, Mnemonic::Jmp | Mnemonic::Call)
            && self.instruction.op0_kind() == OpKind::Register
        {
            // Which of two faults comes first differs between processors.
            let stack = self.before.gprs[RSP].wrapping_sub(8);
            let good = (DATA..DATA + 0x2000).contains(&stack) && mnemonic == Mnemonic::Jmp;
            let target = if good && self.random.percent(10) { 1 << 63 } else { self.branch_target() };
            self.set_gpr(self.instruction.op0_register(), target);
        }
        if matches!(
            mnemonic,
            Mnemonic::Loop
                | Mnemonic::Loope
                | Mnemonic::Loopne
                | Mnemonic::Jcxz
                | Mnemonic::Jecxz
                | Mnemonic::Jrcxz
        ) && self.random.percent(50)
        {
            self.before.gprs[1] = self.random.below(3) | self.random.below(2) << 32;
        }
        // A quotient that fits, now and then.
        if matches!(mnemonic, Mnemonic::Div | Mnemonic::Idiv)
            && self.random.percent(60)
            && !self.addressed_by(Register::RDX)
        {
            self.before.gprs[2] = self.random.below(3).wrapping_sub(1);
        }
        // Equal comparands, now and then.
        if matches!(mnemonic, Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b | Mnemonic::Cmpxchg)
            && self.random.percent(50)
        {
            self.equal_comparand();
        }
    }

    fn addressed_by(&self, register: Register) -> bool {
        [self.instruction.memory_base(), self.instruction.memory_index()]
            .iter()
            .any(|used| used.full_register() == register)
    }

    /// Puts RDX:RAX where the memory operand is, if that is plainly in the window.
    fn equal_comparand(&mut self) {
        let base = self.instruction.memory_base();
        if base == Register::None || self.instruction.memory_index() != Register::None {
            return;
        }
        let address = self.before.gprs[base.full_register().number() & 15]
            .wrapping_add(self.instruction.memory_displacement64());
        let half = self.size / 2;
        let (low, high) = (self.before.gprs[0], self.before.gprs[2]);
        let mut value = low.to_le_bytes()[..half.min(8) as usize].to_vec();
        value.extend_from_slice(&high.to_le_bytes()[..half.min(8) as usize]);
        if self.instruction.mnemonic() == Mnemonic::Cmpxchg {
            value = low.to_le_bytes()[..self.size.min(8) as usize].to_vec();
        }
        self.poke(address, &value);
    }

    fn prefixes(&mut self, code: Code, bytes: &mut Vec<u8>) {
        let info = code.op_code();
        if info.can_use_rep_prefix() && self.random.percent(60) {
            bytes.insert(0, 0xf3);
        } else if info.can_use_repne_prefix() && self.random.percent(60) {
            bytes.insert(0, 0xf2);
        } else if info.can_use_lock_prefix() && self.random.percent(25) {
            bytes.insert(0, 0xf0);
        } else if self.random.percent(4) {
            // Mostly without effect; where it makes another instruction of it, the case is dropped.
            // 66, F2 and F3 before a branch are a matter of the maker: AMD truncates RIP for 66 (see `forms`)
            // and makes LOOPE of LOOPNE and back for F2 and F3.
            let prefixes: &[u8] = &[0x2e, 0x3e, 0x26, 0x36, 0x65, 0x40, 0x48, 0xf0, 0x66, 0xf2, 0xf3];
            let branch = self.instruction.flow_control() != FlowControl::Next;
            bytes.insert(0, self.random.pick(&prefixes[..if branch { 7 } else { prefixes.len() }]));
        }
    }
}
