//! Loops that rewrite their own code: immediates, opcodes and whole pieces of it, in front of the store and behind it, across
//! the border of the pages, through another mapping; and loops whose code another processor rewrites while they ask the
//! board. What was written is what runs.

use super::machine::{self, ALIAS, Event, Machine, Script, Then, VARIANTS};
use super::program::{Extra, Program, absolute, forms};
use super::{each, same};
use crate::random::Random;
use crate::soft::{Nothing, Tier};
use crate::window::CODE;
use iced_x86::{Code, Instruction, OpKind, Register};
use std::sync::{Arc, Mutex, PoisonError};
use viv_arch::x86::{CpuState, gpr, vector};
use viv_cpu::soft::SoftCpu;
use viv_cpu::{Exit, Vcpu};
use viv_mem::GuestMemory;

/// A piece of code that is replaced as a whole.
const PIECE: u64 = 16;
/// What a piece may become: each ends where it ends.
#[rustfmt::skip]
const PIECES: [[u8; PIECE as usize]; 8] = [
    // As it is at first: mov r10, imm64; mov r10d, imm32.
    [0x49, 0xba, 1, 2, 3, 4, 5, 6, 7, 8, 0x41, 0xba, 9, 0, 0, 0],
    // add rax, rcx, five times; nop.
    [0x48, 0x01, 0xc8, 0x48, 0x01, 0xc8, 0x48, 0x01, 0xc8, 0x48, 0x01, 0xc8, 0x48, 0x01, 0xc8, 0x90],
    // A jump over the rest.
    [0xeb, 0x0e, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc],
    // test al, al; jne over the rest; add r8, r9, four times.
    [0x84, 0xc0, 0x75, 0x0c, 0x4d, 0x01, 0xc8, 0x4d, 0x01, 0xc8, 0x4d, 0x01, 0xc8, 0x4d, 0x01, 0xc8],
    // ud2.
    [0x0f, 0x0b, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90],
    // add [rbx], rax, four times; rdtsc; nop; nop.
    [0x48, 0x01, 0x03, 0x48, 0x01, 0x03, 0x48, 0x01, 0x03, 0x48, 0x01, 0x03, 0x0f, 0x31, 0x90, 0x90],
    // dec r15, five times; nop.
    [0x49, 0xff, 0xcf, 0x49, 0xff, 0xcf, 0x49, 0xff, 0xcf, 0x49, 0xff, 0xcf, 0x49, 0xff, 0xcf, 0x90],
    // paddd xmm1, xmm2, four times.
    [0x66, 0x0f, 0xfe, 0xca, 0x66, 0x0f, 0xfe, 0xca, 0x66, 0x0f, 0xfe, 0xca, 0x66, 0x0f, 0xfe, 0xca],
];

/// Addresses that mean: the immediate, the opcode, the piece; and the second half of a piece.
const IMMEDIATE: u64 = 0x7f00_0000;
const OPCODE: u64 = 0x7f00_1000;
const WHOLE: u64 = 0x7f00_2000;
const HALF: u64 = WHOLE + 8;

fn variant(random: &mut Random) -> u64 {
    VARIANTS + PIECE * random.below(PIECES.len() as u64)
}

/// Stores into the code, and what they change.
#[derive(Default)]
struct Rewriters {
    /// Where pieces are.
    pieces: Vec<u64>,
    /// The board is asked, which lets another processor write.
    asks: bool,
}

impl Rewriters {
    fn victim(random: &mut Random) -> Vec<Option<Instruction>> {
        let register = random.pick(&[Register::EAX, Register::EDX, Register::R8D, Register::R15D]);
        match random.below(3) {
            0 => vec![Instruction::with2(Code::Mov_r32_imm32, register, random.word() as u32).ok()],
            1 => {
                let code = random.pick(&[Code::Add_rm64_r64, Code::Sub_rm64_r64]);
                vec![Instruction::with2(code, register.full_register(), Register::RCX).ok()]
            }
            _ => vec![
                Instruction::with2(Code::Mov_r64_imm64, Register::R10, 0x0807_0605_0403_0201u64).ok(),
                Instruction::with2(Code::Mov_r32_imm32, Register::R10D, 9).ok(),
            ],
        }
    }

    fn store(random: &mut Random) -> Vec<Option<Instruction>> {
        let immediate = absolute(IMMEDIATE);
        match random.below(8) {
            0 => vec![Instruction::with2(Code::Mov_rm32_imm32, immediate, random.word() as u32).ok()],
            1 => vec![Instruction::with2(Code::Mov_rm32_r32, immediate, Register::EAX).ok()],
            2 => vec![Instruction::with1(Code::Inc_rm8, immediate).ok()],
            3 => vec![Instruction::with2(Code::Xchg_rm32_r32, immediate, Register::R8D).ok()],
            // ADD becomes SUB, and back.
            4 => vec![Instruction::with2(Code::Xor_rm8_imm8, absolute(OPCODE), 0x28).ok()],
            5 => vec![
                Instruction::with2(Code::Movups_xmm_xmmm128, Register::XMM0, absolute(variant(random))).ok(),
                Instruction::with2(Code::Movups_xmmm128_xmm, absolute(WHOLE), Register::XMM0).ok(),
            ],
            6 => {
                let from = variant(random);
                vec![
                    Instruction::with2(Code::Mov_r64_rm64, Register::RDX, absolute(from)).ok(),
                    Instruction::with2(Code::Mov_r64_rm64, Register::RDI, absolute(from + 8)).ok(),
                    Instruction::with2(Code::Mov_rm64_r64, absolute(WHOLE), Register::RDX).ok(),
                    Instruction::with2(Code::Mov_rm64_r64, absolute(HALF), Register::RDI).ok(),
                ]
            }
            _ => vec![
                Some(Instruction::with(Code::Cld)),
                Instruction::with2(Code::Mov_r32_imm32, Register::ESI, variant(random) as u32).ok(),
                Instruction::with2(Code::Mov_r32_imm32, Register::EDI, WHOLE as u32).ok(),
                Instruction::with2(Code::Mov_r32_imm32, Register::ECX, PIECE as u32).ok(),
                Instruction::with_rep_movsb(64).ok(),
                Instruction::with2(Code::Mov_r32_imm32, Register::ESI, crate::draw::BASES[1].1 as u32).ok(),
            ],
        }
    }
}

impl Extra for Rewriters {
    fn percent(&self) -> u64 {
        25
    }

    fn draw(&mut self, random: &mut Random) -> Vec<Instruction> {
        let code = match random.below(10) {
            0 if self.asks => vec![Instruction::with1(Code::Int_imm8, u32::from(machine::ASK)).ok()],
            0..5 => Self::victim(random),
            _ => Self::store(random),
        };
        code.into_iter().flatten().collect()
    }

    fn lay_out(&mut self, code: &mut [Instruction], at: &dyn Fn(usize) -> u64, random: &mut Random) {
        let (mut immediates, mut opcodes) = (Vec::new(), Vec::new());
        for (n, x) in code.iter().enumerate() {
            match x.code() {
                Code::Mov_r64_imm64 if x.immediate64() == 0x0807_0605_0403_0201 => self.pieces.push(at(n)),
                Code::Mov_r32_imm32 if x.op0_register() == Register::R10D => {}
                Code::Mov_r32_imm32
                    if !matches!(x.op0_register(), Register::ESI | Register::EDI | Register::ECX) =>
                {
                    immediates.push(at(n + 1) - 4);
                }
                Code::Add_rm64_r64 | Code::Sub_rm64_r64
                    if x.op0_kind() == OpKind::Register && x.op1_register() == Register::RCX =>
                {
                    // Behind the prefix.
                    opcodes.push(at(n) + 1);
                }
                _ => {}
            }
        }
        let mut whole = 0;
        for x in code.iter_mut() {
            let by_register = x.code() == Code::Mov_r32_imm32 && x.op0_register() == Register::EDI;
            let meant = if by_register { u64::from(x.immediate32()) } else { x.memory_displacement64() };
            let mut pick = |places: &[u64], otherwise: u64| {
                let place = if places.is_empty() { otherwise } else { random.pick(places) };
                let alias = place != otherwise && random.percent(30);
                if alias { place - CODE + ALIAS } else { place }
            };
            // Without anything to change, data changes.
            let place = match meant {
                IMMEDIATE => pick(&immediates, machine::SPARE),
                OPCODE => pick(&opcodes, machine::SPARE),
                WHOLE => {
                    whole = pick(&self.pieces, machine::SPARE);
                    whole
                }
                HALF => whole + 8,
                _ => continue,
            };
            if by_register {
                x.set_immediate32(place as u32);
            } else {
                x.set_memory_displacement64(place);
            }
        }
    }
}

/// Another processor, that writes pieces.
type Other = Arc<Mutex<SoftCpu>>;

struct Writer {
    tail: u64,
    random: Random,
    pieces: Vec<u64>,
    other: Other,
    state: CpuState,
}

impl Script for Writer {
    fn event(&mut self, event: &Event, _: &GuestMemory) -> Then {
        if event.vector == machine::END.into() {
            return Then::Halt;
        }
        if event.vector != machine::ASK.into() {
            return Then::GoTo(self.tail);
        }
        if !self.pieces.is_empty() {
            let mut other = self.other.lock().unwrap_or_else(PoisonError::into_inner);
            self.state.gprs[gpr::RDI] = self.random.pick(&self.pieces);
            self.state.gprs[gpr::RSI] = variant(&mut self.random);
            other.load(&self.state).expect("a state that the software CPU takes");
            assert_eq!(other.run(&Nothing), Exit::Halted);
        }
        Then::Resume(None)
    }
}

#[test]
fn rewritten_code_runs_as_it_was_written() {
    let forms = forms();
    let (mut reference, mut ours) = (Machine::new(Tier::Interpreter), Machine::new(Tier::Translator));
    let others = [reference.other(Tier::Interpreter), ours.other(Tier::Translator)];
    let others = others.map(|cpu| Arc::new(Mutex::new(cpu)));
    let (mut events, mut asked, mut undefined) = (0, 0, 0);
    let count = each(33, 1500, |seed| {
        let random = &mut Random::new(seed);
        let user = random.percent(50);
        let rounds = 3 + random.below(25);
        let mut rewriters = Rewriters { asks: random.percent(50), ..Rewriters::default() };
        let Some(mut program) = Program::new(random, &forms, user, rounds, &mut rewriters) else { return };
        program.start.writable_code = true;
        program.start.variants = PIECES.concat();
        for (pass, hot) in [(0, 0), (1, 0), (2, 4)] {
            let writer = |other: &Other, state| {
                Box::new(Writer {
                    tail: program.tail,
                    random: Random::new(seed ^ pass),
                    pieces: rewriters.pieces.clone(),
                    other: other.clone(),
                    state,
                })
            };
            ours.cpu.translate_after(Some(hot));
            let (one, two) =
                (writer(&others[0], reference.other_state()), writer(&others[1], ours.other_state()));
            let (a, b) = (reference.run(&program.start, one), ours.run(&program.start, two));
            events += a.events.len();
            // Only a piece that was written is none.
            undefined += a.events.iter().filter(|event| event.vector == vector::UD.into()).count();
            asked += a.events.iter().filter(|event| event.vector == machine::ASK.into()).count();
            if let Err(wrong) = same(&a, &b) {
                panic!(
                    "VIV_LOOP={seed:#x} (ring {}, pass {pass}): {wrong}{}",
                    if user { 3 } else { 0 },
                    program.listing()
                );
            }
        }
    });
    println!(
        "{count} loops, {events} events, {undefined} of UD2s that were written, {asked} writes by another processor"
    );
    assert!(undefined > count as usize, "what was written seldom ran");
    assert!(asked > count as usize, "the other processor seldom wrote");
}
