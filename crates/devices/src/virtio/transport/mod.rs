//! How a driver reaches a device: over PCI or over MMIO.

mod mmio;
mod pci;

pub use mmio::VirtioMmio;
pub use pci::{NOTIFY_MULTIPLIER, NOTIFY_OFFSET, VirtioPci};

use super::{Rings, VirtioDevice};
use crate::Interrupt;

/// What every transport offers to the device's host side.
pub trait VirtioTransport<D: VirtioDevice>: Send {
    /// The device, and its rings to answer on.
    fn device(&mut self) -> (&mut D, Rings<'_>);
    /// Interrupts to deliver since the last call, in order.
    fn take_interrupts(&mut self) -> Vec<Interrupt>;
}
