//! A raw disk: a file or a block device whose bytes are the disk's.

use crate::host_file::HostFile;
use crate::{Disk, Extent, OpenError, SECTOR, check_range, check_writable};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// A raw disk, locked as long as it is open: alone for writing, shared for reading (flock(2)).
#[derive(Debug)]
pub struct RawDisk {
    file: HostFile,
    size: AtomicU64,
}

impl RawDisk {
    /// Opens and locks the disk at `path`.
    pub fn open(path: &Path, read_only: bool) -> Result<RawDisk, OpenError> {
        RawDisk::from_file(HostFile::open(path, read_only)?)
    }

    /// The disk that somebody else has opened at `path`, for reading, without a lock.
    pub fn of(file: &File, path: &Path) -> Result<RawDisk, OpenError> {
        RawDisk::from_file(HostFile::take(file, path, true, false)?)
    }

    /// The disk that is in an open file.
    pub(crate) fn from_file(file: HostFile) -> Result<RawDisk, OpenError> {
        let size = file.measure()?;
        if size == 0 {
            return Err(OpenError::Empty { path: file.path().to_owned() });
        }
        if !size.is_multiple_of(SECTOR) {
            return Err(OpenError::OddSize { path: file.path().to_owned(), size });
        }
        Ok(RawDisk { file, size: AtomicU64::new(size) })
    }

    /// Makes a new disk of zeroes, which takes no space yet.
    pub fn create(path: &Path, size: u64) -> Result<RawDisk, OpenError> {
        let file = HostFile::create(path)?;
        file.set_size(size).map_err(|source| file.failed("size", source))?;
        RawDisk::from_file(file)
    }
}

impl Disk for RawDisk {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.file.read_only()
    }

    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        check_range(self.size(), offset, data.len() as u64)?;
        self.file.read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_writable(self.read_only())?;
        check_range(self.size(), offset, data.len() as u64)?;
        self.file.write(offset, data)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn seal(&self) -> io::Result<()> {
        self.file.seal()
    }

    /// Punches a hole where the file system can, else keeps the content.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_writable(self.read_only())?;
        check_range(self.size(), offset, len)?;
        self.file.punch(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        check_writable(self.read_only())?;
        check_range(self.size(), offset, len)?;
        self.file.zero(offset, len, unmap)
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        check_range(self.size(), offset, len)?;
        let (data, end) = self.file.data_at(offset, offset.saturating_add(len));
        Ok(Extent { len: end.saturating_sub(offset), zero: !data })
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        check_writable(self.read_only())?;
        check_size(size)?;
        if self.file.is_device() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "a block device has the size it has"));
        }
        self.file.set_size(size)?;
        self.size.store(size, Ordering::Release);
        Ok(())
    }
}

/// Refuses a size that no disk has.
pub(crate) fn check_size(size: u64) -> io::Result<()> {
    if size == 0 || !size.is_multiple_of(SECTOR) {
        let text = format!("a disk cannot have {size} bytes: its size is a multiple of {SECTOR}, and not 0");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(())
}
