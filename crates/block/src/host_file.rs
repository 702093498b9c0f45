//! The host's file behind a disk: opened with care, locked as long as it is open, and never trusted again
//! after a flush that failed.

use crate::OpenError;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom as Whence, fallocate};
use rustix::io::Errno;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a lock is waited for: a program that has let a file go may have a child that was just forked, which has it
/// until it executes another program.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);
/// Zeroes written at a time where the file system cannot zero a range by itself.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A file or a block device, locked: alone for writing, shared for reading (flock(2)).
#[derive(Debug)]
pub(crate) struct HostFile {
    file: File,
    path: PathBuf,
    /// Also once it is sealed.
    read_only: AtomicBool,
    is_device: bool,
    /// A flush has failed: the host may have dropped the writes before it, so no later one may succeed.
    flush_failed: AtomicBool,
}

impl HostFile {
    /// Opens and locks what is at `path`.
    pub(crate) fn open(path: &Path, read_only: bool) -> Result<HostFile, OpenError> {
        HostFile::open_kind(path, read_only, true)
    }

    fn open_kind(path: &Path, read_only: bool, lock: bool) -> Result<HostFile, OpenError> {
        let refused = |source| OpenError::from_io(path, read_only, source);
        // Looks first: opening a pipe or a terminal has effects.
        let metadata = std::fs::metadata(path).map_err(refused)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(OpenError::Directory { path: path.to_owned() });
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::NotADisk { path: path.to_owned() });
        }
        // Root could write it all the same, and change what a snapshot shares with it.
        if !read_only && kind.is_file() && metadata.mode() & 0o222 == 0 {
            return Err(refused(io::ErrorKind::PermissionDenied.into()));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path)
            .map_err(refused)?;
        let is_device = kind.is_block_device();
        if lock {
            HostFile::lock(file, path, read_only, is_device)
        } else {
            Ok(HostFile::of(file, path, true, is_device))
        }
    }

    /// Takes a file that somebody else has opened at `path`.
    pub(crate) fn take(file: &File, path: &Path, read_only: bool, lock: bool) -> Result<HostFile, OpenError> {
        let refused = |source| OpenError::from_io(path, read_only, source);
        let file = file.try_clone().map_err(refused)?;
        let is_device = file.metadata().map_err(refused)?.file_type().is_block_device();
        if lock {
            HostFile::lock(file, path, read_only, is_device)
        } else {
            Ok(HostFile::of(file, path, true, is_device))
        }
    }

    /// Makes a new, empty file; one that is there already is left alone.
    pub(crate) fn create(path: &Path) -> Result<HostFile, OpenError> {
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(|source| {
                match source.kind() {
                    io::ErrorKind::AlreadyExists => OpenError::Exists { path: path.to_owned() },
                    io::ErrorKind::NotFound => OpenError::NoDirectory { path: path.to_owned() },
                    _ => OpenError::Io { path: path.to_owned(), what: "create", source },
                }
            })?;
        HostFile::lock(file, path, false, false)
    }

    fn lock(file: File, path: &Path, read_only: bool, is_device: bool) -> Result<HostFile, OpenError> {
        let begin = Instant::now();
        let locked = loop {
            let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
            let held = matches!(locked, Err(TryLockError::WouldBlock));
            if !held || begin.elapsed() >= LOCK_PATIENCE {
                break locked;
            }
            std::thread::sleep(LOCK_PATIENCE / 20);
        };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse { path: path.to_owned(), read_only });
            }
            Err(TryLockError::Error(source)) => {
                return Err(OpenError::Io { path: path.to_owned(), what: "lock", source });
            }
        }
        Ok(HostFile::of(file, path, read_only, is_device))
    }

    fn of(file: File, path: &Path, read_only: bool, is_device: bool) -> HostFile {
        let flush_failed = AtomicBool::new(false);
        HostFile { file, path: path.to_owned(), read_only: read_only.into(), is_device, flush_failed }
    }

    /// Opens a file to look at how it begins, without a lock.
    pub(crate) fn look(path: &Path) -> Result<HostFile, OpenError> {
        HostFile::open_kind(path, true, false)
    }

    /// An image in it contradicts itself.
    pub(crate) fn damaged(&self, format: &'static str, what: String) -> OpenError {
        OpenError::Damaged { path: self.path.clone(), format, what }
    }

    /// An image in it has something that we do not have.
    pub(crate) fn unsupported(&self, format: &'static str, what: String) -> OpenError {
        OpenError::Unsupported { path: self.path.clone(), format, what }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }

    /// Makes it durable; from then on it is only read, by others, too.
    pub(crate) fn seal(&self) -> io::Result<()> {
        self.sync()?;
        self.file.lock_shared()?;
        self.read_only.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether it is a block device: its size is fixed, and new space in it is not zero.
    pub(crate) fn is_device(&self) -> bool {
        self.is_device
    }

    /// Which file it is, by whatever name.
    pub(crate) fn identity(&self) -> io::Result<(u64, u64)> {
        let metadata = self.file.metadata()?;
        Ok((metadata.dev(), metadata.ino()))
    }

    /// Bytes that it takes on the host.
    pub(crate) fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks().saturating_mul(512))
    }

    /// Its size now. A block device has no length of its own, but an end.
    pub(crate) fn size(&self) -> io::Result<u64> {
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Its size, as an error of opening.
    pub(crate) fn measure(&self) -> Result<u64, OpenError> {
        self.size().map_err(|source| self.failed("measure", source))
    }

    /// An error of the host while opening.
    pub(crate) fn failed(&self, what: &'static str, source: io::Error) -> OpenError {
        OpenError::Io { path: self.path.clone(), what, source }
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    /// Reads; what lies beyond the end reads as zero.
    pub(crate) fn read_padded(&self, mut offset: u64, mut data: &mut [u8]) -> io::Result<()> {
        while !data.is_empty() {
            match self.file.read_at(data, offset) {
                Ok(0) => {
                    data.fill(0);
                    return Ok(());
                }
                Ok(count) => {
                    data = data.get_mut(count..).unwrap_or_default();
                    offset = offset.saturating_add(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads into a new buffer, zero beyond the end. The caller has bounded `len`.
    pub(crate) fn read_vec(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; len];
        self.read_padded(offset, &mut data)?;
        Ok(data)
    }

    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        #[cfg(feature = "trial")]
        crate::journal::note(|| crate::journal::Event::Write { at: offset, data: data.to_vec() });
        self.file.write_all_at(data, offset)
    }

    /// fdatasync(2). After a failure the host's page cache may call lost writes clean and would let the
    /// next call succeed; so a file that has failed once stays failed until it is opened again.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.read_only() {
            return Ok(());
        }
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier flush failed: writes before it may be lost"));
        }
        self.file.sync_data().map_err(|error| {
            self.flush_failed.store(true, Ordering::Release);
            // Not one of a kind that one waits out, as a lack of room is: what was to be written is lost.
            io::Error::other(format!("the flush failed: {error}"))
        })?;
        #[cfg(feature = "trial")]
        crate::journal::note(|| crate::journal::Event::Sync);
        Ok(())
    }

    pub(crate) fn set_size(&self, size: u64) -> io::Result<()> {
        #[cfg(feature = "trial")]
        crate::journal::note(|| crate::journal::Event::Size(size));
        self.file.set_len(size)
    }

    /// Gives the range's space back where the file system can; it may read as zero or as before.
    pub(crate) fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        if len > 0 {
            self.allocate(FallocateFlags::PUNCH_HOLE, offset, len)?;
        }
        Ok(())
    }

    /// Makes the range read as zero; `unmap` gives its space back where the file system can.
    pub(crate) fn zero(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let flags = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        if len == 0 || self.allocate(flags, offset, len)? {
            return Ok(());
        }
        let (mut at, end) = (offset, offset.saturating_add(len));
        while at < end {
            let step = (end - at).min(ZEROES.len() as u64);
            self.write(at, ZEROES.get(..step as usize).unwrap_or_default())?;
            at += step;
        }
        Ok(())
    }

    /// Whether the file system did what `flags` ask for; false: it cannot, here.
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        loop {
            return match fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => {
                    #[cfg(feature = "trial")]
                    crate::journal::note(|| crate::journal::Event::Zero { at: offset, len });
                    Ok(true)
                }
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
                Err(errno) => Err(errno.into()),
            };
        }
    }

    /// Whether there are bytes at `offset` (else a hole), and up to where that is so, at most `end`.
    pub(crate) fn data_at(&self, offset: u64, end: u64) -> (bool, u64) {
        let seek = |whence| rustix::fs::seek(&self.file, whence);
        match seek(Whence::Data(offset)) {
            Ok(data) if data > offset => (false, data.min(end)),
            Ok(_) => (true, seek(Whence::Hole(offset)).map_or(end, |hole| hole.min(end))),
            Err(Errno::NXIO) => (false, end),
            // A file system that does not know has data everywhere.
            Err(_) => (true, end),
        }
    }
}
