//! The seam between a network card and whatever network it is plugged into.
//!
//! A *packet* is `struct virtio_net_hdr` of 12 bytes (virtio 1.3 §5.1.6; `num_buffers` means nothing), then the Ethernet
//! frame: the form in which tap devices take them too. A checksum may be unfinished, a TCP segment larger than the wire's.
//! A *message* is what a socket carries at once: packets, each behind its length, four bytes little-endian. Small packets
//! cost next to nothing that way, and a large one has a message of its own.

use crate::tap::TapPort;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::net::sockopt::{set_socket_recv_buffer_size, set_socket_send_buffer_size, socket_type};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags, SocketType, recv, sendmsg,
    socketpair,
};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use viv_arch::virtio::net::HEADER_LEN;

/// Most bytes of a packet: its header, and a frame of 64 KiB with a VLAN tag.
pub const PACKET_MAX: usize = HEADER_LEN + 65535 + 18;
/// Bytes of a packet's length.
pub(crate) const LENGTH: usize = 4;
/// Most bytes of a message.
pub(crate) const MESSAGE_MAX: usize = LENGTH + PACKET_MAX;
/// Most packets that are put into one message: each is two of the 1024 parts that a message may have (UIO_MAXIOV).
const TOGETHER_MAX: usize = 256;
/// What we ask the host for, bytes in flight each way; it may give less.
const BUFFER: usize = 1 << 20;

/// A message that was received, packet by packet.
#[derive(Debug, Default)]
pub struct Message {
    bytes: Vec<u8>,
    at: usize,
    end: usize,
}

impl Message {
    /// Room for `len` bytes in place of an earlier message, and how many of them are one by now.
    pub(crate) fn room(&mut self, len: usize) -> (&mut [u8], &mut usize) {
        self.bytes.resize(len, 0);
        (self.at, self.end) = (0, 0);
        (&mut self.bytes, &mut self.end)
    }

    /// The next packet; none if that was the last, or if what follows is none.
    pub fn front(&self) -> Option<&[u8]> {
        let rest = self.bytes.get(self.at..self.end)?;
        let (length, rest) = rest.split_first_chunk::<LENGTH>()?;
        rest.get(..u32::from_le_bytes(*length) as usize)
    }

    /// The same, to be finished by whoever received it.
    pub fn front_mut(&mut self) -> Option<&mut [u8]> {
        let len = self.front()?.len();
        self.bytes.get_mut(self.at + LENGTH..self.at + LENGTH + len)
    }

    /// Goes on to the packet behind it.
    pub fn pop(&mut self) {
        self.at = match self.front() {
            Some(packet) => self.at + LENGTH + packet.len(),
            None => self.end,
        };
    }
}

impl From<Vec<u8>> for Message {
    /// One that came in another way.
    fn from(bytes: Vec<u8>) -> Message {
        Message { at: 0, end: bytes.len(), bytes }
    }
}

/// A plug of a network. No call blocks.
pub trait NetPort: Send + Sync {
    /// Sends packets, the first of them that fit into one message, and says how many; none if there is no room for it now,
    /// more than there were if nobody is there: all are lost then, as on a wire.
    fn send(&self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize>;
    /// Receives a message in place of an earlier one; false if there is none now.
    fn receive(&self, message: &mut Message) -> io::Result<bool>;
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
    /// Sends one packet; false if there is no room for it now.
    pub fn send_one(&self, packet: &[u8]) -> io::Result<bool> {
        Ok(self.send(&mut std::iter::once(packet))? > 0)
    }

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
    fn send(&self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        let (mut sent, mut bytes) = (Vec::new(), 0);
        for packet in packets.take(TOGETHER_MAX) {
            bytes += LENGTH + packet.len();
            if !sent.is_empty() && bytes > MESSAGE_MAX {
                break;
            }
            // At most PACKET_MAX, or it is of no use to whoever receives it.
            sent.push(((packet.len() as u32).to_le_bytes(), packet));
        }
        if sent.is_empty() {
            return Ok(0);
        }
        let parts: Vec<IoSlice<'_>> =
            sent.iter().flat_map(|(length, packet)| [IoSlice::new(length), IoSlice::new(packet)]).collect();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&self.0, &parts, &mut SendAncillaryBuffer::default(), flags) {
            Ok(_) => Ok(sent.len()),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&self, message: &mut Message) -> io::Result<bool> {
        message.bytes.resize(MESSAGE_MAX, 0);
        (message.at, message.end) = (0, 0);
        match recv(&self.0, message.bytes.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((len, _)) => {
                message.end = len;
                Ok(true)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(false),
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

/// What a plug is in: a socket, or a tap device.
#[derive(Debug)]
pub enum Outlet {
    /// To a network's switch.
    Socket(SocketPort),
    /// To the host's kernel.
    Tap(TapPort),
}

impl From<SocketPort> for Outlet {
    fn from(socket: SocketPort) -> Outlet {
        Outlet::Socket(socket)
    }
}

impl From<OwnedFd> for Outlet {
    /// Whichever a descriptor is that another process has opened.
    fn from(descriptor: OwnedFd) -> Outlet {
        match socket_type(&descriptor) {
            Ok(_) => Outlet::Socket(descriptor.into()),
            Err(_) => Outlet::Tap(descriptor.into()),
        }
    }
}

impl Outlet {
    fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Outlet::Socket(socket) => socket.descriptor(),
            Outlet::Tap(tap) => tap.descriptor(),
        }
    }

    fn send(&self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        match self {
            Outlet::Socket(socket) => socket.send(packets),
            Outlet::Tap(tap) => tap.send(packets),
        }
    }

    fn receive(&self, message: &mut Message) -> io::Result<bool> {
        match self {
            Outlet::Socket(socket) => socket.receive(message),
            Outlet::Tap(tap) => tap.receive(message),
        }
    }
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
    outlet: Option<Arc<Outlet>>,
    up: bool,
}

impl Plug {
    /// A plug, in this port if there is one.
    pub fn new(outlet: Option<impl Into<Outlet>>) -> io::Result<Plug> {
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let outlet = outlet.map(|outlet| Arc::new(outlet.into()));
        let state = State { up: outlet.is_some(), outlet };
        Ok(Plug { state: Mutex::new(state), changed })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts it into a port, or into none.
    pub fn set(&self, outlet: Option<impl Into<Outlet>>) {
        let outlet = outlet.map(|outlet| Arc::new(outlet.into()));
        *self.state() = State { up: outlet.is_some(), outlet };
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
    }

    /// Does something with the port; `gone` if there is none, or if it turns out to lead nowhere.
    fn with<T>(&self, gone: T, act: impl FnOnce(&Outlet) -> io::Result<T>) -> T {
        let Some(outlet) = self.state().outlet.clone() else { return gone };
        act(&outlet).unwrap_or_else(|_| {
            let mut state = self.state();
            if state.outlet.as_ref().is_some_and(|now| Arc::ptr_eq(now, &outlet)) {
                state.outlet = None;
            }
            gone
        })
    }
}

impl NetPort for Plug {
    fn send(&self, packets: &mut dyn Iterator<Item = &[u8]>) -> io::Result<usize> {
        Ok(self.with(usize::MAX, |outlet| outlet.send(packets)))
    }

    fn receive(&self, message: &mut Message) -> io::Result<bool> {
        Ok(self.with(false, |outlet| outlet.receive(message)))
    }

    fn wait(&self, also: BorrowedFd<'_>, readable: bool, writable: bool) {
        let outlet = self.state().outlet.clone();
        let also = [also, self.changed.as_fd()];
        match outlet {
            Some(outlet) => wait(&also, outlet.descriptor(), readable, writable),
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
    use proptest::prelude::*;

    fn send(port: &impl NetPort, packets: &[&[u8]]) -> usize {
        port.send(&mut packets.iter().copied()).unwrap()
    }

    /// All packets that are there.
    fn received(port: &impl NetPort) -> Vec<Vec<u8>> {
        let (mut message, mut packets) = (Message::default(), Vec::new());
        while port.receive(&mut message).unwrap() {
            while let Some(packet) = message.front() {
                packets.push(packet.to_vec());
                message.pop();
            }
        }
        packets
    }

    #[test]
    fn a_plug_outlives_its_network_and_goes_into_another() {
        let (ours, theirs) = SocketPort::pair().unwrap();
        let plug = Plug::new(Some(ours)).unwrap();
        assert!(theirs.send_one(b"one").unwrap());
        assert_eq!(received(&plug), [b"one"]);
        drop(theirs);
        assert!(received(&plug).is_empty());
        assert!(send(&plug, &[b"lost", b"lost"]) >= 2 && plug.is_up());
        let (ours, theirs) = SocketPort::pair().unwrap();
        plug.set(Some(ours));
        assert_eq!(send(&plug, &[b"two"]), 1);
        assert_eq!(received(&theirs), [b"two"]);
        // What changed wakes whoever waits, once.
        let (never, _other) = SocketPort::pair().unwrap();
        plug.wait(never.descriptor(), true, false);
        plug.set(None::<SocketPort>);
        plug.wait(never.descriptor(), true, false);
        assert!(!plug.is_up() && send(&plug, &[b"lost"]) >= 1);
    }

    #[test]
    fn packets_go_together_as_far_as_they_fit() {
        let (ours, theirs) = SocketPort::pair().unwrap();
        let largest = vec![7; PACKET_MAX];
        let packets: Vec<&[u8]> = vec![&largest, b"a", b"", b"bc", &largest];
        let (mut sent, mut got) = (0, Vec::new());
        while sent < packets.len() {
            sent += send(&ours, &packets[sent..]);
            got.extend(received(&theirs));
        }
        assert_eq!(got, packets);
        let many = vec![&b"x"[..]; TOGETHER_MAX + 1];
        assert_eq!(send(&ours, &many), TOGETHER_MAX);
        assert_eq!(received(&theirs).len(), TOGETHER_MAX);
    }

    proptest! {
        #[test]
        fn any_message_is_taken(bytes in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), any::<u8>()], 1..100)) {
            let (ours, theirs) = SocketPort::pair().unwrap();
            rustix::net::send(ours.descriptor(), &bytes, SendFlags::empty()).unwrap();
            let len: usize = received(&theirs).iter().map(|packet| LENGTH + packet.len()).sum();
            assert!(len <= bytes.len());
        }
    }
}
