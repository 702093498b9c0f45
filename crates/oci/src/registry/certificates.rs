//! Authorities that one registry alone is known by, and who we are to it: files in a directory with the registry's name
//! (containers-certs.d(5); docker, "Verify repository client with certificates").
use crate::user;
use std::ffi::OsStr;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, parse_pem};
use viv_model::{Fault, Kind};

/// Where all users have them, and where one has them, which comes first: below the configurations.
const SYSTEM: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];
const OWN: [&str; 2] = ["containers/certs.d", "docker/certs.d"];

/// The directories in which those of all registries are.
pub(super) struct Certificates(Vec<PathBuf>);

/// Those of one registry.
pub(super) struct Pinned {
    /// What it may be known by, the host's authorities among them.
    pub(super) roots: RootCerts,
    pub(super) client: Option<ClientCert>,
}

impl Certificates {
    pub(super) fn new() -> Certificates {
        let own = user::configurations(&user::variable).into_iter();
        let own = own.flat_map(|dir| OWN.map(|below| dir.join(below)));
        Certificates(own.chain(SYSTEM.map(PathBuf::from)).collect())
    }

    /// What there is for a registry: all of the first directory that has its name.
    pub(super) fn of(&self, registry: &str) -> Result<Option<Pinned>, Fault> {
        for dir in self.0.iter().map(|dir| dir.join(registry)) {
            let entries = match std::fs::read_dir(&dir) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                entries => entries.map_err(|error| unusable(&dir, &error.to_string()))?,
            };
            let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
            paths.sort();
            return pinned(&paths).map(Some);
        }
        Ok(None)
    }
}

/// `*.crt` are authorities, `*.cert` and `*.key` of one name who we are.
fn pinned(paths: &[PathBuf]) -> Result<Pinned, Fault> {
    let of = |end: &'static str| paths.iter().filter(move |path| path.extension() == Some(OsStr::new(end)));
    let mut roots = Vec::new();
    for path in of("crt") {
        roots.extend(certificates(path)?);
    }
    let client = of("cert").next().map(|path| {
        let key = path.with_extension("key");
        let text = read(&key)?;
        let parsed = PrivateKey::from_pem(&text).map_err(|error| unusable(&key, &error.to_string()))?;
        Ok(ClientCert::new_with_certs(&certificates(path)?, parsed))
    });
    let client = client.transpose()?;
    // Without one of its own, it is known as others are.
    let roots = match roots.is_empty() {
        true => RootCerts::PlatformVerifier,
        false => {
            let of_host = rustls_native_certs::load_native_certs().certs;
            let of_host = of_host.iter().map(|der| Certificate::from_der(der).to_owned());
            RootCerts::from(roots.into_iter().chain(of_host).collect::<Vec<_>>())
        }
    };
    Ok(Pinned { roots, client })
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, Fault> {
    let text = read(path)?;
    let mut found = Vec::new();
    for item in parse_pem(&text) {
        if let PemItem::Certificate(one) = item.map_err(|error| unusable(path, &error.to_string()))? {
            found.push(one);
        }
    }
    if found.is_empty() { Err(unusable(path, "there is no certificate in it")) } else { Ok(found) }
}

fn read(path: &Path) -> Result<Vec<u8>, Fault> {
    std::fs::read(path).map_err(|error| unusable(path, &error.to_string()))
}

fn unusable(path: &Path, why: &str) -> Fault {
    Fault::new(
        Kind::Error,
        format!("what is known of a registry in {} cannot be used: {why}", path.display()),
        "put certificates there as PEM (man containers-certs.d), readable for the host service's user",
    )
}

#[cfg(test)]
mod tests {
    use super::super::{Client, Options};
    use super::*;
    use crate::source::tests::Quiet;
    use crate::{Reference, open, resolve};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use rustls::server::WebPkiClientVerifier;
    use rustls::{RootCertStore, ServerConfig, ServerConnection, Stream};
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::sync::Arc;

    /// A registry that has nothing, behind TLS, for those who have a certificate of its authority.
    fn registry(server: ServerConfig) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        std::thread::spawn(move || {
            let server = Arc::new(server);
            for mut stream in listener.incoming().flatten() {
                let mut talk = ServerConnection::new(server.clone()).unwrap();
                let mut tls = Stream::new(&mut talk, &mut stream);
                if tls.read(&mut [0; 4096]).is_ok() {
                    let _ = tls.write_all(
                        b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
                    );
                    tls.conn.send_close_notify();
                    let _ = tls.flush();
                }
            }
        });
        address
    }

    #[test]
    fn a_registry_is_known_by_its_own_authority_and_knows_us() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let issue = |name: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_string()]).unwrap();
            (params.signed_by(&key, &issuer).unwrap(), key)
        };
        let ((of_server, server_key), (of_client, client_key)) = (issue("localhost"), issue("us"));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority.der().to_vec())).unwrap();
        let known =
            WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone()).build().unwrap();
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(known)
            .with_single_cert(
                vec![of_server.der().clone()],
                PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
            )
            .unwrap();
        let address = registry(server);
        let dir = std::env::temp_dir().join(format!("viv-certs-{}", std::process::id()));
        let own = dir.join(&address);
        std::fs::create_dir_all(&own).unwrap();
        let told = || {
            let client =
                Client::with(Options::default(), Certificates(vec!["/nowhere".into(), dir.clone()])).unwrap();
            let reference = Reference::parse(&format!("{address}/a:1"), Path::new("/")).unwrap();
            resolve(open(&reference, &client).unwrap().as_ref(), &Quiet).unwrap_err()
        };
        let fault = told();
        assert!(fault.message.contains("none that this host trusts"), "{fault}");
        std::fs::write(own.join("ca.crt"), authority.pem()).unwrap();
        let fault = told();
        assert!(fault.message.contains("cannot get"), "we are not known: {fault}");
        std::fs::write(own.join("us.cert"), of_client.pem()).unwrap();
        assert!(told().message.contains("us.key cannot be used"));
        std::fs::write(own.join("us.key"), client_key.serialize_pem()).unwrap();
        let fault = told();
        assert!(fault.kind == Kind::NotFound && fault.message.contains("is not there"), "{fault}");
        std::fs::write(own.join("ca.crt"), "none").unwrap();
        assert!(told().message.contains("no certificate in it"));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
