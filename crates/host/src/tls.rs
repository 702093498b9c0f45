//! The small certificate authority of this service: its key stays here, and signs the service's own certificate and those of clients.
use crate::places::is_gone;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use viv_api::timestamp::Timestamp;
use viv_model::{Fault, Kind};

/// A day, seconds.
const DAY_S: u64 = 24 * 3600;
/// How long the service's certificate lasts, which is made anew at each start.
const SERVER_S: u64 = 2 * 365 * DAY_S;

/// The authority.
pub(crate) struct CertificateAuthority {
    dir: PathBuf,
    pem: String,
    key: String,
}

fn broken(what: &str, why: &dyn std::fmt::Display) -> Fault {
    Fault::new(
        Kind::Error,
        format!("cannot {what}: {why}"),
        "see that the state directory is writable; a damaged authority: move its directory away, and give out new tokens and certificates",
    )
}

impl CertificateAuthority {
    /// The authority whose files are in this directory, made if there is none.
    pub(crate) fn open(dir: &Path) -> Result<CertificateAuthority, Fault> {
        let (certificate, secret) = (dir.join("ca.pem"), dir.join("ca.key"));
        if is_gone(&certificate) {
            let key = KeyPair::generate().map_err(|error| broken("make a key", &error))?;
            let made = ca_params().self_signed(&key).map_err(|error| broken("make an authority", &error))?;
            // The key comes first: with the certificate there is an authority.
            write_secret(&secret, &key.serialize_pem()).map_err(|error| broken("write ca.key", &error))?;
            write_secret(&certificate, &made.pem()).map_err(|error| broken("write ca.pem", &error))?;
        }
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|error| broken(&format!("read {}", path.display()), &error))
        };
        let authority =
            CertificateAuthority { dir: dir.into(), pem: read(&certificate)?, key: read(&secret)? };
        authority.issuer()?;
        authority.certificate()?;
        Ok(authority)
    }

    /// Its certificate, PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, Fault> {
        let path = self.dir.join("ca.key");
        let key = KeyPair::from_pem(&self.key)
            .map_err(|error| broken(&format!("use the key in {}", path.display()), &error))?;
        Ok(Issuer::new(ca_params(), key))
    }

    fn certificate(&self) -> Result<CertificateDer<'static>, Fault> {
        let path = self.dir.join("ca.pem");
        CertificateDer::from_pem_slice(self.pem.as_bytes())
            .map_err(|error| broken(&format!("use the certificate in {}", path.display()), &error))
    }

    /// A certificate for a client, until then: itself (DER and PEM) and its key (PEM).
    pub(crate) fn issue(&self, name: &str, until: Timestamp) -> Result<(Vec<u8>, String, String), Fault> {
        let mut params = CertificateParams::default();
        params.distinguished_name = called(name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate, key) = self.sign(params, until)?;
        Ok((certificate.der().to_vec(), certificate.pem(), key.serialize_pem()))
    }

    fn sign(
        &self,
        mut params: CertificateParams,
        until: Timestamp,
    ) -> Result<(rcgen::Certificate, KeyPair), Fault> {
        let now = Timestamp::now().unix_s;
        // Whole days, and one more on either side for clocks that differ: the exact end is in the list of those given out.
        params.not_before = day(Timestamp { unix_s: now.saturating_sub(DAY_S) });
        params.not_after = day(Timestamp { unix_s: until.unix_s.saturating_add(DAY_S) });
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(|error| broken("make a key", &error))?;
        let signed = params.signed_by(&key, &self.issuer()?);
        Ok((signed.map_err(|error| broken("sign a certificate", &error))?, key))
    }

    /// How the service speaks TLS as a host with these names: clients may show a certificate of ours, and need not.
    pub(crate) fn server(&self, names: &[String]) -> Result<ServerConfig, Fault> {
        let mut params = CertificateParams::new(names)
            .map_err(|error| broken("make a certificate for these names", &error))?;
        params.distinguished_name = called("Vivarium host service");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let until = Timestamp { unix_s: Timestamp::now().unix_s.saturating_add(SERVER_S) };
        let (own, key) = self.sign(params, until)?;
        let ours = self.certificate()?;
        let mut roots = RootCertStore::empty();
        roots.add(ours.clone()).map_err(|error| broken("trust ca.pem", &error))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|error| broken("trust ca.pem", &error))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| broken("speak TLS", &error))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![own.der().clone(), ours], key)
            .map_err(|error| broken("use the service's certificate", &error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// The same each time: by its name and key an authority signs as itself.
fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = called("Vivarium authority of this host");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2120, 1, 1);
    params
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

/// The day of a moment.
fn day(moment: Timestamp) -> time::OffsetDateTime {
    let unix_s = i64::try_from(moment.unix_s).unwrap_or(i64::MAX);
    time::OffsetDateTime::from_unix_timestamp(unix_s).unwrap_or(date_time_ymd(2120, 1, 1))
}

/// Writes a file that only its owner may read: beside, synced and renamed.
fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// The names and addresses by which this host may be called.
pub(crate) fn own_names(extra: &[String]) -> Vec<String> {
    let mut names = vec!["localhost".to_string()];
    if let Ok(name) = rustix::system::uname().nodename().to_str() {
        names.push(name.to_ascii_lowercase());
    }
    let v4 = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    names.extend(addresses.into_iter().chain(addresses_of(&v4, &v6)).map(|ip: IpAddr| ip.to_string()));
    names.extend(extra.iter().map(|name| name.to_ascii_lowercase()));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| !name.is_empty() && seen.insert(name.clone()));
    names
}

/// The host's own addresses, as the kernel lists them: local routes, and addresses of interfaces.
fn addresses_of(fib_trie: &str, if_inet6: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    let mut last = None;
    for line in fib_trie.lines() {
        if let Some(address) = line.trim().strip_prefix("|-- ") {
            last = address.parse::<Ipv4Addr>().ok();
        } else if line.trim().starts_with("/32 host LOCAL") {
            found.extend(last.map(IpAddr::from));
        }
    }
    for line in if_inet6.lines() {
        let digits = line.split(' ').next().unwrap_or_default();
        if let Ok(bits) = u128::from_str_radix(digits, 16) {
            let address = Ipv6Addr::from(bits);
            // Addresses of a link mean nothing without it.
            if !address.is_unicast_link_local() {
                found.push(address.into());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn an_authority_is_made_once_and_its_key_is_its_owners() {
        let dir = std::env::temp_dir().join(format!("viv-host-ca-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let authority = CertificateAuthority::open(&dir).unwrap();
        assert!(authority.pem().contains("BEGIN CERTIFICATE"));
        let mode = std::fs::metadata(dir.join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(CertificateAuthority::open(&dir).unwrap().pem(), authority.pem());
        authority.server(&own_names(&["viv.example.org".into()])).unwrap();
        let until = Timestamp { unix_s: Timestamp::now().unix_s + 60 };
        let (der, pem, key) = authority.issue("ann", until).unwrap();
        assert_eq!(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().as_ref(), der);
        assert!(PrivateKeyDer::from_pem_slice(key.as_bytes()).is_ok());
        std::fs::write(dir.join("ca.key"), "damaged").unwrap();
        assert!(CertificateAuthority::open(&dir).is_err());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn addresses_are_those_that_the_kernel_says_are_local() {
        let trie = "Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.0.5\n        /32 host LOCAL\n     |-- 10.1.0.255\n        /32 link BROADCAST\n";
        let v6 = "fe80000000000000025056fffe000001 02 40 20 80 eth0\nfd000000000000000000000000000007 02 40 00 80 eth0\nnonsense\n";
        let found = addresses_of(trie, v6);
        assert_eq!(found, ["10.1.0.5".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        let names = own_names(&["Viv.Example".into(), "localhost".into()]);
        assert!(names.contains(&"viv.example".to_string()) && names.contains(&"::1".to_string()));
        assert_eq!(names.iter().filter(|name| *name == "localhost").count(), 1);
    }
}
