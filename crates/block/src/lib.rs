//! Disks: bytes that outlive the VM, behind one trait.

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
