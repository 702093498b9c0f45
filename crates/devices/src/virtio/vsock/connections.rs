//! The streams of one guest as a state machine: packets on one side, calls and events on the other.
//!
//! A stream lives from [`Connections::connect`] or [`VsockEvent::Incoming`] until the *host* gives it up
//! ([`Connections::close`], [`Connections::reset`]); when the guest is gone earlier, what it sent can
//! still be received. So a guest can fill the table, never grow it.

use std::collections::{BTreeMap, VecDeque};

use super::Header;
use viv_arch::virtio::vsock as reg;

/// Bytes from the guest that wait for the host, for each stream: the guest's credit. As much again waits
/// in the other direction.
pub const BUFFER_LEN: usize = 256 << 10;
/// Most streams at a time.
pub const CONNECTIONS_MAX: usize = 1024;
/// Resets for packets that belong to no stream; with so many waiting, no further packet is handled.
const RESETS_MAX: usize = 256;
/// First port on the host's side of streams that the host opens: above those that services listen on.
const HOST_PORT_FIRST: u32 = 1 << 30;

/// A stream, for as long as the host holds it. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// What the host side should look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VsockEvent {
    /// The guest wants a stream to this port of the host: accept or reset it.
    Incoming {
        /// The new stream.
        stream: StreamId,
        /// The host's port.
        port: u32,
    },
    /// The guest accepted the stream that the host asked for.
    Connected {
        /// The stream.
        stream: StreamId,
        /// The port on the host's side that we chose for it.
        host_port: u32,
    },
    /// The guest refused it. The ID is void.
    Refused(StreamId),
    /// Bytes or an end wait: call receive until it gives nothing.
    Readable(StreamId),
    /// There is room again after a short send.
    Writable(StreamId),
}

/// Why nothing more comes from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// It sends no more; it may still receive.
    Finished,
    /// It closed the stream in both directions.
    Closed,
    /// It dropped the stream, or broke its rules, or was reset.
    Reset,
}

/// What [`Connections::receive`] took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes in order.
    pub bytes: Vec<u8>,
    /// After these bytes nothing more comes.
    pub end: Option<StreamEnd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ports {
    host: u32,
    guest: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The host asked, the guest has not answered.
    Asking,
    /// The guest asked, the host has not answered.
    Offered,
    Open,
    /// The guest knows nothing of the stream any more.
    Gone(StreamEnd),
}

#[derive(Debug)]
struct Connection {
    ports: Ports,
    phase: Phase,
    /// REQUEST or RESPONSE still to send.
    greeting: Option<u16>,
    to_guest: VecDeque<u8>,
    /// Bytes sent to the guest so far, modulo 2^32.
    sent: u32,
    guest_buf_alloc: u32,
    guest_fwd_cnt: u32,
    asked_for_credit: bool,
    wants_writable: bool,
    /// The host sends no more.
    finished: bool,
    /// The host gave the stream up; it is only kept for what the guest must still get.
    closed: bool,
    /// Flags of the last SHUTDOWN that we sent.
    shutdown_sent: u32,
    from_guest: VecDeque<u8>,
    guest_finished: bool,
    /// Bytes that the host has taken so far, modulo 2^32.
    fwd_cnt: u32,
    /// What the guest knows of `fwd_cnt`.
    fwd_cnt_told: u32,
    credit_update: bool,
    readable_told: bool,
    /// In the list of streams that may have a packet.
    queued: bool,
}

impl Connection {
    fn new(ports: Ports, phase: Phase) -> Connection {
        Connection {
            ports,
            phase,
            greeting: None,
            to_guest: VecDeque::new(),
            sent: 0,
            guest_buf_alloc: 0,
            guest_fwd_cnt: 0,
            asked_for_credit: false,
            wants_writable: false,
            finished: false,
            closed: false,
            shutdown_sent: 0,
            from_guest: VecDeque::new(),
            guest_finished: false,
            fwd_cnt: 0,
            fwd_cnt_told: 0,
            credit_update: false,
            readable_told: false,
            queued: false,
        }
    }

    /// Bytes that the guest has room for (§5.10.6.3).
    fn credit(&self) -> usize {
        let in_flight = self.sent.wrapping_sub(self.guest_fwd_cnt);
        self.guest_buf_alloc.saturating_sub(in_flight) as usize
    }

    fn shutdown_due(&self) -> u32 {
        if !self.to_guest.is_empty() {
            return 0;
        }
        let flags = match (self.closed, self.finished) {
            (true, _) => reg::SHUTDOWN_SEND | reg::SHUTDOWN_RECEIVE,
            (false, true) => reg::SHUTDOWN_SEND,
            (false, false) => 0,
        };
        flags & !self.shutdown_sent
    }

    /// What to send next.
    fn next_op(&self) -> Option<u16> {
        if let Some(greeting) = self.greeting {
            return Some(greeting);
        }
        if self.phase != Phase::Open {
            return None;
        }
        if self.credit_update {
            return Some(reg::OP_CREDIT_UPDATE);
        }
        if !self.to_guest.is_empty() {
            return match (self.credit(), self.asked_for_credit) {
                (0, false) => Some(reg::OP_CREDIT_REQUEST),
                (0, true) => None,
                _ => Some(reg::OP_RW),
            };
        }
        (self.shutdown_due() != 0).then_some(reg::OP_SHUTDOWN)
    }
}

/// All streams of one guest.
#[derive(Debug)]
pub struct Connections {
    guest_cid: u64,
    streams: BTreeMap<StreamId, Connection>,
    by_ports: BTreeMap<Ports, StreamId>,
    next_stream: u64,
    next_host_port: u32,
    /// Streams that may have a packet for the guest, in turn.
    turn: VecDeque<StreamId>,
    resets: VecDeque<Ports>,
    events: VecDeque<VsockEvent>,
}

impl Connections {
    /// No streams yet, for the guest with this context ID.
    pub fn new(guest_cid: u64) -> Connections {
        Connections {
            guest_cid,
            streams: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            next_stream: 0,
            next_host_port: HOST_PORT_FIRST,
            turn: VecDeque::new(),
            resets: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    // ---- the host's side ----

    /// Asks the guest for a stream to `guest_port`. `None` if there are too many.
    pub fn connect(&mut self, guest_port: u32) -> Option<StreamId> {
        if self.streams.len() >= CONNECTIONS_MAX {
            return None;
        }
        // There are fewer streams than ports to try.
        let ports = (0..=CONNECTIONS_MAX).find_map(|_| {
            let host = self.next_host_port;
            self.next_host_port =
                host.checked_add(1).filter(|port| *port != u32::MAX).unwrap_or(HOST_PORT_FIRST);
            let ports = Ports { host, guest: guest_port };
            (!self.by_ports.contains_key(&ports)).then_some(ports)
        })?;
        let stream = self
            .insert(Connection { greeting: Some(reg::OP_REQUEST), ..Connection::new(ports, Phase::Asking) });
        self.queue(stream);
        Some(stream)
    }

    /// Takes the stream that the guest offered.
    pub fn accept(&mut self, stream: StreamId) {
        if let Some(connection) = self.streams.get_mut(&stream)
            && connection.phase == Phase::Offered
        {
            connection.phase = Phase::Open;
            connection.greeting = Some(reg::OP_RESPONSE);
            self.queue(stream);
        }
    }

    /// Bytes for the guest; returns how many were taken. After a short count, [`VsockEvent::Writable`] comes
    /// when there is room.
    pub fn send(&mut self, stream: StreamId, bytes: &[u8]) -> usize {
        let Some(connection) = self.streams.get_mut(&stream) else { return bytes.len() };
        if matches!(connection.phase, Phase::Gone(_)) || connection.finished || connection.closed {
            // Nobody will read it; the end is seen on the receiving side.
            return bytes.len();
        }
        let taken = BUFFER_LEN.saturating_sub(connection.to_guest.len()).min(bytes.len());
        connection.to_guest.extend(bytes.iter().take(taken));
        connection.wants_writable |= taken < bytes.len();
        self.queue(stream);
        taken
    }

    /// Takes up to `max` bytes that the guest sent.
    pub fn receive(&mut self, stream: StreamId, max: usize) -> Received {
        let Some(connection) = self.streams.get_mut(&stream) else {
            return Received { bytes: Vec::new(), end: Some(StreamEnd::Reset) };
        };
        let count = connection.from_guest.len().min(max);
        let bytes: Vec<u8> = connection.from_guest.drain(..count).collect();
        connection.fwd_cnt = connection.fwd_cnt.wrapping_add(count as u32);
        let untold = connection.fwd_cnt.wrapping_sub(connection.fwd_cnt_told) as usize;
        connection.credit_update |= untold >= BUFFER_LEN / 4;
        let end = match connection.phase {
            _ if !connection.from_guest.is_empty() => None,
            Phase::Gone(end) => Some(end),
            _ => connection.guest_finished.then_some(StreamEnd::Finished),
        };
        // What comes later must be told again; what is left now need not.
        connection.readable_told = !connection.from_guest.is_empty();
        self.queue(stream);
        Received { bytes, end }
    }

    /// The host sends no more.
    pub fn finish(&mut self, stream: StreamId) {
        if let Some(connection) = self.streams.get_mut(&stream) {
            connection.finished = true;
            self.queue(stream);
        }
    }

    /// The host gives the stream up; what it sent still arrives.
    pub fn close(&mut self, stream: StreamId) {
        let Some(connection) = self.streams.get_mut(&stream) else { return };
        if connection.phase != Phase::Open {
            self.reset(stream);
            return;
        }
        connection.closed = true;
        connection.from_guest = VecDeque::new();
        self.queue(stream);
    }

    /// The host drops the stream at once.
    pub fn reset(&mut self, stream: StreamId) {
        if let Some(connection) = self.streams.remove(&stream) {
            let ports = connection.ports;
            if !matches!(connection.phase, Phase::Gone(_)) {
                self.by_ports.remove(&ports);
                // The guest knows of it unless our request has not left yet.
                if connection.phase != Phase::Asking || connection.greeting.is_none() {
                    self.resets.push_back(ports);
                }
            }
        }
    }

    /// Whether [`Connections::take_events`] has something.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// Takes what happened since the last call.
    pub fn take_events(&mut self) -> Vec<VsockEvent> {
        self.events.drain(..).collect()
    }

    // ---- the guest's side ----

    /// The guest's driver was reset: all its sockets are gone.
    pub fn guest_reset(&mut self) {
        self.resets.clear();
        self.turn.clear();
        for stream in self.by_ports.values().copied().collect::<Vec<_>>() {
            self.gone(stream, StreamEnd::Reset);
        }
    }

    /// Whether so many answers wait for the guest that it must take some before it may send more.
    pub fn must_answer_first(&self) -> bool {
        self.resets.len() >= RESETS_MAX
    }

    /// Handles a packet from the guest.
    pub fn handle(&mut self, header: &Header, payload: &[u8]) {
        if header.src_cid != self.guest_cid || header.dst_cid != reg::CID_HOST {
            // Not from this guest or not for us: nobody to answer (§5.10.6.2).
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let known = self.by_ports.get(&ports).copied();
        if header.socket_type != reg::TYPE_STREAM {
            self.answer_with_reset(header, ports);
            return;
        }
        let Some(stream) = known else {
            match header.op {
                reg::OP_REQUEST if self.streams.len() < CONNECTIONS_MAX => self.offer(header, ports),
                _ => self.answer_with_reset(header, ports),
            }
            return;
        };
        let Some(connection) = self.streams.get_mut(&stream) else { return };
        if (connection.guest_buf_alloc, connection.guest_fwd_cnt) != (header.buf_alloc, header.fwd_cnt) {
            (connection.guest_buf_alloc, connection.guest_fwd_cnt) = (header.buf_alloc, header.fwd_cnt);
            connection.asked_for_credit = false;
        }
        match (header.op, connection.phase) {
            (reg::OP_RST, _) => self.gone(stream, StreamEnd::Reset),
            (reg::OP_RESPONSE, Phase::Asking) if connection.greeting.is_none() => {
                connection.phase = Phase::Open;
                self.events.push_back(VsockEvent::Connected { stream, host_port: ports.host });
            }
            (reg::OP_RW, Phase::Open) => self.data(stream, payload),
            (reg::OP_SHUTDOWN, Phase::Open) => self.guest_shutdown(stream, header.flags),
            (reg::OP_CREDIT_UPDATE, Phase::Open) => {}
            (reg::OP_CREDIT_REQUEST, Phase::Open) => connection.credit_update = true,
            _ => self.broken(stream),
        }
        self.queue(stream);
    }

    /// Whether [`Connections::next_packet`] has something.
    pub fn has_packet(&mut self) -> bool {
        if !self.resets.is_empty() {
            return true;
        }
        while let Some(stream) = self.turn.front() {
            match self.streams.get_mut(stream) {
                Some(connection) if connection.next_op().is_some() => return true,
                Some(connection) => connection.queued = false,
                None => {}
            }
            self.turn.pop_front();
        }
        false
    }

    /// The next packet for the guest, with at most `room` bytes after the header.
    pub fn next_packet(&mut self, room: usize) -> Option<(Header, Vec<u8>)> {
        if let Some(ports) = self.resets.pop_front() {
            return Some((self.header(ports, reg::OP_RST), Vec::new()));
        }
        if !self.has_packet() {
            return None;
        }
        let stream = self.turn.pop_front()?;
        let ports = self.streams.get(&stream)?.ports;
        let mut header = self.header(ports, 0);
        let connection = self.streams.get_mut(&stream)?;
        connection.queued = false;
        header.op = connection.next_op()?;
        header.fwd_cnt = connection.fwd_cnt;
        connection.fwd_cnt_told = connection.fwd_cnt;
        // Every packet tells our credit (§5.10.6.3).
        connection.credit_update = false;
        let mut payload = Vec::new();
        match header.op {
            reg::OP_REQUEST | reg::OP_RESPONSE => connection.greeting = None,
            reg::OP_CREDIT_REQUEST => connection.asked_for_credit = true,
            reg::OP_SHUTDOWN => {
                connection.shutdown_sent |= connection.shutdown_due();
                header.flags = connection.shutdown_sent;
            }
            reg::OP_RW => {
                let count = connection.to_guest.len().min(connection.credit()).min(room);
                payload.extend(connection.to_guest.drain(..count));
                header.len = count as u32;
                connection.sent = connection.sent.wrapping_add(count as u32);
                // Telling the host of each freed byte would cost more than the byte.
                if connection.wants_writable && connection.to_guest.len() <= BUFFER_LEN / 2 {
                    connection.wants_writable = false;
                    self.events.push_back(VsockEvent::Writable(stream));
                }
            }
            _ => {}
        }
        self.queue(stream);
        Some((header, payload))
    }

    fn header(&self, ports: Ports, op: u16) -> Header {
        Header {
            src_cid: reg::CID_HOST,
            dst_cid: self.guest_cid,
            src_port: ports.host,
            dst_port: ports.guest,
            socket_type: reg::TYPE_STREAM,
            op,
            buf_alloc: BUFFER_LEN as u32,
            ..Header::default()
        }
    }

    fn insert(&mut self, connection: Connection) -> StreamId {
        let stream = StreamId(self.next_stream);
        self.next_stream += 1;
        self.by_ports.insert(connection.ports, stream);
        self.streams.insert(stream, connection);
        stream
    }

    /// Gives the stream a turn if it has a packet and has none yet.
    fn queue(&mut self, stream: StreamId) {
        if let Some(connection) = self.streams.get_mut(&stream)
            && !connection.queued
            && connection.next_op().is_some()
        {
            connection.queued = true;
            self.turn.push_back(stream);
        }
    }

    fn offer(&mut self, header: &Header, ports: Ports) {
        let stream = self.insert(Connection {
            guest_buf_alloc: header.buf_alloc,
            guest_fwd_cnt: header.fwd_cnt,
            ..Connection::new(ports, Phase::Offered)
        });
        self.events.push_back(VsockEvent::Incoming { stream, port: ports.host });
    }

    /// A packet for a stream that we do not know (§5.10.6.4.2); a reset needs no answer.
    fn answer_with_reset(&mut self, header: &Header, ports: Ports) {
        if header.op != reg::OP_RST {
            self.resets.push_back(ports);
        }
    }

    fn data(&mut self, stream: StreamId, payload: &[u8]) {
        let Some(connection) = self.streams.get_mut(&stream) else { return };
        if connection.closed {
            // Nobody reads it any more, and the guest should know.
            self.broken(stream);
            return;
        }
        if connection.guest_finished || payload.len() > BUFFER_LEN.saturating_sub(connection.from_guest.len())
        {
            // It sends after it said it would not, or more than its credit.
            self.broken(stream);
            return;
        }
        connection.from_guest.extend(payload);
        self.tell_readable(stream);
    }

    fn guest_shutdown(&mut self, stream: StreamId, flags: u32) {
        let Some(connection) = self.streams.get_mut(&stream) else { return };
        connection.guest_finished |= flags & reg::SHUTDOWN_SEND != 0;
        let both = reg::SHUTDOWN_SEND | reg::SHUTDOWN_RECEIVE;
        if flags & both == both {
            // The guest closed its socket and waits for our reset to forget it (§5.10.6.5).
            let ports = connection.ports;
            self.resets.push_back(ports);
            self.gone(stream, StreamEnd::Closed);
        } else if flags & reg::SHUTDOWN_RECEIVE != 0 {
            // It wants no more of what we send.
            connection.to_guest.clear();
            connection.finished = true;
        }
        self.tell_readable(stream);
    }

    /// The guest broke the stream's rules.
    fn broken(&mut self, stream: StreamId) {
        if let Some(connection) = self.streams.get(&stream) {
            self.resets.push_back(connection.ports);
            self.gone(stream, StreamEnd::Reset);
        }
    }

    /// The guest knows nothing of the stream any more.
    fn gone(&mut self, stream: StreamId, end: StreamEnd) {
        let Some(connection) = self.streams.get_mut(&stream) else { return };
        self.by_ports.remove(&connection.ports);
        if connection.closed {
            self.streams.remove(&stream);
        } else if connection.phase == Phase::Asking {
            self.streams.remove(&stream);
            self.events.push_back(VsockEvent::Refused(stream));
        } else {
            connection.phase = Phase::Gone(end);
            connection.greeting = None;
            connection.to_guest = VecDeque::new();
            connection.queued = false;
            if std::mem::take(&mut connection.wants_writable) {
                self.events.push_back(VsockEvent::Writable(stream));
            }
            self.tell_readable(stream);
        }
    }

    fn tell_readable(&mut self, stream: StreamId) {
        if let Some(connection) = self.streams.get_mut(&stream)
            && !connection.readable_told
            && !connection.closed
        {
            connection.readable_told = true;
            self.events.push_back(VsockEvent::Readable(stream));
        }
    }
}
