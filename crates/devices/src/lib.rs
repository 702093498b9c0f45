//! Device models as pure state machines: registers in, effects out.
//!
//! ```text
//!             read, write, tick(now)                       irq, deadline, messages, bytes, requests
//!  guest ─────────────────────────────► device (no clock) ─────────────────────────────► machine
//! ```
//! Inputs are calls, and time is an argument of them. What a device wants from the world (an interrupt
//! line, bytes to send, a request, the next deadline) is a value that the machine collects after each call.
//! So the same model serves KVM and the software CPU, is tested in microseconds without either, and is saved
//! by copying its fields.
//!
//! What it will never do: I/O, threads, locks, reading a clock, `unsafe`, and panic for anything a guest
//! sends. Start reading at [`BusDevice`]; [`chips`] has a PC's classic chips, a file or folder each, [`pci`]
//! the root and its functions, [`virtio`] the devices that know nothing of their transport.
#![forbid(unsafe_code)]

mod bus;
pub mod chips;
mod interrupt;
pub mod pci;
mod saved;
pub mod virtio;

pub use bus::{Access, BusDevice, Ns};
pub use interrupt::Interrupt;
pub use saved::{Unfit, Unsaved};
