//! btrfs, by lambutter: a file system for each subvolume that distributions boot from.
use super::links::{Following, Plain};
use super::{Found, NAMES_MAX, Part};
use crate::partition::Partition;
use lambutter::{BlockRead, Btrfs, Error, Inode, Path};
use std::cell::RefCell;
use std::io;

/// Where its superblock has its magic number (btrfs on-disk format, "Superblock"), and what else is read of it.
pub(super) const MAGIC: (u64, &[u8]) = (SUPER + 0x40, b"_BHRfS_M");
const SUPER: u64 = 0x1_0000;
const UUID: u64 = SUPER + 0x20;
const LABEL: u64 = SUPER + 0x12b;
const LABEL_LEN: usize = 256;

/// Subvolumes that are looked into besides the one that is mounted without being asked: Fedora's and openSUSE's, Ubuntu's and Arch's.
const SUBVOLUMES: &[&str] = &["root", "boot", "@", "@boot", "@/boot"];

/// A file system, and the subvolume that it is, if it is not the default one.
pub(super) type Subvolume = (Following<Btrfs<Part>>, Option<&'static str>);

impl BlockRead for Part {
    type Error = io::Error;

    fn read_at(&mut self, at: u64, data: &mut [u8]) -> Result<(), io::Error> {
        Part::read(self, at, data)
    }
}

/// Opens it; gives its UUID and label, too.
pub(super) fn open(part: &Part, partition: &Partition) -> Result<(Vec<Subvolume>, String, String), String> {
    let mut uuid = [0; 16];
    let mut label = [0; LABEL_LEN];
    part.read(UUID, &mut uuid)
        .and_then(|()| part.read(LABEL, &mut label))
        .map_err(|error| error.to_string())?;
    let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
    let label = String::from_utf8_lossy(label).into_owned();
    let first = Btrfs::open(part.clone(), partition.len).map_err(|error| told(&error))?;
    let mut known = vec![first.subvolume()];
    let mut all = vec![(Following(RefCell::new(first)), None)];
    for name in SUBVOLUMES {
        let path = format!("/{name}");
        let Some(path) = Path::new(path.as_bytes()) else { continue };
        let Ok(fs) = Btrfs::open_subvol_path(part.clone(), partition.len, path) else { continue };
        if !known.contains(&fs.subvolume()) {
            known.push(fs.subvolume());
            all.push((Following(RefCell::new(fs)), Some(*name)));
        }
    }
    Ok((all, super::uuid_text(&uuid), label))
}

fn told(error: &Error) -> String {
    match error {
        Error::NotFound => "it is not there".to_string(),
        Error::NotARegularFile => "it is no regular file".to_string(),
        other => other.to_string(),
    }
}

/// A path, which begins with `/` here.
fn as_path(path: &[u8]) -> Result<Path<'_>, String> {
    Path::new(path).ok_or_else(|| "it is no path".to_string())
}

impl Plain for Btrfs<Part> {
    type Node = Inode;
    const KIND: &'static str = "btrfs";

    fn find(&mut self, path: &[u8]) -> Result<(Inode, Option<Found>), String> {
        let inode = self.resolve(as_path(path)?).map_err(|error| told(&error))?;
        let found = self.metadata(&inode).map_err(|error| told(&error))?;
        let found = match found {
            _ if found.is_symlink() => None,
            _ if found.is_file() => Some(Found::File(found.size)),
            _ if found.is_dir() => Some(Found::Directory),
            _ => Some(Found::Other),
        };
        Ok((inode, found))
    }

    fn target(&mut self, path: &[u8]) -> Result<Vec<u8>, String> {
        self.read_link(as_path(path)?).map_err(|error| told(&error))
    }

    fn names(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>, String> {
        let entries = self.read_dir(as_path(path)?).map_err(|error| told(&error))?;
        Ok(entries.into_iter().take(NAMES_MAX).map(|entry| entry.name).collect())
    }

    fn read(&mut self, inode: Inode, at: u64, data: &mut [u8]) -> Result<usize, String> {
        self.read_file_at(&inode, at, data).map_err(|error| told(&error))
    }
}
