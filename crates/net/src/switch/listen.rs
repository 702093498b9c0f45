//! Published ports: sockets of the host that lead into the guest.

use super::address::{DNS_PORT, first_resolver};
use rustix::io::Errno;
use rustix::net::sockopt::{set_ipv6_v6only, set_socket_reuseaddr};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use viv_model::{Fault, Kind, PortSpec, Protocol};

/// Connections that wait to be taken, as far as the host lets us (`somaxconn`).
const BACKLOG: i32 = 1024;
/// Where the host's name servers are listed.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// A published port whose socket could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {port}: {error}")]
pub struct ListenError {
    /// Which.
    pub port: PortSpec,
    /// Why.
    #[source]
    pub error: io::Error,
}

impl From<&ListenError> for Fault {
    fn from(failed: &ListenError) -> Fault {
        let ListenError { port, error } = failed;
        let protocol = if port.protocol == Protocol::Udp { "UDP" } else { "TCP" };
        let what = format!("cannot publish {port}");
        let host = port.host;
        match error.kind() {
            ErrorKind::AddrInUse => Fault::new(
                Kind::Conflict,
                format!("{what}: {protocol} port {host} of the host is in use"),
                "use another port with -p, or end what uses it: viv ps shows VMs' ports, ss -lntup all",
            ),
            ErrorKind::PermissionDenied => Fault::new(
                Kind::Denied,
                format!("{what}: the host lets only root have port {host}"),
                "use a port from 1024 on, or allow it with: sysctl net.ipv4.ip_unprivileged_port_start",
            ),
            ErrorKind::AddrNotAvailable => Fault::new(
                Kind::Usage,
                format!("{what}: {} is no address of this host", port.ip),
                "use one that ip address shows, or leave it out for all of them",
            ),
            _ => Fault::new(
                Kind::Error,
                format!("{what}: {error}"),
                "use another port with -p, or leave it out",
            ),
        }
    }
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpListener),
    Udp(Arc<UdpSocket>),
}

/// The sockets of a VM's published ports.
#[derive(Debug, Default)]
pub struct Listeners {
    /// Each with the guest's port.
    pub(super) sockets: Vec<(Socket, u16)>,
}

impl Listeners {
    /// Opens the sockets of published ports.
    pub fn open(ports: &[PortSpec]) -> Result<Listeners, ListenError> {
        let mut sockets = Vec::new();
        for port in ports {
            let failed = |error| ListenError { port: port.clone(), error };
            sockets.push((open(port).map_err(failed)?, port.guest));
        }
        Ok(Listeners { sockets })
    }

    /// Takes over those that another process opened, in the order of its ports.
    pub fn adopt(ports: &[PortSpec], sockets: Vec<OwnedFd>) -> Listeners {
        let adopt = |(port, socket): (&PortSpec, OwnedFd)| match port.protocol {
            Protocol::Tcp => (Socket::Tcp(socket.into()), port.guest),
            Protocol::Udp => (Socket::Udp(Arc::new(socket.into())), port.guest),
        };
        Listeners { sockets: ports.iter().zip(sockets).map(adopt).collect() }
    }

    /// Their descriptors, in order, to be handed over.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let descriptors = self.sockets.iter().map(|(socket, _)| match socket {
            Socket::Tcp(listener) => listener.as_fd(),
            Socket::Udp(socket) => socket.as_fd(),
        });
        descriptors.collect()
    }

    /// Those of connections, in order, each with the guest's port.
    pub fn into_tcp(self) -> Vec<(TcpListener, u16)> {
        let tcp = |(socket, guest)| match socket {
            Socket::Tcp(listener) => Some((listener, guest)),
            Socket::Udp(_) => None,
        };
        self.sockets.into_iter().filter_map(tcp).collect()
    }

    /// The addresses that were taken, in order.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let addresses = self.sockets.iter().map(|(socket, _)| match socket {
            Socket::Tcp(listener) => listener.local_addr(),
            Socket::Udp(socket) => socket.local_addr(),
        });
        addresses.flatten().collect()
    }
}

/// The host's first name server, if it names one.
pub fn resolver() -> Option<SocketAddr> {
    let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
    first_resolver(&text).map(|address| SocketAddr::new(address, DNS_PORT))
}

fn open(port: &PortSpec) -> io::Result<Socket> {
    match open_at(SocketAddr::new(port.ip, port.host), port.protocol) {
        // A host without IPv6.
        Err(error) if port.ip == Ipv6Addr::UNSPECIFIED && is_without_ipv6(&error) => {
            open_at((Ipv4Addr::UNSPECIFIED, port.host).into(), port.protocol)
        }
        opened => opened,
    }
}

fn is_without_ipv6(error: &io::Error) -> bool {
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL]
        .map(Errno::raw_os_error)
        .map(Some)
        .contains(&error.raw_os_error())
}

/// The unspecified address of IPv6 is all addresses of both versions (ipv6(7)), whatever the host's default is.
fn open_at(at: SocketAddr, protocol: Protocol) -> io::Result<Socket> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let (kind, is_tcp) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, true),
        Protocol::Udp => (SocketType::DGRAM, false),
    };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    if at.is_ipv6() {
        set_ipv6_v6only(&socket, !at.ip().is_unspecified())?;
    }
    if is_tcp {
        // Connections of an earlier listener may still be ending (socket(7)).
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &at)?;
    if is_tcp {
        listen(&socket, BACKLOG)?;
        return Ok(Socket::Tcp(socket.into()));
    }
    Ok(Socket::Udp(Arc::new(socket.into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn each_way_to_fail_has_a_way_out() {
        let port: PortSpec = "127.0.0.1:80:80".parse().unwrap();
        for (kind, is) in [
            (ErrorKind::AddrInUse, Kind::Conflict),
            (ErrorKind::PermissionDenied, Kind::Denied),
            (ErrorKind::AddrNotAvailable, Kind::Usage),
            (ErrorKind::OutOfMemory, Kind::Error),
        ] {
            let fault = Fault::from(&ListenError { port: port.clone(), error: kind.into() });
            assert_eq!(fault.kind, is);
            assert!(fault.message.contains("127.0.0.1:80:80"), "{fault}");
        }
    }

    #[test]
    fn a_port_without_an_address_is_of_both_versions() {
        // Which port, the kernel says: the text has none of it.
        let ports: Vec<PortSpec> = ["1:80", "1:80/udp"].iter().map(|text| text.parse().unwrap()).collect();
        for port in ports {
            let listeners = Listeners::open(&[PortSpec { host: 0, ..port.clone() }]).unwrap();
            let number = listeners.addresses()[0].port();
            if port.protocol == Protocol::Tcp {
                TcpStream::connect((Ipv4Addr::LOCALHOST, number)).unwrap();
            }
            let taken = PortSpec { host: number, ip: Ipv4Addr::LOCALHOST.into(), ..port.clone() };
            let error = Listeners::open(&[taken]).unwrap_err().error;
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            let has_ipv6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
            let taken = PortSpec { host: number, ip: Ipv6Addr::LOCALHOST.into(), ..port };
            assert_eq!(
                Listeners::open(&[taken]).unwrap_err().error.kind() == io::ErrorKind::AddrInUse,
                has_ipv6
            );
        }
    }

    #[test]
    fn one_of_ipv6_leaves_ipv4_alone() {
        let port = PortSpec { host: 0, .."[::1]:1:80".parse().unwrap() };
        match Listeners::open(&[port]) {
            Ok(listeners) => {
                let number = listeners.addresses()[0].port();
                TcpStream::connect((Ipv6Addr::LOCALHOST, number)).unwrap();
                assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, number)).is_err());
            }
            Err(failed) => assert!(is_without_ipv6(&failed.error), "{failed}"),
        }
    }
}
