//! Loops of random instructions.
//!
//! ```text
//!  top:   bases and stack into their registers, units in order
//!         body
//!  tail:  dec [COUNTER]; jne top; int END
//! ```
//! The body lies across the border of two pages of code. Handlers go on at `tail` after a fault that nobody repairs.

use super::machine::{COUNTER, DATA_PAGES, DEFAULT_MXCSR, END, Start};
use crate::draw::{BASES, RSP, common, draw, listing};
use crate::forms::{Form, covered};
use crate::random::Random;
use crate::window::{CODE, State};
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Instruction, InstructionBlock, MemoryOperand, Mnemonic as M,
    OpKind, Register,
};
use std::ops::Range;

/// What a kind of loop puts into the body beside random instructions.
pub(super) trait Extra {
    /// Some instructions that belong together, in `percent` of the places.
    fn draw(&mut self, random: &mut Random) -> Vec<Instruction>;
    fn percent(&self) -> u64;
    /// The code is laid out: operands that name places of it become what they should. Lengths must stay.
    fn lay_out(&mut self, _code: &mut [Instruction], _at: &dyn Fn(usize) -> u64, _random: &mut Random) {}
}

pub(super) struct Program {
    pub(super) start: Start,
    /// Where a round ends.
    pub(super) tail: u64,
}

/// An absolute memory operand, always with 32 bits of displacement.
pub(super) fn absolute(at: u64) -> MemoryOperand {
    MemoryOperand::new(Register::None, Register::None, 1, at as i64, 8, false, Register::None)
}

/// Forms of 64-bit mode.
pub(super) fn forms() -> Vec<Form> {
    covered().into_iter().filter(|form| form.bits == 64).collect()
}

/// Instructions that would lead a supervisor out of the data pages, and what differs between rings.
fn wild(x: &Instruction) -> bool {
    let bits = matches!(x.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc) && x.op0_kind() == OpKind::Memory;
    bits || matches!(x.mnemonic(), M::Maskmovq | M::Maskmovdqu | M::Ldmxcsr)
}

impl Program {
    /// A loop of `seed`, in ring 3 or 0. `None`: its instructions cannot be encoded together.
    pub(super) fn new(
        random: &mut Random,
        forms: &[Form],
        user: bool,
        rounds: u64,
        extra: &mut dyn Extra,
    ) -> Option<Program> {
        let wanted = 2 + random.below(60) as usize;
        let mut code = head(random)?;
        let top = code.len();
        let mut before: Option<State> = None;
        let own = extra.percent();
        // Instructions that stay together.
        let mut groups = Vec::new();
        while code.len() < top + wanted {
            if random.percent(own) {
                let first = code.len();
                code.extend(extra.draw(random));
                groups.push(first..code.len());
            } else if random.percent(50) {
                code.extend(common(random));
            } else if let Some((x, state)) = draw(random, forms)
                && !wild(&x)
                && !crate::draw::loses_base(&x)
            {
                code.push(x);
                before.get_or_insert(state);
            }
        }
        let tail = code.len();
        code.push(Instruction::with1(Code::Dec_rm64, absolute(COUNTER)).ok()?);
        code.push(Instruction::with_branch(Code::Jne_rel32_64, 1).ok()?);
        code.push(Instruction::with1(Code::Int_imm8, u32::from(END)).ok()?);
        for (n, x) in code.iter_mut().enumerate() {
            x.set_ip(n as u64 + 1);
        }
        jumps(random, &mut code, top..tail, &groups)?;
        let (bytes, _) = encode(&code, CODE)?;
        // Somewhere in it a page ends.
        let at = CODE + 0x1000 - random.below(bytes.len() as u64);
        let (bytes, offsets) = encode(&code, at)?;
        extra.lay_out(&mut code, &|n| at + u64::from(offsets[n]), random);
        let (bytes, again) = match encode(&code, at)? {
            (laid, again) if laid.len() == bytes.len() => (laid, again),
            _ => return None,
        };
        if again != offsets {
            return None;
        }
        let before = before?;
        let alignment_checked = random.percent(5);
        let start = Start {
            gprs: before.gprs,
            rflags: before.rflags & if alignment_checked { u64::MAX } else { !0x4_0000 },
            fx: before.fx.0,
            data: before.data[..(DATA_PAGES << 12) as usize].to_vec(),
            code: bytes,
            rip: at,
            rounds,
            user,
            ..Start::default()
        };
        Some(Program { start, tail: at + u64::from(offsets[tail]) })
    }

    pub(super) fn listing(&self) -> String {
        listing(&self.start.code, self.start.rip)
    }
}

/// What each round begins with.
fn head(random: &mut Random) -> Option<Vec<Instruction>> {
    let mut code = Vec::new();
    for (base, at) in BASES.into_iter().chain([(Register::RSP, RSP)]) {
        code.push(Instruction::with2(Code::Mov_rm64_imm32, base, at as i32).ok()?);
    }
    // Else exceptions that are pending stay so.
    if random.percent(70) {
        code.push(Instruction::with(Code::Fninit));
        code.push(Instruction::with1(Code::Ldmxcsr_m32, absolute(DEFAULT_MXCSR)).ok()?);
    }
    Some(code)
}

/// Some jumps forward within the body.
fn jumps(
    random: &mut Random,
    code: &mut [Instruction],
    body: Range<usize>,
    groups: &[Range<usize>],
) -> Option<()> {
    for n in body.clone() {
        if random.percent(8) && n + 2 < body.end && !groups.iter().any(|group| group.contains(&n)) {
            let to = n as u64 + 2 + random.below((body.end - n - 1) as u64);
            if groups.iter().any(|group| (group.start + 1..group.end).contains(&(to as usize - 1))) {
                continue;
            }
            let jump =
                random.pick(&[Code::Je_rel32_64, Code::Jb_rel32_64, Code::Jl_rel32_64, Code::Ja_rel32_64]);
            let mut x = Instruction::with_branch(jump, to).ok()?;
            x.set_ip(n as u64 + 1);
            code[n] = x;
        }
    }
    Some(())
}

pub(super) fn encode(code: &[Instruction], at: u64) -> Option<(Vec<u8>, Vec<u32>)> {
    let block = InstructionBlock::new(code, at);
    let options =
        BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS | BlockEncoderOptions::DONT_FIX_BRANCHES;
    let done = BlockEncoder::encode(64, block, options).ok()?;
    Some((done.code_buffer, done.new_instruction_offsets))
}

/// Whether an address lies in the loops' code.
pub(super) fn in_code(rip: u64) -> bool {
    (CODE..CODE + 0x2000).contains(&rip)
}
