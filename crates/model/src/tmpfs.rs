//! Directories of a guest that are in its memory, as `--tmpfs` of tools of containers has them.
use crate::share::{escaped, plain};
use crate::volume::check_volume;
use crate::{Fault, Kind};
use std::str::FromStr;

/// The word of the kernel's command line that tells the agent of one: `viv.tmpfs=OPTIONS:PATH`, the path escaped as those of shares are.
pub const TMPFS_PARAMETER: &str = "viv.tmpfs";
/// Options that are there or not (mount(8), "Filesystem-independent mount options").
const PLAIN: [&str; 9] = ["rw", "ro", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "noatime"];
/// Options with a value (tmpfs(5)).
const VALUED: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];
const FIX: &str = "write --tmpfs PATH or --tmpfs PATH:OPTIONS: ro, exec, suid, dev, size=64m, mode=1777, uid=N, gid=N, nr_inodes=N";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TmpfsMount {
    /// Where it is in the guest.
    pub path: String,
    /// Its options, as mount(8) has them.
    pub options: Vec<String>,
}

impl FromStr for TmpfsMount {
    type Err = Fault;
    /// `PATH`, or `PATH:OPTION,…`.
    fn from_str(text: &str) -> Result<TmpfsMount, Fault> {
        let (path, options) = text.split_once(':').unwrap_or((text, ""));
        TmpfsMount::new(path, options)
    }
}

impl TmpfsMount {
    fn new(path: &str, options: &str) -> Result<TmpfsMount, Fault> {
        check_volume(path).map_err(|fault| Fault { fix: FIX.to_string(), ..fault })?;
        let options: Vec<_> =
            options.split(',').filter(|option| !option.is_empty()).map(str::to_string).collect();
        match options.iter().find(|option| !is_known(option)) {
            Some(option) => Err(Fault::new(
                Kind::Usage,
                format!("a tmpfs at {path:?} cannot have the option {option:?}"),
                FIX,
            )),
            None => Ok(TmpfsMount { path: path.to_string(), options }),
        }
    }

    /// As a word of the command line.
    pub fn word(&self) -> String {
        format!("{TMPFS_PARAMETER}={}:{}", self.options.join(","), escaped(&self.path))
    }

    /// What stands behind `viv.tmpfs=`, if it is that.
    pub fn from_value(value: &str) -> Option<TmpfsMount> {
        let (options, path) = value.split_once(':')?;
        TmpfsMount::new(&plain(path)?, options).ok()
    }
}

fn is_known(option: &str) -> bool {
    match option.split_once('=') {
        Some((name, value)) => {
            VALUED.contains(&name)
                && !value.is_empty()
                && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'%')
        }
        None => PLAIN.contains(&option),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_goes_through_a_command_line() {
        for text in ["/tmp", "/run/a b:size=64m,mode=1770", "/x:ro,exec,size=50%"] {
            let mount: TmpfsMount = text.parse().unwrap();
            let word = mount.word();
            assert!(!word.contains(char::is_whitespace), "{word}");
            assert_eq!(TmpfsMount::from_value(word.split_once('=').unwrap().1), Some(mount));
        }
        assert_eq!("/tmp".parse::<TmpfsMount>().unwrap().word(), "viv.tmpfs=:/tmp");
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "tmp",
            "/",
            "/a/..",
            "/tmp:size",
            "/tmp:size=",
            "/tmp:mode=1 7",
            "/tmp:ro=1",
            "/tmp:lowerdir=x",
            "/tmp:bind",
        ] {
            assert!(text.parse::<TmpfsMount>().is_err(), "{text}");
        }
        assert_eq!(TmpfsMount::from_value("/tmp"), None);
    }
}
