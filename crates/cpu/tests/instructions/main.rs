//! Three-way truth: every instruction form runs on the bare CPU (this process, ring 3) and on the software
//! CPU, and both must agree bit for bit on registers, defined flags, vector and x87 state, memory and faults.
//! The software CPU runs each of them twice: interpreted and translated.
//!
//! ```text
//!  forms (iced's tables ∩ our CPU level) ─► cases (seeded) ─┬─► native: int3, sigreturn, the instruction, int3 ─┬─► compare
//!                                                          └─► soft: SoftCpu::step, step_translated ──────────┘
//! ```
//! `cargo test -p viv-cpu` runs 50,000 cases. Environment:
//! `VIV_CASES=2000000` the nightly form; `VIV_SEED=n` another sequence; `VIV_CASE=0x…` only this case, as a failure
//! prints it; `VIV_BLOCKS=n` so many random blocks, `VIV_BLOCK=0x…` only this one; `VIV_LOOPS=n`, `VIV_LOOP=0x…` the same for loops with events; `VIV_CODE=Name` only forms whose name contains that; `VIV_FORMS=1` lists covered and excluded forms.

#![allow(unsafe_code)]

mod blocks;
mod cases;
mod compare;
mod defined;
mod draw;
mod events;
mod forms;
mod makers;
mod native;
mod operands;
mod prefixes;
mod random;
mod soft;
mod window;

use cases::Case;
use iced_x86::{Decoder, DecoderOptions};
use std::collections::BTreeMap;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn number(name: &str) -> Option<u64> {
    let text = variable(name)?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn interpreter_agrees_with_the_bare_cpu() {
    agree(soft::Soft::new(soft::Tier::Interpreter));
}

#[test]
fn translator_agrees_with_the_bare_cpu() {
    agree(soft::Soft::new(soft::Tier::Translator));
}

/// The bare CPU's traps belong to the whole process.
static BARE_CPU: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Whoever holds it may use the bare CPU.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    BARE_CPU.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn agree(mut soft: soft::Soft) {
    let _alone = alone();
    let filter = variable("VIV_CODE").unwrap_or_default();
    let all = forms::covered();
    let chosen: Vec<usize> =
        (0..all.len()).filter(|form| format!("{:?}", all[*form]).contains(&filter)).collect();
    assert!(!chosen.is_empty(), "no form's name contains {filter}");
    if variable("VIV_FORMS").is_some() {
        forms::print();
    }
    let count = number("VIV_CASES").unwrap_or(50_000);
    let first = number("VIV_SEED").unwrap_or(1);
    let only = number("VIV_CASE");

    let mut native = native::Native::new();
    let mut failures: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let started = std::time::Instant::now();
    let mut faults = 0u64;
    let mut run = 0u64;
    for index in 0..count {
        let seed = random::mix(first, index);
        // Every form in turn, so that a short run sees them all; a seed names its form in the top bits.
        let seed =
            only.unwrap_or((seed & 0xffff_ffff_ffff) | (chosen[index as usize % chosen.len()] as u64) << 48);
        let form = all[(seed >> 48) as usize % all.len()];
        let Some(case) = Case::new(seed, form) else { continue };
        let truth = native.run(&case);
        let ours = soft.run(&case);
        run += 1;
        faults += u64::from(truth.fault.is_some());
        let differences = compare::differences(&case, &truth, &ours);
        if !differences.is_empty() || only.is_some() {
            let name = format!("{form:?}");
            let entry = failures
                .entry(name)
                .or_insert_with(|| (0, compare::report(&case, &truth, &ours, &differences)));
            entry.0 += u64::from(!differences.is_empty());
        }
        if only.is_some() {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{run} cases of {} forms in {seconds:.1} s ({:.0} cases/s), {faults} ended in a fault",
        chosen.len(),
        run as f64 / seconds
    );
    for (count, report) in failures.values().take(number("VIV_REPORTS").unwrap_or(20) as usize) {
        println!("{report}    {count} cases of this form differ\n");
    }
    let bad: Vec<_> =
        failures.iter().filter(|(_, f)| f.0 != 0).map(|(name, f)| format!("{name}:{}", f.0)).collect();
    assert!(bad.is_empty(), "{} forms differ: {}", bad.len(), bad.join(" "));
}

#[test]
fn every_form_of_our_level_is_known_to_the_software_cpu() {
    let missing: Vec<_> = forms::unsupported().iter().map(|code| format!("{code:?}")).collect();
    assert!(missing.is_empty(), "{} forms are missing: {}", missing.len(), missing.join(" "));
}

/// SDM vol. 2, opcode map A-3: what newer processors made of 0F 18 to 0F 1F are hints, and none here.
#[test]
fn hints_of_newer_processors_do_nothing() {
    let mut missing = BTreeMap::new();
    for opcode in 0x18..=0x1f {
        for (prefix, modrm) in
            [0x66, 0xf2, 0xf3, 0x48, 0x40].into_iter().flat_map(|p| (0..=255).map(move |m| (p, m)))
        {
            let bytes = [prefix, 0x0f, opcode, modrm, 0, 0, 0, 0, 0];
            let x = Decoder::with_ip(64, &bytes, window::START, DecoderOptions::NONE).decode();
            if x.is_invalid() || !viv_cpu::soft::supports(&x) {
                missing.insert(format!("{:?}", x.code()), bytes);
            }
        }
    }
    assert!(missing.is_empty(), "{missing:02x?}");
}
