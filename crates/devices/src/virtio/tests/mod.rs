//! Devices and transports against a driver that plays the guest. Test names say what the specification says.

mod balloon;
mod blk;
mod blk_resets;
mod broken_rings;
mod console_rng;
mod fs;
mod mem;
mod net;
mod packed;
mod transports;
mod vsock;

use super::mock::{MockDriver, Registers, SPLIT};
use super::*;
use crate::pci::{Allocator, PciFunction};
use viv_mem::{Gpa, GuestMemory};

pub(super) const MEMORY_LEN: u64 = 4 << 20;

pub(super) fn memory() -> GuestMemory {
    GuestMemory::new(&[(Gpa(0), MEMORY_LEN)]).unwrap()
}

/// A PCI function whose BARs are placed and that may master the bus.
pub(super) fn function<D: VirtioDevice>(device: D, memory: &GuestMemory) -> VirtioPci<D> {
    let mut function = VirtioPci::new(device, memory.clone(), 10);
    let mut windows = Allocator::new((Gpa(0xc000_0000), 1 << 24), (Gpa(1 << 40), 1 << 24));
    assert!(function.place_bars(&mut windows));
    function.config_write(0x04, 2, 0x6);
    function
}

/// A driver on the PCI function of `device`, with all its queues and every feature but packed rings.
pub(super) fn on_pci<D: VirtioDevice>(device: D) -> MockDriver<VirtioPci<D>> {
    let memory = memory();
    let queues = device.queue_sizes().len() as u16;
    MockDriver::new(function(device, &memory), memory, SPLIT, queues, 64)
}

/// A driver on the MMIO window of `device`, without EVENT_IDX and indirect descriptors.
pub(super) fn on_mmio<D: VirtioDevice>(device: D) -> MockDriver<VirtioMmio<D>> {
    let memory = memory();
    let queues = device.queue_sizes().len() as u16;
    let transport = VirtioMmio::new(device, memory.clone());
    MockDriver::new(transport, memory, 0xff_ffff, queues, 64)
}
