//! A network of its own for the program: itself, and nothing else.
#![allow(unsafe_code)]
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;

/// Leaves the host's network for one that has the address of this host itself (127.0.0.1) alone. To be called while the process has
/// one thread. Whether that was possible.
pub(crate) fn enter() -> bool {
    alone().and_then(|()| loopback_up()).is_ok()
}

fn alone() -> io::Result<()> {
    let network = UnshareFlags::NEWNET;
    // SAFETY: this process has one thread, and shares no file table or memory by it.
    if unsafe { unshare_unsafe(network) }.is_ok() {
        return Ok(());
    }
    // Without privileges there is a way by a user namespace, in which we stay who we are.
    let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    // SAFETY: as above.
    unsafe { unshare_unsafe(network | UnshareFlags::NEWUSER) }?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Switches the loopback device on (netdevice(7)).
fn loopback_up() -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all of it is plain numbers and bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads a request of this type, which lives through the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
