//! qcow2, QEMU's disk image, versions 2 and 3 (QEMU docs/interop/qcow2.txt). Ours, because the library that we looked
//! at lacks what people's images have: see docs/decisions/031.
//!
//! ```text
//!  offset in the disk ──► L1 entry ──► L2 entry ──► cluster in the file, or zeroes, or the backing disk
//!                          (State)      (Slice)
//! ```
//! A request looks its clusters up under the state's lock for reading and moves its data under it, so that no
//! cluster changes its owner meanwhile; what needs new clusters takes the lock for writing. Tables change in
//! memory and are written by [`state::State::commit`], in an order that leaves after a power cut at worst clusters
//! that nobody uses.

mod check;
mod create;
mod header;
mod layer;
mod packed;
mod refcounts;
mod state;
mod write;

pub use check::Report;
pub use create::CreateOptions;

use crate::host_file::HostFile;
use crate::{Disk, Extent, OpenError, check_range, check_writable};
pub(crate) use header::MAGIC;
use header::{Compression, Header};
use state::{Mapping, State};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// An image, locked as long as it is open, with what lies below it.
pub struct Qcow2 {
    file: HostFile,
    backing: Option<Arc<dyn Disk>>,
    state: RwLock<State>,
    size: AtomicU64,
    cluster: u64,
    compression: Compression,
    /// The compressed cluster that was read last: its place in the file, and its content.
    unpacked: Mutex<Option<(u64, Vec<u8>)>>,
}

/// The error of an image that contradicts itself.
fn corrupt(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the qcow2 image is damaged: {what}"))
}

impl Qcow2 {
    /// What an image says about itself, from its header alone.
    pub(crate) fn peek(file: &HostFile) -> Result<Facts, OpenError> {
        let header = Header::read(file)?;
        Ok(Facts {
            size: header.size,
            cluster: header.cluster(),
            version: header.version,
            compression: match header.compression {
                Compression::Deflate => "zlib",
                Compression::Zstd => "zstd",
            },
            snapshots: header.snapshots,
            dirty: header.is_dirty(),
            corrupt: header.is_corrupt(),
            backing: header.backing,
            backing_format: header.backing_format,
        })
    }

    /// Opens the image in `file` over `backing`. One that was not closed properly is put in order first.
    pub(crate) fn from_file(file: HostFile, backing: Option<Arc<dyn Disk>>) -> Result<Qcow2, OpenError> {
        let mut header = Header::read(&file)?;
        if !file.read_only() {
            if header.is_corrupt() {
                return Err(file.damaged("qcow2", "it is marked as corrupt".into()));
            }
            if header.is_dirty() {
                let report =
                    check::check(&file, true).map_err(|source| file.failed("put in order", source))?;
                if report.corruptions > report.corruptions_fixed {
                    return Err(file.damaged(
                        "qcow2",
                        format!(
                            "{} errors cannot be repaired",
                            report.corruptions - report.corruptions_fixed
                        ),
                    ));
                }
                header = Header::read(&file)?;
            }
            header.clear_autoclear(&file).map_err(|source| file.failed("write", source))?;
        }
        let size = AtomicU64::new(header.size);
        let (cluster, compression) = (header.cluster(), header.compression);
        let state = State::open(&file, header).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => file.damaged("qcow2", source.to_string()),
            _ => file.failed("read", source),
        })?;
        let (state, unpacked) = (RwLock::new(state), Mutex::new(None));
        Ok(Qcow2 { file, backing, state, size, cluster, compression, unpacked })
    }

    /// Counts the references of the image at `path`; with `repair`, puts them in order.
    pub fn check(path: &Path, repair: bool) -> Result<Report, OpenError> {
        let file = HostFile::open(path, !repair)?;
        Header::read(&file)?;
        check::check(&file, repair).map_err(|source| file.failed("check", source))
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        // A panic under the lock ends the VM: nobody goes on with what it left.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, with the table entry for `offset` in memory.
    fn state_at(&self, offset: u64) -> io::Result<RwLockReadGuard<'_, State>> {
        loop {
            let state = self.state();
            if state.has(offset) {
                return Ok(state);
            }
            drop(state);
            self.state_mut().load(&self.file, offset)?;
        }
    }

    /// Marks an image that turned out to be damaged by a change to it.
    fn judge<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
            self.state_mut().mark_corrupt(&self.file);
        }
        result
    }

    /// Reads what `mapping` says is at `offset`; `data` lies within one run of it.
    fn read_mapped(&self, mapping: Mapping, offset: u64, data: &mut [u8], cluster: u64) -> io::Result<()> {
        match mapping {
            Mapping::Data { host, .. } => self.file.read_padded(host + offset % cluster, data),
            Mapping::Zero { .. } => {
                data.fill(0);
                Ok(())
            }
            Mapping::Absent => self.read_backing(offset, data),
            Mapping::Packed { .. } => self.read_packed(mapping, offset, data, cluster),
        }
    }

    /// Reads the disk below, which may be shorter.
    fn read_backing(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let there = self.backing.as_ref().map_or(0, |backing| backing.size().saturating_sub(offset));
        let (from_backing, beyond) = data.split_at_mut(there.min(data.len() as u64) as usize);
        beyond.fill(0);
        match &self.backing {
            Some(backing) if !from_backing.is_empty() => backing.read(offset, from_backing),
            _ => Ok(()),
        }
    }

    /// Whether what the image does not have itself is zero in all of the range.
    fn absent_is_zero(&self, offset: u64) -> bool {
        self.backing.as_ref().is_none_or(|backing| offset >= backing.size())
    }

    /// Whether the image stands over another disk.
    pub fn has_backing(&self) -> bool {
        self.backing.is_some()
    }
}

/// What an image says about itself.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) size: u64,
    pub(crate) cluster: u64,
    pub(crate) version: u32,
    pub(crate) compression: &'static str,
    pub(crate) snapshots: u32,
    pub(crate) dirty: bool,
    pub(crate) corrupt: bool,
    pub(crate) backing: Option<String>,
    pub(crate) backing_format: Option<String>,
}

impl Disk for Qcow2 {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.file.read_only()
    }

    fn read(&self, mut offset: u64, mut data: &mut [u8]) -> io::Result<()> {
        check_range(self.size(), offset, data.len() as u64)?;
        while !data.is_empty() {
            let state = self.state_at(offset)?;
            let (mapping, len) = state.run(offset, data.len() as u64)?;
            let (now, later) = data.split_at_mut(len.min(data.len() as u64) as usize);
            self.read_mapped(mapping, offset, now, state.cluster())?;
            offset += now.len() as u64;
            data = later;
        }
        Ok(())
    }

    fn write(&self, mut offset: u64, mut data: &[u8]) -> io::Result<()> {
        check_writable(self.read_only())?;
        check_range(self.size(), offset, data.len() as u64)?;
        while !data.is_empty() {
            let mut done = self.judge(self.write_in_place(offset, data))?;
            if done == 0 {
                done = self.judge(self.write_new(offset, data))?;
            }
            offset += done as u64;
            data = data.get(done..).unwrap_or_default();
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only() {
            return Ok(());
        }
        // It may have been written to until this image came above it.
        self.backing.as_ref().map_or(Ok(()), |backing| backing.flush())?;
        if self.state().is_dirty() {
            let committed = self.state_mut().commit(&self.file);
            return self.judge(committed);
        }
        self.file.sync()
    }

    fn seal(&self) -> io::Result<()> {
        let mut state = self.state_mut();
        if !self.read_only() {
            self.backing.as_ref().map_or(Ok(()), |backing| backing.flush())?;
            state.commit(&self.file)?;
            state.trim(&self.file);
        }
        self.file.seal()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_writable(self.read_only())?;
        check_range(self.size(), offset, len)?;
        self.judge(self.clear(offset, len, write::Clear::Discard))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        check_writable(self.read_only())?;
        check_range(self.size(), offset, len)?;
        self.judge(self.write_zero_range(offset, len, unmap))
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        check_range(self.size(), offset, len)?;
        if len == 0 {
            return Ok(Extent { len: 0, zero: false });
        }
        let (mapping, run) = self.state_at(offset)?.run(offset, len)?;
        match (mapping, &self.backing) {
            (Mapping::Zero { .. }, _) | (Mapping::Absent, None) => Ok(Extent { len: run, zero: true }),
            (Mapping::Absent, Some(backing)) => match backing.size().checked_sub(offset) {
                None | Some(0) => Ok(Extent { len: run, zero: true }),
                Some(there) => backing.extent(offset, run.min(there)),
            },
            _ => Ok(Extent { len: run, zero: false }),
        }
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        check_writable(self.read_only())?;
        self.judge(self.change_size(size))
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if !self.read_only() {
            // What the guest has flushed is safe already; the rest is a favour.
            let mut state = self.state_mut();
            if !state.is_dirty() || state.commit(&self.file).is_ok() {
                state.trim(&self.file);
            }
        }
    }
}
