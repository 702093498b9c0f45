//! One VM's process.
//!
//! ```text
//!   host service ── control.sock ──► control ─┐          ┌─► guest (machine)
//!   commands ────── console.sock ──► console ─┼─► life ──┤
//!                   console.log  ◄────────────┘          └─► end.json, last
//! ```
//!
//! What of that is around any guest, not only around a machine, is in [`viv_cell`].
//!
//! A directory that the guest shares has a process of its own beside it: [`share`].
//!
//! [`run`] reads what the VM is asked to be, gives up every right that it does not need
//! ([`viv_cell::sandbox`]), builds the guest, reports that it runs, and then waits for its end. It knows nothing of
//! other VMs, of images or of names: that is policy, and lives in `host`. It needs no host service to go on.
//! Start reading at [`life`].
mod command;
mod control;
mod devices;
mod footprint;
mod guest;
mod health;
mod life;
mod ports;
mod probe;
mod quiesce;
mod renew;
mod sandbox;
pub mod share;
mod snapshot;
mod stats;

pub use guest::{Build, Guest, Moment, Parts};
pub use life::run_with;
pub use probe::probe;
pub use snapshot::Files as SnapshotFiles;
pub use viv_cell::Console;
pub use viv_cell::sandbox::close_inherited;

/// Runs the VM whose directory is `dir` as a machine. The exit status says whether it could be started at
/// all; how it ended is in its directory.
pub fn run(dir: &std::path::Path) -> u8 {
    run_with(dir, &guest::machine)
}
