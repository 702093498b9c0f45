//! A program saved in the middle of its work, and one that goes on from there.
//!
//! ```text
//!   runs ─► stands between two instructions ─► frames, variables, operands   (capture)
//!                                              globals, memories, tables
//!                                              descriptors, clock            (wasi)
//!   the module again ─► memories, globals … put back                          (restore)
//!                    └► a module of functions that go on there                (write, from shape and cut)
//! ```
//! No program is made for this, and none is changed: wasmtime's interface for debuggers shows frames exactly, and functions that
//! rebuild them are made when a program goes on. [`saved`] is what is written down.
mod capture;
mod cut;
mod restore;
mod saved;
mod shape;
mod shown;
mod write;

pub(crate) use capture::{Stands, capture};
pub(crate) use restore::{Plan, go_on, plan, put_back};
pub(crate) use saved::{State, Value};
pub(crate) use shape::Shape;
use write::Places;

use wasmtime::{Instance, Module};

/// A program that runs.
#[derive(Clone)]
pub(crate) struct Running {
    pub(crate) instance: Instance,
    /// The functions that it goes on in, if it came from a snapshot.
    pub(crate) resumed: Option<std::sync::Arc<Resumed>>,
}

/// The functions that a program goes on in.
pub(crate) struct Resumed {
    pub(crate) module: Module,
    pub(crate) instance: Instance,
    /// The program's functions that they import.
    functions: Vec<u32>,
    /// What their instructions stand for.
    pub(crate) places: Places,
}

/// Why a program cannot be saved, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsaved {
    /// It has something that cannot be taken out of this process: what.
    #[error("it has {0}")]
    Kind(&'static str),
    /// It has something open that cannot be opened again: what, and why.
    #[error("it has open {0}")]
    Open(String),
    /// It has so many connections, whose other ends stay with it.
    #[error("it has open connections, {0} of them, which cannot be taken along")]
    Connected(usize),
    /// It is between two functions that let it go on: with the next instruction, it can.
    #[error("it is just going on from a snapshot")]
    Soon,
    /// What was saved is not of this program, or not what was written.
    #[error("{0}")]
    Damaged(String),
}

impl From<wasmparser::Error> for Unsaved {
    fn from(error: wasmparser::Error) -> Unsaved {
        Unsaved::Damaged(error.to_string())
    }
}

impl<E: std::fmt::Display> From<wasm_encoder::reencode::Error<E>> for Unsaved {
    fn from(error: wasm_encoder::reencode::Error<E>) -> Unsaved {
        Unsaved::Damaged(error.to_string())
    }
}

/// The outcome of something that does not wait: wasmtime's debugging interface wants calls that could.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    loop {
        if let std::task::Poll::Ready(done) = future.as_mut().poll(&mut context) {
            return done;
        }
    }
}

#[cfg(test)]
mod tests;
