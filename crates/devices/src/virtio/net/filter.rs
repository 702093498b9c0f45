//! Which frames the driver wants (virtio 1.3 §5.1.6.5.1, §5.1.6.5.2), and which queue a flow belongs to.

use viv_arch::virtio::net as reg;

/// A MAC address.
pub type Mac = [u8; 6];

/// Most addresses of each table; a driver with more gets all frames of that kind.
const TABLE_MAX: usize = 64;

/// What the driver wants to receive.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    unicast: Vec<Mac>,
    multicast: Vec<Mac>,
}

impl Filter {
    /// The modes, a bit each by their command's number, and both tables.
    pub(super) fn save(&self) -> (u8, Vec<Mac>, Vec<Mac>) {
        let mut filter = self.clone();
        let bit = |command: u8| u8::from(filter.mode(command).is_some_and(|mode| *mode)) << command;
        let modes = (0..8).map(bit).fold(0, |modes, bit| modes | bit);
        (modes, self.unicast.clone(), self.multicast.clone())
    }

    pub(super) fn load(modes: u8, unicast: &[Mac], multicast: &[Mac]) -> Filter {
        let first = |table: &[Mac]| table.iter().copied().take(TABLE_MAX).collect();
        let mut filter = Filter { unicast: first(unicast), multicast: first(multicast), ..Filter::default() };
        for command in 0..8 {
            filter.set_mode(command, modes >> command & 1 != 0);
        }
        filter
    }

    /// Whether a frame for `to` is wanted by a card with the address `own`.
    pub(super) fn wants(&self, to: Mac, own: Mac) -> bool {
        let [first, ..] = to;
        if self.promiscuous {
            true
        } else if to == [0xff; 6] {
            !self.no_broadcast
        } else if first & 1 != 0 {
            !self.no_multicast && (self.all_multicast || self.multicast.contains(&to))
        } else {
            !self.no_unicast && (to == own || self.all_unicast || self.unicast.contains(&to))
        }
    }

    /// Carries out a command of class RX. Says whether there is such a one.
    pub(super) fn set_mode(&mut self, command: u8, on: bool) -> bool {
        self.mode(command).map(|mode| *mode = on).is_some()
    }

    fn mode(&mut self, command: u8) -> Option<&mut bool> {
        Some(match command {
            reg::CTRL_RX_PROMISC => &mut self.promiscuous,
            reg::CTRL_RX_ALLMULTI => &mut self.all_multicast,
            reg::CTRL_RX_ALLUNI => &mut self.all_unicast,
            reg::CTRL_RX_NOMULTI => &mut self.no_multicast,
            reg::CTRL_RX_NOUNI => &mut self.no_unicast,
            reg::CTRL_RX_NOBCAST => &mut self.no_broadcast,
            _ => return None,
        })
    }

    /// Takes the two tables of addresses. Says whether they were whole.
    pub(super) fn set_tables(&mut self, data: &[u8]) -> bool {
        let Some((unicast, rest)) = table(data) else { return false };
        let Some((multicast, [])) = table(rest) else { return false };
        self.all_unicast |= unicast.len() > TABLE_MAX;
        self.all_multicast |= multicast.len() > TABLE_MAX;
        (self.unicast, self.multicast) = (unicast, multicast);
        true
    }
}

fn table(data: &[u8]) -> Option<(Vec<Mac>, &[u8])> {
    let (count, rest) = data.split_first_chunk()?;
    let len = usize::try_from(u32::from_le_bytes(*count)).ok()?.checked_mul(6)?;
    let (macs, rest) = rest.split_at_checked(len)?;
    Some((macs.as_chunks().0.to_vec(), rest))
}

/// A number that is the same for both directions of a TCP or UDP flow.
pub(super) fn flow(frame: &[u8]) -> u8 {
    const ETHERTYPE: usize = 12;
    let kind = frame.get(ETHERTYPE..ETHERTYPE + 2);
    // Addresses and, without options, ports lie side by side: source, then destination.
    let range = match kind {
        Some([0x08, 0x00]) => 26..38,
        Some([0x86, 0xdd]) => 22..58,
        _ => return 0,
    };
    let mixed = frame.get(range).unwrap_or_default().iter().fold(0u8, |mixed, byte| mixed ^ byte);
    mixed ^ mixed >> 4
}
