//! Sockets: the published ports that a program listens at, and the connections that come there (`sock_*`).
//!
//! A program opens none itself. The host's sockets never block: whoever is to wait does so here, where a change of the gate finds it.
use super::Wasi;
use super::errno::{Errno, Fail};
use super::fd::{Descriptor, Kinds, rights};
use super::file::NONBLOCK;
use super::guest::{Guest, length_of};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno as Os;
use rustix::net::sockopt::set_tcp_nodelay;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, accept_with, recv, send,
    shutdown, socketpair,
};
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;
use viv_process::Waited;

/// Connections at one time. Others wait in the host's queue.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// Most bytes of one receiving, of one that is to be whole, and of one sending.
const RECEIVE_MAX: usize = 256 << 10;
const WHOLE_MAX: usize = 16 << 20;
const SEND_MAX: usize = 256 << 10;
/// `riflags`: leave in place what is read; wait until there is as much as wanted.
const PEEK: u32 = 1;
const WAIT_ALL: u32 = 2;
/// `sdflags`.
const READS: u32 = 1;
const WRITES: u32 = 2;
/// How programs learn which of their descriptors they listen at, and for which of their ports (sd_listen_fds(3)).
const LISTEN_FDS: &str = "LISTEN_FDS";
const LISTEN_NAMES: &str = "LISTEN_FDNAMES";

/// Wakes a program that waits for sockets when its gate changes.
pub(crate) struct News(OwnedFd);

impl News {
    /// Also if it does not wait yet.
    fn wake(&self) {
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes()); // a counter that is full wakes as well
    }

    fn hush(&self) {
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

/// A socket, and what is waited for at it.
pub(crate) struct Watched {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) flags: PollFlags,
}

/// What has come about at each of them.
pub(crate) fn look(watched: &[Watched]) -> Vec<PollFlags> {
    let mut all: Vec<PollFd<'_>> =
        watched.iter().map(|one| PollFd::from_borrowed_fd(one.socket.as_fd(), one.flags)).collect();
    let _ = poll(&mut all, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })); // nothing has come about
    all.iter().map(PollFd::revents).collect()
}

/// Waits until `ready` gives something, which is asked when there is something at one of these sockets, or the program is to look again.
pub(crate) fn wait<T>(
    wasi: &mut Wasi,
    watched: &[Watched],
    deadline: Option<Instant>,
    mut ready: impl FnMut() -> Option<T>,
) -> Result<Waited<T>, Fail> {
    let news = wasi.news()?;
    loop {
        // What comes about from here on is seen below, or ends the waiting.
        news.hush();
        match wasi.gate.wait_or_wanted(Some(Instant::now()), &mut ready)? {
            Waited::Late => {}
            came => return Ok(came),
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Waited::Late);
        }
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        let sockets = watched.iter().map(|one| PollFd::from_borrowed_fd(one.socket.as_fd(), one.flags));
        let own = PollFd::from_borrowed_fd(news.0.as_fd(), PollFlags::IN);
        let mut all: Vec<PollFd<'_>> = std::iter::once(own).chain(sockets).collect();
        match poll(&mut all, timeout.as_ref()) {
            Ok(_) | Err(Os::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Does something with a socket: at once, or as soon as it does not have to wait for that.
fn with<T>(
    wasi: &mut Wasi,
    (socket, flags, nonblocking): (&Arc<OwnedFd>, PollFlags, bool),
    mut act: impl FnMut() -> Result<T, Os>,
) -> Result<T, Fail> {
    let mut once = || match act() {
        Err(Os::AGAIN | Os::INTR | Os::CONNABORTED) => None,
        done => Some(done),
    };
    if nonblocking {
        wasi.pass()?;
        return Ok(once().unwrap_or(Err(Os::AGAIN))?);
    }
    match wait(wasi, &[Watched { socket: socket.clone(), flags }], None, once)? {
        Waited::Ready(done) => Ok(done?),
        Waited::Late | Waited::Wanted => Err(Fail::Wanted),
    }
}

/// A connection that was reset.
pub(crate) fn reset() -> Result<OwnedFd, Os> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    send(&ours, &[0], SendFlags::NOSIGNAL)?; // which nobody has read when it is closed: unix(7)
    drop(theirs);
    Ok(ours)
}

impl Wasi {
    fn news(&mut self) -> Result<Arc<News>, Fail> {
        if let Some(news) = &self.news {
            return Ok(news.clone());
        }
        let news = Arc::new(News(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?));
        let shared = news.clone();
        self.gate.on_news(move || shared.wake());
        self.news = Some(news.clone());
        Ok(news)
    }

    /// The program listens there: at its first descriptors, before its directories.
    pub(crate) fn listen(&mut self, listeners: Vec<(TcpListener, u16)>) {
        if listeners.is_empty() {
            return;
        }
        let names: Vec<String> = listeners.iter().map(|(_, port)| port.to_string()).collect();
        for (name, value) in [(LISTEN_FDS, names.len().to_string()), (LISTEN_NAMES, names.join(":"))] {
            let is_it = |text: &String| text.split_once('=').is_some_and(|(given, _)| given == name);
            if !self.env.iter().any(is_it) {
                self.env.push(format!("{name}={value}"));
            }
        }
        self.table.listen(listeners.into_iter().map(|(listener, _)| Arc::new(listener.into())).collect());
    }
}

/// Takes the next connection.
pub(crate) fn accept(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    flags: u16,
    done: u32,
) -> Result<(), Fail> {
    if flags & !NONBLOCK != 0 {
        return Err(Errno::Invalid.into());
    }
    guest.bytes(done, 4)?;
    let descriptor = wasi.table.get(fd)?;
    let (listener, nonblocking) = match &descriptor.kind {
        Kinds::Listener { socket, nonblocking, .. } => (socket.clone(), *nonblocking),
        Kinds::Connection { .. } => return Err(Errno::Invalid.into()),
        _ => return Err(Errno::NotSocket.into()),
    };
    if descriptor.rights & rights::SOCK_ACCEPT == 0 {
        return Err(Errno::BadFd.into());
    }
    wasi.table.has_room()?;
    let is_full = wasi.table.connections() >= CONNECTIONS_MAX;
    let accepted = match listener.filter(|_| !is_full) {
        Some(listener) => with(wasi, (&listener, PollFlags::IN, nonblocking), || {
            accept_with(&listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        })?,
        None if nonblocking => return Err(Errno::Again.into()),
        // It would wait for itself to close one.
        None if is_full => return Err(Errno::TooManyFiles.into()),
        // Where it goes on from a snapshot, no port leads to it.
        None => match wait(wasi, &[], None, || None::<OwnedFd>)? {
            Waited::Ready(never) => never,
            Waited::Late | Waited::Wanted => return Err(Fail::Wanted),
        },
    };
    let _ = set_tcp_nodelay(&accepted, true); // only slower without; a program cannot say
    let nonblocking = flags & NONBLOCK != 0;
    let connection = Kinds::Connection { socket: Arc::new(accepted), nonblocking };
    let number = wasi.table.insert(Descriptor::new(connection))?;
    Ok(guest.put_u32(done, number)?)
}

/// The connection with this number, if it has this right, and whether it never waits.
fn connection(wasi: &Wasi, fd: u32, right: u64) -> Result<(Arc<OwnedFd>, bool), Errno> {
    match &wasi.table.get(fd)?.kind {
        Kinds::Connection { socket, nonblocking } => {
            wasi.table.with(fd, right)?;
            Ok((socket.clone(), *nonblocking))
        }
        Kinds::Listener { .. } => Err(Errno::NotConnected),
        _ => Err(Errno::NotSocket),
    }
}

/// Receives into these pieces of memory; gives how many bytes.
pub(crate) fn receive(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    pieces: &[(u32, u32)],
    flags: u32,
) -> Result<usize, Fail> {
    if flags & !(PEEK | WAIT_ALL) != 0 {
        return Err(Errno::Invalid.into());
    }
    let (socket, nonblocking) = connection(wasi, fd, rights::FD_READ)?;
    let peek = if flags & PEEK != 0 { RecvFlags::PEEK } else { RecvFlags::empty() };
    let is_whole = flags & WAIT_ALL != 0 && peek.is_empty() && !nonblocking;
    let mut bytes = vec![0; length_of(pieces, if is_whole { WHOLE_MAX } else { RECEIVE_MAX })];
    let mut got = 0;
    loop {
        let room = bytes.get_mut(got..).unwrap_or_default();
        let done = with(wasi, (&socket, PollFlags::IN, nonblocking), || {
            recv(&socket, &mut *room, peek | RecvFlags::DONTWAIT).map(|(count, _)| count)
        });
        match done {
            Ok(count) => {
                got += count;
                if is_whole && count > 0 && got < bytes.len() {
                    continue;
                }
            }
            // What has come is not lost: the rest, or what is wrong, comes with the next call.
            Err(Fail::Errno(_) | Fail::Wanted) if got > 0 => {}
            Err(fail) => return Err(fail),
        }
        break;
    }
    guest.scatter(pieces, bytes.get(..got).unwrap_or_default())?;
    Ok(got)
}

/// Sends these pieces of memory; gives how many bytes were.
pub(crate) fn transmit(
    guest: &Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    pieces: &[(u32, u32)],
) -> Result<usize, Fail> {
    let (socket, nonblocking) = connection(wasi, fd, rights::FD_WRITE)?;
    let bytes = guest.gather(pieces, SEND_MAX)?;
    let mut sent = 0;
    loop {
        let rest = bytes.get(sent..).unwrap_or_default();
        let done = with(wasi, (&socket, PollFlags::OUT, nonblocking), || {
            send(&socket, rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
        });
        match done {
            Ok(count) => sent += count,
            Err(Fail::Errno(_) | Fail::Wanted) if sent > 0 => break,
            Err(fail) => return Err(fail),
        }
        if nonblocking || sent >= bytes.len() {
            break;
        }
    }
    Ok(sent)
}

/// `sock_recv`.
pub(crate) fn sock_recv(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    (list, count): (u32, u32),
    flags: u32,
    (done, out): (u32, u32),
) -> Result<(), Fail> {
    let pieces = guest.pieces(list, count)?;
    guest.bytes(done, 4)?;
    guest.put(out, &[0, 0])?; // nothing is ever cut off
    let got = receive(guest, wasi, fd, &pieces, flags)?;
    Ok(guest.put_u32(done, u32::try_from(got).map_err(|_| Errno::Overflow)?)?)
}

/// `sock_send`.
pub(crate) fn sock_send(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    fd: u32,
    (list, count): (u32, u32),
    flags: u32,
    done: u32,
) -> Result<(), Fail> {
    if flags != 0 {
        return Err(Errno::Invalid.into());
    }
    let pieces = guest.pieces(list, count)?;
    guest.bytes(done, 4)?;
    let sent = transmit(guest, wasi, fd, &pieces)?;
    Ok(guest.put_u32(done, u32::try_from(sent).map_err(|_| Errno::Overflow)?)?)
}

/// `sock_shutdown`.
pub(crate) fn sock_shutdown(wasi: &mut Wasi, fd: u32, how: u32) -> Result<(), Fail> {
    let how = match how {
        READS => Shutdown::Read,
        WRITES => Shutdown::Write,
        both if both == READS | WRITES => Shutdown::Both,
        _ => return Err(Errno::Invalid.into()),
    };
    let (socket, _) = connection(wasi, fd, rights::SOCK_SHUTDOWN)?;
    Ok(shutdown(&socket, how)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reset_says_so_once_and_then_is_at_its_end() {
        let socket = reset().unwrap();
        let mut byte = [0];
        assert_eq!(recv(&socket, &mut byte, RecvFlags::empty()).unwrap_err(), Os::CONNRESET);
        assert_eq!(recv(&socket, &mut byte, RecvFlags::empty()).unwrap().1, 0);
        assert_eq!(send(&socket, &[1], SendFlags::NOSIGNAL), Err(Os::PIPE));
    }
}
