//! What a program does with names: `path_*`.
//!
//! Every name is looked up below a directory that the program has, and the kernel sees to it that it stays there
//! (`RESOLVE_BENEATH` of openat2(2)), over `..` and symbolic links too. What has a name and no descriptor is reached by its
//! parent's.
use super::Wasi;
use super::errno::{Errno, Fail};
use super::fd::{Descriptor, Kinds, rights};
use super::file::{APPEND, DSYNC, NONBLOCK, RSYNC, SYNC, access, filestat, times};
use super::guest::Guest;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, openat2};
use std::fs::File;

/// `lookupflags`: follow a symbolic link that the name ends in.
pub(crate) const FOLLOW: u32 = 1;
/// `oflags`.
const CREATE: u16 = 1;
const DIRECTORY: u16 = 2;
const EXCLUSIVE: u16 = 4;
const TRUNCATE: u16 = 8;
/// Rights of files that a program makes, before its user's mask.
const MODE: Mode = Mode::from_raw_mode(0o666);
const MODE_DIRECTORY: Mode = Mode::from_raw_mode(0o777);
/// How often a lookup that met a change is tried again (openat2(2): `EAGAIN`).
const TRIES: usize = 16;

/// Opens a name below a directory.
pub(crate) fn beneath(
    directory: BorrowedFd<'_>,
    path: &str,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    if path.is_empty() {
        return Err(Errno::NoEntry);
    }
    if path.starts_with('/') {
        return Err(Errno::NotPermitted);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // What is only looked at takes no other flags (openat2(2)).
    let plain = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY };
    let flags = flags | plain | OFlags::CLOEXEC;
    for _ in 0..TRIES {
        match openat2(directory, path, flags, mode, resolve) {
            // It would have left the directory.
            Err(rustix::io::Errno::XDEV) => return Err(Errno::NotPermitted),
            Err(rustix::io::Errno::AGAIN) => {}
            other => return other.map_err(Errno::from),
        }
    }
    Err(Errno::Again)
}

/// The parent of what a name means, and what it is called there.
struct Place<'a> {
    parent: Parent<'a>,
    name: &'a str,
}

enum Parent<'a> {
    Given(BorrowedFd<'a>),
    Found(OwnedFd),
}

impl Place<'_> {
    fn parent(&self) -> BorrowedFd<'_> {
        match &self.parent {
            Parent::Given(fd) => *fd,
            Parent::Found(fd) => fd.as_fd(),
        }
    }
}

/// Finds the parent. The name keeps its slashes at the end: the kernel knows what they mean.
fn place<'a>(directory: &'a File, path: &'a str) -> Result<Place<'a>, Errno> {
    if path.is_empty() {
        return Err(Errno::NoEntry);
    }
    if path.starts_with('/') {
        return Err(Errno::NotPermitted);
    }
    let bare = path.trim_end_matches('/');
    let (above, name) = match bare.rfind('/') {
        Some(slash) => path.split_at(slash + 1),
        None => ("", path),
    };
    // What goes up is looked up as a directory, and is none of its parent's names.
    if name.trim_end_matches('/') == ".." {
        beneath(directory.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        return Err(Errno::Invalid);
    }
    let parent = match above {
        "" => Parent::Given(directory.as_fd()),
        above => {
            Parent::Found(beneath(directory.as_fd(), above, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?)
        }
    };
    Ok(Place { parent, name })
}

/// What `path_open` is asked for.
pub(crate) struct Open {
    pub(crate) lookup: u32,
    pub(crate) oflags: u16,
    pub(crate) base: u64,
    pub(crate) inheriting: u64,
    pub(crate) fdflags: u16,
}

pub(crate) fn open(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    (path, length): (u32, u32),
    ask: &Open,
    done: u32,
) -> Result<(), Fail> {
    let path = guest.path(path, length)?;
    let (directory, read_only) = wasi.table.directory(fd)?;
    wasi.table.has_room()?;
    let (read, write) = access(ask.base);
    let is_directory = ask.oflags & DIRECTORY != 0;
    if is_directory && ask.oflags & (CREATE | EXCLUSIVE | TRUNCATE) != 0 {
        return Err(Errno::Invalid.into());
    }
    if is_directory && write {
        return Err(Errno::IsDirectory.into());
    }
    if ask.oflags & TRUNCATE != 0 {
        wasi.table.with(fd, rights::PATH_FILESTAT_SET_SIZE).map_err(|_| Errno::NotPermitted)?;
    }
    if read_only && (ask.oflags & (CREATE | TRUNCATE) != 0 || write && !is_directory) {
        return Err(Errno::ReadOnly.into());
    }
    let mut flags = match (read, write) {
        _ if is_directory => OFlags::RDONLY,
        (true, true) => OFlags::RDWR,
        (false, true) => OFlags::WRONLY,
        _ => OFlags::RDONLY,
    };
    let asked = |bits: u16, bit: u16, flag: OFlags| if bits & bit != 0 { flag } else { OFlags::empty() };
    flags |= asked(ask.oflags, CREATE, OFlags::CREATE)
        | asked(ask.oflags, DIRECTORY, OFlags::DIRECTORY)
        | asked(ask.oflags, EXCLUSIVE, OFlags::EXCL)
        | asked(ask.oflags, TRUNCATE, OFlags::TRUNC)
        | asked(ask.fdflags, APPEND, OFlags::APPEND)
        | asked(ask.fdflags, DSYNC, OFlags::DSYNC)
        | asked(ask.fdflags, RSYNC | SYNC, OFlags::SYNC)
        | asked(ask.fdflags, NONBLOCK, OFlags::NONBLOCK);
    if ask.lookup & FOLLOW == 0 {
        flags |= OFlags::NOFOLLOW;
    }
    let mode = if ask.oflags & CREATE != 0 { MODE } else { Mode::empty() };
    // A pipe in the directory must not hold the program where nobody can end it.
    let opened = beneath(directory.as_fd(), &path, flags | OFlags::NONBLOCK, mode)?;
    let file = File::from(opened);
    let is_directory = file.metadata().map_err(|_| Errno::Io)?.is_dir();
    if !is_directory && ask.fdflags & NONBLOCK == 0 {
        let flags = rustix::fs::fcntl_getfl(&file)?;
        rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
    }
    let mut descriptor = Descriptor::new(match is_directory {
        true => Kinds::Directory { file, preopened: None, read_only, listing: Vec::new() },
        false => Kinds::File(file),
    });
    descriptor.rights &= ask.base;
    descriptor.inheriting &= ask.inheriting;
    descriptor.origin = wasi.table.get(fd)?.origin.as_ref().map(|parent| parent.join(&path));
    let number = wasi.table.insert(descriptor)?;
    Ok(guest.put_u32(done, number)?)
}

pub(crate) fn create_directory(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    path: u32,
    length: u32,
) -> Result<(), Fail> {
    let path = guest.path(path, length)?;
    let place = place(wasi.table.changing(fd)?, &path)?;
    Ok(rustix::fs::mkdirat(place.parent(), place.name, MODE_DIRECTORY)?)
}

pub(crate) fn remove_directory(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    path: u32,
    length: u32,
) -> Result<(), Fail> {
    let path = guest.path(path, length)?;
    let place = place(wasi.table.changing(fd)?, &path)?;
    Ok(rustix::fs::unlinkat(place.parent(), place.name, AtFlags::REMOVEDIR)?)
}

pub(crate) fn unlink_file(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    path: u32,
    length: u32,
) -> Result<(), Fail> {
    let path = guest.path(path, length)?;
    let place = place(wasi.table.changing(fd)?, &path)?;
    Ok(rustix::fs::unlinkat(place.parent(), place.name, AtFlags::empty())?)
}

/// A descriptor of what a name means, for looking at it only.
fn look(directory: &File, path: &str, lookup: u32) -> Result<OwnedFd, Errno> {
    let follow = if lookup & FOLLOW == 0 { OFlags::NOFOLLOW } else { OFlags::empty() };
    beneath(directory.as_fd(), path, OFlags::PATH | follow, Mode::empty())
}

pub(crate) fn stat(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    lookup: u32,
    (path, length): (u32, u32),
    to: u32,
) -> Result<(), Fail> {
    let path = guest.path(path, length)?;
    let found = look(wasi.table.directory(fd)?.0, &path, lookup)?;
    let bytes = filestat(&rustix::fs::fstat(&found)?);
    Ok(guest.put(to, &bytes)?)
}

pub(crate) fn set_times(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    lookup: u32,
    (path, length): (u32, u32),
    (access, change, flags): (u64, u64, u16),
) -> Result<(), Fail> {
    let path = guest.path(path, length)?;
    let times = times(access, change, flags)?;
    let found = look(wasi.table.changing(fd)?, &path, lookup)?;
    Ok(rustix::fs::utimensat(&found, "", &times, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)?)
}

pub(crate) fn link(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    (from, lookup, old, old_length): (u32, u32, u32, u32),
    (to, new, new_length): (u32, u32, u32),
) -> Result<(), Fail> {
    let (old, new) = (guest.path(old, old_length)?, guest.path(new, new_length)?);
    if lookup & FOLLOW != 0 {
        return Err(Errno::Invalid.into());
    }
    let old = place(wasi.table.changing(from)?, &old)?;
    let new = place(wasi.table.changing(to)?, &new)?;
    // With a slash at its end the kernel would follow a link.
    if old.name.ends_with('/') {
        return Err(Errno::NotDirectory.into());
    }
    Ok(rustix::fs::linkat(old.parent(), old.name, new.parent(), new.name, AtFlags::empty())?)
}

pub(crate) fn rename(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    (from, old, old_length): (u32, u32, u32),
    (to, new, new_length): (u32, u32, u32),
) -> Result<(), Fail> {
    let (old, new) = (guest.path(old, old_length)?, guest.path(new, new_length)?);
    let old = place(wasi.table.changing(from)?, &old)?;
    let new = place(wasi.table.changing(to)?, &new)?;
    Ok(rustix::fs::renameat(old.parent(), old.name, new.parent(), new.name)?)
}

pub(crate) fn symlink(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    (target, target_length): (u32, u32),
    fd: u32,
    (path, length): (u32, u32),
) -> Result<(), Fail> {
    let (target, path) = (guest.path(target, target_length)?, guest.path(path, length)?);
    // Nothing in here would follow it, and others outside might.
    if target.starts_with('/') {
        return Err(Errno::NotPermitted.into());
    }
    let place = place(wasi.table.changing(fd)?, &path)?;
    Ok(rustix::fs::symlinkat(target, place.parent(), place.name)?)
}

pub(crate) fn readlink(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    (path, length): (u32, u32),
    (to, max): (u32, u32),
    done: u32,
) -> Result<(), Fail> {
    let path = guest.path(path, length)?;
    let place = place(wasi.table.directory(fd)?.0, &path)?;
    let target = rustix::fs::readlinkat(place.parent(), place.name, Vec::new())?;
    let target = target.to_bytes();
    let shown = target.get(..target.len().min(max as usize)).unwrap_or_default();
    guest.put(to, shown)?;
    Ok(guest.put_u32(done, shown.len() as u32)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    fn tree(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("viv-wasi-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("inside/deep")).unwrap();
        fs::write(dir.join("secret"), b"x").unwrap();
        fs::write(dir.join("inside/file"), b"y").unwrap();
        symlink("../secret", dir.join("inside/up")).unwrap();
        symlink("/etc", dir.join("inside/etc")).unwrap();
        symlink("deep", dir.join("inside/link")).unwrap();
        dir
    }

    #[test]
    fn no_name_leads_out_of_its_directory() {
        let dir = tree("names");
        let inside = File::open(dir.join("inside")).unwrap();
        let open = |path: &str| beneath(inside.as_fd(), path, OFlags::RDONLY, Mode::empty()).map(drop);
        for path in ["..", "../secret", "deep/../../secret", "/etc/passwd", "up", "etc/passwd", "link/../.."]
        {
            assert_eq!(open(path), Err(Errno::NotPermitted), "{path}");
        }
        for path in ["file", "deep/../file", "./link/../file", "link"] {
            assert_eq!(open(path), Ok(()), "{path}");
        }
        assert_eq!(open("file/"), Err(Errno::NotDirectory));
        assert_eq!(open("gone"), Err(Errno::NoEntry));
        assert_eq!(open(""), Err(Errno::NoEntry));
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_parent_is_found_and_a_name_keeps_its_slashes() {
        let dir = tree("parents");
        let inside = File::open(dir.join("inside")).unwrap();
        let name = |path: &str| place(&inside, path).map(|place| place.name.to_string());
        assert_eq!(name("file").as_deref(), Ok("file"));
        assert_eq!(name("deep/new/").as_deref(), Ok("new/"));
        assert_eq!(name("link/new").as_deref(), Ok("new"));
        assert_eq!(name("../x"), Err(Errno::NotPermitted));
        assert_eq!(name("etc/x"), Err(Errno::NotPermitted));
        assert_eq!(name(".."), Err(Errno::NotPermitted));
        assert_eq!(name("deep/.."), Err(Errno::Invalid));
        assert_eq!(name("/"), Err(Errno::NotPermitted));
        fs::remove_dir_all(dir).unwrap();
    }
}
