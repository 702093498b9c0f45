//! The addresses of a network, and where they lead on the host.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use viv_model::{NetworkSpec, Subnet};

/// The name server's address in every network, beside the network's own: guests that ask for no name server know it.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The gateway's own card: locally administered.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x76, 0x69, 0x76, 0x00, 0x02];
/// The largest packet: connections end here and begin anew on the host, so that a wire's limit is the host's business.
pub const MTU: u16 = 65520;

/// Where name servers listen (RFC 1035 §4.2).
pub(super) const DNS_PORT: u16 = 53;

/// Both ends of a flow, as the guest sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Flow {
    pub(super) guest: SocketAddrV4,
    pub(super) remote: SocketAddrV4,
}

/// Where packets to an address go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To this address, by a socket of the host.
    Out(SocketAddr),
    /// Nobody is there.
    Nobody,
    /// Nobody listens there.
    Closed,
    /// It may not be reached from here.
    Forbidden,
}

/// What a network knows of its addresses.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) subnet: Subnet,
    /// Stands for the host: its services on 127.0.0.1 are found here, if the network reaches it.
    pub(super) gateway: Ipv4Addr,
    /// Stands for the host's name server, and knows the VMs.
    pub(super) name_server: Ipv4Addr,
    pub(super) isolated: bool,
    host: bool,
    resolver: Option<SocketAddr>,
}

impl Plan {
    pub(super) fn new(spec: &NetworkSpec, resolver: Option<SocketAddr>) -> Plan {
        Plan {
            name: spec.name.clone(),
            subnet: spec.subnet,
            gateway: spec.subnet.gateway(),
            name_server: spec.subnet.name_server(),
            isolated: spec.isolated,
            host: spec.host,
            resolver: resolver.filter(|_| !spec.isolated),
        }
    }

    /// Whether `address` is the name server's.
    pub(super) fn is_name_server(&self, address: Ipv4Addr) -> bool {
        address == self.name_server || address == NAME_SERVER && !self.subnet.contains(address)
    }

    /// Whether we answer for `address`.
    pub(super) fn is_ours(&self, address: Ipv4Addr) -> bool {
        address == self.gateway || self.is_name_server(address)
    }

    /// Whether a packet to `address` is for all, or some, of the network.
    pub(super) fn is_group(&self, address: Ipv4Addr) -> bool {
        address.is_multicast() || address.is_broadcast() || address == self.subnet.broadcast()
    }

    /// Where on the host a guest's packet to `to` goes: the host's loopback network is reached by the gateway's address
    /// alone, and no router forwards link-local packets (RFC 3927 §7) or those for groups.
    pub(super) fn outside(&self, to: SocketAddrV4) -> Way {
        let address = *to.ip();
        if address == self.gateway {
            return match self.host {
                true => Way::Out((Ipv4Addr::LOCALHOST, to.port()).into()),
                false => Way::Closed,
            };
        }
        if self.is_name_server(address) {
            return match self.resolver {
                Some(resolver) if to.port() == DNS_PORT => Way::Out(resolver),
                _ => Way::Closed,
            };
        }
        if self.subnet.contains(address) {
            return Way::Nobody;
        }
        let [first, ..] = address.octets();
        let stays = first == 0 || address.is_loopback() || address.is_link_local() || first >= 224;
        if stays || self.isolated || !self.host && is_of_host(address) {
            return Way::Forbidden;
        }
        Way::Out(SocketAddr::V4(to))
    }

    /// The address under which the guest sees somebody who comes from outside: the host's own are the gateway's.
    pub(super) fn inside(&self, from: SocketAddr) -> SocketAddrV4 {
        match from.ip().to_canonical() {
            IpAddr::V4(address) if !address.is_loopback() && !self.subnet.contains(address) => {
                SocketAddrV4::new(address, from.port())
            }
            // The guest has no IPv6 yet: the host speaks for them.
            _ => SocketAddrV4::new(self.gateway, from.port()),
        }
    }
}

/// Whether the host itself has the address: then, and only then, it is the one that the host's kernel would send from
/// to it (ip-route(8), table local). Nothing is sent.
fn is_of_host(address: Ipv4Addr) -> bool {
    let from = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((address, DNS_PORT))?;
        socket.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
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

    fn plan(isolated: bool, host: bool) -> Plan {
        let spec = NetworkSpec { isolated, ..NetworkSpec::user(host) };
        Plan::new(&spec, Some("192.0.2.53:53".parse().unwrap()))
    }

    fn out(to: &str) -> Way {
        Way::Out(to.parse().unwrap())
    }

    #[test]
    fn the_gateway_is_the_host_and_its_loopback_is_nobody_elses() {
        let to = |text: &str| plan(false, true).outside(text.parse().unwrap());
        assert_eq!(to("10.0.2.2:80"), out("127.0.0.1:80"));
        assert_eq!(to("10.0.2.3:53"), out("192.0.2.53:53"));
        assert_eq!(to("198.51.100.1:443"), out("198.51.100.1:443"));
        assert_eq!(to("10.0.2.7:80"), Way::Nobody);
        assert_eq!(to("10.0.2.255:80"), Way::Nobody);
        assert_eq!(to("10.0.2.3:80"), Way::Closed);
        for kept in
            ["127.0.0.1:80", "127.1.2.3:80", "0.0.0.0:80", "0.1.2.3:80", "169.254.169.254:80", "224.0.0.1:80"]
        {
            assert_eq!(to(kept), Way::Forbidden, "{kept}");
        }
        assert_eq!(to("255.255.255.255:67"), Way::Forbidden);
    }

    #[test]
    fn a_network_that_reaches_not_the_host_reaches_none_of_its_addresses() {
        let plan = plan(false, false);
        assert_eq!(plan.outside("10.0.2.2:80".parse().unwrap()), Way::Closed);
        assert_eq!(plan.outside("10.0.2.3:53".parse().unwrap()), out("192.0.2.53:53"));
        assert!(is_of_host(Ipv4Addr::LOCALHOST) && !is_of_host(Ipv4Addr::new(198, 51, 100, 1)));
        // Whatever address this host has towards the outside.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("198.51.100.1:53").is_ok()
            && let IpAddr::V4(own) = socket.local_addr().unwrap().ip()
        {
            assert_eq!(plan.outside(SocketAddrV4::new(own, 80)), Way::Forbidden, "{own}");
        }
    }

    #[test]
    fn an_isolated_network_leads_nowhere() {
        let plan = plan(true, false);
        for to in ["10.0.2.2:80", "10.0.2.3:53"] {
            assert_eq!(plan.outside(to.parse().unwrap()), Way::Closed, "{to}");
        }
        assert_eq!(plan.outside("198.51.100.1:443".parse().unwrap()), Way::Forbidden);
    }

    #[test]
    fn every_network_has_the_well_known_name_server() {
        let subnet = "10.0.0.0/16".parse().unwrap();
        let large = Plan::new(&NetworkSpec { subnet, ..NetworkSpec::user(false) }, None);
        assert!(!large.is_name_server(NAME_SERVER), "there it may be a VM");
        let subnet = "10.9.0.0/16".parse().unwrap();
        let other = Plan::new(&NetworkSpec { subnet, ..NetworkSpec::user(false) }, None);
        assert!(other.is_name_server(NAME_SERVER) && other.is_name_server("10.9.0.3".parse().unwrap()));
    }

    #[test]
    fn the_resolver_is_the_first_that_is_one() {
        let text =
            "# nameserver 192.0.2.1\nsearch x\nnameserver x\nnameserver fe80::1%eth0\nnameserver 192.0.2.2\n";
        assert_eq!(first_resolver(text), Some("fe80::1".parse().unwrap()));
        assert_eq!(first_resolver("nameserver\n"), None);
    }
}
