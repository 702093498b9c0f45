//! Disks: bytes that outlive the VM, behind one trait.
//!
//! ```text
//!  devices (virtio-blk) ──► Disk ──┬── RawDisk     a file or a block device of the host
//!                                  ├── Qcow2       QEMU's image, versions 2 and 3, over a chain of others
//!                                  ├── Vmdk, VDI, VHD, VHDX   for reading: what people bring along
//!                                  ├── Layers      what differential snapshots have of a disk, for reading
//!                                  ├── Throttled   another disk, as fast as its limits let it be
//!                                  ├── Measured    another disk, with counts of what passes and how long it takes
//!                                  ├── Preserving  another disk, of which a moment can be kept while it goes on
//!                                  ├── Tip         another disk, above which an image may be put while it goes on
//!                                  ├── Patient     another disk, whose changes wait while the host has no room
//!                                  └── MemoryDisk  for tests: counts, fails on demand, loses what was not flushed
//! ```
//! [`open`] opens an image of any format with all that it refers to.
//! A disk never grows, never writes beyond its end and never reports as durable what is not. What it will
//! never do: know of sectors' contents (partitions, file systems) or of the device that asks. Start reading
//! at [`Disk`]; `tests/conformance.rs` says what every implementation must do.

mod chain;
mod copy;
mod error;
mod fields;
mod host_file;
mod info;
#[cfg(feature = "trial")]
pub mod journal;
mod layers;
mod map;
mod measured;
mod memory;
mod patient;
mod preserve;
mod probe;
mod qcow2;
mod raw;
mod throttle;
mod tip;
#[cfg(feature = "trial")]
pub mod trial;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod vmdk_stream;
mod watched;

pub use chain::{Layer, Source, files, open, open_layer, open_qcow2};
pub use copy::{Progress, copy};
pub use error::OpenError;
pub use info::{DiskInfo, Qcow2Info, info};
pub use layers::{Layer as ContentLayer, Layers, PieceMap, text as layers_text};
pub use measured::{DiskCounts, Measured, Passed};
pub use memory::{Counts, MemoryDisk};
pub use patient::{Patient, Shortage};
pub use preserve::{Preserved, Preserving};
pub use probe::{mark_raw, probe};
pub use qcow2::{CreateOptions, Qcow2, Report};
pub use raw::RawDisk;
pub use throttle::{Gate, Throttle, Throttled};
pub use tip::Tip;
pub use vdi::NewVdi;
pub use vmdk_stream::write_vmdk_stream;
pub use watched::{Watch, Watched};

use std::io;

/// Bytes in a sector, the unit of virtio-blk requests (virtio 1.2 §5.2.4).
pub const SECTOR: u64 = 512;

/// A disk. Offsets and lengths are in bytes; implementations bounce what is not aligned for them. One that says nothing of writing
/// is for reading only, and refuses to be changed.
/// Calls come from several threads at once. What [`Disk::flush`] has confirmed survives a power cut.
pub trait Disk: Send + Sync {
    /// Waits until a request of so many bytes may begin; only a [`Throttled`] disk ever waits.
    fn admit(&self, bytes: u64) {
        let _ = bytes;
    }
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool {
        true
    }
    /// Reads all of `data` at `offset`; beyond the end is an error.
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;
    /// Writes all of `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let _ = (offset, data);
        check_writable(true)
    }
    /// Makes every finished write durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    /// Makes it durable, for nobody writes to it any more: from then on it is only read, and others may open it for that.
    fn seal(&self) -> io::Result<()> {
        self.flush()
    }
    /// Says that the range's content is no longer needed: it may read as anything afterwards.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        check_writable(true)
    }
    /// Makes the range read as zeroes; `unmap` allows to give the space back.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let _ = (offset, len, unmap);
        check_writable(true)
    }
    /// What is known of the bytes at `offset` without reading them: whether they are zero, and for how many
    /// of `len` bytes (at least one, unless `len` is zero) the answer holds.
    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        check_range(self.size(), offset, len)?;
        Ok(Extent { len, zero: false })
    }
    /// Changes the size. What is new reads as zero; what is cut off is lost.
    fn resize(&self, size: u64) -> io::Result<()> {
        let _ = size;
        Err(io::Error::new(io::ErrorKind::Unsupported, "this kind of disk cannot change its size"))
    }
}

/// A range of a disk that is of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Its bytes.
    pub len: u64,
    /// They are all zero, and take no space; else they may be anything.
    pub zero: bool,
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
