//! The seam between a network card and whatever network it is plugged into.
//!
//! A *packet* is `struct virtio_net_hdr` of 12 bytes (virtio 1.3 §5.1.6; `num_buffers` means nothing), then the Ethernet
//! frame: the form in which tap devices take them too. A checksum may be unfinished, a TCP segment larger than the wire's.

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    /// Returns when `also` is readable; if it is `readable` that is wanted, when a packet may have come; if it is
    /// `writable`, when there may be room; or when the plug was pulled or plugged in.
    fn wait(&self, also: BorrowedFd<'_>, readable: bool, writable: bool);
    /// Whether it leads anywhere, as far as the guest is to know.
    fn is_up(&self) -> bool {
        true
    }
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

impl SocketPort {
    /// What to poll: readable when a packet may have come, writable when there may be room.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for SocketPort {
    /// One end of a pair that was made elsewhere.
    fn from(socket: OwnedFd) -> SocketPort {
        SocketPort(socket)
    }
}

impl NetPort for SocketPort {
    fn send(&self, packet: &[u8]) -> io::Result<bool> {
        match send(&self.0, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
            Ok(_) => Ok(true),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match recv(&self.0, buffer, RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((len, _)) => Ok(Some(len)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn wait(&self, also: BorrowedFd<'_>, readable: bool, writable: bool) {
        wait(&[also], self.descriptor(), readable, writable);
    }
}

fn wait(also: &[BorrowedFd<'_>], socket: BorrowedFd<'_>, readable: bool, writable: bool) {
    let mut wanted = PollFlags::empty();
    wanted.set(PollFlags::IN, readable);
    wanted.set(PollFlags::OUT, writable);
    let mut fds: Vec<PollFd<'_>> =
        also.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    if !wanted.is_empty() {
        fds.push(PollFd::from_borrowed_fd(socket, wanted));
    }
    // Interrupted: look again.
    let _ = poll(&mut fds, None);
}

/// A port whose network may go and another one come, as a plug is pulled and put into another socket. A network that has
/// gone by itself takes what is sent to it, and it is lost: the guest sees that its cable is still plugged in.
#[derive(Debug)]
pub struct Plug {
    state: Mutex<State>,
    changed: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    socket: Option<Arc<SocketPort>>,
    up: bool,
}

impl Plug {
    /// A plug, in this port if there is one.
    pub fn new(socket: Option<SocketPort>) -> io::Result<Plug> {
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let state = State { up: socket.is_some(), socket: socket.map(Arc::new) };
        Ok(Plug { state: Mutex::new(state), changed })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts it into a port, or into none.
    pub fn set(&self, socket: Option<SocketPort>) {
        *self.state() = State { up: socket.is_some(), socket: socket.map(Arc::new) };
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
    }

    /// Does something with the port; `gone` if there is none, or if it turns out to lead nowhere.
    fn with<T>(&self, gone: T, act: impl FnOnce(&SocketPort) -> io::Result<T>) -> T {
        let Some(socket) = self.state().socket.clone() else { return gone };
        act(&socket).unwrap_or_else(|_| {
            let mut state = self.state();
            if state.socket.as_ref().is_some_and(|now| Arc::ptr_eq(now, &socket)) {
                state.socket = None;
            }
            gone
        })
    }
}

impl NetPort for Plug {
    fn send(&self, packet: &[u8]) -> io::Result<bool> {
        Ok(self.with(true, |socket| socket.send(packet)))
    }

    fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        Ok(self.with(None, |socket| socket.receive(buffer)))
    }

    fn wait(&self, also: BorrowedFd<'_>, readable: bool, writable: bool) {
        let socket = self.state().socket.clone();
        let also = [also, self.changed.as_fd()];
        match socket {
            Some(socket) => wait(&also, socket.descriptor(), readable, writable),
            None => wait(&also, also[0], false, false),
        }
        let _ = rustix::io::read(&self.changed, &mut [0; 8]);
    }

    fn is_up(&self) -> bool {
        self.state().up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plug_outlives_its_network_and_goes_into_another() {
        let (ours, theirs) = SocketPort::pair().unwrap();
        let plug = Plug::new(Some(ours)).unwrap();
        let mut buffer = vec![0; PACKET_MAX];
        assert!(theirs.send(b"one").unwrap());
        assert_eq!(plug.receive(&mut buffer).unwrap(), Some(3));
        drop(theirs);
        assert_eq!(plug.receive(&mut buffer).unwrap(), None);
        assert!(plug.send(b"lost").unwrap() && plug.is_up());
        let (ours, theirs) = SocketPort::pair().unwrap();
        plug.set(Some(ours));
        assert!(plug.send(b"two").unwrap());
        assert_eq!(theirs.receive(&mut buffer).unwrap(), Some(3));
        // What changed wakes whoever waits, once.
        let (never, _other) = SocketPort::pair().unwrap();
        plug.wait(never.descriptor(), true, false);
        plug.set(None);
        plug.wait(never.descriptor(), true, false);
        assert!(!plug.is_up() && plug.send(b"lost").unwrap());
    }
}
