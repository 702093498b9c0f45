//! The ports of a switch: who is plugged in where.

use super::address::{Flow, Gateway, LINK_LOCAL, Plan, ROUTER, card_of, interface};
use super::fragments::Fragments;
use super::limit::Limiter;
use super::listen::{Listeners, Socket};
use super::queue::Queue;
use super::table::Table;
use super::tcp::Link;
use crate::capture::Capture;
use crate::port::{Message, NetPort, SocketPort};
use smoltcp::wire::EthernetAddress;
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;
use std::time::Instant;
use viv_arch::virtio::net::HEADER_LEN;
use viv_model::{Attachment, NicLimits, PortCounters, Traffic};

/// Packets of other VMs that wait for a port, beyond which they are lost, and bytes of packets of any kind.
const FORWARD_MAX: usize = 1024;
const WAITING_BYTES_MAX: usize = 4 << 20;
/// From this size on a packet is worth a message of its own, so that it need not be copied first.
const LARGE: usize = 8192;
/// Where a frame has its destination and its source (IEEE 802.3 §3.1.1).
const DEST: Range<usize> = HEADER_LEN..HEADER_LEN + 6;
const SOURCE: Range<usize> = HEADER_LEN + 6..HEADER_LEN + 12;
/// Most packets that are handed over together.
const TOGETHER_MAX: usize = 256;
/// Most who watch a port at a time.
const CAPTURES_MAX: usize = 8;
/// Most IPv6 addresses of a guest at a time: those of its card, and some for privacy (RFC 8981), which change. The one that
/// it has had longest goes for a new one.
const ADDRESSES6_MAX: usize = 16;
/// Below this, the last 64 bits of an address are ours to give.
const OURS_BELOW: u64 = 1 << 32;

/// Where a VM's card is plugged in.
pub(super) struct Port {
    pub(super) socket: SocketPort,
    /// What the socket is called in the poll.
    pub(super) token: u64,
    pub(super) attachment: Attachment,
    pub(super) mac: EthernetAddress,
    /// What the guest calls its card: the same, or what it was called before.
    called: EthernetAddress,
    /// Published ports, each with what it is called in the poll.
    pub(super) listeners: Vec<(Socket, u16, u64)>,
    /// The IPv6 addresses that it has been seen to have.
    addresses6: VecDeque<Ipv6Addr>,
    /// Packets that wait for room.
    pub(super) out: Queue,
    /// Connections that wait for the same.
    pub(super) blocked: BTreeSet<Flow>,
    /// Packets that came and are still to be looked at.
    pub(super) incoming: Message,
    /// Packets of which fragments have come.
    pub(super) fragments: Fragments,
    sends: Limiter,
    receives: Limiter,
    pub(super) counters: PortCounters,
    captures: Vec<Capture>,
}

/// How far packets were handed over.
pub(super) enum Flushed {
    All,
    /// It takes no more now.
    Full,
    /// Its limit does not let more pass before then.
    Until(Instant),
}

impl Port {
    pub(super) fn new(attachment: Attachment, socket: SocketPort, token: u64, now: Instant) -> Port {
        let limits = attachment.limits;
        let counters = PortCounters { vm: attachment.vm.clone(), ..PortCounters::default() };
        let mut port = Port {
            socket,
            token,
            mac: EthernetAddress(attachment.mac),
            called: EthernetAddress(attachment.mac),
            attachment,
            listeners: Vec::new(),
            addresses6: VecDeque::new(),
            out: Queue::new(WAITING_BYTES_MAX),
            blocked: BTreeSet::new(),
            incoming: Message::default(),
            fragments: Fragments::default(),
            sends: Limiter::new(&limits, now),
            receives: Limiter::new(&limits, now),
            counters,
            captures: Vec::new(),
        };
        port.limit(limits, now);
        port
    }

    /// What frames to the guest have as their destination.
    pub(super) fn called(&self) -> EthernetAddress {
        self.called
    }

    /// A frame of the guest is by its card, or is made so, if it has one of the card's earlier addresses. The guest gets
    /// frames to the address that it used last.
    pub(super) fn own(&mut self, packet: &mut [u8]) {
        let Some(source) = packet.get_mut(SOURCE).and_then(|source| source.first_chunk_mut::<6>()) else {
            return;
        };
        if *source == self.called.0 && self.called == self.mac {
            return;
        }
        if *source == self.mac.0 || self.attachment.aliases.contains(source) {
            self.called = EthernetAddress(*source);
            *source = self.mac.0;
        }
    }

    /// Other limits from now on.
    pub(super) fn limit(&mut self, limits: NicLimits, now: Instant) {
        self.attachment.limits = limits;
        self.sends = Limiter::new(&limits, now);
        self.receives = Limiter::new(&limits, now);
        self.out.set_bytes_most(self.receives.waiting(WAITING_BYTES_MAX));
    }

    /// Somebody watches; false if there are too many.
    pub(super) fn watch(&mut self, capture: Capture) -> bool {
        let room = self.captures.len() < CAPTURES_MAX;
        self.captures.extend(room.then_some(capture));
        room
    }

    /// When the guest may send its next packet, if not now.
    pub(super) fn sends_at(&self, now: Instant) -> Option<Instant> {
        self.sends.until(now)
    }

    /// The guest has nothing to send.
    pub(super) fn sends_nothing(&mut self, now: Instant) {
        self.sends.rest(now);
    }

    /// The guest has sent a packet.
    pub(super) fn sent(&mut self, packet: &[u8], now: Instant) {
        self.sends.take(packet, now);
        count(&mut self.counters.sent, packet);
        self.captures.retain_mut(|capture| capture.tell(packet, true));
    }

    fn received(&mut self, count_of: usize, now: Instant) {
        for packet in self.out.iter().take(count_of) {
            self.receives.take(packet, now);
            count(&mut self.counters.received, packet);
            self.captures.retain_mut(|capture| capture.tell(packet, false));
        }
        self.out.forget(count_of);
    }

    /// Hands packets to the guest.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<Flushed> {
        while !self.out.is_empty() {
            let mut after = self.receives;
            let may = |packet: &&[u8]| {
                let may = after.until(now).is_none();
                after.take(packet, now);
                may
            };
            let count = match self.receives.is_unlimited() {
                true => TOGETHER_MAX,
                false => self.out.iter().take(TOGETHER_MAX).take_while(may).count(),
            };
            if let (0, Some(until)) = (count, self.receives.until(now)) {
                return Ok(Flushed::Until(until));
            }
            let sent = self.socket.send(&mut self.out.iter().take(count))?;
            if sent == 0 {
                return Ok(Flushed::Full);
            }
            self.received(sent, now);
        }
        self.receives.rest(now);
        Ok(Flushed::All)
    }

    /// Takes a packet of another VM for the guest; without room it is lost.
    fn forward(&mut self, packet: &[u8]) -> io::Result<()> {
        let is_for_card = packet.get(DEST).is_some_and(|dest| *dest == self.mac.0);
        if is_for_card && self.called != self.mac {
            let mut renamed = packet.to_vec();
            if let Some(dest) = renamed.get_mut(DEST) {
                dest.copy_from_slice(&self.called.0);
            }
            self.counters.lost += u64::from(!self.out.forward(&renamed, FORWARD_MAX));
            return Ok(());
        }
        let at_once = packet.len() >= LARGE && self.out.is_empty() && self.receives.is_unlimited();
        if at_once && self.socket.send_one(packet)? {
            count(&mut self.counters.received, packet);
            self.captures.retain_mut(|capture| capture.tell(packet, false));
        } else if !self.out.forward(packet, FORWARD_MAX) {
            self.counters.lost += 1;
        }
        Ok(())
    }
}

fn count(traffic: &mut Traffic, packet: &[u8]) {
    traffic.add(packet.len().saturating_sub(HEADER_LEN) as u64);
}

/// All ports, by the guests' addresses.
pub(super) struct Ports {
    gateway: Gateway,
    prefix: Ipv6Addr,
    ports: Table<Ipv4Addr, Port>,
    by_mac: Table<EthernetAddress, Ipv4Addr>,
    by_address6: Table<Ipv6Addr, Ipv4Addr>,
    /// Those that may have packets for us.
    pub(super) readable: BTreeSet<Ipv4Addr>,
    /// Those that we may have packets for.
    pub(super) writable: BTreeSet<Ipv4Addr>,
    /// Those that wait because of their limits.
    held: BTreeSet<(Instant, Ipv4Addr)>,
    pub(super) now: Instant,
}

impl Ports {
    pub(super) fn new(plan: &Plan) -> Ports {
        Ports {
            gateway: plan.gateway,
            prefix: plan.subnet.prefix6(),
            by_address6: Table::default(),
            ports: Table::default(),
            by_mac: Table::default(),
            readable: BTreeSet::new(),
            writable: BTreeSet::new(),
            held: BTreeSet::new(),
            now: Instant::now(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ports.len()
    }

    pub(super) fn get(&self, address: Ipv4Addr) -> Option<&Port> {
        self.ports.get(&address)
    }

    pub(super) fn get_mut(&mut self, address: Ipv4Addr) -> Option<&mut Port> {
        self.ports.get_mut(&address)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Port> {
        self.ports.values()
    }

    pub(super) fn add(&mut self, port: Port) {
        let address = port.attachment.address;
        self.by_mac.insert(port.mac, address);
        // Nobody else has what is made of its card's address, also if its card had that address before.
        for own in [self.global(port.mac), interface(LINK_LOCAL, port.mac.0)] {
            if let Some(other) = self.by_address6.remove(&own)
                && let Some(other) = self.ports.get_mut(&other)
            {
                other.addresses6.retain(|address| *address != own);
            }
        }
        self.readable.insert(address);
        self.ports.insert(address, port);
    }

    pub(super) fn remove(&mut self, address: Ipv4Addr) -> Option<Port> {
        let port = self.ports.remove(&address)?;
        self.by_mac.remove(&port.mac);
        for address in &port.addresses6 {
            self.by_address6.remove(address);
        }
        self.readable.remove(&address);
        self.writable.remove(&address);
        Some(port)
    }

    /// The port of a card.
    pub(super) fn of_mac(&self, mac: EthernetAddress) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).copied()
    }

    /// The IPv6 address that a card gives itself in this network.
    pub(super) fn global(&self, mac: EthernetAddress) -> Ipv6Addr {
        interface(self.prefix, mac.0)
    }

    /// The port of a guest's address.
    pub(super) fn of_address(&self, address: IpAddr) -> Option<Ipv4Addr> {
        match address {
            IpAddr::V4(address) => self.ports.contains_key(&address).then_some(address),
            IpAddr::V6(address) => self.by_address6.get(&address).copied().or_else(|| {
                // A guest that has not said anything yet has, or will have, its card's.
                let mac = card_of(address).filter(|_| self.is_of_link(address))?;
                self.of_mac(EthernetAddress(mac))
            }),
        }
    }

    fn is_of_link(&self, address: Ipv6Addr) -> bool {
        [self.prefix, LINK_LOCAL].iter().any(|prefix| prefix.to_bits() >> 64 == address.to_bits() >> 64)
    }

    /// Whether an IPv6 address is the guest's at this port: from the first time that it is seen to have it, if nobody else
    /// has it, and if it is not one that only another card, or we, may have (RFC 6620).
    pub(super) fn claim(&mut self, port: Ipv4Addr, address: Ipv6Addr) -> bool {
        if let Some(owner) = self.by_address6.get(&address) {
            return *owner == port;
        }
        // The last 64 bits.
        let is_ours = (address.to_bits() as u64) < OURS_BELOW || address == ROUTER;
        let is_of_link = self.is_of_link(address);
        let Some(it) = self.ports.get_mut(&port) else { return false };
        // A guest that still uses its card's earlier address may use what was made of it, unless another card has it.
        let is_earlier = |mac: &[u8; 6]| {
            it.attachment.aliases.contains(mac) && !self.by_mac.contains_key(&EthernetAddress(*mac))
        };
        let is_other_cards = card_of(address).is_some_and(|mac| mac != it.mac.0 && !is_earlier(&mac));
        if is_ours || is_other_cards || !is_of_link {
            return false;
        }
        if it.addresses6.len() >= ADDRESSES6_MAX
            && let Some(oldest) = it.addresses6.pop_front()
        {
            self.by_address6.remove(&oldest);
        }
        it.addresses6.push_back(address);
        self.by_address6.insert(address, port);
        true
    }

    /// The IPv6 address by which others find a guest: its card's, if it has been seen to have it, else one that it has.
    pub(super) fn address6(&self, port: &Port) -> Option<Ipv6Addr> {
        let own = self.global(port.mac);
        let in_prefix = |address: &&Ipv6Addr| address.to_bits() >> 64 == self.prefix.to_bits() >> 64;
        let mut known = port.addresses6.iter().filter(in_prefix);
        match known.clone().any(|address| *address == own) {
            true => Some(own),
            false => known.next_back().copied(),
        }
    }

    /// Whether one may have packets for us, and not too many answers to take.
    pub(super) fn are_ready(&self, most: usize) -> bool {
        let is_ready = |address| self.ports.get(address).is_some_and(|port| !port.out.is_full(most));
        self.readable.iter().any(is_ready)
    }

    /// The way to a guest, if it is there.
    pub(super) fn link<'a>(&'a mut self, guest: Ipv4Addr, scratch: &'a mut [u8]) -> Option<Link<'a>> {
        let port = self.ports.get_mut(&guest)?;
        self.writable.insert(guest);
        Some(Link { guest: port.called, gateway: self.gateway, out: &mut port.out, now: self.now, scratch })
    }

    /// Hands a packet of another VM to a port; false if that one is gone. Without room it is lost.
    pub(super) fn forward(&mut self, to: Ipv4Addr, packet: &[u8]) -> bool {
        let Some(port) = self.ports.get_mut(&to) else { return true };
        if port.forward(packet).is_err() {
            return false;
        }
        if !port.out.is_empty() {
            self.writable.insert(to);
        }
        true
    }

    /// A port whose limit lets something pass only then.
    pub(super) fn hold(&mut self, port: Ipv4Addr, until: Instant) {
        self.held.insert((until, port));
    }

    /// The time passes; ports whose limit lets something pass by now are looked at.
    pub(super) fn set_now(&mut self, now: Instant) {
        self.now = now;
        while let Some((until, port)) = self.held.first().copied()
            && until <= now
        {
            self.held.pop_first();
            self.readable.insert(port);
            self.writable.insert(port);
        }
    }

    /// When the next limit lets something pass.
    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held.first().map(|(until, _)| *until)
    }

    /// What was counted for each port.
    pub(super) fn counters(&self, connections: impl Fn(Ipv4Addr) -> u64) -> Vec<PortCounters> {
        let each = |port: &Port| PortCounters {
            connections: connections(port.attachment.address),
            addresses6: port.addresses6.iter().copied().collect(),
            ..port.counters.clone()
        };
        self.ports.values().map(each).collect()
    }
}

impl Listeners {
    /// The sockets, each with the guest's port.
    pub(super) fn into_sockets(self) -> Vec<(Socket, u16)> {
        self.sockets
    }
}
