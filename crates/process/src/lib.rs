//! One program's process: what `runner` is for a whole computer.
//!
//! ```text
//!   host service ── control.sock ──► control ─┐          ┌─► Instance (a program on its abstract machine)
//!   commands ────── vsock.sock ────► session ─┼─► life ──┤        ▲ made by an Engine
//!   commands ────── console.sock ──► console  │          └─► end.json, last
//!                   console.log ◄── streams ◄─┘
//! ```
//!
//! The process speaks to the host service and to commands as a machine's runner and its guest's agent do, so that they need
//! not know what runs. An abstract machine is behind [`Engine`] and [`Instance`]: each has a binary of its own, that nobody
//! else links. Start reading at [`run`].
#![forbid(unsafe_code)]

mod control;
mod engine;
mod gate;
mod life;
mod session;
mod streams;

pub use engine::{Confinement, Engine, Files, Instance, Prepared, Saved, Setting, no_commands};
pub use gate::{Gate, Stopped, Waited};
pub use life::run;
pub use streams::{Channel, Streams};
