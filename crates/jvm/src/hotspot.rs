//! Finds a Java virtual machine on this host.
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// Where distributions put them.
const USUAL: &[&str] = &["/usr/lib/jvm", "/opt", "/usr/java"];

/// A Java virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hotspot {
    /// Its directory.
    pub(crate) home: PathBuf,
    /// Its version: 17.
    pub(crate) version: u16,
}

impl Hotspot {
    /// The one that `JAVA_HOME` names, the one in `PATH`, or the newest in the usual folders.
    pub(crate) fn find() -> Result<Hotspot, Fault> {
        if let Some(home) = env::var_os("JAVA_HOME").filter(|home| !home.is_empty()) {
            return Hotspot::at(Path::new(&home)).ok_or_else(|| {
                let text = format!("JAVA_HOME is {}, where there is no Java", Path::new(&home).display());
                Fault::new(Kind::NotRunnable, text, "name the directory that has bin/java in it, or unset it")
            });
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let in_path = env::split_paths(&path).map(|dir| dir.join("java")).find(|java| java.is_file());
        let home = in_path.and_then(|java| fs::canonicalize(java).ok());
        let found = home.and_then(|java| Hotspot::at(java.parent()?.parent()?));
        found.or_else(Hotspot::newest).ok_or_else(|| {
            Fault::new(
                Kind::NotRunnable,
                format!("no Java is on this host: not in JAVA_HOME, PATH, {}", USUAL.join(", ")),
                "install one: apt install default-jre-headless, and then: viv serve --replace",
            )
        })
    }

    fn newest() -> Option<Hotspot> {
        let folders = USUAL.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let all = folders.filter_map(|entry| Hotspot::at(&fs::canonicalize(entry.path()).ok()?));
        all.max_by_key(|hotspot| hotspot.version)
    }

    fn at(home: &Path) -> Option<Hotspot> {
        if !home.join("bin/java").is_file() {
            return None;
        }
        let release = fs::read_to_string(home.join("release")).unwrap_or_default();
        Some(Hotspot { home: home.to_path_buf(), version: version(&release).unwrap_or_default() })
    }

    /// Which Java it is; nothing if it does not say.
    pub(crate) fn java(&self) -> Option<u16> {
        (self.version > 0).then_some(self.version)
    }
}

/// The feature version in a `release` file: 8 of `1.8.0_412`, 17 of `17.0.15`.
fn version(release: &str) -> Option<u16> {
    let text = release.lines().find_map(|line| line.strip_prefix("JAVA_VERSION="))?;
    let text = text.trim_matches('"');
    let text = text.strip_prefix("1.").unwrap_or(text);
    text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_in_the_release_file() {
        assert_eq!(version("IMPLEMENTOR=\"x\"\nJAVA_VERSION=\"17.0.15\"\n"), Some(17));
        assert_eq!(version("JAVA_VERSION=\"1.8.0_412\""), Some(8));
        assert_eq!(version("JAVA_VERSION=\"25\""), Some(25));
        assert_eq!(version(""), None);
    }
}
