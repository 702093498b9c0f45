//! PCI: configuration space, MSI-X, the host bridge, and routing of accesses (PCI 3.0, PCIe 4.0 §7.2.2).
//!
//! ```text
//!  port 0xcf8/0xcfc, ECAM, PCI window ──► PciRoot ──► Target: a function's configuration or BAR
//!  machine locks that function ──► PciFunction::{config_read, config_write, bar_read, bar_write}
//! ```
//! [`PciRoot`] knows addresses only; it owns no function, so that the machine can keep each function in
//! its own lock:
//!
//! 1. Build: make functions, choose a [`Bdf`](viv_arch::pci::Bdf) for each, place their BARs with
//!    [`PciFunction::place_bars`] and an [`Allocator`] (there is no firmware), then tell
//!    [`PciRoot::set_bars`].
//! 2. An access: `root.lock().…()` gives a [`Target`]; release the root, lock the function, do it.
//! 3. [`PciFunction::config_write`] returns true when BARs may have moved: call [`PciRoot::set_bars`]
//!    again with [`PciFunction::bars`].
//! 4. Collect [`PciFunction::take_interrupts`].

mod bridge;
mod config;
mod msix;
mod root;

pub use bridge::HostBridge;
pub use config::{BarKind, ConfigSpace, Identity};
pub use msix::Msix;
pub use root::{Allocator, PciRoot, Target};

use crate::{Interrupt, Unfit, Unsaved};
use viv_arch::saved::FunctionSaved;
use viv_mem::Gpa;

/// Where a BAR is decoded at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// Number of its (first) register, 0 to 5.
    pub bar: u8,
    /// First byte.
    pub gpa: Gpa,
    /// Bytes, a power of two.
    pub len: u64,
}

/// One PCI function. Offsets and sizes are the guest's: whatever they are, it answers.
pub trait PciFunction: Send {
    /// Reads configuration space: `size` is 1, 2 or 4 bytes, `offset` below 4096.
    fn config_read(&mut self, offset: u16, size: u8) -> u32;
    /// Writes configuration space. True if [`PciFunction::bars`] may have changed.
    fn config_write(&mut self, offset: u16, size: u8, value: u32) -> bool;
    /// The BARs that are decoded now: none unless the command register allows memory accesses.
    fn bars(&self) -> Vec<BarRange>;
    /// Gives each BAR an address, as firmware would, and enables memory decoding. False if no room was left.
    fn place_bars(&mut self, windows: &mut Allocator) -> bool;
    /// Reads a BAR: `size` is 1, 2, 4 or 8 bytes.
    fn bar_read(&mut self, bar: u8, offset: u64, size: u8) -> u64;
    /// Writes a BAR.
    fn bar_write(&mut self, bar: u8, offset: u64, size: u8, value: u64);
    /// Interrupts to deliver since the last call, in order.
    fn take_interrupts(&mut self) -> Vec<Interrupt>;
    /// The whole state.
    fn save(&self) -> Result<FunctionSaved, Unsaved>;
    /// Replaces the whole state. BARs may have moved.
    fn load(&mut self, saved: &FunctionSaved) -> Result<(), Unfit>;
    /// Back to the state after power-on, but with BARs where `place_bars` put them.
    fn reset(&mut self);
}
