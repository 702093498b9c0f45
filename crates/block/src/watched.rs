//! A disk of which somebody is told what is about to happen, and may hold it up.

use crate::{Disk, Extent};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Whoever watches a disk.
pub trait Watch: Send + Sync {
    /// A request of so many bytes wants to begin: it may when this returns.
    fn admit(&self, disk: &dyn Disk, bytes: u64) {
        disk.admit(bytes);
    }
    /// The range of the disk is about to change, by `act`, which may be done again if it has failed. An empty range is a flush.
    fn change(&self, disk: &dyn Disk, range: Range<u64>, act: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        let _ = (disk, range);
        act()
    }
    /// The disk is about to get another size, by `act`. Its user looks on: nothing holds that up.
    fn resize(&self, disk: &dyn Disk, size: u64, act: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        let _ = (disk, size);
        act()
    }
}

/// A disk with whoever watches it.
pub struct Watched<W> {
    disk: Arc<dyn Disk>,
    watch: W,
}

impl<W: Watch> Watched<W> {
    /// The disk, which nobody changes but through this object.
    pub(crate) fn over(disk: Arc<dyn Disk>, watch: W) -> Watched<W> {
        Watched { disk, watch }
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn watch(&self) -> &W {
        &self.watch
    }

    fn change(&self, offset: u64, len: u64, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
        self.watch.change(&*self.disk, offset..offset.saturating_add(len), &act)
    }
}

impl<W: Watch> Disk for Watched<W> {
    fn admit(&self, bytes: u64) {
        self.watch.admit(&*self.disk, bytes);
    }
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_only(&self) -> bool {
        self.disk.read_only()
    }
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, data)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(offset, data.len() as u64, || self.disk.write(offset, data))
    }
    fn flush(&self) -> io::Result<()> {
        self.change(0, 0, || self.disk.flush())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(offset, len, || self.disk.discard(offset, len))
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.change(offset, len, || self.disk.write_zeroes(offset, len, unmap))
    }
    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        self.disk.extent(offset, len)
    }
    fn resize(&self, size: u64) -> io::Result<()> {
        self.watch.resize(&*self.disk, size, &|| self.disk.resize(size))
    }
}
