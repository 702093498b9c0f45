//! Loops that change the permissions of their own pages, and what they map: by stores into the page table and what flushes
//! behind them, or by asking the board, whose answer the handler carries out. Faults come at the same instructions with the
//! same state; handlers repair them or skip the round.
//!
//! What takes permissions away is flushed before anything looks: which stale translations live on is a processor's own
//! business. What gives more needs no flush.

use super::machine::{
    self, DATA_PAGES, Event, Flush, Machine, Mapping, NO_EXECUTE, PRESENT, Script, TABLE, TABLE_WINDOW, Then,
    USER, WRITE, entry_of,
};
use super::program::{Extra, Program, absolute, forms};
use super::{each, same};
use crate::random::Random;
use crate::soft::Tier;
use crate::window::{CODE, DATA};
use iced_x86::{Code, Instruction, Register};
use viv_mem::{Gpa, GuestMemory};

/// An entry for a page as the loop's ring may use it.
fn full(page: u64, user: bool) -> u64 {
    let user = if user { USER } else { 0 };
    page | PRESENT | WRITE | user | if page < DATA { 0 } else { NO_EXECUTE }
}

/// What a page may become: something is taken away, or another page is there.
fn changed(random: &mut Random, page: u64, user: bool) -> u64 {
    let entry = full(page, user);
    match random.below(8) {
        0 | 1 => entry & !PRESENT,
        2 | 3 => entry & !WRITE,
        4 => entry ^ USER,
        5 if page < DATA => entry | NO_EXECUTE,
        // Code stays where it is.
        5 | 6 if page >= DATA => full(DATA + (random.below(DATA_PAGES) << 12), user),
        _ => entry,
    }
}

/// Answers questions with changes, and repairs what faults.
pub(super) struct Keeper {
    pub(super) random: Random,
    pub(super) tail: u64,
    pub(super) user: bool,
    /// Faults behind which the instruction is tried again.
    pub(super) repairs: u32,
}

impl Script for Keeper {
    fn event(&mut self, event: &Event, memory: &GuestMemory) -> Then {
        if event.vector == machine::END.into() {
            return Then::Halt;
        }
        if event.vector == machine::ASK.into() {
            // The code's second page, and data.
            let data = DATA + (self.random.below(DATA_PAGES) << 12);
            let page = if self.random.percent(25) { CODE + 0x1000 } else { data };
            let value = changed(&mut self.random, page, self.user);
            let flush = if self.random.percent(70) { Flush::Page(page) } else { Flush::All };
            return Then::Resume(Some(Mapping { entry: entry_of(page), value, flush }));
        }
        let page = event.cr2 & !0xfff;
        let ours = page == CODE + 0x1000 || (DATA..DATA + (DATA_PAGES << 12)).contains(&page);
        let skipped = page >= DATA && (self.repairs == 0 || self.random.percent(15));
        if event.vector != 14 || !ours || skipped {
            return Then::GoTo(self.tail);
        }
        self.repairs = self.repairs.saturating_sub(1);
        // The frame stays the one that is there.
        let now = memory.read_array(Gpa(entry_of(page))).map_or(0, u64::from_le_bytes);
        let value = full(page, self.user) & !FRAME | now & FRAME;
        // A fault leaves no translation of its page behind.
        let flush = if self.random.percent(50) { Flush::Nothing } else { Flush::Page(page) };
        Then::Resume(Some(Mapping { entry: entry_of(page), value, flush }))
    }
}

/// The bit that a processor sets when it uses an entry (Intel SDM vol. 3, §4.8).
const ACCESSED: u64 = 0x20;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Stores into the table, by the loop itself.
struct Stores {
    user: bool,
}

impl Stores {
    /// What flushes a page, or all of them.
    fn flush(random: &mut Random, page: u64) -> Vec<Option<Instruction>> {
        if random.percent(60) {
            return vec![Instruction::with1(Code::Invlpg_m, absolute(page)).ok()];
        }
        vec![
            Instruction::with2(Code::Mov_r64_cr, Register::RDI, Register::CR3).ok(),
            Instruction::with2(Code::Mov_cr_r64, Register::CR3, Register::RDI).ok(),
        ]
    }
}

impl Extra for Stores {
    fn percent(&self) -> u64 {
        12
    }
    fn draw(&mut self, random: &mut Random) -> Vec<Instruction> {
        let mut code = Vec::new();
        let page = DATA + (random.below(DATA_PAGES) << 12);
        let entry = absolute(TABLE_WINDOW + (entry_of(page) - TABLE));
        if random.percent(35) {
            code.push(Instruction::with1(Code::Int_imm8, u32::from(machine::ASK)).ok());
        } else if self.user || random.percent(25) {
            // Permissions that only grow.
            let bits = if self.user { PRESENT | WRITE | USER } else { PRESENT | WRITE };
            code.push(Instruction::with2(Code::Or_rm32_imm8, entry, bits as i32).ok());
            // The flags would tell of the accessed bit, which a processor may set before its time: translations may be cached for
            // accesses that are still to come (Intel SDM vol. 3, §4.10.2.3).
            code.push(Instruction::with2(Code::Test_rm64_r64, Register::RSP, Register::RSP).ok());
        } else {
            let value = changed(random, page, self.user);
            code.push(Instruction::with2(Code::Mov_r64_imm64, Register::RDI, value).ok());
            let store = random.pick(&[Code::Mov_rm64_r64, Code::Xchg_rm64_r64]);
            code.push(Instruction::with2(store, entry, Register::RDI).ok());
            if store == Code::Xchg_rm64_r64 {
                // What was there has the accessed bit, too: an access that is refused for its alignment may have set it.
                code.push(Instruction::with2(Code::And_rm64_imm8, Register::RDI, !ACCESSED as i32).ok());
            }
            for _ in 0..random.below(3) {
                code.push(Instruction::with2(Code::Add_r64_rm64, Register::RAX, Register::RCX).ok());
            }
            code.extend(Stores::flush(random, page));
        }
        code.into_iter().flatten().collect()
    }
}

#[test]
fn changing_permissions_fault_alike() {
    let forms = forms();
    let (mut reference, mut ours) = (Machine::new(Tier::Interpreter), Machine::new(Tier::Translator));
    let (mut events, mut faults) = (0, 0);
    let count = each(32, 1500, |seed| {
        let random = &mut Random::new(seed);
        let user = random.percent(50);
        let rounds = 3 + random.below(25);
        let Some(mut program) = Program::new(random, &forms, user, rounds, &mut Stores { user }) else {
            return;
        };
        program.start.guarded = random.percent(50);
        // The second time, translations meet other faults.
        for (pass, hot) in [(0, 0), (1, 0), (2, 4)] {
            let keeper = || {
                let random = Random::new(seed ^ pass);
                Box::new(Keeper { random, tail: program.tail, user, repairs: 60 })
            };
            ours.cpu.translate_after(Some(hot));
            let (a, b) = (reference.run(&program.start, keeper()), ours.run(&program.start, keeper()));
            events += a.events.len();
            faults += a.events.iter().filter(|event| event.vector == 14).count();
            if let Err(wrong) = same(&a, &b) {
                panic!(
                    "VIV_LOOP={seed:#x} (ring {}, pass {pass}): {wrong}{}",
                    if user { 3 } else { 0 },
                    program.listing()
                );
            }
        }
    });
    println!("{count} loops, {events} events, {faults} page faults");
    assert!(count == 1 || faults > count as usize, "few pages faulted");
}
