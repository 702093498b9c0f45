//! Mirrors of registries, and those that need no proof of who they are, as podman knows them (containers-registries.conf(5)).
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// Where podman looks, the user's own file first.
const SYSTEM: &str = "/etc/containers/registries.conf";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    registry: Vec<Entry>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mirror {
    location: String,
    insecure: bool,
}

/// A place to ask for a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Host and port.
    pub(crate) registry: String,
    /// The repository there.
    pub(crate) repository: String,
    /// It may do without TLS, and with any certificate.
    pub(crate) insecure: bool,
}

/// The user's rules.
#[derive(Debug, Default)]
pub(crate) struct Registries(File);

impl Registries {
    /// Reads them; what cannot be read are none.
    pub(crate) fn load() -> Registries {
        let own = std::env::var_os("CONTAINERS_REGISTRIES_CONF").map(PathBuf::from).or_else(|| {
            let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
            let config =
                config.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")));
            config.map(|dir| dir.join("containers/registries.conf"))
        });
        let text = own.into_iter().chain([SYSTEM.into()]).find_map(|path| std::fs::read_to_string(path).ok());
        Registries::parse(&text.unwrap_or_default())
    }

    fn parse(text: &str) -> Registries {
        Registries(toml::from_str(text).unwrap_or_default())
    }

    /// The places to ask for a repository, in order; none if the user has forbidden it.
    pub(crate) fn places(&self, registry: &str, repository: &str) -> Vec<Place> {
        let full = format!("{registry}/{repository}");
        let prefix = |entry: &Entry| match entry.prefix.is_empty() {
            true => entry.location.clone(),
            false => entry.prefix.clone(),
        };
        let fits = |prefix: &str| {
            full.strip_prefix(prefix)
                .is_some_and(|rest| !prefix.is_empty() && (rest.is_empty() || rest.starts_with('/')))
        };
        let entry = self
            .0
            .registry
            .iter()
            .filter(|entry| fits(&prefix(entry)))
            .max_by_key(|entry| prefix(entry).len());
        let Some(entry) = entry else {
            return vec![Place { registry: registry.into(), repository: repository.into(), insecure: false }];
        };
        if entry.blocked {
            return Vec::new();
        }
        let rest = full.strip_prefix(&prefix(entry)).unwrap_or_default();
        let place = |location: &str, insecure: bool| {
            let full = format!("{location}{rest}");
            let (registry, repository) = full.split_once('/')?;
            Some(Place { registry: registry.to_string(), repository: repository.to_string(), insecure })
        };
        let location = if entry.location.is_empty() { prefix(entry) } else { entry.location.clone() };
        let mirrors = entry.mirror.iter().filter_map(|mirror| place(&mirror.location, mirror.insecure));
        mirrors.chain(place(&location, entry.insecure)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_before_the_registry() {
        let rules = Registries::parse(
            "unqualified-search-registries = ['docker.io']\n[[registry]]\nlocation = 'docker.io'\n[[registry.mirror]]\nlocation = 'mirror:5000/hub'\n\
             insecure = true\n[[registry]]\nprefix = 'docker.io/secret'\nblocked = true\n[[registry]]\nlocation = 'lab:80'\ninsecure = true\n",
        );
        let place = |registry: &str, repository: &str, insecure| Place {
            registry: registry.into(),
            repository: repository.into(),
            insecure,
        };
        let both = [place("mirror:5000", "hub/library/x", true), place("docker.io", "library/x", false)];
        assert_eq!(rules.places("docker.io", "library/x"), both);
        assert_eq!(rules.places("docker.io", "secret/x"), []);
        assert_eq!(rules.places("docker.iox", "y"), [place("docker.iox", "y", false)]);
        assert_eq!(rules.places("lab:80", "a/b"), [place("lab:80", "a/b", true)]);
        assert_eq!(Registries::parse("[").places("a.b", "c"), [place("a.b", "c", false)]);
    }
}
