//! A file system on a disk. ext2, ext3 and ext4 are read; others are recognized, to be named.
use crate::partition::{Partition, le32};
use crate::{Error, TEXT_MAX};
use ext4_view::{Ext4, Ext4Error, Ext4Read, Path};
use std::error::Error as StdError;
use std::io::{self, Write};
use std::sync::Arc;
use viv_block::Disk;

/// Where ext4 has its superblock, and in it its magic number, the logarithm of the size of a block, the number of blocks
/// and that of a group (Linux, Documentation/filesystems/ext4/super.rst).
const SUPER: u64 = 1024;
const MAGIC_AT: usize = 0x38;
const MAGIC: u16 = 0xef53;
const BLOCKS_LOW: usize = 0x4;
const BLOCKS_HIGH: usize = 0x150;
const BLOCK_LOG: usize = 0x18;
const GROUP_BLOCKS: usize = 0x20;
/// Blocks have 64 KiB at most.
const BLOCK_LOG_MAX: u32 = 6;
/// Most groups of blocks: 16 TiB with the usual ones of 128 MiB.
const GROUPS_MAX: u64 = 1 << 17;
/// Most entries of a directory that are looked at.
const NAMES_MAX: usize = 10_000;
/// Read at once.
const PIECE: usize = 1 << 20;

/// A part of a disk, for the reader of ext4.
struct Part {
    disk: Arc<dyn Disk>,
    start: u64,
    len: u64,
}

impl Ext4Read for Part {
    fn read(&mut self, at: u64, data: &mut [u8]) -> Result<(), Box<dyn StdError + Send + Sync + 'static>> {
        if at.checked_add(data.len() as u64).is_none_or(|end| end > self.len) {
            return Err(Box::new(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the partition's end")));
        }
        Ok(self.disk.read(self.start.saturating_add(at), data)?)
    }
}

/// A file system that can be read.
pub(crate) struct Volume {
    fs: Ext4,
    pub(crate) partition: Partition,
    /// As text, as in `root=UUID=…`.
    pub(crate) uuid: String,
    pub(crate) label: String,
}

/// Whether there is an ext file system at `start`.
pub(crate) fn is_ext(disk: &dyn Disk, start: u64) -> bool {
    let mut magic = [0; 2];
    let at = start.saturating_add(SUPER + MAGIC_AT as u64);
    at.saturating_add(2) <= disk.size()
        && disk.read(at, &mut magic).is_ok()
        && u16::from_le_bytes(magic) == MAGIC
}

impl Volume {
    /// Opens the file system of a partition; else says what is there, if that is known.
    pub(crate) fn open(disk: &Arc<dyn Disk>, partition: Partition) -> Result<Volume, Option<String>> {
        let place = match partition.number {
            Some(number) => format!("partition {number}"),
            None => "the whole disk".to_string(),
        };
        if !is_ext(&**disk, partition.start) {
            return Err(recognize(&**disk, &partition).map(|kind| format!("{place}: {kind}")));
        }
        let broken = |why: String| Some(format!("{place}: ext4 that cannot be read ({why})"));
        check(&**disk, &partition).map_err(|why| broken(why.to_string()))?;
        let part = Part { disk: disk.clone(), start: partition.start, len: partition.len };
        let fs = Ext4::load(Box::new(part)).map_err(|error| broken(error.to_string()))?;
        let uuid = fs.uuid().to_string().to_lowercase();
        let label = fs.label().to_str().unwrap_or_default().to_string();
        Ok(Volume { fs, partition, uuid, label })
    }

    /// By which Linux finds it.
    pub(crate) fn root_word(&self, with_initrd: bool) -> String {
        match (&self.partition.uuid, self.partition.number) {
            // The kernel alone knows no file systems' names.
            (Some(uuid), _) if !with_initrd => format!("root=PARTUUID={uuid}"),
            (None, None) if !with_initrd => "root=/dev/vda".to_string(),
            _ => format!("root=UUID={}", self.uuid),
        }
    }

    pub(crate) fn is_file(&self, path: &str) -> bool {
        self.size(path).is_ok()
    }

    pub(crate) fn is_dir(&self, path: &str) -> bool {
        Path::try_from(path).is_ok_and(|path| self.fs.metadata(path).is_ok_and(|found| found.is_dir()))
    }

    /// The size of a regular file; links are followed.
    pub(crate) fn size(&self, path: &str) -> Result<u64, String> {
        let metadata = self.fs.metadata(as_path(path)?).map_err(|error| told(&error))?;
        match metadata.file_type().is_regular_file() {
            true => Ok(metadata.len()),
            false => Err("it is no regular file".to_string()),
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
        let entries = Path::try_from(path).ok().and_then(|path| self.fs.read_dir(path).ok());
        let entries = entries.into_iter().flatten().take(NAMES_MAX).map_while(Result::ok);
        entries.filter_map(|entry| Some(entry.file_name().as_str().ok()?.to_string())).collect()
    }

    /// Copies a file of at most `max` bytes; gives how many it has.
    pub(crate) fn copy(&self, path: &str, max: u64, to: &mut dyn Write) -> Result<u64, Error> {
        let missing = |why| Error::Missing { from: "the guest".into(), path: path.to_string(), why };
        let size = self.size(path).map_err(missing)?;
        if size > max {
            return Err(Error::TooLarge { path: path.to_string(), bytes: size, max });
        }
        let mut file =
            self.fs.open(as_path(path).map_err(missing)?).map_err(|error| missing(told(&error)))?;
        let mut piece = vec![0; PIECE.min(size as usize).max(1)];
        let mut done = 0;
        while done < size {
            // It reads a block at a time.
            let mut filled = 0;
            while let Some(rest) = piece.get_mut(filled..).filter(|rest| !rest.is_empty()) {
                let count = file.read_bytes(rest).map_err(|error| missing(told(&error)))?;
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

fn as_path(path: &str) -> Result<Path<'_>, String> {
    Path::try_from(path).map_err(|error| error.to_string())
}

fn told(error: &Ext4Error) -> String {
    match error {
        Ext4Error::NotFound => "it is not there".to_string(),
        Ext4Error::Io(error) => format!("the disk cannot be read: {error}"),
        other => other.to_string(),
    }
}

/// Refuses numbers for which the reader would allocate without bound.
fn check(disk: &dyn Disk, partition: &Partition) -> Result<(), &'static str> {
    let mut data = [0; 1024];
    if partition.len < SUPER + data.len() as u64
        || disk.read(partition.start.saturating_add(SUPER), &mut data).is_err()
    {
        return Err("it has no superblock");
    }
    let log = le32(&data, BLOCK_LOG);
    if log > BLOCK_LOG_MAX {
        return Err("its blocks are larger than any");
    }
    // The upper half counts only with the feature 64BIT (0x80 at 0x60).
    let high = if le32(&data, 0x60) & 0x80 != 0 { u64::from(le32(&data, BLOCKS_HIGH)) << 32 } else { 0 };
    let blocks = high | u64::from(le32(&data, BLOCKS_LOW));
    if blocks.checked_mul(1024 << log).is_none_or(|bytes| bytes > partition.len) {
        return Err("it is larger than its partition");
    }
    match u64::from(le32(&data, GROUP_BLOCKS)) {
        0 => Err("its groups have no blocks"),
        group if blocks.div_ceil(group) > GROUPS_MAX => Err("it has more groups than any"),
        _ => Ok(()),
    }
}

/// What else may be on a partition, by what it begins with: where, what, and its name.
const KNOWN: &[(u64, &[u8], &str)] = &[
    (0, b"XFSB", "xfs"),
    (0x1_0040, b"_BHRfS_M", "btrfs"),
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

fn recognize(disk: &dyn Disk, partition: &Partition) -> Option<&'static str> {
    let is_there = |at: u64, magic: &[u8]| {
        let mut data = vec![0; magic.len()];
        at.saturating_add(magic.len() as u64) <= partition.len
            && disk.read(partition.start.saturating_add(at), &mut data).is_ok()
            && data == magic
    };
    KNOWN.iter().find(|(at, magic, _)| is_there(*at, magic)).map(|(_, _, name)| *name)
}
