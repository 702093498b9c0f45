//! A TCP connection that ends here and goes on as one of the host's: the guest's peer on one side, a socket on the other.
//!
//! The link to the guest loses nothing, since whoever has no room waits, so that this side of TCP (RFC 9293) can be
//! simple: segments out of order are not kept, and what is lost all the same is sent again from the first lost byte on.
//! Each byte counts as arrived when the guest (or the host's kernel) has it: windows close when the other side is slow.

use super::address::{Flow, Gateway, MTU};
use super::frame::{self, Reason};
use super::pipe::Pipe;
use super::queue::Queue;
use smoltcp::wire::{EthernetAddress, IpProtocol, TcpControl, TcpRepr, TcpSeqNumber};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Bytes that wait for the host, and the window that the guest gets.
const RECEIVE_MAX: usize = 512 << 10;
/// Bytes on the way to the guest.
const SEND_MAX: usize = 512 << 10;
/// Bytes that are read from a socket at once.
pub(super) const PIECE: usize = 64 << 10;
/// Our segments fill a packet, of either version.
const SEGMENT_MAX: u16 = MTU - 60;
/// What a peer takes that says nothing (RFC 9293 §3.7.1).
const SEGMENT_DEFAULT: u16 = 536;
/// Our window is in units of 2^7 bytes (RFC 7323 §2.2).
const SCALE: u8 = 7;
/// The largest scale that counts (RFC 7323 §2.3).
const SCALE_MAX: u8 = 14;
/// How long an acknowledgment is waited for (RFC 6298 §2), doubled with each try.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// After so many tries, more than five minutes, the guest is given up.
const TRIES_MAX: u32 = 11;
/// Acknowledgments of the same byte that mean a loss (RFC 5681 §3.2).
const DUPLICATES: u32 = 3;
/// Packets that wait for room in the port, beyond which connections wait too.
pub(super) const OUT_MAX: usize = 32;

/// The way to the guest.
pub(super) struct Link<'a> {
    pub(super) guest: EthernetAddress,
    pub(super) gateway: Gateway,
    pub(super) out: &'a mut Queue,
    pub(super) now: Instant,
    /// At least [`PIECE`] bytes for anything.
    pub(super) scratch: &'a mut [u8],
}

/// Whether a connection goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    /// The port is full: to be looked at again when it is not.
    Blocked,
    /// The guest does not want somebody from outside; on the host's side nothing has happened yet.
    Refused,
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The guest asked; the host connects.
    Connecting,
    /// The host has connected, and the guest has yet to acknowledge it, or somebody from outside waits for the guest.
    Greeting,
    Open,
}

/// See the module.
pub(super) struct Tcp {
    flow: Flow,
    stream: TcpStream,
    phase: Phase,
    /// The guest opened it.
    by_guest: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,

    /// The next byte from the guest.
    expected: u32,
    /// Bytes for the host.
    to_host: Pipe,
    guest_finished: bool,
    shut: bool,
    acknowledge: bool,
    /// The end of the window that the guest knows.
    promised: u32,

    /// The first byte that the guest has not acknowledged, and the next to send.
    unacknowledged: u32,
    next: u32,
    /// Behind the last that was ever sent.
    highest: u32,
    /// Bytes from `unacknowledged` on.
    to_guest: Pipe,
    host_finished: bool,
    finish_sent: bool,
    window: u32,
    window_most: u32,
    scale: Option<u8>,
    segment: u16,
    duplicates: u32,

    deadline: Option<Instant>,
    tries: u32,
}

fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

fn scaled(repr: &TcpRepr<'_>) -> (Option<u8>, u16) {
    let scale = repr.window_scale.map(|scale| scale.min(SCALE_MAX));
    (scale, repr.max_seg_size.unwrap_or(SEGMENT_DEFAULT).clamp(64, SEGMENT_MAX))
}

impl Tcp {
    fn new(flow: Flow, stream: TcpStream, phase: Phase, first: u32) -> Tcp {
        Tcp {
            flow,
            stream,
            phase,
            by_guest: phase == Phase::Connecting,
            readable: false,
            writable: false,
            expected: 0,
            to_host: Pipe::default(),
            guest_finished: false,
            shut: false,
            acknowledge: false,
            promised: 0,
            unacknowledged: first,
            next: first,
            highest: first,
            to_guest: Pipe::default(),
            host_finished: false,
            finish_sent: false,
            window: 0,
            window_most: 0,
            scale: None,
            segment: SEGMENT_DEFAULT,
            duplicates: 0,
            deadline: None,
            tries: 0,
        }
    }

    /// The guest asked for a connection; `stream` is on its way.
    pub(super) fn by_guest(flow: Flow, syn: &TcpRepr<'_>, stream: TcpStream, first: u32) -> Tcp {
        let mut tcp = Tcp::new(flow, stream, Phase::Connecting, first);
        tcp.expected = (syn.seq_number.0 as u32).wrapping_add(1);
        tcp.promised = tcp.expected;
        (tcp.scale, tcp.segment) = scaled(syn);
        tcp.set_window(syn.window_len.into());
        tcp
    }

    /// Somebody outside connected to a published port: the guest is asked.
    pub(super) fn by_host(flow: Flow, stream: TcpStream, first: u32, link: &mut Link<'_>) -> Tcp {
        let mut tcp = Tcp::new(flow, stream, Phase::Greeting, first);
        tcp.greet(link);
        tcp
    }

    /// When [`Tcp::tick`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn is_by_guest(&self) -> bool {
        self.by_guest
    }

    /// Gives the connection on the host's side back, as it is.
    pub(super) fn into_stream(self) -> TcpStream {
        self.stream
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn set_window(&mut self, window: u32) {
        self.window = window;
        self.window_most = self.window_most.max(window);
    }

    fn room(&self) -> u32 {
        RECEIVE_MAX.saturating_sub(self.to_host.len()) as u32
    }

    fn repr<'a>(&mut self, control: TcpControl, sequence: u32, payload: &'a [u8]) -> TcpRepr<'a> {
        let syn = control == TcpControl::Syn;
        let scale = if self.scale.is_some() && !syn { SCALE } else { 0 };
        let window_len = u16::try_from(self.room() >> scale).unwrap_or(u16::MAX);
        // Before the guest has said anything there is nothing to acknowledge.
        let answers = !syn || self.by_guest;
        if answers {
            self.promised = self.expected.wrapping_add(u32::from(window_len) << scale);
            self.acknowledge = false;
        }
        TcpRepr {
            src_port: self.flow.remote.port(),
            dst_port: self.flow.guest.port(),
            control,
            seq_number: TcpSeqNumber(sequence as i32),
            ack_number: answers.then_some(TcpSeqNumber(self.expected as i32)),
            window_len,
            window_scale: (syn && (!self.by_guest || self.scale.is_some())).then_some(SCALE),
            max_seg_size: syn.then_some(SEGMENT_MAX),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload,
        }
    }

    fn send(&mut self, link: &mut Link<'_>, control: TcpControl, sequence: u32) {
        let repr = self.repr(control, sequence, &[]);
        link.out.push_back(frame::tcp(link.guest, &repr, &self.flow));
    }

    /// SYN, or SYN and ACK.
    fn greet(&mut self, link: &mut Link<'_>) {
        self.phase = Phase::Greeting;
        self.send(link, TcpControl::Syn, self.unacknowledged);
        self.next = self.unacknowledged.wrapping_add(1);
        self.highest = self.next;
        self.arm(link.now);
    }

    fn arm(&mut self, now: Instant) {
        let wait = RETRY.saturating_mul(1 << self.tries.min(6)).min(RETRY_MAX);
        self.deadline = Some(now + wait);
    }

    /// Ends it for both sides at once.
    pub(super) fn reset(&mut self, link: &mut Link<'_>) -> Next {
        self.send(link, TcpControl::Rst, self.next);
        self.abandon()
    }

    /// Ends it for the host's side: a reset there, too.
    pub(super) fn abandon(&self) -> Next {
        // Without lingering, closing is resetting (socket(7)).
        let _ = rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO));
        Next::Over
    }

    /// A segment from the guest.
    pub(super) fn segment(&mut self, segment: &TcpRepr<'_>, link: &mut Link<'_>) -> Next {
        let sequence = segment.seq_number.0 as u32;
        if segment.control == TcpControl::Rst {
            return self.guest_reset(sequence, segment);
        }
        match self.phase {
            // It asks again.
            Phase::Connecting => return Next::Wait,
            Phase::Greeting if segment.control == TcpControl::Syn => {
                if self.by_guest {
                    self.greet(link);
                    return Next::Wait;
                }
                self.expected = sequence.wrapping_add(1);
                (self.scale, self.segment) = scaled(segment);
                self.acknowledge = true;
            }
            _ if segment.control == TcpControl::Syn => {
                // Perhaps the guest has booted anew: if so it answers this with a reset (RFC 5961 §4).
                self.acknowledge = true;
                return Next::Wait;
            }
            _ => {}
        }
        let Some(acknowledged) = segment.ack_number else { return Next::Wait };
        if !self.take_acknowledgment(acknowledged.0 as u32, segment, link) {
            return Next::Wait;
        }
        if self.phase == Phase::Open && segment.control != TcpControl::Syn {
            self.take_payload(sequence, segment);
        }
        Next::Wait
    }

    fn guest_reset(&mut self, sequence: u32, segment: &TcpRepr<'_>) -> Next {
        let answers_syn = self.phase == Phase::Greeting
            && !self.by_guest
            && segment.ack_number.is_some_and(|number| number.0 as u32 == self.next);
        if answers_syn {
            return Next::Refused;
        }
        if sequence == self.expected && (self.by_guest || self.phase == Phase::Open) {
            return self.abandon();
        }
        self.acknowledge = self.phase == Phase::Open; // RFC 5961 §3.2
        Next::Wait
    }

    /// False if the segment acknowledges what was never sent.
    fn take_acknowledgment(&mut self, number: u32, segment: &TcpRepr<'_>, link: &mut Link<'_>) -> bool {
        if before(self.highest, number) {
            self.acknowledge = true;
            return false;
        }
        if self.phase == Phase::Greeting {
            if number != self.next {
                return false;
            }
            self.phase = Phase::Open;
            self.unacknowledged = number;
            (self.deadline, self.tries) = (None, 0);
        }
        let scale = if segment.control == TcpControl::Syn { 0 } else { self.scale.unwrap_or(0) };
        let window = u32::from(segment.window_len) << scale;
        if before(self.unacknowledged, number) {
            // A FIN counts as one and is no byte.
            let count = number.wrapping_sub(self.unacknowledged) as usize;
            self.finish_sent |= count > self.to_guest.len();
            self.to_guest.consume(count);
            self.unacknowledged = number;
            if before(self.next, number) {
                // It came after we went back.
                self.next = number;
            }
            (self.duplicates, self.tries) = (0, 0);
            self.deadline = None;
            if self.unacknowledged != self.next {
                self.arm(link.now);
            }
        } else if number == self.unacknowledged
            && number != self.next
            && segment.payload.is_empty()
            && window == self.window
        {
            self.duplicates += 1;
            if self.duplicates == DUPLICATES {
                self.go_back();
            }
        }
        if !before(number, self.unacknowledged) {
            self.set_window(window);
        }
        true
    }

    /// Sends all again that was not acknowledged.
    fn go_back(&mut self) {
        self.next = self.unacknowledged;
        self.finish_sent = false;
    }

    fn take_payload(&mut self, sequence: u32, segment: &TcpRepr<'_>) {
        let fin = segment.control == TcpControl::Fin;
        if segment.payload.is_empty() && !fin {
            // A probe, or an old one (RFC 9293 §3.10.7.4).
            self.acknowledge |= sequence != self.expected;
            return;
        }
        self.acknowledge = true;
        let known = self.expected.wrapping_sub(sequence);
        if self.guest_finished || before(self.expected, sequence) || known as usize > segment.payload.len() {
            return;
        }
        let new = segment.payload.get(known as usize..).unwrap_or_default();
        let taken = new.get(..new.len().min(self.room() as usize)).unwrap_or_default();
        let mut rest = taken;
        if self.to_host.is_empty() && self.writable {
            match self.stream.write(taken) {
                Ok(count) => rest = taken.get(count..).unwrap_or_default(),
                // A broken one says so again when it is pumped.
                Err(_) => self.writable = false,
            }
        }
        self.to_host.extend(rest);
        self.expected = self.expected.wrapping_add(taken.len() as u32);
        if fin && taken.len() == new.len() {
            self.expected = self.expected.wrapping_add(1);
            self.guest_finished = true;
        }
    }

    /// The time is up: sends again what was not acknowledged, or asks whether the window is still shut.
    pub(super) fn tick(&mut self, link: &mut Link<'_>) -> Next {
        if self.deadline.is_none_or(|deadline| deadline > link.now) {
            return Next::Wait;
        }
        self.deadline = None;
        if !link.out.is_empty() {
            // The guest stands still, or is slow: it has not even got it.
            self.arm(link.now);
            return Next::Wait;
        }
        self.tries += 1;
        if self.tries > TRIES_MAX {
            return self.reset(link);
        }
        if self.phase == Phase::Greeting {
            self.greet(link);
            return Next::Wait;
        }
        self.go_back();
        if self.window == 0 {
            self.emit(link, 1, false);
            self.arm(link.now);
        }
        Next::Wait
    }

    fn emit(&mut self, link: &mut Link<'_>, len: usize, fin: bool) {
        let offset = self.next.wrapping_sub(self.unacknowledged) as usize;
        let sequence = self.next;
        let pipe = std::mem::take(&mut self.to_guest);
        let payload = pipe.bytes().get(offset..offset + len).unwrap_or_default();
        let control = if fin { TcpControl::Fin } else { TcpControl::Psh };
        let repr = self.repr(control, sequence, payload);
        link.out.push_back(frame::tcp(link.guest, &repr, &self.flow));
        self.next = sequence.wrapping_add(payload.len() as u32 + u32::from(fin));
        if before(self.highest, self.next) {
            self.highest = self.next;
        }
        self.finish_sent |= fin;
        self.to_guest = pipe;
    }

    /// Does all that can be done now.
    pub(super) fn pump(&mut self, link: &mut Link<'_>) -> Next {
        if self.phase == Phase::Connecting {
            return self.connected(link);
        }
        if self.pass_to_host().is_err() || self.take_from_host(link.scratch).is_err() {
            return self.reset(link);
        }
        let mut next = Next::Wait;
        if self.phase == Phase::Open {
            if !link.out.is_full(OUT_MAX) {
                self.transmit(link);
            }
            if link.out.is_full(OUT_MAX) {
                next = Next::Blocked;
            }
        }
        let grown = self.expected.wrapping_add(self.room()).wrapping_sub(self.promised) as usize;
        let opened = self.phase == Phase::Open && !self.guest_finished && grown >= RECEIVE_MAX / 2;
        // Without scaling the guest never knows of more than 64 KiB.
        let news = opened
            && (self.scale.is_some() || before(self.promised, self.expected.wrapping_add(u16::MAX.into())));
        if self.acknowledge || news {
            self.send(link, TcpControl::None, self.next);
        }
        let all_sent = self.finish_sent && self.unacknowledged == self.next;
        if all_sent && self.shut { Next::Over } else { next }
    }

    /// Whether the host's side has connected by now.
    fn connected(&mut self, link: &mut Link<'_>) -> Next {
        if !self.writable {
            return Next::Wait;
        }
        match self.stream.take_error() {
            Ok(None) if self.stream.peer_addr().is_ok() => {
                self.greet(link);
                Next::Wait
            }
            Ok(None) => {
                self.writable = false;
                Next::Wait
            }
            Ok(Some(error)) | Err(error) => {
                refuse(&self.flow, self.expected, &error, link);
                Next::Over
            }
        }
    }

    fn pass_to_host(&mut self) -> io::Result<()> {
        while self.writable && !self.to_host.is_empty() {
            match self.stream.write(self.to_host.bytes()) {
                Ok(count) => self.to_host.consume(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.guest_finished && !self.shut && self.to_host.is_empty() {
            self.shut = true;
            // One that is gone already needs no end.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
        Ok(())
    }

    fn take_from_host(&mut self, scratch: &mut [u8]) -> io::Result<()> {
        while self.readable
            && !self.host_finished
            && self.phase == Phase::Open
            && self.to_guest.len() < SEND_MAX
        {
            match self.stream.read(scratch) {
                Ok(0) => self.host_finished = true,
                Ok(count) => self.to_guest.extend(scratch.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.readable = false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, link: &mut Link<'_>) {
        while !link.out.is_full(OUT_MAX) && !self.finish_sent {
            let flight = self.next.wrapping_sub(self.unacknowledged);
            let room = self.window.saturating_sub(flight) as usize;
            let left = self.to_guest.len().saturating_sub(flight as usize);
            let most = left.min(self.segment.into());
            let len = most.min(room);
            // No crumbs while something is on its way (RFC 9293 §3.8.6.2.1).
            let crumb = len < most && flight > 0 && len < self.window_most as usize / 2;
            let fin = self.host_finished && len == left;
            if crumb || len == 0 && !fin {
                break;
            }
            self.emit(link, len, fin);
        }
        let waits = self.next != self.unacknowledged || self.window == 0 && !self.to_guest.is_empty();
        if waits && self.deadline.is_none() {
            self.arm(link.now);
        }
    }
}

/// Tells the guest that its connection is not to be had, in the way that the host was told.
pub(super) fn refuse(flow: &Flow, expected: u32, error: &io::Error, link: &mut Link<'_>) {
    let reason = match error.kind() {
        ErrorKind::NetworkUnreachable => Reason::Network,
        ErrorKind::HostUnreachable | ErrorKind::TimedOut | ErrorKind::AddrNotAvailable => Reason::Host,
        ErrorKind::PermissionDenied => Reason::Prohibited,
        _ => {
            link.out.push_back(frame::tcp(link.guest, &refusal(flow, 0, Some(expected)), flow));
            return;
        }
    };
    let sequence = expected.wrapping_sub(1);
    link.out.push_back(frame::unreachable(link.guest, link.gateway, flow, IpProtocol::Tcp, sequence, reason));
}

/// A reset for a segment that belongs to no connection (RFC 9293 §3.10.7.1).
pub(super) fn stray(flow: &Flow, segment: &TcpRepr<'_>, link: &mut Link<'_>) {
    if segment.control == TcpControl::Rst {
        return;
    }
    let repr = match segment.ack_number {
        Some(number) => refusal(flow, number.0 as u32, None),
        None => {
            let len = segment.payload.len() as u32 + segment.control.len() as u32;
            refusal(flow, 0, Some((segment.seq_number.0 as u32).wrapping_add(len)))
        }
    };
    link.out.push_back(frame::tcp(link.guest, &repr, flow));
}

fn refusal(flow: &Flow, sequence: u32, acknowledge: Option<u32>) -> TcpRepr<'static> {
    TcpRepr {
        src_port: flow.remote.port(),
        dst_port: flow.guest.port(),
        control: TcpControl::Rst,
        seq_number: TcpSeqNumber(sequence as i32),
        ack_number: acknowledge.map(|number| TcpSeqNumber(number as i32)),
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    }
}
