//! The root file system of an image in memory: inodes and names, with files' contents in the layers' data blobs.
use crate::BLOCK;
use crate::fault::{damaged, reading};
use crate::layer::{Attributes, Extent};
use crate::path::{parts, shown};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use viv_model::{Fault, Kind};

/// The inode of the root directory.
pub const ROOT: usize = 0;
/// Symbolic links on the way to one path (MAXSYMLINKS, include/linux/namei.h).
const LINKS_MAX: usize = 40;
/// Names on the way to one path, those of links' targets counted: twice as many as a path of Linux has. No directory is deeper.
const NAMES_MAX: usize = 4096;

/// A name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dentry {
    /// What it names.
    pub inode: usize,
    /// The last layer that named it, or something below it; from 0.
    pub layer: usize,
}

/// What an inode holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file.
    File {
        /// The layer in whose data blob its content is.
        layer: usize,
        /// Bytes of it.
        size: u64,
        /// In order; what none covers is zero.
        extents: Vec<Extent>,
    },
    /// A directory.
    Directory {
        /// Where it is; of the root, itself.
        parent: usize,
        /// What is in it.
        names: BTreeMap<Vec<u8>, Dentry>,
    },
    /// A symbolic link's target.
    Symlink(Vec<u8>),
    /// A device node.
    Device {
        /// Block device, or character device.
        block: bool,
        /// Which driver.
        major: u32,
        /// Which of its devices.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A file of any kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Mode, owner and so on.
    pub attributes: Attributes,
    /// What it is.
    pub content: Content,
    /// Names of it; of a directory, two and one for each directory in it.
    pub links: u32,
}

/// An image's root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    pub(crate) inodes: Vec<Inode>,
    pub(crate) layers: usize,
}

/// Where a path leads.
pub(crate) struct Walk {
    /// Directories from the root on, with their names.
    pub(crate) directories: Vec<(Vec<u8>, usize)>,
    /// What is not there, or is there and is neither directory nor symbolic link.
    pub(crate) missing: Vec<Vec<u8>>,
}

impl Walk {
    pub(crate) fn last(&self) -> usize {
        self.directories.last().map_or(ROOT, |(_, inode)| *inode)
    }
}

impl Tree {
    /// All inodes: the root first, then by their first name, each directory's names after those of the directory before it.
    pub fn inodes(&self) -> &[Inode] {
        &self.inodes
    }

    /// The inode that `path` leads to; links are followed inside the root.
    pub fn resolve(&self, path: impl AsRef<[u8]>) -> Result<usize, Fault> {
        let walk = self.walk(path.as_ref())?;
        let found = match &walk.missing[..] {
            [] => Some(walk.last()),
            [name] => self.child(walk.last(), name).map(|dentry| dentry.inode),
            _ => None,
        };
        found.ok_or_else(|| {
            Fault::new(
                Kind::NotFound,
                format!("the image has no {}", shown(path.as_ref())),
                "look at what is in the image, or use another one",
            )
        })
    }

    /// A file's content, of at most `limit` bytes; `data` are the layers' data blobs in order.
    pub fn read<D: Read + Seek>(&self, inode: usize, data: &mut [D], limit: usize) -> Result<Vec<u8>, Fault> {
        let Some(Content::File { layer, size, extents }) = self.inodes.get(inode).map(|inode| &inode.content)
        else {
            return Err(Fault::new(Kind::Usage, "only a file can be read", "name a file of the image"));
        };
        let size = usize::try_from(*size).ok().filter(|size| *size <= limit).ok_or_else(|| {
            Fault::new(
                Kind::NoCapacity,
                format!("a file of the image has {size} bytes, more than the {limit} that it may have here"),
                "use an image with a smaller file",
            )
        })?;
        let mut content = vec![0; size];
        for extent in extents {
            let from = usize::try_from(extent.from).unwrap_or(usize::MAX).saturating_mul(BLOCK);
            let length = usize::try_from(extent.blocks).unwrap_or(usize::MAX).saturating_mul(BLOCK);
            let piece = content.get_mut(from..from.saturating_add(length).min(size));
            let (Some(piece), Some(blob)) = (piece, data.get_mut(*layer)) else {
                return Err(damaged("a file of it is outside its data blob"));
            };
            blob.seek(SeekFrom::Start(extent.at.saturating_mul(BLOCK as u64)))
                .and_then(|_| blob.read_exact(piece))
                .map_err(|error| reading(&error))?;
        }
        Ok(content)
    }

    pub(crate) fn child(&self, directory: usize, name: &[u8]) -> Option<Dentry> {
        match &self.inodes.get(directory)?.content {
            Content::Directory { names, .. } => names.get(name).copied(),
            _ => None,
        }
    }

    /// Follows `path`, of which each part should be a directory, inside the root: as a process would for which this tree is
    /// the whole file system. Where there is nothing to follow, `..` takes back a name.
    pub(crate) fn walk(&self, path: &[u8]) -> Result<Walk, Fault> {
        let mut queue: Vec<&[u8]> = parts(path).rev().collect();
        let mut walk = Walk { directories: vec![(Vec::new(), ROOT)], missing: Vec::new() };
        let (mut links, mut names) = (0, 0);
        while let Some(part) = queue.pop() {
            names += 1;
            if names > NAMES_MAX {
                return Err(damaged(format!("{} has more than {NAMES_MAX} names on its way", shown(path))));
            }
            if part == b".." {
                if walk.missing.pop().is_none() && walk.directories.len() > 1 {
                    walk.directories.pop();
                }
                continue;
            }
            let child = if walk.missing.is_empty() { self.child(walk.last(), part) } else { None };
            let inode = child.map_or(ROOT, |dentry| dentry.inode);
            match child.and_then(|dentry| self.inodes.get(dentry.inode)).map(|inode| &inode.content) {
                Some(Content::Directory { .. }) => walk.directories.push((part.to_vec(), inode)),
                Some(Content::Symlink(target)) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(damaged(format!("{} has too many symbolic links", shown(path))));
                    }
                    if target.starts_with(b"/") {
                        walk.directories.truncate(1);
                    }
                    queue.extend(parts(target).rev());
                }
                _ => walk.missing.push(part.to_vec()),
            }
        }
        Ok(walk)
    }
}
