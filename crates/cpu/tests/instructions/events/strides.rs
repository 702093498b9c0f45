//! Loops of one block that go through the data pages in steady steps: what one round has looked up serves further ones, across
//! the ends of pages, into pages that are read-only or not there, and of whatever the handlers make of them.

use super::machine::{DATA_PAGES, Machine, Start};
use super::permissions::Keeper;
use super::program::{Program, encode};
use super::{each, machine, same};
use crate::random::Random;
use crate::soft::Tier;
use crate::window::{CODE, DATA};
use iced_x86::{Code, Instruction, MemoryOperand, Register};

/// Registers that addresses build on: some of them live in memory while translated code runs.
const BASES: [Register; 4] = [Register::RSI, Register::RDI, Register::R14, Register::R11];
const INDICES: [Register; 3] = [Register::RCX, Register::RBP, Register::R15];
const COUNT: Register = Register::RDX;
const VALUES: [Register; 4] = [Register::RAX, Register::RBX, Register::R8, Register::R10];

/// What a round accesses: near a base, maybe with an index.
fn place(random: &mut Random, base: Register, index: Register) -> MemoryOperand {
    let disp = random.below(96) as i64 - 48;
    let scale = 1 << random.below(4);
    match random.below(3) {
        0 => MemoryOperand::with_base_index_scale_displ_size(base, index, scale, disp, 8),
        _ => MemoryOperand::with_base_displ_size(base, disp, 8),
    }
}

/// An instruction between the others, which may change the flags.
fn between(random: &mut Random) -> Option<Instruction> {
    let (a, b) = (random.pick(&VALUES), random.pick(&VALUES));
    let code = random.pick(&[Code::Add_r64_rm64, Code::Adc_r64_rm64, Code::Xor_r64_rm64, Code::Mov_r64_rm64]);
    Instruction::with2(code, a, b).ok()
}

fn access(random: &mut Random, place: MemoryOperand) -> Option<Instruction> {
    let value = random.pick(&VALUES);
    match random.below(12) {
        0..4 => {
            let code = random.pick(&[Code::Mov_r64_rm64, Code::Add_r64_rm64, Code::Sbb_r64_rm64]);
            Instruction::with2(code, value, place).ok()
        }
        4..8 => {
            let code = random.pick(&[Code::Mov_rm64_r64, Code::Add_rm64_r64, Code::Adc_rm64_r64]);
            Instruction::with2(code, place, value).ok()
        }
        8 => Instruction::with2(Code::Movups_xmm_xmmm128, Register::XMM1, place).ok(),
        9 => Instruction::with2(Code::Movups_xmmm128_xmm, place, Register::XMM1).ok(),
        10 => Instruction::with2(Code::Paddq_xmm_xmmm128, Register::XMM1, place).ok(),
        _ => Instruction::with2(Code::Cmp_rm8_imm8, place, 7).ok(),
    }
}

/// The step of a register that addresses build on: mostly steady.
fn step(random: &mut Random, register: Register) -> Option<Instruction> {
    match random.below(8) {
        0 => Instruction::with2(Code::Lea_r64_m, register, MemoryOperand::with_base_displ(register, 24)).ok(),
        1 => Instruction::with1(Code::Inc_rm64, register).ok(),
        2 => Instruction::with1(Code::Dec_rm64, register).ok(),
        3 => Instruction::with2(Code::Sub_rm64_imm8, register, 16).ok(),
        4 => Instruction::with2(Code::Xor_rm64_imm8, register, 8).ok(),
        _ => Instruction::with2(Code::Add_rm64_imm8, register, random.pick(&[4, 8, 16])).ok(),
    }
}

fn program(random: &mut Random) -> Option<Program> {
    let user = random.percent(50);
    let (base, other) = (random.pick(&BASES), random.pick(&BASES));
    let index = random.pick(&INDICES);
    let mut code = Vec::new();
    for _ in 0..1 + random.below(6) {
        let base = if random.percent(60) { base } else { other };
        let place = place(random, base, index);
        code.push(access(random, place)?);
        if random.percent(40) {
            code.push(between(random)?);
        }
        if random.percent(15) {
            code.push(step(random, index)?);
        }
    }
    for register in [base, other, index] {
        if random.percent(70) {
            code.push(step(random, register)?);
        }
    }
    code.push(match random.below(3) {
        0 => Instruction::with2(Code::Sub_rm64_imm8, COUNT, 1).ok()?,
        _ => Instruction::with1(Code::Dec_rm64, COUNT).ok()?,
    });
    if random.percent(20) {
        // Its flags are not the jump's.
        let place = place(random, base, index);
        code.push(Instruction::with2(Code::Mov_rm64_r64, place, Register::RAX).ok()?);
    }
    let jump = random.pick(&[Code::Jne_rel8_64, Code::Jne_rel32_64, Code::Jg_rel32_64]);
    code.push(Instruction::with_branch(jump, 1).ok()?);
    let tail = code.len();
    code.push(Instruction::with1(Code::Int_imm8, u32::from(machine::END)).ok()?);
    for (n, x) in code.iter_mut().enumerate() {
        x.set_ip(n as u64 + 1);
    }
    let (bytes, offsets) = encode(&code, CODE)?;
    let mut start = Start { code: bytes, user, ..Start::default() };
    start.data.iter_mut().for_each(|byte| *byte = random.below(256) as u8);
    for register in BASES {
        start.gprs[register.number()] = DATA + 0x300 + random.below((DATA_PAGES << 12) - 0x600);
    }
    for register in INDICES {
        start.gprs[register.number()] = random.below(64);
    }
    start.gprs[COUNT.number()] = 1 + random.below(400);
    Some(Program { start, tail: CODE + u64::from(offsets[tail]) })
}

#[test]
fn steady_steps_go_through_pages_alike() {
    let (mut reference, mut ours) = (Machine::new(Tier::Interpreter), Machine::new(Tier::Translator));
    let (mut faults, mut whole) = (0, 0);
    let count = each(36, 1500, |seed| {
        let random = &mut Random::new(seed);
        let program = program(random).expect("encodable");
        let user = program.start.user;
        for (pass, hot) in [(0, 0), (1, 0), (2, 4)] {
            let keeper = || {
                let random = Random::new(seed ^ pass);
                Box::new(Keeper { random, tail: program.tail, user, repairs: 60 })
            };
            ours.cpu.translate_after(Some(hot));
            let (a, b) = (reference.run(&program.start, keeper()), ours.run(&program.start, keeper()));
            faults += a.events.iter().filter(|event| event.vector == 14).count();
            whole += u64::from(a.events.last().is_some_and(|event| event.gprs[COUNT.number()] == 0));
            if let Err(wrong) = same(&a, &b) {
                panic!("VIV_LOOP={seed:#x} (pass {pass}): {wrong}{}", program.listing());
            }
        }
    });
    println!("{count} loops, {whole} runs to their end, {faults} page faults");
    assert!(faults as u64 > count / 4, "few pages faulted");
    assert!(count == 1 || whole > count / 2, "few loops came to their end");
}
