//! What a frame from the guest is.

use super::address::{Flow, is_local};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol,
    Ipv4Packet, Ipv4Repr, TcpPacket, TcpRepr, UdpPacket, UdpRepr,
};
use std::net::{Ipv4Addr, SocketAddrV4};
use viv_arch::virtio::net::HEADER_LEN;

/// A frame, as far as we have a use for it.
#[derive(Debug)]
pub(super) enum Input<'a> {
    Arp(&'a [u8]),
    Tcp(Flow, TcpRepr<'a>),
    Udp(Flow, &'a [u8]),
    Icmp(Ipv4Addr, Ipv4Addr, Icmpv4Repr<'a>),
}

/// Takes a packet apart: who sent it, and what it is. Checksums are not looked at: they may be unfinished, and memory
/// does not err.
pub(super) fn parse(packet: &[u8]) -> Option<(EthernetAddress, Input<'_>)> {
    let ignored = ChecksumCapabilities::ignored();
    let frame = EthernetFrame::new_checked(packet.get(HEADER_LEN..)?).ok()?;
    let from = frame.src_addr();
    let payload = frame.payload();
    match frame.ethertype() {
        EthernetProtocol::Arp => return Some((from, Input::Arp(payload))),
        EthernetProtocol::Ipv4 => {}
        _ => return None,
    }
    let packet = Ipv4Packet::new_checked(payload).ok()?;
    let repr = Ipv4Repr::parse(&packet, &ignored).ok()?;
    let (source, dest) = (repr.src_addr, repr.dst_addr);
    let payload = packet.payload();
    // Nobody but a client of DHCP sends without an address, and nobody else's is in this network.
    let flow = |from: u16, to: u16| Flow {
        guest: SocketAddrV4::new(source, from),
        remote: SocketAddrV4::new(dest, to),
    };
    let [src, dst] = [source, dest].map(IpAddress::Ipv4);
    let input = match repr.next_header {
        IpProtocol::Tcp if is_local(source) => {
            let packet = TcpPacket::new_checked(payload).ok()?;
            let repr = TcpRepr::parse(&packet, &src, &dst, &ignored).ok()?;
            Input::Tcp(flow(repr.src_port, repr.dst_port), repr)
        }
        IpProtocol::Udp if is_local(source) || source.is_unspecified() => {
            let packet = UdpPacket::new_checked(payload).ok()?;
            let repr = UdpRepr::parse(&packet, &src, &dst, &ignored).ok()?;
            Input::Udp(flow(repr.src_port, repr.dst_port), packet.payload())
        }
        IpProtocol::Icmp if is_local(source) => {
            let packet = Icmpv4Packet::new_checked(payload).ok()?;
            let repr = Icmpv4Repr::parse(&packet, &ignored).ok()?;
            Input::Icmp(source, dest, repr)
        }
        _ => return None,
    };
    Some((from, input))
}

/// Whether a packet from a guest is one that a user network has a use for; for fuzzing.
pub fn parse_frame(packet: &[u8]) -> bool {
    match parse(packet) {
        Some((_, Input::Arp(request))) => super::frame::arp_reply(request, |_| true).is_some(),
        Some((_, Input::Udp(_, payload))) => super::dhcp::answer(payload).is_some(),
        Some(_) => true,
        None => false,
    }
}
