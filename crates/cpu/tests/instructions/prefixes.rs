//! Repeat prefixes that mean nothing: an instruction behind one is the same as without on our CPU, also where the host's
//! has another instruction there (REP BSF is TZCNT, REP BSR is LZCNT), and where one might read PAUSE (F3 41 90).

use crate::cases::Case;
use crate::forms::covered;
use crate::random::mix;
use crate::soft::{Soft, Tier};
use crate::window::{CODE, Outcome};
use iced_x86::FlowControl;

/// With the page: nothing is executed behind it.
const END: u64 = CODE + 0x1000;

/// Everything but how far RIP is from the end, where x87 pointers go.
fn differ(a: &Outcome, b: &Outcome) -> bool {
    a.fault != b.fault
        || (a.state.gprs, a.state.rflags) != (b.state.gprs, b.state.rflags)
        || a.state.data != b.state.data
        || (a.fault.is_none() && a.state.fx.0[24..] != b.state.fx.0[24..])
}

#[test]
fn a_repeat_prefix_without_meaning_changes_nothing() {
    let (mut interpreter, mut translator) = (Soft::new(Tier::Interpreter), Soft::new(Tier::Translator));
    let mut run = 0;
    for (index, form) in (0..).zip(covered().into_iter().filter(|form| form.bits == 64)) {
        let info = form.code.op_code();
        // Where a prefix chooses the instruction it does mean something. 0F C7 with a register is no instruction without.
        if info.mandatory_prefix() != iced_x86::MandatoryPrefix::None
            || info.op_code_string().contains("0F C7")
        {
            continue;
        }
        for (case, prefix) in
            (0..6).filter_map(|n| Some((Case::new(mix(index, n), form)?, [0xf3, 0xf2][n as usize & 1])))
        {
            let x = &case.instruction;
            if x.flow_control() != FlowControl::Next
                || x.is_string_instruction()
                || x.op_code().can_use_lock_prefix()
            {
                continue;
            }
            if case.bytes.iter().take(4).any(|byte| matches!(byte, 0xf2 | 0xf3)) {
                continue;
            }
            let bytes = [&[prefix], &case.bytes[..]].concat();
            let run_on = |soft: &mut Soft, bytes: &[u8]| {
                soft.place_block(bytes, END);
                let mut before = case.before.clone();
                before.rip = END - bytes.len() as u64;
                soft.run_block(&before, END)
            };
            let without = run_on(&mut interpreter, &case.bytes);
            for soft in [&mut interpreter, &mut translator] {
                let with = run_on(soft, &bytes);
                assert!(!differ(&without, &with), "{form:?} {bytes:x?}, {:?}", soft.tier());
            }
            run += 1;
        }
    }
    assert!(run > 1000, "{run} cases");
}
