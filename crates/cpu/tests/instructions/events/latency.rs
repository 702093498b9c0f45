//! How long a pending interrupt waits: at most [`LATEST`] instructions, also where translated code never leaves by itself.

use super::machine::{self, Board, Event, Machine, SPARE, Script, Start, Then};
use crate::soft::Tier;
use crate::window::{CODE, DATA};
use iced_x86::code_asm::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use viv_arch::x86::{gpr, rflags};
use viv_cpu::{Exit, Vcpu};
use viv_mem::{Gpa, GuestMemory};

/// Issue 3's bound.
const LATEST: u64 = 10_000;
/// Interrupts of a test.
const COUNT: usize = 100;
/// So many of them may be late: the thread that counts lost its CPU in between.
const FORGIVEN: usize = 10;
/// Where the loop shows its rounds.
const SHOWN: u64 = SPARE + 64;

struct Quiet;

impl Script for Quiet {
    fn event(&mut self, _: &Event, _: &GuestMemory) -> Then {
        Then::Halt
    }
}

/// Runs a loop that counts its rounds in RBX, shows them, and ends when [`SPARE`] is set: the rounds that began before each
/// interrupt was taken.
fn rounds_until_taken(tier: Tier, code: Vec<u8>) -> Vec<u64> {
    let mut machine = Machine::new(tier);
    let mut gprs = [0; 16];
    gprs[gpr::RSP] = DATA + 0x1700;
    let start = Start { gprs, code, rip: CODE, rflags: rflags::FIXED | rflags::IF, ..Start::default() };
    let board = machine.begin(&start, Box::new(Quiet));
    let ended = Arc::new(AtomicBool::new(false));
    let poker = std::thread::spawn({
        let (board, ended, memory) = (board.clone(), ended.clone(), machine.memory.clone());
        move || poke(&board, &ended, &memory)
    });
    let exit = machine.cpu.run(&*board);
    ended.store(true, Ordering::SeqCst);
    let shown = poker.join().expect("the poker ends");
    assert_eq!(exit, Exit::Halted);
    let run = machine.end(&board, exit);
    assert!(run.interrupted.len() == shown.len() && shown.len() == COUNT);
    run.interrupted.iter().zip(shown).map(|(event, shown)| event.gprs[gpr::RBX] - shown).collect()
}

/// Interrupts the loop, each time when it has gone on after the last: the rounds that it showed before.
fn poke(board: &Board, ended: &AtomicBool, memory: &GuestMemory) -> Vec<u64> {
    let rounds = || memory.read_array(Gpa(SHOWN)).map_or(0, u64::from_le_bytes);
    let mut shown = Vec::new();
    while shown.len() < COUNT && !ended.load(Ordering::SeqCst) {
        let taken = board.taken.load(Ordering::SeqCst);
        let from = rounds();
        while rounds() < from + 2_000 && !ended.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
        shown.push(rounds());
        board.interrupt();
        while board.taken.load(Ordering::SeqCst) == taken && !ended.load(Ordering::SeqCst) {
            std::hint::spin_loop();
        }
    }
    memory.write(Gpa(SPARE), &[1]).expect("the control page is in RAM");
    shown
}

fn check(name: &str, instructions: u64, code: impl Fn() -> Result<Vec<u8>, IcedError>) {
    for tier in [Tier::Interpreter, Tier::Translator] {
        let mut waited = rounds_until_taken(tier, code().expect("code"));
        waited.iter_mut().for_each(|rounds| *rounds *= instructions);
        waited.sort_unstable();
        println!("{name}: {} instructions in the middle, {:?} at most", waited[COUNT / 2], waited.last());
        assert!(waited[COUNT - 1 - FORGIVEN] <= LATEST, "{name}: {waited:?}");
    }
}

#[test]
fn a_hot_loop_is_interrupted_soon() {
    check("a loop", 4, || {
        let mut a = CodeAssembler::new(64)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(rbx)?;
        a.mov(qword_ptr(SHOWN), rbx)?;
        a.cmp(byte_ptr(SPARE), 0)?;
        a.je(again)?;
        a.int(i32::from(machine::END))?;
        a.assemble(CODE)
    });
}

/// Blocks of two pages, each of which leads into the other: jumps, a call, a return, an indirect jump.
#[test]
fn a_chain_of_blocks_is_interrupted_soon() {
    check("a chain", 10, || {
        let mut a = CodeAssembler::new(64)?;
        let (mut again, mut second, mut third, mut function) =
            (a.create_label(), a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.inc(rbx)?;
        a.jmp(second)?;
        a.set_label(&mut third)?;
        a.mov(qword_ptr(SHOWN), rbx)?;
        a.call(function)?;
        a.cmp(byte_ptr(SPARE), 0)?;
        a.je(again)?;
        a.int(i32::from(machine::END))?;
        // The other page.
        for _ in 0..0x200 {
            a.dq(&[0xcccc_cccc_cccc_cccc])?;
        }
        a.set_label(&mut second)?;
        a.lea(rax, qword_ptr(third))?;
        a.jmp(rax)?;
        a.set_label(&mut function)?;
        a.inc(rcx)?;
        a.ret()?;
        a.assemble(CODE)
    });
}

/// A repeated instruction stops for an interrupt between its elements, and goes on where it was.
#[test]
fn a_repeated_string_instruction_is_interrupted_soon() {
    const ELEMENTS: u64 = 0x2000;
    const { assert!(ELEMENTS <= LATEST) };
    let code = || {
        let mut a = CodeAssembler::new(64)?;
        a.cli()?;
        // The board interrupts.
        a.in_(al, 0x80)?;
        a.mov(esi, CODE as u32)?;
        a.mov(edi, DATA as u32)?;
        a.mov(ecx, ELEMENTS as u32)?;
        a.sti()?;
        a.rep().movsb()?;
        a.int(i32::from(machine::END))?;
        a.assemble(CODE)
    };
    struct Once(bool);
    impl Script for Once {
        fn event(&mut self, _: &Event, _: &GuestMemory) -> Then {
            Then::Halt
        }
        fn interrupts(&mut self) -> bool {
            std::mem::take(&mut self.0)
        }
    }
    for tier in [Tier::Interpreter, Tier::Translator] {
        let start = Start { code: code().expect("code"), rip: CODE, ..Start::default() };
        let mut machine = Machine::new(tier);
        let run = machine.run(&start, Box::new(Once(true)));
        let left: Vec<u64> = run.interrupted.iter().map(|event| event.gprs[gpr::RCX]).collect();
        assert!(left.len() == 1 && (1..ELEMENTS).contains(&left[0]), "{left:?}");
        assert_eq!(run.events.last().map(|event| event.gprs[gpr::RCX]), Some(0));
        let page =
            |at| machine.memory.read_array::<{ ELEMENTS as usize }>(Gpa(at)).expect("the pages are in RAM");
        assert!(page(DATA) == page(CODE), "all of it was moved");
    }
}
