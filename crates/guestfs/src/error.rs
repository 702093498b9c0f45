//! Why there is nothing to boot.
use viv_model::{Fault, Kind};

/// Why a disk could not be looked into, or has nothing that can be booted directly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk cannot be read.
    #[error("cannot read the disk: {0}")]
    Io(#[from] std::io::Error),
    /// Something on it is damaged.
    #[error("{what} on the disk is damaged: {why}")]
    Damaged {
        /// What.
        what: String,
        /// How.
        why: String,
    },
    /// No kernel was found.
    #[error("no kernel that can be booted directly was found in the disk ({found})")]
    NoKernel {
        /// What was found instead.
        found: String,
    },
    /// What the guest's configuration names is not there.
    #[error("{from} names {path}, which cannot be read: {why}")]
    Missing {
        /// Who names it.
        from: String,
        /// The file.
        path: String,
        /// Why not.
        why: String,
    },
    /// A file is larger than any such file.
    #[error("{path} in the disk has {bytes} bytes, more than the {max} that are read")]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// What was read could not be kept.
    #[error("cannot write what was read: {0}")]
    Write(std::io::Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        let own = "boot another kernel over it: --kernel FILE --initrd FILE --append 'root=/dev/vda1 console=ttyS0'";
        let (kind, fix) = match &error {
            Error::Io(_) => (Kind::Error, "see what the disk is: viv disk info FILE".to_string()),
            Error::NoKernel { .. } => (
                Kind::Usage,
                format!("a disk that boots by firmware needs firmware, which viv does not have yet; {own}"),
            ),
            Error::Damaged { .. } | Error::Missing { .. } | Error::TooLarge { .. } => {
                (Kind::Error, own.to_string())
            }
            Error::Write(source) if source.kind() == std::io::ErrorKind::StorageFull => {
                (Kind::NoCapacity, "make room on the file system of the VMs: viv info".to_string())
            }
            Error::Write(_) => {
                (Kind::Error, "see that the state directory is writable: viv info".to_string())
            }
        };
        Fault::new(kind, error.to_string(), fix)
    }
}
