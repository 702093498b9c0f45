//! What docker's daemon is told of registries (dockerd(8), "daemon.json"): mirrors of its own registry, and those that need no TLS.
use super::{Place, unusable};
use serde::Deserialize;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;
use viv_model::Fault;

/// The daemon's file, where configurations are: of the system, or of a user without root.
pub(super) const FILE: &str = "docker/daemon.json";
/// The one registry that it has mirrors of.
const OWN: &str = "docker.io";

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub(super) struct Docker {
    registry_mirrors: Vec<String>,
    insecure_registries: Vec<String>,
}

impl Docker {
    /// Reads one file, if it is there.
    pub(super) fn load(path: &Path) -> Result<Option<Docker>, Fault> {
        let text = match std::fs::read_to_string(path) {
            // It forbids nothing: who may not read it does without.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {
                return Ok(None);
            }
            text => text.map_err(|error| unusable(path, &error.to_string(), "see what it is"))?,
        };
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).map_err(|error| unusable(path, &error.to_string(), "mend it: dockerd --validate"))
    }

    /// Whether a registry may do without TLS: it is named, or its address is in a named range.
    pub(super) fn is_insecure(&self, registry: &str) -> bool {
        let address = address(registry);
        self.insecure_registries.iter().any(|named| match range(named) {
            Some(range) => address.is_some_and(|address| is_in(address, range)),
            None => named == registry,
        })
    }

    /// The mirrors of a repository.
    pub(super) fn mirrors(&self, registry: &str, repository: &str) -> Vec<Place> {
        let mirrors = self.registry_mirrors.iter().filter(|_| registry == OWN);
        mirrors.filter_map(|mirror| self.mirror(mirror, repository)).collect()
    }

    fn mirror(&self, mirror: &str, repository: &str) -> Option<Place> {
        let (scheme, rest) = mirror.split_once("://")?;
        let registry = rest.trim_end_matches('/').to_string();
        // Docker takes no path here either: a mirror has the same repositories.
        let is_one = !registry.is_empty() && !registry.contains('/');
        let insecure = scheme == "http" || self.is_insecure(&registry);
        is_one.then(|| Place { registry, repository: repository.to_string(), insecure })
    }
}

/// The address that a registry is named by.
fn address(registry: &str) -> Option<IpAddr> {
    match registry.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0.parse().ok(),
        None => registry.split(':').next()?.parse().ok(),
    }
}

/// A range of addresses as RFC 4632 writes it: the first, and how many bits are the same in all.
fn range(text: &str) -> Option<(IpAddr, u32)> {
    let (first, bits) = text.split_once('/')?;
    Some((first.parse().ok()?, bits.parse().ok()?))
}

fn is_in(address: IpAddr, (first, bits): (IpAddr, u32)) -> bool {
    // The bits that count are those in front: what is left of both when the others are shifted out.
    let (left, right, len) = match (address, first) {
        (IpAddr::V4(address), IpAddr::V4(first)) => (address.to_bits().into(), first.to_bits().into(), 32),
        (IpAddr::V6(address), IpAddr::V6(first)) => (address.to_bits(), first.to_bits(), 128u32),
        _ => return false,
    };
    let kept = |value: u128| len.checked_sub(bits).map(|others| value.checked_shr(others).unwrap_or(0));
    kept(left).is_some_and(|left| Some(left) == kept(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_knows_mirrors_of_its_own_registry_and_who_needs_no_tls() {
        let docker: Docker = serde_json::from_str(
            r#"{"registry-mirrors":["https://a.example/","http://b:80","https://c/path","d"],"log-driver":"local",
                "insecure-registries":["lab:5000","10.1.0.0/16","fd00::/8","0.0.0.0/33","127.0.0.1:1"]}"#,
        )
        .unwrap();
        let place = |registry: &str, insecure| Place {
            registry: registry.into(),
            repository: "library/x".into(),
            insecure,
        };
        let mirrors = docker.mirrors("docker.io", "library/x");
        assert_eq!(mirrors, [place("a.example", false), place("b:80", true)]);
        assert_eq!(docker.mirrors("ghcr.io", "x"), []);
        for named in ["lab:5000", "10.1.2.3", "10.1.0.0:80", "[fd12::1]:5000", "127.0.0.1:1"] {
            assert!(docker.is_insecure(named), "{named}");
        }
        for other in ["lab", "10.2.0.1", "[fe80::1]", "127.0.0.1:2", "docker.io", "", "["] {
            assert!(!docker.is_insecure(other), "{other}");
        }
        let all: Docker = serde_json::from_str(r#"{"insecure-registries":["0.0.0.0/0"]}"#).unwrap();
        assert!(all.is_insecure("192.0.2.1:5000") && !all.is_insecure("[::1]"));
    }
}
