//! The seam between a network card and whatever network it is plugged into.
//!
//! A *packet* is `struct virtio_net_hdr` of 12 bytes (virtio 1.3 §5.1.6; `num_buffers` means nothing), then the Ethernet
//! frame: the form in which tap devices take them too. A checksum may be unfinished, a TCP segment larger than the wire's.

use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use viv_arch::virtio::net::HEADER_LEN;

/// Most bytes of a packet: its header, and a frame of 64 KiB with a VLAN tag.
pub const PACKET_MAX: usize = HEADER_LEN + 65535 + 18;
/// What we ask the host for, bytes in flight each way; it may give less.
const BUFFER: usize = 1 << 20;

/// A plug of a network. No call blocks.
pub trait NetPort: Send + Sync {
    /// Sends a packet; false if there is no room for it now. One that the network does not take is lost, as on a wire.
    fn send(&self, packet: &[u8]) -> io::Result<bool>;
    /// Receives a packet into `buffer`, of [`PACKET_MAX`] bytes: its length, or `None` if there is none now.
    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>>;
    /// What to poll: readable when a packet may have come, writable when there may be room.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

/// A port that is a socket to the network's thread or process.
#[derive(Debug)]
pub struct SocketPort(OwnedFd);

impl SocketPort {
    /// Two ports that are plugged into one another.
    pub fn pair() -> io::Result<(SocketPort, SocketPort)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        for end in [&a, &b] {
            set_socket_send_buffer_size(end, BUFFER)?;
            set_socket_recv_buffer_size(end, BUFFER)?;
        }
        Ok((SocketPort(a), SocketPort(b)))
    }
}

impl NetPort for SocketPort {
    fn send(&self, packet: &[u8]) -> io::Result<bool> {
        match send(&self.0, packet, SendFlags::NOSIGNAL) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(&self.0, buffer, RecvFlags::empty()) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((len, _)) => Ok(Some(len)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
