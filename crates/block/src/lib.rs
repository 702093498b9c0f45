//! Disks: bytes that outlive the VM, behind one trait.
//!
//! ```text
//!  devices (virtio-blk) ──► Disk ──┬── RawDisk     a file or a block device of the host
//!                                  └── MemoryDisk  for tests: counts, fails on demand, loses what was not flushed
//! ```
//! A disk never grows, never writes beyond its end and never reports as durable what is not. What it will
//! never do: know of sectors' contents (partitions, file systems) or of the device that asks. Start reading
//! at [`Disk`]; `tests/conformance.rs` says what every implementation must do.

mod memory;
mod open;
mod raw;

pub use memory::{Counts, MemoryDisk};
pub use open::OpenError;
pub use raw::RawDisk;

use std::io;

/// Bytes in a sector, the unit of virtio-blk requests (virtio 1.2 §5.2.4).
pub const SECTOR: u64 = 512;

/// A disk. Offsets and lengths are in bytes; implementations bounce what is not aligned for them.
/// Calls come from several threads at once. What [`Disk::flush`] has confirmed survives a power cut.
pub trait Disk: Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool;
    /// Reads all of `data` at `offset`; beyond the end is an error.
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Makes every finished write durable.
    fn flush(&self) -> io::Result<()>;
    /// Says that the range's content is no longer needed: it may read as anything afterwards.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes the range read as zeroes; `unmap` allows to give the space back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}

/// Refuses a range that is not wholly within `size` bytes.
fn check_range(size: u64, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{len} bytes at {offset} are beyond the end of a disk of {size} bytes"),
        )),
    }
}

/// Refuses to change a read-only disk.
fn check_writable(read_only: bool) -> io::Result<()> {
    if read_only {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the disk is read-only"));
    }
    Ok(())
}
