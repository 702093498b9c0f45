//! Files and directories that the guest has open.
use rustix::fd::OwnedFd;
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
}

/// See the module. Numbers are never used twice.
pub(crate) struct Handles {
    handles: HashMap<u64, Handle>,
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

    fn add(&mut self, handle: Handle) -> Result<u64, Errno> {
        if self.handles.len() >= self.max {
            return Err(Errno::MFILE);
        }
        let number = self.next;
        self.next += 1;
        self.handles.insert(number, handle);
        Ok(number)
    }

    pub(crate) fn add_file(&mut self, file: OwnedFd) -> Result<u64, Errno> {
        self.add(Handle::File(Arc::new(file)))
    }

    pub(crate) fn add_listing(&mut self, file: OwnedFd) -> Result<u64, Errno> {
        self.add(Handle::Listing(Listing { file, waiting: VecDeque::new(), at: 0 }))
    }

    pub(crate) fn file(&self, number: u64) -> Result<&Arc<OwnedFd>, Errno> {
        match self.handles.get(&number) {
            Some(Handle::File(file)) => Ok(file),
            Some(Handle::Listing(_)) => Err(Errno::ISDIR),
            None => Err(Errno::BADF),
        }
    }

    /// The descriptor of either kind.
    pub(crate) fn any(&self, number: u64) -> Result<&OwnedFd, Errno> {
        match self.handles.get(&number) {
            Some(Handle::File(file)) => Ok(file),
            Some(Handle::Listing(listing)) => Ok(&listing.file),
            None => Err(Errno::BADF),
        }
    }

    pub(crate) fn listing(&mut self, number: u64) -> Result<&mut Listing, Errno> {
        match self.handles.get_mut(&number) {
            Some(Handle::Listing(listing)) => Ok(listing),
            Some(Handle::File(_)) => Err(Errno::NOTDIR),
            None => Err(Errno::BADF),
        }
    }

    pub(crate) fn remove(&mut self, number: u64) -> Result<(), Errno> {
        self.handles.remove(&number).map(drop).ok_or(Errno::BADF)
    }
}
