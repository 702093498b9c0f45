//! MSI-X: capability, table and pending bits (PCI §6.8.2).

use super::ConfigSpace;
use crate::{Interrupt, Unfit};
use viv_arch::pci::{CAPABILITY_MSIX, MSIX_ENABLE, MSIX_ENTRY_LEN, MSIX_ENTRY_MASKED, MSIX_FUNCTION_MASK};
use viv_arch::saved::MsixEntrySaved;

#[derive(Clone, Copy, Debug)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    pending: bool,
}

/// After reset all vectors are masked (PCI §6.8.2.9).
const RESET: Entry = Entry { address: 0, data: 0, control: MSIX_ENTRY_MASKED, pending: false };

/// The MSI-X state of a function.
#[derive(Clone, Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    capability: u16,
    enabled: bool,
    masked: bool,
}

impl Msix {
    /// Adds the capability to `config`: `vectors` (1 to 2048) with table and pending bits in BAR `bar` at these
    /// offsets (multiples of 8). `None` if configuration space is full.
    pub fn new(
        config: &mut ConfigSpace,
        vectors: u16,
        bar: u8,
        table_offset: u32,
        pba_offset: u32,
    ) -> Option<Msix> {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&vectors.saturating_sub(1).to_le_bytes());
        body[2..6].copy_from_slice(&(table_offset | u32::from(bar)).to_le_bytes());
        body[6..10].copy_from_slice(&(pba_offset | u32::from(bar)).to_le_bytes());
        let capability = config.add_capability(CAPABILITY_MSIX, &body)?;
        config.allow(capability + 2, &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes());
        Some(Msix { entries: vec![RESET; vectors.into()], capability, enabled: false, masked: false })
    }

    /// Whether the guest uses MSI-X instead of INTx.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Call after each write to configuration space: the guest may have changed message control.
    pub fn update(&mut self, config: &ConfigSpace) {
        let control = u16::from_le_bytes(config.get(self.capability + 2));
        self.enabled = control & MSIX_ENABLE != 0;
        self.masked = control & MSIX_FUNCTION_MASK != 0;
    }

    /// The guest reads the table at byte `offset`.
    pub fn read_table(&self, offset: u64, size: u8) -> u64 {
        let Some(entry) = self.entries.get((offset / MSIX_ENTRY_LEN) as usize) else { return 0 };
        let raw = u128::from(entry.address) | u128::from(entry.data) << 64 | u128::from(entry.control) << 96;
        let value = (raw >> (8 * (offset % MSIX_ENTRY_LEN))) as u64;
        if size >= 8 { value } else { value & ((1 << (8 * u32::from(size))) - 1) }
    }

    /// The guest writes the table: aligned 4 or 8 bytes, as PCI §6.8.2 demands; else ignored.
    pub fn write_table(&mut self, offset: u64, size: u8, value: u64) {
        if !matches!(size, 4 | 8) || !offset.is_multiple_of(u64::from(size)) {
            return;
        }
        let Some(entry) = self.entries.get_mut((offset / MSIX_ENTRY_LEN) as usize) else { return };
        for (at, word) in
            [(0, value as u32), (4, (value >> 32) as u32)].into_iter().take(usize::from(size / 4))
        {
            match offset % MSIX_ENTRY_LEN + at {
                0 => entry.address = entry.address & !0xffff_ffff | u64::from(word),
                4 => entry.address = entry.address & 0xffff_ffff | u64::from(word) << 32,
                8 => entry.data = word,
                _ => entry.control = word & MSIX_ENTRY_MASKED,
            }
        }
    }

    /// The guest reads the pending bits.
    pub fn read_pba(&self, offset: u64, size: u8) -> u64 {
        let mut value = 0;
        for bit in 0..8 * usize::from(size.min(8)) {
            let vector = (offset as usize).saturating_mul(8).saturating_add(bit);
            if self.entries.get(vector).is_some_and(|entry| entry.pending) {
                value |= 1 << bit;
            }
        }
        value
    }

    /// The device wants `vector`; a vector that does not exist is ignored.
    pub fn raise(&mut self, vector: u16) {
        if let Some(entry) = self.entries.get_mut(usize::from(vector)) {
            entry.pending = true;
        }
    }

    /// Takes the messages of pending vectors that are not masked. Without bus mastering nothing can be
    /// sent (PCI §6.2.2): it stays pending.
    pub fn take_messages(&mut self, bus_master: bool) -> Vec<Interrupt> {
        if !self.enabled || self.masked || !bus_master {
            return Vec::new();
        }
        let mut messages = Vec::new();
        for entry in &mut self.entries {
            if entry.pending && entry.control & MSIX_ENTRY_MASKED == 0 {
                entry.pending = false;
                messages.push(Interrupt::Message { address: entry.address, data: entry.data });
            }
        }
        messages
    }

    /// The table with its pending bits.
    pub fn save(&self) -> Vec<MsixEntrySaved> {
        let each = |entry: &Entry| MsixEntrySaved {
            address: entry.address,
            data: entry.data,
            control: entry.control,
            pending: entry.pending,
        };
        self.entries.iter().map(each).collect()
    }

    /// Replaces the table; message control comes by [`Msix::update`].
    pub fn load(&mut self, saved: &[MsixEntrySaved]) -> Result<(), Unfit> {
        if saved.len() != self.entries.len() {
            return Err(Unfit::new(format!("{} interrupt vectors, not {}", saved.len(), self.entries.len())));
        }
        for (entry, saved) in self.entries.iter_mut().zip(saved) {
            let control = saved.control & MSIX_ENTRY_MASKED;
            *entry = Entry { address: saved.address, data: saved.data, control, pending: saved.pending };
        }
        Ok(())
    }

    /// Forgets what is pending: the device was reset by its driver.
    pub fn clear_pending(&mut self) {
        for entry in &mut self.entries {
            entry.pending = false;
        }
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.entries.fill(RESET);
        (self.enabled, self.masked) = (false, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Identity;

    fn msix() -> (ConfigSpace, Msix) {
        let mut config = ConfigSpace::new(Identity {
            vendor: 1,
            device: 2,
            revision: 0,
            class: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        let msix = Msix::new(&mut config, 3, 0, 0x4000, 0x5000).unwrap();
        (config, msix)
    }

    fn control(config: &mut ConfigSpace, msix: &mut Msix, value: u16) {
        config.write(0x42, 2, value.into());
        msix.update(config);
    }

    #[test]
    fn a_masked_vector_stays_pending_and_is_sent_when_unmasked() {
        let (mut config, mut msix) = msix();
        assert_eq!(config.read(0x42, 2), 2, "table size is N-1");
        control(&mut config, &mut msix, MSIX_ENABLE);
        msix.write_table(16, 8, 0x1_fee0_1000);
        msix.write_table(24, 4, 0x4021);
        msix.raise(1);
        assert_eq!(msix.take_messages(true), []);
        assert_eq!(msix.read_pba(0, 8), 0b10);
        msix.write_table(28, 4, 0);
        assert_eq!(msix.take_messages(false), [], "no bus mastering, no message");
        assert_eq!(msix.take_messages(true), [Interrupt::Message { address: 0x1_fee0_1000, data: 0x4021 }]);
        assert_eq!((msix.read_pba(0, 8), msix.take_messages(true)), (0, vec![]));
        assert_eq!(msix.read_table(16, 8), 0x1_fee0_1000);
        assert_eq!(msix.read_table(24, 4), 0x4021);
    }

    #[test]
    fn the_function_mask_holds_back_every_vector() {
        let (mut config, mut msix) = msix();
        control(&mut config, &mut msix, MSIX_ENABLE | MSIX_FUNCTION_MASK);
        msix.write_table(12, 4, 0);
        msix.raise(0);
        msix.raise(77);
        assert_eq!(msix.take_messages(true), []);
        control(&mut config, &mut msix, MSIX_ENABLE);
        assert_eq!(msix.take_messages(true).len(), 1);
    }

    #[test]
    fn accesses_outside_the_table_are_harmless() {
        let (_, mut msix) = msix();
        for offset in [48, 0xfff, u64::MAX - 7, u64::MAX] {
            msix.write_table(offset, 8, u64::MAX);
            msix.read_table(offset, 8);
            msix.read_pba(offset, 8);
        }
        msix.write_table(2, 4, 1);
        assert_eq!(msix.read_table(0, 8), 0);
    }
}
