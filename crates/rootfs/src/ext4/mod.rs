//! A fresh, empty ext4, as `mke2fs` makes it, with as little written as can be: bitmaps of untouched groups are marked as not initialised,
//! inode tables as zero, and the rest of the file is a hole.
//!
//! ```text
//!  group 0: superblock, group descriptors │ bitmaps and inode tables of groups 0 to 15 │ root directory, lost+found │ journal
//!  group 1: superblock and descriptors again   …   group 16: bitmaps and inode tables of groups 16 to 31   …
//! ```
//! There is no resize inode: `resize2fs` moves what is in the way, and a mounted file system grows by meta block groups.
mod fields;
mod inode;
mod layout;
pub(crate) mod read;
mod spec;

use crate::fault::writing;
use fields::{Fields, checksum};
use layout::{LOST_BLOCKS, Layout};
use spec::{
    BLOCK, BLOCK_UNINIT, DESCRIPTOR_LEN, FIRST_INODE, GROUP_BLOCKS, INODE_UNINIT, INODE_ZEROED,
    JOURNAL_INODE, JOURNAL_MAGIC, JOURNAL_SUPER_V2, SUPER_LEN, SUPER_OFFSET,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use viv_model::{Fault, Kind};

pub use read::ReadAt;
pub(crate) use spec::ROOT_INODE;

/// Least and most bytes of a file system that [`empty`] makes.
pub const SIZE_MIN: u64 = 16 << 20;
/// See [`SIZE_MIN`].
pub const SIZE_MAX: u64 = 16 << 40;

/// Makes `out`, an empty file, a disk of `bytes` with an empty ext4. The result depends on the arguments alone.
pub fn empty(bytes: u64, uuid: [u8; 16], label: &str, out: &File) -> Result<(), Fault> {
    if !(SIZE_MIN..=SIZE_MAX).contains(&bytes) {
        return Err(Fault::new(
            Kind::Usage,
            format!("an ext4 file system cannot have {bytes} bytes"),
            "give it from 16 MiB to 16 TiB",
        ));
    }
    let what = "an ext4 file system";
    if out.metadata().map_err(|error| writing(what, &error))?.len() != 0 {
        return Err(Fault::new(
            Kind::Conflict,
            "the file for an ext4 file system is not empty",
            "give a new file",
        ));
    }
    // A block number of 32 bits is enough, but for the last block of 16 TiB, which nobody misses.
    let layout = Layout::new((bytes / BLOCK).min(u64::from(u32::MAX)));
    let fresh = Fresh { layout, uuid, label, seed: checksum(!0, &uuid) };
    out.set_len(bytes).and_then(|()| fresh.write(out)).map_err(|error| writing(what, &error))
}

struct Fresh<'a> {
    layout: Layout,
    uuid: [u8; 16],
    label: &'a str,
    /// What every checksum but the superblock's begins with.
    seed: u32,
}

impl Fresh<'_> {
    fn write(&self, out: &File) -> std::io::Result<()> {
        let layout = &self.layout;
        let at = |block: u64| block * BLOCK;
        let mut descriptors = Vec::new();
        for group in 0..layout.groups {
            let bitmap = (!layout.is_plain(group)).then(|| self.block_bitmap(group));
            let inodes = (group == 0).then(|| self.inode_bitmap());
            let [block_place, inode_place, _] = layout.places(group);
            if let Some(bitmap) = &bitmap {
                out.write_all_at(bitmap, at(block_place))?;
            }
            if let Some(bitmap) = &inodes {
                out.write_all_at(bitmap, at(inode_place))?;
            }
            descriptors.extend(self.descriptor(group, bitmap.as_deref(), inodes.as_deref()));
        }
        let [_, _, table] = layout.places(0);
        out.write_all_at(&self.inodes(), at(table))?;
        out.write_all_at(&self.directories(), at(layout.root))?;
        out.write_all_at(&self.journal(), at(layout.journal))?;
        for group in (1..layout.groups).filter(|group| Layout::is_backup(*group)) {
            out.write_all_at(&self.super_block(group), at(group * GROUP_BLOCKS))?;
            out.write_all_at(&descriptors, at(group * GROUP_BLOCKS + 1))?;
        }
        out.write_all_at(&descriptors, at(1))?;
        out.write_all_at(&self.super_block(0), SUPER_OFFSET)
    }

    /// struct ext4_super_block ("Super Block").
    fn super_block(&self, group: u64) -> Vec<u8> {
        let layout = &self.layout;
        let free: u64 = (0..layout.groups).map(|group| layout.free(group)).sum();
        let (blocks, map) = (self.journal_size(), self.journal_map());
        let mut fields = Fields::new(SUPER_LEN);
        fields
            .u32(0x00, layout.inodes() as u32)
            .halves32(0x04, 0x150, layout.blocks)
            .halves32(0x0c, 0x158, free)
            .u32(0x10, (layout.inodes() - u64::from(FIRST_INODE)) as u32)
            .u32(0x18, spec::LOG_BLOCK_KIB)
            .u32(0x1c, spec::LOG_BLOCK_KIB)
            .u32(0x20, GROUP_BLOCKS as u32)
            .u32(0x24, GROUP_BLOCKS as u32)
            .u32(0x28, layout.inodes_per_group as u32)
            // No check is due after any number of mounts.
            .u16(0x36, u16::MAX)
            .u16(0x38, spec::SUPER_MAGIC)
            .u16(0x3a, spec::VALID_FS)
            .u16(0x3c, spec::ERRORS_CONTINUE)
            .u32(0x4c, spec::DYNAMIC_REV)
            .u32(0x54, FIRST_INODE)
            .u16(0x58, spec::INODE_LEN as u16)
            .u16(0x5a, group as u16)
            .u32(0x5c, spec::FEATURES_COMPAT)
            .u32(0x60, spec::FEATURES_INCOMPAT)
            .u32(0x64, spec::FEATURES_RO_COMPAT)
            .bytes(0x68, &self.uuid)
            .bytes(0x78, self.label_bytes())
            .u32(0xe0, JOURNAL_INODE)
            // The seed of the names' hashes.
            .bytes(0xec, &self.uuid)
            .u8(0xfc, spec::HASH_HALF_MD4)
            .u8(0xfd, spec::JOURNAL_BACKUP)
            .u16(0xfe, DESCRIPTOR_LEN as u16)
            .u32(0x100, spec::DEFAULT_MOUNT_OPTIONS)
            .bytes(0x10c, &map)
            .halves32(0x14c, 0x148, blocks)
            .u16(0x15c, spec::INODE_EXTRA)
            .u16(0x15e, spec::INODE_EXTRA)
            .u32(0x160, spec::FLAGS_SIGNED_HASH)
            .u8(0x174, spec::LOG_FLEX_GROUPS)
            .u8(0x175, spec::CHECKSUM_CRC32C);
        let sum = checksum(!0, fields.0.get(..0x3fc).unwrap_or_default());
        fields.u32(0x3fc, sum);
        std::mem::take(&mut fields.0)
    }

    /// As much of the label as there is room for, in whole characters.
    fn label_bytes(&self) -> &[u8] {
        let mut end = self.label.len().min(16);
        while !self.label.is_char_boundary(end) {
            end -= 1;
        }
        self.label.as_bytes().get(..end).unwrap_or_default()
    }

    /// struct ext4_group_desc ("Block Group Descriptors").
    fn descriptor(&self, group: u64, bitmap: Option<&[u8]>, inodes: Option<&[u8]>) -> Vec<u8> {
        let layout = &self.layout;
        let [block_place, inode_place, table] = layout.places(group);
        let mut flags = INODE_ZEROED;
        if bitmap.is_none() {
            flags |= BLOCK_UNINIT;
        }
        if inodes.is_none() {
            flags |= INODE_UNINIT;
        }
        let used_directories = if group == 0 { 2 } else { 0 };
        let inode_bytes = usize::try_from(layout.inodes_per_group / 8).unwrap_or(0);
        let inodes = inodes.and_then(|bitmap| bitmap.get(..inode_bytes));
        let bitmap_sum = bitmap.map_or(0, |bitmap| checksum(self.seed, bitmap));
        let inode_sum = inodes.map_or(0, |bitmap| checksum(self.seed, bitmap));
        let mut fields = Fields::new(DESCRIPTOR_LEN);
        fields
            .halves32(0x00, 0x20, block_place)
            .halves32(0x04, 0x24, inode_place)
            .halves32(0x08, 0x28, table)
            .halves16(0x0c, 0x2c, layout.free(group))
            .halves16(0x0e, 0x2e, layout.free_inodes(group))
            .halves16(0x10, 0x30, used_directories)
            .u16(0x12, flags)
            .halves16(0x18, 0x38, u64::from(bitmap_sum))
            .halves16(0x1a, 0x3a, u64::from(inode_sum))
            .halves16(0x1c, 0x32, layout.free_inodes(group));
        let sum = checksum(checksum(self.seed, &(group as u32).to_le_bytes()), &fields.0);
        fields.u16(0x1e, sum as u16);
        fields.0
    }

    /// A bit for each block in use, and for what is behind the end.
    fn block_bitmap(&self, group: u64) -> Vec<u8> {
        let layout = &self.layout;
        let size = layout.group_blocks(group);
        let mut pieces = layout.used(group);
        pieces.push((size, GROUP_BLOCKS - size));
        bitmap(&pieces)
    }

    /// The first inodes, and what is behind the last.
    fn inode_bitmap(&self) -> Vec<u8> {
        let inodes = self.layout.inodes_per_group;
        bitmap(&[(0, u64::from(FIRST_INODE)), (inodes, GROUP_BLOCKS - inodes)])
    }

    /// The root directory's block, and those of `lost+found`.
    fn directories(&self) -> Vec<u8> {
        let root: [(u32, &str); 3] = [(ROOT_INODE, "."), (ROOT_INODE, ".."), (FIRST_INODE, "lost+found")];
        let lost = [(FIRST_INODE, "."), (ROOT_INODE, "..")];
        let mut blocks = inode::directory_block(self.seed, ROOT_INODE, &root);
        for at in 0..LOST_BLOCKS {
            let names = if at == 0 { &lost[..] } else { &[] };
            blocks.extend(inode::directory_block(self.seed, FIRST_INODE, names));
        }
        blocks
    }

    /// A journal with nothing in it (journal_superblock_t, big-endian).
    fn journal(&self) -> Vec<u8> {
        let mut fields = Fields::new(SUPER_LEN);
        let mut put = |at: usize, value: u32| {
            fields.bytes(at, &value.to_be_bytes());
        };
        put(0x00, JOURNAL_MAGIC);
        put(0x04, JOURNAL_SUPER_V2);
        put(0x0c, BLOCK as u32);
        put(0x10, self.layout.journal_blocks as u32);
        // The log's first block, and the first number that it expects.
        put(0x14, 1);
        put(0x18, 1);
        // One file system uses it.
        put(0x40, 1);
        fields.bytes(0x30, &self.uuid);
        fields.0
    }
}

/// A block's bits: those of the pieces (first, count) are set.
fn bitmap(pieces: &[(u64, u64)]) -> Vec<u8> {
    let mut bytes = vec![0u8; BLOCK as usize];
    for (first, count) in pieces {
        for bit in *first..first.saturating_add(*count) {
            if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
                *byte |= 1 << (bit % 8);
            }
        }
    }
    bytes
}
