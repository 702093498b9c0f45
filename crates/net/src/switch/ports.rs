//! The ports of a switch: who is plugged in where.

use super::address::Flow;
use super::listen::{Listeners, Socket};
use super::tcp::Link;
use crate::port::{NetPort, SocketPort};
use smoltcp::wire::EthernetAddress;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::net::Ipv4Addr;
use std::time::Instant;
use viv_model::Attachment;

/// Packets of other VMs that wait for a port, beyond which they are lost.
const FORWARD_MAX: usize = 64;

/// Where a VM's card is plugged in.
pub(super) struct Port {
    pub(super) socket: SocketPort,
    /// What the socket is called in the poll.
    pub(super) token: u64,
    pub(super) attachment: Attachment,
    pub(super) mac: EthernetAddress,
    /// Published ports, each with what it is called in the poll.
    pub(super) listeners: Vec<(Socket, u16, u64)>,
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
            out: VecDeque::new(),
            blocked: BTreeSet::new(),
        }
    }
}

/// All ports, by the guests' addresses.
pub(super) struct Ports {
    gateway: Ipv4Addr,
    ports: HashMap<Ipv4Addr, Port>,
    by_mac: HashMap<EthernetAddress, Ipv4Addr>,
    /// Those that may have packets for us.
    pub(super) readable: BTreeSet<Ipv4Addr>,
    /// Those that we may have packets for.
    pub(super) writable: BTreeSet<Ipv4Addr>,
}

impl Ports {
    pub(super) fn new(gateway: Ipv4Addr) -> Ports {
        Ports {
            gateway,
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
        self.readable.remove(&address);
        self.writable.remove(&address);
        Some(port)
    }

    /// The port of a card.
    pub(super) fn of_mac(&self, mac: EthernetAddress) -> Option<Ipv4Addr> {
        self.by_mac.get(&mac).copied()
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
