//! The slots of the PCI root bus, for hot plug: which devices came, which are to go, and which the guest let go.
//!
//! The DSDT's methods are its driver (ACPI 6.5 §5.6.6, §6.3): a general-purpose event makes the guest read what came and
//! what shall go, and `_EJ0` ejects. A window of [`WINDOW_LEN`] ports with a bit for each of 32 slots in each register.

use super::{read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};
use viv_arch::chips::SlotsSaved;

/// Slots where a device came since the last read, u32. Reading its last byte clears it.
pub const CAME_OFFSET: u16 = 0;
/// Slots whose device shall go, u32. Reading its last byte clears it.
pub const GO_OFFSET: u16 = 4;
/// Written: slots that the guest lets go, u32. Read: 0.
pub const EJECT_OFFSET: u16 = 8;
/// Ports in the window.
pub const WINDOW_LEN: u16 = 12;

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct PciSlots {
    came: u32,
    go: u32,
    ejected: u32,
}

impl PciSlots {
    /// No news.
    pub fn new() -> PciSlots {
        PciSlots::default()
    }

    /// A device came into this slot, below 32.
    pub fn plugged(&mut self, slot: u8) {
        self.came |= bit(slot);
    }

    /// The device in this slot shall go.
    pub fn request_eject(&mut self, slot: u8) {
        self.go |= bit(slot);
    }

    /// Takes the slots that the guest has let go, a bit each.
    pub fn take_ejected(&mut self) -> u32 {
        std::mem::take(&mut self.ejected)
    }

    /// The whole state. What was ejected must have been taken before.
    pub fn save(&self) -> SlotsSaved {
        SlotsSaved { came: self.came, go: self.go }
    }

    /// Replaces the whole state.
    pub fn load(&mut self, saved: &SlotsSaved) {
        *self = PciSlots { came: saved.came, go: saved.go, ejected: 0 };
    }

    fn read_port(&mut self, offset: u64) -> u8 {
        let word = match offset / 4 {
            0 => &mut self.came,
            1 => &mut self.go,
            _ => return 0,
        };
        let byte = word.to_le_bytes()[(offset & 3) as usize];
        if offset & 3 == 3 {
            *word = 0;
        }
        byte
    }
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

impl BusDevice for PciSlots {
    fn read(&mut self, access: Access, _now: Ns) -> u64 {
        read_byte_lanes(access, |offset| self.read_port(offset))
    }

    fn write(&mut self, access: Access, value: u64, _now: Ns) {
        write_byte_lanes(access, value, |offset, byte| {
            if let Some(lane) = offset.checked_sub(EJECT_OFFSET.into()).filter(|lane| *lane < 4) {
                self.ejected |= u32::from(byte) << (8 * lane);
            }
        });
    }

    fn reset(&mut self) {
        *self = PciSlots::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u16) -> Access {
        Access { window: 0, offset: offset.into(), size: 4 }
    }

    #[test]
    fn news_is_read_once() {
        let mut slots = PciSlots::new();
        slots.plugged(5);
        slots.plugged(31);
        slots.request_eject(7);
        slots.plugged(32);
        assert_eq!(slots.read(at(CAME_OFFSET), 0), 1 << 31 | 1 << 5);
        assert_eq!(slots.read(at(CAME_OFFSET), 0), 0);
        assert_eq!(slots.read(at(GO_OFFSET), 0), 1 << 7);
        assert_eq!(slots.read(at(GO_OFFSET), 0), 0);
    }

    #[test]
    fn what_is_ejected_is_told_once() {
        let mut slots = PciSlots::new();
        slots.write(at(EJECT_OFFSET), 1 << 9, 0);
        slots.write(at(CAME_OFFSET), u64::MAX, 0);
        slots.write(at(100), u64::MAX, 0);
        assert_eq!((slots.take_ejected(), slots.take_ejected()), (1 << 9, 0));
        assert_eq!(slots.read(at(EJECT_OFFSET), 0), 0);
    }
}
