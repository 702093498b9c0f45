//! I/O APIC with 24 inputs (Intel 82093AA, 290566-001) and the EOI register of version 0x20
//! (ICH9 data sheet §13.5.4).
//!
//! Lines in, [`Message`]s out: the machine collects [`Ioapic::messages`] after each call, hands them to
//! the local APICs and reports each broadcast end of interrupt with [`Ioapic::eoi`].

use super::message::{DeliveryMode, Message};
use crate::{Access, BusDevice, Ns};
use viv_arch::chips::IoapicSaved;

/// Where it is on a PC (82093AA §3.1).
pub const BASE: u64 = 0xfec0_0000;
/// Bytes of its window.
pub const WINDOW_LEN: u64 = 0x1000;
/// Inputs.
pub const PINS: u8 = 24;

/// Registers in the window (82093AA §3.1; ICH9 §13.5.4 for EOI).
mod mmio {
    pub(super) const SELECT: u64 = 0x00;
    pub(super) const DATA: u64 = 0x10;
    pub(super) const EOI: u64 = 0x40;
}

/// Indirect registers (82093AA §3.2).
mod index {
    pub(super) const ID: u8 = 0x00;
    pub(super) const VERSION: u8 = 0x01;
    pub(super) const ARBITRATION: u8 = 0x02;
    pub(super) const REDIRECTION: u8 = 0x10;
    pub(super) const REDIRECTION_LAST: u8 = REDIRECTION + 2 * super::PINS - 1;
}

/// Version 0x20, with the index of the last redirection entry (82093AA §3.2.2).
const VERSION: u32 = 0x20 | (PINS as u32 - 1) << 16;

/// The bits of the ID register (82093AA §3.2.1).
const ID_WRITABLE: u32 = 0x0f00_0000;

/// Redirection entry (82093AA §3.2.4).
mod entry {
    pub(super) const LOGICAL: u64 = 1 << 11;
    pub(super) const DELIVERY_STATUS: u64 = 1 << 12;
    pub(super) const REMOTE_IRR: u64 = 1 << 14;
    pub(super) const LEVEL: u64 = 1 << 15;
    pub(super) const MASKED: u64 = 1 << 16;
    pub(super) const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
    /// Vector, modes, polarity, trigger, mask, and the destination in the top byte. Bits 48 to 55 hold
    /// more of the destination for guests that were told so (KVM's "extended destination ID").
    pub(super) const WRITABLE: u64 = 0xffff_0000_0001_afff;
}

/// Messages that may wait for the machine; it collects them after each call, so few ever do.
const MESSAGES_MAX: usize = 4 * PINS as usize;

/// The I/O APIC. One window of [`WINDOW_LEN`] bytes.
#[derive(Clone, Debug)]
pub struct Ioapic {
    select: u8,
    id: u32,
    entries: [u64; PINS as usize],
    lines: u32,
    messages: Vec<Message>,
}

impl Default for Ioapic {
    fn default() -> Ioapic {
        Ioapic::new()
    }
}

impl Ioapic {
    /// After power-on: every input is masked (82093AA §3.2.4).
    pub fn new() -> Ioapic {
        Ioapic { select: 0, id: 0, entries: [entry::MASKED; PINS as usize], lines: 0, messages: Vec::new() }
    }

    /// Sets the level of input `pin`: true means active, whatever polarity the guest has chosen. Inputs
    /// beyond [`PINS`] do not exist.
    pub fn set_line(&mut self, pin: u8, level: bool) {
        if pin >= PINS {
            return;
        }
        let bit = 1u32 << pin;
        let rising = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        let value = self.entry(pin);
        if value & entry::LEVEL != 0 {
            self.send_level(pin);
        } else if rising && value & entry::MASKED == 0 {
            // An edge on a masked input is lost (82093AA §3.2.4, "Interrupt Mask").
            self.send(pin);
        }
    }

    /// Takes the messages to be delivered, oldest first.
    pub fn messages(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }

    /// A local APIC has ended level-triggered `vector`: inputs that sent it may send again.
    pub fn eoi(&mut self, vector: u8) {
        for pin in 0..PINS {
            let value = self.entry(pin);
            if value & entry::LEVEL != 0 && value & entry::REMOTE_IRR != 0 && value as u8 == vector {
                self.set_entry(pin, value & !entry::REMOTE_IRR);
                self.send_level(pin);
            }
        }
    }

    fn entry(&self, pin: u8) -> u64 {
        self.entries.get(usize::from(pin)).copied().unwrap_or(entry::MASKED)
    }

    fn set_entry(&mut self, pin: u8, value: u64) {
        if let Some(slot) = self.entries.get_mut(usize::from(pin)) {
            *slot = value;
        }
    }

    /// A level-triggered input that is active, unmasked and not yet waiting for its end sends.
    fn send_level(&mut self, pin: u8) {
        let value = self.entry(pin);
        let blocked = value & (entry::MASKED | entry::REMOTE_IRR) != 0;
        if value & entry::LEVEL == 0 || blocked || self.lines & (1 << pin) == 0 {
            return;
        }
        self.send(pin);
        if DeliveryMode::from_bits((value >> 8) as u8).is_vectored() {
            self.set_entry(pin, value | entry::REMOTE_IRR);
        }
    }

    fn send(&mut self, pin: u8) {
        let value = self.entry(pin);
        let mode = DeliveryMode::from_bits((value >> 8) as u8);
        let (low, high) = ((value >> 56) as u32, (value >> 48) as u32 & 0x7f);
        let message = Message {
            destination: high << 8 | low,
            wide: high != 0,
            logical: value & entry::LOGICAL != 0,
            mode,
            vector: value as u8,
            // Modes without a vector are edges even where the entry says level (82093AA §3.2.4).
            level: value & entry::LEVEL != 0 && mode.is_vectored(),
        };
        if self.messages.len() < MESSAGES_MAX {
            self.messages.push(message);
        }
    }

    fn read_index(&self) -> u32 {
        match self.select {
            index::ID | index::ARBITRATION => self.id,
            index::VERSION => VERSION,
            index::REDIRECTION..=index::REDIRECTION_LAST => {
                let value = self.entry((self.select - index::REDIRECTION) / 2);
                if self.select & 1 == 0 { value as u32 } else { (value >> 32) as u32 }
            }
            _ => 0,
        }
    }

    fn write_index(&mut self, value: u32) {
        match self.select {
            index::ID => self.id = value & ID_WRITABLE,
            index::REDIRECTION..=index::REDIRECTION_LAST => {
                let pin = (self.select - index::REDIRECTION) / 2;
                let old = self.entry(pin);
                let merged = if self.select & 1 == 0 {
                    old & !0xffff_ffff | u64::from(value)
                } else {
                    old & 0xffff_ffff | u64::from(value) << 32
                };
                let mut new = merged & entry::WRITABLE | old & entry::READ_ONLY;
                if new & entry::LEVEL == 0 {
                    // Switching to edge clears remote IRR: drivers use it to end a stuck interrupt.
                    new &= !entry::REMOTE_IRR;
                }
                self.set_entry(pin, new);
                self.send_level(pin);
            }
            _ => {}
        }
    }

    /// The whole state. The messages must have been taken before.
    pub fn save(&self) -> IoapicSaved {
        IoapicSaved { select: self.select, id: self.id, lines: self.lines, entries: self.entries.to_vec() }
    }

    /// Replaces the whole state; entries that are missing are masked.
    pub fn load(&mut self, saved: &IoapicSaved) {
        *self = Ioapic {
            select: saved.select,
            id: saved.id & ID_WRITABLE,
            lines: saved.lines & ((1 << PINS) - 1),
            ..Ioapic::new()
        };
        for (entry, saved) in self.entries.iter_mut().zip(&saved.entries) {
            *entry = saved & (entry::WRITABLE | entry::REMOTE_IRR);
        }
    }
}

impl BusDevice for Ioapic {
    fn read(&mut self, access: Access, _now: Ns) -> u64 {
        let register = match access.offset & !3 {
            mmio::SELECT => self.select.into(),
            mmio::DATA => self.read_index(),
            _ => 0,
        };
        let shifted = register >> (8 * (access.offset & 3));
        match access.size {
            1 => u64::from(shifted as u8),
            2 => u64::from(shifted as u16),
            _ => u64::from(shifted),
        }
    }

    /// Only aligned writes count; the select register takes its low byte (82093AA §3.1).
    fn write(&mut self, access: Access, value: u64, _now: Ns) {
        match access.offset {
            mmio::SELECT => self.select = value as u8,
            mmio::DATA if access.size >= 4 => self.write_index(value as u32),
            mmio::EOI => self.eoi(value as u8),
            _ => {}
        }
    }

    /// The lines are the devices': they keep their levels.
    fn reset(&mut self) {
        *self = Ioapic { lines: self.lines, ..Ioapic::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn access(offset: u64) -> Access {
        Access { window: 0, offset, size: 4 }
    }
    fn get(chip: &mut Ioapic, register: u8) -> u32 {
        chip.write(access(0), register.into(), 0);
        chip.read(access(0x10), 0) as u32
    }
    fn set(chip: &mut Ioapic, register: u8, value: u32) {
        chip.write(access(0), register.into(), 0);
        chip.write(access(0x10), value.into(), 0);
    }
    fn program(chip: &mut Ioapic, pin: u8, low: u32, destination: u8) {
        set(chip, 0x11 + 2 * pin, u32::from(destination) << 24);
        set(chip, 0x10 + 2 * pin, low);
    }

    #[test]
    fn it_has_24_masked_entries_of_version_0x20() {
        let mut chip = Ioapic::new();
        assert_eq!(get(&mut chip, 1), 0x0017_0020);
        for pin in 0..PINS {
            assert_eq!(get(&mut chip, 0x10 + 2 * pin), 0x1_0000);
        }
        set(&mut chip, 0, 0xffff_ffff);
        assert_eq!(get(&mut chip, 0), 0x0f00_0000);
        assert_eq!(get(&mut chip, 0x40), 0);
    }

    #[test]
    fn an_edge_sends_once() {
        let mut chip = Ioapic::new();
        program(&mut chip, 4, 0x0931, 3);
        chip.set_line(4, true);
        chip.set_line(4, true);
        let expected = Message {
            destination: 3,
            wide: false,
            logical: true,
            mode: DeliveryMode::LowestPriority,
            vector: 0x31,
            level: false,
        };
        assert_eq!(chip.messages(), [expected]);
        chip.set_line(4, false);
        chip.set_line(4, true);
        assert_eq!(chip.messages(), [expected]);
    }

    #[test]
    fn a_masked_edge_is_lost_and_a_masked_level_is_kept() {
        let mut chip = Ioapic::new();
        program(&mut chip, 4, 0x1_0031, 0);
        program(&mut chip, 9, 0x1_8039, 0);
        chip.set_line(4, true);
        chip.set_line(9, true);
        assert!(chip.messages().is_empty());
        program(&mut chip, 4, 0x0031, 0);
        assert!(chip.messages().is_empty());
        program(&mut chip, 9, 0x8039, 0);
        assert_eq!(chip.messages().len(), 1);
    }

    #[test]
    fn a_level_sends_again_after_its_end_while_it_is_active() {
        let mut chip = Ioapic::new();
        program(&mut chip, 9, 0x8039, 0);
        chip.set_line(9, true);
        assert_eq!(get(&mut chip, 0x22) & 0x4000, 0x4000, "remote IRR");
        assert_eq!(chip.messages().len(), 1);
        chip.eoi(0x38);
        assert!(chip.messages().is_empty());
        chip.eoi(0x39);
        assert_eq!(chip.messages().len(), 1);
        chip.set_line(9, false);
        chip.write(access(0x40), 0x39, 0);
        assert!(chip.messages().is_empty());
        assert_eq!(get(&mut chip, 0x22) & 0x4000, 0);
    }

    proptest! {
        /// A level-triggered input has at most one message without its end (82093AA 3.2.4, "Remote IRR"), and
        /// no masked input sends anything.
        #[test]
        fn level_messages_are_never_doubled(
            ops in vec((0u8..4, any::<u8>(), any::<u32>(), any::<bool>()), 0..300),
        ) {
            let mut chip = Ioapic::new();
            for (op, small, value, flag) in ops {
                match op {
                    0 => {
                        let before = chip.entry(small);
                        chip.set_line(small, flag);
                        if before & entry::MASKED != 0 {
                            prop_assert!(chip.messages().is_empty());
                        } else if before & entry::REMOTE_IRR != 0 {
                            prop_assert!(chip.messages().is_empty());
                        }
                    }
                    1 => set(&mut chip, small, value),
                    2 => chip.eoi(small),
                    _ => {
                        let at = Access { window: small, offset: value.into(), size: 1 << (small & 3) };
                        chip.read(at, 0);
                        chip.write(at, value.into(), 0);
                    }
                }
                prop_assert!(chip.messages().len() <= usize::from(PINS));
            }
        }
    }
}
