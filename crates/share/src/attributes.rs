//! Requests about what a file is like: attributes, permissions, extended attributes, free space.
use crate::names::PERMISSIONS;
use crate::nodes::stat;
use crate::protocol::{self, GETATTR_FH, Input, Output};
use crate::session::{Session, by_number};
use rustix::fd::OwnedFd;
use rustix::fs::{
    Access, AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
    accessat, chmodat, fstatvfs, ftruncate, getxattr, listxattr, openat, removexattr, setxattr, utimensat,
};
use rustix::io::Errno;
use std::ffi::CStr;
use std::sync::Arc;

/// Bytes of an attribute's value, and of a list of attributes (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const XATTR_MAX: usize = 65536;
/// The attributes that a guest may use: the others mean something to the host's kernel.
const XATTR_PREFIX: &[u8] = b"user.";

impl Session<'_> {
    pub(crate) fn getattr(
        &mut self,
        node: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let (flags, _, handle) = (input.u32()?, input.u32()?, input.u64()?);
        let stat = match flags & GETATTR_FH {
            0 => stat(&*self.nodes.file(node)?)?,
            _ => stat(self.handles.any(handle)?)?,
        };
        self.owner.attr_out(output, &stat);
        Ok(())
    }

    pub(crate) fn setattr(
        &mut self,
        node: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        use protocol::setattr as valid;
        let (what, _, handle, size, _owner) =
            (input.u32()?, input.u32()?, input.u64()?, input.u64()?, input.u64()?);
        let (access_s, change_s, _) = (input.u64()?, input.u64()?, input.u64()?);
        let (access_ns, change_ns, _) = (input.u32()?, input.u32()?, input.u32()?);
        let (mode, _, uid, gid) = (input.u32()?, input.u32()?, input.u32()?, input.u32()?);
        let has = |bit: u32| what & bit != 0;
        // Everything belongs to the user who shares, who is the guest's root.
        if has(valid::UID) && uid != 0 || has(valid::GID) && gid != 0 {
            return Err(Errno::PERM);
        }
        // A file that is open may have lost its name by now.
        let file = match has(valid::FH) {
            true => self.handles.file(handle)?.clone(),
            false => self.nodes.file(node)?,
        };
        if has(valid::MODE) {
            let mode = Mode::from_raw_mode(mode & PERMISSIONS);
            chmodat(&self.directory.numbers, by_number(&file), mode, AtFlags::empty())?;
        }
        if has(valid::SIZE) {
            match has(valid::FH) {
                true => ftruncate(&*file, size)?,
                false => ftruncate(self.open_regular(node, OFlags::WRONLY)?, size)?,
            }
        }
        if has(valid::ATIME | valid::MTIME) {
            let time = |bit: u32, now: u32, tv_sec: u64, tv_nsec: u32| Timespec {
                tv_sec: tv_sec as i64,
                tv_nsec: match () {
                    () if !has(bit) => UTIME_OMIT,
                    () if has(now) => UTIME_NOW,
                    () => tv_nsec.into(),
                },
            };
            let times = Timestamps {
                last_access: time(valid::ATIME, valid::ATIME_NOW, access_s, access_ns),
                last_modification: time(valid::MTIME, valid::MTIME_NOW, change_s, change_ns),
            };
            utimensat(&*file, c"", &times, AtFlags::EMPTY_PATH)?;
        }
        self.owner.attr_out(output, &stat(&*file)?);
        Ok(())
    }

    /// Opens a node that is a regular file. What else there is must not be opened here: pipes wait, devices act.
    pub(crate) fn open_regular(&mut self, node: u64, flags: OFlags) -> Result<OwnedFd, Errno> {
        match self.nodes.kind(node)? {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let file = self.nodes.file(node)?;
        openat(&self.directory.numbers, by_number(&file), flags | OFlags::CLOEXEC, Mode::empty())
    }

    pub(crate) fn access(&mut self, node: u64, input: &mut Input<'_>) -> Result<(), Errno> {
        let wanted = Access::from_bits(input.u32()?).ok_or(Errno::INVAL)?;
        if self.directory.read_only && wanted.contains(Access::WRITE_OK) {
            return Err(Errno::ROFS);
        }
        let file = self.nodes.file(node)?;
        match self.nodes.kind(node)? {
            // A link's own permissions are all there.
            FileType::Symlink => Ok(()),
            _ => accessat(&self.directory.numbers, by_number(&file), wanted, AtFlags::empty()),
        }
    }

    pub(crate) fn statfs(&mut self, output: &mut Output<'_>) -> Result<(), Errno> {
        let stat = fstatvfs(&*self.nodes.file(protocol::ROOT)?)?;
        // kstatfs counts in units of frsize.
        [stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree]
            .iter()
            .for_each(|number| output.u64(*number));
        [stat.f_bsize, stat.f_namemax, stat.f_frsize].iter().for_each(|number| output.u32(*number as u32));
        output.put(&[0; 4 + 24]);
        Ok(())
    }

    /// A path to a node's file for calls about extended attributes, which know no directories.
    fn xattr_path(&mut self, node: u64) -> Result<(Arc<OwnedFd>, String), Errno> {
        if self.nodes.kind(node)? == FileType::Symlink {
            // Links have no attributes of users (xattr(7)).
            return Err(Errno::NOTSUP);
        }
        let file = self.nodes.file(node)?;
        let path = format!("/proc/self/fd/{}", by_number(&file).as_str());
        Ok((file, path))
    }

    pub(crate) fn getxattr(
        &mut self,
        node: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let (size, _) = (input.u32()?, input.u32()?);
        let name = xattr_name(input)?;
        let (_file, path) = self.xattr_path(node)?;
        let mut value = vec![0; XATTR_MAX];
        let len = getxattr(&*path, name, value.as_mut_slice())?;
        value.truncate(len);
        sized(output, size, &value)
    }

    pub(crate) fn listxattr(
        &mut self,
        node: u64,
        input: &mut Input<'_>,
        output: &mut Output<'_>,
    ) -> Result<(), Errno> {
        let (size, _) = (input.u32()?, input.u32()?);
        let (_file, path) = self.xattr_path(node)?;
        let mut names = vec![0; XATTR_MAX];
        let len = listxattr(&*path, names.as_mut_slice())?;
        names.truncate(len);
        let own: Vec<u8> = names
            .split_inclusive(|byte| *byte == 0)
            .filter(|name| name.starts_with(XATTR_PREFIX))
            .flatten()
            .copied()
            .collect();
        sized(output, size, &own)
    }

    pub(crate) fn setxattr(&mut self, node: u64, input: &mut Input<'_>) -> Result<(), Errno> {
        let (size, flags) = (input.u32()?, input.u32()?);
        let name = xattr_name(input)?;
        let value = input.bytes(size as usize)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let (_file, path) = self.xattr_path(node)?;
        setxattr(&*path, name, value, flags)
    }

    pub(crate) fn removexattr(&mut self, node: u64, input: &mut Input<'_>) -> Result<(), Errno> {
        let name = xattr_name(input)?;
        let (_file, path) = self.xattr_path(node)?;
        removexattr(&*path, name)
    }
}

fn xattr_name<'a>(input: &mut Input<'a>) -> Result<&'a CStr, Errno> {
    let name = input.text()?;
    if name.to_bytes().starts_with(XATTR_PREFIX) { Ok(name) } else { Err(Errno::NOTSUP) }
}

/// A value, or its length for who asks with a size of 0 (getxattr(2)).
fn sized(output: &mut Output<'_>, size: u32, value: &[u8]) -> Result<(), Errno> {
    if size == 0 {
        output.u32(value.len() as u32);
        output.u32(0);
    } else if value.len() > size as usize {
        return Err(Errno::RANGE);
    } else {
        output.put(value);
    }
    Ok(())
}
