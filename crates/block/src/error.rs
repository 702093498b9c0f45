//! Why a disk could not be opened, and what its user can do.

use crate::SECTOR;
use std::io;
use std::path::{Path, PathBuf};
use viv_model::{DiskFormat, Fault, Kind};

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
    /// A file that was to be made is there already.
    #[error("{path:?} exists already")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The directory for a new file is not there.
    #[error("there is no directory for {path:?}")]
    NoDirectory {
        /// The file.
        path: PathBuf,
    },
    /// A new disk cannot be as it was asked for.
    #[error("cannot make disk {path:?}: {text}")]
    BadSize {
        /// The disk.
        path: PathBuf,
        /// Why.
        text: String,
    },
    /// An image contradicts itself or its file.
    #[error("{format} image {path:?} is damaged: {what}")]
    Damaged {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: &'static str,
        /// What is wrong.
        what: String,
    },
    /// An image has something that we do not have.
    #[error("{format} image {path:?} cannot be opened: {what}")]
    Unsupported {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: &'static str,
        /// What it has.
        what: String,
    },
    /// An image of this format can be read only.
    #[error("disk {path:?} is a {format} image, which can only be read")]
    ReadOnlyFormat {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: DiskFormat,
    },
    /// Something that only images of another format can do.
    #[error("disk {path:?} is {format}, not {wanted}")]
    WrongFormat {
        /// The image.
        path: PathBuf,
        /// Its format.
        format: DiskFormat,
        /// The format that can.
        wanted: DiskFormat,
    },
    /// An image refers to a file outside its directory that its user has not named.
    #[error("disk {path:?} refers to {target:?}, outside its own directory")]
    Outside {
        /// The disk that the user has named.
        path: PathBuf,
        /// The file.
        target: PathBuf,
    },
    /// The disk below an image is not there.
    #[error("disk {path:?} stands over {target:?}, which does not exist")]
    NoBacking {
        /// The image.
        path: PathBuf,
        /// The disk below it.
        target: PathBuf,
    },
    /// A chain of images that comes back to itself, or does not end.
    #[error("disk {path:?} stands over itself, or over too many images: again at {target:?}")]
    Circle {
        /// The disk that the user has named.
        path: PathBuf,
        /// Where the way down was given up.
        target: PathBuf,
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

/// Whether this process, or the host, may have no more open files (EMFILE and ENFILE of open(2)).
fn is_out_of_files(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error();
    errno == Some(Errno::MFILE.raw_os_error()) || errno == Some(Errno::NFILE.raw_os_error())
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
            OpenError::Missing { .. } | OpenError::NoBacking { .. } | OpenError::NoDirectory { .. } => {
                Kind::NotFound
            }
            OpenError::Permission { .. } | OpenError::Outside { .. } => Kind::Denied,
            OpenError::InUse { .. } | OpenError::Exists { .. } => Kind::Conflict,
            OpenError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => Kind::NoCapacity,
            OpenError::Io { source, .. } if is_out_of_files(source) => Kind::NoCapacity,
            OpenError::Directory { .. }
            | OpenError::NotADisk { .. }
            | OpenError::Empty { .. }
            | OpenError::OddSize { .. }
            | OpenError::BadSize { .. }
            | OpenError::Unsupported { .. }
            | OpenError::ReadOnlyFormat { .. }
            | OpenError::WrongFormat { .. } => Kind::Usage,
            OpenError::Damaged { .. } | OpenError::Circle { .. } | OpenError::Io { .. } => Kind::Error,
        }
    }

    /// What the user can do now.
    fn fix(&self) -> String {
        match self {
            OpenError::Missing { path } => {
                format!("check the path, or make an empty disk: viv disk create {} 4G", shell_word(path))
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
            OpenError::Exists { path } => {
                format!("name another file, or remove it first: rm {}", shell_word(path))
            }
            OpenError::NoDirectory { path } => {
                let directory = path.parent().unwrap_or(Path::new("."));
                format!("make it: mkdir -p {}", shell_word(directory))
            }
            OpenError::BadSize { .. } => "see viv disk create --help".into(),
            OpenError::Damaged { path, format: "qcow2", .. } => format!(
                "repair a copy of it with viv disk check --repair {}; if that says the same, only another copy of it helps",
                shell_word(path)
            ),
            OpenError::Damaged { .. } => {
                "use another copy of it, or see whether the program that made it can repair it".into()
            }
            OpenError::Unsupported { path, .. } => format!(
                "convert it with its own program: qemu-img convert -O qcow2 {} NEW.qcow2",
                shell_word(path)
            ),
            OpenError::ReadOnlyFormat { path, .. } => {
                let word = shell_word(path);
                format!(
                    "attach it read-only with --disk {word},ro or convert it: viv disk convert {word} NEW.qcow2"
                )
            }
            OpenError::WrongFormat { path, .. } => {
                format!("convert it first: viv disk convert {} NEW.qcow2", shell_word(path))
            }
            OpenError::Outside { path, target } => format!(
                "if you trust it, name the file: --disk {},allow={}",
                shell_word(path),
                shell_word(target)
            ),
            OpenError::NoBacking { path, .. } => format!(
                "put it back, or say where it is now: viv disk rebase --unsafe --backing FILE {}",
                shell_word(path)
            ),
            OpenError::Circle { path, .. } => format!(
                "see the chain with viv disk info {0}; let it end: viv disk rebase --unsafe --backing FILE {0}",
                shell_word(path)
            ),
            OpenError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "make room on its file system: df -h".into()
            }
            OpenError::Io { source, .. } if is_out_of_files(source) => {
                "close files, or let this process have more: ulimit -n".into()
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
        let (format, wanted) = (DiskFormat::Vmdk, DiskFormat::Qcow2);
        let target = || PathBuf::from("/etc/shadow");
        let errors = [
            OpenError::Exists { path: path() },
            OpenError::NoDirectory { path: path() },
            OpenError::BadSize { path: path(), text: "no".into() },
            OpenError::Damaged { path: path(), format: "qcow2", what: "no".into() },
            OpenError::Unsupported { path: path(), format: "qcow2", what: "no".into() },
            OpenError::ReadOnlyFormat { path: path(), format },
            OpenError::WrongFormat { path: path(), format, wanted },
            OpenError::Outside { path: path(), target: target() },
            OpenError::NoBacking { path: path(), target: target() },
            OpenError::Circle { path: path(), target: target() },
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
