//! How a program's end is told.
use crate::live::Resumed;
use crate::wasi::Exit;
use std::fmt::Write;
use std::sync::Arc;
use viv_model::End;
use wasmtime::{Error, FrameInfo, Module, Trap, WasmBacktrace};

/// Most frames of a back trace that a message has.
const FRAMES_MAX: usize = 16;

/// Where a program's code is, for whoever reads a back trace.
#[derive(Default)]
pub(crate) struct Names {
    /// The functions that it goes on in: they stand for its own.
    pub(crate) resumed: Option<Arc<Resumed>>,
}

impl Names {
    /// The number and the place in the program's own module.
    fn of(&self, frame: &FrameInfo) -> (u32, Option<usize>) {
        let (number, offset) = (frame.func_index(), frame.module_offset());
        let ours = self.resumed.as_ref().filter(|resumed| Module::same(frame.module(), &resumed.module));
        let place = ours.and_then(|resumed| resumed.places.at(u32::try_from(offset?).ok()?));
        match (ours, place) {
            (Some(_), Some(place)) => (place.function, Some(place.pc as usize)),
            (Some(_), None) => (number, None),
            (None, _) => (number, offset),
        }
    }
}

/// What this error of a run means; whether it had been refused memory. An end from outside is the gate's to tell.
pub(crate) fn end_of(error: &Error, fuel: Option<u64>, memory_max: u64, refused: bool, names: &Names) -> End {
    if let Some(Exit(status)) = error.downcast_ref::<Exit>() {
        return End::Command { status: *status };
    }
    let trap = error.downcast_ref::<Trap>();
    if trap == Some(&Trap::OutOfFuel) {
        let fuel = fuel.unwrap_or_default();
        return End::Limit {
            message: format!("the program has used up its fuel of {fuel}{}", trace(error, names)),
        };
    }
    let what = match trap {
        Some(trap) => trap.to_string(),
        None => error.root_cause().to_string(),
    };
    let message = format!("the program trapped: {what}{}", trace(error, names));
    // Most programs give up by a trap when there is no memory; those that can go on are not here.
    if refused && trap != Some(&Trap::StackOverflow) {
        let mib = memory_max >> 20;
        let message =
            format!("the program was refused more memory than its {mib} MiB, and gave up: {message}");
        return End::Limit { message };
    }
    End::Trap { message }
}

/// Where it was, innermost first.
fn trace(error: &Error, names: &Names) -> String {
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else { return String::new() };
    let mut text = String::new();
    let frames = backtrace.frames();
    for frame in frames.iter().take(FRAMES_MAX) {
        let (number, offset) = names.of(frame);
        let function = frame
            .func_name()
            .map_or_else(|| format!("function {number}"), |name| rustc_demangle::demangle(name).to_string());
        let place = offset.map(|offset| format!(" ({offset:#x})")).unwrap_or_default();
        let _ = write!(text, "\n    at {function}{place}");
    }
    if let Some(more @ 1..) = frames.len().checked_sub(FRAMES_MAX) {
        let _ = write!(text, "\n    and {more} more");
    }
    text
}
