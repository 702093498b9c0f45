//! XFS, by lamxfs. What is left in its log counts as after a mount.
use super::links::{Following, Plain};
use super::{Found, NAMES_MAX, Part};
use lamxfs::{BlockRead, Error, Inode, Path, SuperblockReason, Xfs};
use std::cell::RefCell;
use std::io;

/// What it begins with (XFS Algorithms & Data Structures, "Superblocks").
pub(super) const MAGIC: (u64, &[u8]) = (0, b"XFSB");

impl BlockRead for Part {
    type Error = io::Error;

    fn read_at(&mut self, at: u64, data: &mut [u8]) -> Result<(), io::Error> {
        Part::read(self, at, data)
    }
}

/// Opens it; gives its UUID and label, too.
pub(super) fn open(part: Part) -> Result<(Following<Xfs<Part>>, String, String), String> {
    let len = part.len;
    let fs = Xfs::open(part, len).map_err(|error| told(&error))?;
    let (uuid, label) = (super::uuid_text(&fs.uuid()), fs.label().unwrap_or_default().to_string());
    Ok((Following(RefCell::new(fs)), uuid, label))
}

fn told(error: &Error) -> String {
    match error {
        Error::NotFound { .. } => "it is not there".to_string(),
        Error::Io { .. } => "the disk cannot be read".to_string(),
        Error::NotARegularFile => "it is no regular file".to_string(),
        Error::UnsupportedFeature(feature) => format!("it has the feature {feature}, which is not read"),
        Error::BadSuperblock(SuperblockReason::DirtyLog) => {
            "changes in its log cannot be replayed here: mount it once".to_string()
        }
        other => other.token().to_string(),
    }
}

impl Plain for Xfs<Part> {
    type Node = Inode;
    const KIND: &'static str = "xfs";

    fn find(&mut self, path: &[u8]) -> Result<(Inode, Option<Found>), String> {
        let inode = self.resolve(Path::new(path)).map_err(|error| told(&error))?;
        let found = self.metadata(&inode).map_err(|error| told(&error))?;
        let found = match found {
            _ if found.is_symlink() => None,
            _ if found.is_file() => Some(Found::File(found.size())),
            _ if found.is_dir() => Some(Found::Directory),
            _ => Some(Found::Other),
        };
        Ok((inode, found))
    }

    fn target(&mut self, path: &[u8]) -> Result<Vec<u8>, String> {
        self.read_link(Path::new(path)).map_err(|error| told(&error))
    }

    fn names(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let entries = self.read_dir(Path::new(path)).map_err(|error| told(&error))?;
        Ok(entries.into_iter().take(NAMES_MAX).map(|entry| entry.name).collect())
    }

    fn read(&mut self, inode: Inode, at: u64, data: &mut [u8]) -> Result<usize, String> {
        self.read_file_at(&inode, at, data).map_err(|error| told(&error))
    }
}
