//! Device models as pure state machines: registers in, effects out. No I/O, no threads, no locks, no
//! clock (time is an argument), no `unsafe`.
//!
//! What a device wants from the world (an interrupt line, bytes to send, a request, the next deadline)
//! is a value that the machine collects after each call.
#![forbid(unsafe_code)]

mod bus;
pub mod chips;
mod interrupt;
pub mod pci;
pub mod virtio;

pub use bus::{Access, BusDevice, Ns};
pub use interrupt::Interrupt;
