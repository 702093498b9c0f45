//! Inodes (struct ext4_inode; "Index Nodes").
use super::{FileSystem, damaged, u16_at, u32_at};
use crate::ext4::fields::checksum;
use crate::ext4::spec::BLOCK;
use crate::tar::Mtime;
use viv_model::Fault;

/// Bytes of the fields that every inode has.
const BASE: usize = 128;
/// Where the checksum's halves are (i_checksum_lo, i_checksum_hi).
const SUM_LOW: usize = 0x7c;
const SUM_HIGH: usize = 0x82;

/// What an inode is (i_mode, the upper 4 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Fifo,
    Character,
    Directory,
    Block,
    File,
    Symlink,
    Socket,
}

/// An inode, without what it leads to.
#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) number: u32,
    pub(crate) kind: Type,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u16,
    pub(crate) size: u64,
    pub(crate) mtime: Mtime,
    pub(crate) flags: u32,
    /// i_block: the root of its extents, a short link's target, a device's number.
    pub(crate) map: [u8; 60],
    /// The block of its extended attributes, and those that stand in it.
    pub(super) attributes_at: u64,
    pub(super) attributes: Vec<u8>,
}

impl Inode {
    /// A device's major and minor number (include/linux/kdev_t.h, old_decode_dev and new_decode_dev).
    pub(crate) fn device(&self) -> (u32, u32) {
        let (old, new) = (u32_at(&self.map, 0).unwrap_or_default(), u32_at(&self.map, 4).unwrap_or_default());
        match old {
            0 => ((new & 0xf_ff00) >> 8, (new & 0xff) | ((new >> 12) & 0xf_ff00)),
            old => ((old >> 8) & 0xff, old & 0xff),
        }
    }
}

impl FileSystem<'_> {
    /// The inode of this number, which must be in use.
    pub(crate) fn inode(&self, number: u32) -> Result<Inode, Fault> {
        let bad = |what: &str| damaged(format!("inode {number} {what}"));
        let index = number.checked_sub(1).filter(|_| number <= self.inodes).ok_or_else(|| bad("is none"))?;
        let table = self.inode_table(u64::from(index / self.inodes_per_group))?;
        let at = u64::from(index % self.inodes_per_group).saturating_mul(self.inode_len as u64);
        let block = self.block(table.saturating_add(at / BLOCK))?;
        let start = (at % BLOCK) as usize;
        let bytes = block.get(start..start.saturating_add(self.inode_len)).unwrap_or_default();
        let word = |at| u32_at(bytes, at).unwrap_or_default();
        let half = |at| u16_at(bytes, at).unwrap_or_default();
        let extra = if bytes.len() > BASE { usize::from(half(0x80)) } else { 0 };
        if BASE.saturating_add(extra) > bytes.len() || extra % 4 != 0 {
            return Err(bad("has more fields than room"));
        }
        if self.has_checksums && !self.is_intact(number, bytes, extra) {
            return Err(bad("has a wrong checksum"));
        }
        let kind = match half(0) >> 12 {
            0x1 => Type::Fifo,
            0x2 => Type::Character,
            0x4 => Type::Directory,
            0x6 => Type::Block,
            0x8 => Type::File,
            0xa => Type::Symlink,
            0xc => Type::Socket,
            _ => return Err(bad("is of no kind")),
        };
        let links = half(0x1a);
        if links == 0 {
            return Err(bad("has a name, and says that it has none"));
        }
        // i_mtime is signed; i_mtime_extra has 2 bits more and the nanoseconds ("Inode Timestamps").
        let more = if extra >= 12 { word(0x88) } else { 0 };
        let seconds = i64::from(word(0x10) as i32).saturating_add(i64::from(more & 3) << 32);
        let nanoseconds = (more >> 2).min(999_999_999);
        Ok(Inode {
            number,
            kind,
            mode: half(0) & 0o7777,
            uid: u32::from(half(0x2)) | u32::from(half(0x78)) << 16,
            gid: u32::from(half(0x18)) | u32::from(half(0x7a)) << 16,
            links,
            size: u64::from(word(0x4)) | u64::from(word(0x6c)) << 32,
            mtime: Mtime { seconds, nanoseconds },
            flags: word(0x20),
            map: bytes.get(0x28..0x64).and_then(|map| map.try_into().ok()).unwrap_or([0; 60]),
            attributes_at: u64::from(word(0x68)) | u64::from(half(0x76)) << 32,
            attributes: bytes.get(BASE.saturating_add(extra)..).unwrap_or_default().to_vec(),
        })
    }

    /// Compares an inode with its checksum ("Checksums").
    fn is_intact(&self, number: u32, bytes: &[u8], extra: usize) -> bool {
        let has_high = extra >= 4;
        let mut cleared = bytes.to_vec();
        let mut found = u32::from(u16_at(bytes, SUM_LOW).unwrap_or_default());
        let mut clear = |at: usize| cleared.get_mut(at..at + 2).unwrap_or_default().fill(0);
        clear(SUM_LOW);
        if has_high {
            clear(SUM_HIGH);
            found |= u32::from(u16_at(bytes, SUM_HIGH).unwrap_or_default()) << 16;
        }
        let generation = bytes.get(0x64..0x68).unwrap_or_default();
        let seed = checksum(checksum(self.seed, &number.to_le_bytes()), generation);
        let sum = checksum(seed, &cleared);
        found == if has_high { sum } else { sum & 0xffff }
    }
}
