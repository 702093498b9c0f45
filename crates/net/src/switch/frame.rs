//! Packets to the guest, and the outer layers of those from it.

use super::address::{Flow, GATEWAY_MAC};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket,
    TcpRepr, UdpPacket, UdpRepr, checksum,
};
use std::net::{Ipv4Addr, SocketAddrV4};
use viv_arch::virtio::net as reg;

const ETHERNET: usize = reg::HEADER_LEN;
/// Where a packet's IP header is.
pub(super) const NETWORK: usize = ETHERNET + 14;
const TRANSPORT: usize = NETWORK + 20;
const HOP_LIMIT: u8 = 64;
/// Where the checksum of a TCP header is (RFC 9293 §3.1).
const TCP_CHECKSUM: usize = 16;
/// Most payload of a datagram to the guest.
pub(super) const DATAGRAM_MAX: usize = super::address::MTU as usize - 28;

fn ethernet(to: EthernetAddress, protocol: EthernetProtocol, len: usize) -> Vec<u8> {
    let mut packet = vec![0; NETWORK + len];
    if let Some(frame) = packet.get_mut(ETHERNET..) {
        let repr = EthernetRepr { src_addr: EthernetAddress(GATEWAY_MAC), dst_addr: to, ethertype: protocol };
        repr.emit(&mut EthernetFrame::new_unchecked(frame));
    }
    packet
}

fn ipv4(to: EthernetAddress, [from, dest]: [Ipv4Addr; 2], protocol: IpProtocol, len: usize) -> Vec<u8> {
    let mut packet = ethernet(to, EthernetProtocol::Ipv4, TRANSPORT - NETWORK + len);
    if let Some(bytes) = packet.get_mut(NETWORK..) {
        let repr = Ipv4Repr {
            src_addr: from,
            dst_addr: dest,
            next_header: protocol,
            payload_len: len,
            hop_limit: HOP_LIMIT,
        };
        repr.emit(&mut Ipv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    }
    packet
}

/// A TCP segment; its checksum is the card's business.
pub(super) fn tcp(to: EthernetAddress, repr: &TcpRepr<'_>, flow: &Flow) -> Vec<u8> {
    let addresses = [*flow.remote.ip(), *flow.guest.ip()];
    let len = repr.buffer_len();
    let mut packet = ipv4(to, addresses, IpProtocol::Tcp, len);
    let [from, dest] = addresses.map(IpAddress::Ipv4);
    if let Some(bytes) = packet.get_mut(TRANSPORT..) {
        let mut segment = TcpPacket::new_unchecked(bytes);
        repr.emit(&mut segment, &from, &dest, &ChecksumCapabilities::ignored());
        // At most DATAGRAM_MAX and a header.
        segment.set_checksum(checksum::pseudo_header(&from, &dest, IpProtocol::Tcp, len as u32));
    }
    let start = (TRANSPORT - ETHERNET) as u16;
    if let Some(header) = packet.first_chunk_mut::<{ reg::HEADER_LEN }>() {
        let [s0, s1] = start.to_le_bytes();
        *header = [reg::HDR_F_NEEDS_CSUM, 0, 0, 0, 0, 0, s0, s1, TCP_CHECKSUM as u8, 0, 0, 0];
    }
    packet
}

/// A datagram of up to [`DATAGRAM_MAX`] bytes.
pub(super) fn udp(to: EthernetAddress, from: SocketAddrV4, dest: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let addresses = [*from.ip(), *dest.ip()];
    let mut packet = ipv4(to, addresses, IpProtocol::Udp, 8 + payload.len());
    let [source, target] = addresses.map(IpAddress::Ipv4);
    if let Some(bytes) = packet.get_mut(TRANSPORT..) {
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

/// An ICMP message.
pub(super) fn icmp(to: EthernetAddress, from: Ipv4Addr, dest: Ipv4Addr, repr: &Icmpv4Repr<'_>) -> Vec<u8> {
    let mut packet = ipv4(to, [from, dest], IpProtocol::Icmp, repr.buffer_len());
    if let Some(bytes) = packet.get_mut(TRANSPORT..) {
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    }
    packet
}

/// Tells the guest that what it sent on `flow` did not get there, and why (RFC 792). `word` follows the ports in its header.
pub(super) fn unreachable(
    to: EthernetAddress,
    gateway: Ipv4Addr,
    flow: &Flow,
    protocol: IpProtocol,
    word: u32,
    reason: Icmpv4DstUnreachable,
) -> Vec<u8> {
    let ([s0, s1], [d0, d1]) = (flow.guest.port().to_be_bytes(), flow.remote.port().to_be_bytes());
    let [w0, w1, w2, w3] = word.to_be_bytes();
    // The first 8 bytes behind its IP header: by ports and sequence number it finds, and believes, what this is about.
    let data = [s0, s1, d0, d1, w0, w1, w2, w3];
    let header = Ipv4Repr {
        src_addr: *flow.guest.ip(),
        dst_addr: *flow.remote.ip(),
        next_header: protocol,
        payload_len: data.len(),
        hop_limit: HOP_LIMIT,
    };
    let repr = Icmpv4Repr::DstUnreachable { reason, header, data: &data };
    icmp(to, gateway, *flow.guest.ip(), &repr)
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
