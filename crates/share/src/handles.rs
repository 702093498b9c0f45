//! Files and directories that the guest has open.
use crate::saved::{HandleSaved, Why};
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::{HashMap, VecDeque};
use std::ffi::CString;
use std::sync::Arc;

/// A name in a directory.
pub(crate) struct Listed {
    pub(crate) name: CString,
    pub(crate) inode: u64,
    pub(crate) kind: u8,
    /// Where the listing goes on behind it.
    pub(crate) next: u64,
}

/// An open directory: names that were read and do not fit into a reply wait for the next one.
pub(crate) struct Listing {
    pub(crate) file: OwnedFd,
    pub(crate) waiting: VecDeque<Listed>,
    /// Where the first waiting one stands.
    pub(crate) at: u64,
}

enum Handle {
    File(Arc<OwnedFd>),
    Listing(Listing),
    /// It was open where the guest comes from, and is not to be found here.
    Gone,
}

/// A handle, and how it is opened again.
struct Opened {
    node: u64,
    /// None of a directory.
    flags: Option<u32>,
    handle: Handle,
}

/// See the module. Numbers are never used twice.
pub(crate) struct Handles {
    handles: HashMap<u64, Opened>,
    next: u64,
    max: usize,
}

impl Handles {
    pub(crate) fn new(max: usize) -> Handles {
        Handles { handles: HashMap::new(), next: 1, max }
    }

    pub(crate) fn clear(&mut self) {
        self.handles.clear();
    }

    fn add(&mut self, opened: Opened) -> Result<u64, Errno> {
        if self.handles.len() >= self.max {
            return Err(Errno::MFILE);
        }
        let number = self.next;
        self.next += 1;
        self.handles.insert(number, opened);
        Ok(number)
    }

    /// `file` is open for this node, with flags of which those count that it would be opened again with.
    pub(crate) fn add_file(&mut self, file: OwnedFd, node: u64, flags: OFlags) -> Result<u64, Errno> {
        let flags = flags - OFlags::TRUNC - OFlags::CREATE - OFlags::EXCL;
        self.add(Opened { node, flags: Some(flags.bits()), handle: Handle::File(Arc::new(file)) })
    }

    pub(crate) fn add_listing(&mut self, file: OwnedFd, node: u64) -> Result<u64, Errno> {
        self.add(Opened { node, flags: None, handle: listing(file) })
    }

    /// The next number, and everything that is open.
    pub(crate) fn save(&self) -> (u64, Vec<HandleSaved>) {
        let saved = |(number, opened): (&u64, &Opened)| HandleSaved {
            number: *number,
            node: opened.node,
            flags: opened.flags,
        };
        (self.next, self.handles.iter().map(saved).collect())
    }

    /// What is called so is open `again`, or gone.
    pub(crate) fn load(&mut self, saved: &HandleSaved, again: Option<OwnedFd>) -> Result<(), Why> {
        if self.handles.len() >= self.max {
            return Err(format!(
                "it has more files open than this user's processes may have here ({}): raise the limit (ulimit -n)",
                self.max
            ));
        }
        let handle = match (again, saved.flags) {
            (None, _) => Handle::Gone,
            (Some(file), None) => listing(file),
            (Some(file), Some(_)) => Handle::File(Arc::new(file)),
        };
        match self.handles.insert(saved.number, Opened { node: saved.node, flags: saved.flags, handle }) {
            None => Ok(()),
            Some(_) => Err(format!("handle {} is there twice", saved.number)),
        }
    }

    /// The next handle is called so, which none may be called yet.
    pub(crate) fn goes_on_at(&mut self, next: u64) -> Result<(), Why> {
        if let Some(number) = self.handles.keys().find(|number| **number >= next) {
            return Err(format!("handle {number} was never given"));
        }
        self.next = self.next.max(next);
        Ok(())
    }

    fn get(&self, number: u64) -> Result<&Handle, Errno> {
        self.handles.get(&number).map(|opened| &opened.handle).ok_or(Errno::BADF)
    }

    pub(crate) fn file(&self, number: u64) -> Result<&Arc<OwnedFd>, Errno> {
        match self.get(number)? {
            Handle::File(file) => Ok(file),
            Handle::Listing(_) => Err(Errno::ISDIR),
            Handle::Gone => Err(Errno::STALE),
        }
    }

    /// The descriptor of either kind.
    pub(crate) fn any(&self, number: u64) -> Result<&OwnedFd, Errno> {
        match self.get(number)? {
            Handle::File(file) => Ok(file),
            Handle::Listing(listing) => Ok(&listing.file),
            Handle::Gone => Err(Errno::STALE),
        }
    }

    pub(crate) fn listing(&mut self, number: u64) -> Result<&mut Listing, Errno> {
        match self.handles.get_mut(&number).map(|opened| &mut opened.handle) {
            Some(Handle::Listing(listing)) => Ok(listing),
            Some(Handle::File(_)) => Err(Errno::NOTDIR),
            Some(Handle::Gone) => Err(Errno::STALE),
            None => Err(Errno::BADF),
        }
    }

    pub(crate) fn remove(&mut self, number: u64) -> Result<(), Errno> {
        self.handles.remove(&number).map(drop).ok_or(Errno::BADF)
    }
}

fn listing(file: OwnedFd) -> Handle {
    Handle::Listing(Listing { file, waiting: VecDeque::new(), at: 0 })
}
