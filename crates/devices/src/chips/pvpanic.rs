//! pvpanic: one port through which a guest's kernel says that it has panicked
//! (QEMU `docs/specs/pvpanic.rst`; ACPI device `QEMU0001`).

use super::{read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};

/// The customary port (QEMU `docs/specs/pvpanic.rst`).
pub const PORT: u16 = 0x505;
/// Event: the kernel has panicked, the host should handle it.
pub const PANICKED: u8 = 1 << 0;
/// Event: the kernel has panicked and starts its crash kernel by itself.
pub const CRASH_LOADED: u8 = 1 << 1;

/// The device. One window of 1 port.
#[derive(Clone, Debug, Default)]
pub struct PvPanic {
    events: u8,
}

impl PvPanic {
    /// A device that has heard of no panic.
    pub fn new() -> PvPanic {
        PvPanic::default()
    }

    /// The whole state.
    pub fn save(&self) -> u8 {
        self.events
    }

    /// Replaces the whole state.
    pub fn load(&mut self, events: &u8) {
        self.events = events & (PANICKED | CRASH_LOADED);
    }

    /// Whether the guest has reported a panic since the last reset.
    pub fn panicked(&self) -> bool {
        self.events & PANICKED != 0
    }

    /// Whether the guest has said that its own crash kernel takes over.
    pub fn crash_loaded(&self) -> bool {
        self.events & CRASH_LOADED != 0
    }
}

impl BusDevice for PvPanic {
    /// Reads the events that the device understands.
    fn read(&mut self, access: Access, _now: Ns) -> u64 {
        read_byte_lanes(access, |offset| if offset == 0 { PANICKED | CRASH_LOADED } else { 0xff })
    }

    fn write(&mut self, access: Access, value: u64, _now: Ns) {
        write_byte_lanes(access, value, |offset, byte| {
            if offset == 0 {
                self.events |= byte & (PANICKED | CRASH_LOADED);
            }
        });
    }

    fn reset(&mut self) {
        self.events = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_known_events_count() {
        let mut device = PvPanic::new();
        let port = Access { window: 0, offset: 0, size: 1 };
        assert_eq!(device.read(port, 0), 3);
        device.write(port, 0xfc, 0);
        assert!(!device.panicked() && !device.crash_loaded());
        device.write(port, u64::from(CRASH_LOADED), 0);
        assert!(!device.panicked() && device.crash_loaded());
        device.write(port, u64::from(PANICKED), 0);
        assert!(device.panicked());
        device.reset();
        assert!(!device.panicked());
    }
}
