//! What is where in a fresh ext4.
use super::spec::{BLOCK, DESCRIPTOR_LEN, EXTENT_LEN_MAX, FIRST_INODE, FLEX_GROUPS, GROUP_BLOCKS, INODE_LEN};

/// Bytes of content for which there is an inode (mke2fs.conf, inode_ratio).
const BYTES_PER_INODE: u64 = 16384;
/// Blocks of `lost+found`: e2fsck finds room there when it can make none.
pub(super) const LOST_BLOCKS: u64 = 4;
/// A last group with less room than that is left out.
const LAST_GROUP_MIN: u64 = 64;

/// Sizes and places; blocks are numbered from the disk's beginning.
pub(super) struct Layout {
    pub(super) blocks: u64,
    pub(super) groups: u64,
    pub(super) inodes_per_group: u64,
    /// Blocks of an inode table, and of all group descriptors.
    pub(super) table_blocks: u64,
    pub(super) descriptor_blocks: u64,
    /// The root directory, `lost+found` behind it.
    pub(super) root: u64,
    pub(super) journal: u64,
    pub(super) journal_blocks: u64,
}

impl Layout {
    /// Of a disk of `blocks`, at least 16 MiB and at most 16 TiB.
    pub(super) fn new(blocks: u64) -> Layout {
        let mut layout = Layout::sized(blocks);
        let last = layout.blocks - (layout.groups - 1) * GROUP_BLOCKS;
        if layout.groups > 1 && last < layout.prefix(layout.groups - 1) + LAST_GROUP_MIN {
            layout = Layout::sized((layout.groups - 1) * GROUP_BLOCKS);
        }
        layout.root = layout.prefix(0);
        layout.journal = layout.journal_place();
        layout
    }

    fn sized(blocks: u64) -> Layout {
        let groups = blocks.div_ceil(GROUP_BLOCKS);
        // A block of the table is filled; no group has more than a whole group's share.
        let inodes_per_block = BLOCK / INODE_LEN;
        let inodes_per_group =
            (blocks.min(GROUP_BLOCKS) * BLOCK / BYTES_PER_INODE).next_multiple_of(inodes_per_block);
        Layout {
            blocks,
            groups,
            inodes_per_group,
            table_blocks: inodes_per_group / inodes_per_block,
            descriptor_blocks: (groups * DESCRIPTOR_LEN as u64).div_ceil(BLOCK),
            root: 0,
            journal: 0,
            journal_blocks: journal_blocks(blocks),
        }
    }

    /// The journal in one piece: behind the directories in the first group, or in the first group with room for it.
    fn journal_place(&self) -> u64 {
        let behind = self.root + 1 + LOST_BLOCKS;
        if behind + self.journal_blocks <= self.group_blocks(0) {
            return behind;
        }
        // The third group holds nothing of others, and is whole where a journal has more room than the first gives.
        let group = (1..self.groups)
            .find(|group| self.prefix(*group) + self.journal_blocks <= self.group_blocks(*group));
        group.map_or(behind, |group| group * GROUP_BLOCKS + self.prefix(group))
    }

    /// Where the superblock and the descriptors stand again: in the second group, and those whose number is a power of 3, 5 or 7
    /// (sparse_super).
    pub(super) fn is_backup(group: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < group {
                power *= base;
            }
            power == group
        };
        group == 1 || is_power(3) || is_power(5) || is_power(7)
    }

    pub(super) fn group_blocks(&self, group: u64) -> u64 {
        GROUP_BLOCKS.min(self.blocks - group * GROUP_BLOCKS)
    }

    /// The group that holds the bitmaps and tables of `group`, and how many others' it holds with its own.
    fn flex(&self, group: u64) -> (u64, u64) {
        let first = group - group % FLEX_GROUPS;
        (first, FLEX_GROUPS.min(self.groups - first))
    }

    /// Blocks of superblock and descriptors at a group's beginning.
    pub(super) fn super_blocks(&self, group: u64) -> u64 {
        if group == 0 || Layout::is_backup(group) { 1 + self.descriptor_blocks } else { 0 }
    }

    /// Blocks of metadata at a group's beginning.
    pub(super) fn prefix(&self, group: u64) -> u64 {
        let (first, count) = self.flex(group);
        let tables = if first == group { count * (2 + self.table_blocks) } else { 0 };
        self.super_blocks(group) + tables
    }

    /// Block bitmap, inode bitmap and inode table of a group.
    pub(super) fn places(&self, group: u64) -> [u64; 3] {
        let (first, count) = self.flex(group);
        let start = first * GROUP_BLOCKS + self.super_blocks(first);
        let at = group - first;
        [start + at, start + count + at, start + 2 * count + at * self.table_blocks]
    }

    /// Pieces of a group that are in use, from its beginning.
    pub(super) fn used(&self, group: u64) -> Vec<(u64, u64)> {
        let start = group * GROUP_BLOCKS;
        let mut used = vec![(0, self.prefix(group))];
        if group == 0 {
            used.push((self.root, 1 + LOST_BLOCKS));
        }
        if (start..start + GROUP_BLOCKS).contains(&self.journal) {
            used.push((self.journal - start, self.journal_blocks));
        }
        used
    }

    pub(super) fn free(&self, group: u64) -> u64 {
        let used: u64 = self.used(group).into_iter().map(|(_, blocks)| blocks).sum();
        self.group_blocks(group) - used
    }

    /// Whether a group's block bitmap is what its descriptor lets one compute: only superblock and descriptors are there. The last
    /// group's never is (e2fsck, PR_0_BB_UNINIT_LAST).
    pub(super) fn is_plain(&self, group: u64) -> bool {
        group + 1 < self.groups
            && self.used(group).into_iter().all(|(_, blocks)| blocks == self.super_blocks(group))
    }

    pub(super) fn inodes(&self) -> u64 {
        self.groups * self.inodes_per_group
    }

    pub(super) fn free_inodes(&self, group: u64) -> u64 {
        if group == 0 { self.inodes_per_group - u64::from(FIRST_INODE) } else { self.inodes_per_group }
    }
}

/// As mke2fs scales it (ext2fs_default_journal_size), up to the longest extent: 128 MiB.
fn journal_blocks(blocks: u64) -> u64 {
    match blocks {
        0..0x8000 => 1024,
        0x8000..0x4_0000 => 4096,
        0x4_0000..0x8_0000 => 8192,
        0x8_0000..0x100_0000 => 16384,
        _ => EXTENT_LEN_MAX,
    }
}
