//! The network card (virtio 1.3 §5.1): packets off the transmit queues and onto the receive queues, one at a time.
//!
//! ```text
//!  guest ─ notify ─► Net ─ wants_host() ─► the port's thread ─ transmit(rings, packet) ─► outside
//!  guest ◄─ used ring ─ Net::receive(rings, packet) ◄─ the port's thread ◄─ outside
//! ```
//! A *packet* is the header of §5.1.6, then the Ethernet frame: both directions, inside and outside. What the driver
//! sends stays in its queue until somebody asks for it, and what it has no buffers for is handed back: nobody queues.

mod control;
mod filter;
mod header;

use super::{Chain, Rings, VirtioDevice, another_kind, read_config_bytes};
use crate::{Unfit, Unsaved};
pub use filter::Mac;
use filter::{Filter, flow};
use header::Header;
use std::collections::VecDeque;
use viv_arch::pci::CLASS_ETHERNET;
use viv_arch::saved::{NetSaved, VirtioDeviceSaved};
use viv_arch::virtio::{device_type, net as reg};

/// Entries of a receive or transmit queue.
pub const QUEUE_SIZE: u16 = 256;
const CONTROL_QUEUE_SIZE: u16 = 64;
/// Most bytes of a frame: a TCP segment of 64 KiB with its headers and a VLAN tag.
pub const FRAME_MAX: usize = 65535 + 14 + 4;
/// Most bytes of a packet.
pub const PACKET_MAX: usize = reg::HEADER_LEN + FRAME_MAX;
/// Least bytes of a frame: addresses and type.
const FRAME_MIN: usize = 14;
/// Most pairs of queues.
pub const PAIRS_MAX: u16 = 16;
/// Flows that are told apart when a queue is chosen.
const FLOWS: usize = 256;

const DRIVER_MAY: [u64; 3] = [reg::F_CSUM, reg::F_HOST_TSO4, reg::F_HOST_TSO6];
const DEVICE_MAY: [u64; 3] = [reg::F_GUEST_CSUM, reg::F_GUEST_TSO4, reg::F_GUEST_TSO6];

/// What a card is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSettings {
    /// Its address.
    pub mac: Mac,
    /// The largest packet above Ethernet that its network carries, bytes.
    pub mtu: u16,
    /// Pairs of queues, 1 to [`PAIRS_MAX`]: one for each vCPU is best.
    pub pairs: u16,
}

/// What became of a packet for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The guest has it.
    Done,
    /// Nobody wants it, or it is none.
    Dropped,
    /// Its checksum or its segments must be finished first: the driver takes nothing unfinished.
    Unfinished,
    /// The guest has no buffers: come again when [`Net::wants_host`].
    NoBuffers,
}

/// The network card.
#[derive(Debug)]
pub struct Net {
    settings: NetSettings,
    /// The address in use: the driver may set another.
    mac: Mac,
    link: bool,
    filter: Filter,
    /// Pairs that the driver uses.
    pairs: u16,
    /// The pair that is asked first for a packet to send.
    next_pair: u16,
    /// Receive chains that were taken, for each pair, and not filled yet.
    held: Vec<VecDeque<Chain>>,
    /// The pair on which the driver last sent something of a flow: there it wants to receive the rest.
    steering: Vec<u16>,
    /// The driver did something since the host last looked.
    wanted: bool,
}

impl Net {
    /// A card with its link up.
    pub fn new(settings: NetSettings) -> Net {
        let pairs = settings.pairs.clamp(1, PAIRS_MAX);
        Net {
            mac: settings.mac,
            settings: NetSettings { pairs, ..settings },
            link: true,
            filter: Filter::default(),
            pairs: 1,
            next_pair: 0,
            held: vec![VecDeque::new(); pairs.into()],
            steering: vec![0; FLOWS],
            wanted: false,
        }
    }

    /// The address that the card answers to.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Plugs the cable in, or pulls it.
    pub fn set_link(&mut self, rings: &mut Rings<'_>, up: bool) {
        if self.link != up {
            self.link = up;
            rings.config_changed();
        }
    }

    /// Whether the driver has sent something, or given buffers, since the last call.
    pub fn take_wanted(&mut self) -> bool {
        std::mem::take(&mut self.wanted)
    }

    /// Puts the next packet that the driver sends into `packet`; false if there is none.
    pub fn transmit(&mut self, rings: &mut Rings<'_>, packet: &mut Vec<u8>) -> bool {
        // Malformed packets go back by themselves; a guest that refills its queue with them is looked at again later.
        for _ in 0..QUEUE_SIZE {
            let mut taken = None;
            for step in 0..self.pairs {
                let pair = (self.next_pair + step) % self.pairs;
                if let Some(chain) = rings.pop(transmit_queue(pair)) {
                    taken = Some((pair, chain));
                    break;
                }
            }
            let Some((pair, chain)) = taken else { return false };
            self.next_pair = (pair + 1) % self.pairs;
            let good = self.link && read_packet(rings, &chain, packet);
            rings.push(transmit_queue(pair), chain.head(), 0);
            if good {
                let frame = packet.get(reg::HEADER_LEN..).unwrap_or_default();
                if let Some(place) = self.steering.get_mut(usize::from(flow(frame))) {
                    *place = pair;
                }
                return true;
            }
        }
        self.wanted = true;
        false
    }

    /// Gives the driver a packet.
    pub fn receive(&mut self, rings: &mut Rings<'_>, packet: &[u8]) -> Received {
        let Some((header, frame)) = packet.split_first_chunk::<{ reg::HEADER_LEN }>() else {
            return Received::Dropped;
        };
        let Some(&to) = frame.first_chunk::<6>() else { return Received::Dropped };
        if !rings.live() || !self.link || !(FRAME_MIN..=FRAME_MAX).contains(&frame.len()) {
            return Received::Dropped;
        }
        if rings.features() & reg::F_CTRL_RX != 0 && !self.filter.wants(to, self.mac) {
            return Received::Dropped;
        }
        let Some(mut header) = Header::parse(header).checked(frame.len(), rings.features(), DEVICE_MAY)
        else {
            return Received::Unfinished;
        };
        if rings.features() & reg::F_GUEST_CSUM == 0 {
            header = Header::default();
        }
        let pair = self.steering.get(usize::from(flow(frame))).copied().unwrap_or(0) % self.pairs;
        let mergeable = rings.features() & reg::F_MRG_RXBUF != 0;
        let Some(held) = self.held.get_mut(usize::from(pair)) else { return Received::Dropped };
        deliver(rings, receive_queue(pair), held, mergeable, header, frame)
    }

    /// The control queue comes after those that the driver knows (§5.1.2).
    fn control_queue(&self, rings: &Rings<'_>) -> u16 {
        if rings.features() & reg::F_MQ != 0 { 2 * self.settings.pairs } else { 2 }
    }

    fn forget(&mut self) {
        self.filter = Filter::default();
        self.mac = self.settings.mac;
        self.pairs = 1;
        self.next_pair = 0;
        self.held.iter_mut().for_each(VecDeque::clear);
        self.steering.fill(0);
    }
}

fn receive_queue(pair: u16) -> u16 {
    2 * pair
}

fn transmit_queue(pair: u16) -> u16 {
    2 * pair + 1
}

/// Copies a packet out of its chain; false if it is none.
fn read_packet(rings: &Rings<'_>, chain: &Chain, packet: &mut Vec<u8>) -> bool {
    let len = usize::try_from(chain.readable_len()).unwrap_or(usize::MAX);
    if !(reg::HEADER_LEN + FRAME_MIN..=PACKET_MAX).contains(&len) {
        return false;
    }
    packet.resize(len, 0);
    if chain.read_at(rings.memory(), 0, packet) != len {
        return false;
    }
    let Some((head, frame)) = packet.split_first_chunk_mut::<{ reg::HEADER_LEN }>() else { return false };
    let Some(header) = Header::parse(head).checked(frame.len(), rings.features(), DRIVER_MAY) else {
        return false;
    };
    *head = header.to_bytes(0);
    true
}

/// Fills chains of `queue` with a packet (§5.1.6.4): one, or as many as it takes if they are `mergeable`.
fn deliver(
    rings: &mut Rings<'_>,
    queue: u16,
    held: &mut VecDeque<Chain>,
    mergeable: bool,
    header: Header,
    frame: &[u8],
) -> Received {
    let len = (reg::HEADER_LEN + frame.len()) as u64;
    let mut room = 0;
    let mut count = 0;
    while room < len {
        if count == held.len() {
            let Some(chain) = rings.pop(queue) else { return Received::NoBuffers };
            held.push_back(chain);
        }
        room += held.get(count).map_or(0, Chain::writable_len);
        count += 1;
        // The first chain holds the header whole; a packet does not fit into one chain that is too small, nor into more
        // than a queue has: such chains are of no use.
        let first_too_small = count == 1 && room < reg::HEADER_LEN as u64;
        if first_too_small || room < len && (!mergeable || count > QUEUE_SIZE.into()) {
            let useless: Vec<_> = held.drain(..count).map(|chain| (chain.head(), 0)).collect();
            rings.push_all(queue, &useless);
            return Received::Dropped;
        }
    }
    let mut used = Vec::with_capacity(count);
    let mut rest = frame;
    for (index, chain) in held.drain(..count).enumerate() {
        let mut written = 0;
        if index == 0 {
            // At most QUEUE_SIZE, by the loop above.
            let buffers = count as u16;
            written = chain.write_at(rings.memory(), 0, &header.to_bytes(buffers));
        }
        let done = chain.write_at(rings.memory(), written as u64, rest);
        rest = rest.get(done..).unwrap_or_default();
        used.push((chain.head(), (written + done) as u32));
    }
    rings.push_all(queue, &used);
    Received::Done
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u16 {
        device_type::NET
    }

    fn pci_class(&self) -> u32 {
        CLASS_ETHERNET
    }

    fn features(&self) -> u64 {
        let offloads = DRIVER_MAY.into_iter().chain(DEVICE_MAY).fold(0, |all, feature| all | feature);
        let control = reg::F_CTRL_VQ | reg::F_CTRL_RX | reg::F_CTRL_RX_EXTRA | reg::F_CTRL_MAC_ADDR;
        let queues = if self.settings.pairs > 1 { reg::F_MQ } else { 0 };
        offloads | control | queues | reg::F_MAC | reg::F_MTU | reg::F_STATUS | reg::F_MRG_RXBUF
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(self.settings.pairs)];
        sizes.push(CONTROL_QUEUE_SIZE);
        sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; reg::CONFIG_LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            for (to, from) in config.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
        };
        put(reg::CONFIG_MAC, &self.mac);
        put(reg::CONFIG_STATUS, &if self.link { reg::S_LINK_UP } else { 0 }.to_le_bytes());
        put(reg::CONFIG_PAIRS_MAX, &self.settings.pairs.to_le_bytes());
        put(reg::CONFIG_MTU, &self.settings.mtu.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, rings: &mut Rings<'_>) {
        self.wanted = true;
        let control = self.control_queue(rings);
        self.notified(control, rings);
    }

    fn notified(&mut self, queue: u16, rings: &mut Rings<'_>) {
        if queue == self.control_queue(rings) {
            self.command(queue, rings);
        } else {
            self.wanted = true;
        }
    }

    fn save(&self) -> Result<VirtioDeviceSaved, Unsaved> {
        let (modes, unicast, multicast) = self.filter.save();
        Ok(VirtioDeviceSaved::Net(NetSaved {
            mac: self.mac,
            link: self.link,
            modes,
            unicast,
            multicast,
            pairs: self.pairs,
            held: self.held.iter().map(|held| held.iter().map(Chain::save).collect()).collect(),
        }))
    }

    fn load(&mut self, saved: &VirtioDeviceSaved, rings: &mut Rings<'_>) -> Result<(), Unfit> {
        let VirtioDeviceSaved::Net(saved) = saved else { return Err(another_kind()) };
        let held = saved.held.iter().map(|held| -> Result<VecDeque<Chain>, Unfit> {
            if held.len() > QUEUE_SIZE.into() {
                return Err(Unfit::new("more buffers than its queue has"));
            }
            held.iter().map(|chain| Chain::load(chain, rings.memory())).collect()
        });
        let held: Vec<_> = held.collect::<Result<_, _>>()?;
        if held.len() != self.held.len() || !(1..=self.settings.pairs).contains(&saved.pairs) {
            return Err(Unfit::new("it has another number of queues"));
        }
        self.filter = Filter::load(saved.modes, &saved.unicast, &saved.multicast);
        (self.mac, self.link, self.pairs, self.held) = (saved.mac, saved.link, saved.pairs, held);
        self.wanted = true;
        Ok(())
    }

    fn reset(&mut self) {
        self.forget();
        self.wanted = false;
    }
}
