//! What goes wrong with layers, and the way out.
use std::io;
use viv_model::{Fault, Kind};

/// A layer, or what was made of it, is not what it should be.
pub(crate) fn damaged(what: impl std::fmt::Display) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the layer is damaged: {what}"),
        "get the image again; when that does not help, its maker has to build it anew",
    )
}

/// A layer wants more than a limit admits.
pub(crate) fn excessive(what: impl std::fmt::Display) -> Fault {
    Fault::new(
        Kind::NoCapacity,
        format!("the layer is refused: {what}"),
        "check where the image comes from: a layer of this kind is made by mistake, or to do harm",
    )
}

/// The image's file system cannot be made.
pub(crate) fn unfit(what: impl std::fmt::Display) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the image's root file system cannot be made: {what}"),
        "get the image again; when that does not help, its maker has to build it anew",
    )
}

/// Reading a layer failed: its end, its compression, or the place where it comes from.
pub(crate) fn reading(error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => damaged("it ends too early"),
        io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput | io::ErrorKind::Other => damaged(error),
        _ => Fault::new(
            Kind::Error,
            format!("cannot read the layer: {error}"),
            "check the disk or the network that it is read from, and try again",
        ),
    }
}

/// Writing to the host's disk failed.
pub(crate) fn writing(what: &str, error: &io::Error) -> Fault {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Fault::new(
                Kind::NoCapacity,
                format!("cannot write {what}: {error}"),
                "make room on the disk of the image store, and try again",
            )
        }
        _ => Fault::new(
            Kind::Error,
            format!("cannot write {what}: {error}"),
            "check the disk of the image store, and try again",
        ),
    }
}
