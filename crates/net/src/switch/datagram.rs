//! UDP and ICMP echo: a socket of the host for each flow of the guest's.

use super::address::Flow;
use super::frame;
use super::tcp::{Link, OUT_MAX};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4Repr, IpProtocol};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
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
}

fn loopback_or_any(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// Why a packet did not get there, in ICMP's words.
fn reason(error: &io::Error) -> Option<Icmpv4DstUnreachable> {
    match error.kind() {
        ErrorKind::ConnectionRefused => Some(Icmpv4DstUnreachable::PortUnreachable),
        ErrorKind::NetworkUnreachable => Some(Icmpv4DstUnreachable::NetUnreachable),
        ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable => {
            Some(Icmpv4DstUnreachable::HostUnreachable)
        }
        ErrorKind::PermissionDenied => Some(Icmpv4DstUnreachable::CommProhibited),
        _ => None,
    }
}

/// Tells the guest that a datagram did not get there.
pub(super) fn tell(flow: &Flow, why: Icmpv4DstUnreachable, link: &mut Link<'_>) {
    // Behind the ports of a UDP header: length, without payload, and no checksum.
    link.out.push_back(frame::unreachable(link.guest, link.gateway, flow, IpProtocol::Udp, 8 << 16, why));
}

impl Udp {
    /// A flow to `to` on the host's side.
    pub(super) fn open(flow: Flow, to: SocketAddr, now: Instant) -> io::Result<Udp> {
        let socket = UdpSocket::bind(loopback_or_any(to))?;
        socket.set_nonblocking(true)?;
        socket.connect(to)?;
        Ok(Udp { flow, way: Way::Own(socket), last: now })
    }

    /// A flow of somebody who came in by a published port.
    pub(super) fn published(flow: Flow, socket: Arc<UdpSocket>, peer: SocketAddr, now: Instant) -> Udp {
        Udp { flow, way: Way::Published(socket, peer), last: now }
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
                Ok(_) if link.out.len() >= WAITING_MAX => {}
                Ok(len) => {
                    self.last = link.now;
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
    pub(super) guest: Ipv4Addr,
    pub(super) remote: Ipv4Addr,
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
        let fd = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(ipproto::ICMP))?;
        let socket = UdpSocket::from(fd);
        socket.connect(SocketAddrV4::new(flow.remote, 0))?;
        Ok(Echo { flow, socket, last: now })
    }

    pub(super) fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    pub(super) fn deadline(&self) -> Instant {
        self.last + IDLE
    }

    /// Sends a request on; the kernel puts a number of its own into it.
    pub(super) fn send(&mut self, request: &Icmpv4Repr<'_>, link: &mut Link<'_>) -> io::Result<()> {
        self.last = link.now;
        let mut bytes = vec![0; request.buffer_len()];
        request.emit(&mut Icmpv4Packet::new_unchecked(bytes.as_mut_slice()), &Default::default());
        self.socket.send(&bytes).map(drop)
    }

    /// Takes all replies.
    pub(super) fn receive(&mut self, link: &mut Link<'_>) {
        for _ in 0..BATCH {
            let len = match self.socket.recv(link.scratch) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => continue,
            };
            self.last = link.now;
            let bytes = link.scratch.get(..len).unwrap_or_default();
            let Ok(packet) = Icmpv4Packet::new_checked(bytes) else { continue };
            if packet.msg_type() == Icmpv4Message::EchoReply && link.out.len() < WAITING_MAX {
                let reply = Icmpv4Repr::EchoReply {
                    ident: self.flow.ident,
                    seq_no: packet.echo_seq_no(),
                    data: packet
                        .data()
                        .get(..packet.data().len().min(frame::DATAGRAM_MAX))
                        .unwrap_or_default(),
                };
                link.out.push_back(frame::icmp(link.guest, self.flow.remote, self.flow.guest, &reply));
            }
        }
    }
}
