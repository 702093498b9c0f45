//! The namespace of a component, and the card in it (network_namespaces(7), netdevice(7)).
#![allow(unsafe_code)]

use super::RESOLV_CONF;
use super::lease::Lease;
use rustix::net::{AddressFamily, SocketType, socket};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use viv_model::NicSpec;

/// The largest packet that our networks carry, bytes.
const MTU: u16 = 65520;
/// What the name server is written down in, in the VM's directory.
const NAME_SERVER: &str = "resolv.conf";

/// Leaves the host's network and its view of the file system. To be called while the process has one thread.
pub(super) fn namespace() -> io::Result<()> {
    let own = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
    // SAFETY: this process has one thread, and shares no file table or memory by it.
    if unsafe { unshare_unsafe(own) }.is_err() {
        // Without privileges there is a way by a user namespace, in which we stay who we are.
        let (user, group) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        // SAFETY: as above.
        unsafe { unshare_unsafe(own | UnshareFlags::NEWUSER) }?;
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    }
    // What is mounted from here on is seen by nobody else.
    mount(None, c"/", libc::MS_PRIVATE | libc::MS_REC)
}

/// Gives the device the card's address and its lease, and switches it and the loopback device on.
pub(super) fn configure(device: &str, nic: &NicSpec, lease: &Lease) -> io::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    up(&socket, "lo")?;
    // In a network of its own every port is its own (ip-sysctl, of this namespace); where that cannot be said, it has those from 1024 on.
    let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
    let mut request = request(device);
    let mut card: libc::sockaddr = address(Ipv4Addr::UNSPECIFIED);
    card.sa_family = libc::ARPHRD_ETHER;
    for (place, byte) in card.sa_data.iter_mut().zip(nic.mac) {
        *place = byte.cast_signed();
    }
    request.ifr_ifru.ifru_hwaddr = card;
    told(&socket, libc::SIOCSIFHWADDR, &mut request)?;
    request.ifr_ifru.ifru_mtu = nic.mtu.unwrap_or(MTU).into();
    told(&socket, libc::SIOCSIFMTU, &mut request)?;
    request.ifr_ifru.ifru_addr = address(lease.address);
    told(&socket, libc::SIOCSIFADDR, &mut request)?;
    request.ifr_ifru.ifru_netmask = address(lease.mask);
    told(&socket, libc::SIOCSIFNETMASK, &mut request)?;
    up(&socket, device)?;
    if let Some(router) = lease.router {
        // SAFETY: all of it is plain numbers, null pointers among them, for which zero is a value.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        (route.rt_dst, route.rt_genmask) = (address(Ipv4Addr::UNSPECIFIED), address(Ipv4Addr::UNSPECIFIED));
        (route.rt_gateway, route.rt_flags) = (address(router), libc::RTF_UP | libc::RTF_GATEWAY);
        // SAFETY: the kernel reads a route of this type, which lives through the call; the pointer in it is null.
        match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCADDRT, &raw const route) } {
            0 => {}
            _ => return Err(io::Error::last_os_error()),
        }
    }
    let text = lease.name_server.map_or_else(String::new, |server| format!("nameserver {server}\n"));
    fs::write(NAME_SERVER, text)?;
    let place = CString::new(RESOLV_CONF)?;
    match mount(Some(c"resolv.conf"), &place, libc::MS_BIND) {
        // A host without the file asks itself, which is nobody in here.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// mount(2), of what is there already.
fn mount(source: Option<&CStr>, target: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let source = source.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the kernel reads texts that live through the call; without a type and data, null stands for none.
    match unsafe { libc::mount(source, target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn request(device: &str) -> libc::ifreq {
    // SAFETY: all of it is plain numbers and bytes, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *place = byte.cast_signed();
    }
    request
}

/// `sockaddr_in` of this address (ip(7)).
fn address(address: Ipv4Addr) -> libc::sockaddr {
    let mut bytes = [0; 14];
    for (place, byte) in bytes.iter_mut().skip(2).zip(address.octets()) {
        *place = byte.cast_signed();
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: bytes }
}

fn up(socket: &OwnedFd, device: &str) -> io::Result<()> {
    let mut request = request(device);
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    told(socket, libc::SIOCSIFFLAGS, &mut request)
}

fn told(socket: &OwnedFd, what: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: each of these requests reads or writes a `struct ifreq`, which lives through the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), what, std::ptr::from_mut(request)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
