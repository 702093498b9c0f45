//! A tree as the metadata of an EROFS file system, whose files are in the data blobs that follow it on the disk.
//!
//! ```text
//!  block 0    1024 bytes of nothing, superblock, inodes from here on: root first; behind each its extended attributes, and
//!  …          its tail: a symbolic link's target, a directory's last block, addresses of a file's chunks
//!  …          other blocks of directories and targets
//!  [blob 1][blob 2]…   addressed as blocks of the same device
//! ```
//! Only what Linux 5.15 knows is used. The result depends on the tree alone, to the byte.
mod body;
mod place;
mod spec;

use crate::BLOCK;
use crate::blob::BLOCKS_MAX;
use crate::fault::{unfit, writing};
use crate::tree::{Content, Inode, Tree};
use body::{chunk_map, dirents, mode_type, xattr_body};
use place::{Place, Plan, Tail};
use spec::{
    BLOCK_BITS, COMPAT_MTIME, COMPAT_SB_CHKSUM, INCOMPAT_CHUNKED_FILE, LAYOUT_EXTENDED, SLOT, SUPER_LEN,
    SUPER_MAGIC, SUPER_OFFSET,
};
use std::borrow::Cow;
use std::io::Write;
use viv_model::Fault;

impl Tree {
    /// Writes the file system's metadata, and tells its length: a multiple of [`BLOCK`]. `data_blocks` are the blocks of the
    /// layers' data blobs, in the layers' order; they follow the metadata on the disk without gaps.
    pub fn write_erofs(&self, out: &mut impl Write, data_blocks: &[u64]) -> Result<u64, Fault> {
        if data_blocks.len() != self.layers {
            return Err(unfit(format!(
                "it has {} layers, and {} data blobs",
                self.layers,
                data_blocks.len()
            )));
        }
        let plan = Plan::new(self)?;
        let mut bases = Vec::with_capacity(data_blocks.len());
        let mut end = plan.blocks;
        for blocks in data_blocks {
            bases.push(end);
            end = end.saturating_add(*blocks);
        }
        if end > BLOCKS_MAX {
            return Err(unfit("its layers have more than the 16 TiB that a root file system may have"));
        }
        let mut bytes = Vec::with_capacity(usize::try_from(plan.blocks).unwrap_or(0).saturating_mul(BLOCK));
        for (at, inode) in self.inodes.iter().enumerate() {
            self.write_inode(at, inode, &plan, &bases, &mut bytes)?;
        }
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        for (at, place) in plan.places.iter().enumerate() {
            self.write_blocks(at, place, &plan, &mut bytes);
        }
        let root = plan.places.first().map_or(0, |place| place.offset as u64 / SLOT);
        let super_block =
            SuperBlock { root, inodes: self.inodes.len() as u64, blocks: end, chunks: plan.chunks };
        super_block.put(&mut bytes)?;
        out.write_all(&bytes).map_err(|error| writing("the image's file system", &error))?;
        Ok(bytes.len() as u64)
    }

    /// The inode, its extended attributes and its tail.
    fn write_inode(
        &self,
        at: usize,
        inode: &Inode,
        plan: &Plan,
        bases: &[u64],
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        let place = plan.places.get(at).ok_or_else(|| unfit("an inode of it has no place"))?;
        out.resize(place.offset, 0);
        let attributes = &inode.attributes;
        let xattrs = xattr_body(&attributes.xattrs)?;
        let icount = if xattrs.is_empty() { 0 } else { 1 + (xattrs.len() - spec::XATTR_HEADER_LEN) / 4 };
        let (mode, _) = mode_type(&inode.content);
        let (layout, special, tail) = match &place.tail {
            Tail::None { block } => (spec::FLAT_PLAIN, self.address(inode, *block, plan, bases)?, Vec::new()),
            Tail::Inline { block } => {
                let block = plan.block(*block)?;
                let content = self.meta_content(at, plan);
                let tail = content.get(content.len() - content.len() % BLOCK..).unwrap_or_default();
                (spec::FLAT_INLINE, block, tail.to_vec())
            }
            Tail::Chunks { bits } => (spec::CHUNK_BASED, *bits, chunk_map(inode, *bits, bases)?),
        };
        out.extend((LAYOUT_EXTENDED | layout).to_le_bytes());
        out.extend((icount as u16).to_le_bytes());
        out.extend((mode | attributes.mode).to_le_bytes());
        out.extend(0u16.to_le_bytes());
        out.extend(place.size.to_le_bytes());
        out.extend(special.to_le_bytes());
        // Only for stat(2) of 32-bit programs.
        out.extend(((place.offset as u64 / SLOT) as u32).to_le_bytes());
        out.extend(attributes.uid.to_le_bytes());
        out.extend(attributes.gid.to_le_bytes());
        out.extend(attributes.mtime.seconds.to_le_bytes());
        out.extend(attributes.mtime.nanoseconds.to_le_bytes());
        out.extend(inode.links.to_le_bytes());
        out.extend([0; 16]);
        out.extend(xattrs);
        out.extend(tail);
        Ok(())
    }

    /// What stands in i_u of an inode without tail: an address, or a device's number.
    fn address(&self, inode: &Inode, block: u64, plan: &Plan, bases: &[u64]) -> Result<u32, Fault> {
        match &inode.content {
            // new_encode_dev in include/linux/kdev_t.h
            Content::Device { major, minor, .. } => Ok(minor & 0xff | major << 8 | (minor & !0xff) << 12),
            Content::File { layer, extents, .. } => match extents.first() {
                Some(first) => body::block_address(first.at, *layer, bases),
                None => Ok(0),
            },
            Content::Directory { .. } | Content::Symlink(_) => plan.block(block),
            Content::Fifo => Ok(0),
        }
    }

    /// What of a directory or target does not stand behind the inode.
    fn write_blocks(&self, at: usize, place: &Place, plan: &Plan, out: &mut Vec<u8>) {
        if matches!(place.tail, Tail::Inline { .. }) && place.size < BLOCK as u64 {
            return;
        }
        let content = self.meta_content(at, plan);
        let length = match place.tail {
            Tail::None { .. } => content.len(),
            Tail::Inline { .. } => content.len() - content.len() % BLOCK,
            Tail::Chunks { .. } => 0,
        };
        out.extend_from_slice(content.get(..length).unwrap_or_default());
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }

    /// Content that is metadata: a directory's entries, a link's target.
    fn meta_content(&self, at: usize, plan: &Plan) -> Cow<'_, [u8]> {
        match self.inodes.get(at).map(|inode| &inode.content) {
            Some(Content::Directory { .. }) => dirents(self, at, &plan.places).into(),
            Some(Content::Symlink(target)) => target.into(),
            _ => [].as_slice().into(),
        }
    }
}

/// What the superblock tells.
struct SuperBlock {
    root: u64,
    inodes: u64,
    blocks: u64,
    chunks: bool,
}

impl SuperBlock {
    /// Puts it into its place, with a UUID and a checksum of what is there (struct erofs_super_block).
    fn put(&self, image: &mut [u8]) -> Result<(), Fault> {
        // The root's number has 16 bits: it is the first inode.
        let (Ok(root), Ok(blocks)) = (u16::try_from(self.root), u32::try_from(self.blocks)) else {
            return Err(unfit("it is too large"));
        };
        let mut uuid: [u8; 16] = [0; 16];
        for _ in 0..2 {
            let mut out = Vec::with_capacity(SUPER_LEN);
            out.extend(SUPER_MAGIC.to_le_bytes());
            out.extend(0u32.to_le_bytes());
            out.extend((COMPAT_SB_CHKSUM | COMPAT_MTIME).to_le_bytes());
            out.extend([BLOCK_BITS as u8, 0]);
            out.extend(root.to_le_bytes());
            out.extend(self.inodes.to_le_bytes());
            // Base of compact inodes' times: there are none.
            out.extend(0u64.to_le_bytes());
            out.extend(0u32.to_le_bytes());
            out.extend(blocks.to_le_bytes());
            // Metadata begins at block 0, and no extended attribute is shared.
            out.extend(0u32.to_le_bytes());
            out.extend(0u32.to_le_bytes());
            out.extend(uuid);
            out.extend([0; 16]);
            out.extend(if self.chunks { INCOMPAT_CHUNKED_FILE } else { 0 }.to_le_bytes());
            out.resize(SUPER_LEN, 0);
            let slot = image.get_mut(SUPER_OFFSET..SUPER_OFFSET + SUPER_LEN);
            slot.ok_or_else(|| unfit("it has no superblock"))?.copy_from_slice(&out);
            if uuid == [0; 16] {
                uuid = version_8(blake3::hash(image).as_bytes());
            }
        }
        let first = image.get(SUPER_OFFSET..BLOCK).unwrap_or_default();
        // The kernel's crc32c() does not invert its result.
        let sum = !crc32c::crc32c(first);
        if let Some(slot) = image.get_mut(SUPER_OFFSET + 4..SUPER_OFFSET + 8) {
            slot.copy_from_slice(&sum.to_le_bytes());
        }
        Ok(())
    }
}

/// A UUID out of a digest (RFC 9562 §5.8).
fn version_8(digest: &[u8; 32]) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (at, (to, from)) in uuid.iter_mut().zip(digest).enumerate() {
        *to = match at {
            6 => from & 0x0f | 0x80,
            8 => from & 0x3f | 0x80,
            _ => *from,
        };
    }
    uuid
}

#[cfg(test)]
mod tests;
