//! The DHCP server of a network with one guest (RFC 2131): always the same lease.

use super::address::{GATEWAY, GUEST, MASK, MTU, NAME_SERVER};
use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr};
use std::net::Ipv4Addr;

/// Where servers listen.
pub(super) const SERVER_PORT: u16 = 67;
/// Where clients listen.
pub(super) const CLIENT_PORT: u16 = 68;
/// Nobody else wants the address: a day.
const LEASE_S: u32 = 24 * 60 * 60;
/// Least bytes of a message that every client takes (RFC 1542 §2.1).
const MESSAGE_MIN: usize = 300;
/// Option: name servers (RFC 2132 §3.8).
const NAME_SERVERS: u8 = 6;
/// Option: interface MTU (RFC 2132 §5.1).
const INTERFACE_MTU: u8 = 26;

/// The answer to a client's message, if it gets one.
pub(super) fn answer(message: &[u8]) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(message).ok()?;
    let ask = DhcpRepr::parse(&packet).ok()?;
    let for_us = ask.server_identifier.is_none_or(|server| server == GATEWAY);
    let wanted = ask.requested_ip.unwrap_or(ask.client_ip);
    let message_type = match ask.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if !for_us => return None,
        DhcpMessageType::Request if wanted == GUEST => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let gives = message_type != DhcpMessageType::Nak;
    let leases = gives && ask.message_type != DhcpMessageType::Inform;
    let (name_server, mtu) = (NAME_SERVER.octets(), MTU.to_be_bytes());
    let more = [
        DhcpOption { kind: NAME_SERVERS, data: &name_server },
        DhcpOption { kind: INTERFACE_MTU, data: &mtu },
    ];
    let reply = DhcpRepr {
        message_type,
        transaction_id: ask.transaction_id,
        secs: 0,
        client_hardware_address: ask.client_hardware_address,
        client_ip: if gives { ask.client_ip } else { Ipv4Addr::UNSPECIFIED },
        your_ip: if leases { GUEST } else { Ipv4Addr::UNSPECIFIED },
        server_ip: Ipv4Addr::UNSPECIFIED,
        router: gives.then_some(GATEWAY),
        subnet_mask: gives.then_some(MASK),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: ask.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY),
        parameter_request_list: None,
        dns_servers: None,
        max_size: None,
        lease_duration: leases.then_some(LEASE_S),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if gives { &more } else { &[] },
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut DhcpPacket::new_unchecked(bytes.as_mut_slice())).ok()?;
    bytes.resize(bytes.len().max(MESSAGE_MIN), 0);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_taken(message in proptest::collection::vec(any::<u8>(), 0..600)) {
            answer(&message);
        }
    }
}
