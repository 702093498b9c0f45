//! The directory that is shared, and what its server holds open from before its sandbox closes.
use crate::nodes::{self, open_beneath};
use crate::protocol::Owner;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{CWD, Mode, OFlags, open, openat, syncfs};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit, setrlimit};
use std::path::Path;
use viv_model::{Fault, Kind};

/// Most descriptors that a server takes, whatever the host allows: 64 bytes of the kernel's each, and an inode.
const OPEN_MAX: u64 = 1 << 16;
/// Descriptors for other things than files of the guest.
const OPEN_OTHER: u64 = 32;

/// See the module.
pub struct Directory {
    /// The guest may not change anything.
    pub(crate) read_only: bool,
    root: OwnedFd,
    /// `/proc/self/fd`.
    pub(crate) numbers: OwnedFd,
    uid: u32,
    gid: u32,
    device: (u32, u32),
    open_max: u64,
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

impl Directory {
    /// Opens a directory to be shared, and lets this process hold as many files open as it may.
    pub fn open(path: &Path, read_only: bool) -> Result<Directory, Fault> {
        let cannot = |what: &str, errno: Errno| {
            let name = path.display();
            let (kind, fix) = match errno {
                Errno::NOENT => (Kind::NotFound, format!("make it: mkdir -p {name}")),
                Errno::NOTDIR => (Kind::Usage, "share the directory that the file is in".to_string()),
                Errno::ACCESS => (Kind::Denied, format!("let this user read it: chmod u+rx {name}")),
                _ => (Kind::Error, "see that it is on a file system that works".to_string()),
            };
            Fault::new(kind, format!("cannot {what} {name} for the guest: {errno}"), fix)
        };
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = open(path, flags, Mode::empty()).map_err(|errno| cannot("open", errno))?;
        // A kernel without openat2 (before 5.6) must not share anything.
        open_beneath(root.as_fd(), c".", OFlags::PATH, Mode::empty())
            .map_err(|errno| cannot("confine ourselves to", errno))?;
        let stat = nodes::stat(&root).map_err(|errno| cannot("look at", errno))?;
        let numbers = openat(CWD, c"/proc/self/fd", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| cannot("use /proc/self/fd, which is needed to share", errno))?;
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = match limit.maximum {
            Some(most) => Some(most.min(OPEN_MAX)),
            None => Some(OPEN_MAX),
        };
        let _ = setrlimit(Resource::Nofile, limit);
        Ok(Directory {
            read_only,
            root,
            numbers,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            open_max: getrlimit(Resource::Nofile).current.unwrap_or(OPEN_MAX),
        })
    }

    /// Whether the guest may not change anything.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Descriptors for files that the guest knows of, and for files that it has open.
    pub(crate) fn limits(&self) -> (usize, usize) {
        let all = self.open_max.saturating_sub(OPEN_OTHER).max(4) as usize;
        (all / 4 * 3, all / 4)
    }

    pub(crate) fn owner(&self) -> Owner {
        Owner { uid: self.uid, gid: self.gid, device: self.device }
    }

    /// A descriptor that names the directory.
    pub(crate) fn name(&self) -> Result<OwnedFd, Errno> {
        open_beneath(self.root.as_fd(), c".", OFlags::PATH, Mode::empty())
    }

    /// Writes everything of its file system to the medium.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        syncfs(&self.root)
    }
}
