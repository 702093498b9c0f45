//! One case: an instruction with random operands, and everything that it will find.

use crate::forms::Form;
use crate::operands::is_xsave;
use crate::random::Random;
use crate::window::{DATA, DATA_SIZE, Fx, START, State};
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

pub(crate) const RSP: usize = 4;
const RBP: usize = 5;
const RSI: usize = 6;
const RDI: usize = 7;

/// A case in the making.
pub(crate) struct Builder {
    pub(crate) random: Random,
    pub(crate) bits: u32,
    pub(crate) instruction: Instruction,
    pub(crate) before: State,
    /// Bytes of the memory operand.
    pub(crate) size: u64,
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
        if is_xsave(code) && (builder.addressed_by(Register::RAX) || builder.addressed_by(Register::RDX)) {
            return None;
        }
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
    pub(crate) fn address(&mut self, size: u64) -> u64 {
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

    pub(crate) fn set_gpr(&mut self, register: Register, value: u64) {
        self.before.gprs[register.full_register().number()] = value;
    }

    /// Fills the operand's place with values of its type.
    pub(crate) fn fill(&mut self, address: u64, size: MemorySize) {
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

    /// Operands that must make sense: branch targets, save images.
    pub(crate) fn contents(&mut self, code: Code, address: u64) {
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
            Mnemonic::Xrstor | Mnemonic::Xrstor64 => {
                let mut area = [0; 576];
                for place in (0..512).step_by(16) {
                    area[place..place + 16].copy_from_slice(&self.random.vector());
                }
                area[..32].copy_from_slice(&self.before.fx.0[..32]);
                if self.random.percent(5) {
                    area[26] = 1;
                }
                area[512] = self.random.below(4) as u8;
                if self.random.percent(10) {
                    // Components that nobody has, a compacted size, reserved bytes.
                    area[self.random.pick(&[518, 520, 526, 528, 535])] = 0x40;
                }
                self.poke(address, &area);
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
        if is_xsave(code) {
            // Our processor has the components 0 and 1, the host more.
            self.before.gprs[0] = self.random.below(4) | self.random.word() << 32;
            self.before.gprs[2] = self.random.word() << 32;
        }
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
            | Mnemonic::Call
                if !self.addressed_by(Register::RSP)
                    && self.instruction.op0_register().full_register() != Register::RSP =>
            {
                self.before.gprs[RSP] = self.address(size).wrapping_add(size);
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
