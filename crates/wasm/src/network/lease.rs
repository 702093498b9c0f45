//! What addresses a card has: asked of the switch by DHCP, as guests do (RFC 2131).
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr,
    IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};
use viv_net::port::{Message, NetPort, SocketPort};

/// Bytes before a frame (virtio 1.3 §5.1.6).
const HEADER: usize = 12;
/// Where servers and clients of DHCP listen.
const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// What our question is known by.
const QUESTION: u32 = 0x7669_7677;
/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The addresses of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) mask: Ipv4Addr,
    /// None where nothing leads out.
    pub(super) router: Option<Ipv4Addr>,
    pub(super) name_server: Option<Ipv4Addr>,
}

/// Asks at this port, for the card with this address.
pub(super) fn ask(port: &SocketPort, mac: [u8; 6]) -> io::Result<Lease> {
    port.send_one(&question(mac))?;
    let deadline = Instant::now() + PATIENCE;
    let mut message = Message::default();
    loop {
        if port.receive(&mut message)? {
            while let Some(packet) = message.front() {
                if let Some(lease) = packet.get(HEADER..).and_then(answer) {
                    return Ok(lease);
                }
                message.pop();
            }
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: left.as_nanos().clamp(1, 999_999_999) as i64 };
        let _ = poll(&mut [PollFd::from_borrowed_fd(port.descriptor(), PollFlags::IN)], Some(&timeout));
    }
}

/// The packet that asks.
fn question(mac: [u8; 6]) -> Vec<u8> {
    let own = EthernetAddress(mac);
    let dhcp = DhcpRepr {
        message_type: DhcpMessageType::Discover,
        transaction_id: QUESTION,
        secs: 0,
        client_hardware_address: own,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: Ipv4Addr::UNSPECIFIED,
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: None,
        subnet_mask: None,
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: true,
        requested_ip: None,
        client_identifier: Some(own),
        server_identifier: None,
        parameter_request_list: Some(&[1, 3, 6]),
        dns_servers: None,
        max_size: None,
        lease_duration: None,
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    let udp = UdpRepr { src_port: CLIENT, dst_port: SERVER };
    let ip = Ipv4Repr {
        src_addr: Ipv4Addr::UNSPECIFIED,
        dst_addr: Ipv4Addr::BROADCAST,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + dhcp.buffer_len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: own,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Ipv4,
    };
    let checksums = ChecksumCapabilities::default();
    let mut packet = vec![0; HEADER + ethernet.buffer_len() + ip.buffer_len() + ip.payload_len];
    let mut frame = EthernetFrame::new_unchecked(packet.get_mut(HEADER..).unwrap_or_default());
    ethernet.emit(&mut frame);
    let mut datagram = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut datagram, &checksums);
    let mut inner = UdpPacket::new_unchecked(datagram.payload_mut());
    let emit = |payload: &mut [u8]| {
        let _ = dhcp.emit(&mut DhcpPacket::new_unchecked(payload)); // it has the room that it says it takes
    };
    udp.emit(&mut inner, &ip.src_addr.into(), &ip.dst_addr.into(), dhcp.buffer_len(), emit, &checksums);
    packet
}

/// What a frame says, if it is the answer.
fn answer(frame: &[u8]) -> Option<Lease> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if packet.next_header() != IpProtocol::Udp {
        return None;
    }
    let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
    if datagram.dst_port() != CLIENT {
        return None;
    }
    let dhcp = DhcpPacket::new_checked(datagram.payload()).ok()?;
    let told = DhcpRepr::parse(&dhcp).ok()?;
    if told.message_type != DhcpMessageType::Offer || told.transaction_id != QUESTION {
        return None;
    }
    let name_server = told.dns_servers.and_then(|servers| servers.first().copied());
    Some(Lease { address: told.your_ip, mask: told.subnet_mask?, router: told.router, name_server })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_a_packet_that_the_switch_understands_and_what_is_no_answer_is_passed_over() {
        let packet = question([2, 0, 0, 0, 0, 7]);
        let frame = EthernetFrame::new_checked(&packet[HEADER..]).unwrap();
        let ip = Ipv4Packet::new_checked(frame.payload()).unwrap();
        assert!(ip.verify_checksum());
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        let asked = DhcpPacket::new_checked(udp.payload()).unwrap();
        let dhcp = DhcpRepr::parse(&asked).unwrap();
        assert_eq!((dhcp.message_type, dhcp.transaction_id), (DhcpMessageType::Discover, QUESTION));
        assert_eq!(answer(&packet[HEADER..]), None);
        for length in 0..packet.len() {
            assert_eq!(answer(&packet[..length]), None);
        }
    }
}
