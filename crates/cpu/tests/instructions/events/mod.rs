//! Random loops with events: what happens to a program from outside, or by itself, in the middle of translated code.
//!
//! ```text
//!  program: a loop of random instructions ──► machine: long mode, ring 0 or 3, handlers that tell the board
//!      interpreter ─► events: each with the whole state ─┐
//!      translator  ─► events ────────────────────────────┴─► the same, and the same memory at the end
//! ```
//! - [`interrupts`]: they come at any time; what the handler finds is a state that the interpreter was in, too.
//! - [`latency`]: how long an interrupt waits.
//! - [`permissions`]: the loop changes its page tables; faults come at the same places, and handlers repair them.
//! - [`rewriting`]: the loop rewrites its own code, or another processor does.
//! - [`strides`]: loops of one block go through pages in steady steps.
//!
//! `VIV_LOOPS=n` runs so many loops of each kind, `VIV_LOOP=0x…` only one, as a failure prints it.

mod interrupts;
mod latency;
mod machine;
mod permissions;
mod program;
mod rewriting;
mod strides;

use crate::random::mix;
use machine::{Machine, Run};

/// Runs `one` for the seeds of a sequence, or for the one that is asked for.
fn each(sequence: u64, usual: u64, mut one: impl FnMut(u64)) -> u64 {
    if let Some(seed) = crate::number("VIV_LOOP") {
        one(seed);
        return 1;
    }
    let count = crate::number("VIV_LOOPS").unwrap_or(usual);
    (0..count).for_each(|index| one(mix(sequence, index)));
    count
}

/// What two runs of the same program must have in common.
fn same(truth: &Run, ours: &Run) -> Result<(), String> {
    for (n, (a, b)) in truth.events.iter().zip(&ours.events).enumerate() {
        if let Some(difference) = a.difference(b) {
            return Err(format!("event {n} of {}, {a:x?}: {difference}", truth.events.len()));
        }
    }
    if truth.events.len() != ours.events.len() {
        return Err(format!("{} events, {} events", truth.events.len(), ours.events.len()));
    }
    if truth.exit != ours.exit {
        return Err(format!(
            "the interpreter ended with {:?}, the translator with {:?}",
            truth.exit, ours.exit
        ));
    }
    if truth.calls != ours.calls {
        return Err("they asked the bus other questions".to_string());
    }
    match truth.memory.iter().zip(&ours.memory).position(|(a, b)| a != b) {
        Some(at) => Err(format!("memory at {:x}", Machine::compared(at))),
        None => Ok(()),
    }
}
