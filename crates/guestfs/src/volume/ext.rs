//! ext2, ext3 and ext4, by ext4-view, which follows links itself.
use super::{Content, FileSystem, Found, NAMES_MAX, Part};
use crate::partition::{Partition, le32};
use ext4_view::{Ext4, Ext4Error, Ext4Read, Path};
use std::error::Error as StdError;
use viv_block::Disk;

/// Where ext4 has its superblock, and in it its magic number, the logarithm of the size of a block, the number of blocks
/// and that of a group (Linux, Documentation/filesystems/ext4/super.rst).
const SUPER: u64 = 1024;
pub(super) const MAGIC: (u64, &[u8]) = (SUPER + 0x38, b"\x53\xef");
const BLOCKS_LOW: usize = 0x4;
const BLOCKS_HIGH: usize = 0x150;
const BLOCK_LOG: usize = 0x18;
const GROUP_BLOCKS: usize = 0x20;
/// Blocks have 64 KiB at most.
const BLOCK_LOG_MAX: u32 = 6;
/// Most groups of blocks: 16 TiB with the usual ones of 128 MiB.
const GROUPS_MAX: u64 = 1 << 17;

impl Ext4Read for Part {
    fn read(&mut self, at: u64, data: &mut [u8]) -> Result<(), Box<dyn StdError + Send + Sync + 'static>> {
        Ok(Part::read(self, at, data)?)
    }
}

/// Opens it; gives its UUID and label, too.
pub(super) fn open(part: Part, partition: &Partition) -> Result<(Ext4, String, String), String> {
    check(&*part.disk, partition)?;
    let fs = Ext4::load(Box::new(part)).map_err(|error| error.to_string())?;
    let uuid = fs.uuid().to_string().to_lowercase();
    let label = fs.label().to_str().unwrap_or_default().to_string();
    Ok((fs, uuid, label))
}

impl FileSystem for Ext4 {
    fn kind(&self) -> &'static str {
        "ext4"
    }

    fn stat(&self, path: &str) -> Result<Found, String> {
        let metadata = self.metadata(as_path(path)?).map_err(|error| told(&error))?;
        Ok(match metadata.file_type() {
            kind if kind.is_regular_file() => Found::File(metadata.len()),
            kind if kind.is_dir() => Found::Directory,
            _ => Found::Other,
        })
    }

    fn names(&self, path: &str) -> Vec<String> {
        let entries = Path::try_from(path).ok().and_then(|path| self.read_dir(path).ok());
        let entries = entries.into_iter().flatten().take(NAMES_MAX).map_while(Result::ok);
        entries.filter_map(|entry| Some(entry.file_name().as_str().ok()?.to_string())).collect()
    }

    fn open(&self, path: &str) -> Result<Content<'_>, String> {
        let mut file = Ext4::open(self, as_path(path)?).map_err(|error| told(&error))?;
        Ok(Box::new(move |data| file.read_bytes(data).map_err(|error| told(&error))))
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
