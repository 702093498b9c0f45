//! The host bridge: function 0:0.0, which says that there is a root and does nothing.

use super::{Allocator, BarRange, ConfigSpace, Identity, PciFunction};
use crate::{Interrupt, Unfit, Unsaved};
use viv_arch::pci::CLASS_HOST_BRIDGE;
use viv_arch::saved::FunctionSaved;

/// The host bridge of the board.
#[derive(Clone, Debug)]
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// Vendor 1b36, device 0008: the generic PCI Express host bridge that guests know as such.
    pub fn new() -> HostBridge {
        let config = ConfigSpace::new(Identity {
            vendor: 0x1b36,
            device: 0x0008,
            revision: 0,
            class: CLASS_HOST_BRIDGE,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        });
        HostBridge { config }
    }
}

impl Default for HostBridge {
    fn default() -> HostBridge {
        HostBridge::new()
    }
}

impl PciFunction for HostBridge {
    fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        self.config.read(offset, size)
    }
    fn config_write(&mut self, offset: u16, size: u8, value: u32) -> bool {
        self.config.write(offset, size, value);
        false
    }
    fn bars(&self) -> Vec<BarRange> {
        Vec::new()
    }
    fn place_bars(&mut self, windows: &mut Allocator) -> bool {
        self.config.place_bars(windows)
    }
    fn bar_read(&mut self, _bar: u8, _offset: u64, _size: u8) -> u64 {
        u64::MAX
    }
    fn bar_write(&mut self, _bar: u8, _offset: u64, _size: u8, _value: u64) {}
    fn take_interrupts(&mut self) -> Vec<Interrupt> {
        Vec::new()
    }
    fn save(&self) -> Result<FunctionSaved, Unsaved> {
        Ok(FunctionSaved { config: self.config.save(), virtio: None })
    }
    fn load(&mut self, saved: &FunctionSaved) -> Result<(), Unfit> {
        if saved.virtio.is_some() {
            return Err(Unfit::new("a host bridge is no virtio device"));
        }
        self.config.load(&saved.config)
    }
    fn reset(&mut self) {
        self.config.reset();
    }
}
