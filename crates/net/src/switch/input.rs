//! What a frame from the guest is.

use super::address::{Flow, Plan};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol,
    Ipv4Packet, Ipv4Repr, TcpPacket, TcpRepr, UdpPacket, UdpRepr,
};
use std::net::{Ipv4Addr, SocketAddrV4};
use viv_arch::virtio::net::HEADER_LEN;

/// Where an IPv4 header has its length (RFC 791 §3.1), in words: more than this is options.
const HEADER_WORDS: u8 = 5;

/// A frame whose sender has been looked at: it is the port's own.
#[derive(Debug)]
pub(super) enum Frame<'a> {
    /// Address resolution, to be answered by us.
    Arp(&'a [u8]),
    /// Something for the network itself, or for the outside.
    Gateway(Input<'a>),
    /// For one of the other ports, or for all of them.
    Neighbours {
        /// Its card.
        to: EthernetAddress,
        /// Its guest.
        address: Ipv4Addr,
    },
}

/// A packet for us, as far as we have a use for it.
#[derive(Debug)]
pub(super) enum Input<'a> {
    Tcp(Flow, TcpRepr<'a>),
    Udp(Flow, &'a [u8]),
    Icmp(Ipv4Addr, Ipv4Addr, Icmpv4Repr<'a>),
}

/// Takes a packet from a port apart that belongs to this card and address. One with another sender, in any of its
/// headers, is nothing; so is what could hide one: fragments, options (source routes), other protocols. Checksums are
/// not looked at: they may be unfinished, and memory does not err.
pub(super) fn parse<'a>(
    packet: &'a [u8],
    plan: &Plan,
    mac: EthernetAddress,
    own: Ipv4Addr,
) -> Option<Frame<'a>> {
    let frame = EthernetFrame::new_checked(packet.get(HEADER_LEN..)?).ok()?;
    if frame.src_addr() != mac {
        return None;
    }
    let payload = frame.payload();
    match frame.ethertype() {
        // Everybody's addresses are known: requests are answered from that, and replies nobody needs.
        EthernetProtocol::Arp => return Some(Frame::Arp(payload)),
        EthernetProtocol::Ipv4 => {}
        _ => return None,
    }
    let packet = Ipv4Packet::new_checked(payload).ok()?;
    let repr = Ipv4Repr::parse(&packet, &ChecksumCapabilities::ignored()).ok()?;
    if packet.header_len() / 4 > HEADER_WORDS || packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let dest = repr.dst_addr;
    let udp_ports =
        |payload| UdpPacket::new_checked(payload).ok().map(|udp| (udp.src_port(), udp.dst_port()));
    let ports = (repr.next_header == IpProtocol::Udp).then(|| udp_ports(packet.payload())).flatten();
    // Nobody but a client of DHCP sends without an address.
    let asks = matches!(ports, Some((_, super::dhcp::SERVER_PORT)));
    if repr.src_addr != own && !(asks && repr.src_addr.is_unspecified()) {
        return None;
    }
    // There is one DHCP server here.
    if matches!(ports, Some((super::dhcp::SERVER_PORT, _) | (_, super::dhcp::CLIENT_PORT))) {
        return None;
    }
    let to = frame.dst_addr();
    let ours = to.0 == super::address::GATEWAY_MAC;
    if asks || ours && !plan.is_group(dest) {
        return input(&repr, packet.payload()).map(Frame::Gateway);
    }
    (!ours).then_some(Frame::Neighbours { to, address: dest })
}

fn input<'a>(repr: &Ipv4Repr, payload: &'a [u8]) -> Option<Input<'a>> {
    let ignored = ChecksumCapabilities::ignored();
    let (source, dest) = (repr.src_addr, repr.dst_addr);
    let flow = |from: u16, to: u16| Flow {
        guest: SocketAddrV4::new(source, from),
        remote: SocketAddrV4::new(dest, to),
    };
    let [src, dst] = [source, dest].map(IpAddress::Ipv4);
    Some(match repr.next_header {
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
        IpProtocol::Icmp => {
            let packet = Icmpv4Packet::new_checked(payload).ok()?;
            let repr = Icmpv4Repr::parse(&packet, &ignored).ok()?;
            Input::Icmp(source, dest, repr)
        }
        _ => return None,
    })
}

/// Whether a packet from a guest is one that a network has a use for; for fuzzing.
pub fn parse_frame(packet: &[u8]) -> bool {
    let plan = Plan::new(&viv_model::NetworkSpec::user(true), None);
    let (mac, own) = (EthernetAddress([2, 0, 0, 0, 0, 1]), Ipv4Addr::new(10, 0, 2, 15));
    match parse(packet, &plan, mac, own) {
        Some(Frame::Arp(request)) => super::frame::arp_reply(request, |_| Some(mac)).is_some(),
        Some(Frame::Gateway(Input::Udp(_, payload))) => {
            super::dhcp::answer(payload, &plan, own, "web").is_some()
                | super::dns::answer(payload, &plan, |_| Some(own), |_| None).is_some()
        }
        Some(Frame::Neighbours { address, .. }) => {
            super::filter::passes_any_flow(packet.get(super::frame::NETWORK..).unwrap_or_default(), address)
        }
        Some(_) => true,
        None => false,
    }
}
