//! Failures of the host's files, as a person meets them.
use std::io;
use std::path::Path;
use viv_model::{Fault, Kind};

/// What the caller was doing to `path` when the operating system refused.
pub(super) fn io_fault<'a>(doing: &'a str, path: &'a Path) -> impl Fn(io::Error) -> Fault + 'a {
    move |error| {
        let message = format!("cannot {doing} {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Fault::new(Kind::NoCapacity, message, "free some space there, or remove images: viv images")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Fault::new(
                Kind::Denied,
                message,
                "give yourself access to it, or keep everything elsewhere: VIV_HOME=/path viv …",
            ),
            _ => Fault::new(Kind::Error, message, "look at the disk and its file system, then try again"),
        }
    }
}

/// The work was told to stop.
pub(crate) fn cancelled() -> Fault {
    Fault::new(Kind::Error, "it was given up", "nothing half-made is kept; start it again when you like")
}

/// A file that came from outside does not have the form that it claims.
pub(super) fn broken(what: &str, why: impl std::fmt::Display) -> Fault {
    Fault::new(
        Kind::Error,
        format!("{what} is damaged or of an unknown form: {why}"),
        "run the build again; if it stays so, report the package and its version",
    )
}
