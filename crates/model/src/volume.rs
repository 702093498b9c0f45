//! Directories of a guest that keep their content apart from its image's: on the VM's own disk, or on a disk with a name that outlives
//! the VM; and in no image that is made of it.
use crate::share::{escaped, plain};
use crate::{Fault, Kind, ShareMount, ShareSpec};
use std::str::FromStr;

/// Most of one VM.
pub const VOLUMES_MAX: usize = 32;
/// The word of the kernel's command line that tells the agent of one: `viv.volume=PATH`, escaped as those of shares are.
pub const VOLUME_PARAMETER: &str = "viv.volume";

/// The word that tells of one on a disk of its own: `viv.volume-disk=SERIAL:ro:PATH`, as [`ShareMount`]'s with the disk's serial number.
pub const VOLUME_DISK_PARAMETER: &str = "viv.volume-disk";
/// Most bytes of a volume's name.
const NAME_MAX: usize = 64;

/// A volume of a VM: `PATH`, or `NAME:PATH` with `:ro` or `:rw` behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeMount {
    /// What it is called, if it outlives the VM.
    pub name: Option<String>,
    /// Where it is in the guest.
    pub path: String,
    /// The guest may not change anything in it.
    pub read_only: bool,
}

impl FromStr for VolumeMount {
    type Err = Fault;
    fn from_str(text: &str) -> Result<VolumeMount, Fault> {
        if text.starts_with('/') {
            check_volume(text)?;
            return Ok(VolumeMount { name: None, path: text.to_string(), read_only: false });
        }
        let share = ShareSpec::from_str(text).map_err(|fault| Fault { fix: FIX.to_string(), ..fault })?;
        let name = share.path.to_string_lossy().into_owned();
        check_volume_name(&name)?;
        Ok(VolumeMount { name: Some(name), path: share.target, read_only: share.read_only })
    }
}

impl VolumeMount {
    /// Whether `-v TEXT` is a volume, and no directory of the host: a path of the guest alone, or behind what is a name and no path.
    pub fn is_one(text: &str) -> bool {
        match text.split_once(':') {
            None => text.starts_with('/'),
            Some((name, _)) => check_volume_name(name).is_ok(),
        }
    }

    /// As a word of the command line, if it has a disk, by the disk's serial number.
    pub fn disk_word(&self, serial: &str) -> String {
        let access = if self.read_only { "ro" } else { "rw" };
        format!("{VOLUME_DISK_PARAMETER}={serial}:{access}:{}", escaped(&self.path))
    }
}

/// What stands behind `viv.volume-disk=`, if it is that.
pub fn volume_disk_of(value: &str) -> Option<ShareMount> {
    ShareMount::from_value(value).filter(|mount| check_volume(&mount.target).is_ok())
}

/// How a volume is asked for.
const FIX: &str = "write -v PATH, or -v NAME:PATH[:ro], with an absolute PATH in the guest; -v ./DIR:PATH for a directory of the host";

/// Checks the name of a volume.
pub fn check_volume_name(name: &str) -> Result<(), Fault> {
    let is_sign = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let begins = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins && name.len() <= NAME_MAX && name.bytes().all(is_sign) {
        return Ok(());
    }
    Err(Fault::new(
        Kind::Usage,
        format!("a volume cannot be called {name:?}"),
        format!(
            "use 1 to {NAME_MAX} letters, digits, '_', '.' and '-', a letter or digit first; a directory of the host begins with / or ./"
        ),
    ))
}

/// Checks the path of a volume.
pub fn check_volume(path: &str) -> Result<(), Fault> {
    let share = ShareSpec { path: "/".into(), target: path.to_string(), ..ShareSpec::default() };
    share.check().map_err(|fault| Fault { fix: FIX.to_string(), ..fault })
}

/// Checks how many there are.
pub fn check_volumes(count: usize) -> Result<(), Fault> {
    if count <= VOLUMES_MAX {
        return Ok(());
    }
    let text = format!("{count} volumes are too many for one VM");
    Err(Fault::new(Kind::Usage, text, format!("use at most {VOLUMES_MAX}, those of its image counted")))
}

/// A volume as a word of the command line.
pub fn volume_word(path: &str) -> String {
    format!("{VOLUME_PARAMETER}={}", escaped(path))
}

/// The path behind `viv.volume=`, if it is one.
pub fn volume_of(value: &str) -> Option<String> {
    plain(value).filter(|path| check_volume(path).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_from_directories() {
        let one = |text: &str| VolumeMount::from_str(text);
        assert_eq!(one("/data").unwrap().name, None);
        let named = one("pg-data.1:/var/lib/postgresql/data:ro").unwrap();
        assert_eq!(
            (named.name.as_deref(), named.path.as_str()),
            (Some("pg-data.1"), "/var/lib/postgresql/data")
        );
        assert!(named.read_only && !one("a:/b:rw").unwrap().read_only);
        for text in
            ["data", "data:", ":/x", "data:x", "data:/", "a b:/x", ".data:/x", "../a:/x", "a/b:/x", "a:/../x"]
        {
            assert!(one(text).is_err(), "{text}");
        }
        assert!(["/data", "data:/x", "9:/x:ro"].into_iter().all(VolumeMount::is_one));
        assert!(!["./data:/x", "/a:/x", "a/b:/x", "data", ".:/x"].into_iter().any(VolumeMount::is_one));
        assert!(check_volume_name(&"a".repeat(65)).is_err());
    }

    #[test]
    fn a_disks_word_goes_through_a_command_line() {
        let mount = VolumeMount { name: Some("a".into()), path: "/var/lib/a b".into(), read_only: true };
        let word = mount.disk_word("volume3");
        assert_eq!(word, "viv.volume-disk=volume3:ro:/var/lib/a%20b");
        let found = volume_disk_of(word.split_once('=').unwrap().1).unwrap();
        assert_eq!(
            (found.tag.as_str(), found.target.as_str(), found.read_only),
            ("volume3", "/var/lib/a b", true)
        );
        assert_eq!(volume_disk_of("volume3:rw:relative"), None);
    }

    #[test]
    fn a_volume_goes_through_a_command_line() {
        for path in ["/data", "/var/lib/a b", "/ü,:=%"] {
            let word = volume_word(path);
            assert!(!word.contains(|c: char| c.is_whitespace()), "{word}");
            assert_eq!(volume_of(word.strip_prefix("viv.volume=").unwrap()).as_deref(), Some(path));
        }
        for path in ["", "data", "/", "/a/../b", "/a\0"] {
            assert!(check_volume(path).is_err() && volume_of(&escaped(path)).is_none(), "{path:?}");
        }
        assert!(check_volumes(VOLUMES_MAX).is_ok() && check_volumes(VOLUMES_MAX + 1).is_err());
    }
}
