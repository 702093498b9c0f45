//! UDP and ICMP echo: a socket of the host for each flow of the guest's.

use super::address::Flow;
use super::frame::{self, Reason};
use super::tcp::{Link, OUT_MAX};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use smoltcp::wire::IpProtocol;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A flow without packets is forgotten after so long (RFC 4787 §4.3 asks for two minutes).
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams that are taken from one socket at once; sockets hold fewer, unless somebody floods them.
const BATCH: usize = 4096;
/// Packets that wait for the guest, beyond which datagrams are lost.
const WAITING_MAX: usize = 2 * OUT_MAX;

/// How a flow's packets leave the host.
enum Way {
    /// By a socket of its own, which is connected.
    Own(UdpSocket),
    /// By the socket of a published port, to whoever came in there.
    Published(Arc<UdpSocket>, SocketAddr),
}

/// A UDP flow.
pub(super) struct Udp {
    flow: Flow,
    way: Way,
    last: Instant,
    answered: bool,
}

fn loopback_or_any(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Why a packet did not get there, in ICMP's words.
pub(super) fn reason(error: &io::Error) -> Option<Reason> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Some(Reason::Port),
        ErrorKind::NetworkUnreachable => Some(Reason::Network),
        ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable => Some(Reason::Host),
        ErrorKind::PermissionDenied => Some(Reason::Prohibited),
        _ => None,
    }
}

/// Tells the guest that a datagram did not get there.
pub(super) fn tell(flow: &Flow, why: Reason, link: &mut Link<'_>) {
    // Behind the ports of a UDP header: length, without payload, and no checksum.
    link.out.push_back(frame::unreachable(link.guest, link.gateway, flow, IpProtocol::Udp, 8 << 16, why));
}

/// Tells the guest that an echo request did not get there.
pub(super) fn tell_echo(flow: &EchoFlow, sequence: u16, why: Reason, link: &mut Link<'_>) {
    let (v4, v6) = frame::ECHO_REQUEST;
    let (kind, protocol) =
        if flow.guest.is_ipv4() { (v4, IpProtocol::Icmp) } else { (v6, IpProtocol::Icmpv6) };
    // Where UDP has its ports, ICMP has its type and a checksum, and then its number (RFC 792).
    let ends = Flow {
        port: flow.port,
        guest: (flow.guest, u16::from_be_bytes([kind, 0])).into(),
        remote: (flow.remote, 0).into(),
    };
    let word = u32::from(flow.ident) << 16 | u32::from(sequence);
    link.out.push_back(frame::unreachable(link.guest, link.gateway, &ends, protocol, word, why));
}

impl Udp {
    /// A flow to `to` on the host's side.
    pub(super) fn open(flow: Flow, to: SocketAddr, now: Instant) -> io::Result<Udp> {
        let socket = UdpSocket::bind(loopback_or_any(to))?;
        socket.set_nonblocking(true)?;
        socket.connect(to)?;
        Ok(Udp { flow, way: Way::Own(socket), last: now, answered: false })
    }

    /// A flow of somebody who came in by a published port.
    pub(super) fn published(flow: Flow, socket: Arc<UdpSocket>, peer: SocketAddr, now: Instant) -> Udp {
        Udp { flow, way: Way::Published(socket, peer), last: now, answered: false }
    }

    /// The socket to watch, if it has its own.
    pub(super) fn socket(&self) -> Option<&UdpSocket> {
        match &self.way {
            Way::Own(socket) => Some(socket),
            Way::Published(..) => None,
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.last + IDLE
    }

    /// Whether this guest has asked within this time, and has no answer yet.
    pub(super) fn waits(&self, guest: Ipv4Addr, port: u16, now: Instant, limit: Duration) -> bool {
        let asks = self.flow.port == guest && self.flow.remote.port() == port;
        asks && !self.answered && now.saturating_duration_since(self.last) < limit
    }

    pub(super) fn touch(&mut self, now: Instant) {
        self.last = now;
    }

    /// Sends what the guest sent.
    pub(super) fn send(&mut self, payload: &[u8], link: &mut Link<'_>) {
        self.last = link.now;
        let sent = match &self.way {
            Way::Own(socket) => socket.send(payload),
            Way::Published(socket, peer) => socket.send_to(payload, peer),
        };
        // What finds no room is lost, as on any way.
        if let Err(error) = sent
            && let Some(why) = reason(&error)
        {
            tell(&self.flow, why, link);
        }
    }

    /// Takes all that came for the guest.
    pub(super) fn receive(&mut self, link: &mut Link<'_>) {
        let Way::Own(socket) = &self.way else { return };
        for _ in 0..BATCH {
            match socket.recv(link.scratch) {
                Ok(_) if link.out.is_full(WAITING_MAX) => {}
                Ok(len) => {
                    self.last = link.now;
                    self.answered = true;
                    let payload = link.scratch.get(..len.min(frame::DATAGRAM_MAX)).unwrap_or_default();
                    link.out.push_back(frame::udp(link.guest, self.flow.remote, self.flow.guest, payload));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => {
                    if let Some(why) = reason(&error) {
                        tell(&self.flow, why, link);
                    }
                }
            }
        }
    }
}

/// Who a guest's echo requests go to, and under which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct EchoFlow {
    /// Whose it is: the port of the guest with this IPv4 address.
    pub(super) port: Ipv4Addr,
    pub(super) guest: IpAddr,
    pub(super) remote: IpAddr,
    pub(super) ident: u16,
}

/// Echo requests to one address, by a socket of the kind that needs no privilege (icmp(7)).
pub(super) struct Echo {
    flow: EchoFlow,
    socket: UdpSocket,
    last: Instant,
}

impl Echo {
    pub(super) fn open(flow: EchoFlow, now: Instant) -> io::Result<Echo> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (family, protocol) = match flow.remote {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let socket = UdpSocket::from(socket_with(family, SocketType::DGRAM, flags, Some(protocol))?);
        socket.connect((flow.remote, 0))?;
        Ok(Echo { flow, socket, last: now })
    }

    pub(super) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    pub(super) fn deadline(&self) -> Instant {
        self.last + IDLE
    }

    /// Sends a request on; the kernel puts a number and a checksum of its own into it.
    pub(super) fn send(&mut self, sequence: u16, data: &[u8], link: &mut Link<'_>) -> io::Result<()> {
        self.last = link.now;
        let is_v4 = self.flow.remote.is_ipv4();
        self.socket.send(&frame::echo(frame::ECHO_REQUEST, is_v4, 0, sequence, data)).map(drop)
    }

    /// Takes all replies.
    pub(super) fn receive(&mut self, link: &mut Link<'_>) {
        let EchoFlow { guest, remote, ident, .. } = self.flow;
        let (v4, v6) = frame::ECHO_REPLY;
        let reply = if remote.is_ipv4() { v4 } else { v6 };
        for _ in 0..BATCH {
            let len = match self.socket.recv(link.scratch) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => continue,
            };
            self.last = link.now;
            let bytes = link.scratch.get(..len).unwrap_or_default();
            let Some(([kind, _, _, _, _, _, s0, s1], data)) = bytes.split_first_chunk::<8>() else {
                continue;
            };
            if *kind == reply && !link.out.is_full(WAITING_MAX) {
                let sequence = u16::from_be_bytes([*s0, *s1]);
                link.out.push_back(frame::echo_reply(link.guest, [remote, guest], ident, sequence, data));
            }
        }
    }
}
