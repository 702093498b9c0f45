//! A tap device of the host's kernel as a port (Documentation/networking/tuntap.rst). Its packets have the form that cards
//! have them in.
//!
//! The kernel finishes no checksum and takes large segments from the guest; it makes none itself, for not every guest takes
//! them.
#![allow(unsafe_code)]

use crate::port::{LENGTH, MESSAGE_MAX, Message, PACKET_MAX};
use rustix::io::Errno;
use rustix::ioctl::{Setter, ioctl, opcode};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use viv_arch::virtio::net::HEADER_LEN;

/// Most bytes of an interface's name (`IFNAMSIZ`, with its zero).
const NAME_MAX: usize = 16;
/// `TUNSETIFF`, `TUNSETVNETHDRSZ` and `TUNSETOFFLOAD` (linux/if_tun.h): each writes an `int`, so they say.
const SET_INTERFACE: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
const SET_HEADER: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 216);
const SET_OFFLOAD: rustix::ioctl::Opcode = opcode::write::<u32>(b'T', 208);
/// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;
/// `TUN_F_CSUM`.
const OFFLOAD_CHECKSUMS: usize = 1;

/// `struct ifreq` (netdevice(7)), as far as it is read here.
#[repr(C)]
struct Request {
    name: [u8; NAME_MAX],
    flags: u16,
    rest: [u8; 22],
}

/// Opens the tap device called `name`, or makes it: then it goes with the descriptor.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let mut request = Request { name: [0; NAME_MAX], flags: FLAGS, rest: [0; 22] };
    let bytes = name.as_bytes();
    // With a zero behind it; the kernel would make up one if it had none.
    match request.name.get_mut(..bytes.len()) {
        Some(place) if (1..NAME_MAX).contains(&bytes.len()) => place.copy_from_slice(bytes),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    }
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let tap = OpenOptions::new().read(true).write(true).custom_flags(nonblocking).open("/dev/net/tun")?;
    let header = HEADER_LEN as i32;
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, 40 bytes of plain data, which `Request` is.
    unsafe { ioctl(&tap, Update::new(&mut request)) }?;
    // SAFETY: TUNSETVNETHDRSZ reads an `int` that its argument points to.
    unsafe { ioctl(&tap, Setter::<SET_HEADER, i32>::new(header)) }?;
    // SAFETY: TUNSETOFFLOAD's argument is the flags themselves; it follows no pointer.
    unsafe { ioctl(&tap, rustix::ioctl::IntegerSetter::<SET_OFFLOAD>::new_usize(OFFLOAD_CHECKSUMS)) }?;
    Ok(tap.into())
}

type Update<'a> = rustix::ioctl::Updater<'a, SET_INTERFACE, Request>;

/// A tap device that is open.
#[derive(Debug)]
pub struct TapPort(OwnedFd);

impl From<OwnedFd> for TapPort {
    fn from(tap: OwnedFd) -> TapPort {
        TapPort(tap)
    }
}

impl TapPort {
    /// What to poll.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// As [`crate::port::NetPort::send`].
    pub(crate) fn send(&self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        let mut sent = 0;
        for packet in packets {
            match rustix::io::write(&self.0, packet) {
                Err(Errno::AGAIN | Errno::NOBUFS) => break,
                // The device is gone.
                Err(error @ (Errno::BADFD | Errno::BADF)) => return Err(error.into()),
                // What is no packet to the kernel is lost, as what comes while the interface is down.
                Ok(_) | Err(_) => sent += 1,
            }
        }
        Ok(sent)
    }

    /// As [`crate::port::NetPort::receive`]: several packets as one message.
    pub(crate) fn receive(&self, message: &mut Message) -> io::Result<bool> {
        let (bytes, end) = message.room(2 * MESSAGE_MAX);
        while let Some([l0, l1, l2, l3, rest @ ..]) = bytes.get_mut(*end..)
            && let Some(room) = rest.get_mut(..PACKET_MAX)
        {
            match rustix::io::read(&self.0, room) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => {
                    // At most PACKET_MAX.
                    [*l0, *l1, *l2, *l3] = (len as u32).to_le_bytes();
                    *end += LENGTH + len;
                }
                Err(error @ (Errno::BADFD | Errno::BADF)) => return Err(error.into()),
                Err(_) => break,
            }
        }
        Ok(*end > 0)
    }
}
