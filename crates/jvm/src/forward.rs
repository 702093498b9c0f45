//! Published ports: connections to a port of the host go on to the program, in the network that it has for itself.
//!
//! This process has left the host's network before it was confined; the listeners stayed there, and what it connects
//! from now on is in the program's.
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Connections at one time, of all ports together. Others wait in the host's queue.
pub(crate) const CONNECTIONS_MAX: usize = 256;
/// Bytes of a connection that are on their way, each way.
const PIECE: usize = 16 << 10;
/// The stack of a thread.
const STACK: usize = 128 << 10;
/// The pause after the system has no descriptor for a client.
const AGAIN: Duration = Duration::from_millis(50);

/// How many connections may still come.
struct Room {
    left: Mutex<usize>,
    more: Condvar,
}

/// One of them.
struct Place(Arc<Room>);

impl Room {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Room>) -> Place {
        let mut left = self.lock();
        while *left == 0 {
            left = self.more.wait(left).unwrap_or_else(PoisonError::into_inner);
        }
        *left -= 1;
        Place(self.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.lock() += 1;
        self.0.more.notify_one();
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name("port".into()).stack_size(STACK).spawn(work)
}

/// Lets connections in, at most so many at one time, for as long as the process lives. Each listener leads to a port of the
/// program.
pub(crate) fn start(listeners: Vec<(TcpListener, u16)>, connections_max: usize) -> io::Result<()> {
    let room = Arc::new(Room { left: Mutex::new(connections_max), more: Condvar::new() });
    for (listener, port) in listeners {
        listener.set_nonblocking(false)?;
        let room = room.clone();
        spawn(move || accept(&listener, port, &room))?;
    }
    Ok(())
}

fn accept(listener: &TcpListener, port: u16, room: &Arc<Room>) {
    loop {
        let place = room.take();
        match listener.accept() {
            // Without a thread for it the client is sent away.
            Ok((outside, _)) => drop(spawn(move || {
                drop(carry(outside, port)); // whichever side broke off
                drop(place);
            })),
            Err(_) => thread::sleep(AGAIN),
        }
    }
}

/// One connection. A program that does not listen sends the client away.
fn carry(outside: TcpStream, port: u16) -> io::Result<()> {
    let inside = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .or_else(|_| TcpStream::connect((Ipv6Addr::LOCALHOST, port)))?;
    inside.set_nodelay(true)?;
    outside.set_nodelay(true)?;
    let (from, to) = (outside.try_clone()?, inside.try_clone()?);
    let upwards = spawn(move || pass(&from, &to))?;
    pass(&inside, &outside);
    drop(upwards.join());
    Ok(())
}

/// What the one side says, to the other. Its end is told, and a break breaks both.
fn pass(mut from: &TcpStream, mut to: &TcpStream) {
    let mut piece = vec![0; PIECE];
    loop {
        let done = match from.read(&mut piece) {
            Ok(0) => return drop(to.shutdown(Shutdown::Write)),
            Ok(count) => to.write_all(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        };
        if done.is_err() {
            let _ = from.shutdown(Shutdown::Both);
            let _ = to.shutdown(Shutdown::Both);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener that leads to a program which sends everything back; where it is.
    fn echo(connections_max: usize) -> std::net::SocketAddr {
        let any = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (program, outside) = (any(), any());
        let (port, at) = (program.local_addr().unwrap().port(), outside.local_addr().unwrap());
        thread::spawn(move || {
            for stream in program.incoming().flatten() {
                thread::spawn(move || io::copy(&mut &stream, &mut &stream));
            }
        });
        start(vec![(outside, port)], connections_max).unwrap();
        at
    }

    #[test]
    fn bytes_go_both_ways_and_an_end_is_told() {
        let mut client = TcpStream::connect(echo(9)).unwrap();
        let sent: Vec<u8> = (0..2_000_000_u32).map(|number| (number * 7 >> 3) as u8).collect();
        let (mut sender, bytes) = (client.try_clone().unwrap(), sent.clone());
        let sender = thread::spawn(move || {
            sender.write_all(&bytes).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        client.read_to_end(&mut back).unwrap();
        sender.join().unwrap();
        assert!(back == sent, "{} bytes", back.len());
    }

    #[test]
    fn who_is_too_many_waits_for_a_place() {
        let at = echo(1);
        let first = TcpStream::connect(at).unwrap();
        (&first).write_all(b"a").unwrap();
        (&first).read_exact(&mut [0]).unwrap();
        let mut second = TcpStream::connect(at).unwrap();
        second.write_all(b"b").unwrap();
        second.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        second.read(&mut [0]).unwrap_err();
        drop(first);
        second.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        second.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn a_program_that_does_not_listen_sends_clients_away() {
        let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let outside = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = outside.local_addr().unwrap();
        start(vec![(outside, nobody)], 1).unwrap();
        for _ in 0..3 {
            let mut client = TcpStream::connect(at).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            assert!(matches!(client.read(&mut [0]), Ok(0) | Err(_)));
        }
    }
}
