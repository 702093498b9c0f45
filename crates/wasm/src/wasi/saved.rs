//! What a program holds of its host, written down and taken up again.
//!
//! Files are known by the share that they are in and their path there: that is where they are opened again, in this process or in
//! another. A file whose name is another one's by now cannot be saved.
use super::Wasi;
use super::clock::SavedClock;
use super::fd::{Descriptor, Entry, Kinds, Origin, Table};
use super::path::beneath;
use super::random::Random;
use crate::live::Unsaved;
use rustix::fd::AsFd;
use rustix::fs::{FileType, Mode, OFlags, SeekFrom};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};
use viv_model::ShareSpec;

/// Flags of a file that go with it (fcntl(2)).
const FLAGS: OFlags =
    OFlags::RWMODE.union(OFlags::APPEND).union(OFlags::NONBLOCK).union(OFlags::SYNC).union(OFlags::DSYNC);

/// All that is saved of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedWasi {
    descriptors: Vec<SavedDescriptor>,
    clock: SavedClock,
    /// Where its random numbers go on, if they come from a seed.
    random: Option<u64>,
    /// For how long it has waited in a call that it makes again, nanoseconds.
    waited_ns: Option<u64>,
    /// Input that waits to be read.
    input: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedDescriptor {
    fd: u32,
    rights: u64,
    inheriting: u64,
    kind: SavedKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum SavedKind {
    Stdin,
    Stdout,
    Stderr,
    File {
        at: Origin,
        flags: u32,
        offset: u64,
    },
    Directory {
        at: Origin,
        preopened: Option<String>,
        listing: Vec<(Vec<u8>, u64, u8)>,
    },
    /// A port that is published where it goes on, by its place.
    Listener {
        port: usize,
        nonblocking: bool,
    },
    /// A connection, which is reset where it goes on.
    Connection {
        nonblocking: bool,
    },
}

fn lost(at: &Origin, why: impl std::fmt::Display) -> Unsaved {
    Unsaved::Open(format!("{:?} of its directory {}: {why}", at.path, at.share))
}

impl Table {
    /// Whether a file is still where it was opened.
    fn is_there(&self, at: &Origin, file: &File) -> Result<(), Unsaved> {
        let root = self.roots.get(at.share).ok_or_else(|| lost(at, "there is no such directory"))?;
        let found = beneath(root.directory.as_fd(), at.name(), OFlags::PATH, Mode::empty());
        let found = found.map_err(|_| lost(at, "it has no name any more"))?;
        let stat = |fd| rustix::fs::fstat(fd).map_err(|error| lost(at, error));
        let (found, opened) = (stat(found.as_fd())?, stat(file.as_fd())?);
        if (found.st_dev, found.st_ino) != (opened.st_dev, opened.st_ino) {
            return Err(lost(at, "another file has its name now"));
        }
        Ok(())
    }

    fn saved(&self) -> Result<Vec<SavedDescriptor>, Unsaved> {
        let each = |(fd, descriptor): (&u32, &Descriptor)| {
            let unknown = || Unsaved::Open(format!("descriptor {fd}, of nowhere"));
            let kind = match &descriptor.kind {
                Kinds::Stdin => SavedKind::Stdin,
                Kinds::Stdout => SavedKind::Stdout,
                Kinds::Stderr => SavedKind::Stderr,
                Kinds::Listener { port, nonblocking, .. } => {
                    SavedKind::Listener { port: *port, nonblocking: *nonblocking }
                }
                Kinds::Connection { nonblocking, .. } => SavedKind::Connection { nonblocking: *nonblocking },
                Kinds::File(file) => {
                    let at = descriptor.origin.clone().ok_or_else(unknown)?;
                    self.is_there(&at, file)?;
                    let failed = |error: rustix::io::Errno| lost(&at, error);
                    let stat = rustix::fs::fstat(file).map_err(failed)?;
                    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                        return Err(lost(&at, "it is no file, but a pipe or a device"));
                    }
                    let flags = rustix::fs::fcntl_getfl(file).map_err(failed)?;
                    let offset = rustix::fs::tell(file).map_err(failed)?;
                    SavedKind::File { at, flags: (flags & FLAGS).bits(), offset }
                }
                Kinds::Directory { file, preopened, listing, .. } => {
                    let at = descriptor.origin.clone().ok_or_else(unknown)?;
                    self.is_there(&at, file)?;
                    let entry = |entry: &Entry| (entry.name.clone(), entry.inode, entry.kind);
                    let listing = listing.iter().map(entry).collect();
                    SavedKind::Directory { at, preopened: preopened.clone(), listing }
                }
            };
            Ok(SavedDescriptor {
                fd: *fd,
                rights: descriptor.rights,
                inheriting: descriptor.inheriting,
                kind,
            })
        };
        self.open.iter().map(each).collect()
    }

    /// Opens again what a program had open.
    fn put_back(&mut self, shares: &[ShareSpec], saved: &[SavedDescriptor]) -> Result<(), Unsaved> {
        let mut taken = BTreeSet::new();
        self.open.clear();
        for saved in saved {
            self.has_room().map_err(|_| Unsaved::Damaged("it has too many files open".into()))?;
            if !taken.insert(saved.fd) {
                return Err(Unsaved::Damaged(format!("descriptor {} is there twice", saved.fd)));
            }
            let (kind, origin) = match &saved.kind {
                SavedKind::Stdin => (Kinds::Stdin, None),
                SavedKind::Stdout => (Kinds::Stdout, None),
                SavedKind::Stderr => (Kinds::Stderr, None),
                SavedKind::Listener { port, nonblocking } => {
                    let (socket, port, nonblocking) =
                        (self.listeners.get(*port).cloned(), *port, *nonblocking);
                    (Kinds::Listener { socket, port, nonblocking }, None)
                }
                SavedKind::Connection { nonblocking } => {
                    let failed = |error| Unsaved::Open(format!("a connection: {error}"));
                    let socket = Arc::new(super::socket::reset().map_err(failed)?);
                    (Kinds::Connection { socket, nonblocking: *nonblocking }, None)
                }
                SavedKind::File { at, flags, offset } => {
                    let (root, share) = self.root(shares, at)?;
                    let flags = OFlags::from_bits_retain(*flags) & FLAGS;
                    if share.read_only && flags & OFlags::RWMODE != OFlags::RDONLY {
                        return Err(lost(
                            at,
                            "it was opened to be written, and its directory is only to be read",
                        ));
                    }
                    let opened = beneath(root.as_fd(), at.name(), flags | OFlags::NONBLOCK, Mode::empty());
                    let file = File::from(opened.map_err(|errno| lost(at, format!("{errno:?}")))?);
                    let failed = |error: rustix::io::Errno| lost(at, error);
                    let stat = rustix::fs::fstat(&file).map_err(failed)?;
                    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                        return Err(lost(at, "it is no file any more"));
                    }
                    rustix::fs::fcntl_setfl(&file, flags - OFlags::RWMODE).map_err(failed)?;
                    rustix::fs::seek(&file, SeekFrom::Start(*offset)).map_err(failed)?;
                    (Kinds::File(file), Some(at.clone()))
                }
                SavedKind::Directory { at, preopened, listing } => {
                    let (root, share) = self.root(shares, at)?;
                    let flags = OFlags::DIRECTORY | OFlags::RDONLY;
                    let opened = beneath(root.as_fd(), at.name(), flags, Mode::empty());
                    let file = File::from(opened.map_err(|errno| lost(at, format!("{errno:?}")))?);
                    let entry = |(name, inode, kind): &(Vec<u8>, u64, u8)| Entry {
                        name: name.clone(),
                        inode: *inode,
                        kind: *kind,
                    };
                    let listing = listing.iter().map(entry).collect();
                    let (preopened, read_only) = (preopened.clone(), share.read_only);
                    (Kinds::Directory { file, preopened, read_only, listing }, Some(at.clone()))
                }
            };
            let (rights, inheriting) = (saved.rights, saved.inheriting);
            self.open.insert(saved.fd, Descriptor { kind, rights, inheriting, origin });
        }
        Ok(())
    }

    fn root<'a>(&self, shares: &'a [ShareSpec], at: &Origin) -> Result<(&File, &'a ShareSpec), Unsaved> {
        let found = self.roots.get(at.share).zip(shares.get(at.share));
        let (root, share) = found.ok_or_else(|| lost(at, "there is no such directory"))?;
        Ok((&root.directory, share))
    }
}

impl Wasi {
    /// All of it, as it is now; not if it has connections, unless they may be dropped.
    pub(crate) fn saved(&self, drop_sockets: bool) -> Result<SavedWasi, Unsaved> {
        match self.table.connections() {
            count @ 1.. if !drop_sockets => return Err(Unsaved::Connected(count)),
            _ => {}
        }
        Ok(SavedWasi {
            descriptors: self.table.saved()?,
            clock: self.clock.saved(),
            random: self.random.saved(),
            waited_ns: self
                .waits_since
                .map(|since| u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)),
            input: self.streams.pending(),
        })
    }

    /// Takes up again what was saved; the directories are those that the program was given.
    pub(crate) fn put_back(&mut self, shares: &[ShareSpec], saved: &SavedWasi) -> Result<(), Unsaved> {
        self.table.put_back(shares, &saved.descriptors)?;
        self.clock.put_back(&saved.clock);
        if let (Random::Seeded(_), Some(state)) = (&self.random, saved.random) {
            self.random = Random::from_seed(state);
        }
        let now = Instant::now();
        let since = |ns| now.checked_sub(Duration::from_nanos(ns)).unwrap_or(now);
        self.waits_since = saved.waited_ns.map(since);
        self.streams.put_back(saved.input.clone());
        Ok(())
    }
}
