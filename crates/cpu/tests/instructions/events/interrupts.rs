//! Interrupts and kicks at any time. The interpreter's states before each instruction are known; whatever an interrupt finds in
//! translated code must be one of them, each later than the one before, and the loop ends as if nothing had happened.

use super::machine::{Board, Event, Machine, Run, Script, Start, Then, contents, units};
use super::program::{Extra, Program, absolute, forms, in_code};
use super::{each, machine, same};
use crate::random::Random;
use crate::soft::Tier;
use crate::window::{CODE, DATA};
use iced_x86::code_asm::{CodeAssembler, al, byte_ptr, ebx, qword_ptr, rax, rdi, rsi};
use iced_x86::{Code, Instruction, MemoryOperand, Register};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use viv_arch::x86::{gpr, rflags};
use viv_cpu::{CpuError, Exit, Vcpu};
use viv_mem::{Gpa, GuestMemory};

/// Faults skip the rest of the round.
struct Skip {
    tail: u64,
    /// Interrupts come after some of the questions to the bus.
    random: Option<Random>,
}

impl Script for Skip {
    fn event(&mut self, event: &Event, _: &GuestMemory) -> Then {
        match event.vector {
            vector if vector == machine::END.into() => Then::Halt,
            _ => Then::GoTo(self.tail),
        }
    }
    fn interrupts(&mut self) -> bool {
        self.random.as_mut().is_some_and(|random| random.percent(40))
    }
}

/// What asks the bus, and what lets interrupts in or not.
struct Questions {
    supervisor: bool,
}

impl Extra for Questions {
    fn percent(&self) -> u64 {
        12
    }
    fn draw(&mut self, random: &mut Random) -> Vec<Instruction> {
        let device = absolute(machine::DEVICE);
        let plain = |code| Ok(Instruction::with(code));
        let one = match random.below(if self.supervisor { 9 } else { 3 }) {
            0 => plain(Code::Rdtsc),
            1 => Instruction::with2(Code::Mov_r32_rm32, Register::EDX, device),
            2 => Instruction::with2(Code::Mov_rm32_r32, device, Register::EAX),
            3 => Instruction::with2(Code::Out_imm8_AL, 0x80, Register::AL),
            4 => Instruction::with2(Code::In_EAX_imm8, Register::EAX, 0x80),
            5 | 6 => plain(Code::Sti),
            7 => plain(Code::Cli),
            _ => {
                // IF through the stack.
                let mask =
                    Instruction::with2(Code::Btc_rm32_imm8, MemoryOperand::with_base(Register::RSP), 9);
                return [plain(Code::Pushfq), mask, plain(Code::Popfq)].into_iter().flatten().collect();
            }
        };
        one.into_iter().collect()
    }
}

/// Pokes and kicks a vCPU now and then, from outside.
struct Poker {
    target: Mutex<Option<Arc<Board>>>,
    end: AtomicBool,
}

impl Poker {
    fn run(&self, seed: u64) {
        let mut random = Random::new(seed);
        while !self.end.load(Ordering::SeqCst) {
            let until = Instant::now() + Duration::from_nanos(500 + random.below(8000));
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            let target = self.target.lock().unwrap_or_else(PoisonError::into_inner);
            match &*target {
                Some(board) if random.percent(70) => board.interrupt(),
                Some(board) => board.kick.kick(),
                None => {
                    drop(target);
                    std::thread::yield_now();
                }
            }
        }
    }
    fn aim(&self, at: Option<Arc<Board>>) {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

/// Everything that an interrupt could find.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Found {
    rip: u64,
    gprs: [u64; 16],
    rflags: u64,
    state: u64,
    /// Behind an STI, where only kicks may find it.
    shadow: bool,
}

impl From<&Event> for Found {
    fn from(event: &Event) -> Found {
        let Event { rip, gprs, rflags, state, .. } = *event;
        Found { rip, gprs, rflags, state, shadow: false }
    }
}

fn found(cpu: &impl Vcpu, memory: &GuestMemory) -> Result<Found, CpuError> {
    let state = cpu.save()?;
    let rflags = state.rflags & !rflags::RF;
    let units = units(&state.xsave);
    let sum = machine::fold(units, contents(memory));
    Ok(Found { rip: state.rip, gprs: state.gprs, rflags, state: sum, shadow: state.interrupt_shadow })
}

/// The interpreter's run, instruction by instruction: its states in the loop, with when they were there first and last.
fn step_through(machine: &mut Machine, program: &Program) -> (Run, HashMap<Found, (u64, u64)>) {
    let board = machine.begin(&program.start, Box::new(Skip { tail: program.tail, random: None }));
    let mut states = HashMap::new();
    let (mut step, mut shadow) = (0, false);
    while !board.done.load(Ordering::SeqCst) {
        let now = found(&machine.cpu, &machine.memory).expect("the software CPU can save");
        // Single steps know no shadows.
        let now = Found { shadow, ..now };
        let sti =
            in_code(now.rip) && machine.memory.read_array(Gpa(now.rip)).is_ok_and(|byte| byte == [0xfb]);
        shadow = sti && now.rflags & rflags::IF == 0;
        if in_code(now.rip) {
            states.entry(now).or_insert((step, step)).1 = step;
            step += 1;
        }
        if machine.cpu.step(&*board).is_err() {
            // Again, with its delivery.
            assert_eq!(machine.cpu.run_for(&*board, 1), Exit::Kicked);
        }
    }
    (machine.end(&board, Exit::Halted), states)
}

/// Whether the states that interrupts found are those of the interpreter, in its order.
fn precise<'a>(
    states: &HashMap<Found, (u64, u64)>,
    what: &str,
    interrupted: impl Iterator<Item = &'a Found>,
) -> Result<(), String> {
    let mut at = 0;
    for (n, found) in interrupted.enumerate() {
        let Some((_, last)) = states.get(found) else {
            let near: Vec<_> = states.iter().filter(|(state, _)| state.rip == found.rip).collect();
            let same = near.iter().find(|(state, _)| state.gprs == found.gprs).map(|(state, _)| state);
            return Err(format!(
                "{what} {n} found rip {:x} flags {:x} {:x?} (in a shadow: {}), in which the interpreter never was (there it was {} times; \
                 with the same registers: flags {:x?}, the same units and memory: {:?})",
                found.rip,
                found.rflags,
                found.gprs,
                found.shadow,
                near.len(),
                same.map(|state| state.rflags),
                same.map(|state| state.state == found.state),
            ));
        };
        if *last < at {
            return Err(format!("{what} {n} at {:x} goes back from step {at} to {last}", found.rip));
        }
        at = at.max(states[found].0);
    }
    Ok(())
}

#[test]
fn interrupts_find_states_of_the_interpreter() {
    let forms = forms();
    let (mut reference, mut ours) = (Machine::new(Tier::Interpreter), Machine::new(Tier::Translator));
    let poker = Arc::new(Poker { target: Mutex::default(), end: AtomicBool::new(false) });
    let thread = std::thread::spawn({
        let poker = poker.clone();
        move || poker.run(1)
    });
    let (mut taken, mut kicked, mut steps, mut faults) = (0, 0, 0, 0);
    let count = each(31, 600, |seed| {
        let random = &mut Random::new(seed);
        let user = random.percent(50);
        // Long ones are for what comes from outside.
        let rounds = if random.percent(15) { 200 } else { 3 + random.below(25) };
        let made = Program::new(random, &forms, user, rounds, &mut Questions { supervisor: !user });
        let Some(mut program) = made else { return };
        program.start.rflags |= rflags::IF;
        let (truth, states) = step_through(&mut reference, &program);
        steps += states.len();
        faults += truth.events.len() - 1;
        for hot in [0, 3] {
            ours.cpu.translate_after(Some(hot));
            let script = Skip { tail: program.tail, random: Some(Random::new(seed ^ 1)) };
            let board = ours.begin(&program.start, Box::new(script));
            poker.aim(Some(board.clone()));
            let mut kicks = Vec::new();
            let exit = loop {
                match ours.cpu.run(&*board) {
                    Exit::Kicked => {
                        let now = found(&ours.cpu, &ours.memory).expect("the software CPU can save");
                        kicks.extend(in_code(now.rip).then_some(now));
                    }
                    Exit::Halted if !board.done.load(Ordering::SeqCst) => {}
                    exit => break exit,
                }
            };
            poker.aim(None);
            let run = ours.end(&board, exit);
            let interrupted: Vec<Found> = run.interrupted.iter().map(Found::from).collect();
            taken += interrupted.len();
            kicked += kicks.len();
            let masked = interrupted.iter().position(|found| found.rflags & rflags::IF == 0);
            let checked = precise(&states, "interrupt", interrupted.iter())
                .and_then(|()| precise(&states, "kick", kicks.iter()))
                .and_then(|()| masked.map_or(Ok(()), |n| Err(format!("interrupt {n} was masked"))))
                .and_then(|()| same(&truth, &run));
            if let Err(wrong) = checked {
                poker.end.store(true, Ordering::SeqCst);
                panic!(
                    "VIV_LOOP={seed:#x} (ring {}): {wrong}{}",
                    if user { 3 } else { 0 },
                    program.listing()
                );
            }
        }
    });
    poker.end.store(true, Ordering::SeqCst);
    thread.join().expect("the poker ends");
    println!(
        "{count} loops, {steps} states, {faults} faults, {taken} interrupts, {kicked} kicks in the loops"
    );
    assert!(taken > count as usize, "few interrupts came");
}

/// An interrupt waits whenever the bus was asked.
struct Always;

impl Script for Always {
    fn event(&mut self, _: &Event, _: &GuestMemory) -> Then {
        Then::Halt
    }
    fn interrupts(&mut self) -> bool {
        true
    }
}

/// The instruction behind an STI is done before an interrupt, also where its access lies across a page border.
#[test]
fn an_sti_covers_an_access_across_pages() {
    let mut machine = Machine::new(Tier::Translator);
    let mut a = CodeAssembler::new(64).expect("assembler");
    let mut again = a.create_label();
    let code = (|| {
        a.set_label(&mut again)?;
        a.cli()?;
        a.in_(al, 0x80)?;
        a.sti()?;
        a.add(qword_ptr(rsi), rdi)?;
        a.mov(rax, qword_ptr(rsi + 8))?;
        a.dec(qword_ptr(machine::COUNTER))?;
        a.jne(again)?;
        a.int(i32::from(machine::END))?;
        a.assemble(CODE)
    })()
    .expect("code");
    let covered = CODE + 4;
    let mut gprs = [0; 16];
    (gprs[gpr::RSI], gprs[gpr::RSP]) = (DATA + 0x1000 - 4, DATA + 0x1700);
    let start = Start { gprs, code, rip: CODE, rounds: 20, ..Start::default() };
    let run = machine.run(&start, Box::new(Always));
    assert_eq!(run.interrupted.len(), 20);
    for event in run.interrupted {
        assert_eq!(event.rip, covered + 3);
    }
}

/// So it is where a block begins behind the STI, to which a jump over it leads, and where that is a loop.
#[test]
fn an_sti_covers_the_begin_of_a_block() {
    const TURNS: u64 = 3;
    for is_loop in [false, true] {
        let mut machine = Machine::new(Tier::Translator);
        let mut a = CodeAssembler::new(64).expect("assembler");
        let (mut again, mut over, mut out) = (a.create_label(), a.create_label(), a.create_label());
        let code = (|| {
            a.set_label(&mut again)?;
            a.mov(ebx, TURNS as u32)?;
            a.test(byte_ptr(machine::COUNTER), 1)?;
            a.jne(over)?;
            a.sti()?;
            a.set_label(&mut over)?;
            a.dec(ebx)?;
            if is_loop {
                // Of two blocks: one that jumps to itself looks at interrupts at its end.
                a.je(out)?;
                a.jmp(over)?;
            }
            a.set_label(&mut out)?;
            // One waits until the next STI. What is asked here ends translated code, and what follows is translated apart.
            a.cli()?;
            a.in_(al, 0x80)?;
            a.dec(qword_ptr(machine::COUNTER))?;
            a.jne(again)?;
            a.int(i32::from(machine::END))?;
            a.assemble(CODE)
        })()
        .expect("code");
        let sti = code.iter().position(|byte| *byte == 0xfb).expect("an STI");
        let covered = CODE + sti as u64 + 1;
        let mut gprs = [0; 16];
        gprs[gpr::RSP] = DATA + 0x1700;
        let start = Start { gprs, code, rip: CODE, rounds: 20, ..Start::default() };
        let run = machine.run(&start, Box::new(Always));
        assert!(run.interrupted.len() >= 9, "{} interrupts", run.interrupted.len());
        for event in run.interrupted {
            let is_first = event.gprs[gpr::RBX] == TURNS;
            assert!(event.rip != covered || !is_first, "in the shadow (a loop: {is_loop})");
        }
    }
}
