//! One program of the host and its stream.

use super::{PIECE, Stream, StreamEnd, VsockGuest};
use rustix::event::PollFlags;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Longest `CONNECT <port>\n`.
const GREETING_MAX: usize = 32;
/// How long a guest may take to accept a stream, and a program to say what it wants.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Pieces moved in each direction before others have their turn.
const TURN: usize = 16;

/// What the loop does with the client now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing until its socket or its stream wants something.
    Wait,
    /// It has more to do, after the others.
    Again,
    /// It is done, and the guest knows: forget it.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The program has not said which port it wants.
    Greeting,
    /// The guest has not answered.
    Asking(Stream),
    Open(Stream),
}

/// A socket and what waits for it.
pub(super) struct Client {
    socket: UnixStream,
    phase: Phase,
    deadline: Option<Instant>,
    /// From the program, not taken by the guest yet.
    to_guest: Vec<u8>,
    /// From the guest, not taken by the program yet, from `written`.
    to_socket: Vec<u8>,
    written: usize,
    /// The program sends no more.
    socket_finished: bool,
    /// The guest was told so.
    finish_told: bool,
    /// The program is gone: nothing more can be written to it.
    hung_up: bool,
    /// What the guest sends is dropped.
    discarding: bool,
    guest_end: Option<StreamEnd>,
    shut_down: bool,
}

impl Client {
    fn new(socket: UnixStream, phase: Phase, deadline: Option<Instant>) -> Client {
        Client {
            socket,
            phase,
            deadline,
            to_guest: Vec::new(),
            to_socket: Vec::new(),
            written: 0,
            socket_finished: false,
            finish_told: false,
            hung_up: false,
            discarding: false,
            guest_end: None,
            shut_down: false,
        }
    }

    /// A program that just connected.
    pub(super) fn greeting(socket: UnixStream) -> Client {
        Client::new(socket, Phase::Greeting, Some(Instant::now() + ANSWER_TIME))
    }

    /// A program that the guest asked for.
    pub(super) fn open(socket: UnixStream, stream: Stream) -> Client {
        Client::new(socket, Phase::Open(stream), None)
    }

    pub(super) fn socket(&self) -> &UnixStream {
        &self.socket
    }

    pub(super) fn stream(&self) -> Option<Stream> {
        match self.phase {
            Phase::Greeting => None,
            Phase::Asking(stream) | Phase::Open(stream) => Some(stream),
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// What to wait for on the socket; `None` if nothing, not even a hang-up that we know of.
    pub(super) fn interest(&self) -> Option<PollFlags> {
        let mut flags = PollFlags::empty();
        let reads = match self.phase {
            Phase::Greeting => true,
            Phase::Asking(_) => false,
            Phase::Open(_) => self.to_guest.is_empty() && !self.socket_finished,
        };
        flags.set(PollFlags::IN, reads);
        flags.set(PollFlags::OUT, !self.to_socket.is_empty());
        (!self.hung_up || !flags.is_empty()).then_some(flags)
    }

    /// Takes in what poll said about the socket.
    pub(super) fn note(&mut self, flags: PollFlags) {
        self.hung_up |= flags.intersects(PollFlags::HUP | PollFlags::ERR);
    }

    /// The guest accepted the stream.
    pub(super) fn connected(&mut self, host_port: u32) {
        if let Phase::Asking(stream) = self.phase {
            self.phase = Phase::Open(stream);
            self.deadline = None;
            self.to_socket = format!("OK {host_port}\n").into_bytes();
        }
    }

    /// The time to answer is over.
    pub(super) fn give_up(&mut self, guest: &dyn VsockGuest) -> Next {
        if let Some(stream) = self.stream() {
            guest.reset(stream);
        }
        Next::Over
    }

    /// Moves what can be moved.
    pub(super) fn pump(&mut self, guest: &dyn VsockGuest) -> Next {
        match self.phase {
            Phase::Greeting => self.read_greeting(guest),
            // The program went away before the guest answered.
            Phase::Asking(_) if self.hung_up => self.give_up(guest),
            Phase::Asking(_) => Next::Wait,
            Phase::Open(stream) => self.exchange(stream, guest).unwrap_or_else(|_| {
                // The program is gone and did not take everything: the guest should know.
                guest.reset(stream);
                Next::Over
            }),
        }
    }

    /// Reads `CONNECT <port>\n`, and not a byte beyond: those are for the guest.
    fn read_greeting(&mut self, guest: &dyn VsockGuest) -> Next {
        loop {
            let mut byte = [0];
            match self.socket.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break,
                Ok(1) if self.to_guest.len() < GREETING_MAX => self.to_guest.extend(byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return if self.hung_up { Next::Over } else { Next::Wait };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => return Next::Over,
            }
        }
        let line = std::mem::take(&mut self.to_guest);
        let port = std::str::from_utf8(&line)
            .ok()
            .and_then(|line| line.trim_end_matches('\r').strip_prefix("CONNECT "))
            .and_then(|port| port.parse().ok());
        let Some(stream) = port.and_then(|port| guest.connect(port)) else { return Next::Over };
        self.phase = Phase::Asking(stream);
        self.deadline = Some(Instant::now() + ANSWER_TIME);
        Next::Wait
    }

    /// Moves bytes both ways. An error means that the program can take no more.
    fn exchange(&mut self, stream: Stream, guest: &dyn VsockGuest) -> io::Result<Next> {
        let more_out = self.drain_guest(stream, guest)?;
        let more_in = self.drain_socket(stream, guest)?;
        let drained = self.to_socket.is_empty();
        let sent = self.socket_finished && self.to_guest.is_empty();
        match self.guest_end {
            Some(StreamEnd::Closed) if drained => {
                guest.close(stream);
                return Ok(Next::Over);
            }
            Some(StreamEnd::Finished) if drained && !self.shut_down => {
                self.shut_down = true;
                // It fails only if the program is gone, which reading tells.
                let _ = self.socket.shutdown(Shutdown::Write);
            }
            _ => {}
        }
        if sent && (self.shut_down || self.hung_up) {
            // Both directions are done, or nobody is left to receive.
            guest.close(stream);
            return Ok(Next::Over);
        }
        if sent && !self.finish_told {
            self.finish_told = true;
            guest.finish(stream);
        }
        Ok(if more_out || more_in { Next::Again } else { Next::Wait })
    }

    /// Guest to program. True if it stopped only to be fair.
    fn drain_guest(&mut self, stream: Stream, guest: &dyn VsockGuest) -> io::Result<bool> {
        for _ in 0..TURN {
            while let Some(rest) = self.to_socket.get(self.written..).filter(|rest| !rest.is_empty()) {
                match self.socket.write(rest) {
                    Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                    Ok(count) => self.written += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if self.socket_finished && self.to_guest.is_empty() => return Err(error),
                    Err(_) => {
                        // The program is gone, but what it sent before is still for the guest, which
                        // may want to get rid of its own bytes first. That may not take for ever.
                        self.discarding = true;
                        self.hung_up = true;
                        self.deadline = Some(Instant::now() + ANSWER_TIME);
                        self.to_socket.clear();
                        break;
                    }
                }
            }
            self.to_socket.clear();
            self.written = 0;
            match self.guest_end {
                Some(StreamEnd::Closed) => return Ok(false),
                Some(StreamEnd::Finished) => {
                    // It sends no more, but may have closed the other direction since.
                    self.guest_end = guest.receive(stream, 0).1;
                    return Ok(false);
                }
                None => {}
            }
            (self.to_socket, self.guest_end) = guest.receive(stream, PIECE);
            if self.to_socket.is_empty() {
                return Ok(false);
            }
            if self.discarding {
                self.to_socket.clear();
            }
        }
        Ok(true)
    }

    /// Program to guest. True if it stopped only to be fair.
    fn drain_socket(&mut self, stream: Stream, guest: &dyn VsockGuest) -> io::Result<bool> {
        for _ in 0..TURN {
            if self.to_guest.is_empty() {
                if self.socket_finished {
                    return Ok(false);
                }
                let mut piece = vec![0; PIECE];
                match self.socket.read(&mut piece) {
                    Ok(0) => {
                        self.socket_finished = true;
                        return Ok(false);
                    }
                    Ok(count) => {
                        piece.truncate(count);
                        self.to_guest = piece;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(error),
                }
            }
            let taken = guest.send(stream, &self.to_guest).min(self.to_guest.len());
            self.to_guest.drain(..taken);
            if !self.to_guest.is_empty() {
                // The guest's device tells when there is room.
                return Ok(false);
            }
        }
        Ok(true)
    }
}
