//! EROFS on disk: constants of the kernel's fs/erofs/erofs_fs.h, of Linux 5.15 and later.

/// Where the superblock is, bytes (EROFS_SUPER_OFFSET).
pub(super) const SUPER_OFFSET: usize = 1024;
/// Bytes of it (struct erofs_super_block).
pub(super) const SUPER_LEN: usize = 128;
/// EROFS_SUPER_MAGIC_V1.
pub(super) const SUPER_MAGIC: u32 = 0xe0f5_e1e2;
/// The first block has a checksum (EROFS_FEATURE_COMPAT_SB_CHKSUM).
pub(super) const COMPAT_SB_CHKSUM: u32 = 0x1;
/// Inodes have times of modification (EROFS_FEATURE_COMPAT_MTIME).
pub(super) const COMPAT_MTIME: u32 = 0x2;
/// There are files in chunks (EROFS_FEATURE_INCOMPAT_CHUNKED_FILE).
pub(super) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
/// Binary logarithm of a block's bytes.
pub(super) const BLOCK_BITS: u32 = 12;

/// An inode's number is where it is, in units of so many bytes (EROFS_ISLOTBITS).
pub(super) const SLOT: u64 = 32;
/// Bytes of an inode with 32-bit owners and a time (struct erofs_inode_extended).
pub(super) const INODE_LEN: usize = 64;
/// Such an inode (EROFS_INODE_LAYOUT_EXTENDED, in bit 0 of i_format).
pub(super) const LAYOUT_EXTENDED: u16 = 1;
/// All content in blocks one after the other (EROFS_INODE_FLAT_PLAIN, from bit 1 of i_format).
pub(super) const FLAT_PLAIN: u16 = 0;
/// The same, but the last, partial block stands behind the inode, in its block (EROFS_INODE_FLAT_INLINE).
pub(super) const FLAT_INLINE: u16 = 2 << 1;
/// Content in chunks, whose addresses stand behind the inode (EROFS_INODE_CHUNK_BASED).
pub(super) const CHUNK_BASED: u16 = 4 << 1;
/// Largest binary logarithm of a chunk's blocks that we use; the format has 5 bits (EROFS_CHUNK_FORMAT_BLKBITS_MASK).
pub(super) const CHUNK_BITS_MAX: u32 = 18;
/// A chunk that is zero (EROFS_NULL_ADDR).
pub(super) const NULL_ADDR: u32 = u32::MAX;

/// Bytes of a directory entry without its name (struct erofs_dirent).
pub(super) const DIRENT_LEN: usize = 12;
/// File types in directory entries (EROFS_FT_REG_FILE and so on).
pub(super) const FT_REG_FILE: u8 = 1;
pub(super) const FT_DIR: u8 = 2;
pub(super) const FT_CHRDEV: u8 = 3;
pub(super) const FT_BLKDEV: u8 = 4;
pub(super) const FT_FIFO: u8 = 5;
pub(super) const FT_SYMLINK: u8 = 7;

/// File types in modes (include/uapi/linux/stat.h).
pub(super) const S_IFIFO: u16 = 0o010_000;
pub(super) const S_IFCHR: u16 = 0o020_000;
pub(super) const S_IFDIR: u16 = 0o040_000;
pub(super) const S_IFBLK: u16 = 0o060_000;
pub(super) const S_IFREG: u16 = 0o100_000;
pub(super) const S_IFLNK: u16 = 0o120_000;

/// Bytes before an inode's extended attributes (struct erofs_xattr_ibody_header).
pub(super) const XATTR_HEADER_LEN: usize = 12;
/// Prefixes of names and what stands for them (EROFS_XATTR_INDEX_USER and so on).
pub(super) const XATTR_PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];
