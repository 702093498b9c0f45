//! Virtio devices and their transports, as pure state machines (virtio 1.2; the paragraphs are its).
//!
//! ```text
//!  guest ── BAR or MMIO access ──► VirtioPci<D> | VirtioMmio<D> ──► Core (status, features, queues)
//!                                        │                             │ activate, notified, config
//!  machine ◄── take_interrupts() ────────┘                             ▼
//!  machine ◄── requests, bytes, events ◄── device() ──► D: VirtioDevice + Rings (queues, memory)
//! ```
//!
//! # How the machine drives a device
//!
//! It holds each transport in a `Mutex`. After *every* call that may change something it collects the
//! effects. Interrupts are delivered before the lock is free, or line levels might arrive in the wrong
//! order; real I/O waits until it is:
//!
//! 1. A vCPU's access: `transport.bar_write(…)` ([`VirtioPci`], by [`crate::pci::PciFunction`]) or
//!    `transport.write(…)` ([`VirtioMmio`]). A write to the notify register has then already processed
//!    that queue.
//! 2. The device's own effects: `let (device, rings) = transport.device();` then for example
//!    [`Blk::take_requests`], [`Console::take_output`], [`Rng::demand`], [`Vsock::take_events`].
//! 3. Answers from I/O threads: the same `transport.device()`, then for example
//!    [`Blk::complete`]`(&mut rings, tag, …)`.
//! 4. `transport.take_interrupts()`: [`Interrupt`](crate::Interrupt)s in order; empty most of the time.
//!
//! A device never sees its transport, a transport never sees what its device does. [`Rings`] is all that
//! a device sees of the guest: whether its rings are split or packed is not its business.
//!
//! A driver that breaks the rules of its rings gets DEVICE_NEEDS_RESET (§2.1.2) and nothing more.

use crate::{Unfit, Unsaved};
use viv_arch::saved::VirtioDeviceSaved;

mod balloon;
pub mod blk;
mod chain;
mod console;
mod core;
pub mod fs;
mod giving;
mod in_flight;
mod mem;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod net;
mod queue;
mod rng;
#[cfg(test)]
mod tests;
mod transport;
pub mod vsock;

pub use balloon::{Balloon, GuestMemoryStats};
pub use blk::{Blk, BlkKind, BlkOutcome, BlkRequest, BlkSettings};
pub use chain::{Chain, Segment, cut, total};
pub use console::{CONSOLE_PORTS_MAX, Console};
pub use core::Rings;
pub use fs::{Fs, FsRequest};
pub use giving::{Given, Giving};
pub use mem::{MEM_BLOCK, Mem};
pub use net::{Net, NetSettings};
pub use queue::{CHAIN_LEN_MAX, Queue, QueueError, RingFeatures};
pub use rng::Rng;
pub use transport::{NOTIFY_MULTIPLIER, NOTIFY_OFFSET, VirtioMmio, VirtioPci, VirtioTransport};
pub use vsock::Vsock;

/// The saved state is that of another kind of device.
pub(crate) fn another_kind() -> Unfit {
    Unfit::new("it is another kind of device's")
}

/// A virtio device: what it is, and what it does when its driver or its host side wants something.
pub trait VirtioDevice: Send {
    /// Its type (§5, [`viv_arch::virtio::device_type`]).
    fn device_type(&self) -> u16;
    /// The PCI class code that fits it: base class, sub-class and interface in 24 bits.
    fn pci_class(&self) -> u32 {
        viv_arch::pci::CLASS_OTHER
    }
    /// The features of its type that it offers. Those of rings and transports are not its business.
    fn features(&self) -> u64;
    /// The largest size of each queue, powers of two.
    fn queue_sizes(&self) -> Vec<u16>;
    /// The guest reads the configuration space; what lies behind its end stays 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// The guest writes the configuration space.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
    /// The driver is ready (DRIVER_OK); `rings` has the features that were agreed on.
    fn activate(&mut self, rings: &mut Rings<'_>) {
        let _ = rings;
    }
    /// The driver says that `queue` has new buffers.
    fn notified(&mut self, queue: u16, rings: &mut Rings<'_>);
    /// Whether somebody outside still works on memory that a driver gave before the last reset.
    fn busy(&self) -> bool {
        false
    }
    /// What it remembers itself.
    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved>;
    /// Replaces what it remembers itself; its rings have been loaded already.
    fn load(&mut self, saved: &VirtioDeviceSaved, rings: &mut Rings<'_>) -> Result<(), Unfit>;
    /// Back to the state after power-on. Work that is under way outside is forgotten when it comes back.
    fn reset(&mut self);
}

/// Copies the part of `config` from `offset` that fits; for [`VirtioDevice::read_config`].
pub(crate) fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let Some(source) = config.get(start..) else { return };
    for (to, from) in data.iter_mut().zip(source) {
        *to = *from;
    }
}
