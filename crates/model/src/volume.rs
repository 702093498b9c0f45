//! Directories of a guest that keep their content apart from its image's: on the VM's own disk, and in no image that is made of it.
use crate::share::{escaped, plain};
use crate::{Fault, Kind, ShareSpec};

/// Most of one VM.
pub const VOLUMES_MAX: usize = 32;
/// The word of the kernel's command line that tells the agent of one: `viv.volume=PATH`, escaped as those of shares are.
pub const VOLUME_PARAMETER: &str = "viv.volume";

/// Checks the path of a volume.
pub fn check_volume(path: &str) -> Result<(), Fault> {
    let share = ShareSpec { path: "/".into(), target: path.to_string(), ..ShareSpec::default() };
    share.check().map_err(|fault| {
        let fix =
            "write -v PATH, with an absolute PATH in the guest; -v DIR:PATH for a directory of the host";
        Fault { fix: fix.to_string(), ..fault }
    })
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
