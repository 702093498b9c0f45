//! The DHCP server of a network (RFC 2131): each port has its lease, always the same.

use super::address::{MTU, Plan};
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
/// Option: the VM's name (RFC 2132 §3.14).
const HOST_NAME: u8 = 12;
/// Option: the domain of its network (RFC 2132 §3.17).
const DOMAIN_NAME: u8 = 15;
/// Option: interface MTU (RFC 2132 §5.1).
const INTERFACE_MTU: u8 = 26;

/// The answer to a message from the client whose address is `guest`, if it gets one.
pub(super) fn answer(message: &[u8], plan: &Plan, guest: Ipv4Addr, name: &str) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(message).ok()?;
    let ask = DhcpRepr::parse(&packet).ok()?;
    let for_us = ask.server_identifier.is_none_or(|server| server == plan.gateway.v4);
    let wanted = ask.requested_ip.unwrap_or(ask.client_ip);
    let message_type = match ask.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if !for_us => return None,
        DhcpMessageType::Request if wanted == guest => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let gives = message_type != DhcpMessageType::Nak;
    let leases = gives && ask.message_type != DhcpMessageType::Inform;
    let (name_server, mtu) = (plan.name_server.octets(), MTU.to_be_bytes());
    let domain = super::dns::zone(&plan.name);
    let more = [
        DhcpOption { kind: NAME_SERVERS, data: &name_server },
        DhcpOption { kind: INTERFACE_MTU, data: &mtu },
        DhcpOption { kind: DOMAIN_NAME, data: domain.as_bytes() },
        DhcpOption { kind: HOST_NAME, data: name.as_bytes() },
    ];
    let reply = DhcpRepr {
        message_type,
        transaction_id: ask.transaction_id,
        secs: 0,
        client_hardware_address: ask.client_hardware_address,
        client_ip: if gives { ask.client_ip } else { Ipv4Addr::UNSPECIFIED },
        your_ip: if leases { guest } else { Ipv4Addr::UNSPECIFIED },
        server_ip: Ipv4Addr::UNSPECIFIED,
        // An isolated network leads nowhere: a guest with other cards goes by those.
        router: (gives && !plan.isolated).then_some(plan.gateway.v4),
        subnet_mask: gives.then_some(plan.subnet.mask()),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: ask.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(plan.gateway.v4),
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
            let plan = Plan::new(&viv_model::NetworkSpec::user(false), None);
            answer(&message, &plan, Ipv4Addr::new(10, 0, 2, 15), "web");
        }
    }
}
