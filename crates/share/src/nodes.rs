//! The files that the guest knows: node IDs, each with a descriptor that only names its file (O_PATH).
//!
//! A descriptor stays on its file whatever is renamed. There are only so many, so that the least recently used are
//! closed when others are needed, and found again by the name under which the guest found them; what is there then
//! must be the same file. A file that is not to be found under its name keeps its descriptor.
use crate::protocol::ROOT;
use crate::saved::{IdentitySaved, NodeSaved, Why};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx};
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::sync::Arc;

/// Most files that one guest may know at once: each takes memory of ours.
const NODES_MAX: usize = 1 << 20;
/// Most directories between a closed file and an open one above it.
const DEPTH_MAX: usize = 256;
/// Descriptors that are looked at a second time before we say that there are none to close.
const TRIES_MAX: usize = 64;

/// What tells a file from all others, also from a later one with the same number.
pub(crate) type Identity = (u32, u32, u64, i64, u32);

struct Node {
    identity: Identity,
    kind: FileType,
    parent: u64,
    name: CString,
    /// None: closed until it is needed again.
    file: Option<Arc<OwnedFd>>,
    /// Used since it was last thought of closing it.
    recent: bool,
    /// How often the guest has been told of it and has not forgotten it.
    lookups: u64,
}

/// See the module.
pub(crate) struct Nodes {
    root: Arc<OwnedFd>,
    root_identity: Identity,
    nodes: HashMap<u64, Node>,
    by_identity: HashMap<Identity, u64>,
    next: u64,
    /// Open nodes, the next to be closed first; also some that are closed or forgotten by now.
    open: VecDeque<u64>,
    open_count: usize,
    open_max: usize,
}

fn identity(stat: &Statx) -> Identity {
    let born = stat.stx_btime;
    (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino, born.tv_sec, born.tv_nsec)
}

/// Attributes of an open file.
pub(crate) fn stat(file: impl AsFd) -> Result<Statx, Errno> {
    statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

/// Opens one component of a path below `parent`, never anything else: no link is followed, nothing above is reached.
pub(crate) fn open_beneath(
    parent: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(parent, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, mode, resolve) {
            // Somebody renamed something meanwhile (openat2(2)).
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
}

impl Nodes {
    /// Only the share's directory, with room for `open_max` descriptors besides.
    pub(crate) fn new(root: OwnedFd, open_max: usize) -> Result<Nodes, Errno> {
        let root_identity = identity(&stat(&root)?);
        Ok(Nodes {
            root: Arc::new(root),
            root_identity,
            nodes: HashMap::new(),
            by_identity: HashMap::new(),
            next: ROOT + 1,
            open: VecDeque::new(),
            open_count: 0,
            open_max: open_max.max(1),
        })
    }

    /// The guest forgets everything.
    pub(crate) fn clear(&mut self) {
        self.nodes.clear();
        self.by_identity.clear();
        self.open.clear();
        self.open_count = 0;
    }

    /// The directory, the next number, and every node.
    pub(crate) fn save(&self) -> (IdentitySaved, u64, Vec<NodeSaved>) {
        let saved = |(number, node): (&u64, &Node)| NodeSaved {
            number: *number,
            parent: node.parent,
            name: node.name.as_c_str().into(),
            file: node.identity.into(),
            kind: node.kind.as_raw_mode(),
            lookups: node.lookups,
        };
        (self.root_identity.into(), self.next, self.nodes.iter().map(saved).collect())
    }

    /// Knows these nodes and no others, each to be found again when it is needed.
    pub(crate) fn load(&mut self, root: IdentitySaved, next: u64, nodes: Vec<NodeSaved>) -> Result<(), Why> {
        self.clear();
        if nodes.len() > NODES_MAX {
            return Err(format!("it knows {} files, more than {NODES_MAX}", nodes.len()));
        }
        let (major, minor, ..) = self.root_identity;
        for mut node in nodes {
            let number = node.number;
            let wrong = |what: &str| format!("file {number} {what}");
            if number <= ROOT || number >= next {
                return Err(wrong("has a number that was never given"));
            }
            // After the host has booted anew, a file system may have another number.
            if node.file.device == root.device {
                node.file.device = (major, minor);
            }
            let identity = node.file.into();
            let known = Node {
                identity,
                kind: FileType::from_raw_mode(node.kind),
                parent: node.parent,
                name: node.name.component().ok_or_else(|| wrong("has no name"))?,
                file: None,
                recent: false,
                lookups: node.lookups.max(1),
            };
            let twice = self.nodes.insert(number, known).is_some();
            if self.by_identity.insert(identity, number).is_some() || twice {
                return Err(wrong("is there twice"));
            }
        }
        self.next = self.next.max(next);
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn count(&self) -> (usize, usize) {
        (self.nodes.len(), self.open_count)
    }

    /// The descriptor of a node.
    pub(crate) fn file(&mut self, number: u64) -> Result<Arc<OwnedFd>, Errno> {
        match self.nodes.get_mut(&number) {
            Some(Node { file: Some(file), recent, .. }) => {
                *recent = true;
                return Ok(file.clone());
            }
            Some(_) => {}
            None if number == ROOT => return Ok(self.root.clone()),
            None => return Err(Errno::STALE),
        }
        let file = self.reach(number, DEPTH_MAX)?;
        self.make_room()?;
        if let Some(node) = self.nodes.get_mut(&number) {
            node.file = Some(file.clone());
            node.recent = true;
            self.open.push_back(number);
            self.open_count += 1;
        }
        Ok(file)
    }

    /// A node's descriptor, or one that is made by its name and those of the directories above it.
    fn reach(&self, number: u64, depth: usize) -> Result<Arc<OwnedFd>, Errno> {
        if number == ROOT {
            return Ok(self.root.clone());
        }
        let node = self.nodes.get(&number).ok_or(Errno::STALE)?;
        if let Some(file) = &node.file {
            return Ok(file.clone());
        }
        self.reach_by_name(node, depth).map(Arc::new)
    }

    /// Finds a node by its name: the same file or nothing.
    fn reach_by_name(&self, node: &Node, depth: usize) -> Result<OwnedFd, Errno> {
        let depth = depth.checked_sub(1).ok_or(Errno::STALE)?;
        let parent = self.reach(node.parent, depth)?;
        let (file, stat) = find(&parent, &node.name).map_err(|_| Errno::STALE)?;
        if identity(&stat) == node.identity { Ok(file) } else { Err(Errno::STALE) }
    }

    /// The kind of file that a node is.
    pub(crate) fn kind(&self, node: u64) -> Result<FileType, Errno> {
        match node {
            ROOT => Ok(FileType::Directory),
            _ => self.nodes.get(&node).map(|node| node.kind).ok_or(Errno::STALE),
        }
    }

    /// Finds `name` in a directory, and counts that the guest knows of it.
    pub(crate) fn look_up(&mut self, parent: u64, name: &CStr) -> Result<(u64, Statx), Errno> {
        let directory = self.file(parent)?;
        let (file, stat) = find(&directory, name)?;
        let number = self.insert(parent, name, file, &stat)?;
        Ok((number, stat))
    }

    /// Counts that the guest knows of `file`, which was found as `name` in `parent`.
    pub(crate) fn insert(
        &mut self,
        parent: u64,
        name: &CStr,
        file: OwnedFd,
        stat: &Statx,
    ) -> Result<u64, Errno> {
        let identity = identity(stat);
        if identity == self.root_identity {
            return Ok(ROOT);
        }
        if let Some(number) = self.by_identity.get(&identity)
            && let Some(node) = self.nodes.get_mut(number)
        {
            node.lookups = node.lookups.saturating_add(1);
            node.recent = true;
            if node.parent != parent || node.name.as_c_str() != name {
                (node.parent, node.name) = (parent, name.to_owned());
            }
            return Ok(*number);
        }
        if self.nodes.len() >= NODES_MAX {
            return Err(Errno::NFILE);
        }
        self.make_room()?;
        let number = self.next;
        self.next += 1;
        let node = Node {
            identity,
            kind: FileType::from_raw_mode(stat.stx_mode.into()),
            parent,
            name: name.to_owned(),
            file: Some(Arc::new(file)),
            recent: true,
            lookups: 1,
        };
        self.nodes.insert(number, node);
        self.by_identity.insert(identity, number);
        self.open.push_back(number);
        self.open_count += 1;
        Ok(number)
    }

    /// The guest has renamed what is `name` in `parent` now.
    pub(crate) fn renamed(&mut self, parent: u64, name: &CStr) {
        let Ok(directory) = self.file(parent) else { return };
        let Ok((_, stat)) = find(&directory, name) else { return };
        let number = self.by_identity.get(&identity(&stat));
        if let Some(node) = number.and_then(|number| self.nodes.get_mut(number)) {
            (node.parent, node.name) = (parent, name.to_owned());
        }
    }

    /// The guest forgets so many lookups of a node.
    pub(crate) fn forget(&mut self, number: u64, lookups: u64) {
        let Some(node) = self.nodes.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups > 0 {
            return;
        }
        let Some(node) = self.nodes.remove(&number) else { return };
        self.by_identity.remove(&node.identity);
        if node.file.is_some() {
            self.open_count -= 1;
        }
        // What is left of forgotten nodes in the order of closing goes when it is most of it.
        if self.open.len() > 2 * self.open_count + TRIES_MAX {
            let nodes = &self.nodes;
            self.open.retain(|number| nodes.get(number).is_some_and(|node| node.file.is_some()));
        }
    }

    /// Closes descriptors until one more may be opened.
    fn make_room(&mut self) -> Result<(), Errno> {
        let mut tries = TRIES_MAX + self.open_max;
        while self.open_count >= self.open_max {
            let number = self.open.pop_front().ok_or(Errno::NFILE)?;
            let Some(node) = self.nodes.get_mut(&number).filter(|node| node.file.is_some()) else { continue };
            tries = tries.checked_sub(1).ok_or(Errno::NFILE)?;
            if std::mem::take(&mut node.recent) {
                self.open.push_back(number);
                continue;
            }
            let is_findable =
                self.nodes.get(&number).is_some_and(|node| self.reach_by_name(node, DEPTH_MAX).is_ok());
            match self.nodes.get_mut(&number) {
                Some(node) if is_findable => {
                    node.file = None;
                    self.open_count -= 1;
                }
                _ => self.open.push_back(number),
            }
        }
        Ok(())
    }
}

/// Opens `name` in a directory as a name of its file, and reads its attributes.
pub(crate) fn find(directory: &OwnedFd, name: &CStr) -> Result<(OwnedFd, Statx), Errno> {
    let file = open_beneath(directory.as_fd(), name, OFlags::PATH, Mode::empty())?;
    let stat = stat(&file)?;
    Ok((file, stat))
}
