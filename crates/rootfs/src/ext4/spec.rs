//! ext4 on disk: constants of the kernel's fs/ext4/ext4.h and include/linux/jbd2.h, described in its Documentation/filesystems/ext4.

/// Bytes of a block, and the binary logarithm of its kibibytes (s_log_block_size).
pub(super) const BLOCK: u64 = 4096;
pub(super) const LOG_BLOCK_KIB: u32 = 2;
/// Blocks of a group: as many as bits of a block.
pub(super) const GROUP_BLOCKS: u64 = 8 * BLOCK;
/// Where the superblock is in the first block; backups are at their block's beginning.
pub(super) const SUPER_OFFSET: u64 = 1024;
pub(super) const SUPER_LEN: usize = 1024;
pub(super) const SUPER_MAGIC: u16 = 0xef53;
/// Unmounted cleanly (EXT4_VALID_FS); errors are noted, and work goes on (EXT4_ERRORS_CONTINUE).
pub(super) const VALID_FS: u16 = 1;
pub(super) const ERRORS_CONTINUE: u16 = 1;
/// Inodes of variable size (EXT4_DYNAMIC_REV).
pub(super) const DYNAMIC_REV: u32 = 1;

/// EXT4_FEATURE_COMPAT_HAS_JOURNAL, EXT_ATTR, DIR_INDEX.
pub(super) const FEATURES_COMPAT: u32 = 0x4 | 0x8 | 0x20;
/// EXT4_FEATURE_INCOMPAT_FILETYPE, EXTENTS, 64BIT, FLEX_BG.
pub(super) const FEATURES_INCOMPAT: u32 = 0x2 | 0x40 | 0x80 | 0x200;
/// EXT4_FEATURE_RO_COMPAT_SPARSE_SUPER, LARGE_FILE, HUGE_FILE, DIR_NLINK, EXTRA_ISIZE, METADATA_CSUM.
pub(super) const FEATURES_RO_COMPAT: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40 | 0x400;
/// EXT4_DEFM_XATTR_USER and EXT4_DEFM_ACL.
pub(super) const DEFAULT_MOUNT_OPTIONS: u32 = 0x4 | 0x8;
/// Names are hashed as signed characters (EXT2_FLAGS_SIGNED_HASH), by half MD4 (DX_HASH_HALF_MD4).
pub(super) const FLAGS_SIGNED_HASH: u32 = 1;
pub(super) const HASH_HALF_MD4: u8 = 1;
/// Checksums are CRC32C (EXT4_CRC32C_CHKSUM).
pub(super) const CHECKSUM_CRC32C: u8 = 1;
/// The journal's blocks stand in the superblock again (EXT4 s_jnl_backup_type).
pub(super) const JOURNAL_BACKUP: u8 = 1;

/// Bytes of a group descriptor.
pub(super) const DESCRIPTOR_LEN: usize = 64;
/// Flags of groups: inodes and bitmap not initialised (EXT4_BG_INODE_UNINIT), block bitmap not initialised
/// (EXT4_BG_BLOCK_UNINIT), inode table known to be zero (EXT4_BG_INODE_ZEROED).
pub(super) const INODE_UNINIT: u16 = 1;
pub(super) const BLOCK_UNINIT: u16 = 2;
pub(super) const INODE_ZEROED: u16 = 4;
/// Groups whose bitmaps and inode tables stand together, and its binary logarithm.
pub(super) const FLEX_GROUPS: u64 = 1 << LOG_FLEX_GROUPS;
pub(super) const LOG_FLEX_GROUPS: u8 = 4;

/// Bytes of an inode, and of its fields behind the first 128.
pub(super) const INODE_LEN: u64 = 256;
pub(super) const INODE_EXTRA: u16 = 32;
/// The inodes that there are from the beginning, and the first that is not reserved.
pub(crate) const ROOT_INODE: u32 = 2;
pub(super) const JOURNAL_INODE: u32 = 8;
pub(super) const FIRST_INODE: u32 = 11;
/// The inode has extents (EXT4_EXTENTS_FL); magic of their header (EXT4_EXT_MAGIC).
pub(super) const EXTENTS_FLAG: u32 = 0x8_0000;
pub(super) const EXTENT_MAGIC: u16 = 0xf30a;
/// Longest extent, blocks (EXT_INIT_MAX_LEN).
pub(super) const EXTENT_LEN_MAX: u64 = 1 << 15;

/// Type of a directory in its entries (EXT4_FT_DIR); the checksum at a block's end poses as an entry of this type
/// (EXT4_FT_DIR_CSUM) and length.
pub(super) const FT_DIR: u8 = 2;
pub(super) const FT_DIR_CHECKSUM: u8 = 0xde;
pub(super) const DIR_TAIL: usize = 12;

/// JBD2_MAGIC_NUMBER and JBD2_SUPERBLOCK_V2.
pub(super) const JOURNAL_MAGIC: u32 = 0xc03b_3998;
pub(super) const JOURNAL_SUPER_V2: u32 = 4;
