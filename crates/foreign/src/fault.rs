//! Failures of files from elsewhere, as a person meets them.
use std::io;
use std::path::Path;
use viv_model::{Fault, Kind};

/// A file does not have the form that it claims.
pub(crate) fn damaged(what: impl std::fmt::Display, why: impl std::fmt::Display) -> Fault {
    Fault::new(
        Kind::Error,
        format!("{what} is damaged: {why}"),
        "get it again from where it came, or have its program write it anew",
    )
}

/// What is sound, and is not read here; `fix` says what to do.
pub(crate) fn unsupported(
    what: impl std::fmt::Display,
    why: impl std::fmt::Display,
    fix: impl Into<String>,
) -> Fault {
    Fault::new(Kind::Usage, format!("{what} cannot be imported: {why}"), fix)
}

/// The operating system refused something, or what was read ended before its time.
pub(crate) fn failed<'a>(doing: &'a str, path: &'a Path) -> impl Fn(io::Error) -> Fault + 'a {
    move |error| {
        let message = format!("cannot {doing} {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => {
                damaged(path.display(), error)
            }
            io::ErrorKind::NotFound => Fault::new(Kind::NotFound, message, "name a file that is there"),
            io::ErrorKind::PermissionDenied => {
                Fault::new(Kind::Denied, message, "give yourself the right to read it")
            }
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Fault::new(Kind::NoCapacity, message, "free some space there, or remove images: viv images")
            }
            _ => Fault::new(Kind::Error, message, "look at the disk and its file system, then try again"),
        }
    }
}
