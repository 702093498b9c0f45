//! What a program does with its descriptors: `fd_*`.
use super::errno::{Errno, Fail};
use super::fd::{self, Kinds, rights};
use super::guest::{Guest, length_of};
use super::{Wasi, socket};
use rustix::fs::{
    Advice, FallocateFlags, FileType, OFlags, SeekFrom, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use std::num::NonZeroU64;
use viv_process::{Channel, Waited};

/// Most bytes of one write to a stream.
const WRITE_MAX: usize = 1 << 20;
/// Most bytes of one read from a stream.
const READ_MAX: usize = 64 << 10;
/// `fdflags`: append and nonblock can be changed; the others are for the opening.
pub(crate) const APPEND: u16 = 1;
pub(crate) const DSYNC: u16 = 2;
pub(crate) const NONBLOCK: u16 = 4;
pub(crate) const RSYNC: u16 = 8;
pub(crate) const SYNC: u16 = 16;
/// `filetype`.
const UNKNOWN: u8 = 0;
const CHARACTER_DEVICE: u8 = 2;
const SOCKET_STREAM: u8 = 6;
/// `preopentype` that is no directory: programs pass over it, and look for more.
const NO_DIRECTORY: u32 = 1;
/// Bytes of a `dirent`.
const DIRENT: usize = 24;

/// The `filetype` of what the host has there.
pub(crate) fn filetype(kind: FileType) -> u8 {
    match kind {
        FileType::BlockDevice => 1,
        FileType::CharacterDevice => CHARACTER_DEVICE,
        FileType::Directory => 3,
        FileType::RegularFile => 4,
        FileType::Socket => SOCKET_STREAM,
        FileType::Symlink => 7,
        _ => UNKNOWN,
    }
}

/// A `filestat`.
pub(crate) fn filestat(stat: &Stat) -> [u8; 64] {
    let time = |seconds: i64, nanoseconds: u64| {
        u64::try_from(seconds).unwrap_or_default().saturating_mul(1_000_000_000).saturating_add(nanoseconds)
    };
    let numbers = [
        stat.st_dev,
        stat.st_ino,
        filetype(FileType::from_raw_mode(stat.st_mode)).into(),
        stat.st_nlink,
        u64::try_from(stat.st_size).unwrap_or_default(),
        time(stat.st_atime, stat.st_atime_nsec),
        time(stat.st_mtime, stat.st_mtime_nsec),
        time(stat.st_ctime, stat.st_ctime_nsec),
    ];
    let mut bytes = [0; 64];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// The times of `fstflags`: given, now, or as they are.
pub(crate) fn times(access: u64, change: u64, flags: u16) -> Result<Timestamps, Errno> {
    let one = |given: u64, set: bool, now: bool| match (set, now) {
        (true, true) => Err(Errno::Invalid),
        (true, false) => Ok(Timespec {
            tv_sec: i64::try_from(given / 1_000_000_000).map_err(|_| Errno::Invalid)?,
            tv_nsec: (given % 1_000_000_000) as _,
        }),
        (false, now) => Ok(Timespec { tv_sec: 0, tv_nsec: if now { UTIME_NOW } else { UTIME_OMIT } }),
    };
    Ok(Timestamps {
        last_access: one(access, flags & 1 != 0, flags & 2 != 0)?,
        last_modification: one(change, flags & 4 != 0, flags & 8 != 0)?,
    })
}

/// Moves piece after piece, each behind `done` bytes, until one is not filled; gives how many bytes were moved. As with
/// readv(2), what fails behind a piece that was moved is not told now.
fn each(
    pieces: &[(u32, u32)],
    mut one: impl FnMut(u32, u32, usize) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    let mut done = 0;
    for &(address, length) in pieces {
        match one(address, length, done) {
            Ok(now) => {
                done += now;
                if now < length as usize {
                    break;
                }
            }
            Err(_) if done > 0 => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(done)
}

pub(crate) fn read(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    list: u32,
    count: u32,
    done: u32,
) -> Result<(), Fail> {
    let pieces = guest.pieces(list, count)?;
    let total = match &wasi.table.with(fd, rights::FD_READ)?.kind {
        Kinds::Stdin => {
            let bytes = match wasi.streams.read_or_wanted(length_of(&pieces, READ_MAX))? {
                Waited::Ready(bytes) => bytes,
                Waited::Late => Vec::new(),
                Waited::Wanted => return Err(Fail::Wanted),
            };
            guest.scatter(&pieces, &bytes)?;
            bytes.len()
        }
        Kinds::File(file) => each(&pieces, |address, length, _| {
            Ok(rustix::io::read(file, guest.bytes_mut(address, length)?)?)
        })?,
        Kinds::Connection { .. } => socket::receive(guest, wasi, fd, &pieces, 0)?,
        Kinds::Listener { .. } => return Err(Errno::NotConnected.into()),
        _ => return Err(Errno::BadFd.into()),
    };
    Ok(guest.put_u32(done, u32::try_from(total).map_err(|_| Errno::Overflow)?)?)
}

pub(crate) fn write(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    list: u32,
    count: u32,
    done: u32,
) -> Result<(), Fail> {
    let pieces = guest.pieces(list, count)?;
    let descriptor = wasi.table.with(fd, rights::FD_WRITE)?;
    let channel = match &descriptor.kind {
        Kinds::Stdout => Channel::Out,
        Kinds::Stderr => Channel::Err,
        Kinds::File(file) => {
            let total = each(&pieces, |address, length, _| {
                Ok(rustix::io::write(file, guest.bytes(address, length)?)?)
            })?;
            return Ok(guest.put_u32(done, u32::try_from(total).map_err(|_| Errno::Overflow)?)?);
        }
        Kinds::Connection { .. } => {
            guest.bytes(done, 4)?;
            let total = socket::transmit(guest, wasi, fd, &pieces)?;
            return Ok(guest.put_u32(done, u32::try_from(total).map_err(|_| Errno::Overflow)?)?);
        }
        Kinds::Listener { .. } => return Err(Errno::NotConnected.into()),
        _ => return Err(Errno::BadFd.into()),
    };
    let bytes = guest.gather(&pieces, WRITE_MAX)?;
    wasi.pass()?;
    wasi.streams.write(channel, &bytes);
    Ok(guest.put_u32(done, bytes.len() as u32)?)
}

pub(crate) fn pread(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    (list, count): (u32, u32),
    offset: u64,
    done: u32,
) -> Result<(), Fail> {
    let pieces = guest.pieces(list, count)?;
    let file = wasi.table.file(fd)?;
    wasi.table.with(fd, rights::FD_READ)?;
    let total = each(&pieces, |address, length, done| {
        let place = offset.checked_add(done as u64).ok_or(Errno::Invalid)?;
        Ok(rustix::io::pread(file, guest.bytes_mut(address, length)?, place)?)
    })?;
    Ok(guest.put_u32(done, u32::try_from(total).map_err(|_| Errno::Overflow)?)?)
}

pub(crate) fn pwrite(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    (list, count): (u32, u32),
    offset: u64,
    done: u32,
) -> Result<(), Fail> {
    let pieces = guest.pieces(list, count)?;
    let file = wasi.table.file(fd)?;
    wasi.table.with(fd, rights::FD_WRITE)?;
    let total = each(&pieces, |address, length, done| {
        let place = offset.checked_add(done as u64).ok_or(Errno::Invalid)?;
        Ok(rustix::io::pwrite(file, guest.bytes(address, length)?, place)?)
    })?;
    Ok(guest.put_u32(done, u32::try_from(total).map_err(|_| Errno::Overflow)?)?)
}

pub(crate) fn seek(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    offset: i64,
    whence: u32,
    done: u32,
) -> Result<(), Fail> {
    let file = wasi.table.file(fd)?;
    let from = match whence {
        0 => SeekFrom::Start(u64::try_from(offset).map_err(|_| Errno::Invalid)?),
        1 => SeekFrom::Current(offset),
        2 => SeekFrom::End(offset),
        _ => return Err(Errno::Invalid.into()),
    };
    let place = rustix::fs::seek(file, from)?;
    Ok(guest.put_u64(done, place)?)
}

pub(crate) fn tell(guest: &mut Guest<'_>, wasi: &mut Wasi, fd: u32, done: u32) -> Result<(), Fail> {
    let place = rustix::fs::tell(wasi.table.file(fd)?)?;
    Ok(guest.put_u64(done, place)?)
}

pub(crate) fn advise(wasi: &mut Wasi, fd: u32, offset: u64, length: u64, advice: u32) -> Result<(), Fail> {
    let file = wasi.table.file(fd)?;
    let advice = match advice {
        0 => Advice::Normal,
        1 => Advice::Sequential,
        2 => Advice::Random,
        3 => Advice::WillNeed,
        4 => Advice::DontNeed,
        5 => Advice::NoReuse,
        _ => return Err(Errno::Invalid.into()),
    };
    if i64::try_from(offset).is_err() || i64::try_from(length).is_err() {
        return Err(Errno::Invalid.into());
    }
    Ok(rustix::fs::fadvise(file, offset, NonZeroU64::new(length), advice)?)
}

pub(crate) fn allocate(wasi: &mut Wasi, fd: u32, offset: u64, length: u64) -> Result<(), Fail> {
    Ok(rustix::fs::fallocate(wasi.table.file(fd)?, FallocateFlags::empty(), offset, length)?)
}

pub(crate) fn sync(wasi: &mut Wasi, fd: u32, data_only: bool) -> Result<(), Fail> {
    let file = match &wasi.table.get(fd)?.kind {
        Kinds::File(file) | Kinds::Directory { file, .. } => file,
        _ => return Ok(()),
    };
    let done = if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) };
    Ok(done?)
}

pub(crate) fn fdstat(guest: &mut Guest<'_>, wasi: &mut Wasi, fd: u32, to: u32) -> Result<(), Fail> {
    let descriptor = wasi.table.get(fd)?;
    let (kind, flags) = match &descriptor.kind {
        Kinds::File(file) => {
            let flags = rustix::fs::fcntl_getfl(file)?;
            let has = |flag, bit| if flags.contains(flag) { bit } else { 0 };
            let kind = filetype(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode));
            let synced = has(OFlags::SYNC, SYNC) | has(OFlags::DSYNC, DSYNC);
            (kind, has(OFlags::APPEND, APPEND) | has(OFlags::NONBLOCK, NONBLOCK) | synced)
        }
        Kinds::Directory { .. } => (filetype(FileType::Directory), 0),
        Kinds::Listener { nonblocking, .. } | Kinds::Connection { nonblocking, .. } => {
            (SOCKET_STREAM, if *nonblocking { NONBLOCK } else { 0 })
        }
        _ => (if wasi.table.tty { CHARACTER_DEVICE } else { UNKNOWN }, 0),
    };
    let mut bytes = [0; 24];
    let (head, tail) = bytes.split_at_mut(8);
    head.copy_from_slice(&(u64::from(kind) | u64::from(flags) << 16).to_le_bytes());
    let numbers = [descriptor.rights, descriptor.inheriting];
    for (place, number) in tail.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    Ok(guest.put(to, &bytes)?)
}

pub(crate) fn set_flags(wasi: &mut Wasi, fd: u32, flags: u16) -> Result<(), Fail> {
    let file = match &mut wasi.table.get_mut(fd)?.kind {
        Kinds::File(file) => file,
        Kinds::Listener { nonblocking, .. } | Kinds::Connection { nonblocking, .. } => {
            if flags & !NONBLOCK != 0 {
                return Err(Errno::Invalid.into());
            }
            *nonblocking = flags & NONBLOCK != 0;
            return Ok(());
        }
        _ => return Err(Errno::BadFd.into()),
    };
    if flags & !(APPEND | NONBLOCK) != 0 {
        return Err(Errno::Invalid.into());
    }
    let mut now = rustix::fs::fcntl_getfl(&*file)?;
    now.set(OFlags::APPEND, flags & APPEND != 0);
    now.set(OFlags::NONBLOCK, flags & NONBLOCK != 0);
    Ok(rustix::fs::fcntl_setfl(file, now)?)
}

/// Rights can be given up, and not taken.
pub(crate) fn set_rights(wasi: &mut Wasi, fd: u32, base: u64, inheriting: u64) -> Result<(), Fail> {
    let descriptor = wasi.table.get_mut(fd)?;
    if base & !descriptor.rights != 0 || inheriting & !descriptor.inheriting != 0 {
        return Err(Errno::NotCapable.into());
    }
    (descriptor.rights, descriptor.inheriting) = (base, inheriting);
    Ok(())
}

pub(crate) fn stat(guest: &mut Guest<'_>, wasi: &mut Wasi, fd: u32, to: u32) -> Result<(), Fail> {
    let bytes = match &wasi.table.get(fd)?.kind {
        Kinds::File(file) | Kinds::Directory { file, .. } => filestat(&rustix::fs::fstat(file)?),
        other => {
            let mut bytes = [0; 64];
            if let Some(kind) = bytes.get_mut(16) {
                *kind = match other {
                    Kinds::Listener { .. } | Kinds::Connection { .. } => SOCKET_STREAM,
                    _ if wasi.table.tty => CHARACTER_DEVICE,
                    _ => UNKNOWN,
                };
            }
            bytes
        }
    };
    Ok(guest.put(to, &bytes)?)
}

pub(crate) fn set_size(wasi: &mut Wasi, fd: u32, size: u64) -> Result<(), Fail> {
    Ok(rustix::fs::ftruncate(wasi.table.file(fd)?, size)?)
}

pub(crate) fn set_times(wasi: &mut Wasi, fd: u32, access: u64, change: u64, flags: u16) -> Result<(), Fail> {
    let file = wasi.table.changing_on_host(fd)?;
    Ok(rustix::fs::futimens(file, &times(access, change, flags)?)?)
}

pub(crate) fn prestat(guest: &mut Guest<'_>, wasi: &mut Wasi, fd: u32, to: u32) -> Result<(), Fail> {
    if matches!(wasi.table.get(fd)?.kind, Kinds::Listener { .. }) {
        // wasi-libc and Go look for directories until there is no such descriptor, and pass over what is none.
        guest.put_u32(to, NO_DIRECTORY)?;
        return Ok(guest.put_u32(to.checked_add(4).ok_or(Errno::Fault)?, 0)?);
    }
    let name = preopened(wasi, fd)?;
    let length = u32::try_from(name.len()).map_err(|_| Errno::Overflow)?;
    guest.put_u32(to, 0)?; // a directory
    Ok(guest.put_u32(to.checked_add(4).ok_or(Errno::Fault)?, length)?)
}

pub(crate) fn prestat_name(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    to: u32,
    max: u32,
) -> Result<(), Fail> {
    let name = preopened(wasi, fd)?;
    if name.len() > max as usize {
        return Err(Errno::NameTooLong.into());
    }
    Ok(guest.put(to, name.as_bytes())?)
}

fn preopened(wasi: &Wasi, fd: u32) -> Result<&str, Errno> {
    match &wasi.table.get(fd)?.kind {
        Kinds::Directory { preopened: Some(name), .. } => Ok(name),
        _ => Err(Errno::BadFd),
    }
}

/// Lists a directory from entry `cookie` on: as much of it as fits, the last entry cut off.
pub(crate) fn readdir(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    (to, max): (u32, u32),
    cookie: u64,
    done: u32,
) -> Result<(), Fail> {
    let Kinds::Directory { file, listing, .. } = &mut wasi.table.get_mut(fd)?.kind else {
        return Err(Errno::NotDirectory.into());
    };
    if cookie == 0 || listing.is_empty() {
        *listing = fd::list(file)?;
    }
    let mut out = Vec::new();
    let first = usize::try_from(cookie).map_err(|_| Errno::Invalid)?;
    for (entry, next) in listing.iter().zip(1u64..).skip(first) {
        if out.len() >= max as usize {
            break;
        }
        let length = u32::try_from(entry.name.len()).map_err(|_| Errno::Overflow)?;
        let mut head = Vec::with_capacity(DIRENT);
        head.extend(next.to_le_bytes());
        head.extend(entry.inode.to_le_bytes());
        head.extend(length.to_le_bytes());
        head.extend([entry.kind, 0, 0, 0]);
        out.extend(head);
        out.extend(&entry.name);
    }
    out.truncate(max as usize);
    guest.put(to, &out)?;
    Ok(guest.put_u32(done, out.len() as u32)?)
}

pub(crate) fn close(wasi: &mut Wasi, fd: u32) -> Result<(), Fail> {
    Ok(wasi.table.close(fd)?)
}

/// Whether something opened with these rights is to be read and to be written.
pub(crate) fn access(base: u64) -> (bool, bool) {
    (base & rights::FD_READ != 0, base & rights::FD_WRITE != 0)
}
