//! Routing: which function does an access belong to?

use super::{BarKind, BarRange};
use std::collections::BTreeMap;
use viv_arch::pci::{
    Bdf, CONFIG_ADDRESS_ENABLE, CONFIG_ADDRESS_PORT, CONFIG_DATA_PORT, ECAM_BUS_LEN, ECAM_FUNCTION_LEN,
};
use viv_mem::Gpa;

/// What a guest's access means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Configuration space. A function that does not exist reads as all ones.
    Config {
        /// Which function.
        bdf: Bdf,
        /// Byte in its configuration space, below 4096.
        offset: u16,
    },
    /// A BAR of a function.
    Bar {
        /// Which function.
        bdf: Bdf,
        /// Which of its BARs.
        bar: u8,
        /// Byte in the BAR.
        offset: u64,
    },
}

/// The PCI Express root: the two ways to configuration space, and the map of BARs.
#[derive(Clone, Debug)]
pub struct PciRoot {
    ecam: Gpa,
    buses: u16,
    config_address: u32,
    bars: BTreeMap<Bdf, Vec<BarRange>>,
}

impl PciRoot {
    /// A root whose ECAM window begins at `ecam` and has room for `buses` (1 to 256).
    pub fn new(ecam: Gpa, buses: u16) -> PciRoot {
        PciRoot { ecam, buses, config_address: 0, bars: BTreeMap::new() }
    }

    /// Bytes of the ECAM window.
    pub fn ecam_len(&self) -> u64 {
        u64::from(self.buses) * ECAM_BUS_LEN
    }

    /// Where the BARs of a function are now: after building it, and when a configuration write returned true.
    pub fn set_bars(&mut self, bdf: Bdf, bars: Vec<BarRange>) {
        self.bars.insert(bdf, bars);
    }

    /// The function is gone.
    pub fn remove(&mut self, bdf: Bdf) {
        self.bars.remove(&bdf);
    }

    /// What an access to guest-physical address `gpa` means; `None` if nobody answers there.
    pub fn route(&self, gpa: Gpa) -> Option<Target> {
        if let Some(offset) = gpa.0.checked_sub(self.ecam.0)
            && offset < self.ecam_len()
        {
            let function = offset / ECAM_FUNCTION_LEN;
            let bdf = Bdf {
                bus: (function >> 8) as u8,
                device: (function >> 3 & 0x1f) as u8,
                function: (function & 7) as u8,
            };
            return Some(Target::Config { bdf, offset: (offset % ECAM_FUNCTION_LEN) as u16 });
        }
        for (&bdf, ranges) in &self.bars {
            for range in ranges {
                if let Some(offset) = gpa.0.checked_sub(range.gpa.0)
                    && offset < range.len
                {
                    return Some(Target::Bar { bdf, bar: range.bar, offset });
                }
            }
        }
        None
    }

    /// What an access to `port` (0xcfc to 0xcff) means (PCI §3.2.2.3.2); `None` while it is not enabled.
    pub fn route_port(&self, port: u16) -> Option<Target> {
        let byte = port.checked_sub(CONFIG_DATA_PORT)?;
        if byte > 3 || self.config_address & CONFIG_ADDRESS_ENABLE == 0 {
            return None;
        }
        let address = self.config_address;
        let bdf = Bdf {
            bus: (address >> 16) as u8,
            device: (address >> 11 & 0x1f) as u8,
            function: (address >> 8 & 7) as u8,
        };
        Some(Target::Config { bdf, offset: (address & 0xfc) as u16 + byte })
    }

    /// The guest reads CONFIG_ADDRESS; other sizes than 4 are not for it.
    pub fn read_address(&self, port: u16, size: u8) -> u32 {
        if (port, size) == (CONFIG_ADDRESS_PORT, 4) { self.config_address } else { u32::MAX }
    }

    /// The guest writes CONFIG_ADDRESS.
    pub fn write_address(&mut self, port: u16, size: u8, value: u32) {
        if (port, size) == (CONFIG_ADDRESS_PORT, 4) {
            self.config_address = value & 0x80ff_fffc;
        }
    }

    /// CONFIG_ADDRESS, for a saved state. The BARs come from their functions.
    pub fn address(&self) -> u32 {
        self.config_address
    }

    /// Back to the state after power-on. Functions are reset by their owner, who then calls
    /// [`PciRoot::set_bars`].
    pub fn reset(&mut self) {
        self.config_address = 0;
    }
}

/// Hands out addresses for BARs at build, from a window below 4 GiB and one above.
#[derive(Clone, Debug)]
pub struct Allocator {
    low: (u64, u64),
    high: (u64, u64),
}

impl Allocator {
    /// Windows as (first byte, bytes). 64-bit BARs go to the high one as long as it has room.
    pub fn new(low: (Gpa, u64), high: (Gpa, u64)) -> Allocator {
        let range = |(gpa, len): (Gpa, u64)| (gpa.0, gpa.0.saturating_add(len));
        Allocator { low: range(low), high: range(high) }
    }

    /// `len` bytes, a power of two, aligned to themselves.
    pub fn allocate(&mut self, kind: BarKind, len: u64) -> Option<Gpa> {
        let mut take = |window: fn(&mut Allocator) -> &mut (u64, u64)| {
            let (next, end) = window(self);
            let start = next.checked_next_multiple_of(len)?;
            let after = start.checked_add(len).filter(|after| *after <= *end)?;
            *next = after;
            Some(Gpa(start))
        };
        match kind {
            BarKind::Memory64 => take(|this| &mut this.high).or_else(|| take(|this| &mut this.low)),
            BarKind::Memory32 => take(|this| &mut this.low),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecam_and_config_data_reach_the_same_register() {
        let mut root = PciRoot::new(Gpa(0xe000_0000), 256);
        assert_eq!(root.route_port(0xcfc), None, "not enabled");
        root.write_address(0xcf8, 4, 0x8000_0000 | 3 << 16 | 5 << 11 | 2 << 8 | 0x3c);
        let bdf = Bdf { bus: 3, device: 5, function: 2 };
        assert_eq!(root.route_port(0xcfd), Some(Target::Config { bdf, offset: 0x3d }));
        let ecam = 0xe000_0000 + (3 << 20 | 5 << 15 | 2 << 12 | 0x3d);
        assert_eq!(root.route(Gpa(ecam)), Some(Target::Config { bdf, offset: 0x3d }));
        root.write_address(0xcf8, 1, 0);
        assert_eq!(root.read_address(0xcf8, 4), 0x8003_2a3c);
    }

    #[test]
    fn a_moved_bar_answers_at_its_new_place_only() {
        let mut root = PciRoot::new(Gpa(0xe000_0000), 1);
        let bdf = Bdf::root(2);
        root.set_bars(bdf, vec![BarRange { bar: 0, gpa: Gpa(0xc000_0000), len: 0x8000 }]);
        assert_eq!(root.route(Gpa(0xc000_7fff)), Some(Target::Bar { bdf, bar: 0, offset: 0x7fff }));
        root.set_bars(bdf, vec![BarRange { bar: 0, gpa: Gpa(0x80_0000_0000), len: 0x8000 }]);
        assert_eq!(root.route(Gpa(0xc000_0000)), None);
        assert_eq!(root.route(Gpa(0x80_0000_0010)), Some(Target::Bar { bdf, bar: 0, offset: 0x10 }));
        assert_eq!(root.route(Gpa(0xe010_0000)), None, "beyond the only bus");
    }

    #[test]
    fn addresses_are_aligned_and_never_overlap() {
        let mut allocator = Allocator::new((Gpa(0xc000_0000), 0x10000), (Gpa(1 << 32), 0x8000));
        assert_eq!(allocator.allocate(BarKind::Memory32, 0x100), Some(Gpa(0xc000_0000)));
        assert_eq!(allocator.allocate(BarKind::Memory64, 0x8000), Some(Gpa(1 << 32)));
        assert_eq!(
            allocator.allocate(BarKind::Memory64, 0x8000),
            Some(Gpa(0xc000_8000)),
            "the high one is full"
        );
        assert_eq!(allocator.allocate(BarKind::Memory32, 0x10), None);
    }
}
