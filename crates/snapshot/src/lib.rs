//! Snapshots as directories of files, each with checksums. What is in them is somebody else's business.
//!
//! ```text
//!  manifest       what this is, and a checksum of everything below; written last, so that a snapshot is whole or is none
//!  state          the sections, one after the other
//!  memory         RAM as a sparse file          memory.sums   a checksum of each chunk of it
//!  disk0 …        the disks likewise            disk0.sums …
//!  kernel initrd  what a restored machine boots anew with (program: what a program is)
//! ```
//! A content may be only what differs from an earlier one: then there are a `.map` of its pieces, and the layers below, `memory.1` and so
//! on, as links to the earlier snapshots' files.
//!
//! `docs/snapshot-format.md` has the format to the byte. Start reading at [`viv_model::Manifest`]; a content is a large
//! sparse file, a section a small piece of state.

mod content;
mod files;
mod manifest;
mod since;

pub use content::{CHUNK, Checked, GoOn, Ranges, ReadChunk, SUM_LEN, write as write_content, write_passing};
pub use files::{
    IMAGE, IMAGE_PART, INITRD, KERNEL, MEMORY, PROGRAM, SEED, SEED_SETTINGS, STATE, content_files, disk_file,
    layer_file, map_file, sums_file,
};
pub use manifest::{
    DRAFT, FORMAT_ASKED, FORMAT_LAYERS, FORMAT_PROGRAM, FORMAT_WHOLE, MANIFEST, SECTION_MAX, draft_manifest,
    open_memory, plain, read_manifest, read_section, read_sections, verify, verify_disk, write_manifest,
    write_section,
};
pub use since::{Base, LAYERS_MAX, Since};

use std::path::{Path, PathBuf};
use viv_model::{Fault, Kind};

/// Why a snapshot is not taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The manifest is missing: the snapshot was never finished, or is none.
    #[error("{} is no snapshot: it has no manifest", path.display())]
    None {
        /// The directory.
        path: PathBuf,
    },
    /// It was made by a release that knows more.
    #[error("{} is of format {format}, and this release knows formats up to {newest}", path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// The newest that we read.
        newest: u32,
    },
    /// Its content is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and how.
        what: String,
    },
    /// Whoever wanted to know about it does not any more.
    #[error("it was given up")]
    GivenUp,
    /// A file of it is no disk.
    #[error(transparent)]
    Disk(Box<viv_block::OpenError>),
    /// It cannot be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl SnapshotError {
    fn damaged(path: &Path, what: impl Into<String>) -> SnapshotError {
        SnapshotError::Damaged { path: path.to_owned(), what: what.into() }
    }

    /// For `map_err`.
    pub fn io(what: &'static str, path: &Path) -> impl Fn(std::io::Error) -> SnapshotError {
        move |source| SnapshotError::Io { what, path: path.to_owned(), source }
    }
}

impl From<SnapshotError> for Fault {
    fn from(error: SnapshotError) -> Fault {
        let message = error.to_string();
        match error {
            SnapshotError::Disk(error) => Fault::from(*error),
            SnapshotError::GivenUp => Fault::new(Kind::Error, message, "do it again when you like"),
            SnapshotError::None { .. } => {
                Fault::new(Kind::NotFound, message, "see what there is: viv snapshot ls")
            }
            SnapshotError::Newer { .. } => {
                Fault::new(Kind::Conflict, message, "use the release that made it, or a newer one")
            }
            SnapshotError::Damaged { .. } => Fault::new(
                Kind::Error,
                message,
                "it cannot be used any more: use another one, and look after the disk that it is on",
            ),
            SnapshotError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Fault::new(Kind::NoCapacity, message, "free space on that disk, for example: viv snapshot rm")
            }
            SnapshotError::Io { .. } => {
                Fault::new(Kind::Error, message, "see that the directory is yours and readable (viv info)")
            }
        }
    }
}
