//! Random blocks, interpreted and translated: what lies between instructions (flags that stay in the host's, accesses that
//! share a lookup, vector registers that stay loaded, joins) must not show. The single instructions are held against the
//! bare CPU elsewhere; here the interpreter is the truth.

use crate::cases::Case;
use crate::forms::{Form, covered};
use crate::random::{Random, mix};
use crate::soft::{Soft, Tier};
use crate::window::{CODE, DATA, Outcome, State};
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Decoder, DecoderOptions, FlowControl, Formatter, Instruction,
    InstructionBlock, IntelFormatter, MemoryOperand, Mnemonic as M, OpKind, Register,
};

/// Blocks end with the page: there is nothing behind it.
const END: u64 = CODE + 0x1000;
/// Registers that point into the data pages, and where: in the middle, near a page border, near the read-only page.
const BASES: [(Register, u64); 4] = [
    (Register::RBX, DATA + 0x500),
    (Register::RSI, DATA + 0x1000 - 40),
    (Register::RBP, DATA + 0x1900),
    (Register::R14, DATA + 0x2000 - 24),
];
const RSP: u64 = DATA + 0x1700;

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

fn has_memory(x: &Instruction) -> bool {
    (0..x.op_count()).any(|n| x.op_kind(n) == OpKind::Memory)
}

/// An instruction of a covered form, its memory operand at one of the bases.
fn draw(random: &mut Random, forms: &[Form]) -> Option<(Instruction, State)> {
    let form = forms[random.below(forms.len() as u64) as usize];
    let case = Case::new(random.word(), form)?;
    let mut x = case.instruction;
    if !fits(&x) {
        return None;
    }
    if has_memory(&x) {
        let (base, _) = random.pick(&BASES);
        let disp = random.below(40) as i64 - 8;
        // Mostly aligned, so that vectors do not always fault.
        let disp = if random.percent(70) { disp & !15 } else { disp };
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
fn common(random: &mut Random) -> Option<Instruction> {
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
    let (to, (base, _)) = (register(random), random.pick(&BASES));
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
        9 => Instruction::with2(Code::Lea_r64_m, random.pick(&BASES).0, memory),
        _ => Instruction::with1(Code::Inc_rm64, memory),
    };
    x.ok()
}

struct Block {
    bytes: Vec<u8>,
    before: Vec<State>,
}

fn block(seed: u64, forms: &[Form]) -> Option<Block> {
    let random = &mut Random::new(seed);
    let wanted = 2 + random.below(40) as usize;
    let (mut code, mut before) = (Vec::new(), Vec::new());
    while code.len() < wanted {
        if random.percent(50) {
            code.extend(common(random));
        } else if let Some((x, state)) = draw(random, forms) {
            code.push(x);
            before.push(state);
        }
    }
    // Some jumps forward: flows that join. The IPs are numbers that jumps name.
    for (n, x) in code.iter_mut().enumerate() {
        x.set_ip(n as u64 + 1);
    }
    for n in 0..code.len() {
        if random.percent(12) && n + 2 < code.len() {
            let to = n as u64 + 2 + random.below((code.len() - n - 1) as u64);
            let jump = random.pick(&[
                Code::Je_rel32_64,
                Code::Jb_rel32_64,
                Code::Jl_rel32_64,
                Code::Ja_rel32_64,
                Code::Jo_rel32_64,
            ]);
            let mut x = Instruction::with_branch(jump, to).ok()?;
            x.set_ip(n as u64 + 1);
            code[n] = x;
        }
    }
    let encode = |at: u64| {
        let block = InstructionBlock::new(&code, at);
        BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).ok().map(|done| done.code_buffer)
    };
    // Its length does not depend on its place.
    let length = encode(CODE)?.len() as u64;
    let bytes = encode(END - length)?;
    let states = before.into_iter().take(2).map(|mut state| {
        for (base, at) in BASES {
            state.gprs[base.number()] = at;
        }
        state.gprs[4] = RSP;
        state.rip = END - length;
        state
    });
    let before: Vec<State> = states.collect();
    (bytes.len() as u64 == length && length < 0xf00 && !before.is_empty()).then_some(Block { bytes, before })
}

/// What differs: everything but x87 pointers and what is no state.
fn difference(truth: &Outcome, ours: &Outcome) -> Option<String> {
    let (a, b) = (&truth.state, &ours.state);
    let fx = (0..416).find(|at| {
        let ignored = matches!(at, 5..24 | 28..32) || (32..160).contains(at) && at % 16 >= 10;
        !ignored && a.fx.0[*at] != b.fx.0[*at]
    });
    if truth.fault != ours.fault {
        return Some(format!("fault {:x?}, {:x?}", truth.fault, ours.fault));
    }
    if (a.rip, a.gprs) != (b.rip, b.gprs) {
        return Some(format!("rip {:x} {:x}, registers {:x?}, {:x?}", a.rip, b.rip, a.gprs, b.gprs));
    }
    if a.rflags != b.rflags {
        return Some(format!("flags {:x}, {:x}", a.rflags, b.rflags));
    }
    if let Some(at) = fx {
        return Some(format!("FXSAVE image at {at}: {:x}, {:x}", a.fx.0[at], b.fx.0[at]));
    }
    let at = (0..a.data.len()).find(|at| a.data[*at] != b.data[*at])?;
    Some(format!("memory at {:x}: {:x}, {:x}", DATA + at as u64, a.data[at], b.data[at]))
}

fn listing(bytes: &[u8]) -> String {
    let mut decoder = Decoder::with_ip(64, bytes, END - bytes.len() as u64, DecoderOptions::NONE);
    let mut text = String::new();
    while decoder.can_decode() {
        let x = decoder.decode();
        text += &format!("\n    {:x} ", x.ip());
        IntelFormatter::new().format(&x, &mut text);
    }
    text
}

#[test]
fn translated_blocks_agree_with_the_interpreter() {
    let forms: Vec<Form> = covered().into_iter().filter(|form| form.bits == 64).collect();
    let count = crate::number("VIV_BLOCKS").unwrap_or(5_000);
    let (mut truth, mut ours) = (Soft::new(Tier::Interpreter), Soft::new(Tier::Translator));
    let (mut run, mut faults) = (0u64, 0u64);
    for index in 0..count {
        let seed = crate::number("VIV_BLOCK").unwrap_or_else(|| mix(7, index));
        let Some(block) = block(seed, &forms) else { continue };
        truth.place_block(&block.bytes, END);
        ours.place_block(&block.bytes, END);
        // The second time, the translation meets other values.
        for before in block.before.iter().chain(&block.before) {
            let (a, b) = (truth.run_block(before, END), ours.run_block(before, END));
            run += 1;
            faults += u64::from(a.fault.is_some());
            if let Some(difference) = difference(&a, &b) {
                panic!(
                    "VIV_BLOCK={seed:#x}: interpreter and translator differ: {difference}\n  before {:x?} flags {:x}\n  fault {:x?}{}",
                    before.gprs,
                    before.rflags,
                    a.fault,
                    listing(&block.bytes)
                );
            }
        }
    }
    println!("{run} runs of blocks, {faults} ended in a fault");
    assert!(run > count, "too few blocks could be made");
}
