//! Requests about what is in files: open, read, write, sync.
use crate::names::PERMISSIONS;
use crate::nodes::{open_beneath, stat};
use crate::protocol::{FSYNC_FDATASYNC, Input, Output, WRITE_MAX};
use crate::saved::HandleSaved;
use crate::session::{Session, by_number};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{
    FallocateFlags, Mode, OFlags, SeekFrom, copy_file_range, fallocate, fdatasync, fsync, openat, seek,
};
use rustix::io::{Errno, pread, pwrite};
use std::ffi::CStr;

/// Bytes that one request may copy: the guest asks again for the rest.
const COPY_MAX: u64 = 128 << 20;

/// What of a guest's flags means something to us. Direct I/O does not: buffers are not aligned here.
fn flags(raw: u32) -> OFlags {
    let known =
        OFlags::RWMODE | OFlags::APPEND | OFlags::TRUNC | OFlags::DSYNC | OFlags::SYNC | OFlags::NOATIME;
    (OFlags::from_bits_retain(raw) & known) | OFlags::NOCTTY | OFlags::NONBLOCK
}

fn writes(flags: OFlags) -> bool {
    flags & OFlags::ACCMODE != OFlags::RDONLY || flags.contains(OFlags::TRUNC)
}

/// `fuse_open_out`.
fn open_out(output: &mut Output<'_>, handle: u64) {
    output.u64(handle);
    output.u64(0);
}

impl Session<'_> {
    pub(crate) fn open(
        &mut self,
        node: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let flags = flags(input.u32()?);
        let file = self.open_file(node, flags)?;
        open_out(output, self.handles.add_file(file, node, flags)?);
        Ok(())
    }

    /// Opens what was open where the guest comes from.
    pub(crate) fn open_again(&mut self, saved: &HandleSaved) -> Result<OwnedFd, Errno> {
        let Some(raw) = saved.flags else { return self.open_listing(saved.node) };
        self.open_file(saved.node, flags(raw) - OFlags::TRUNC)
    }

    fn open_file(&mut self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        if self.directory.read_only && writes(flags) {
            return Err(Errno::ROFS);
        }
        match self.open_regular(node, flags) {
            // Only the owner may ask not to be noticed (open(2)).
            Err(Errno::PERM) => self.open_regular(node, flags - OFlags::NOATIME),
            result => result,
        }
    }

    pub(crate) fn create(
        &mut self,
        parent: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let (raw, mode, _umask, _) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        let name = input.component()?;
        let (flags, mode) = (flags(raw), Mode::from_raw_mode(mode & PERMISSIONS));
        let directory = self.parent(parent)?;
        let new = flags | OFlags::CREATE | OFlags::EXCL;
        match open_beneath(directory.as_fd(), name, new, mode) {
            Ok(file) => self.created(parent, name, (file, flags), output),
            Err(Errno::EXIST) if !OFlags::from_bits_retain(raw).contains(OFlags::EXCL) => {
                let (node, stat) = self.nodes.look_up(parent, name)?;
                let opened =
                    self.open_regular(node, flags).and_then(|file| self.handles.add_file(file, node, flags));
                let handle = opened.inspect_err(|_| self.nodes.forget(node, 1))?;
                self.owner.entry_out(output, node, &stat);
                open_out(output, handle);
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// A file that was just made: the guest learns of it and has it open.
    fn created(
        &mut self,
        parent: u64,
        name: &CStr,
        (file, flags): (OwnedFd, OFlags),
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let stat = stat(&file)?;
        // Not the name: it may be another file's already.
        let by_name = OFlags::PATH | OFlags::CLOEXEC;
        let named = openat(&self.directory.numbers, by_number(&file), by_name, Mode::empty())?;
        let node = self.nodes.insert(parent, name, named, &stat)?;
        let handle = self.handles.add_file(file, node, flags).inspect_err(|_| self.nodes.forget(node, 1))?;
        self.owner.entry_out(output, node, &stat);
        open_out(output, handle);
        Ok(())
    }

    pub(crate) fn read(&mut self, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Errno> {
        let (handle, offset, size) = (input.u64()?, input.u64()?, input.u32()?);
        let file = self.handles.file(handle)?;
        output.fill(size.min(WRITE_MAX) as usize, |buffer| {
            let mut done = 0;
            while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
                match pread(file, rest, offset.saturating_add(done as u64)) {
                    Ok(0) => break,
                    Ok(len) => done += len,
                    Err(Errno::INTR) => {}
                    Err(errno) if done == 0 => return Err(errno),
                    Err(_) => break,
                }
            }
            Ok(done)
        })
    }

    pub(crate) fn write(&mut self, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Errno> {
        let (handle, offset, size, _) = (input.u64()?, input.u64()?, input.u32()?, input.u32()?);
        let (_owner, _flags) = (input.u64()?, input.u64()?);
        let data = input.bytes(size as usize)?;
        let file = self.handles.file(handle)?;
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            match pwrite(file, rest, offset.saturating_add(done as u64)) {
                Ok(0) => break,
                Ok(len) => done += len,
                Err(Errno::INTR) => {}
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        output.u32(done as u32);
        output.u32(0);
        Ok(())
    }

    pub(crate) fn release(&mut self, input: &mut Input<'_>) -> Result<(), Errno> {
        self.handles.remove(input.u64()?)
    }

    pub(crate) fn fsync(&mut self, input: &mut Input<'_>) -> Result<(), Errno> {
        let (handle, flags) = (input.u64()?, input.u32()?);
        let file = self.handles.any(handle)?;
        if flags & FSYNC_FDATASYNC != 0 { fdatasync(file) } else { fsync(file) }
    }

    pub(crate) fn fallocate(&mut self, input: &mut Input<'_>) -> Result<(), Errno> {
        let (handle, offset, len, mode) = (input.u64()?, input.u64()?, input.u64()?, input.u32()?);
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::NOTSUP)?;
        fallocate(self.handles.file(handle)?, mode, offset, len)
    }

    pub(crate) fn lseek(&mut self, input: &mut Input<'_>, output: &mut Output<'_>) -> Result<(), Errno> {
        let (handle, offset, whence) = (input.u64()?, input.u64()?, input.u32()?);
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let to = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            // The guest's kernel knows its files' positions itself.
            _ => return Err(Errno::INVAL),
        };
        output.u64(seek(self.handles.file(handle)?, to)?);
        Ok(())
    }

    pub(crate) fn copy_file_range(
        &mut self,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let (from, mut from_offset, _node) = (input.u64()?, input.u64()?, input.u64()?);
        let (to, mut to_offset, len, flags) = (input.u64()?, input.u64()?, input.u64()?, input.u64()?);
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.handles.file(from)?, self.handles.file(to)?);
        let len = len.min(COPY_MAX) as usize;
        let copied = copy_file_range(from, Some(&mut from_offset), to, Some(&mut to_offset), len)?;
        output.u32(copied as u32);
        output.u32(0);
        Ok(())
    }
}
