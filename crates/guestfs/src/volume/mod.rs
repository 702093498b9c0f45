//! A file system on a disk. ext2, ext3, ext4, XFS and btrfs are read; others are recognized, to be named.
mod btrfs;
mod ext;
mod links;
mod xfs;

use crate::partition::Partition;
use crate::{Error, TEXT_MAX};
use std::io::{self, Write};
use std::sync::Arc;
use viv_block::Disk;

/// Most entries of a directory that are looked at.
const NAMES_MAX: usize = 10_000;
/// Read at once.
const PIECE: usize = 1 << 20;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// A regular file, and how many bytes it has.
    File(u64),
    Directory,
    Other,
}

/// Gives the next bytes of a file; none at its end.
type Content<'a> = Box<dyn FnMut(&mut [u8]) -> Result<usize, String> + 'a>;

/// A file system by paths from its root, in which links are followed. Errors are words.
trait FileSystem {
    /// What people call it.
    fn kind(&self) -> &'static str;
    fn stat(&self, path: &str) -> Result<Found, String>;
    /// The names in a directory that are text.
    fn names(&self, path: &str) -> Vec<String>;
    /// A regular file from its begin.
    fn open(&self, path: &str) -> Result<Content<'_>, String>;
}

/// A part of a disk, for the readers of file systems.
#[derive(Clone)]
struct Part {
    disk: Arc<dyn Disk>,
    start: u64,
    len: u64,
}

impl Part {
    fn read(&self, at: u64, data: &mut [u8]) -> io::Result<()> {
        if at.checked_add(data.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the partition's end"));
        }
        self.disk.read(self.start.saturating_add(at), data)
    }

    fn has(&self, at: u64, magic: &[u8]) -> bool {
        at.saturating_add(magic.len() as u64) <= self.len
            && begins(&*self.disk, self.start.saturating_add(at), magic)
    }
}

/// A file system that can be read.
pub(crate) struct Volume {
    fs: Box<dyn FileSystem>,
    pub(crate) partition: Partition,
    /// As text, as in `root=UUID=…`.
    pub(crate) uuid: String,
    pub(crate) label: String,
    /// Of btrfs: if it is not the one that is mounted without being asked.
    subvolume: Option<&'static str>,
}

impl Volume {
    /// Opens the file systems of a partition; else says what is there, if that is known.
    pub(crate) fn open(disk: &Arc<dyn Disk>, partition: Partition) -> Result<Vec<Volume>, Option<String>> {
        let place = place(&partition);
        let part = Part { disk: disk.clone(), start: partition.start, len: partition.len };
        let broken = |kind: &str, why: String| Some(format!("{place}: {kind} that cannot be read ({why})"));
        let one = |fs: Box<dyn FileSystem>, (uuid, label): (String, String), subvolume| Volume {
            fs,
            partition: partition.clone(),
            uuid,
            label,
            subvolume,
        };
        if part.has(ext::MAGIC.0, ext::MAGIC.1) {
            let (fs, uuid, label) = ext::open(part, &partition).map_err(|why| broken("ext4", why))?;
            return Ok(vec![one(Box::new(fs), (uuid, label), None)]);
        }
        if part.has(xfs::MAGIC.0, xfs::MAGIC.1) {
            let (fs, uuid, label) = xfs::open(part).map_err(|why| broken("xfs", why))?;
            return Ok(vec![one(Box::new(fs), (uuid, label), None)]);
        }
        if part.has(btrfs::MAGIC.0, btrfs::MAGIC.1) {
            let (all, uuid, label) = btrfs::open(&part, &partition).map_err(|why| broken("btrfs", why))?;
            let names = || (uuid.clone(), label.clone());
            return Ok(all.into_iter().map(|(fs, name)| one(Box::new(fs), names(), name)).collect());
        }
        Err(recognize(&part).map(|kind| format!("{place}: {kind}")))
    }

    /// As one says it: `partition 2: ext4`.
    pub(crate) fn told(&self) -> String {
        format!("{}: {}", place(&self.partition), self.fs.kind())
    }

    /// By which Linux finds it.
    pub(crate) fn root_word(&self, with_initrd: bool) -> String {
        let root = match (&self.partition.uuid, self.partition.number) {
            // The kernel alone knows no file systems' names.
            (Some(uuid), _) if !with_initrd => format!("root=PARTUUID={uuid}"),
            (None, None) if !with_initrd => "root=/dev/vda".to_string(),
            _ => format!("root=UUID={}", self.uuid),
        };
        match self.subvolume {
            Some(name) => format!("{root} rootflags=subvol={name}"),
            None => root,
        }
    }

    pub(crate) fn is_file(&self, path: &str) -> bool {
        self.size(path).is_ok()
    }

    pub(crate) fn is_dir(&self, path: &str) -> bool {
        self.fs.stat(path) == Ok(Found::Directory)
    }

    /// The size of a regular file; links are followed.
    pub(crate) fn size(&self, path: &str) -> Result<u64, String> {
        match self.fs.stat(path)? {
            Found::File(size) => Ok(size),
            _ => Err("it is no regular file".to_string()),
        }
    }

    /// A file of text, read as far as it is some.
    pub(crate) fn text(&self, path: &str) -> Result<String, String> {
        let mut bytes = Vec::new();
        self.copy(path, TEXT_MAX, &mut bytes).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The names in a directory.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        self.fs.names(path)
    }

    /// Copies a file of at most `max` bytes; gives how many it has.
    pub(crate) fn copy(&self, path: &str, max: u64, to: &mut dyn Write) -> Result<u64, Error> {
        let missing = |why| Error::Missing { from: "the guest".into(), path: path.to_string(), why };
        let size = self.size(path).map_err(missing)?;
        if size > max {
            return Err(Error::TooLarge { path: path.to_string(), bytes: size, max });
        }
        let mut content = self.fs.open(path).map_err(missing)?;
        let mut piece = vec![0; PIECE.min(size as usize).max(1)];
        let mut done = 0;
        while done < size {
            // Some read a block at a time.
            let mut filled = 0;
            while let Some(rest) = piece.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                let count = content(rest).map_err(missing)?;
                if count == 0 {
                    break;
                }
                filled += count;
            }
            if filled == 0 {
                break;
            }
            to.write_all(piece.get(..filled).unwrap_or_default()).map_err(Error::Write)?;
            done += filled as u64;
        }
        Ok(done)
    }
}

fn place(partition: &Partition) -> String {
    match partition.number {
        Some(number) => format!("partition {number}"),
        None => "the whole disk".to_string(),
    }
}

/// As in `root=UUID=…` (RFC 9562, section 4).
fn uuid_text(uuid: &[u8; 16]) -> String {
    let digits: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| digits.get(part).unwrap_or_default());
    parts.join("-")
}

/// Whether there is a file system at `start` that can be read.
pub(crate) fn is_known(disk: &dyn Disk, start: u64) -> bool {
    [ext::MAGIC, xfs::MAGIC, btrfs::MAGIC]
        .iter()
        .any(|(at, magic)| begins(disk, start.saturating_add(*at), magic))
}

fn begins(disk: &dyn Disk, at: u64, magic: &[u8]) -> bool {
    let mut data = vec![0; magic.len()];
    at.saturating_add(magic.len() as u64) <= disk.size() && disk.read(at, &mut data).is_ok() && data == magic
}

/// What else may be on a partition, by what it begins with: where, what, and its name.
const KNOWN: &[(u64, &[u8], &str)] = &[
    (536, b"LVM2 001", "a volume of LVM"),
    (0, b"LUKS\xba\xbe", "encrypted (LUKS)"),
    (82, b"FAT32   ", "FAT"),
    (54, b"FAT16   ", "FAT"),
    (54, b"FAT12   ", "FAT"),
    (3, b"NTFS    ", "NTFS"),
    (3, b"EXFAT   ", "exFAT"),
    (0, b"hsqs", "squashfs"),
    (1024, b"\xe2\xe1\xf5\xe0", "EROFS"),
    (0x8001, b"CD001", "ISO 9660"),
    (4086, b"SWAPSPACE2", "swap"),
];

fn recognize(part: &Part) -> Option<&'static str> {
    KNOWN.iter().find(|(at, magic, _)| part.has(*at, magic)).map(|(_, _, name)| *name)
}
