//! The addresses of a user network, and where they lead on the host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

/// The guest's address. The plan is the one that users of QEMU's user network know.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The gateway, which stands for the host: its services on 127.0.0.1 are found here.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The name server, which stands for the host's.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The network's mask.
pub const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// The gateway's own card: locally administered.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x76, 0x69, 0x76, 0x00, 0x02];
/// The largest packet: connections end here and begin anew on the host, so that a wire's limit is the host's business.
pub const MTU: u16 = 65520;

const DNS_PORT: u16 = 53;

/// Both ends of a flow, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Flow {
    pub(super) guest: SocketAddrV4,
    pub(super) remote: SocketAddrV4,
}

/// Whether `address` is in the guest's own network.
pub(super) fn is_local(address: Ipv4Addr) -> bool {
    address.to_bits() & MASK.to_bits() == GATEWAY.to_bits() & MASK.to_bits()
}

/// Where on the host a guest's packet to `to` goes; nowhere if it may not leave: the host's loopback network is reached
/// by the gateway's address alone, and no router forwards link-local packets (RFC 3927 §7) or those for groups.
pub(super) fn outside(to: SocketAddrV4, resolver: Option<IpAddr>) -> Option<SocketAddr> {
    let address = *to.ip();
    if address == GATEWAY {
        return Some((Ipv4Addr::LOCALHOST, to.port()).into());
    }
    if address == NAME_SERVER {
        return resolver.filter(|_| to.port() == DNS_PORT).map(|resolver| (resolver, DNS_PORT).into());
    }
    let [first, ..] = address.octets();
    let stays =
        is_local(address) || first == 0 || address.is_loopback() || address.is_link_local() || first >= 224;
    (!stays).then_some(SocketAddr::V4(to))
}

/// The address under which the guest sees somebody who comes from outside: the host's own are the gateway's.
pub(super) fn inside(from: SocketAddr) -> Option<SocketAddrV4> {
    match from.ip().to_canonical() {
        IpAddr::V4(address) if address.is_loopback() || is_local(address) => {
            Some(SocketAddrV4::new(GATEWAY, from.port()))
        }
        IpAddr::V4(address) => Some(SocketAddrV4::new(address, from.port())),
        // The guest has no IPv6 yet: the host speaks for them.
        IpAddr::V6(_) => Some(SocketAddrV4::new(GATEWAY, from.port())),
    }
}

/// The first name server of a `resolv.conf` (resolv.conf(5)).
pub(super) fn first_resolver(text: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        let address = words.next()?;
        address.split_once('%').map_or(address, |(address, _)| address).parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> Option<String> {
        outside(text.parse().unwrap(), Some("192.0.2.53".parse().unwrap())).map(|to| to.to_string())
    }

    #[test]
    fn the_gateway_is_the_host_and_its_loopback_is_nobody_elses() {
        assert_eq!(to("10.0.2.2:80").as_deref(), Some("127.0.0.1:80"));
        assert_eq!(to("10.0.2.3:53").as_deref(), Some("192.0.2.53:53"));
        assert_eq!(to("198.51.100.1:443").as_deref(), Some("198.51.100.1:443"));
        for kept in
            ["127.0.0.1:80", "127.1.2.3:80", "0.0.0.0:80", "0.1.2.3:80", "169.254.169.254:80", "224.0.0.1:80"]
        {
            assert_eq!(to(kept), None, "{kept}");
        }
        for kept in ["255.255.255.255:67", "10.0.2.7:80", "10.0.2.255:80", "10.0.2.3:80"] {
            assert_eq!(to(kept), None, "{kept}");
        }
    }

    #[test]
    fn the_resolver_is_the_first_that_is_one() {
        let text =
            "# nameserver 192.0.2.1\nsearch x\nnameserver x\nnameserver fe80::1%eth0\nnameserver 192.0.2.2\n";
        assert_eq!(first_resolver(text), Some("fe80::1".parse().unwrap()));
        assert_eq!(first_resolver("nameserver\n"), None);
    }
}
