//! The host's side of a guest's vsock: Unix sockets, in Firecracker's convention.
//!
//! - Host to guest: a program connects to the VM's socket, sends `CONNECT <port>\n`, gets
//!   `OK <host port>\n` (or the end of file when the guest refuses), then plain bytes both ways.
//! - Guest to host: a stream to CID 2, port P becomes a connection to the socket `<path>_<P>`; if nobody
//!   listens there, the guest is refused.
//!
//! One thread polls all sockets. It talks to the guest's device through [`VsockGuest`], whose calls never
//! block, and is woken with a [`Waker`] when the device has [`GuestEvent`]s. A slow reader on either side
//! stops its own stream only: bytes wait in its socket, in one buffer of [`PIECE`] bytes here, and in the
//! device's bounded buffers. Half-close passes both ways: `shutdown` for writing becomes SHUTDOWN(SEND) and
//! back; a program that goes away while the guest still sends makes the stream reset.

mod client;
mod muxer;

use rustix::event::{EventfdFlags, eventfd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Bytes that are moved at once, and the most that wait in the muxer for each direction of a stream.
pub const PIECE: usize = 64 << 10;

/// A stream between host and guest, as the guest's device names it. Never used twice.
pub type Stream = u64;

/// What happened on the guest's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest wants a stream to this port of the host: it will be accepted or reset.
    Incoming {
        /// The new stream.
        stream: Stream,
        /// The host's port.
        port: u32,
    },
    /// The guest accepted a stream that [`VsockGuest::connect`] asked for.
    Connected {
        /// The stream.
        stream: Stream,
        /// The port on the host's side.
        host_port: u32,
    },
    /// The guest refused it; the stream is void.
    Refused(Stream),
    /// Bytes or an end wait.
    Readable(Stream),
    /// There is room again after a short send.
    Writable(Stream),
}

/// Why nothing more comes from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// It sends no more, but still receives.
    Finished,
    /// It closed the stream, dropped it, or is gone.
    Closed,
}

/// The guest's vsock device as the muxer needs it. Calls never block; unknown streams are harmless.
pub trait VsockGuest: Send + Sync {
    /// Asks for a stream to a port of the guest. `None` if it has no driver, or too many streams.
    fn connect(&self, port: u32) -> Option<Stream>;
    /// Accepts an incoming stream.
    fn accept(&self, stream: Stream);
    /// Sends; returns how many bytes were taken. After a short count, [`GuestEvent::Writable`] comes.
    fn send(&self, stream: Stream, bytes: &[u8]) -> usize;
    /// Takes up to `max` bytes; with an end, nothing comes after them.
    fn receive(&self, stream: Stream, max: usize) -> (Vec<u8>, Option<StreamEnd>);
    /// The host sends no more.
    fn finish(&self, stream: Stream);
    /// The host is done; what was sent still arrives. The stream is void.
    fn close(&self, stream: Stream);
    /// The host drops or refuses the stream. It is void.
    fn reset(&self, stream: Stream);
    /// Goes on with work that waited, and takes the events since the last call. If work waits still, it
    /// wakes the muxer.
    fn events(&self) -> Vec<GuestEvent>;
}

/// Wakes the muxer, from any thread: call it when the device has something for the host.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A waker for one muxer.
    pub fn new() -> io::Result<Waker> {
        Ok(Waker(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    /// Wakes the muxer soon; never blocks.
    pub fn wake(&self) {
        // It fails only if the counter is full: then the muxer is awake already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// What to poll: readable once woken.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Awake: to be done before looking at what there is to do.
    pub fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

/// Why a VM's vsock socket could not be served.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The socket could not be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The thread could not be started.
    #[error("cannot start the vsock thread")]
    Thread {
        /// The system's answer.
        source: io::Error,
    },
}

/// The running muxer. Dropping it ends its thread, its streams and its socket.
#[derive(Debug)]
pub struct VsockMuxer {
    waker: Waker,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl VsockMuxer {
    /// Listens on `path` and serves `guest`, which wakes it with `waker`.
    pub fn start(path: &Path, guest: Arc<dyn VsockGuest>, waker: Waker) -> Result<VsockMuxer, VsockError> {
        let listener =
            muxer::listen(path).map_err(|source| VsockError::Listen { path: path.to_owned(), source })?;
        let stop = Arc::new(AtomicBool::new(false));
        let muxer = muxer::Muxer::new(path.to_owned(), listener, guest, waker.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("vsock".into())
            .spawn(move || muxer.run())
            .map_err(|source| VsockError::Thread { source })?;
        Ok(VsockMuxer { waker, stop, thread: Some(thread), path: path.to_owned() })
    }
}

impl Drop for VsockMuxer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the panic hook; there is nothing to add.
            let _ = thread.join();
        }
        // It may be gone with its directory.
        let _ = std::fs::remove_file(&self.path);
    }
}
