//! FUSE messages as bytes.
//!
//! Source: `include/uapi/linux/fuse.h` of Linux, protocol 7.31 to 7.36; structures are named as there. All fields are in
//! the byte order of the machine, which is little-endian on both sides of ours.
#![allow(missing_docs)] // each constant is its name in fuse.h

use rustix::fs::Statx;
use rustix::io::Errno;
use std::ffi::CStr;

/// The version that we speak; older ones down to [`MINOR_MIN`] differ in nothing that we send.
pub(crate) const MAJOR: u32 = 7;
pub(crate) const MINOR: u32 = 36;
pub(crate) const MINOR_MIN: u32 = 31;

/// Bytes of `fuse_in_header`: len, opcode u32; unique, nodeid u64; uid, gid, pid, padding u32.
pub const IN_HEADER_LEN: usize = 40;
/// Bytes of `fuse_out_header`: len u32, error i32, unique u64.
pub const OUT_HEADER_LEN: usize = 16;

/// The node ID of a share's directory.
pub const ROOT: u64 = 1;
/// Bytes of a name (NAME_MAX).
pub(crate) const NAME_MAX: usize = 255;
/// Pages of a request, and bytes.
pub(crate) const PAGES_MAX: u16 = 256;
pub(crate) const WRITE_MAX: u32 = PAGES_MAX as u32 * 4096;

/// `enum fuse_opcode`.
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
}

/// Flags of INIT.
pub(crate) mod init {
    pub(crate) const ASYNC_READ: u32 = 1 << 0;
    pub(crate) const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub(crate) const BIG_WRITES: u32 = 1 << 5;
    pub(crate) const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub(crate) const DO_READDIRPLUS: u32 = 1 << 13;
    pub(crate) const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub(crate) const PARALLEL_DIROPS: u32 = 1 << 18;
    pub(crate) const MAX_PAGES: u32 = 1 << 22;
    pub(crate) const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// `FATTR_*`: what SETATTR changes.
pub(crate) mod setattr {
    pub(crate) const MODE: u32 = 1 << 0;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const FH: u32 = 1 << 6;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
}

/// `FUSE_GETATTR_FH`.
pub(crate) const GETATTR_FH: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`.
pub(crate) const FSYNC_FDATASYNC: u32 = 1;

/// `fuse_in_header`, as far as it is of use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) opcode: u32,
    pub(crate) unique: u64,
    pub(crate) node: u64,
}

/// A request's bytes from its front to its end.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    /// The header; no more than the length that it tells is left then.
    pub(crate) fn header(&mut self) -> Result<Header, Errno> {
        let whole = self.0;
        let (len, opcode, unique, node) = (self.u32()?, self.u32()?, self.u64()?, self.u64()?);
        let body = whole.get(..len as usize).and_then(|whole| whole.get(IN_HEADER_LEN..));
        self.0 = body.ok_or(Errno::INVAL)?;
        Ok(Header { opcode, unique, node })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*first)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Text that ends with a zero byte.
    pub(crate) fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = self.0.get(text.count_bytes() + 1..).unwrap_or_default();
        Ok(text)
    }

    /// The name of an entry of a directory: one component of a path, and no way up.
    pub(crate) fn component(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text()?;
        component(name.to_bytes()).map(|()| name)
    }
}

/// Whether a name is one component of a path.
pub(crate) fn component(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
        bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ => Ok(()),
    }
}

/// A reply that grows behind its header. What does not fit is an error of its own.
pub(crate) struct Output<'a> {
    bytes: &'a mut Vec<u8>,
    /// Bytes that the guest has room for, with the header.
    room: usize,
}

impl<'a> Output<'a> {
    /// Begins a reply in `bytes`.
    pub(crate) fn new(bytes: &'a mut Vec<u8>, room: usize) -> Output<'a> {
        bytes.clear();
        bytes.resize(OUT_HEADER_LEN, 0);
        Output { bytes, room }
    }

    /// Bytes that still fit.
    pub(crate) fn room(&self) -> usize {
        self.room.saturating_sub(self.bytes.len())
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// Lets `fill` write up to `len` bytes and say how many it wrote.
    pub(crate) fn fill(
        &mut self,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
    ) -> Result<(), Errno> {
        let start = self.bytes.len();
        self.bytes.resize(start + len.min(self.room()), 0);
        let written = fill(self.bytes.get_mut(start..).unwrap_or_default())?;
        self.bytes.truncate(start.saturating_add(written));
        Ok(())
    }

    /// Writes the header: the end of a reply.
    pub(crate) fn finish(self, unique: u64, mut result: Result<(), Errno>) {
        if result.is_ok() && self.bytes.len() > self.room {
            result = Err(Errno::RANGE);
        }
        let error = match result {
            Ok(()) => 0,
            Err(errno) => {
                self.bytes.truncate(OUT_HEADER_LEN);
                errno.raw_os_error()
            }
        };
        let header = out_header(self.bytes.len(), error, unique);
        self.bytes.iter_mut().zip(header).for_each(|(to, from)| *to = from);
        if self.bytes.len() > self.room {
            self.bytes.clear();
        }
    }
}

fn out_header(len: usize, error: i32, unique: u64) -> [u8; OUT_HEADER_LEN] {
    let (len, error) = (len as u32, error.wrapping_neg() as u32);
    (u128::from(len) | u128::from(error) << 32 | u128::from(unique) << 64).to_le_bytes()
}

/// The reply that `request` fails with `errno`; none if it is not a request that gets one.
pub fn error_reply(request: &[u8], errno: i32) -> Option<[u8; OUT_HEADER_LEN]> {
    let header = Input(request).header().ok()?;
    let silent = matches!(header.opcode, opcode::FORGET | opcode::BATCH_FORGET);
    (!silent).then(|| out_header(OUT_HEADER_LEN, errno, header.unique))
}

/// Seconds for which the guest may believe names and attributes.
const VALID_S: u64 = 1;
/// Bytes of `fuse_attr` and of `fuse_entry_out`.
const ATTR_LEN: usize = 88;
pub(crate) const ENTRY_LEN: usize = 40 + ATTR_LEN;

/// Whom files belong to, as the guest sees it: the user who shares is the guest's root, everybody else is nobody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The device of the share's directory: other file systems below it get inode numbers of their own.
    pub(crate) device: (u32, u32),
}

/// The overflow user and group (`/proc/sys/kernel/overflowuid`).
const NOBODY: u32 = 65534;

impl Owner {
    pub(crate) fn inode_number(&self, stat: &Statx) -> u64 {
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let other = u64::from(device.0) << 20 ^ u64::from(device.1);
        stat.stx_ino ^ if device == self.device { 0 } else { (other + 1) << 40 }
    }

    fn attr(&self, out: &mut Output<'_>, stat: &Statx) {
        out.u64(self.inode_number(stat));
        out.u64(stat.stx_size);
        out.u64(stat.stx_blocks);
        let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
        times.iter().for_each(|time| out.u64(time.tv_sec as u64));
        times.iter().for_each(|time| out.u32(time.tv_nsec));
        out.u32(stat.stx_mode.into());
        out.u32(stat.stx_nlink);
        out.u32(if stat.stx_uid == self.uid { 0 } else { NOBODY });
        out.u32(if stat.stx_gid == self.gid { 0 } else { NOBODY });
        // Device numbers are the host's and mean nothing in the guest.
        out.u32(0);
        out.u32(stat.stx_blksize);
        out.u32(0);
    }

    /// `fuse_attr_out`.
    pub(crate) fn attr_out(&self, out: &mut Output<'_>, stat: &Statx) {
        out.u64(VALID_S);
        out.u64(0);
        self.attr(out, stat);
    }

    /// `fuse_entry_out`. Node IDs are never used twice: the generation is always 0.
    pub(crate) fn entry_out(&self, out: &mut Output<'_>, node: u64, stat: &Statx) {
        entry_head(out, node);
        self.attr(out, stat);
    }
}

fn entry_head(out: &mut Output<'_>, node: u64) {
    out.u64(node);
    out.u64(0);
    out.u64(VALID_S);
    out.u64(VALID_S);
    out.u64(0);
}

/// `fuse_entry_out` of a name that does not exist, or in a listing of one that is not looked up.
pub(crate) fn no_entry_out(out: &mut Output<'_>) {
    entry_head(out, 0);
    out.put(&[0; ATTR_LEN]);
}
