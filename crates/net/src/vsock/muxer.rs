//! The loop: which socket or which stream wants something?

use super::client::{Client, Next};
use super::{GuestEvent, Stream, VsockGuest, Waker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Most programs of the host at a time.
const CLIENTS_MAX: usize = 1024;
/// How long after a failed accept (no file descriptors left) the listener is left alone.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listens on `path`. A socket that a dead process left there is replaced; anything else is not.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match UnixStream::connect(path) {
                Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                }
                _ => return Err(error),
            }
            UnixListener::bind(path)?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

pub(super) struct Muxer {
    path: PathBuf,
    listener: UnixListener,
    guest: Arc<dyn VsockGuest>,
    waker: Waker,
    stop: Arc<AtomicBool>,
    clients: BTreeMap<u64, Client>,
    next_client: u64,
    by_stream: BTreeMap<Stream, u64>,
    /// Clients that stopped only to let others have their turn.
    again: Vec<u64>,
    accept_after: Option<Instant>,
}

impl Muxer {
    pub(super) fn new(
        path: PathBuf,
        listener: UnixListener,
        guest: Arc<dyn VsockGuest>,
        waker: Waker,
        stop: Arc<AtomicBool>,
    ) -> Muxer {
        Muxer {
            path,
            listener,
            guest,
            waker,
            stop,
            clients: BTreeMap::new(),
            next_client: 0,
            by_stream: BTreeMap::new(),
            again: Vec::new(),
            accept_after: None,
        }
    }

    pub(super) fn run(mut self) {
        while !self.stop.load(Ordering::Acquire) {
            // Our own calls make events too, for which nobody wakes us: so take them before we wait.
            let events = self.guest.events();
            let idle = events.is_empty();
            for event in events {
                self.guest_event(event);
            }
            let (woken, knocking, ready) = self.wait(idle);
            if woken {
                self.waker.clear();
            }
            for (client, flags) in ready {
                self.with_client(client, |this, guest| {
                    this.note(flags);
                    this.pump(guest)
                });
            }
            for client in std::mem::take(&mut self.again) {
                self.with_client(client, |this, guest| this.pump(guest));
            }
            if knocking {
                self.accept();
            }
            self.expire();
        }
        for (stream, _) in std::mem::take(&mut self.by_stream) {
            self.guest.reset(stream);
        }
    }

    /// Waits for sockets, for the waker or for the next time limit.
    fn wait(&mut self, idle: bool) -> (bool, bool, Vec<(u64, PollFlags)>) {
        let now = Instant::now();
        let may_accept =
            self.clients.len() < CLIENTS_MAX && self.accept_after.is_none_or(|after| after <= now);
        let mut names = Vec::new();
        let mut fds = vec![PollFd::from_borrowed_fd(self.waker.fd(), PollFlags::IN)];
        let listening = if may_accept { PollFlags::IN } else { PollFlags::empty() };
        fds.push(PollFd::new(&self.listener, listening));
        for (&name, client) in &self.clients {
            if let Some(flags) = client.interest() {
                names.push(name);
                fds.push(PollFd::new(client.socket(), flags));
            }
        }
        let limits = self.clients.values().filter_map(Client::deadline).chain(self.accept_after);
        let timeout = if idle && self.again.is_empty() {
            limits.min().map(|limit| limit.saturating_duration_since(now))
        } else {
            Some(Duration::ZERO)
        };
        let timeout = timeout.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        if poll(&mut fds, timeout.as_ref()).is_err() {
            // Interrupted: look again.
            return (false, false, Vec::new());
        }
        let mut flags = fds.iter().map(PollFd::revents);
        let woken = flags.next().is_some_and(|flags| !flags.is_empty());
        let knocking = flags.next().is_some_and(|flags| !flags.is_empty());
        (woken, knocking, names.into_iter().zip(flags).filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn accept(&mut self) {
        self.accept_after = None;
        while self.clients.len() < CLIENTS_MAX {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    if socket.set_nonblocking(true).is_ok() {
                        self.add(Client::greeting(socket));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn add(&mut self, client: Client) -> u64 {
        let name = self.next_client;
        self.next_client += 1;
        self.clients.insert(name, client);
        name
    }

    fn guest_event(&mut self, event: GuestEvent) {
        match event {
            GuestEvent::Incoming { stream, port } => self.incoming(stream, port),
            GuestEvent::Connected { stream, host_port } => self.with_stream(stream, |client, guest| {
                client.connected(host_port);
                client.pump(guest)
            }),
            GuestEvent::Refused(stream) => {
                // The stream is void already: nothing to tell the guest.
                if let Some(name) = self.by_stream.remove(&stream) {
                    self.clients.remove(&name);
                }
            }
            GuestEvent::Readable(stream) | GuestEvent::Writable(stream) => {
                self.with_stream(stream, |client, guest| client.pump(guest));
            }
        }
    }

    /// The guest wants the program that listens on `<path>_<port>`.
    fn incoming(&mut self, stream: Stream, port: u32) {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let full = self.clients.len() >= CLIENTS_MAX;
        match connect_to(Path::new(&path)) {
            Ok(socket) if !full => {
                self.guest.accept(stream);
                let name = self.add(Client::open(socket, stream));
                self.by_stream.insert(stream, name);
                self.with_client(name, |client, guest| client.pump(guest));
            }
            _ => self.guest.reset(stream),
        }
    }

    fn with_stream(&mut self, stream: Stream, act: impl FnOnce(&mut Client, &dyn VsockGuest) -> Next) {
        match self.by_stream.get(&stream) {
            Some(&name) => self.with_client(name, act),
            // A stream that we gave up in the meantime.
            None => self.guest.reset(stream),
        }
    }

    fn with_client(&mut self, name: u64, act: impl FnOnce(&mut Client, &dyn VsockGuest) -> Next) {
        let Some(client) = self.clients.get_mut(&name) else { return };
        let next = act(client, self.guest.as_ref());
        if let Some(stream) = client.stream() {
            self.by_stream.insert(stream, name);
        }
        match next {
            Next::Wait => {}
            Next::Again => self.again.push(name),
            Next::Over => {
                if let Some(stream) = self.clients.remove(&name).and_then(|client| client.stream()) {
                    self.by_stream.remove(&stream);
                }
            }
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let late = |client: &Client| client.deadline().is_some_and(|deadline| deadline <= now);
        let names: Vec<u64> =
            self.clients.iter().filter(|(_, client)| late(client)).map(|(&name, _)| name).collect();
        for name in names {
            self.with_client(name, |client, guest| client.give_up(guest));
        }
    }
}

/// Connects without waiting: a listener whose backlog is full refuses.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}
