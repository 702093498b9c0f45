//! Archives made by hand, entry by entry.
use tar::{Builder, EntryType, Header};

/// A layer's archive in the making.
pub(crate) struct Archive(Builder<Vec<u8>>);

/// One entry; what is not set is what most have.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) kind: EntryType,
    pub(crate) link: &'a [u8],
    pub(crate) content: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) owner: (u64, u64),
    pub(crate) mtime: u64,
    pub(crate) device: (u32, u32),
    /// Records of a pax header before it.
    pub(crate) pax: &'a [(&'a str, &'a [u8])],
}

impl Entry<'_> {
    pub(crate) const FILE: Entry<'static> = Entry {
        kind: EntryType::Regular,
        link: b"",
        content: b"",
        mode: 0o644,
        owner: (0, 0),
        mtime: 1_700_000_000,
        device: (0, 0),
        pax: &[],
    };
    pub(crate) const DIRECTORY: Entry<'static> =
        Entry { kind: EntryType::Directory, mode: 0o755, ..Entry::FILE };
    pub(crate) const SYMLINK: Entry<'static> = Entry { kind: EntryType::Symlink, mode: 0o777, ..Entry::FILE };
    pub(crate) const HARDLINK: Entry<'static> = Entry { kind: EntryType::Link, ..Entry::FILE };
}

impl Archive {
    pub(crate) fn new() -> Archive {
        Archive(Builder::new(Vec::new()))
    }

    /// Adds an entry; names of more than 100 bytes, and targets, get GNU's long headers.
    pub(crate) fn add(&mut self, path: impl AsRef<[u8]>, entry: Entry<'_>) -> &mut Archive {
        if !entry.pax.is_empty() {
            self.0.append_pax_extensions(entry.pax.iter().copied()).unwrap();
        }
        let path = path.as_ref();
        for (long, kind) in [(path, EntryType::GNULongName), (entry.link, EntryType::GNULongLink)] {
            if long.len() > 100 {
                let mut header = Header::new_gnu();
                put(&mut header, 0, b"././@LongLink");
                header.set_entry_type(kind);
                header.set_size(long.len() as u64 + 1);
                header.set_cksum();
                self.0.append(&header, &[long, b"\0"].concat()[..]).unwrap();
            }
        }
        let mut header = Header::new_gnu();
        put(&mut header, 0, &path[..path.len().min(100)]);
        put(&mut header, 157, &entry.link[..entry.link.len().min(100)]);
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.owner.0);
        header.set_gid(entry.owner.1);
        header.set_mtime(entry.mtime);
        header.set_size(entry.content.len() as u64);
        if matches!(entry.kind, EntryType::Char | EntryType::Block) {
            header.set_device_major(entry.device.0).unwrap();
            header.set_device_minor(entry.device.1).unwrap();
        }
        header.set_cksum();
        self.0.append(&header, entry.content).unwrap();
        self
    }

    pub(crate) fn file(&mut self, path: impl AsRef<[u8]>, content: &[u8]) -> &mut Archive {
        self.add(path, Entry { content, ..Entry::FILE })
    }

    pub(crate) fn directory(&mut self, path: impl AsRef<[u8]>) -> &mut Archive {
        self.add(path, Entry::DIRECTORY)
    }

    pub(crate) fn symlink(&mut self, path: impl AsRef<[u8]>, target: &str) -> &mut Archive {
        self.add(path, Entry { link: target.as_bytes(), ..Entry::SYMLINK })
    }

    pub(crate) fn hardlink(&mut self, path: impl AsRef<[u8]>, target: &str) -> &mut Archive {
        self.add(path, Entry { link: target.as_bytes(), ..Entry::HARDLINK })
    }

    pub(crate) fn end(&mut self) -> Vec<u8> {
        std::mem::replace(&mut self.0, Builder::new(Vec::new())).into_inner().unwrap()
    }
}

fn put(header: &mut Header, at: usize, bytes: &[u8]) {
    header.as_mut_bytes()[at..at + bytes.len()].copy_from_slice(bytes);
}
