//! The table of a program's descriptors.
use super::errno::Errno;
use rustix::fs::{Dir, Mode, OFlags, open};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use viv_model::{Fault, Kind, ShareSpec};

/// Most descriptors that a program has open.
const OPEN_MAX: usize = 1000;
/// Most entries of a directory that are listed: a listing is kept while it is read.
pub(crate) const ENTRIES_MAX: usize = 1 << 20;

/// `rights` of `typenames.witx`.
pub(crate) mod rights {
    pub(crate) const FD_READ: u64 = 1 << 1;
    pub(crate) const FD_WRITE: u64 = 1 << 6;
    pub(crate) const PATH_FILESTAT_SET_SIZE: u64 = 1 << 19;
    /// What can be done with a file: sync, read, seek, set flags, tell, write, advise, allocate, stat and its changes, poll.
    pub(crate) const FILE: u64 = 0x08e0_01ff;
    /// What can be done with a directory: sync, set flags, all of paths, list, stat and its changes.
    pub(crate) const DIRECTORY: u64 = 0x07bf_fe19;
    /// A stream that is nowhere: read, write, set flags, stat, poll.
    pub(crate) const STREAM: u64 = 1 << 1 | 1 << 3 | 1 << 6 | 1 << 21 | 1 << 27;
    pub(crate) const SOCK_SHUTDOWN: u64 = 1 << 28;
    pub(crate) const SOCK_ACCEPT: u64 = 1 << 29;
    /// What can be done with a connection.
    pub(crate) const CONNECTION: u64 = STREAM | SOCK_SHUTDOWN;
    /// What can be done where connections come to: set flags, stat, poll, accept.
    pub(crate) const LISTENER: u64 = 1 << 3 | 1 << 21 | 1 << 27 | SOCK_ACCEPT;
}

/// What is behind a descriptor.
pub(crate) enum Kinds {
    Stdin,
    Stdout,
    Stderr,
    File(File),
    Directory {
        file: File,
        /// What the program knows it as, if it was given it at its start.
        preopened: Option<String>,
        /// It may not be changed, nor what is in it.
        read_only: bool,
        /// What it had in it when its listing began.
        listing: Vec<Entry>,
    },
    /// A published port.
    Listener {
        /// None where the program goes on without that port: nobody comes.
        socket: Option<Arc<OwnedFd>>,
        /// Its place among the program's ports.
        port: usize,
        nonblocking: bool,
    },
    Connection {
        socket: Arc<OwnedFd>,
        nonblocking: bool,
    },
}

/// An entry of a directory.
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) inode: u64,
    pub(crate) kind: u8,
}

/// Where a file was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Origin {
    /// The directory that the program was given, by its place among them.
    pub(crate) share: usize,
    /// The path in it; nothing for itself.
    pub(crate) path: String,
}

impl Origin {
    /// What was opened there under this name.
    pub(crate) fn join(&self, name: &str) -> Origin {
        let path = if self.path.is_empty() { name.to_string() } else { format!("{}/{name}", self.path) };
        Origin { share: self.share, path }
    }

    /// Its path, as the host knows it.
    pub(crate) fn name(&self) -> &str {
        if self.path.is_empty() { "." } else { &self.path }
    }
}

/// A descriptor.
pub(crate) struct Descriptor {
    pub(crate) kind: Kinds,
    pub(crate) rights: u64,
    pub(crate) inheriting: u64,
    /// Where it is from; streams are from nowhere.
    pub(crate) origin: Option<Origin>,
}

impl Descriptor {
    /// One with all rights that are of use with it.
    pub(crate) fn new(kind: Kinds) -> Descriptor {
        let (rights, inheriting) = match &kind {
            Kinds::Directory { .. } => (rights::DIRECTORY, rights::DIRECTORY | rights::FILE),
            Kinds::File(_) => (rights::FILE, 0),
            Kinds::Listener { .. } => (rights::LISTENER, rights::CONNECTION),
            Kinds::Connection { .. } => (rights::CONNECTION, 0),
            _ => (rights::STREAM, 0),
        };
        Descriptor { kind, rights, inheriting, origin: None }
    }
}

/// A directory that a program was given.
pub(super) struct Root {
    pub(super) directory: File,
    /// Nothing in it may be changed.
    pub(super) read_only: bool,
}

/// All of a program's descriptors.
pub(crate) struct Table {
    pub(super) open: BTreeMap<u32, Descriptor>,
    /// The directories that the program was given: it may close its own descriptors of them.
    pub(super) roots: Vec<Root>,
    /// The published ports, which it may close as well.
    pub(super) listeners: Vec<Arc<OwnedFd>>,
    pub(crate) tty: bool,
}

impl Table {
    /// The three streams, then a directory for each share.
    pub(crate) fn new(shares: &[ShareSpec], tty: bool) -> Result<Table, Fault> {
        let mut table = Table { open: BTreeMap::new(), roots: Vec::new(), listeners: Vec::new(), tty };
        for stream in [Kinds::Stdin, Kinds::Stdout, Kinds::Stderr] {
            table.open.insert(table.open.len() as u32, Descriptor::new(stream));
        }
        for (number, share) in shares.iter().enumerate() {
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
            let cannot = |error: std::io::Error| {
                Fault::new(
                    Kind::of_file(&error),
                    format!("cannot share the directory {}: {error}", share.path.display()),
                    "name a directory that is there and that you may read: -v DIR:PATH",
                )
            };
            let file: File =
                open(&share.path, flags, Mode::empty()).map_err(|error| cannot(error.into()))?.into();
            let directory = file.try_clone().map_err(cannot)?;
            table.roots.push(Root { directory, read_only: share.read_only });
            let directory = Kinds::Directory {
                file,
                preopened: Some(share.target.clone()),
                read_only: share.read_only,
                listing: Vec::new(),
            };
            let origin = Some(Origin { share: number, path: String::new() });
            let descriptor = Descriptor { origin, ..Descriptor::new(directory) };
            table.open.insert(table.open.len() as u32, descriptor);
        }
        Ok(table)
    }

    /// Puts these ports behind the streams and before the directories.
    pub(crate) fn listen(&mut self, listeners: Vec<Arc<OwnedFd>>) {
        let directories = self.open.split_off(&3);
        let ports = listeners.iter().enumerate().map(|(port, socket)| {
            Descriptor::new(Kinds::Listener { socket: Some(socket.clone()), port, nonblocking: false })
        });
        self.open.extend((3..).zip(ports.chain(directories.into_values())));
        self.listeners = listeners;
    }

    /// How many connections are open.
    pub(crate) fn connections(&self) -> usize {
        self.open.values().filter(|open| matches!(open.kind, Kinds::Connection { .. })).count()
    }

    /// The descriptor with this number.
    pub(crate) fn get(&self, fd: u32) -> Result<&Descriptor, Errno> {
        self.open.get(&fd).ok_or(Errno::BadFd)
    }

    /// The same, if its bytes may be read, or written: the program may have given that up.
    pub(crate) fn with(&self, fd: u32, right: u64) -> Result<&Descriptor, Errno> {
        Some(self.get(fd)?).filter(|descriptor| descriptor.rights & right != 0).ok_or(Errno::BadFd)
    }

    /// The same, to be changed.
    pub(crate) fn get_mut(&mut self, fd: u32) -> Result<&mut Descriptor, Errno> {
        self.open.get_mut(&fd).ok_or(Errno::BadFd)
    }

    /// A file, and no directory or stream.
    pub(crate) fn file(&self, fd: u32) -> Result<&File, Errno> {
        match &self.get(fd)?.kind {
            Kinds::File(file) => Ok(file),
            Kinds::Directory { .. } => Err(Errno::BadFd),
            _ => Err(Errno::IllegalSeek),
        }
    }

    /// A directory; whether it may only be read.
    pub(crate) fn directory(&self, fd: u32) -> Result<(&File, bool), Errno> {
        match &self.get(fd)?.kind {
            Kinds::Directory { file, read_only, .. } => Ok((file, *read_only)),
            _ => Err(Errno::NotDirectory),
        }
    }

    /// A directory that may be changed.
    pub(crate) fn changing(&self, fd: u32) -> Result<&File, Errno> {
        match self.directory(fd)? {
            (_, true) => Err(Errno::ReadOnly),
            (file, false) => Ok(file),
        }
    }

    /// A file or directory that may be changed: what the host knows it as.
    pub(crate) fn changing_on_host(&self, fd: u32) -> Result<&File, Errno> {
        let descriptor = self.get(fd)?;
        let root = descriptor.origin.as_ref().and_then(|origin| self.roots.get(origin.share));
        match &descriptor.kind {
            Kinds::File(_) | Kinds::Directory { .. } if root.is_some_and(|root| root.read_only) => {
                Err(Errno::ReadOnly)
            }
            Kinds::File(file) | Kinds::Directory { file, .. } => Ok(file),
            _ => Err(Errno::Invalid),
        }
    }

    /// Opens the lowest number that is free.
    pub(crate) fn insert(&mut self, descriptor: Descriptor) -> Result<u32, Errno> {
        if self.open.len() >= OPEN_MAX {
            return Err(Errno::TooManyFiles);
        }
        let mut free = 0;
        for &taken in self.open.keys() {
            if taken != free {
                break;
            }
            free += 1;
        }
        self.open.insert(free, descriptor);
        Ok(free)
    }

    /// Whether another one can be opened.
    pub(crate) fn has_room(&self) -> Result<(), Errno> {
        if self.open.len() < OPEN_MAX { Ok(()) } else { Err(Errno::TooManyFiles) }
    }

    pub(crate) fn close(&mut self, fd: u32) -> Result<(), Errno> {
        self.open.remove(&fd).map(drop).ok_or(Errno::BadFd)
    }

    /// Gives a descriptor the number of another one, which is closed.
    pub(crate) fn renumber(&mut self, from: u32, to: u32) -> Result<(), Errno> {
        self.get(from)?;
        self.get(to)?;
        if let Some(descriptor) = self.open.remove(&from) {
            self.open.insert(to, descriptor);
        }
        Ok(())
    }
}

/// What is in a directory now, `.` and `..` first.
pub(crate) fn list(directory: &File) -> Result<Vec<Entry>, Errno> {
    let mut found: Vec<Entry> = Vec::new();
    let mut dir = Dir::read_from(directory).map_err(Errno::from)?;
    while let Some(entry) = dir.read() {
        let entry = entry.map_err(Errno::from)?;
        if found.len() >= ENTRIES_MAX {
            return Err(Errno::NoMemory);
        }
        let name = entry.file_name().to_bytes().to_vec();
        let kind = super::file::filetype(entry.file_type());
        found.push(Entry { name, inode: entry.ino(), kind });
    }
    found.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> Descriptor {
        Descriptor::new(Kinds::File(File::open("/dev/null").unwrap()))
    }

    #[test]
    fn the_lowest_free_number_is_given_and_there_is_an_end_of_them() {
        let mut table = Table::new(&[], false).unwrap();
        assert_eq!((table.insert(file()), table.insert(file())), (Ok(3), Ok(4)));
        table.close(3).unwrap();
        assert_eq!(table.insert(file()), Ok(3));
        assert_eq!(table.close(77), Err(Errno::BadFd));
        while table.insert(Descriptor::new(Kinds::Stdin)).is_ok() {}
        assert_eq!(table.has_room(), Err(Errno::TooManyFiles));
    }

    #[test]
    fn a_number_passes_on_to_another_descriptor() {
        let mut table = Table::new(&[], false).unwrap();
        let fd = table.insert(file()).unwrap();
        table.renumber(fd, 0).unwrap();
        assert!(matches!(table.get(0).unwrap().kind, Kinds::File(_)));
        assert_eq!(table.get(fd).err(), Some(Errno::BadFd));
        assert_eq!(table.renumber(0, 99), Err(Errno::BadFd));
    }

    #[test]
    fn what_is_in_a_directory_for_reading_is_not_changed() {
        for read_only in [false, true] {
            let share = ShareSpec { path: "/".into(), target: "/".into(), read_only, ..ShareSpec::default() };
            let mut table = Table::new(&[share], false).unwrap();
            let origin = Some(Origin { share: 0, path: "dev/null".into() });
            let fd = table.insert(Descriptor { origin, ..file() }).unwrap();
            for fd in [3, fd] {
                assert_eq!(table.changing_on_host(fd).err(), read_only.then_some(Errno::ReadOnly));
            }
            assert_eq!(table.changing_on_host(0).err(), Some(Errno::Invalid));
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let share = ShareSpec { path: "/nowhere".into(), target: "/x".into(), ..ShareSpec::default() };
        let fault = Table::new(&[share], false).err().unwrap();
        assert!(fault.kind == Kind::NotFound && fault.message.contains("/nowhere"), "{fault}");
    }
}
