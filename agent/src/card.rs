//! A network interface, as its kernel lets it be set up (netdevice(7), rtnetlink's older siblings in `linux/sockios.h`).
#![allow(unsafe_code)]
use crate::sys::{check, owned};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

/// Where the kernel shows its routes (proc(5)): a line for each, numbers in hexadecimal digits, addresses as they are in memory.
const ROUTES: &str = "/proc/net/route";

/// A network interface.
pub(crate) struct Card {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Card {
    /// The one that is called so, which need not be there.
    pub(crate) fn called(name: &str) -> io::Result<Card> {
        let mut chars = [0; libc::IFNAMSIZ];
        if name.is_empty() || name.len() >= chars.len() || name.contains('\0') {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        for (to, from) in chars.iter_mut().zip(name.bytes()) {
            *to = from as _;
        }
        // SAFETY: no pointers.
        let socket = owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
        Ok(Card { socket, name: chars })
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: `ifreq` is plain data for which zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request
    }

    /// Asks with `request`, into which the answer is written.
    fn ask(&self, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: each SIOC[GS]IF… that is used here reads and writes one `ifreq`.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), what, request) }).map(drop)
    }

    fn set_flags(&self, set: libc::c_int, clear: libc::c_int) -> io::Result<()> {
        let mut request = self.request();
        self.ask(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS has set the flags.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        request.ifr_ifru.ifru_flags = ((flags | set) & !clear) as _;
        self.ask(libc::SIOCSIFFLAGS, &mut request)
    }

    /// Sets it up; the kernel gives `lo` its addresses then.
    pub(crate) fn up(&self) -> io::Result<()> {
        self.set_flags(libc::IFF_UP | libc::IFF_RUNNING, 0)
    }

    /// Gives it another hardware address, and has its link go down and up.
    pub(crate) fn set_hardware_address(&self, mac: [u8; 6]) -> io::Result<()> {
        self.set_flags(0, libc::IFF_UP)?;
        let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = from as _;
        }
        let mut request = self.request();
        request.ifr_ifru.ifru_hwaddr = address;
        let changed = self.ask(libc::SIOCSIFHWADDR, &mut request);
        self.up().and(changed)
    }

    /// Gives it its IPv4 address and the mask of its network, in place of those that it has. `None`: takes them away, and all routes.
    pub(crate) fn set_address(&self, address: Option<(Ipv4Addr, Ipv4Addr)>) -> io::Result<()> {
        let (ip, mask) = address.unwrap_or((Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = socket_address(ip);
        self.ask(libc::SIOCSIFADDR, &mut request)?;
        if address.is_none() {
            return Ok(());
        }
        request.ifr_ifru.ifru_netmask = socket_address(mask);
        self.ask(libc::SIOCSIFNETMASK, &mut request)
    }

    /// Has what goes nowhere else go to `router`, and to no other at this metric.
    pub(crate) fn set_router(&self, router: Ipv4Addr, metric: u16) -> io::Result<()> {
        match self.change_route(libc::SIOCADDRT, router, metric) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
            _ => {}
        }
        let name: String =
            self.name.iter().take_while(|char| **char != 0).map(|char| char::from(*char as u8)).collect();
        for other in routers(&fs::read_to_string(ROUTES)?, &name, metric) {
            if other != router {
                self.change_route(libc::SIOCDELRT, other, metric)?;
            }
        }
        Ok(())
    }

    fn change_route(&self, what: libc::Ioctl, router: Ipv4Addr, metric: u16) -> io::Result<()> {
        // SAFETY: `rtentry` is plain data for which zero is valid: no destination, no mask, which is all.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        let mut name = self.name;
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(router);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // Counted from one (`rtentry_to_fib_config` of the kernel).
        route.rt_metric = metric.saturating_add(1) as _;
        route.rt_dev = name.as_mut_ptr();
        // SAFETY: both read one `rtentry`, and the name that it points to, which ends with a zero.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), what, &route) }).map(drop)
    }
}

fn socket_address(ip: Ipv4Addr) -> libc::sockaddr {
    let mut address = libc::sockaddr { sa_family: libc::AF_INET as _, sa_data: [0; 14] };
    // `sockaddr_in`: a port of two bytes, then the address.
    for (to, from) in address.sa_data.iter_mut().skip(2).zip(ip.octets()) {
        *to = from as _;
    }
    address
}

/// The routers to which a card's routes to everywhere with this metric lead.
fn routers(routes: &str, card: &str, metric: u16) -> Vec<Ipv4Addr> {
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [name, to, router, _, _, _, its, mask, ..] = words[..] else { return None };
        let is_it = name == card && to == "00000000" && mask == "00000000" && its.parse() == Ok(metric);
        let router = u32::from_str_radix(router, 16).ok().filter(|_| is_it)?;
        Some(Ipv4Addr::from(router.to_ne_bytes()))
    };
    routes.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_to_everywhere_are_found() {
        let routes = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0202000A\t0003\t0\t0\t1\t00000000\t0\t0\t0\n\
            eth0\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            eth1\t00000000\t0103000A\t0003\t0\t0\t2\t00000000\t0\t0\t0\n";
        assert_eq!(routers(routes, "eth0", 1), [Ipv4Addr::new(10, 0, 2, 2)]);
        assert_eq!(routers(routes, "eth1", 2), [Ipv4Addr::new(10, 0, 3, 1)]);
        assert!(routers(routes, "eth1", 1).is_empty() && routers("", "eth0", 1).is_empty());
    }

    #[test]
    fn names_that_no_interface_can_have_are_refused() {
        assert!(
            Card::called("").is_err()
                && Card::called("a234567890123456").is_err()
                && Card::called("a\0").is_err()
        );
        assert!(Card::called("a23456789012345").is_ok());
    }
}
