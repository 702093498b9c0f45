//! Guests that run wild: a whole board and its software CPUs, driven by bytes instead of a kernel.
//!
//! ```text
//!  bytes ─► Entropy ─┬─► run_code       random code in every mode, with random tables, over the real buses
//!                    ├─► run_accesses   ports, MMIO, PCI configuration, MSRs, time, the host's side
//!                    └─► run_rings      virtqueues that lie, on every virtio device, over both transports
//! ```
//! Each is a pure function of its bytes but for the clock. It returns if the guest was contained; a panic, a crash
//! (guest RAM lies between pages without access) or an endless loop is a finding. Property tests and fuzz
//! targets share them. Nothing here is part of the product: the feature `trial` makes it.

mod accesses;
mod board;
mod code;
mod entropy;
mod rings;

pub use accesses::run_accesses;
pub use board::Trial;
pub use code::run_code;
pub use entropy::Entropy;
pub use rings::run_rings;
