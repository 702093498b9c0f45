//! The addresses of a network, and where they lead on the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use viv_model::{NetworkSpec, Subnet};

/// The name server's address in every network, beside the network's own: guests that ask for no name server know it.
pub const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The gateway's own card: locally administered.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x76, 0x69, 0x76, 0x00, 0x02];
/// The largest packet: connections end here and begin anew on the host, so that a wire's limit is the host's business.
pub const MTU: u16 = 65520;

/// The gateway's address on the link, from which routers speak (RFC 4861 §6.1.2): its card's (RFC 4291, appendix A).
pub(super) const ROUTER: Ipv6Addr = interface(LINK_LOCAL, GATEWAY_MAC);
/// Where link-local addresses begin (RFC 4291 §2.5.6).
pub(super) const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);
/// Somewhere outside: the first of all global addresses (RFC 4291 §2.5.4).
const OUTSIDE6: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);

/// The address that a card gives itself below a prefix of 64 bits (RFC 4291, appendix A).
pub const fn interface(prefix: Ipv6Addr, mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let identifier = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    Ipv6Addr::from_bits(prefix.to_bits() >> 64 << 64 | identifier as u128)
}

/// The card that gives itself such an address.
pub(super) fn card_of(address: Ipv6Addr) -> Option<[u8; 6]> {
    let [.., a, b, c, 0xff, 0xfe, d, e, f] = address.octets() else { return None };
    Some([a ^ 2, b, c, d, e, f])
}

/// Where name servers listen (RFC 1035 §4.2).
pub(super) const DNS_PORT: u16 = 53;

/// Both ends of a flow, as the guest sees them: of one version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Flow {
    /// Whose it is: the port of the guest with this IPv4 address.
    pub(super) port: Ipv4Addr,
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
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

/// The gateway's own addresses: what it says comes from one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gateway {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
}

/// What a network knows of its addresses.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    pub(super) subnet: Subnet,
    /// Stands for the host: its services on its loopback addresses are found here, if the network reaches it.
    pub(super) gateway: Gateway,
    /// Stands for the host's name server, and knows the VMs.
    pub(super) name_server: Ipv4Addr,
    pub(super) name_server6: Ipv6Addr,
    pub(super) isolated: bool,
    host: bool,
    resolver: Option<SocketAddr>,
}

impl Plan {
    pub(super) fn new(spec: &NetworkSpec, resolver: Option<SocketAddr>) -> Plan {
        Plan {
            name: spec.name.clone(),
            subnet: spec.subnet,
            gateway: Gateway { v4: spec.subnet.gateway(), v6: spec.subnet.gateway6() },
            name_server: spec.subnet.name_server(),
            name_server6: spec.subnet.name_server6(),
            isolated: spec.isolated,
            host: spec.host,
            resolver: resolver.filter(|_| !spec.isolated),
        }
    }

    /// The host's name server is this one from now on.
    pub(super) fn set_resolver(&mut self, resolver: Option<SocketAddr>) {
        self.resolver = resolver.filter(|_| !self.isolated);
    }

    /// Whether `address` is the gateway's, by which guests reach it.
    fn is_gateway(&self, address: IpAddr) -> bool {
        address == self.gateway.v4 || address == self.gateway.v6
    }

    /// Whether `address` is the name server's.
    pub(super) fn is_name_server(&self, address: IpAddr) -> bool {
        let known = address == NAME_SERVER && !self.subnet.contains(NAME_SERVER);
        address == self.name_server || address == self.name_server6 || known
    }

    /// Whether we answer for `address`.
    pub(super) fn is_ours(&self, address: IpAddr) -> bool {
        address == ROUTER || self.is_gateway(address) || self.is_name_server(address)
    }

    /// Whether a packet to `address` is for all, or some, of the network.
    pub(super) fn is_group(&self, address: IpAddr) -> bool {
        let broadcast = match address {
            IpAddr::V4(address) => address.is_broadcast() || address == self.subnet.broadcast(),
            IpAddr::V6(_) => false,
        };
        broadcast || address.is_multicast()
    }

    /// Where on the host a guest's packet to `to` goes: the host's loopback network is reached by the gateway's address
    /// alone, and no router forwards link-local packets (RFC 3927 §7, RFC 4291 §2.5.6) or those for groups.
    pub(super) fn outside(&self, to: SocketAddr) -> Way {
        let address = to.ip();
        if self.is_gateway(address) {
            let loopback: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            return match self.host {
                true => Way::Out((loopback, to.port()).into()),
                false => Way::Closed,
            };
        }
        if self.is_name_server(address) {
            return match self.resolver {
                Some(resolver) if to.port() == DNS_PORT => Way::Out(resolver),
                _ => Way::Closed,
            };
        }
        if address == ROUTER {
            return Way::Closed;
        }
        if self.subnet.holds(address) {
            return Way::Nobody;
        }
        if stays(address) || self.isolated || !self.host && is_of_host(address) {
            return Way::Forbidden;
        }
        Way::Out(to)
    }

    /// The address under which the guest sees somebody who comes in by a published port, by one version of IP: the host's own
    /// addresses are the gateway's, which also speaks for those who come by the other version.
    pub(super) fn inside(&self, from: SocketAddr, by6: bool) -> SocketAddr {
        let address = match (from.ip().to_canonical(), by6) {
            (IpAddr::V4(address), false) if !address.is_loopback() && !self.subnet.contains(address) => {
                address.into()
            }
            (IpAddr::V6(address), true) if !stays(address.into()) => address.into(),
            (_, false) => self.gateway.v4.into(),
            (_, true) => self.gateway.v6.into(),
        };
        SocketAddr::new(address, from.port())
    }

    /// Whether the host has a way for IPv6 to the outside. Nothing is sent.
    pub(super) fn leads_out6(&self) -> bool {
        !self.isolated && own_address(OUTSIDE6.into()).is_some()
    }
}

/// Whether packets to an address never leave their link, or their host. An IPv4 address in IPv6's form is one of IPv4
/// to the host's kernel, and none to a network.
fn stays(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, ..] = address.octets();
            first == 0 || address.is_loopback() || address.is_link_local() || first >= 224
        }
        IpAddr::V6(address) => {
            address.is_unspecified()
                || address.is_loopback()
                || address.is_unicast_link_local()
                || address.is_multicast()
                || address.to_ipv4().is_some()
                || Subnet::is_unique_local(address)
        }
    }
}

/// The one of the host's addresses that its kernel would send from to `address` (ip-route(8)). Nothing is sent.
fn own_address(address: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect((address, DNS_PORT)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Whether the host itself has the address: then, and only then, it sends to it from it (table local).
fn is_of_host(address: IpAddr) -> bool {
    own_address(address) == Some(address)
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
        assert_eq!(to("[fd76:6976:a00:200::2]:80"), out("[::1]:80"));
        assert_eq!(to("[fd76:6976:a00:200::3]:53"), out("192.0.2.53:53"));
        assert_eq!(to("[fd76:6976:a00:200::3]:80"), Way::Closed);
        assert_eq!(to("[fd76:6976:a00:200:76:69ff:fe76:3]:80"), Way::Nobody);
        assert_eq!(to("[2001:db8::1]:443"), out("[2001:db8::1]:443"));
        for kept in [
            "[::1]:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[::127.0.0.1]:80",
            "[fe80::1]:80",
            "[ff02::1]:80",
            "[fd76:6976:a76:100::2]:80",
        ] {
            assert_eq!(to(kept), Way::Forbidden, "{kept}");
        }
    }

    #[test]
    fn a_network_that_reaches_not_the_host_reaches_none_of_its_addresses() {
        let plan = plan(false, false);
        assert_eq!(plan.outside("10.0.2.2:80".parse().unwrap()), Way::Closed);
        assert_eq!(plan.outside("10.0.2.3:53".parse().unwrap()), out("192.0.2.53:53"));
        assert!(is_of_host(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_of_host(Ipv4Addr::new(198, 51, 100, 1).into()));
        // Whatever address this host has towards the outside.
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        if socket.connect("198.51.100.1:53").is_ok()
            && let IpAddr::V4(own) = socket.local_addr().unwrap().ip()
        {
            assert_eq!(plan.outside((own, 80).into()), Way::Forbidden, "{own}");
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
        assert!(!large.is_name_server(NAME_SERVER.into()), "there it may be a VM");
        let subnet = "10.9.0.0/16".parse().unwrap();
        let other = Plan::new(&NetworkSpec { subnet, ..NetworkSpec::user(false) }, None);
        assert!(
            other.is_name_server(NAME_SERVER.into()) && other.is_name_server("10.9.0.3".parse().unwrap())
        );
    }

    #[test]
    fn a_card_gives_itself_an_address_and_is_known_by_it() {
        assert_eq!(ROUTER.to_string(), "fe80::76:69ff:fe76:2");
        assert_eq!(card_of(ROUTER), Some(GATEWAY_MAC));
        assert_eq!(card_of(Ipv6Addr::LOCALHOST), None);
    }

    #[test]
    fn the_resolver_is_the_first_that_is_one() {
        let text =
            "# nameserver 192.0.2.1\nsearch x\nnameserver x\nnameserver fe80::1%eth0\nnameserver 192.0.2.2\n";
        assert_eq!(first_resolver(text), Some("fe80::1".parse().unwrap()));
        assert_eq!(first_resolver("nameserver\n"), None);
    }
}
