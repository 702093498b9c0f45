//! Connections from the network: TLS, so many at a time and from one address, and none that only waits.
use crate::access::Peer;
use crate::connections::{Connections, Place};
use crate::manners::Client;
use crate::service::{self, Service};
use crate::tls::own_names;
use crate::tokens::sha256;
use futures_util::future::{Either, select};
use rustls::ServerConfig;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use viv_model::{Fault, Kind};

/// How long a client may take to be done with TLS, and to send the head of a request.
pub(crate) const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Most connections at a time. The Unix socket has a number of its own.
const CONNECTIONS_MAX: usize = 512;
/// Most of one address; of one network of 64 bits with IPv6.
const OF_ADDRESS_MAX: usize = 64;
/// How long to wait when the kernel gives no more connections.
const PAUSE: Duration = Duration::from_millis(250);

/// Where the service shall listen besides its Unix socket.
#[derive(Clone, Debug, Default)]
pub struct Listen {
    /// `ADDRESS:PORT`, each.
    pub at: Vec<String>,
    /// Names of this host besides those that it knows itself.
    pub names: Vec<String>,
}

impl Listen {
    /// The sockets. They take nothing yet.
    pub(crate) fn bind(&self) -> Result<Vec<std::net::TcpListener>, Fault> {
        let mut sockets = Vec::new();
        for text in &self.at {
            let refused = |why: &dyn std::fmt::Display| {
                Fault::new(
                    Kind::Usage,
                    format!("cannot listen at {text:?}: {why}"),
                    "write an address of this host and a free port: --listen 192.0.2.7:8443, or [::]:8443",
                )
            };
            let addresses: Vec<SocketAddr> =
                text.to_socket_addrs().map_err(|error| refused(&error))?.collect();
            let socket = std::net::TcpListener::bind(&addresses[..]).map_err(|error| refused(&error))?;
            socket.set_nonblocking(true).map_err(|error| refused(&error))?;
            sockets.push(socket);
        }
        Ok(sockets)
    }
}

/// Begins to take connections at these sockets.
pub(crate) fn open(
    service: &Arc<Service>,
    sockets: Vec<std::net::TcpListener>,
    listen: &Listen,
) -> Result<(), Fault> {
    if sockets.is_empty() {
        return Ok(());
    }
    let names = own_names(&listen.names);
    let config = Arc::new(service.access.certificate_authority()?.server(&names)?);
    let connections = Connections::new(CONNECTIONS_MAX, OF_ADDRESS_MAX);
    for socket in sockets {
        let broken = |error| Fault::new(Kind::Error, format!("cannot listen: {error}"), "try another port");
        let at = socket.local_addr().map_err(broken)?;
        let listener = TcpListener::from_std(socket).map_err(broken)?;
        service.access.listens(at, &names);
        viv_api::complain!("viv serve: listens at https://{at}; clients trust it by: viv cert ca");
        tokio::spawn(accept(service.clone(), listener, config.clone(), connections.clone()));
    }
    Ok(())
}

/// The address, or with IPv6 its network of 64 bits, which one client may have for itself.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) >> 64 << 64)),
        v4 => v4,
    }
}

async fn accept(
    service: Arc<Service>,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    connections: Arc<Connections>,
) {
    loop {
        match listener.accept().await {
            // One too many is closed at once.
            Ok((socket, from)) => {
                if let Some(place) = connections.take(Some(network_of(from.ip()))) {
                    tokio::spawn(greet(service.clone(), socket, from, config.clone(), place));
                }
            }
            Err(_) => tokio::time::sleep(PAUSE).await, // out of descriptors or memory: it passes
        }
    }
}

async fn greet(
    service: Arc<Service>,
    socket: TcpStream,
    from: SocketAddr,
    config: Arc<ServerConfig>,
    place: Arc<Place>,
) {
    let _ = socket.set_nodelay(true);
    let client = Client::at(from.ip());
    service.manners.wait(client).await;
    let greeting = tokio::time::timeout(HEAD_LIMIT, TlsAcceptor::from(config).accept(socket));
    let Either::Left((greeted, _)) = select(pin!(greeting), pin!(place.given_up())).await else { return };
    if let Ok(Ok(stream)) = greeted {
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = shown.map(|certificate| sha256(certificate));
        let peer = Peer::Network { from, certificate };
        service::converse(service, stream, peer, client, Some(HEAD_LIMIT), place).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_so_many_connections_and_no_other_suffers() {
        let connections = Connections::new(CONNECTIONS_MAX, OF_ADDRESS_MAX);
        let take = |address: &str| {
            let place = connections.take(Some(network_of(address.parse().unwrap())))?;
            place.asked();
            Some(place)
        };
        let mut places: Vec<_> = (0..OF_ADDRESS_MAX).filter_map(|_| take("192.0.2.1")).collect();
        assert_eq!(places.len(), OF_ADDRESS_MAX);
        assert!(take("192.0.2.1").is_none());
        assert!(take("::ffff:192.0.2.1").is_none(), "it is the same one");
        let other = take("192.0.2.2").unwrap();
        places.pop();
        places.push(take("192.0.2.1").unwrap());
        let neighbours: Vec<_> = (1..200).filter_map(|last| take(&format!("2001:db8::{last:x}"))).collect();
        assert_eq!(neighbours.len(), OF_ADDRESS_MAX);
        drop((places, other, neighbours));
        assert!(connections.is_empty());
    }
}
