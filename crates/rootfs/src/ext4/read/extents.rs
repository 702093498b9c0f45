//! Where a file's blocks are (struct ext4_extent; "Extent Tree").
use super::{FileSystem, Inode, damaged, u16_at, u32_at};
use crate::ext4::spec::{EXTENT_LEN_MAX, EXTENT_MAGIC, EXTENTS_FLAG};
use crate::layer::Extent;
use viv_model::Fault;

/// Deepest tree (EXT4_MAX_EXTENT_DEPTH).
const DEPTH_MAX: u16 = 5;
/// Bytes of a header, and of an entry.
const HEADER: usize = 12;
const ENTRY: usize = 12;
/// Nodes of a tree at most: each maps something.
const NODES_MAX: usize = 1 << 20;

impl FileSystem<'_> {
    /// The blocks of a file or directory that were written, in order; `at` is a block of the file system.
    pub(crate) fn extents(&self, inode: &Inode) -> Result<Vec<Extent>, Fault> {
        if inode.size == 0 {
            return Ok(Vec::new());
        }
        if inode.flags & EXTENTS_FLAG == 0 {
            return Err(damaged(format!("inode {} has no extents", inode.number)));
        }
        let mut walk = Walk { fs: self, extents: Vec::new(), end: 0, nodes: 0 };
        walk.node(&inode.map, None)?;
        Ok(walk.extents)
    }
}

struct Walk<'a> {
    fs: &'a FileSystem<'a>,
    extents: Vec<Extent>,
    /// The first block of the file that may come next.
    end: u64,
    nodes: usize,
}

impl Walk<'_> {
    /// Takes a node; `depth` is what its parent wants it to have.
    fn node(&mut self, bytes: &[u8], depth: Option<u16>) -> Result<(), Fault> {
        let bad = || damaged("the map of a file's blocks contradicts itself");
        self.nodes += 1;
        let header = (u16_at(bytes, 0), u16_at(bytes, 2), u16_at(bytes, 6));
        let (Some(EXTENT_MAGIC), Some(count), Some(own)) = header else { return Err(bad()) };
        let room = bytes.len().saturating_sub(HEADER) / ENTRY;
        if usize::from(count) > room
            || own > DEPTH_MAX
            || depth.is_some_and(|depth| depth != own)
            || self.nodes > NODES_MAX
        {
            return Err(bad());
        }
        for entry in bytes.get(HEADER..).unwrap_or_default().chunks_exact(ENTRY).take(usize::from(count)) {
            let (word, half) =
                (|at| u32_at(entry, at).unwrap_or_default(), |at| u16_at(entry, at).unwrap_or_default());
            let from = u64::from(word(0));
            if from < self.end {
                return Err(bad());
            }
            if let Some(below) = own.checked_sub(1) {
                let block = u64::from(word(4)) | u64::from(half(8)) << 32;
                let child = self.fs.block(block)?;
                self.node(&child, Some(below))?;
                continue;
            }
            let length = u64::from(half(4));
            // What is longer was set aside, and never written (EXT_INIT_MAX_LEN).
            let (blocks, is_written) =
                if length > EXTENT_LEN_MAX { (length - EXTENT_LEN_MAX, false) } else { (length, true) };
            let at = u64::from(word(8)) | u64::from(half(6)) << 32;
            self.end = from.saturating_add(blocks);
            if blocks == 0 || at == 0 || at.checked_add(blocks).is_none_or(|end| end > self.fs.blocks) {
                return Err(bad());
            }
            self.fs.spend(blocks)?;
            if is_written {
                self.extents.push(Extent { from, at, blocks });
            }
        }
        Ok(())
    }
}
