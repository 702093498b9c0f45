//! What a VM has changed in its image becomes one more layer: the upper directory of its overlayfs, read off the ext4 on which it is
//! (Linux, Documentation/filesystems/overlayfs.rst).
use crate::BLOCK;
use crate::blob::Blob;
use crate::ext4::ROOT_INODE;
use crate::ext4::read::{FileSystem, Inode, ReadAt, Type, damaged};
use crate::fault::excessive;
use crate::layer::{Attributes, Entry, Kind, Layer, WHITEOUT, is_carried};
use crate::limits::Limits;
use crate::path::shown;
use crate::tar::{Segment, Watcher};
use std::collections::{HashMap, HashSet};
use std::io::{Seek, Write};
use viv_model::Fault;

/// overlayfs' marks: a directory that hides the lower one; a file without its content, or with another name below, neither of which our guests
/// ask for ("redirect_dir", "metacopy").
const OPAQUE: &[u8] = b"trusted.overlay.opaque";
const ELSEWHERE: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];

/// Reads the directory `directory` in the root of the ext4 on a disk of `size` bytes as the upper directory of an overlayfs, and writes its
/// files' contents to `data` (an empty file at its beginning). Nothing if there is no such directory. `watcher` is asked after
/// each file and each mebibyte with the bytes of contents so far.
pub fn upper<W: Write + Seek>(
    read: ReadAt<'_>,
    size: u64,
    directory: &str,
    data: &mut W,
    limits: &Limits,
    watcher: Watcher<'_>,
) -> Result<Option<Layer>, Fault> {
    let fs = FileSystem::open(read, size)?;
    let root = fs.names(&fs.inode(ROOT_INODE)?)?;
    let Some(number) = root.get(directory.as_bytes()) else { return Ok(None) };
    let top = fs.inode(*number)?;
    if top.kind != Type::Directory {
        return Err(damaged(format!("its /{directory} is no directory")));
    }
    let mut upper = Upper {
        fs: &fs,
        limits,
        watcher,
        read: 0,
        entries: Vec::new(),
        blob: Blob::new(data),
        linked: HashMap::new(),
        directories: HashSet::new(),
    };
    let mut next = vec![(Vec::new(), top)];
    while let Some((path, directory)) = next.pop() {
        let below = upper.directory(path, &directory)?;
        next.extend(below.into_iter().rev());
    }
    let Upper { entries, blob, .. } = upper;
    Ok(Some(Layer { entries, data_blocks: blob.finish()? }))
}

struct Upper<'a, W> {
    fs: &'a FileSystem<'a>,
    limits: &'a Limits,
    watcher: Watcher<'a>,
    /// Bytes of contents so far.
    read: u64,
    entries: Vec<Entry>,
    blob: Blob<'a, W>,
    /// The first names of files that have several.
    linked: HashMap<u32, Vec<u8>>,
    /// Directories that were seen: each is in one place.
    directories: HashSet<u32>,
}

impl<W: Write + Seek> Upper<'_, W> {
    /// Takes a directory and what is in it but directories; gives those.
    fn directory(&mut self, path: Vec<u8>, inode: &Inode) -> Result<Vec<(Vec<u8>, Inode)>, Fault> {
        if !self.directories.insert(inode.number) {
            return Err(damaged(format!("{} is in two places", shown(&path))));
        }
        let (attributes, is_opaque) = self.attributes(&path, inode)?;
        self.add(Entry { path: path.clone(), attributes, kind: Kind::Directory })?;
        if is_opaque {
            self.add(Entry { path: path.clone(), attributes: Attributes::default(), kind: Kind::Opaque })?;
        }
        let mut below = Vec::new();
        for (name, number) in self.fs.names(inode)? {
            if name.starts_with(WHITEOUT) {
                return Err(Fault::new(
                    viv_model::Kind::Error,
                    format!(
                        "{} cannot be in an image: names that begin with .wh. mean there that a file is gone",
                        shown(&join(&path, &name))
                    ),
                    "give it another name in the VM, or remove it, and stop the VM again",
                ));
            }
            let path = join(&path, &name);
            let inode = self.fs.inode(number)?;
            match inode.kind {
                Type::Directory => below.push((path, inode)),
                _ => self.file(path, &inode)?,
            }
        }
        Ok(below)
    }

    /// Takes what is no directory.
    fn file(&mut self, path: Vec<u8>, inode: &Inode) -> Result<(), Fault> {
        let device = inode.device();
        if inode.kind == Type::Character && device == (0, 0) {
            return self.add(Entry { path, attributes: Attributes::default(), kind: Kind::Whiteout });
        }
        if inode.links > 1 {
            if let Some(first) = self.linked.get(&inode.number) {
                let kind = Kind::Hardlink(first.clone());
                return self.add(Entry { path, attributes: Attributes::default(), kind });
            }
            self.linked.insert(inode.number, path.clone());
        }
        let kind = match inode.kind {
            Type::File => self.content(inode)?,
            Type::Symlink => Kind::Symlink(self.fs.target(inode)?),
            Type::Character | Type::Block => {
                Kind::Device { block: inode.kind == Type::Block, major: device.0, minor: device.1 }
            }
            Type::Fifo => Kind::Fifo,
            // It has no meaning without the program that made it, and archives know none.
            Type::Socket | Type::Directory => return Ok(()),
        };
        let (attributes, _) = self.attributes(&path, inode)?;
        self.add(Entry { path, attributes, kind })
    }

    fn content(&mut self, inode: &Inode) -> Result<Kind, Fault> {
        let extents = self.fs.extents(inode)?;
        let block = BLOCK as u64;
        let (mut segments, mut places) = (Vec::new(), Vec::new());
        for extent in extents {
            let offset = extent.from.saturating_mul(block);
            // Blocks may be set aside behind a file's end.
            let length = extent.blocks.saturating_mul(block).min(inode.size.saturating_sub(offset));
            if length > 0 {
                segments.push(Segment { offset, length });
                places.push((extent.at, length));
            }
        }
        let Upper { fs, watcher, read, limits, .. } = self;
        let mut places = places.into_iter();
        let (mut at, mut done, mut length) = (0, 0, 0);
        let extents = self.blob.file(inode.size, &segments, |mut bytes| {
            let total = bytes.len() as u64;
            while !bytes.is_empty() {
                if done == length {
                    let Some(next) = places.next() else {
                        return Err(damaged("a file's map ends too early"));
                    };
                    ((at, length), done) = (next, 0);
                }
                let piece = usize::try_from(length - done).unwrap_or(usize::MAX).min(bytes.len());
                let (now, later) = std::mem::take(&mut bytes).split_at_mut(piece);
                fs.file(at, done, now)?;
                done += piece as u64;
                bytes = later;
            }
            *read = read.saturating_add(total);
            if *read > limits.bytes {
                return Err(excessive(format!("its files have more than {} bytes", limits.bytes)));
            }
            watcher(*read)
        })?;
        Ok(Kind::File { size: inode.size, extents })
    }

    /// Mode, owner and so on, and whether it is an opaque directory.
    fn attributes(&self, path: &[u8], inode: &Inode) -> Result<(Attributes, bool), Fault> {
        let mut xattrs = self.fs.xattrs(inode)?;
        if let Some(name) = ELSEWHERE.iter().find(|name| xattrs.contains_key(**name)) {
            return Err(damaged(format!(
                "{} has {}, which our guests do not use",
                shown(path),
                String::from_utf8_lossy(name)
            )));
        }
        let is_opaque = xattrs.get(OPAQUE).is_some_and(|value| value == b"y");
        xattrs.retain(|name, _| is_carried(name));
        let Inode { mode, uid, gid, mtime, .. } = *inode;
        Ok((Attributes { mode, uid, gid, mtime, xattrs }, is_opaque))
    }

    fn add(&mut self, entry: Entry) -> Result<(), Fault> {
        if self.entries.len() >= self.limits.entries {
            return Err(excessive(format!(
                "it has more than the {} entries that a layer may have",
                self.limits.entries
            )));
        }
        if entry.path.len() > self.limits.path_len {
            return Err(excessive(format!(
                "a path has more than {} bytes ({})",
                self.limits.path_len,
                shown(&entry.path)
            )));
        }
        entry.check()?;
        self.entries.push(entry);
        (self.watcher)(self.read)
    }
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') }
}
