//! Packets to the guest.

use super::address::{Flow, GATEWAY_MAC, Gateway};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpPacket, TcpRepr, UdpPacket,
    UdpRepr, checksum,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use viv_arch::virtio::net as reg;

const ETHERNET: usize = reg::HEADER_LEN;
/// Where a packet's IP header is.
pub(super) const NETWORK: usize = ETHERNET + 14;
const HOP_LIMIT: u8 = 64;
/// Neighbours, and nobody else, send with this one (RFC 4861 §3.1).
const HOP_LIMIT_NEIGHBOUR: u8 = 255;
/// Where the checksum of a TCP header is (RFC 9293 §3.1).
const TCP_CHECKSUM: usize = 16;
/// Most payload of a datagram to the guest, of either version.
pub(super) const DATAGRAM_MAX: usize = super::address::MTU as usize - 48;

/// Why a packet did not get there (RFC 792, RFC 4443 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Reason {
    /// The code in ICMP, and in ICMPv6.
    fn codes(self) -> (u8, u8) {
        match self {
            Reason::Network => (0, 0),
            Reason::Host => (1, 3),
            Reason::Port => (3, 4),
            Reason::Prohibited => (13, 1),
        }
    }
}

fn ethernet(to: EthernetAddress, protocol: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut packet = vec![0; NETWORK + len];
    if let Some(frame) = packet.get_mut(ETHERNET..) {
        let repr = EthernetRepr { src_addr: EthernetAddress(GATEWAY_MAC), dst_addr: to, ethertype: protocol };
        repr.emit(&mut EthernetFrame::new_unchecked(frame));
    }
    packet
}

/// Writes the header of an IP packet of `len` bytes; gives the header's length.
fn ip_header(
    bytes: &mut [u8],
    ends: [IpAddr; 2],
    protocol: IpProtocol,
    payload_len: usize,
    hop_limit: u8,
) -> usize {
    match ends {
        [IpAddr::V4(src_addr), IpAddr::V4(dst_addr)] => {
            let repr = Ipv4Repr { src_addr, dst_addr, next_header: protocol, payload_len, hop_limit };
            repr.emit(&mut Ipv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
            repr.buffer_len()
        }
        // Ends of two versions there are none: flows have one.
        _ => {
            let [src_addr, dst_addr] = ends.map(wide);
            let repr = Ipv6Repr { src_addr, dst_addr, next_header: protocol, payload_len, hop_limit };
            repr.emit(&mut Ipv6Packet::new_unchecked(bytes));
            repr.buffer_len()
        }
    }
}

fn wide(address: IpAddr) -> std::net::Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

fn header_len(ends: [IpAddr; 2]) -> usize {
    if ends.iter().all(IpAddr::is_ipv4) { 20 } else { 40 }
}

/// A packet with room for `len` bytes behind its IP header, and where they begin.
fn ip(
    to: EthernetAddress,
    ends: [IpAddr; 2],
    protocol: IpProtocol,
    len: usize,
    hop_limit: u8,
) -> (Vec<u8>, usize) {
    let kind = match ends {
        [IpAddr::V4(_), IpAddr::V4(_)] => EthernetProtocol::Ipv4,
        _ => EthernetProtocol::Ipv6,
    };
    let mut packet = ethernet(to, kind, header_len(ends) + len);
    let bytes = packet.get_mut(NETWORK..).unwrap_or_default();
    let transport = NETWORK + ip_header(bytes, ends, protocol, len, hop_limit);
    (packet, transport)
}

/// A TCP segment; its checksum is the card's business.
pub(super) fn tcp(to: EthernetAddress, repr: &TcpRepr<'_>, flow: &Flow) -> Vec<u8> {
    let ends = [flow.remote.ip(), flow.guest.ip()];
    let len = repr.buffer_len();
    let (mut packet, transport) = ip(to, ends, IpProtocol::Tcp, len, HOP_LIMIT);
    let [from, dest] = ends.map(IpAddress::from);
    if let Some(bytes) = packet.get_mut(transport..) {
        let mut segment = TcpPacket::new_unchecked(bytes);
        repr.emit(&mut segment, &from, &dest, &ChecksumCapabilities::ignored());
        // At most DATAGRAM_MAX and a header.
        segment.set_checksum(checksum::pseudo_header(&from, &dest, IpProtocol::Tcp, len as u32));
    }
    let start = (transport - ETHERNET) as u16;
    if let Some(header) = packet.first_chunk_mut::<{ reg::HEADER_LEN }>() {
        let [s0, s1] = start.to_le_bytes();
        *header = [reg::HDR_F_NEEDS_CSUM, 0, 0, 0, 0, 0, s0, s1, TCP_CHECKSUM as u8, 0, 0, 0];
    }
    packet
}

/// A datagram of up to [`DATAGRAM_MAX`] bytes.
pub(super) fn udp(to: EthernetAddress, from: SocketAddr, dest: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let ends = [from.ip(), dest.ip()];
    let (mut packet, transport) = ip(to, ends, IpProtocol::Udp, 8 + payload.len(), HOP_LIMIT);
    let [source, target] = ends.map(IpAddress::from);
    if let Some(bytes) = packet.get_mut(transport..) {
        UdpRepr { src_port: from.port(), dst_port: dest.port() }.emit(
            &mut UdpPacket::new_unchecked(bytes),
            &source,
            &target,
            payload.len(),
            |room| room.copy_from_slice(payload),
            &ChecksumCapabilities::default(),
        );
    }
    packet
}

/// An ICMP message, or one of ICMPv6, whose checksum is still to be computed (RFC 792, RFC 4443 §2.3).
fn icmp(to: EthernetAddress, ends: [IpAddr; 2], message: &[u8], hop_limit: u8) -> Vec<u8> {
    let (protocol, pseudo) = match ends {
        [IpAddr::V4(_), IpAddr::V4(_)] => (IpProtocol::Icmp, 0),
        _ => {
            let [from, dest] = ends.map(wide).map(IpAddress::Ipv6);
            // At most a packet.
            let len = message.len() as u32;
            (IpProtocol::Icmpv6, checksum::pseudo_header(&from, &dest, IpProtocol::Icmpv6, len))
        }
    };
    let (mut packet, transport) = ip(to, ends, protocol, message.len(), hop_limit);
    let sum = !checksum::combine(&[pseudo, checksum::data(message)]);
    if let Some(bytes) = packet.get_mut(transport..) {
        bytes.copy_from_slice(message);
        if let Some(field) = bytes.get_mut(2..4) {
            field.copy_from_slice(&sum.to_be_bytes());
        }
    }
    packet
}

/// A message of a neighbour to a neighbour: of ICMPv6, its checksum is still to be computed.
pub(super) fn neighbourly(to: EthernetAddress, from: IpAddr, dest: IpAddr, message: &[u8]) -> Vec<u8> {
    icmp(to, [from, dest], message, HOP_LIMIT_NEIGHBOUR)
}

/// The answer to an echo request.
pub(super) fn echo_reply(
    to: EthernetAddress,
    [from, dest]: [IpAddr; 2],
    ident: u16,
    sequence: u16,
    data: &[u8],
) -> Vec<u8> {
    let message = echo(ECHO_REPLY, from.is_ipv4(), ident, sequence, data);
    icmp(to, [from, dest], &message, HOP_LIMIT)
}

/// The types of an echo request and of its reply: of ICMP, and of ICMPv6 (RFC 4443 §4).
pub(super) const ECHO_REQUEST: (u8, u8) = (8, 128);
pub(super) const ECHO_REPLY: (u8, u8) = (0, 129);

/// An echo message without a checksum.
pub(super) fn echo(kind: (u8, u8), is_v4: bool, ident: u16, sequence: u16, data: &[u8]) -> Vec<u8> {
    let kind = if is_v4 { kind.0 } else { kind.1 };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(ident.to_be_bytes());
    message.extend(sequence.to_be_bytes());
    message.extend(data.get(..data.len().min(DATAGRAM_MAX)).unwrap_or_default());
    message
}

/// Tells the guest that what it sent on `flow` did not get there, and why. `word` follows the ports in its header.
pub(super) fn unreachable(
    to: EthernetAddress,
    gateway: Gateway,
    flow: &Flow,
    protocol: IpProtocol,
    word: u32,
    reason: Reason,
) -> Vec<u8> {
    let ends = [flow.guest.ip(), flow.remote.ip()];
    let (v4, v6) = reason.codes();
    let (from, kind): (IpAddr, [u8; 2]) = match flow.guest {
        SocketAddr::V4(_) => (gateway.v4.into(), [3, v4]),
        SocketAddr::V6(_) => (gateway.v6.into(), [1, v6]),
    };
    let header = header_len(ends);
    // Its IP header, and the first 8 bytes behind: by ports and sequence number it finds, and believes, what this is about.
    let mut message = vec![0; 8 + header];
    ip_header(message.get_mut(8..).unwrap_or_default(), ends, protocol, 8, HOP_LIMIT);
    if let Some(first) = message.first_chunk_mut::<2>() {
        *first = kind;
    }
    message.extend(flow.guest.port().to_be_bytes());
    message.extend(flow.remote.port().to_be_bytes());
    message.extend(word.to_be_bytes());
    icmp(to, [from, flow.guest.ip()], &message, HOP_LIMIT)
}

fn arp(from: EthernetAddress, to: EthernetAddress, repr: &ArpRepr) -> Option<Vec<u8>> {
    let mut packet = ethernet(to, EthernetProtocol::Arp, repr.buffer_len());
    EthernetFrame::new_unchecked(packet.get_mut(ETHERNET..)?).set_src_addr(from);
    repr.emit(&mut ArpPacket::new_unchecked(packet.get_mut(NETWORK..)?));
    Some(packet)
}

/// The answer to an ARP request for an address that somebody has (RFC 826): `owner` says who.
pub(super) fn arp_reply(
    request: &[u8],
    owner: impl Fn(Ipv4Addr) -> Option<EthernetAddress>,
) -> Option<Vec<u8>> {
    let repr = ArpRepr::parse(&ArpPacket::new_checked(request).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = repr
    else {
        return None;
    };
    let owner = owner(target_protocol_addr)?;
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: owner,
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    arp(owner, source_hardware_addr, &reply)
}

/// Tells `to` that `owner` has `address` now (RFC 5227 §3).
pub(super) fn arp_announcement(
    to: EthernetAddress,
    owner: EthernetAddress,
    address: Ipv4Addr,
) -> Option<Vec<u8>> {
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: owner,
        source_protocol_addr: address,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: address,
    };
    arp(owner, to, &repr)
}
