//! Neighbours of IPv6 (RFC 4861): who has an address, where the router is, which addresses there are. All that is
//! answered here, from what is known of the ports; what guests say of it to one another is never passed on.

use super::address::{GATEWAY_MAC, MTU, Plan, ROUTER};
use super::frame;
use smoltcp::wire::EthernetAddress;
use std::net::{IpAddr, Ipv6Addr};

/// Types of messages (RFC 4861 §4).
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// From the first to the last message of multicast listeners (RFC 2710 §3), and of their second version (RFC 3810 §5.2).
const LISTENERS: std::ops::RangeInclusive<u8> = 130..=132;
const LISTENERS_2: u8 = 143;
/// Options: the card that sends, and the one that is asked for (RFC 4861 §4.6.1).
const SOURCE_CARD: u8 = 1;
const TARGET_CARD: u8 = 2;
/// Option: a prefix (RFC 4861 §4.6.2), which is on the link, and of which guests make their addresses (RFC 4862).
const PREFIX: u8 = 3;
const ON_LINK_AUTONOMOUS: u8 = 0xc0;
/// Option: MTU (RFC 4861 §4.6.4).
const LINK_MTU: u8 = 5;
/// Options: name servers and the domain (RFC 8106 §5).
const NAME_SERVERS: u8 = 25;
const DOMAIN: u8 = 31;
/// How long what is advertised holds, in seconds: much longer than [`AGAIN_S`], so that no advertisement is missed.
const ROUTER_LIFETIME_S: u16 = 1800;
const LIFETIME_S: u32 = 86400;
/// How often it is advertised.
pub(super) const AGAIN_S: u64 = 450;
/// All nodes of the link (RFC 4291 §2.7.1).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Flags of an advertisement: from a router, asked for, and to be believed rather than what was known (RFC 4861 §4.4).
const FROM_ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// What a guest says of neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Discovery {
    /// Is there a router?
    Router,
    /// Who has this address?
    Neighbour(Ipv6Addr),
    /// Something that needs no answer, or that it may not say.
    Nothing,
}

impl Discovery {
    /// What an ICMPv6 message is, if it is about neighbours.
    pub(super) fn parse(message: &[u8], hop_limit: u8) -> Option<Discovery> {
        let kind = *message.first()?;
        Some(match kind {
            ROUTER_SOLICITATION => Discovery::Router,
            NEIGHBOUR_SOLICITATION if hop_limit == u8::MAX => {
                let target = message.get(8..24).and_then(|target| target.first_chunk::<16>());
                target.map_or(Discovery::Nothing, |target| Discovery::Neighbour(Ipv6Addr::from(*target)))
            }
            ROUTER_ADVERTISEMENT..=REDIRECT | LISTENERS_2 => Discovery::Nothing,
            kind if LISTENERS.contains(&kind) => Discovery::Nothing,
            _ => return None,
        })
    }
}

/// An advertisement of the router, its prefix and its name server, to one guest.
pub(super) fn router_advertisement(plan: &Plan, to: EthernetAddress) -> Vec<u8> {
    let lifetime = if plan.leads_out6() { ROUTER_LIFETIME_S } else { 0 };
    let mut message = vec![ROUTER_ADVERTISEMENT, 0, 0, 0, 64, 0];
    message.extend(lifetime.to_be_bytes());
    message.extend([0; 8]);
    message.extend([SOURCE_CARD, 1]);
    message.extend(GATEWAY_MAC);
    message.extend([LINK_MTU, 1, 0, 0]);
    message.extend(u32::from(MTU).to_be_bytes());
    message.extend([PREFIX, 4, 64, ON_LINK_AUTONOMOUS]);
    message.extend(LIFETIME_S.to_be_bytes());
    message.extend(LIFETIME_S.to_be_bytes());
    message.extend([0; 4]);
    message.extend(plan.subnet.prefix6().octets());
    message.extend([NAME_SERVERS, 3, 0, 0]);
    message.extend(LIFETIME_S.to_be_bytes());
    message.extend(plan.name_server6.octets());
    let mut domain = super::dns::labels(&super::dns::zone(&plan.name)).unwrap_or_default();
    domain.resize(domain.len().next_multiple_of(8), 0);
    // A network's name is a label of a domain name.
    message.extend([DOMAIN, (1 + domain.len() / 8) as u8, 0, 0]);
    message.extend(LIFETIME_S.to_be_bytes());
    message.extend(domain);
    frame::neighbourly(to, ROUTER.into(), ALL_NODES.into(), &message)
}

fn neighbour_advertisement(flags: u8, target: Ipv6Addr, owner: EthernetAddress) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0];
    message.extend(target.octets());
    message.extend([TARGET_CARD, 1]);
    message.extend(owner.as_bytes());
    message
}

/// The answer to the guest at `to`, whose address is `asker`, that asked who has `target`. One that asks without an
/// address wants to have it: the answer says that it is taken (RFC 4862 §5.4).
pub(super) fn answer(
    to: EthernetAddress,
    asker: Ipv6Addr,
    target: Ipv6Addr,
    owner: EthernetAddress,
) -> Vec<u8> {
    let router = if owner.0 == GATEWAY_MAC { FROM_ROUTER } else { 0 };
    let (flags, dest) = match asker.is_unspecified() {
        true => (router | OVERRIDE, ALL_NODES),
        false => (router | SOLICITED | OVERRIDE, asker),
    };
    let message = neighbour_advertisement(flags, target, owner);
    frame::neighbourly(to, target.into(), dest.into(), &message)
}

/// Tells the guest at `to` that `owner` has `address` now (RFC 4861 §7.2.6).
pub(super) fn announcement(to: EthernetAddress, owner: EthernetAddress, address: Ipv6Addr) -> Vec<u8> {
    let message = neighbour_advertisement(OVERRIDE, address, owner);
    frame::neighbourly(to, address.into(), ALL_NODES.into(), &message)
}

/// Asks the guest at `to` whether it has `address`: what it answers tells that it does.
pub(super) fn question(to: EthernetAddress, address: Ipv6Addr) -> Vec<u8> {
    let mut message = vec![NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0];
    message.extend(address.octets());
    message.extend([SOURCE_CARD, 1]);
    message.extend(GATEWAY_MAC);
    frame::neighbourly(to, IpAddr::from(ROUTER), address.into(), &message)
}
