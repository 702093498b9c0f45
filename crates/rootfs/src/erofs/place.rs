//! Where each inode goes.
use super::body::{chunk_bits, directory_len, xattr_body};
use super::spec::{INODE_LEN, SLOT, SUPER_LEN, SUPER_OFFSET};
use crate::BLOCK;
use crate::fault::{excessive, unfit};
use crate::tree::{Content, Tree};
use viv_model::Fault;

/// Bytes of metadata at most: it is made in memory.
const METADATA_MAX: usize = 1 << 30;

/// What stands behind an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tail {
    /// Nothing; directories and targets are in blocks from `block` on, counted behind the inodes.
    None { block: u64 },
    /// The last, partial block; what is before it as above.
    Inline { block: u64 },
    /// Addresses of chunks of 2^bits blocks.
    Chunks { bits: u32 },
}

/// Where an inode is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Bytes from the disk's beginning.
    pub(super) offset: usize,
    /// Bytes of its content (i_size).
    pub(super) size: u64,
    pub(super) tail: Tail,
}

/// All of it.
pub(super) struct Plan {
    pub(super) places: Vec<Place>,
    /// Blocks of all metadata; those with inodes come first.
    pub(super) blocks: u64,
    inode_blocks: u64,
    /// Whether a file is in chunks.
    pub(super) chunks: bool,
}

impl Plan {
    pub(super) fn new(tree: &Tree) -> Result<Plan, Fault> {
        let mut places = Vec::with_capacity(tree.inodes().len());
        let (mut cursor, mut behind, mut chunks) = (SUPER_OFFSET + SUPER_LEN, 0, false);
        for inode in tree.inodes() {
            let head = INODE_LEN + xattr_body(&inode.attributes.xattrs)?.len();
            let (size, tail_len, is_inline) = match &inode.content {
                Content::Directory { names, .. } => {
                    let length = directory_len(names);
                    (length as u64, length % BLOCK, true)
                }
                Content::Symlink(target) => (target.len() as u64, target.len() % BLOCK, true),
                Content::File { size, extents, .. } => {
                    let bits = chunk_bits(*size, extents);
                    chunks |= bits.is_some();
                    let map = bits.map_or(0, |bits| 4 * size.div_ceil((BLOCK as u64) << bits));
                    (*size, usize::try_from(map).unwrap_or(usize::MAX), false)
                }
                Content::Device { .. } | Content::Fifo => (0, 0, false),
            };
            // The tail of a directory or link is in one block with its inode (the kernel's erofs_map_blocks and
            // erofs_fill_symlink); an inode itself is not cut by a block's end either.
            let inline = is_inline && tail_len > 0 && head + tail_len <= BLOCK;
            let whole = if inline { head + tail_len } else { INODE_LEN };
            cursor = cursor.next_multiple_of(SLOT as usize);
            if cursor % BLOCK + whole > BLOCK {
                cursor = cursor.next_multiple_of(BLOCK);
            }
            let tail = match &inode.content {
                Content::File { size, extents, .. } => match chunk_bits(*size, extents) {
                    Some(bits) => Tail::Chunks { bits },
                    None => Tail::None { block: 0 },
                },
                _ if inline => Tail::Inline { block: behind },
                _ => Tail::None { block: behind },
            };
            places.push(Place { offset: cursor, size, tail });
            let (tail_len, blocks) = match (is_inline, inline) {
                (true, true) => (tail_len, size / BLOCK as u64),
                (true, false) => (0, size.div_ceil(BLOCK as u64)),
                (false, _) => (tail_len, 0),
            };
            cursor = cursor.saturating_add(head).saturating_add(tail_len);
            behind += blocks;
            if cursor > METADATA_MAX || behind > (METADATA_MAX / BLOCK) as u64 {
                return Err(excessive("its directories and attributes take more than 1 GiB"));
            }
        }
        let inode_blocks = cursor.div_ceil(BLOCK) as u64;
        Ok(Plan { places, blocks: inode_blocks + behind, inode_blocks, chunks })
    }

    /// The address of a block behind the inodes.
    pub(super) fn block(&self, block: u64) -> Result<u32, Fault> {
        u32::try_from(self.inode_blocks + block).map_err(|_| unfit("it is too large"))
    }

    /// The number of an inode (nid).
    pub(super) fn number(places: &[Place], inode: usize) -> u64 {
        places.get(inode).map_or(0, |place| place.offset as u64 / SLOT)
    }
}
