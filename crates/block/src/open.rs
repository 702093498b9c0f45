//! Why a disk could not be opened, and what its user can do.

use crate::SECTOR;
use std::io;
use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// Why a disk could not be opened. Each kind has its own way out: see the conversion into [`Fault`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is nothing at this path.
    #[error("disk {path:?} does not exist")]
    Missing {
        /// The disk.
        path: PathBuf,
    },
    /// The path names a directory.
    #[error("disk {path:?} is a directory")]
    Directory {
        /// The disk.
        path: PathBuf,
    },
    /// The path names a pipe, a socket, a terminal or the like.
    #[error("disk {path:?} is neither a file nor a block device")]
    NotADisk {
        /// The disk.
        path: PathBuf,
    },
    /// The user may not read it, or may not write to it.
    #[error("disk {path:?} may not be {}", if *.read_only { "read" } else { "written" })]
    Permission {
        /// The disk.
        path: PathBuf,
        /// It was to be opened for reading only.
        read_only: bool,
        /// The system's answer.
        source: io::Error,
    },
    /// Another VM or program holds a lock on it.
    #[error("disk {path:?} is in use by another VM or program")]
    InUse {
        /// The disk.
        path: PathBuf,
        /// It was to be opened for reading only.
        read_only: bool,
    },
    /// It has no bytes.
    #[error("disk {path:?} is empty")]
    Empty {
        /// The disk.
        path: PathBuf,
    },
    /// Its size is not a whole number of sectors.
    #[error("disk {path:?} has {size} bytes, which is not a multiple of {SECTOR}")]
    OddSize {
        /// The disk.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
    },
    /// Anything else.
    #[error("cannot {what} disk {path:?}")]
    Io {
        /// The disk.
        path: PathBuf,
        /// What was tried: "open", "lock" or "measure".
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl OpenError {
    /// Sorts what the system said about opening `path`.
    pub(crate) fn from_io(path: &Path, read_only: bool, source: io::Error) -> OpenError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => OpenError::Missing { path },
            io::ErrorKind::IsADirectory => OpenError::Directory { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                OpenError::Permission { path, read_only, source }
            }
            _ => OpenError::Io { path, what: "open", source },
        }
    }

    /// The class of the fault.
    fn kind(&self) -> Kind {
        match self {
            OpenError::Missing { .. } => Kind::NotFound,
            OpenError::Permission { .. } => Kind::Denied,
            OpenError::InUse { .. } => Kind::Conflict,
            OpenError::Directory { .. }
            | OpenError::NotADisk { .. }
            | OpenError::Empty { .. }
            | OpenError::OddSize { .. } => Kind::Usage,
            OpenError::Io { .. } => Kind::Error,
        }
    }

    /// What the user can do now.
    fn fix(&self) -> String {
        match self {
            OpenError::Missing { path } => {
                format!("check the path, or make an empty disk: truncate -s 4G {}", shell_word(path))
            }
            OpenError::Directory { .. } => "name a disk image inside it, or the file of another disk".into(),
            OpenError::NotADisk { .. } => "name a raw image file or a block device".into(),
            OpenError::Permission { path, read_only: true, .. } => {
                format!("get the right to read it: chmod u+r {}", shell_word(path))
            }
            OpenError::Permission { path, read_only: false, .. } => {
                let word = shell_word(path);
                format!(
                    "attach it read-only with --disk {word},ro or get the right to write: chmod u+w {word}"
                )
            }
            OpenError::InUse { read_only: false, .. } => {
                "stop the VM that uses it, or give this VM a copy of its own (cp --reflink=auto)".into()
            }
            OpenError::InUse { path, read_only: true } => format!(
                "stop the VM that writes to it; VMs may share a disk only if all attach it with --disk {},ro",
                shell_word(path)
            ),
            OpenError::Empty { path } => format!("give it a size: truncate -s 4G {}", shell_word(path)),
            OpenError::OddSize { path, .. } => {
                format!("pad it with zeroes: truncate -s %{SECTOR} {}", shell_word(path))
            }
            OpenError::Io { what: "lock", .. } => "copy the disk to a file system that supports locks".into(),
            OpenError::Io { .. } => "check the file system that the disk is on (see dmesg)".into(),
        }
    }
}

/// A path as it can be pasted into a shell.
fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_alphanumeric() || "/._-+:@%=".contains(c);
    if !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl From<OpenError> for Fault {
    fn from(error: OpenError) -> Fault {
        let mut message = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            message = format!("{message}: {source}");
        }
        Fault::new(error.kind(), message, error.fix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let path = || PathBuf::from("/disks/it's mine.img");
        let source = || io::Error::from_raw_os_error(5);
        let errors = [
            OpenError::Missing { path: path() },
            OpenError::Directory { path: path() },
            OpenError::NotADisk { path: path() },
            OpenError::Permission { path: path(), read_only: true, source: source() },
            OpenError::Permission { path: path(), read_only: false, source: source() },
            OpenError::InUse { path: path(), read_only: true },
            OpenError::InUse { path: path(), read_only: false },
            OpenError::Empty { path: path() },
            OpenError::OddSize { path: path(), size: 513 },
            OpenError::Io { path: path(), what: "lock", source: source() },
            OpenError::Io { path: path(), what: "open", source: source() },
        ];
        for error in errors {
            let fault = Fault::from(error);
            assert!(!fault.fix.is_empty() && fault.message.contains("mine.img"), "{fault}");
        }
    }

    #[test]
    fn a_command_can_be_pasted() {
        assert_eq!(shell_word(Path::new("/disks/a.img")), "/disks/a.img");
        assert_eq!(shell_word(Path::new("it's")), r"'it'\''s'");
        assert_eq!(shell_word(Path::new("-rf")), "'-rf'");
        let odd = Fault::from(OpenError::OddSize { path: "/d/a b".into(), size: 1000 });
        assert_eq!(odd.fix, "pad it with zeroes: truncate -s %512 '/d/a b'");
    }
}
