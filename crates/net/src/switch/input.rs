//! What a frame from the guest is.

use super::address::{Flow, Plan};
use super::datagram::EchoFlow;
use super::discovery::Discovery;
use super::frame::ECHO_REQUEST;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr,
    Ipv6Packet, TcpPacket, TcpRepr, UdpPacket, UdpRepr,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use viv_arch::virtio::net::HEADER_LEN;

/// Where an IPv4 header has its length (RFC 791 §3.1), in words: more than this is options.
const HEADER_WORDS: u8 = 5;
/// The ports of DHCPv6's servers and clients (RFC 8415 §7.2); there is none here.
const DHCP6: std::ops::RangeInclusive<u16> = 546..=547;

/// A frame whose sender has been looked at: it is the port's own.
#[derive(Debug)]
pub(super) enum Frame<'a> {
    /// Address resolution, to be answered by us.
    Arp(&'a [u8]),
    /// What a guest with this address asks of neighbours, to be answered by us.
    Discovery(Ipv6Addr, Discovery),
    /// Something for the network itself, or for the outside.
    Gateway(Input<'a>),
    /// For one of the other ports, or for all of them.
    Neighbours {
        /// Its card.
        to: EthernetAddress,
        /// Its guest.
        address: IpAddr,
    },
}

/// A packet for us, as far as we have a use for it.
#[derive(Debug)]
pub(super) enum Input<'a> {
    Tcp(Flow, TcpRepr<'a>),
    Udp(Flow, &'a [u8]),
    /// An echo request, its number and its data.
    Echo(EchoFlow, u16, &'a [u8]),
}

/// Who sends.
pub(super) struct Sender<Owns> {
    /// What its card is called.
    pub(super) mac: EthernetAddress,
    pub(super) address: Ipv4Addr,
    /// Whether an IPv6 address is its own; asking may make it so.
    pub(super) owns: Owns,
}

/// An IP packet whose sender has been looked at.
struct Packet<'a> {
    from: IpAddr,
    to: IpAddr,
    protocol: IpProtocol,
    payload: &'a [u8],
}

/// Takes a packet from a port apart that belongs to this sender. One with another sender, in any of its headers, is
/// nothing; so is what could hide one: fragments (they have been put together), options (source routes), extension headers, other protocols. Checksums
/// are not looked at: they may be unfinished, and memory does not err.
pub(super) fn parse<'a>(
    packet: &'a [u8],
    plan: &Plan,
    mut sender: Sender<impl FnMut(Ipv6Addr) -> bool>,
) -> Option<Frame<'a>> {
    let frame = EthernetFrame::new_checked(packet.get(HEADER_LEN..)?).ok()?;
    if frame.src_addr() != sender.mac {
        return None;
    }
    let to = frame.dst_addr();
    let ours = to.0 == super::address::GATEWAY_MAC;
    let (packet, asks_for_lease) = match frame.ethertype() {
        // Everybody's addresses are known: requests are answered from that, and replies nobody needs.
        EthernetProtocol::Arp => return Some(Frame::Arp(frame.payload())),
        EthernetProtocol::Ipv4 => v4(frame.payload(), sender.address)?,
        EthernetProtocol::Ipv6 => match v6(frame.payload(), &mut sender.owns)? {
            Six::Discovery(from, discovery) => return Some(Frame::Discovery(from, discovery)),
            Six::Packet(packet) => (packet, false),
        },
        _ => return None,
    };
    if asks_for_lease || ours && !plan.is_group(packet.to) {
        return input(&packet, sender.address).map(Frame::Gateway);
    }
    (!ours).then_some(Frame::Neighbours { to, address: packet.to })
}

fn ports(protocol: IpProtocol, payload: &[u8]) -> Option<(u16, u16)> {
    let udp = (protocol == IpProtocol::Udp).then(|| UdpPacket::new_checked(payload).ok()).flatten()?;
    Some((udp.src_port(), udp.dst_port()))
}

/// An IPv4 packet of the guest with this address, and whether it asks for a lease.
fn v4(payload: &[u8], own: Ipv4Addr) -> Option<(Packet<'_>, bool)> {
    let packet = Ipv4Packet::new_checked(payload).ok()?;
    let repr = Ipv4Repr::parse(&packet, &ChecksumCapabilities::ignored()).ok()?;
    if packet.header_len() / 4 > HEADER_WORDS || packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let ports = ports(repr.next_header, packet.payload());
    // Nobody but a client of DHCP sends without an address.
    let asks = matches!(ports, Some((_, super::dhcp::SERVER_PORT)));
    if repr.src_addr != own && !(asks && repr.src_addr.is_unspecified()) {
        return None;
    }
    // There is one DHCP server here.
    if matches!(ports, Some((super::dhcp::SERVER_PORT, _) | (_, super::dhcp::CLIENT_PORT))) {
        return None;
    }
    let (from, to) = (repr.src_addr.into(), repr.dst_addr.into());
    Some((Packet { from, to, protocol: repr.next_header, payload: packet.payload() }, asks))
}

enum Six<'a> {
    Discovery(Ipv6Addr, Discovery),
    Packet(Packet<'a>),
}

/// An IPv6 packet of a guest that `owns` its addresses.
fn v6<'a>(payload: &'a [u8], owns: &mut impl FnMut(Ipv6Addr) -> bool) -> Option<Six<'a>> {
    let packet = Ipv6Packet::new_checked(payload).ok()?;
    let (from, to, protocol) = (packet.src_addr(), packet.dst_addr(), packet.next_header());
    if packet.version() != 6 || !from.is_unspecified() && !owns(from) {
        return None;
    }
    let payload = packet.payload();
    if protocol == IpProtocol::Icmpv6
        && let Some(discovery) = Discovery::parse(payload, packet.hop_limit())
    {
        return Some(Six::Discovery(from, discovery));
    }
    let is_dhcp = ports(protocol, payload).is_some_and(|(a, b)| DHCP6.contains(&a) || DHCP6.contains(&b));
    let carries = matches!(protocol, IpProtocol::Tcp | IpProtocol::Udp | IpProtocol::Icmpv6);
    if from.is_unspecified() || is_dhcp || !carries {
        return None;
    }
    Some(Six::Packet(Packet { from: from.into(), to: to.into(), protocol, payload }))
}

fn input<'a>(packet: &Packet<'a>, port: Ipv4Addr) -> Option<Input<'a>> {
    let ignored = ChecksumCapabilities::ignored();
    let (from, to, payload) = (packet.from, packet.to, packet.payload);
    let flow =
        |guest: u16, remote: u16| Flow { port, guest: (from, guest).into(), remote: (to, remote).into() };
    let [src, dst] = [from, to].map(IpAddress::from);
    Some(match packet.protocol {
        IpProtocol::Tcp => {
            let packet = TcpPacket::new_checked(payload).ok()?;
            let repr = TcpRepr::parse(&packet, &src, &dst, &ignored).ok()?;
            Input::Tcp(flow(repr.src_port, repr.dst_port), repr)
        }
        IpProtocol::Udp => {
            let packet = UdpPacket::new_checked(payload).ok()?;
            let repr = UdpRepr::parse(&packet, &src, &dst, &ignored).ok()?;
            Input::Udp(flow(repr.src_port, repr.dst_port), packet.payload())
        }
        IpProtocol::Icmp | IpProtocol::Icmpv6 => {
            let (header, data) = payload.split_first_chunk::<8>()?;
            let [kind, code, _, _, i0, i1, s0, s1] = *header;
            let (v4, v6) = ECHO_REQUEST;
            let (expected, protocol) =
                if from.is_ipv4() { (v4, IpProtocol::Icmp) } else { (v6, IpProtocol::Icmpv6) };
            if (kind, code) != (expected, 0) || packet.protocol != protocol {
                return None;
            }
            let ident = u16::from_be_bytes([i0, i1]);
            Input::Echo(EchoFlow { port, guest: from, remote: to, ident }, u16::from_be_bytes([s0, s1]), data)
        }
        _ => return None,
    })
}

/// Whether a packet from a guest is one that a network has a use for; for fuzzing.
pub fn parse_frame(packet: &[u8]) -> bool {
    let plan = Plan::new(&viv_model::NetworkSpec::user(true), None);
    let (mac, own) = (EthernetAddress([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 2, 15));
    let sender = Sender { mac, address: own, owns: |_| true };
    let mut fragments = super::fragments::Fragments::default();
    let whole = match fragments.take(packet, std::time::Instant::now()) {
        super::fragments::Taken::Packet(whole) => whole,
        _ => packet.to_vec(),
    };
    let packet = whole.as_slice();
    match parse(packet, &plan, sender) {
        Some(Frame::Arp(request)) => super::frame::arp_reply(request, |_| Some(mac)).is_some(),
        Some(Frame::Discovery(from, Discovery::Neighbour(target))) => {
            !super::discovery::answer(mac, from, target, mac).is_empty()
        }
        Some(Frame::Discovery(..)) => true,
        Some(Frame::Gateway(Input::Udp(_, payload))) => {
            let address = super::dns::Addresses { v4: own, v6: Some(Ipv6Addr::LOCALHOST) };
            super::dhcp::answer(payload, &plan, own, "web").is_some()
                | super::dns::answer(payload, &plan, |_| Some(address), |_| None).is_some()
        }
        Some(Frame::Neighbours { .. }) => {
            super::filter::passes_any_flow(packet.get(super::frame::NETWORK..).unwrap_or_default(), own)
        }
        Some(_) => true,
        None => false,
    }
}
