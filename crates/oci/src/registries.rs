//! Mirrors of registries, and those that need no proof of who they are, as podman knows them (containers-registries.conf(5)), and where
//! that says nothing of a registry, as docker does.
mod docker;

use crate::user;
use docker::Docker;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// Where the rules of all users are; those of one are in the same place below their configuration.
const SYSTEM: &str = "/etc";
/// The file, and the directory of those that are read besides.
const FILE: &str = "containers/registries.conf";
const MORE: &str = "containers/registries.conf.d";
/// What to do about one that is not understood.
const MEND: &str =
    "mend it (man containers-registries.conf), or name another file: CONTAINERS_REGISTRIES_CONF";

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
pub(crate) struct Registries {
    podman: File,
    docker: Docker,
}

impl Registries {
    /// Reads them. What is there and not understood is an error: it may forbid something.
    pub(crate) fn load() -> Result<Registries, Fault> {
        Registries::from(&user::variable, Path::new(SYSTEM))
    }

    fn from(variable: &dyn Fn(&str) -> Option<OsString>, system: &Path) -> Result<Registries, Fault> {
        let dirs = [Some(system.to_path_buf()), user::configurations(variable)];
        let mut rules = Registries::default();
        let main = match variable("CONTAINERS_REGISTRIES_CONF") {
            Some(path) => vec![PathBuf::from(path)],
            // The user's own stands for that of all.
            None => dirs.iter().flatten().rev().map(|dir| dir.join(FILE)).collect(),
        };
        for path in main {
            if let Some(text) = text_of(&path)? {
                rules.add(&text, &path)?;
                break;
            }
        }
        for dir in dirs.iter().flatten() {
            for path in more(&dir.join(MORE))? {
                if let Some(text) = text_of(&path)? {
                    rules.add(&text, &path)?;
                }
            }
        }
        for dir in dirs.iter().flatten().rev() {
            if let Some(docker) = Docker::load(&dir.join(docker::FILE))? {
                rules.docker = docker;
                break;
            }
        }
        Ok(rules)
    }

    /// Adds those of one file: what it says of a prefix stands for what was said of it before.
    fn add(&mut self, text: &str, path: &Path) -> Result<(), Fault> {
        let file: File = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let why = format!("{} (line {})", error.message(), before.matches('\n').count() + 1);
            unusable(path, &why, MEND)
        })?;
        let said: BTreeSet<_> = file.registry.iter().map(prefix).map(str::to_string).collect();
        self.podman.registry.retain(|entry| !said.contains(prefix(entry)));
        self.podman.registry.extend(file.registry);
        Ok(())
    }

    /// The places to ask for a repository, in order; none if the user has forbidden it.
    pub(crate) fn places(&self, registry: &str, repository: &str) -> Vec<Place> {
        let full = format!("{registry}/{repository}");
        let entries =
            self.podman.registry.iter().filter_map(|entry| Some((entry, fits(prefix(entry), &full)?)));
        // The longest part of the name that one speaks of.
        let Some((entry, rest)) = entries.min_by_key(|(_, rest)| rest.len()) else {
            let insecure = self.docker.is_insecure(registry);
            let itself = Place { registry: registry.into(), repository: repository.into(), insecure };
            return self.docker.mirrors(registry, repository).into_iter().chain([itself]).collect();
        };
        if entry.blocked {
            return Vec::new();
        }
        let place = |location: &str, insecure: bool| {
            let full = format!("{location}{rest}");
            let (registry, repository) = full.split_once('/')?;
            Some(Place { registry: registry.to_string(), repository: repository.to_string(), insecure })
        };
        let mirrors = entry.mirror.iter().filter_map(|mirror| place(&mirror.location, mirror.insecure));
        let itself = match entry.location.is_empty() {
            // Where it says nothing of a place, each is where its name says.
            true => Some(Place {
                registry: registry.into(),
                repository: repository.into(),
                insecure: entry.insecure,
            }),
            false => place(&entry.location, entry.insecure),
        };
        mirrors.chain(itself).collect()
    }
}

/// What of a name an entry speaks of.
fn prefix(entry: &Entry) -> &str {
    if entry.prefix.is_empty() { &entry.location } else { &entry.prefix }
}

/// What comes behind a prefix in a repository's name; nothing if it does not begin with that. `*.example.com` begins all hosts of that domain.
fn fits<'a>(prefix: &str, full: &'a str) -> Option<&'a str> {
    let rest = match prefix.strip_prefix("*.") {
        Some(domain) => {
            let (host, _) = full.split_once('/')?;
            let end = host.strip_suffix(domain).filter(|sub| sub.ends_with('.') && sub.len() > 1)?.len();
            full.get(end + domain.len()..)?
        }
        None => full.strip_prefix(prefix).filter(|_| !prefix.is_empty())?,
    };
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// The files `*.conf` of a directory, in the order of their names.
fn more(dir: &Path) -> Result<Vec<PathBuf>, Fault> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| unusable(dir, &error.to_string(), MEND))?,
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut found: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "conf")).collect();
    found.sort();
    Ok(found)
}

fn text_of(path: &Path) -> Result<Option<String>, Fault> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        text => text.map(Some).map_err(|error| unusable(path, &error.to_string(), "see who may read it")),
    }
}

fn unusable(path: &Path, why: &str, fix: &str) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the rules for registries in {} cannot be used: {}", path.display(), why.trim()),
        fix,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_before_the_registry() {
        let mut rules = Registries::default();
        let text = "unqualified-search-registries = ['docker.io']\n[[registry]]\nlocation = 'docker.io'\n[[registry.mirror]]\nlocation = 'mirror:5000/hub'\n\
             insecure = true\n[[registry]]\nprefix = 'docker.io/secret'\nblocked = true\n[[registry]]\nlocation = 'lab:80'\ninsecure = true\n[[registry]]\nprefix = '*.corp.example'\ninsecure = true\n";
        rules.add(text, Path::new("x")).unwrap();
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
        assert_eq!(rules.places("a.b.corp.example", "c"), [place("a.b.corp.example", "c", true)]);
        for other in ["corp.example", "xcorp.example", ".corp.example"] {
            assert_eq!(rules.places(other, "c"), [place(other, "c", false)], "{other}");
        }
        assert_eq!(Registries::default().places("a.b", "c"), [place("a.b", "c", false)]);
    }

    #[test]
    fn files_add_to_one_another_and_a_damaged_one_is_told() {
        let dir = std::env::temp_dir().join(format!("viv-registries-{}", std::process::id()));
        let (system, home) = (dir.join("etc"), dir.join("home"));
        let variable = |name: &str| (name == "HOME").then(|| home.clone().into_os_string());
        let rules = || Registries::from(&variable, &system);
        let of = |rules: Registries| {
            rules.places("a.io", "x").into_iter().map(|place| place.registry).collect::<Vec<_>>()
        };
        let write = |path: &Path, location: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("[[registry]]\nprefix = 'a.io'\nlocation = '{location}'\n"))
                .unwrap();
        };
        assert_eq!(of(rules().unwrap()), ["a.io"]);
        write(&system.join(FILE), "system");
        assert_eq!(of(rules().unwrap()), ["system"]);
        write(&home.join(".config").join(FILE), "own");
        assert_eq!(of(rules().unwrap()), ["own"]);
        write(&system.join(MORE).join("b.conf"), "more");
        write(&system.join(MORE).join("a.conf"), "earlier");
        write(&system.join(MORE).join("c.txt"), "other");
        assert_eq!(of(rules().unwrap()), ["more"]);
        // Docker's are for what podman's say nothing of, and the user's own come first.
        let docker = |dir: &Path, text: &str| {
            std::fs::create_dir_all(dir.join("docker")).unwrap();
            std::fs::write(dir.join(docker::FILE), text).unwrap();
        };
        docker(&system, r#"{"insecure-registries":["a.io","b.io"]}"#);
        let is_insecure = |registry: &str| rules().unwrap().places(registry, "x").pop().unwrap().insecure;
        assert!(is_insecure("b.io") && !is_insecure("more"));
        docker(&home.join(".config"), "{}");
        assert!(!is_insecure("b.io"));
        docker(&system, "{");
        docker(&home.join(".config"), "[");
        let fault = rules().unwrap_err();
        assert!(fault.message.contains("daemon.json cannot be used"), "{}", fault.message);
        std::fs::remove_file(home.join(".config").join(docker::FILE)).unwrap();
        docker(&system, "{}");
        std::fs::write(home.join(".config").join(FILE), "[[registry").unwrap();
        let fault = rules().unwrap_err();
        assert!(fault.message.contains("registries.conf cannot be used"), "{}", fault.message);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
