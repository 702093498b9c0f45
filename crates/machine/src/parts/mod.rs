//! Devices with what they lack as pure state machines: a lock, a way to the world, and threads for real I/O.

mod chip;
mod console;
mod disk;
mod doorbell;
pub(crate) mod giving;
mod net;
mod pci;
mod serial;
mod share;
mod virtio;

pub(crate) use chip::Chip;
pub(crate) use console::{ConsoleHost, PortThread};
pub(crate) use disk::{DiskHost, DiskThreads};
pub(crate) use doorbell::Doorbells;
pub(crate) use net::{CardHost, CardThread};
pub(crate) use pci::{Pci, PciSlot, PlainFunction};
pub(crate) use serial::{ConsoleSink, Serial};
pub use share::ShareState;
pub(crate) use share::{ShareHost, ShareRequests, ShareSaver};
pub(crate) use virtio::{HostSide, Hosted, RngHost, VirtioPart};

use viv_arch::saved::ChipSaved;
use viv_devices::{Access, Unfit, Unsaved};

/// What a thread does beside the vCPUs.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

/// A device on the port or MMIO bus. Calls come from every vCPU's thread.
pub(crate) trait Part: Send + Sync {
    /// The guest reads.
    fn read(&self, access: Access) -> u64;
    /// The guest writes.
    fn write(&self, access: Access, value: u64);
    /// When [`Part::tick`] is due, in guest time.
    fn deadline(&self) -> Option<u64> {
        None
    }
    /// Time has come to `now`.
    fn tick(&self, now: u64) {
        let _ = now;
    }
    /// The whole state.
    fn save(&self) -> Result<ChipSaved, Unsaved>;
    /// Replaces the whole state, and drives its line as it says.
    fn load(&self, saved: &ChipSaved) -> Result<(), Unfit>;
}
