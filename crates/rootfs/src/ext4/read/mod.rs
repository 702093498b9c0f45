//! Reads an ext4 without mounting it: the file systems that [`empty`](super::empty) makes and Linux has written to since. Every byte may be a
//! stranger's: all that it says of places and sizes is checked, and no block is read for more than one thing.
//!
//! A journal with something in it is not replayed: what is there then is not what the guest wrote last.
mod directory;
mod extents;
mod inode;
mod xattrs;

use super::fields::checksum;
use super::layout::Layout;
use super::spec::{BLOCK, DESCRIPTOR_LEN, EXTENTS_FLAG, LOG_BLOCK_KIB, SUPER_LEN, SUPER_MAGIC, SUPER_OFFSET};
pub(crate) use inode::{Inode, Type};
use std::cell::Cell;
use std::io;
use viv_model::{Fault, Kind};

/// Reads all of a slice at an offset of the disk.
pub type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> io::Result<()>;

/// EXT4_FEATURE_INCOMPAT_RECOVER: the journal has something in it.
const RECOVER: u32 = 0x4;
/// EXT4_FEATURE_INCOMPAT_META_BG: what a mounted file system grows by.
const META_GROUPS: u32 = 0x10;
/// EXT4_FEATURE_INCOMPAT_FILETYPE, META_BG, EXTENTS, 64BIT, FLEX_BG, LARGEDIR.
const KNOWN: u32 = 0x2 | META_GROUPS | 0x40 | 0x80 | 0x200 | 0x4000;
/// EXT4_FEATURE_INCOMPAT_FILETYPE, EXTENTS, 64BIT.
const NEEDED: u32 = 0x2 | 0x40 | 0x80;
/// EXT4_FEATURE_RO_COMPAT_METADATA_CSUM.
const CHECKSUMS: u32 = 0x400;
/// EXT4_ERROR_FS: Linux found something wrong in it.
const ERRORS: u16 = 2;

/// A file system.
pub(crate) struct FileSystem<'a> {
    read: ReadAt<'a>,
    blocks: u64,
    inodes: u32,
    blocks_per_group: u64,
    inodes_per_group: u32,
    inode_len: usize,
    /// From which descriptors stand in their groups, counted in blocks of descriptors.
    first_meta_group: u64,
    has_checksums: bool,
    seed: u32,
    /// Blocks of contents that may still be read.
    left: Cell<u64>,
}

pub(crate) fn damaged(what: impl std::fmt::Display) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the VM's file system is damaged: {what}"),
        "let the VM check it: start it, e2fsck in it, stop it with viv stop; or go back to a snapshot",
    )
}

fn unclean() -> Fault {
    Fault::new(
        Kind::Conflict,
        "the VM's file system was not unmounted: the VM was killed, or its host broke down",
        "start the VM once more and end it in good order: viv start VM; viv stop VM",
    )
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|field| u16::from_le_bytes(*field))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|field| u32::from_le_bytes(*field))
}

impl<'a> FileSystem<'a> {
    /// The file system on a disk of `size` bytes.
    pub(crate) fn open(read: ReadAt<'a>, size: u64) -> Result<FileSystem<'a>, Fault> {
        let mut bytes = vec![0; SUPER_LEN];
        if size < SUPER_OFFSET + SUPER_LEN as u64 {
            return Err(damaged("its disk is too small for one"));
        }
        read(SUPER_OFFSET, &mut bytes).map_err(reading)?;
        let word = |at| u32_at(&bytes, at).unwrap_or_default();
        let half = |at| u16_at(&bytes, at).unwrap_or_default();
        if half(0x38) != SUPER_MAGIC {
            return Err(damaged("there is none on its disk"));
        }
        let incompatible = word(0x60);
        if incompatible & RECOVER != 0 {
            return Err(unclean());
        }
        if half(0x3a) & ERRORS != 0 {
            return Err(damaged("Linux has noted errors in it"));
        }
        if incompatible & !KNOWN != 0 || incompatible & NEEDED != NEEDED || word(0x18) != LOG_BLOCK_KIB {
            return Err(Fault::new(
                Kind::Error,
                format!(
                    "the VM's file system is not as it was made (features {incompatible:#x}, blocks of {} KiB)",
                    1u64 << word(0x18).min(16)
                ),
                "it cannot be read here; copy what you need out of the VM while it runs: viv exec VM -- tar c DIR",
            ));
        }
        let blocks = u64::from(word(0x4)) | u64::from(word(0x150)) << 32;
        let (blocks_per_group, inodes_per_group) = (u64::from(word(0x20)), word(0x28));
        let inode_len = usize::from(half(0x58));
        let first_meta_group =
            if incompatible & META_GROUPS != 0 { u64::from(word(0x104)) } else { u64::MAX };
        let is_sane = (1..=size / BLOCK).contains(&blocks)
            && (1..=8 * BLOCK).contains(&blocks_per_group)
            && (1..=8 * BLOCK as u32).contains(&inodes_per_group)
            && inode_len.is_power_of_two()
            && (128..=BLOCK as usize).contains(&inode_len)
            && usize::from(half(0xfe)) == DESCRIPTOR_LEN;
        if !is_sane {
            return Err(damaged("its superblock contradicts itself"));
        }
        let uuid = bytes.get(0x68..0x78).unwrap_or_default();
        Ok(FileSystem {
            read,
            blocks,
            inodes: word(0x0),
            blocks_per_group,
            inodes_per_group,
            inode_len,
            first_meta_group,
            has_checksums: word(0x64) & CHECKSUMS != 0,
            seed: checksum(!0, uuid),
            left: Cell::new(blocks),
        })
    }

    /// A block of structure.
    fn block(&self, block: u64) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; BLOCK as usize];
        self.blocks(block, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads from the beginning of `block`, which must be inside.
    fn blocks(&self, block: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let count = (bytes.len() as u64).div_ceil(BLOCK);
        if block == 0 || block.checked_add(count).is_none_or(|end| end > self.blocks) {
            return Err(damaged(format!("it refers to block {block}, which it does not have")));
        }
        (self.read)(block.saturating_mul(BLOCK), bytes).map_err(reading)
    }

    /// Takes `blocks` off what may be read: a file system has no more than its blocks, whatever it says.
    fn spend(&self, blocks: u64) -> Result<(), Fault> {
        let left = self.left.get().checked_sub(blocks);
        self.left.set(left.ok_or_else(|| damaged("its files have more blocks than it has"))?);
        Ok(())
    }

    /// Where the inode table of `group` begins.
    fn inode_table(&self, group: u64) -> Result<u64, Fault> {
        let each = BLOCK / DESCRIPTOR_LEN as u64;
        let (meta, within) = (group / each, group % each);
        let block = if meta < self.first_meta_group {
            meta.saturating_add(1)
        } else {
            // Documentation/filesystems/ext4/blockgroup.rst, "Meta Block Groups".
            let first = meta.saturating_mul(each);
            first
                .saturating_mul(self.blocks_per_group)
                .saturating_add(u64::from(first == 0 || Layout::is_backup(first)))
        };
        let bytes = self.block(block)?;
        let at = within as usize * DESCRIPTOR_LEN;
        match (u32_at(&bytes, at + 0x08), u32_at(&bytes, at + 0x28)) {
            (Some(low), Some(high)) => Ok(u64::from(low) | u64::from(high) << 32),
            _ => Err(damaged("a group has no descriptor")),
        }
    }

    /// The content of a small file or a directory.
    fn content(&self, inode: &Inode, most: u64) -> Result<Vec<u8>, Fault> {
        if inode.size > most {
            return Err(damaged(format!(
                "inode {} has {} bytes, more than it can have",
                inode.number, inode.size
            )));
        }
        let mut content = vec![0; inode.size as usize];
        for extent in self.extents(inode)? {
            let from = extent.from.saturating_mul(BLOCK).min(inode.size) as usize;
            let to = extent.from.saturating_add(extent.blocks).saturating_mul(BLOCK).min(inode.size) as usize;
            self.blocks(extent.at, content.get_mut(from..to).unwrap_or_default())?;
        }
        Ok(content)
    }

    /// A symbolic link's target: in the inode itself if it fits there ("Symbolic Links").
    pub(crate) fn target(&self, inode: &Inode) -> Result<Vec<u8>, Fault> {
        if inode.flags & EXTENTS_FLAG != 0 {
            return self.content(inode, 4095);
        }
        let length = usize::try_from(inode.size).unwrap_or(usize::MAX);
        let target = inode.map.get(..length).filter(|_| length < inode.map.len());
        Ok(target.ok_or_else(|| damaged("a symbolic link has no target"))?.to_vec())
    }

    /// Reads a file's blocks from `at` on.
    pub(crate) fn file(&self, at: u64, offset: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let start = at.saturating_mul(BLOCK).saturating_add(offset);
        let end = start.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.blocks.saturating_mul(BLOCK)) {
            return Err(damaged("a file has blocks that the file system does not have"));
        }
        (self.read)(start, bytes).map_err(reading)
    }
}

fn reading(error: io::Error) -> Fault {
    Fault::new(
        Kind::Error,
        format!("cannot read the VM's disk: {error}"),
        "check the host's disk, and try again",
    )
}
