//! Published ports: sockets of the host that lead into the guest.

use super::address::first_resolver;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
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

/// What a user network needs of the host before its process is restricted.
#[derive(Debug)]
pub struct Listeners {
    /// Each with the guest's port.
    pub(super) sockets: Vec<(Socket, u16)>,
    pub(super) resolver: Option<IpAddr>,
}

impl Listeners {
    /// Opens the sockets of published ports, and looks up where the host asks for names.
    pub fn open(ports: &[PortSpec]) -> Result<Listeners, ListenError> {
        let mut sockets = Vec::new();
        for port in ports {
            let failed = |error| ListenError { port: port.clone(), error };
            sockets.push((open(port).map_err(failed)?, port.guest));
        }
        // Without one, names are not found, and the guest hears so.
        let text = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        Ok(Listeners { sockets, resolver: first_resolver(&text) })
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
