//! A raw disk: a file or a block device whose bytes are the disk's.

use crate::{Disk, OpenError, SECTOR, check_range, check_writable};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Zeroes written at a time where the file system cannot zero a range by itself.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// A raw disk, locked as long as it is open: alone for writing, shared for reading (flock(2)).
#[derive(Debug)]
pub struct RawDisk {
    file: File,
    size: u64,
    read_only: bool,
    /// A flush has failed: the host may have dropped the writes before it, so no later one may succeed.
    flush_failed: AtomicBool,
}

impl RawDisk {
    /// Opens and locks the disk at `path`.
    pub fn open(path: &Path, read_only: bool) -> Result<RawDisk, OpenError> {
        let refused = |source| OpenError::from_io(path, read_only, source);
        // Looks first: opening a pipe or a terminal has effects.
        let kind = std::fs::metadata(path).map_err(refused)?.file_type();
        if kind.is_dir() {
            return Err(OpenError::Directory { path: path.to_owned() });
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::NotADisk { path: path.to_owned() });
        }
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(OFlags::NONBLOCK.bits() as i32)
            .open(path)
            .map_err(refused)?;
        let locked = if read_only { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(OpenError::InUse { path: path.to_owned(), read_only });
            }
            Err(TryLockError::Error(source)) => {
                return Err(OpenError::Io { path: path.to_owned(), what: "lock", source });
            }
        }
        // A block device has no length of its own, but an end.
        let size = file.seek(SeekFrom::End(0)).map_err(|source| OpenError::Io {
            path: path.to_owned(),
            what: "measure",
            source,
        })?;
        if size == 0 {
            return Err(OpenError::Empty { path: path.to_owned() });
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(OpenError::OddSize { path: path.to_owned(), size });
        }
        Ok(RawDisk { file, size, read_only, flush_failed: AtomicBool::new(false) })
    }

    /// Whether the file system did what `flags` ask for; false: it cannot, here.
    fn allocate(&self, flags: FallocateFlags, offset: u64, len: u64) -> io::Result<bool> {
        use rustix::io::Errno;
        loop {
            return match fallocate(&self.file, flags | FallocateFlags::KEEP_SIZE, offset, len) {
                Ok(()) => Ok(true),
                Err(Errno::INTR) => continue,
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(false),
                Err(errno) => Err(errno.into()),
            };
        }
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len() as u64)?;
        self.file.read_exact_at(data, offset)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_writable(self.read_only)?;
        check_range(self.size, offset, data.len() as u64)?;
        self.file.write_all_at(data, offset)
    }

    /// fdatasync(2). After a failure the host's page cache may call lost writes clean and would let the
    /// next call succeed; so a disk that has failed once stays failed until it is opened again.
    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        if self.flush_failed.load(Ordering::Acquire) {
            return Err(io::Error::other("an earlier flush failed: writes before it may be lost"));
        }
        self.file.sync_data().inspect_err(|_| self.flush_failed.store(true, Ordering::Release))
    }

    /// Punches a hole where the file system can, else keeps the content.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_writable(self.read_only)?;
        check_range(self.size, offset, len)?;
        if len > 0 {
            self.allocate(FallocateFlags::PUNCH_HOLE, offset, len)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        check_writable(self.read_only)?;
        check_range(self.size, offset, len)?;
        let flags = if unmap { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        if len == 0 || self.allocate(flags, offset, len)? {
            return Ok(());
        }
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let step = (end - at).min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..step as usize], at)?;
            at += step;
        }
        Ok(())
    }
}
