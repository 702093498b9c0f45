//! The ports of a switch: who is plugged in where.

use super::address::{Flow, Gateway, LINK_LOCAL, Plan, ROUTER, card_of, interface};
use super::listen::{Listeners, Socket};
use super::tcp::Link;
use crate::port::{NetPort, SocketPort};
use smoltcp::wire::EthernetAddress;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;
use viv_model::Attachment;

/// Packets of other VMs that wait for a port, beyond which they are lost.
const FORWARD_MAX: usize = 64;
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
    /// Published ports, each with what it is called in the poll.
    pub(super) listeners: Vec<(Socket, u16, u64)>,
    /// The IPv6 addresses that it has been seen to have.
    addresses6: VecDeque<Ipv6Addr>,
    /// Packets that wait for room.
    pub(super) out: VecDeque<Vec<u8>>,
    /// Connections that wait for the same.
    pub(super) blocked: BTreeSet<Flow>,
}

impl Port {
    pub(super) fn new(attachment: Attachment, socket: SocketPort, token: u64) -> Port {
        Port {
            socket,
            token,
            mac: EthernetAddress(attachment.mac),
            attachment,
            listeners: Vec::new(),
            addresses6: VecDeque::new(),
            out: VecDeque::new(),
            blocked: BTreeSet::new(),
        }
    }
}

/// All ports, by the guests' addresses.
pub(super) struct Ports {
    gateway: Gateway,
    prefix: Ipv6Addr,
    ports: HashMap<Ipv4Addr, Port>,
    by_mac: HashMap<EthernetAddress, Ipv4Addr>,
    by_address6: HashMap<Ipv6Addr, Ipv4Addr>,
    /// Those that may have packets for us.
    pub(super) readable: BTreeSet<Ipv4Addr>,
    /// Those that we may have packets for.
    pub(super) writable: BTreeSet<Ipv4Addr>,
}

impl Ports {
    pub(super) fn new(plan: &Plan) -> Ports {
        Ports {
            gateway: plan.gateway,
            prefix: plan.subnet.prefix6(),
            by_address6: HashMap::new(),
            ports: HashMap::new(),
            by_mac: HashMap::new(),
            readable: BTreeSet::new(),
            writable: BTreeSet::new(),
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
        let is_other_cards = card_of(address).is_some_and(|mac| mac != it.mac.0);
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

    /// Whether one may have packets for us, and not more than `most` to take.
    pub(super) fn are_ready(&self, most: usize) -> bool {
        let is_ready = |address| self.ports.get(address).is_some_and(|port| port.out.len() <= most);
        self.readable.iter().any(is_ready)
    }

    /// The way to a guest, if it is there.
    pub(super) fn link<'a>(&'a mut self, guest: Ipv4Addr, scratch: &'a mut [u8]) -> Option<Link<'a>> {
        let port = self.ports.get_mut(&guest)?;
        self.writable.insert(guest);
        Some(Link {
            guest: port.mac,
            gateway: self.gateway,
            out: &mut port.out,
            now: Instant::now(),
            scratch,
        })
    }

    /// Hands a packet of another VM to a port; false if that one is gone. Without room it is lost.
    pub(super) fn forward(&mut self, to: Ipv4Addr, packet: &[u8]) -> bool {
        let Some(port) = self.ports.get_mut(&to) else { return true };
        if port.out.is_empty() {
            match port.socket.send(packet) {
                Ok(true) => return true,
                Ok(false) => {}
                Err(_) => return false,
            }
        }
        if port.out.len() < FORWARD_MAX {
            port.out.push_back(packet.to_vec());
        }
        true
    }
}

impl Listeners {
    /// The sockets, each with the guest's port.
    pub(super) fn into_sockets(self) -> Vec<(Socket, u16)> {
        self.sockets
    }
}
