//! What an inode holds, as EROFS has it.
use super::place::{Place, Plan};
use super::spec::{
    BLOCK_BITS, CHUNK_BITS_MAX, DIRENT_LEN, FT_BLKDEV, FT_CHRDEV, FT_DIR, FT_FIFO, FT_REG_FILE, FT_SYMLINK,
    NULL_ADDR, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG, XATTR_HEADER_LEN, XATTR_PREFIXES,
};
use crate::BLOCK;
use crate::fault::{excessive, unfit};
use crate::layer::Extent;
use crate::tree::{Content, Dentry, Inode, ROOT, Tree};
use std::collections::BTreeMap;
use viv_model::Fault;

/// The type in an inode's mode, and that in directory entries.
pub(super) fn mode_type(content: &Content) -> (u16, u8) {
    match content {
        Content::File { .. } => (S_IFREG, FT_REG_FILE),
        Content::Directory { .. } => (S_IFDIR, FT_DIR),
        Content::Symlink(_) => (S_IFLNK, FT_SYMLINK),
        Content::Device { block: true, .. } => (S_IFBLK, FT_BLKDEV),
        Content::Device { block: false, .. } => (S_IFCHR, FT_CHRDEV),
        Content::Fifo => (S_IFIFO, FT_FIFO),
    }
}

/// Extended attributes behind an inode: a header, then each with its prefix as a number, padded to 4 bytes.
pub(super) fn xattr_body(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::new();
    for (name, value) in xattrs {
        let prefix =
            XATTR_PREFIXES.iter().find_map(|(prefix, index)| Some((name.strip_prefix(*prefix)?, *index)));
        let Some((name, index)) = prefix else {
            return Err(unfit("it has an extended attribute that EROFS does not know"));
        };
        let (Ok(name_len), Ok(value_len)) = (u8::try_from(name.len()), u16::try_from(value.len())) else {
            return Err(unfit("it has an extended attribute that is too long"));
        };
        if out.is_empty() {
            out.resize(XATTR_HEADER_LEN, 0);
        }
        out.extend([name_len, index]);
        out.extend(value_len.to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    // i_xattr_icount has 16 bits, in units of 4 bytes.
    if out.len() > 4 * 0xffff {
        return Err(excessive(
            "the extended attributes of a file are more than the 256 KiB that EROFS holds",
        ));
    }
    Ok(out)
}

/// How a directory's entries are cut into blocks: the names with `.` and `..`, in order, and bytes of each block.
struct Blocks<'a> {
    names: Vec<&'a [u8]>,
    /// Names and bytes of each block.
    blocks: Vec<(usize, usize)>,
}

impl<'a> Blocks<'a> {
    fn new(names: &'a BTreeMap<Vec<u8>, Dentry>) -> Blocks<'a> {
        let mut sorted: Vec<&[u8]> = Vec::with_capacity(names.len() + 2);
        sorted.extend([&b"."[..], b".."]);
        sorted.extend(names.keys().map(Vec::as_slice));
        sorted.sort_unstable();
        let mut blocks: Vec<(usize, usize)> = vec![(0, 0)];
        for name in &sorted {
            let length = DIRENT_LEN + name.len();
            match blocks.last_mut() {
                Some((count, bytes)) if *bytes + length <= BLOCK => {
                    *count += 1;
                    *bytes += length;
                }
                _ => blocks.push((1, length)),
            }
        }
        Blocks { names: sorted, blocks }
    }
}

/// Bytes of a directory.
pub(super) fn directory_len(names: &BTreeMap<Vec<u8>, Dentry>) -> usize {
    let Blocks { blocks, .. } = Blocks::new(names);
    (blocks.len() - 1) * BLOCK + blocks.last().map_or(0, |(_, bytes)| *bytes)
}

/// A directory's blocks: entries (struct erofs_dirent), then their names.
pub(super) fn dirents(tree: &Tree, own: usize, places: &[Place]) -> Vec<u8> {
    let Some(Content::Directory { parent, names }) = tree.inodes().get(own).map(|inode| &inode.content)
    else {
        return Vec::new();
    };
    let Blocks { names: sorted, blocks } = Blocks::new(names);
    let mut out = Vec::new();
    let mut sorted = sorted.into_iter();
    for (count, _) in blocks {
        out.resize(out.len().next_multiple_of(BLOCK), 0);
        let mut name_at = count * DIRENT_LEN;
        let mut text: Vec<u8> = Vec::new();
        for name in sorted.by_ref().take(count) {
            let target = match name {
                b"." => own,
                b".." => *parent,
                _ => names.get(name).map_or(ROOT, |dentry| dentry.inode),
            };
            let kind = tree.inodes().get(target).map_or(FT_DIR, |inode| mode_type(&inode.content).1);
            out.extend(Plan::number(places, target).to_le_bytes());
            out.extend((name_at as u16).to_le_bytes());
            out.extend([kind, 0]);
            text.extend_from_slice(name);
            name_at += name.len();
        }
        out.extend(text);
    }
    out
}

/// The size of a file's chunks, as the binary logarithm of its blocks: the largest with which each chunk is a hole, or one piece of the
/// blob. None for a file that is in one piece, or empty.
pub(super) fn chunk_bits(size: u64, extents: &[Extent]) -> Option<u32> {
    let blocks = size.div_ceil(1 << BLOCK_BITS);
    match extents {
        [Extent { from: 0, blocks: all, .. }] if *all == blocks => return None,
        _ if blocks == 0 => return None,
        _ => {}
    }
    // Where content begins and ends; the file's own end cuts no chunk.
    let edges = extents.iter().flat_map(|extent| [extent.from, extent.from.saturating_add(extent.blocks)]);
    let bits = edges.filter(|edge| *edge != blocks).map(u64::trailing_zeros).min().unwrap_or(u64::BITS);
    // No larger than the file.
    Some(bits.min(blocks.next_power_of_two().trailing_zeros()).min(CHUNK_BITS_MAX))
}

/// The disk's block of a layer's block.
pub(super) fn block_address(at: u64, layer: usize, bases: &[u64]) -> Result<u32, Fault> {
    bases
        .get(layer)
        .and_then(|base| u32::try_from(base.checked_add(at)?).ok())
        .ok_or_else(|| unfit("a file of it is outside its data blob"))
}

/// Addresses of a file's chunks.
pub(super) fn chunk_map(inode: &Inode, bits: u32, bases: &[u64]) -> Result<Vec<u8>, Fault> {
    let Content::File { layer, size, extents } = &inode.content else { return Ok(Vec::new()) };
    let chunks = size.div_ceil((BLOCK as u64) << bits);
    let mut out = Vec::with_capacity(usize::try_from(chunks).unwrap_or(0).saturating_mul(4));
    let mut extents = extents.iter().peekable();
    for chunk in 0..chunks {
        let block = chunk << bits;
        while extents.next_if(|extent| extent.from + extent.blocks <= block).is_some() {}
        let address = match extents.peek() {
            Some(extent) if extent.from <= block => {
                block_address(extent.at + (block - extent.from), *layer, bases)?
            }
            _ => NULL_ADDR,
        };
        out.extend(address.to_le_bytes());
    }
    Ok(out)
}
