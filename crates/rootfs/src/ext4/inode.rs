//! The inodes and directory blocks that a fresh ext4 has.
use super::Fresh;
use super::fields::{Fields, checksum};
use super::layout::LOST_BLOCKS;
use super::spec::{
    BLOCK, DIR_TAIL, EXTENT_MAGIC, EXTENTS_FLAG, FIRST_INODE, FT_DIR, FT_DIR_CHECKSUM, INODE_EXTRA,
    INODE_LEN, JOURNAL_INODE, ROOT_INODE,
};

impl Fresh<'_> {
    /// The beginning of the first inode table: up to the last inode in use.
    pub(super) fn inodes(&self) -> Vec<u8> {
        let layout = &self.layout;
        let mut table = Fields::new(FIRST_INODE as usize * INODE_LEN as usize);
        let lost = layout.root + 1;
        let mut put = |number: u32, mode: u16, links: u16, map: Vec<u8>, blocks: u64| {
            let inode = self.inode(number, mode, links, &map, blocks);
            table.bytes((number as usize - 1) * INODE_LEN as usize, &inode);
        };
        put(ROOT_INODE, 0o040_755, 3, extent(layout.root, 1), 1);
        put(JOURNAL_INODE, 0o100_600, 1, self.journal_map(), layout.journal_blocks);
        put(FIRST_INODE, 0o040_700, 2, extent(lost, LOST_BLOCKS), LOST_BLOCKS);
        table.0
    }

    /// struct ext4_inode ("Index Nodes").
    fn inode(&self, number: u32, mode: u16, links: u16, map: &[u8], blocks: u64) -> Vec<u8> {
        let mut fields = Fields::new(INODE_LEN as usize);
        fields
            .u16(0x00, mode)
            .halves32(0x04, 0x6c, blocks * BLOCK)
            .u16(0x1a, links)
            // In units of 512 bytes.
            .u32(0x1c, (blocks * (BLOCK / 512)) as u32)
            .u32(0x20, EXTENTS_FLAG)
            .bytes(0x28, map)
            .u16(0x80, INODE_EXTRA);
        let seed = inode_seed(self.seed, number);
        let sum = checksum(seed, &fields.0);
        fields.halves16(0x7c, 0x82, u64::from(sum));
        fields.0
    }

    /// The journal's extent, as its inode and the superblock have it (i_block).
    pub(super) fn journal_map(&self) -> Vec<u8> {
        extent(self.layout.journal, self.layout.journal_blocks)
    }

    pub(super) fn journal_size(&self) -> u64 {
        self.layout.journal_blocks * BLOCK
    }
}

/// All checksums of an inode's own begin with its number and its generation, which is 0.
fn inode_seed(seed: u32, number: u32) -> u32 {
    checksum(checksum(seed, &number.to_le_bytes()), &0u32.to_le_bytes())
}

/// A tree of one extent (struct ext4_extent_header, struct ext4_extent).
fn extent(start: u64, blocks: u64) -> Vec<u8> {
    let mut fields = Fields::new(60);
    fields.u16(0, EXTENT_MAGIC).u16(2, 1).u16(4, 4);
    fields.u16(16, blocks as u16).u16(18, (start >> 32) as u16).u32(20, start as u32);
    fields.0
}

/// A directory's block (struct ext4_dir_entry_2); without names it is one entry that is not used. Its end is a checksum.
pub(super) fn directory_block(seed: u32, inode: u32, names: &[(u32, &str)]) -> Vec<u8> {
    let end = BLOCK as usize - DIR_TAIL;
    let mut fields = Fields::new(BLOCK as usize);
    if names.is_empty() {
        fields.u16(4, end as u16);
    }
    let mut at = 0;
    for (index, (target, name)) in names.iter().enumerate() {
        let length = (8 + name.len()).next_multiple_of(4);
        let length = if index + 1 == names.len() { end - at } else { length };
        fields.u32(at, *target).u16(at + 4, length as u16).u8(at + 6, name.len() as u8).u8(at + 7, FT_DIR);
        fields.bytes(at + 8, name.as_bytes());
        at += length;
    }
    let sum = checksum(inode_seed(seed, inode), fields.0.get(..end).unwrap_or_default());
    fields.u16(end + 4, DIR_TAIL as u16).u8(end + 7, FT_DIR_CHECKSUM).u32(end + 8, sum);
    fields.0
}
