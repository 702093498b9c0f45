//! The system calls that the standard library does not have, each behind a safe function.
#![allow(unsafe_code)]
use std::ffi::{CString, c_int, c_ulong};
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

pub(crate) fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub(crate) fn owned(result: c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just given us this descriptor, nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn text(value: &str) -> io::Result<CString> {
    CString::new(value).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// mount(2).
pub(crate) fn mount(source: &str, target: &str, kind: &str, flags: c_ulong, data: &str) -> io::Result<()> {
    let (source, target, kind, data) = (text(source)?, text(target)?, text(kind)?, text(data)?);
    // SAFETY: four C strings that outlive the call.
    check(unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast())
    })?;
    Ok(())
}

/// Bytes that names, and a value, of extended attributes may have (xattr(7)).
const ATTRIBUTES_MAX: usize = 64 << 10;

fn path(value: &Path) -> io::Result<CString> {
    CString::new(value.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// Makes a device or a pipe like another one.
pub(crate) fn same_node(from: &Path, to: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(from)?;
    let to = path(to)?;
    // SAFETY: a C string that outlives the call.
    check(unsafe { libc::mknod(to.as_ptr(), found.mode(), found.rdev()) })?;
    Ok(())
}

/// Gives `to` the owner, the rights, the extended attributes and the times of `from`; links are not followed.
pub(crate) fn same_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(from)?;
    std::os::unix::fs::lchown(to, Some(found.uid()), Some(found.gid()))?;
    if !found.file_type().is_symlink() {
        std::fs::set_permissions(to, found.permissions())?;
    }
    let (source, target) = (path(from)?, path(to)?);
    let mut names = vec![0u8; ATTRIBUTES_MAX];
    // SAFETY: a C string and a buffer of that size.
    let length = unsafe { libc::llistxattr(source.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    let names = names.get(..usize::try_from(length).unwrap_or_default()).unwrap_or_default();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
        let mut value = vec![0u8; ATTRIBUTES_MAX];
        // SAFETY: C strings, and a buffer of that size; the length that is set was read into it.
        unsafe {
            let length =
                libc::lgetxattr(source.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len());
            if let Ok(length) = usize::try_from(length) {
                // What the target's file system does not know is left out.
                libc::lsetxattr(target.as_ptr(), name.as_ptr(), value.as_ptr().cast(), length, 0);
            }
        }
    }
    let time = |seconds, nanoseconds| libc::timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = [time(found.atime(), found.atime_nsec()), time(found.mtime(), found.mtime_nsec())];
    // SAFETY: a C string and two times that outlive the call.
    check(unsafe {
        libc::utimensat(libc::AT_FDCWD, target.as_ptr(), times.as_ptr(), libc::AT_SYMLINK_NOFOLLOW)
    })?;
    Ok(())
}

/// umount2(2); lazily, if it is busy.
pub(crate) fn umount(target: &str) -> io::Result<()> {
    let target = text(target)?;
    // SAFETY: a C string that outlives the call.
    if unsafe { libc::umount2(target.as_ptr(), 0) } == 0 {
        return Ok(());
    }
    // SAFETY: as above. Read-only keeps the file system whole where it cannot be let go.
    check(unsafe {
        libc::mount(
            std::ptr::null(),
            target.as_ptr(),
            std::ptr::null(),
            libc::MS_REMOUNT | libc::MS_RDONLY,
            std::ptr::null(),
        )
    })?;
    Ok(())
}

/// umount2(2): not if it is in use, or, `lazily`, as soon as nobody uses it any more.
pub(crate) fn unmount(target: &str, lazily: bool) -> io::Result<()> {
    let target = text(target)?;
    // SAFETY: a C string that outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), if lazily { libc::MNT_DETACH } else { 0 }) })?;
    Ok(())
}

/// A socket on which the kernel tells what devices come and go: NETLINK_KOBJECT_UEVENT of netlink(7).
pub(crate) fn device_events() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    let socket = owned(unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_KOBJECT_UEVENT) })?;
    // SAFETY: an address of zeroes is one of this type.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    // The kernel's own events.
    address.nl_groups = 1;
    let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
    // SAFETY: the address is of the length that is said.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    Ok(socket)
}

/// chroot(2) to the working directory.
pub(crate) fn chroot_here() -> io::Result<()> {
    // SAFETY: a constant C string.
    check(unsafe { libc::chroot(c".".as_ptr()) })?;
    Ok(())
}

/// Gives this thread a root and a working directory of its own (unshare(2), `CLONE_FS`).
pub(crate) fn own_root() -> io::Result<()> {
    // SAFETY: no pointers; what the thread shares with others afterwards is memory and files, as before.
    check(unsafe { libc::unshare(libc::CLONE_FS) })?;
    Ok(())
}

/// sync(2): all that was written is on the disks.
pub(crate) fn sync() {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::sync() }
}

/// reboot(2) with one of `LINUX_REBOOT_CMD_*`.
pub(crate) fn reboot(command: c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::reboot(command) })?;
    Ok(())
}

/// Sets the clock that everybody sees (clock_settime(2)).
pub(crate) fn set_time(unix_ns: u64) -> io::Result<()> {
    let time = libc::timespec {
        tv_sec: (unix_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (unix_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: a structure of ours.
    check(unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) })?;
    Ok(())
}

/// Mixes `bytes` into the kernel's randomness and has all of it drawn anew from there: RNDADDENTROPY and RNDRESEEDCRNG of
/// random(4).
pub(crate) fn add_entropy(pool: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    const RNDADDENTROPY: c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: c_ulong = 0x5207;
    // struct rand_pool_info: bits, bytes, then the bytes, as whole words.
    let words = bytes.len().div_ceil(4);
    let mut info = vec![0u32; 2 + words];
    let (head, rest) = info.split_at_mut(2);
    head.copy_from_slice(&[(bytes.len() * 8) as u32, bytes.len() as u32]);
    for (word, piece) in rest.iter_mut().zip(bytes.chunks(4)) {
        let mut four = [0; 4];
        four.iter_mut().zip(piece).for_each(|(to, from)| *to = *from);
        *word = u32::from_ne_bytes(four);
    }
    // SAFETY: the structure is as long as it says.
    check(unsafe { libc::ioctl(pool.as_raw_fd(), RNDADDENTROPY as _, info.as_ptr()) })?;
    // SAFETY: it has no argument.
    check(unsafe { libc::ioctl(pool.as_raw_fd(), RNDRESEEDCRNG as _) })?;
    Ok(())
}

/// sethostname(2).
pub(crate) fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length of one string.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    Ok(())
}

/// finit_module(2) without parameters.
pub(crate) fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: an open descriptor, an empty C string, no flags.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    check(result as c_int)?;
    Ok(())
}

/// kill(2). `pid` -1: everybody but us; below -1: a process group.
pub(crate) fn kill(pid: i32, signal: c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::kill(pid, signal) })?;
    Ok(())
}

/// What waitpid(2) told of one dead child: its number and its status as a shell counts it.
pub(crate) fn reap() -> Option<(i32, u8)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for one int.
    let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
    if pid <= 0 {
        return None;
    }
    let status = if libc::WIFSIGNALED(status) {
        128u8.wrapping_add(libc::WTERMSIG(status) as u8)
    } else {
        libc::WEXITSTATUS(status) as u8
    };
    Some((pid, status))
}

fn signal_set(signals: &[c_int]) -> libc::sigset_t {
    // SAFETY: `sigset_t` is plain data, made valid by sigemptyset.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        set
    }
}

/// Blocks `signals` in this thread and those it starts, so that [`next_signal`] gets them.
pub(crate) fn block_signals(signals: &[c_int]) {
    // SAFETY: a valid set; the old one is not wanted.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &signal_set(signals), std::ptr::null_mut()) };
}

/// Blocks nothing and ignores nothing any more: for a program that takes our place.
pub(crate) fn unblock_all() {
    // SAFETY: a valid empty set; SIG_DFL runs no code of ours.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, &signal_set(&[]), std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Waits at most `ms` milliseconds for one of `signals`.
pub(crate) fn next_signal(signals: &[c_int], ms: u64) -> Option<c_int> {
    let timeout = libc::timespec { tv_sec: (ms / 1000) as _, tv_nsec: (ms % 1000 * 1_000_000) as _ };
    // SAFETY: valid set and time; no information about the sender is wanted.
    let signal = unsafe { libc::sigtimedwait(&signal_set(signals), std::ptr::null_mut(), &timeout) };
    (signal > 0).then_some(signal)
}

/// A descriptor that is readable when the process has ended (pidfd_open(2)).
pub(crate) fn process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as c_int)
}

/// Ignores `signal`.
pub(crate) fn ignore(signal: c_int) {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Who and where a child process is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) cwd: String,
}

/// User and group of this process.
pub(crate) fn who() -> (u32, u32) {
    // SAFETY: no conditions, no failures; safe after a fork as well.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Makes `command` a session of its own, with its standard input as the controlling terminal if `tty`, as
/// `identity` says, with no signal blocked or ignored.
pub(crate) fn as_session(command: &mut Command, tty: bool, identity: Identity) -> io::Result<()> {
    let cwd = text(&identity.cwd)?;
    // SAFETY: between fork and exec only calls that are safe there (async-signal-safe) are made; nothing is allocated:
    // errors are bare numbers.
    unsafe {
        command.pre_exec(move || {
            let mut all = std::mem::zeroed();
            libc::sigemptyset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, std::ptr::null_mut());
            for signal in [libc::SIGPIPE, libc::SIGHUP, libc::SIGINT, libc::SIGTTOU, libc::SIGTTIN] {
                libc::signal(signal, libc::SIG_DFL);
            }
            check(libc::setsid())?;
            if tty {
                check(libc::ioctl(0, libc::TIOCSCTTY, 1))?;
            }
            let ours = who();
            // Who is not root can only stay who it is, and may not even set its own groups again.
            if ours.0 == 0 || ours != (identity.uid, identity.gid) {
                check(libc::setgroups(identity.groups.len(), identity.groups.as_ptr()))?;
                check(libc::setgid(identity.gid))?;
                check(libc::setuid(identity.uid))?;
            }
            check(libc::chdir(cwd.as_ptr()))?;
            Ok(())
        })
    };
    Ok(())
}

/// A new terminal: our side and the command's side.
pub(crate) fn open_terminal(rows: u16, cols: u16) -> io::Result<(OwnedFd, OwnedFd)> {
    // SAFETY: no pointers.
    let ours = owned(unsafe { libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) })?;
    let unlock: c_int = 0;
    // SAFETY: TIOCSPTLCK reads one int.
    check(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCSPTLCK, &unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: TIOCGPTPEER takes open(2) flags by value and gives a new descriptor.
    let theirs = owned(unsafe { libc::ioctl(ours.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
    resize(ours.as_fd(), rows, cols)?;
    Ok((ours, theirs))
}

/// Tells a terminal its size.
pub(crate) fn resize(terminal: BorrowedFd<'_>, rows: u16, cols: u16) -> io::Result<()> {
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one `winsize`.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &size) })?;
    Ok(())
}

/// Has a file system write out what it has and stand still, by any file of it (`FIFREEZE` of linux/fs.h).
pub(crate) fn freeze(file: BorrowedFd<'_>) -> io::Result<()> {
    const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
    // SAFETY: FIFREEZE takes no argument.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FIFREEZE, 0) })?;
    Ok(())
}

/// Lets it go on (`FITHAW` of linux/fs.h).
pub(crate) fn thaw(file: BorrowedFd<'_>) -> io::Result<()> {
    const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;
    // SAFETY: FITHAW takes no argument.
    check(unsafe { libc::ioctl(file.as_raw_fd(), FITHAW, 0) })?;
    Ok(())
}

/// The process group in the foreground of a terminal.
pub(crate) fn foreground(terminal: BorrowedFd<'_>) -> Option<i32> {
    let mut group: libc::pid_t = 0;
    // SAFETY: TIOCGPGRP writes one pid_t.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGPGRP, &mut group) }).ok()?;
    (group > 0).then_some(group)
}

/// Reads and writes on `fd` return at once from now on.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// A descriptor that [`signal_event`] makes readable.
pub(crate) fn event() -> io::Result<File> {
    // SAFETY: no pointers.
    Ok(File::from(owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?))
}

/// One descriptor of [`poll`].
pub(crate) struct Watch {
    pub(crate) fd: RawFd,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Watch {
    /// To be read.
    pub(crate) fn readable(fd: BorrowedFd<'_>) -> Watch {
        Watch { fd: fd.as_raw_fd(), read: true, write: false }
    }
}

/// Waits until something happens on one of `watches`, at most `ms` milliseconds (for ever if negative).
/// Tells for each whether it wants to be read: there are bytes, an end, or an error.
pub(crate) fn poll(watches: &[Watch], ms: c_int) -> io::Result<Vec<bool>> {
    let mut fds: Vec<libc::pollfd> = watches
        .iter()
        .map(|watch| libc::pollfd {
            // poll(2) skips negative descriptors.
            fd: if watch.read || watch.write { watch.fd } else { -1 },
            events: if watch.read { libc::POLLIN } else { 0 } | if watch.write { libc::POLLOUT } else { 0 },
            revents: 0,
        })
        .collect();
    // SAFETY: pointer and length of one vector.
    match check(unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as _, ms) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
        _ => {}
    }
    Ok(fds
        .iter()
        .map(|fd| fd.revents & (libc::POLLIN | libc::POLLHUP | libc::POLLERR | libc::POLLNVAL) != 0)
        .collect())
}

/// Listens on a vsock port, for whoever is the host.
pub(crate) fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let socket = owned(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: `sockaddr_vm` is plain data for which zero is valid.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = libc::AF_VSOCK as _;
    address.svm_port = port;
    address.svm_cid = libc::VMADDR_CID_ANY;
    let length = size_of::<libc::sockaddr_vm>() as libc::socklen_t;
    // SAFETY: pointer and length of one address of the socket's family.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
    // SAFETY: no pointers.
    check(unsafe { libc::listen(socket.as_raw_fd(), 64) })?;
    Ok(socket)
}

/// The next connection; a `File` reads and writes it.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<File> {
    // SAFETY: the peer's address is not wanted.
    let result = unsafe {
        libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
    };
    Ok(File::from(owned(result)?))
}
