//! One layer: what its archive says of each path, and where the contents are in its data blob.
use crate::blob::Blob;
use crate::fault::{damaged, excessive};
use crate::limits::Limits;
use crate::path::{clean, parts, shown, split};
use crate::tar::{Member, Mtime, Reader, Type, Watcher};
use std::collections::BTreeMap;
use std::io::{Read, Seek, Write};
use viv_model::Fault;

/// Names of entries that hide what is below (OCI image specification, "Image Layer Filesystem Changeset", "Whiteouts").
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// Hides all that is below in its directory ("Opaque Whiteout").
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Begins the names of AUFS' own files, from which the form of whiteouts comes: they belong to no image.
const AUFS: &[u8] = b".wh..wh.";
/// Longest name in a directory, bytes (NAME_MAX, limits.h; EROFS_NAME_LEN).
pub(crate) const NAME_LEN_MAX: usize = 255;
/// Largest value of an extended attribute: EROFS has 16 bits for it (erofs_fs.h, e_value_size).
pub(crate) const XATTR_VALUE_MAX: usize = 0xffff;
/// Most bytes of what an index has, about: it is held in memory.
const INDEX_LEN_MAX: usize = 512 << 20;
/// Largest major and minor number of a device in Linux (include/linux/kdev_t.h, new_encode_dev).
pub(crate) const DEVICE_MAX: (u32, u32) = (0xfff, 0xf_ffff);

/// What a file has besides its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with set-ID and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content changed last.
    pub mtime: Mtime,
    /// Extended attributes by their full names.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A piece of a file, in blocks. What no extent covers is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins in the file.
    pub from: u64,
    /// Where it begins in the layer's data blob.
    pub at: u64,
    /// How long it is.
    pub blocks: u64,
}

/// What an entry is, or does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File {
        /// Bytes of it.
        size: u64,
        /// In order.
        extents: Vec<Extent>,
    },
    /// A directory.
    Directory,
    /// A symbolic link, to anything.
    Symlink(Vec<u8>),
    /// Another name of a path.
    Hardlink(Vec<u8>),
    /// A device node: character, or block.
    Device {
        /// Block device.
        block: bool,
        /// Which driver.
        major: u32,
        /// Which of its devices.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// Hides what lower layers have at its path.
    Whiteout,
    /// Hides what lower layers have in the directory at its path.
    Opaque,
}

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Inside the root, without `.` and `..`; empty for the root.
    pub path: Vec<u8>,
    /// Of files, directories, symbolic links, devices and pipes.
    pub attributes: Attributes,
    /// What it is.
    pub kind: Kind,
}

/// A layer, without its files' contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layer {
    /// As the archive has them.
    pub entries: Vec<Entry>,
    /// Blocks of the data blob.
    pub data_blocks: u64,
}

/// Reads a layer's archive, writes the contents of its files to `data` (an empty file at its beginning), and gives the rest.
/// `watcher` is asked after each mebibyte.
///
/// Nothing but `data` is written, and it is not synced. Paths are cleaned, so that none leads out of the tree; links are followed inside it, when
/// layers are merged.
pub fn unpack<W: Write + Seek>(
    tar: impl Read,
    data: &mut W,
    limits: &Limits,
    watcher: Watcher<'_>,
) -> Result<Layer, Fault> {
    let mut blob = Blob::new(data);
    let mut reader = Reader::new(tar, limits, watcher);
    let (mut entries, mut index_len) = (Vec::new(), 0usize);
    while let Some(mut member) = reader.next()? {
        if entries.len() >= limits.entries {
            return Err(excessive(format!(
                "it has more than the {} entries that a layer may have",
                limits.entries
            )));
        }
        let path = std::mem::take(&mut member.path);
        let in_member =
            |fault: Fault| Fault { message: format!("{} ({})", fault.message, shown(&path)), ..fault };
        check_len(&path, limits.path_len)?;
        let cleaned = clean(&path);
        if parts(&cleaned).next().is_some_and(|first| first.starts_with(AUFS) && first != OPAQUE) {
            continue;
        }
        let (parent, name) = split(&cleaned);
        let (path, kind) = if name == OPAQUE {
            (parent.to_vec(), Kind::Opaque)
        } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(damaged(format!("{} hides nothing that has a name", shown(&cleaned))));
            }
            (if parent.is_empty() { hidden.to_vec() } else { [parent, hidden].join(&b'/') }, Kind::Whiteout)
        } else {
            (cleaned, kind(&mut member, &mut reader, &mut blob, limits)?)
        };
        let attributes = if matches!(kind, Kind::Whiteout | Kind::Opaque | Kind::Hardlink(_)) {
            Attributes::default()
        } else {
            attributes(member, limits).map_err(in_member)?
        };
        let entry = Entry { path, attributes, kind };
        entry.check()?;
        index_len += entry.index_len();
        if index_len > INDEX_LEN_MAX {
            return Err(excessive("its names, attributes and maps of sparse files are more than 512 MiB"));
        }
        entries.push(entry);
    }
    Ok(Layer { entries, data_blocks: blob.finish()? })
}

/// What the member is; writes its content.
fn kind<W: Write + Seek, R: Read>(
    member: &mut Member,
    reader: &mut Reader<'_, R>,
    blob: &mut Blob<'_, W>,
    limits: &Limits,
) -> Result<Kind, Fault> {
    check_len(&member.link, limits.path_len)?;
    Ok(match member.kind {
        Type::File => {
            let extents = blob.file(member.size, &member.segments, |bytes| reader.content(bytes))?;
            Kind::File { size: member.size, extents }
        }
        Type::Directory => Kind::Directory,
        Type::Symlink => Kind::Symlink(std::mem::take(&mut member.link)),
        Type::Hardlink => Kind::Hardlink(clean(&member.link)),
        Type::Character | Type::Block => {
            let (major, minor) = member.device;
            Kind::Device { block: member.kind == Type::Block, major, minor }
        }
        Type::Fifo => Kind::Fifo,
    })
}

fn check_len(path: &[u8], path_len: usize) -> Result<(), Fault> {
    if path.len() > path_len {
        return Err(excessive(format!(
            "a path has {} bytes, more than the {path_len} that one may have ({})",
            path.len(),
            shown(path)
        )));
    }
    Ok(())
}

fn attributes(member: Member, limits: &Limits) -> Result<Attributes, Fault> {
    let mut xattrs = member.xattrs;
    xattrs.retain(|name, _| is_carried(name));
    let bytes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
    if bytes > limits.xattr_bytes {
        return Err(excessive(format!(
            "extended attributes of {bytes} bytes are more than the {} that an entry may have",
            limits.xattr_bytes
        )));
    }
    let Member { mode, uid, gid, mtime, .. } = member;
    Ok(Attributes { mode, uid, gid, mtime, xattrs })
}

/// Whether an extended attribute is the image's business. The label of SELinux is that of the host where the layer was made;
/// overlayfs' own would be taken as orders by the overlayfs that the guest mounts over the image; and the other names of
/// `system.` are some file system's alone.
pub(crate) fn is_carried(name: &[u8]) -> bool {
    let has_name = |prefix: &[u8]| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
    let of_all = has_name(b"user.") || has_name(b"trusted.") || has_name(b"security.");
    let acl = name == b"system.posix_acl_access" || name == b"system.posix_acl_default";
    (of_all || acl) && name != b"security.selinux" && !name.starts_with(b"trusted.overlay.")
}

impl Entry {
    /// Bytes in an index, about.
    fn index_len(&self) -> usize {
        let xattrs = self.attributes.xattrs.iter().map(|(name, value)| name.len() + value.len() + 8);
        let own = match &self.kind {
            Kind::File { extents, .. } => extents.len().saturating_mul(size_of::<Extent>()),
            Kind::Symlink(target) | Kind::Hardlink(target) => target.len(),
            _ => 0,
        };
        64 + self.path.len() + own + xattrs.sum::<usize>()
    }

    /// What no entry may be, wherever it comes from.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let bad = |what: &str| Err(damaged(format!("{} {what}", shown(&self.path))));
        if self.path.contains(&0) || clean(&self.path) != self.path {
            return bad("is no path");
        }
        if parts(&self.path).any(|part| part.len() > NAME_LEN_MAX) {
            return bad("has a name of more than 255 bytes");
        }
        match &self.kind {
            Kind::Directory | Kind::Opaque => {}
            _ if self.path.is_empty() => return bad("is the root, which can only be a directory"),
            Kind::Symlink(target) if target.is_empty() || target.len() > 4095 || target.contains(&0) => {
                return bad("is a symbolic link without a target that Linux could follow");
            }
            Kind::Hardlink(target) if target.contains(&0) || clean(target) != *target => {
                return bad("is a hard link to what is no path");
            }
            Kind::Device { major, minor, .. } if *major > DEVICE_MAX.0 || *minor > DEVICE_MAX.1 => {
                return bad("is a device whose number Linux does not have");
            }
            _ => {}
        }
        for (name, value) in &self.attributes.xattrs {
            if name.len() > NAME_LEN_MAX
                || value.len() > XATTR_VALUE_MAX
                || name.contains(&0)
                || !is_carried(name)
            {
                return bad("has an extended attribute that no file can have");
            }
        }
        if self.attributes.mtime.nanoseconds >= 1_000_000_000 || self.attributes.mode > 0o7777 {
            return bad("has a time or a mode that is none");
        }
        Ok(())
    }
}
