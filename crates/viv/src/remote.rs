//! A host service elsewhere: TLS over TCP. Its bytes come out of one end of a pair of Unix sockets, so that everything else is as with
//! the service of this machine.
use rustix::event::{PollFd, PollFlags, poll};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use serde::{Deserialize, Serialize};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;
use viv_api::client::Client;
use viv_model::{Fault, Kind, ProjectName};

/// How long the other host may take to answer the door.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes that are carried at once.
const PIECE: usize = 16 << 10;

/// Where a service is, and by what it is known and knows us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remote {
    /// Its name or address.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// Certificates of authorities to trust, PEM.
    pub(crate) ca: String,
    /// The project to work in there, unless another one is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<ProjectName>,
    /// Our token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    /// Our certificate and its key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<(String, String)>,
}

impl Remote {
    /// `https://HOST:PORT`.
    pub(crate) fn url(&self) -> String {
        match self.host.contains(':') {
            true => format!("https://[{}]:{}", self.host, self.port),
            false => format!("https://{}:{}", self.host, self.port),
        }
    }

    /// The host and the port of a URL.
    pub(crate) fn place(url: &str) -> Result<(String, u16), Fault> {
        let wrong = || {
            let text = format!("no host service is at {url:?}");
            Fault::new(Kind::Usage, text, "write it as https://HOST:PORT, as viv serve --listen says it")
        };
        let rest = url.strip_prefix("https://").ok_or_else(wrong)?.trim_end_matches('/');
        let (host, port) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        ServerName::try_from(host).map_err(|_| wrong())?;
        Ok((host.to_string(), port))
    }

    /// How to speak TLS with it.
    fn config(&self) -> Result<ClientConfig, Fault> {
        let wrong = |what: &str, why: &dyn std::fmt::Display| {
            let text = format!("{what} cannot be used: {why}");
            Fault::new(Kind::Usage, text, "give the files anew, in PEM: viv context add …")
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca.as_bytes()) {
            let certificate = certificate.map_err(|error| wrong("the authority's certificate", &error))?;
            roots.add(certificate).map_err(|error| wrong("the authority's certificate", &error))?;
        }
        if roots.is_empty() {
            return Err(wrong("the authority's certificate", &"there is none in the file"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| wrong("TLS", &error))?
            .with_root_certificates(roots);
        let Some((certificate, key)) = &self.certificate else { return Ok(config.with_no_client_auth()) };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
        let chain = chain.map_err(|error| wrong("the certificate", &error))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| wrong("the key", &error))?;
        config.with_client_auth_cert(chain, key).map_err(|error| wrong("the certificate", &error))
    }

    /// Whether all of it can be used.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let token = self.token.as_deref().unwrap_or_default();
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            let text = "the token is not one line of letters and digits";
            return Err(Fault::new(
                Kind::Usage,
                text,
                "give the file that viv token create has printed into",
            ));
        }
        self.config().map(drop)
    }

    /// A client of it.
    pub(crate) fn client(self) -> Result<Client, Fault> {
        let config = Arc::new(self.config()?);
        let (url, token) = (self.url(), self.token.clone());
        let place = url.trim_start_matches("https://").to_string();
        let connect = move || self.connect(config.clone());
        Ok(Client::new(Box::new(connect)).elsewhere(&place, token.as_deref()))
    }

    fn connect(&self, config: Arc<ClientConfig>) -> Result<UnixStream, Fault> {
        let unreachable = |error: io::Error| {
            Fault::new(
                Kind::Error,
                format!("the host service at {} does not answer: {error}", self.url()),
                "see that it runs there with --listen, and that nothing is between; viv context ls shows the address",
            )
        };
        let mut last = io::Error::from(ErrorKind::NotFound);
        for address in (self.host.as_str(), self.port).to_socket_addrs().map_err(unreachable)? {
            match TcpStream::connect_timeout(&address, CONNECT_LIMIT) {
                Ok(socket) => return self.greet(socket, config),
                Err(error) => last = error,
            }
        }
        Err(unreachable(last))
    }

    fn greet(&self, mut socket: TcpStream, config: Arc<ClientConfig>) -> Result<UnixStream, Fault> {
        let broken = |error: io::Error| {
            Fault::new(
                Kind::Denied,
                format!("{} is not the host service that is known by that name: {error}", self.url()),
                "compare its certificate: viv cert ca there, and viv context add … --ca here",
            )
        };
        let name =
            ServerName::try_from(self.host.clone()).map_err(|error| broken(io::Error::other(error)))?;
        let mut tls = ClientConnection::new(config, name).map_err(|error| broken(io::Error::other(error)))?;
        let prepared = socket
            .set_nodelay(true)
            .and_then(|()| socket.set_read_timeout(Some(CONNECT_LIMIT)))
            .and_then(|()| socket.set_write_timeout(Some(CONNECT_LIMIT)));
        prepared.map_err(broken)?;
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).map_err(broken)?;
        }
        let pair = || -> io::Result<UnixStream> {
            socket.set_read_timeout(None)?;
            socket.set_write_timeout(None)?;
            let (ours, theirs) = UnixStream::pair()?;
            std::thread::spawn(move || {
                let _ = carry(&mut tls, &mut socket, &theirs);
                let _ = theirs.shutdown(Shutdown::Both);
            });
            Ok(ours)
        };
        pair().map_err(broken)
    }
}

/// Carries bytes both ways until the other host has closed.
fn carry(tls: &mut ClientConnection, socket: &mut TcpStream, mut here: &UnixStream) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut open = true;
    loop {
        while tls.wants_write() {
            tls.write_tls(socket)?;
        }
        let (there_ready, here_ready) = {
            let mut ends = vec![PollFd::new(&*socket, PollFlags::IN)];
            if open {
                ends.push(PollFd::new(here, PollFlags::IN));
            }
            match poll(&mut ends, None) {
                Err(rustix::io::Errno::INTR) => continue,
                outcome => outcome?,
            };
            let mut ready = ends.iter().map(|end| !end.revents().is_empty());
            (ready.next().unwrap_or_default(), ready.next().unwrap_or_default())
        };
        if there_ready {
            let ended = tls.read_tls(socket)? == 0;
            let state = tls.process_new_packets().map_err(io::Error::other)?;
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let count = tls.reader().read(&mut piece)?;
                here.write_all(piece.get(..count).unwrap_or_default())?;
                left = left.saturating_sub(count.max(1));
            }
            if ended || state.peer_has_closed() {
                return Ok(());
            }
        }
        if here_ready {
            match here.read(&mut piece) {
                Ok(0) => {
                    open = false;
                    tls.send_close_notify();
                }
                Ok(count) => tls.writer().write_all(piece.get(..count).unwrap_or_default())?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_host_and_a_port() {
        let place = |url| Remote::place(url).map_err(|fault| fault.kind);
        assert_eq!(place("https://viv.example:8443"), Ok(("viv.example".into(), 8443)));
        assert_eq!(place("https://[::1]:8443/"), Ok(("::1".into(), 8443)));
        for wrong in
            ["http://a:1", "https://a", "https://:1", "https://a:0", "https://a:x", "a:1", "https://a b:1"]
        {
            assert_eq!(place(wrong), Err(Kind::Usage), "{wrong}");
        }
    }
}
