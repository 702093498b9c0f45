//! Configuration space of a function with a type 0 header (PCI §6.1).

use super::{Allocator, BarRange};
use crate::Unfit;
use viv_arch::pci::{
    BAR_COUNT, BAR_MEMORY_64, BAR_PREFETCHABLE, BAR0, CACHE_LINE_SIZE, CAPABILITIES_POINTER, CLASS_CODE,
    COMMAND, COMMAND_BUS_MASTER, COMMAND_INTX_DISABLE, COMMAND_MEMORY, COMMAND_PARITY, COMMAND_SERR,
    CONFIG_SPACE_LEN, DEVICE_ID, HEADER_LEN, INTERRUPT_LINE, INTERRUPT_PIN, REVISION_ID, STATUS,
    STATUS_CAPABILITIES, STATUS_INTERRUPT, SUBSYSTEM_ID, SUBSYSTEM_VENDOR_ID, VENDOR_ID,
};
use viv_mem::Gpa;

/// What a function says it is (PCI §6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class and interface in 24 bits.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// How wide a memory BAR's address is (PCI §6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// Below 4 GiB.
    Memory32,
    /// Anywhere; takes two registers. Marked prefetchable, since only then a guest leaves it in a window above
    /// 4 GiB (PCIe §7.5.1.2.1 allows that for 64-bit BARs without harm from merged reads).
    Memory64,
}

const MEMORY_64_FLAGS: u32 = BAR_MEMORY_64 | BAR_PREFETCHABLE;

#[derive(Clone, Copy, Debug)]
struct Bar {
    index: u8,
    kind: BarKind,
    len: u64,
}

/// The bytes of a configuration space, and which bits of them software may change.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_SPACE_LEN],
    writable: [u8; CONFIG_SPACE_LEN],
    bars: Vec<Bar>,
    next_capability: u16,
    last_capability: u16,
    /// The bytes after [`ConfigSpace::place_bars`], for [`ConfigSpace::reset`].
    initial: Option<Box<[u8; CONFIG_SPACE_LEN]>>,
}

impl ConfigSpace {
    /// A header with this identity and nothing else.
    pub fn new(identity: Identity) -> ConfigSpace {
        let mut space = ConfigSpace {
            bytes: [0; CONFIG_SPACE_LEN],
            writable: [0; CONFIG_SPACE_LEN],
            bars: Vec::new(),
            next_capability: HEADER_LEN,
            last_capability: 0,
            initial: None,
        };
        space.set(VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(DEVICE_ID, &identity.device.to_le_bytes());
        space.set(REVISION_ID, &[identity.revision]);
        space.set(CLASS_CODE, identity.class.to_le_bytes().get(..3).unwrap_or_default());
        space.set(SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        space.set(SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        let command =
            COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_PARITY | COMMAND_SERR | COMMAND_INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(CACHE_LINE_SIZE, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Sets bytes, as the device itself.
    pub fn set(&mut self, offset: u16, data: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(offset.into()).zip(data) {
            *to = *from;
        }
    }

    /// Lets software change the bits that are set in `mask`.
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(offset.into()).zip(mask) {
            *to |= *from;
        }
    }

    /// Reads `N` bytes as the device itself; 0 beyond the end.
    pub fn get<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(offset.into())) {
            *to = *from;
        }
        data
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        u16::from_le_bytes(self.get(COMMAND))
    }

    /// Makes the function use interrupt pin INTA (PCI §6.2.4), and says which line software may expect.
    pub fn use_intx(&mut self, line: u8) {
        self.set(INTERRUPT_PIN, &[1]);
        self.set(INTERRUPT_LINE, &[line]);
    }

    /// Shows in the status register whether an INTx interrupt is pending.
    pub fn show_interrupt(&mut self, pending: bool) {
        let [status, _] = self.get(STATUS);
        let bit = STATUS_INTERRUPT as u8;
        self.set(STATUS, &[if pending { status | bit } else { status & !bit }]);
    }

    /// Adds a memory BAR of `len` bytes, a power of two of at least 16, at register `index`.
    pub fn add_bar(&mut self, index: u8, kind: BarKind, len: u64) {
        debug_assert!(len.is_power_of_two() && len >= 16 && usize::from(index) < BAR_COUNT);
        let register = BAR0 + 4 * u16::from(index);
        let mask = !(len - 1);
        match kind {
            BarKind::Memory32 => self.allow(register, &(mask as u32).to_le_bytes()),
            BarKind::Memory64 => {
                self.allow(register, &mask.to_le_bytes());
                self.set(register, &MEMORY_64_FLAGS.to_le_bytes());
            }
        }
        self.bars.push(Bar { index, kind, len });
    }

    /// Adds a capability; `body` is what follows its ID and its link. Returns its offset, or `None` if
    /// the space is full.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> Option<u16> {
        let offset = self.next_capability;
        let end = usize::from(offset) + 2 + body.len();
        if end > CONFIG_SPACE_LEN {
            return None;
        }
        self.set(offset, &[id, 0]);
        self.set(offset + 2, body);
        // Offsets are below 256.
        let link = if self.last_capability == 0 { CAPABILITIES_POINTER } else { self.last_capability + 1 };
        self.set(link, &[offset as u8]);
        let [status, _] = self.get(STATUS);
        self.set(STATUS, &[status | STATUS_CAPABILITIES as u8]);
        self.last_capability = offset;
        self.next_capability = ((end + 3) & !3) as u16;
        Some(offset)
    }

    /// The guest reads. Beyond the 256 bytes there are no extended capabilities: 0 (PCIe §7.9.1).
    pub fn read(&self, offset: u16, size: u8) -> u32 {
        let mut value = [0; 4];
        for (to, from) in value.iter_mut().take(size.into()).zip(self.bytes.iter().skip(offset.into())) {
            *to = *from;
        }
        u32::from_le_bytes(value)
    }

    /// The guest writes. True if the decoded BARs may have changed.
    pub fn write(&mut self, offset: u16, size: u8, value: u32) -> bool {
        let start = usize::from(offset);
        for (i, byte) in value.to_le_bytes().into_iter().enumerate().take(size.into()) {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(start + i), self.writable.get(start + i)) {
                *old = *old & !mask | byte & mask;
            }
        }
        let touches =
            |first: u16, len: u16| offset < first + len && first < offset.saturating_add(size.into());
        touches(COMMAND, 2) || touches(BAR0, 4 * BAR_COUNT as u16)
    }

    /// The BARs that are decoded now.
    pub fn bars(&self) -> Vec<BarRange> {
        if self.command() & COMMAND_MEMORY == 0 {
            return Vec::new();
        }
        let decode = |bar: &Bar| {
            let raw = u64::from_le_bytes(self.get(BAR0 + 4 * u16::from(bar.index)));
            let raw = if bar.kind == BarKind::Memory32 { raw & 0xffff_ffff } else { raw };
            let gpa = Gpa(raw & !(bar.len - 1));
            gpa.checked_add(bar.len)?;
            Some(BarRange { bar: bar.index, gpa, len: bar.len })
        };
        self.bars.iter().filter_map(decode).collect()
    }

    /// Gives each BAR an address and enables memory decoding; remembers the result for [`ConfigSpace::reset`].
    pub fn place_bars(&mut self, windows: &mut Allocator) -> bool {
        for bar in self.bars.clone() {
            let Some(gpa) = windows.allocate(bar.kind, bar.len) else { return false };
            let register = BAR0 + 4 * u16::from(bar.index);
            match bar.kind {
                BarKind::Memory32 => self.set(register, &(gpa.0 as u32).to_le_bytes()),
                BarKind::Memory64 => {
                    self.set(register, &(gpa.0 | u64::from(MEMORY_64_FLAGS)).to_le_bytes());
                }
            }
        }
        let command = self.command() | COMMAND_MEMORY;
        self.set(COMMAND, &command.to_le_bytes());
        self.initial = Some(Box::new(self.bytes));
        true
    }

    /// The bytes.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes the bits that software can change.
    pub fn load(&mut self, saved: &[u8]) -> Result<(), Unfit> {
        if saved.len() != CONFIG_SPACE_LEN {
            return Err(Unfit::new(format!("a configuration space of {} bytes", saved.len())));
        }
        for ((byte, saved), writable) in self.bytes.iter_mut().zip(saved).zip(&self.writable) {
            *byte = *byte & !writable | saved & writable;
        }
        Ok(())
    }

    /// Back to the state after [`ConfigSpace::place_bars`].
    pub fn reset(&mut self) {
        if let Some(initial) = &self.initial {
            self.bytes = **initial;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_80_00,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        })
    }

    #[test]
    fn writing_ones_to_a_bar_reads_back_its_size() {
        let mut space = space();
        space.add_bar(0, BarKind::Memory64, 0x8000);
        space.add_bar(2, BarKind::Memory32, 0x100);
        for register in [0x10, 0x14, 0x18] {
            assert!(space.write(register, 4, 0xffff_ffff));
        }
        assert_eq!(space.read(0x10, 4), 0xffff_800c);
        assert_eq!(space.read(0x14, 4), 0xffff_ffff);
        assert_eq!(space.read(0x18, 4), 0xffff_ff00);
        assert_eq!(space.read(0x1c, 4), 0);
    }

    #[test]
    fn bars_are_decoded_only_while_memory_space_is_enabled() {
        let mut space = space();
        space.add_bar(0, BarKind::Memory64, 0x8000);
        space.write(0x10, 4, 0x1234_8000);
        space.write(0x14, 4, 0x7);
        assert_eq!(space.bars(), []);
        assert!(space.write(COMMAND, 2, COMMAND_MEMORY.into()));
        assert_eq!(space.bars(), [BarRange { bar: 0, gpa: Gpa(0x7_1234_8000), len: 0x8000 }]);
    }

    #[test]
    fn capabilities_form_a_list_that_ends() {
        let mut space = space();
        assert_eq!(space.add_capability(0x09, &[5, 1, 2]), Some(0x40));
        assert_eq!(space.add_capability(0x11, &[0; 10]), Some(0x48));
        assert_eq!(space.read(CAPABILITIES_POINTER, 1), 0x40);
        assert_eq!(space.read(0x40, 2), 0x4809);
        assert_eq!(space.read(0x48, 2), 0x0011);
        assert_eq!(space.add_capability(0x09, &[0; 200]), None);
    }

    #[test]
    fn identity_is_read_only_and_accesses_beyond_the_end_are_harmless() {
        let mut space = space();
        assert!(!space.write(0, 4, 0));
        assert_eq!(space.read(0, 4), 0x1042_1af4);
        assert_eq!(space.read(0x09, 1) | space.read(0x0a, 2) << 8, 0x01_80_00);
        space.write(255, 4, 0xffff_ffff);
        assert_eq!(space.read(255, 4), 0);
        assert_eq!(space.read(4095, 4), 0);
        assert!(!space.write(u16::MAX, 4, 1));
    }
}
