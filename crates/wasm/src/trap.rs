//! How a program's end is told.
use crate::limits::Usage;
use crate::wasi::Exit;
use std::fmt::Write;
use std::sync::atomic::Ordering;
use viv_model::End;
use wasmtime::{Error, Trap, WasmBacktrace};

/// Most frames of a back trace that a message has.
const FRAMES_MAX: usize = 16;

/// What this error of a run means. An end from outside is the gate's to tell.
pub(crate) fn end_of(error: &Error, fuel: Option<u64>, memory_max: u64, usage: &Usage) -> End {
    if let Some(Exit(status)) = error.downcast_ref::<Exit>() {
        return End::Command { status: *status };
    }
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::OutOfFuel) {
        let fuel = fuel.unwrap_or_default();
        return End::Limit { message: format!("the program has used up its fuel of {fuel}{}", trace(error)) };
    }
    let what = match trap {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let message = format!("the program trapped: {what}{}", trace(error));
    // Most programs give up by a trap when there is no memory; those that can go on are not here.
    if usage.refused.load(Ordering::Relaxed) > 0 && trap != Some(&Trap::StackOverflow) {
        let mib = memory_max >> 20;
        let message =
            format!("the program was refused more memory than its {mib} MiB, and gave up: {message}");
        return End::Limit { message };
    }
    End::Trap { message }
}

/// Where it was, innermost first.
fn trace(error: &Error) -> String {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else { return String::new() };
    let mut text = String::new();
    let frames = backtrace.frames();
    for frame in frames.iter().take(FRAMES_MAX) {
        let function = frame.func_name().map_or_else(
            || format!("function {}", frame.func_index()),
            |name| rustc_demangle::demangle(name).to_string(),
        );
        let place = frame.module_offset().map(|offset| format!(" ({offset:#x})")).unwrap_or_default();
        let _ = write!(text, "\n    at {function}{place}");
    }
    if let Some(more @ 1..) = frames.len().checked_sub(FRAMES_MAX) {
        let _ = write!(text, "\n    and {more} more");
    }
    text
}
