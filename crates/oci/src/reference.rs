//! How an image is named: `docker.io/library/postgres:16`, `oci:DIR:TAG`, `oci-archive:FILE`, `docker-archive:FILE`.
use crate::Digest;
use std::fmt;
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// The tag of a reference that has none.
const LATEST: &str = "latest";
/// Docker's registry, and the repository that it means by a bare name.
const DOCKER: &str = "docker.io";
const DOCKER_LIBRARY: &str = "library";
/// Longest name of a repository (OCI distribution specification, "Pulling manifests": 255 with the registry).
const NAME_MAX: usize = 255;

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryName {
    /// Host and port: `docker.io`, `localhost:5000`.
    pub registry: String,
    /// `library/postgres`.
    pub repository: String,
    /// `16`; what is taken if there is no digest.
    pub tag: Option<String>,
    /// The one and only image of this content.
    pub digest: Option<Digest>,
}

impl RegistryName {
    /// What a registry is asked for: the digest if there is one, else the tag.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => LATEST.to_string(),
        }
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))?;
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// In a registry.
    Registry(RegistryName),
    /// In an OCI layout on the disk; the tag, if it has more than one image.
    Layout(PathBuf, Option<String>),
    /// In a tar of an OCI layout, or from `docker save`.
    Archive(PathBuf, Option<String>),
}

impl Reference {
    /// Whether `text` means an image that is somewhere else, not the name of one in the store: it has a registry's host before a
    /// slash, or a scheme before a colon.
    pub fn is_one(text: &str) -> bool {
        ["oci:", "oci-archive:", "docker-archive:", "docker://"].iter().any(|scheme| text.starts_with(scheme))
            || text.split_once('/').is_some_and(|(host, rest)| is_host(host) && !rest.is_empty())
    }

    /// Reads a reference. Relative paths are below `dir`.
    pub fn parse(text: &str, dir: &Path) -> Result<Reference, Fault> {
        if let Some(place) = text.strip_prefix("oci:") {
            let (path, tag) = split_tag(place);
            return Ok(Reference::Layout(below(dir, path, text)?, tag));
        }
        for scheme in ["oci-archive:", "docker-archive:"] {
            if let Some(place) = text.strip_prefix(scheme) {
                let (path, tag) = split_tag(place);
                return Ok(Reference::Archive(below(dir, path, text)?, tag));
            }
        }
        registry_name(text.strip_prefix("docker://").unwrap_or(text)).map(Reference::Registry)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path, tag) = match self {
            Reference::Registry(name) => return name.fmt(f),
            Reference::Layout(path, tag) => ("oci", path, tag),
            Reference::Archive(path, tag) => ("oci-archive", path, tag),
        };
        write!(f, "{scheme}:{}", path.display())?;
        tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

/// As containers tools tell a host from the first part of a path: it has a dot or a port, or is `localhost`.
fn is_host(text: &str) -> bool {
    let name = text.split(':').next().unwrap_or_default();
    (text == "localhost" || text.contains('.') || text.contains(':') || text.starts_with('['))
        && !name.starts_with('.')
        && !text.contains(char::is_whitespace)
}

/// A path, and the tag or name behind a colon: behind an archive's ending, or in the path's last part.
fn split_tag(text: &str) -> (&str, Option<String>) {
    let ending = text.find(".tar:").map(|at| at + 4);
    let last = || {
        let part = text.rfind('/').map_or(0, |slash| slash + 1);
        text.get(part..)?.find(':').map(|at| part + at)
    };
    let split = ending.or_else(last).and_then(|at| Some((text.get(..at)?, text.get(at + 1..)?)));
    match split {
        Some((path, tag)) if !tag.is_empty() => (path, Some(tag.to_string())),
        _ => (text, None),
    }
}

fn below(dir: &Path, path: &str, text: &str) -> Result<PathBuf, Fault> {
    if path.is_empty() {
        return Err(wrong(text, "it names no file"));
    }
    Ok(dir.join(path))
}

fn wrong(text: &str, why: &str) -> Fault {
    let text: String = text.chars().take(300).collect();
    Fault::new(
        Kind::Usage,
        format!("{text:?} names no image: {why}"),
        "write it like docker.io/library/debian:12, registry:5000/team/app@sha256:…, oci:DIR:TAG, oci-archive:FILE or docker-archive:FILE",
    )
}

fn registry_name(text: &str) -> Result<RegistryName, Fault> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
        None => (text, None),
    };
    let (registry, path) = rest
        .split_once('/')
        .filter(|(host, _)| is_host(host))
        .ok_or_else(|| wrong(text, "it has no registry"))?;
    let (repository, tag) = match path.rsplit_once(':') {
        Some((repository, tag)) => (repository, Some(tag.to_string())),
        None => (path, None),
    };
    if !registry.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]_".contains(&byte)) {
        return Err(wrong(text, "its registry has characters that no host has"));
    }
    if let Some(tag) = &tag
        && !is_tag(tag)
    {
        return Err(wrong(text, "a tag has letters, digits and _ . - and at most 128 of them"));
    }
    let repository = match registry == DOCKER && !repository.contains('/') {
        true => format!("{DOCKER_LIBRARY}/{repository}"),
        false => repository.to_string(),
    };
    if repository.chars().any(|c| c.is_ascii_uppercase()) {
        return Err(wrong(text, "a repository has no capital letters"));
    }
    if repository.len() > NAME_MAX || !repository.split('/').all(is_component) {
        return Err(wrong(text, "a repository is words of a-z, 0-9 and . _ - between them, with slashes"));
    }
    let tag = tag.or_else(|| digest.is_none().then(|| LATEST.to_string()));
    Ok(RegistryName { registry: registry.to_string(), repository, tag, digest })
}

/// OCI distribution specification, "Pulling manifests": `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
pub(crate) fn is_tag(tag: &str) -> bool {
    let mut bytes = tag.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric() || first == b'_')
        && tag.len() <= 128
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

/// The same: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = word.bytes().next().is_some_and(plain) && word.bytes().last().is_some_and(plain);
    let between = word.split(|c: char| plain(c as u8) && c.is_ascii()).filter(|between| !between.is_empty());
    ends && between
        .into_iter()
        .all(|between| matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Reference, Fault> {
        Reference::parse(text, Path::new("/here"))
    }

    #[test]
    fn names_are_read_as_people_write_them() {
        let digest = Digest::of(b"");
        for (text, full) in [
            ("docker.io/postgres", "docker.io/library/postgres:latest".to_string()),
            ("docker://docker.io/a/b:1", "docker.io/a/b:1".into()),
            ("localhost/x", "localhost/x:latest".into()),
            ("127.0.0.1:5000/a/b/c__d-e:v1.2_x", "127.0.0.1:5000/a/b/c__d-e:v1.2_x".into()),
            (&format!("quay.io/x/y@{digest}"), format!("quay.io/x/y@{digest}")),
            (&format!("quay.io/x/y:1@{digest}"), format!("quay.io/x/y:1@{digest}")),
            ("oci:dir:tag", "oci:/here/dir:tag".into()),
            ("oci:/a/dir", "oci:/a/dir".into()),
            ("oci-archive:x.tar", "oci-archive:/here/x.tar".into()),
            ("docker-archive:/x.tar:a", "oci-archive:/x.tar:a".into()),
            ("docker-archive:/a:b/x.tar:t:1", "oci-archive:/a:b/x.tar:t:1".into()),
            ("docker-archive:/x.tar:quay.io/a/b:1", "oci-archive:/x.tar:quay.io/a/b:1".into()),
        ] {
            assert!(Reference::is_one(text), "{text}");
            let reference = parse(text).unwrap();
            assert_eq!(reference.to_string(), full);
            assert_eq!(parse(&full).unwrap(), reference);
        }
    }

    #[test]
    fn names_in_the_store_and_files_are_none() {
        for text in ["debian", "default", "./x.qcow2", "/a/b", "../x", "a/b", "library/x:1", "postgres:16"] {
            assert!(!Reference::is_one(text), "{text}");
        }
    }

    #[test]
    fn what_no_registry_has_is_refused() {
        for text in [
            "docker.io/",
            "docker.io/A",
            "docker.io/a//b",
            "docker.io/a:",
            "docker.io/a:-b",
            "docker.io/a@md5:1",
            "oci:",
            "docker.io/-a",
            "docker.io/a...b",
            "docker.io/../etc",
            "ex?ample.com/a",
            "docker.io/a b",
        ] {
            assert_eq!(parse(text).unwrap_err().kind, Kind::Usage, "{text}");
        }
        assert!(parse(&format!("docker.io/{}", "a".repeat(300))).is_err());
    }
}
