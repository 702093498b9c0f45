//! Random blocks on the bare CPU, interpreted and translated: what lies between instructions (flags that stay in the
//! host's, accesses that share a lookup, vector registers that stay loaded, joins) must not show. Interpreter and translator
//! agree on everything, also on what the manuals leave undefined; the bare CPU is asked where nothing depends on that.

use crate::compare;
use crate::defined::Defined;
use crate::draw::{BASES, RSP, common, draw, listing};
use crate::forms::{Form, covered};
use crate::native::Native;
use crate::random::{Random, mix};
use crate::soft::{Soft, Tier};
use crate::window::{CODE, DATA, Outcome, State};
use iced_x86::code_asm::{CodeAssembler, al, cl, dl, qword_ptr, r8, rax, rbx, rdi};
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Instruction, InstructionBlock, Mnemonic as M, Register,
};

/// Blocks end with the page: there is nothing behind it.
const END: u64 = CODE + 0x1000;
/// Instructions of a block.
const LENGTHS: std::ops::RangeInclusive<u64> = 2..=64;
struct Block {
    bytes: Vec<u8>,
    before: Vec<State>,
    /// What the bare CPU's flags are worth where the block ends; `None`: something in it depends on undefined flags.
    defined: Option<Defined>,
}

fn block(seed: u64, forms: &[Form]) -> Option<Block> {
    let random = &mut Random::new(seed);
    let wanted = (LENGTHS.start() + random.below(LENGTHS.end() - LENGTHS.start() + 1)) as usize;
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
    // Most blocks are for the bare CPU, too.
    if random.percent(80) {
        while let Err(reader) = Defined::new(&code) {
            let ip = code[reader].ip();
            code[reader] =
                Instruction::with2(Code::Mov_r64_rm64, Register::RAX, random.pick(&BASES).0).ok()?;
            code[reader].set_ip(ip);
        }
    }
    let encode = |at: u64| {
        let block = InstructionBlock::new(&code, at);
        BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).ok().map(|done| done.code_buffer)
    };
    // Its length does not depend on its place.
    let length = encode(CODE)?.len() as u64;
    let bytes = encode(END - length)?;
    // Memory may hold an MXCSR with bit 17: the misaligned mode of AMD's processors, which ours has not.
    let defined = Defined::new(&code).ok().map(|defined| defined.placed(&bytes, END - length));
    let defined = defined.filter(|_| code.iter().all(|x| x.mnemonic() != M::Ldmxcsr));
    // Reads two bytes, but AMD wants them aligned to four where alignment is checked.
    let odd = code.iter().any(|x| x.code() == Code::Movsxd_r16_rm16);
    let states = before.into_iter().take(2).map(|mut state| {
        for (base, at) in BASES {
            state.gprs[base.number()] = at;
        }
        state.gprs[4] = RSP;
        state.rip = END - length;
        if odd {
            state.rflags &= !0x4_0000;
        }
        state
    });
    let before: Vec<State> = states.collect();
    (bytes.len() as u64 == length && length < 0xf00 && !before.is_empty()).then_some(Block {
        bytes,
        before,
        defined,
    })
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

#[test]
fn blocks_agree_on_the_bare_cpu_interpreted_and_translated() {
    let _alone = crate::alone();
    let forms: Vec<Form> = covered().into_iter().filter(|form| form.bits == 64).collect();
    let count = crate::number("VIV_BLOCKS").unwrap_or(5_000);
    let mut bare = Native::new();
    let (mut truth, mut ours) = (Soft::new(Tier::Interpreter), Soft::new(Tier::Translator));
    let (mut run, mut on_bare, mut faults) = (0u64, 0u64, 0u64);
    for index in 0..count {
        let seed = crate::number("VIV_BLOCK").unwrap_or_else(|| mix(7, index));
        let Some(block) = block(seed, &forms) else { continue };
        truth.place_block(&block.bytes, END);
        ours.place_block(&block.bytes, END);
        // The second time, the translation meets other values.
        for (n, before) in block.before.iter().chain(&block.before).enumerate() {
            let (a, b) = (truth.run_block(before, END), ours.run_block(before, END));
            run += 1;
            faults += u64::from(a.fault.is_some());
            let mut wrong =
                difference(&a, &b).map(|text| format!("interpreter and translator differ: {text}"));
            if let Some(defined) = block.defined.as_ref().filter(|_| n < block.before.len()) {
                let c = bare.run_block(&block.bytes, before);
                on_bare += 1;
                let (last, undefined) = defined.at(c.state.rip);
                let differences =
                    compare::block_differences(before, last, defined.at(a.state.rip).0, undefined, &c, &a);
                if !differences.is_empty() {
                    wrong = wrong
                        .or(Some(format!("bare CPU and interpreter differ: {}", differences.join("; "))));
                }
            }
            if let Some(wrong) = wrong {
                panic!(
                    "VIV_BLOCK={seed:#x}: {wrong}\n  before {:x?} flags {:x}\n  fault {:x?}{}",
                    before.gprs,
                    before.rflags,
                    a.fault,
                    listing(&block.bytes, END - block.bytes.len() as u64)
                );
            }
        }
    }
    println!("{run} runs of blocks, {on_bare} on the bare CPU, {faults} ended in a fault");
    let all = crate::number("VIV_BLOCK").is_none();
    assert!(!all || run > count && on_bare > count, "too few blocks could be made");
}

/// What was translated in another process does what it did there, at another address of the host's and for other values.
#[test]
fn blocks_agree_in_another_process() {
    let _alone = crate::alone();
    let forms: Vec<Form> = covered().into_iter().filter(|form| form.bits == 64).collect();
    let count = crate::number("VIV_BLOCKS").unwrap_or(5_000) / 10;
    let (mut taken, mut made, mut runs) = (0, 0, 0u64);
    for index in 0..count {
        let seed = crate::number("VIV_BLOCK").unwrap_or_else(|| mix(11, index));
        let Some(block) = block(seed, &forms) else { continue };
        let (mut truth, mut ours) = (Soft::new(Tier::Interpreter), Soft::new(Tier::Translator));
        truth.place_block(&block.bytes, END);
        ours.place_block(&block.bytes, END);
        for before in &block.before {
            ours.run_block(before, END);
        }
        if ours.taken().1 == 0 {
            continue;
        }
        // And once more from there: what was taken is carried on, used or not.
        let mut others = [ours.carried(), ours.carried().carried()];
        for before in &block.before {
            let truth = truth.run_block(before, END);
            for other in &mut others {
                runs += 1;
                if let Some(wrong) = difference(&truth, &other.run_block(before, END)) {
                    panic!(
                        "VIV_BLOCK={seed:#x}: {wrong}{}",
                        listing(&block.bytes, END - block.bytes.len() as u64)
                    );
                }
            }
        }
        for other in &others {
            let (pages, instructions) = other.taken();
            taken += pages;
            made += instructions;
        }
    }
    println!("{runs} runs with {taken} pages taken, {made} instructions translated again");
    assert!(
        taken * 2 >= count && made < 20 * taken,
        "{taken} pages were taken, {made} instructions were not"
    );
}

/// The block behind an instruction that never goes on there is reached by jumps alone, and finds their flags.
#[test]
fn flags_reach_the_block_behind_an_exception() {
    let code = (|| {
        let mut a = CodeAssembler::new(64)?;
        let mut over = a.create_label();
        a.stc()?;
        // The host's flags are needed for the lookup: the guest's are saved before it.
        a.add(qword_ptr(rbx), rdi)?;
        a.ja(over)?;
        a.ud2()?;
        a.set_label(&mut over)?;
        a.setb(al)?;
        a.assemble(CODE)
    })()
    .expect("code");
    let state = (0..).find_map(|seed| draw(&mut Random::new(seed), &covered())).expect("a state").1;
    for tier in [Tier::Interpreter, Tier::Translator] {
        let mut soft = Soft::new(tier);
        soft.place_block(&code, END);
        let mut before = State { rip: END - code.len() as u64, rflags: 0x202, ..state.clone() };
        (before.gprs[0], before.gprs[3], before.gprs[7]) = (0xff, BASES[0].1, 1);
        before.data[(BASES[0].1 - DATA) as usize..][..8].copy_from_slice(&1u64.to_le_bytes());
        let after = soft.run_block(&before, END);
        assert_eq!((after.fault, after.state.gprs[0]), (None, 0), "1 + 1 makes no carry");
    }
}

/// Processors differ in what a bit scan leaves in the flags besides ZF, some as much as what stood there before: ours does
/// not, whatever the host's.
#[test]
fn a_bit_scan_leaves_the_flags_of_a_test_of_its_source() {
    let code = |forward: bool| {
        let mut a = CodeAssembler::new(64)?;
        // All six flags, of which nobody reads any.
        a.add(cl, dl)?;
        if forward {
            a.bsf(rax, r8)?
        } else {
            a.bsr(rax, r8)?
        };
        a.nop()?;
        a.assemble(CODE)
    };
    let state = (0..).find_map(|seed| draw(&mut Random::new(seed), &covered())).expect("a state").1;
    for tier in [Tier::Interpreter, Tier::Translator] {
        let mut soft = Soft::new(tier);
        for (forward, source) in
            [true, false].into_iter().flat_map(|way| [0, 1, 3, 0x8000_0000_0000_0002].map(|s| (way, s)))
        {
            let code = code(forward).expect("code");
            soft.place_block(&code, END);
            let mut before = State { rip: END - code.len() as u64, rflags: 0x202, ..state.clone() };
            // 80 + 80: OF, ZF, CF, PF.
            (before.gprs[0], before.gprs[1], before.gprs[2], before.gprs[8]) = (77, 0x80, 0x80, source);
            let after = soft.run_block(&before, END);
            let parity = (source as u8).count_ones().is_multiple_of(2);
            let flags = 0x202 | source >> 63 << 7 | u64::from(source == 0) << 6 | u64::from(parity) << 2;
            let place = if forward { source.trailing_zeros() } else { 63 - source.leading_zeros().min(63) };
            let place = if source == 0 { 77 } else { place };
            assert_eq!(
                (after.fault, after.state.gprs[0], after.state.rflags),
                (None, place.into(), flags),
                "{source:x} {tier:?}"
            );
        }
    }
}
