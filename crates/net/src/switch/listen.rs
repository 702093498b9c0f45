//! Published ports: sockets of the host that lead into the guest.

use super::address::{DNS_PORT, first_resolver};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use viv_model::{PortSpec, Protocol};

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
    let at = SocketAddr::new(port.ip, port.host);
    match port.protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            Ok(Socket::Tcp(listener))
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(at)?;
            socket.set_nonblocking(true)?;
            Ok(Socket::Udp(Arc::new(socket)))
        }
    }
}
