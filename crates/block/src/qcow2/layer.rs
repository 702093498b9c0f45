//! An image as a layer over another disk: what it has itself, moving that down, and standing over another disk.

use super::create::create;
use super::header::Header;
use super::state::Mapping;
use super::{CreateOptions, Qcow2};
use crate::host_file::HostFile;
use crate::{Disk, OpenError, Progress, check_writable};
use std::io;
use std::path::Path;

/// Bytes that are compared or moved at once.
const PIECE: u64 = 1 << 20;

impl Qcow2 {
    /// Makes a new image at `path`, and opens it without what lies below.
    pub fn create(path: &Path, options: &CreateOptions) -> Result<Qcow2, OpenError> {
        Qcow2::from_file(create(path, options)?, None)
    }

    /// Whether the image itself has the bytes at `offset`, and for how many of `len` that goes on.
    pub fn own_extent(&self, offset: u64, len: u64) -> io::Result<(bool, u64)> {
        let (mapping, run) = self.state_at(offset)?.run(offset, len)?;
        Ok((mapping != Mapping::Absent, run))
    }

    /// Whether the image itself has nothing: all shows what is below it.
    pub fn has_nothing(&self) -> io::Result<bool> {
        let (mut at, end) = (0, self.size());
        while at < end {
            let (own, len) = self.own_extent(at, end - at)?;
            if own {
                return Ok(false);
            }
            at += len;
        }
        Ok(true)
    }

    /// Goes through the disk in runs that the image has itself, or has not.
    fn each_run(&self, mut act: impl FnMut(u64, u64, bool) -> io::Result<()>) -> io::Result<()> {
        let (mut at, end) = (0, self.size());
        while at < end {
            let (own, len) = self.own_extent(at, (end - at).min(PIECE))?;
            act(at, len, own)?;
            at += len;
        }
        Ok(())
    }

    /// Writes all that the image has itself to `below`, the disk under it, and is empty then. `progress` is told how
    /// many bytes of the disk are done.
    pub fn commit(&self, below: &dyn Disk, progress: Progress<'_>) -> io::Result<()> {
        check_writable(self.read_only())?;
        if below.size() < self.size() {
            below.resize(self.size())?;
        }
        let mut buffer = vec![0; PIECE as usize];
        self.each_run(|at, len, own| {
            if own && self.extent(at, len)? == (crate::Extent { len, zero: true }) {
                below.write_zeroes(at, len, true)?;
            } else if own {
                let piece = buffer.get_mut(..len as usize).unwrap_or_default();
                self.read(at, piece)?;
                below.write(at, piece)?;
            }
            progress(at + len)
        })?;
        below.flush()?;
        self.empty()
    }

    /// Takes over what differs between the disk below and `new`, so that the image may stand over `new`.
    pub fn take_over(&self, new: Option<&dyn Disk>, progress: Progress<'_>) -> io::Result<()> {
        check_writable(self.read_only())?;
        let (mut old_bytes, mut new_bytes) = (vec![0; PIECE as usize], vec![0; PIECE as usize]);
        let (old_bytes, new_bytes) = (&mut old_bytes, &mut new_bytes);
        self.each_run(|at, len, own| {
            if !own {
                let old = old_bytes.get_mut(..len as usize).unwrap_or_default();
                let other = new_bytes.get_mut(..len as usize).unwrap_or_default();
                self.read(at, old)?;
                let there = new.map_or(0, |new| new.size().saturating_sub(at)).min(len) as usize;
                let (from_new, beyond) = other.split_at_mut(there);
                if let (Some(new), false) = (new, from_new.is_empty()) {
                    new.read(at, from_new)?;
                }
                beyond.fill(0);
                if old != other {
                    self.write(at, old)?;
                }
            }
            progress(at + len)
        })?;
        self.flush()
    }

    /// Lets the image at `path` say that it stands over another disk, or none. Its content is not looked at.
    pub fn set_backing(path: &Path, backing: Option<(String, String)>) -> Result<(), OpenError> {
        let file = HostFile::open(path, false)?;
        let mut header = Header::read(&file)?;
        (header.backing, header.backing_format) = backing.unzip();
        let bytes = header.encode().map_err(|text| OpenError::BadSize { path: path.to_owned(), text })?;
        let written = file.write(0, &bytes).and_then(|()| file.sync());
        written.map_err(|source| file.failed("write", source))
    }
}
