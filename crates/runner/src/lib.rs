//! One VM's process.
//!
//! ```text
//!   host service ── control.sock ──► control ─┐          ┌─► guest (machine)
//!   commands ────── console.sock ──► console ─┼─► life ──┤
//!                   console.log  ◄────────────┘          └─► end.json, last
//! ```
//!
//! [`run`] reads what the VM is asked to be, gives up every right that it does not need
//! ([`sandbox`]), builds the guest, reports that it runs, and then waits for its end. It knows nothing of
//! other VMs, of images or of names: that is policy, and lives in `host`. It needs no host service to go on.
//! Start reading at [`life`].
mod command;
mod console;
mod control;
mod guest;
mod life;
mod probe;
pub mod sandbox;
mod written;

pub use guest::{Build, Guest};
pub use life::run;
pub use probe::probe;
