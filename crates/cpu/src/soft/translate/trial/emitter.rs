//! Every sequence of emitter calls yields code that the decoder reads back as what was meant.

use super::super::asm::{Alu, Asm, Label, Mem, Shift, host};
use super::Choices;
use iced_x86::{
    Code, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, OpAccess, OpKind, Register,
};

/// Calls of a sequence.
const CALLS_MAX: usize = 200;
/// Most bytes that one call emits.
const CALL_BYTES: usize = 32;

/// An operand as it was meant.
#[derive(Clone, Copy, Debug)]
enum Operand {
    Register(Register),
    Memory(Mem),
    /// A number of so many bits.
    Immediate(i64, u32),
    Label(Label),
    /// An address in the code memory.
    Address(u64),
}

/// An instruction as it was meant.
type Meant = (Code, Vec<Operand>);

/// A call: where its bytes are, and what they mean.
struct Call {
    bytes: std::ops::Range<usize>,
    meant: Vec<Meant>,
    /// Where it said that its distance stands.
    distance: Option<u64>,
}

fn gpr64(number: u8) -> Register {
    Register::RAX + u32::from(number)
}
fn gpr32(number: u8) -> Register {
    Register::EAX + u32::from(number)
}
fn xmm(number: u8) -> Register {
    Register::XMM0 + u32::from(number)
}
fn gpr(wide: bool, number: u8) -> Register {
    if wide { gpr64(number) } else { gpr32(number) }
}

/// The ADD group: 64 and 32 bits from register or memory, then with immediates of 8 and 32 bits.
#[rustfmt::skip]
const ALUS: [(Alu, [Code; 6]); 6] = [
    (Alu::Add, [Code::Add_r64_rm64, Code::Add_r32_rm32, Code::Add_rm64_imm8, Code::Add_rm64_imm32, Code::Add_rm32_imm8, Code::Add_rm32_imm32]),
    (Alu::Or, [Code::Or_r64_rm64, Code::Or_r32_rm32, Code::Or_rm64_imm8, Code::Or_rm64_imm32, Code::Or_rm32_imm8, Code::Or_rm32_imm32]),
    (Alu::And, [Code::And_r64_rm64, Code::And_r32_rm32, Code::And_rm64_imm8, Code::And_rm64_imm32, Code::And_rm32_imm8, Code::And_rm32_imm32]),
    (Alu::Sub, [Code::Sub_r64_rm64, Code::Sub_r32_rm32, Code::Sub_rm64_imm8, Code::Sub_rm64_imm32, Code::Sub_rm32_imm8, Code::Sub_rm32_imm32]),
    (Alu::Xor, [Code::Xor_r64_rm64, Code::Xor_r32_rm32, Code::Xor_rm64_imm8, Code::Xor_rm64_imm32, Code::Xor_rm32_imm8, Code::Xor_rm32_imm32]),
    (Alu::Cmp, [Code::Cmp_r64_rm64, Code::Cmp_r32_rm32, Code::Cmp_rm64_imm8, Code::Cmp_rm64_imm32, Code::Cmp_rm32_imm8, Code::Cmp_rm32_imm32]),
];

/// Conditional jumps by their condition code.
#[rustfmt::skip]
const JUMPS: [Code; 16] = [
    Code::Jo_rel32_64, Code::Jno_rel32_64, Code::Jb_rel32_64, Code::Jae_rel32_64, Code::Je_rel32_64, Code::Jne_rel32_64,
    Code::Jbe_rel32_64, Code::Ja_rel32_64, Code::Js_rel32_64, Code::Jns_rel32_64, Code::Jp_rel32_64, Code::Jnp_rel32_64,
    Code::Jl_rel32_64, Code::Jge_rel32_64, Code::Jle_rel32_64, Code::Jg_rel32_64,
];

/// Feeds the emitter with calls that `bytes` choose.
pub fn emit(bytes: &[u8]) {
    let mut trial = Trial::new(&mut Choices(bytes));
    let mut choices = Choices(bytes.get(8..).unwrap_or_default());
    while !choices.0.is_empty() && trial.calls.len() < CALLS_MAX {
        trial.call(&mut choices);
    }
    trial.finish();
    trial.check();
}

struct Trial {
    asm: Asm,
    base: u64,
    calls: Vec<Call>,
    labels: Vec<(Label, Option<u64>)>,
    infos: InstructionInfoFactory,
}

impl Trial {
    fn new(choices: &mut Choices<'_>) -> Trial {
        // Canonical, as mappings are, with room for code on both sides.
        let base = 0x1_0000_0000 + (choices.u64() & 0x7ffe_ffff_ffff);
        let mut asm = Asm::new(base, vec![0xcc; 3]);
        let labels = (0..4).map(|_| (asm.label(), None)).collect();
        Trial { asm, base, calls: Vec::new(), labels, infos: InstructionInfoFactory::new() }
    }

    fn label(&self, choices: &mut Choices<'_>) -> Label {
        self.labels[usize::from(choices.u8()) % self.labels.len()].0
    }

    /// An address that a direct jump reaches.
    fn address(&self, choices: &mut Choices<'_>) -> u64 {
        self.base.wrapping_add_signed(i64::from(choices.i32() >> 1))
    }

    fn mem(choices: &mut Choices<'_>) -> Mem {
        let shape = choices.u8();
        let base = (shape & 3 != 0).then(|| choices.u8() & 15);
        // RSP is no index.
        let index = (shape & 12 == 0).then(|| (choices.u8() & 15, choices.u8() & 3));
        let index = index.filter(|index| index.0 != host::RSP);
        Mem { base, index, disp: choices.i32() }
    }

    /// One call.
    fn call(&mut self, choices: &mut Choices<'_>) {
        let from = self.asm.bytes.len();
        self.asm.r15_changed = false;
        let mut distance = None;
        let what = choices.u8() % 56;
        let meant = match what {
            0..40 => self.plain(what, choices),
            40..50 => self.flow(what, choices, &mut distance),
            50..53 => self.bind(choices),
            _ => self.flags(what, choices),
        };
        let bytes = from..self.asm.bytes.len();
        assert!(bytes.len() <= CALL_BYTES, "one call emitted {} bytes", bytes.len());
        assert_eq!(self.asm.here(), self.base + bytes.end as u64);
        self.notes_r15(&bytes);
        self.calls.push(Call { bytes, meant, distance });
    }

    /// Whoever writes R15 says so.
    fn notes_r15(&mut self, bytes: &std::ops::Range<usize>) {
        let mut decoder = Decoder::with_ip(64, &self.asm.bytes[bytes.clone()], 0, DecoderOptions::NONE);
        for x in &mut decoder {
            let written = self.infos.info(&x).used_registers().iter().any(|used| {
                let writes =
                    !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
                writes && used.register().full_register() == Register::R15
            });
            assert!(!written || self.asm.r15_changed, "{x} changes R15 unnoticed");
        }
    }

    /// Moves and arithmetic.
    fn plain(&mut self, what: u8, choices: &mut Choices<'_>) -> Vec<Meant> {
        use Operand::{Immediate, Memory, Register};
        let (a, b, mem, wide) = (choices.u8() & 15, choices.u8() & 15, Self::mem(choices), choices.flag());
        let value = choices.i32();
        let short = i8::try_from(value).is_ok();
        let asm = &mut self.asm;
        let (op, codes) = ALUS[usize::from(choices.u8()) % ALUS.len()];
        let one = |code, operands: &[Operand]| vec![(code, operands.to_vec())];
        let pick = |yes: bool, a: Code, b: Code| if yes { a } else { b };
        let (a64, a32, b64, b32) =
            (Register(gpr64(a)), Register(gpr32(a)), Register(gpr64(b)), Register(gpr32(b)));
        let (memory, number) = (Memory(mem), Immediate(value.into(), 32));
        match what {
            0 => (asm.mov(a, b), one(Code::Mov_r64_rm64, &[a64, b64])),
            1 => (asm.mov32(a, b), one(Code::Mov_r32_rm32, &[a32, b32])),
            2 => (asm.movsxd(a, b), one(Code::Movsxd_r64_rm32, &[a64, b32])),
            3 => (asm.load(a, mem), one(Code::Mov_r64_rm64, &[a64, memory])),
            4 => (asm.store(mem, a), one(Code::Mov_rm64_r64, &[memory, a64])),
            5 => (asm.load16(a, mem), one(Code::Movzx_r32_rm16, &[a32, memory])),
            6 => {
                let register = Register(iced_x86::Register::AX + u32::from(a));
                (asm.store16(mem, a), one(Code::Mov_rm16_r16, &[memory, register]))
            }
            7 => {
                let byte = value as u8;
                (asm.store8_imm(mem, byte), one(Code::Mov_rm8_imm8, &[memory, Immediate(byte.into(), 8)]))
            }
            8 => (asm.store32_imm(mem, value as u32), one(Code::Mov_rm32_imm32, &[memory, number])),
            9 => {
                (asm.store_imm(mem, value), one(Code::Mov_rm64_imm32, &[memory, Immediate(value.into(), 64)]))
            }
            10..13 => {
                let value = match what {
                    10 => value as u32 as u64,
                    11 => value as i64 as u64,
                    _ => choices.u64(),
                };
                let meant = if u32::try_from(value).is_ok() {
                    one(Code::Mov_r32_imm32, &[a32, Immediate(value as i64, 32)])
                } else if i32::try_from(value as i64).is_ok() {
                    one(Code::Mov_rm64_imm32, &[a64, Immediate(value as i64, 64)])
                } else {
                    one(Code::Mov_r64_imm64, &[a64, Immediate(value as i64, 64)])
                };
                (asm.mov_imm(a, value), meant)
            }
            13 => (asm.lea(a, mem), one(Code::Lea_r64_m, &[a64, memory])),
            14 => (asm.lea32(a, mem), one(Code::Lea_r32_m, &[a32, memory])),
            15 => (asm.alu(op, a, b), one(codes[0], &[a64, b64])),
            16 => (asm.alu32(op, a, b), one(codes[1], &[a32, b32])),
            17 => (asm.alu_mem(op, a, mem), one(codes[0], &[a64, memory])),
            18..21 => {
                let code = codes[2 + 2 * usize::from(!wide) + usize::from(!short)];
                let to = Register(gpr(wide, a));
                let immediate = Immediate(value.into(), if wide { 64 } else { 32 });
                (asm.alu_imm(wide, op, a, value), one(code, &[to, immediate]))
            }
            21 => {
                let code = pick(short, Code::Cmp_rm32_imm8, Code::Cmp_rm32_imm32);
                (asm.cmp32_imm(mem, value), one(code, &[memory, number]))
            }
            22 => {
                let byte = value as u8;
                (asm.cmp8_imm(mem, byte), one(Code::Cmp_rm8_imm8, &[memory, Immediate(byte.into(), 8)]))
            }
            23 | 24 => {
                let count = value as u8;
                let (shift, code) = if what == 23 {
                    (Shift::Shr, pick(wide, Code::Shr_rm64_imm8, Code::Shr_rm32_imm8))
                } else {
                    (Shift::Sar, pick(wide, Code::Sar_rm64_imm8, Code::Sar_rm32_imm8))
                };
                let to = Register(gpr(wide, a));
                (asm.shift(wide, shift, a, count), one(code, &[to, Immediate(count.into(), 8)]))
            }
            25 => {
                let code = pick(wide, Code::Test_rm64_r64, Code::Test_rm32_r32);
                (asm.test(wide, a, b), one(code, &[Register(gpr(wide, a)), Register(gpr(wide, b))]))
            }
            26 => (asm.test_imm(a, value), one(Code::Test_rm64_imm32, &[a64, Immediate(value.into(), 64)])),
            27 => {
                let count = value as u8;
                let code = Code::VEX_Rorx_r64_rm64_imm8;
                (asm.rorx(a, b, count), one(code, &[a64, b64, Immediate(count.into(), 8)]))
            }
            28 => (asm.imul32_imm(a, b, value), one(Code::Imul_r32_rm32_imm32, &[a32, b32, number])),
            29 => (asm.push(a), one(Code::Push_r64, &[a64])),
            30 => (asm.pop(a), one(Code::Pop_r64, &[a64])),
            31 => (asm.movaps_load(a, mem), one(Code::Movaps_xmm_xmmm128, &[Register(xmm(a)), memory])),
            32 => (asm.movaps_store(mem, a), one(Code::Movaps_xmmm128_xmm, &[memory, Register(xmm(a))])),
            33 => (asm.fxsave(mem), one(Code::Fxsave64_m512byte, &[memory])),
            34 => (asm.fxrstor(mem), one(Code::Fxrstor64_m512byte, &[memory])),
            35 => (asm.ldmxcsr(mem), one(Code::Ldmxcsr_m32, &[memory])),
            36 => (asm.stmxcsr(mem), one(Code::Stmxcsr_m32, &[memory])),
            37 => (asm.jmp_mem(mem), one(Code::Jmp_rm64, &[memory])),
            38 => (asm.jmp_reg(a), one(Code::Jmp_rm64, &[a64])),
            _ => (asm.call_reg(a), one(Code::Call_rm64, &[a64])),
        }
        .1
    }

    /// Jumps and calls to labels and addresses.
    fn flow(&mut self, what: u8, choices: &mut Choices<'_>, distance: &mut Option<u64>) -> Vec<Meant> {
        let (label, address, condition) = (self.label(choices), self.address(choices), choices.u8() & 15);
        let jump = JUMPS[usize::from(condition)];
        let (code, operand) = match what {
            40..44 => {
                *distance = Some(self.asm.jcc(condition, label));
                (jump, Operand::Label(label))
            }
            44 | 45 => {
                *distance = Some(self.asm.jmp(label));
                (Code::Jmp_rel32_64, Operand::Label(label))
            }
            46 => {
                self.asm.call_at(address);
                (Code::Call_rel32_64, Operand::Address(address))
            }
            47 => {
                self.asm.jcc_at(condition, address);
                (jump, Operand::Address(address))
            }
            48 => {
                self.asm.jmp_at(address);
                (Code::Jmp_rel32_64, Operand::Address(address))
            }
            _ => {
                self.asm.ret();
                return vec![(Code::Retnq, Vec::new())];
            }
        };
        vec![(code, vec![operand])]
    }

    /// A label gets its place, and another one comes.
    fn bind(&mut self, choices: &mut Choices<'_>) -> Vec<Meant> {
        let here = self.asm.here();
        if choices.flag() {
            let label = self.asm.bound();
            self.labels.push((label, Some(here)));
        } else if let Some((label, place)) = self.labels.iter_mut().find(|(_, place)| place.is_none()) {
            self.asm.bind(*label);
            *place = Some(here);
            let label = self.asm.label();
            self.labels.push((label, None));
        }
        Vec::new()
    }

    /// The flag word.
    fn flags(&mut self, what: u8, choices: &mut Choices<'_>) -> Vec<Meant> {
        use Operand::{Immediate, Register};
        use iced_x86::Register::{AH, AL};
        let mask = choices.u8();
        let with = |code, register| vec![(code, vec![Register(register), Immediate(mask.into(), 8)])];
        match (what, choices.u8() % 3) {
            (53, _) => {
                self.asm.flags_to_ax();
                vec![(Code::Lahf, Vec::new()), (Code::Seto_rm8, vec![Register(AL)])]
            }
            (54, _) => {
                self.asm.flags_from_ax();
                vec![(Code::Add_AL_imm8, vec![Register(AL), Immediate(0x7f, 8)]), (Code::Sahf, Vec::new())]
            }
            (_, 0) => {
                self.asm.keep_in_ah(mask);
                with(Code::And_rm8_imm8, AH)
            }
            (_, 1) => {
                self.asm.test_ah(mask);
                with(Code::Test_rm8_imm8, AH)
            }
            _ => {
                self.asm.test_al(mask);
                with(Code::Test_AL_imm8, AL)
            }
        }
    }

    fn finish(&mut self) {
        let here = self.asm.here();
        for (label, place) in &mut self.labels {
            if place.is_none() {
                self.asm.bind(*label);
                *place = Some(here);
            }
        }
        self.asm.finish();
    }

    /// All of it reads back.
    fn check(&self) {
        let mut at = 0;
        for call in &self.calls {
            assert_eq!(call.bytes.start, at, "nothing lies between calls");
            at = call.bytes.end;
            let code = &self.asm.bytes[call.bytes.clone()];
            let ip = self.base + call.bytes.start as u64;
            let mut decoder = Decoder::with_ip(64, code, ip, DecoderOptions::NONE);
            for meant in &call.meant {
                let x = decoder.decode();
                assert!(self.is(&x, meant), "{x} ({:?}) is not {meant:x?}: {code:02x?}", x.code());
                if let Some(distance) = call.distance {
                    assert_eq!(distance + 4, x.next_ip(), "where {x} keeps its distance");
                }
            }
            assert!(!decoder.can_decode(), "more than {:x?}: {code:02x?}", call.meant);
        }
        assert_eq!(at, self.asm.bytes.len());
        for (label, place) in &self.labels {
            assert_eq!(Some(self.asm.address(*label)), *place);
        }
    }

    fn is(&self, x: &Instruction, (code, operands): &Meant) -> bool {
        let same = |(n, operand): (usize, &Operand)| {
            let n = n as u32;
            match *operand {
                Operand::Register(register) => {
                    x.op_kind(n) == OpKind::Register && x.op_register(n) == register
                }
                Operand::Memory(mem) => x.op_kind(n) == OpKind::Memory && same_memory(x, mem),
                Operand::Immediate(value, bits) => {
                    x.try_immediate(n).is_ok_and(|read| (read ^ value as u64) << (64 - bits) == 0)
                }
                Operand::Address(address) => x.near_branch_target() == address,
                Operand::Label(label) => {
                    let place =
                        self.labels.iter().find(|(other, _)| *other == label).and_then(|(_, place)| *place);
                    Some(x.near_branch_target()) == place
                }
            }
        };
        x.code() == *code
            && x.op_count() as usize == operands.len()
            && operands.iter().enumerate().all(same)
            && !x.has_segment_prefix()
            && !(x.has_lock_prefix() || x.has_rep_prefix() || x.has_repne_prefix())
    }
}

fn same_memory(x: &Instruction, mem: Mem) -> bool {
    let register = |register: Option<u8>| register.map_or(Register::None, gpr64);
    x.memory_base() == register(mem.base)
        && x.memory_index() == register(mem.index.map(|index| index.0))
        && mem.index.is_none_or(|(_, shift)| x.memory_index_scale() == 1 << shift)
        && x.memory_displacement64() == mem.disp as i64 as u64
}
