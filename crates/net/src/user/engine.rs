//! The thread of a user network.

use super::address::{self, Flow, GATEWAY, GUEST, NAME_SERVER};
use super::datagram::{self, Echo, EchoFlow, Udp};
use super::input::{self, Input};
use super::listen::{Listeners, Socket};
use super::tcp::{self, Link, Next, OUT_MAX, PIECE, Tcp};
use super::{dhcp, frame};
use crate::port::{NetPort, PACKET_MAX, SocketPort};
use rustix::event::{Timespec, epoll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use smoltcp::wire::{EthernetAddress, Icmpv4DstUnreachable, Icmpv4Repr, TcpControl, TcpRepr};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most connections at a time; more are refused.
const CONNECTIONS_MAX: usize = 4096;
/// Most UDP flows at a time; a new one then takes the place of the one that has been silent longest.
const DATAGRAM_FLOWS_MAX: usize = 1024;
/// Most addresses at a time whose echo is waited for.
const ECHO_FLOWS_MAX: usize = 64;
/// Packets from the guest that are taken at once.
const BATCH: usize = 64;
/// Events that are taken at once.
const EVENTS: usize = 64;

/// What is watched, and what has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Port,
    Listener(usize),
    Tcp(Flow),
    Udp(Flow),
    Echo(EchoFlow),
}

/// A user network that runs.
#[derive(Debug)]
pub struct UserNet {
    thread: JoinHandle<()>,
}

impl UserNet {
    /// Starts the network's thread and gives the port for the guest's card. It ends when the port is dropped.
    pub fn start(listeners: Listeners, mac: [u8; 6]) -> io::Result<(UserNet, SocketPort)> {
        let (ours, theirs) = SocketPort::pair()?;
        let mut engine = Engine::new(ours, listeners, EthernetAddress(mac))?;
        let thread = std::thread::Builder::new().name("user-net".into()).spawn(move || {
            // The port is gone: so is everybody who could hear of it.
            let _ = engine.serve();
        })?;
        Ok((UserNet { thread }, theirs))
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }
}

struct Engine {
    port: SocketPort,
    epoll: OwnedFd,
    sockets: Vec<(Socket, u16)>,
    resolver: Option<IpAddr>,
    guest: EthernetAddress,
    out: VecDeque<Vec<u8>>,
    scratch: Vec<u8>,
    who: HashMap<u64, Who>,
    next_token: u64,
    /// Each connection with its token.
    tcp: HashMap<Flow, (u64, Tcp)>,
    udp: HashMap<Flow, (u64, Udp)>,
    echo: HashMap<EchoFlow, (u64, Echo)>,
    /// Connections to look at after this round, and those for which the port had no room.
    dirty: BTreeSet<Flow>,
    blocked: BTreeSet<Flow>,
    /// Deadlines, perhaps too early ones; each flow at most once.
    timers: BinaryHeap<Reverse<(Instant, Who)>>,
    timed: BTreeSet<Who>,
    /// Where sequence numbers begin (RFC 6528).
    secret: RandomState,
    start: Instant,
}

impl Engine {
    fn new(port: SocketPort, listeners: Listeners, guest: EthernetAddress) -> io::Result<Engine> {
        let mut engine = Engine {
            port,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            sockets: listeners.sockets,
            resolver: listeners.resolver,
            guest,
            out: VecDeque::new(),
            scratch: vec![0; PIECE.max(PACKET_MAX)],
            who: HashMap::new(),
            next_token: 0,
            tcp: HashMap::new(),
            udp: HashMap::new(),
            echo: HashMap::new(),
            dirty: BTreeSet::new(),
            blocked: BTreeSet::new(),
            timers: BinaryHeap::new(),
            timed: BTreeSet::new(),
            secret: RandomState::new(),
            start: Instant::now(),
        };
        let token = engine.token(Who::Port);
        watch(&engine.epoll, engine.port.descriptor(), token)?;
        for index in 0..engine.sockets.len() {
            let token = engine.token(Who::Listener(index));
            match engine.sockets.get(index) {
                Some((Socket::Tcp(listener), _)) => watch(&engine.epoll, listener, token)?,
                Some((Socket::Udp(socket), _)) => watch(&engine.epoll, socket, token)?,
                None => {}
            }
        }
        Ok(engine)
    }

    fn token(&mut self, who: Who) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.who.insert(token, who);
        token
    }

    /// Until the port is gone.
    fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(EVENTS);
        let mut packet = vec![0; PACKET_MAX];
        let mut more = true;
        loop {
            let timeout = if more { Some(Duration::ZERO) } else { self.until_timer() };
            let timeout = timeout.map(|left| Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            events.clear();
            match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            for event in &events {
                self.event(event.data.u64(), event.flags);
            }
            self.expire();
            more = self.take_packets(&mut packet)?;
            self.pump();
            self.flush()?;
        }
    }

    fn until_timer(&self) -> Option<Duration> {
        let Reverse((first, _)) = self.timers.peek()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    fn link<'a>(guest: EthernetAddress, out: &'a mut VecDeque<Vec<u8>>, scratch: &'a mut [u8]) -> Link<'a> {
        Link { guest, out, now: Instant::now(), scratch }
    }

    fn event(&mut self, token: u64, flags: epoll::EventFlags) {
        let ended = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        let readable = flags.intersects(ended | epoll::EventFlags::IN | epoll::EventFlags::RDHUP);
        let writable = flags.intersects(ended | epoll::EventFlags::OUT);
        let mut link = Engine::link(self.guest, &mut self.out, &mut self.scratch);
        match self.who.get(&token) {
            None | Some(Who::Port) => {}
            Some(&Who::Listener(index)) => self.knock(index),
            Some(&Who::Tcp(flow)) => {
                if let Some((_, tcp)) = self.tcp.get_mut(&flow) {
                    tcp.readable |= readable;
                    tcp.writable |= writable;
                    self.dirty.insert(flow);
                }
            }
            Some(Who::Udp(flow)) => {
                if let Some((_, udp)) = self.udp.get_mut(flow) {
                    udp.receive(&mut link);
                }
            }
            Some(Who::Echo(flow)) => {
                if let Some((_, echo)) = self.echo.get_mut(flow) {
                    echo.receive(&mut link);
                }
            }
        }
    }

    /// Takes packets from the guest; true if there may be more.
    fn take_packets(&mut self, packet: &mut [u8]) -> io::Result<bool> {
        for _ in 0..BATCH {
            if self.out.len() > 4 * OUT_MAX {
                // It asks faster than it takes our answers.
                return Ok(false);
            }
            let Some(len) = self.port.receive(packet)? else { return Ok(false) };
            self.input(packet.get(..len).unwrap_or_default());
        }
        Ok(true)
    }

    fn input(&mut self, packet: &[u8]) {
        let Some((from, input)) = input::parse(packet) else { return };
        if from.is_unicast() {
            self.guest = from;
        }
        match input {
            Input::Arp(request) => {
                let ours = |address| address == GATEWAY || address == NAME_SERVER;
                self.out.extend(frame::arp_reply(request, ours));
            }
            Input::Tcp(flow, segment) => self.segment(flow, &segment),
            Input::Udp(flow, message) if flow.remote.port() == dhcp::SERVER_PORT => self.dhcp(message),
            Input::Udp(flow, payload) => self.datagram(flow, payload),
            Input::Icmp(guest, remote, request @ Icmpv4Repr::EchoRequest { ident, .. }) => {
                self.echo_request(EchoFlow { guest, remote, ident }, &request);
            }
            Input::Icmp(..) => {}
        }
    }

    fn dhcp(&mut self, message: &[u8]) {
        let Some(answer) = dhcp::answer(message) else { return };
        // Its card takes it, whatever address it has or thinks to have.
        let from = SocketAddrV4::new(GATEWAY, dhcp::SERVER_PORT);
        let to = SocketAddrV4::new(std::net::Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT);
        self.out.push_back(frame::udp(self.guest, from, to, &answer));
    }

    fn first_sequence(&self, flow: &Flow) -> u32 {
        // A clock of 4 microseconds and a secret (RFC 6528 §3).
        let clock = self.start.elapsed().as_micros() / 4;
        (self.secret.hash_one(flow) as u32).wrapping_add(clock as u32)
    }

    fn segment(&mut self, flow: Flow, segment: &TcpRepr<'_>) {
        let mut link = Engine::link(self.guest, &mut self.out, &mut self.scratch);
        if let Some((_, tcp)) = self.tcp.get_mut(&flow) {
            let next = tcp.segment(segment, &mut link);
            self.dirty.insert(flow);
            self.settle(flow, next);
            return;
        }
        let asks = segment.control == TcpControl::Syn && segment.ack_number.is_none();
        if !asks || self.tcp.len() >= CONNECTIONS_MAX {
            tcp::stray(&flow, segment, &mut link);
            return;
        }
        let expected = (segment.seq_number.0 as u32).wrapping_add(1);
        let opened = match address::outside(flow.remote, self.resolver) {
            Some(to) => open_tcp(to),
            None if address::is_local(*flow.remote.ip()) && *flow.remote.ip() != NAME_SERVER => {
                Err(io::ErrorKind::HostUnreachable.into())
            }
            None if *flow.remote.ip() == NAME_SERVER => Err(io::ErrorKind::ConnectionRefused.into()),
            None => Err(io::ErrorKind::PermissionDenied.into()),
        };
        match opened {
            Ok(stream) => {
                let tcp = Tcp::by_guest(flow, segment, stream, self.first_sequence(&flow));
                self.add_tcp(flow, tcp);
            }
            Err(error) => tcp::refuse(&flow, expected, &error, &mut link),
        }
    }

    fn add_tcp(&mut self, flow: Flow, tcp: Tcp) {
        let token = self.token(Who::Tcp(flow));
        if watch(&self.epoll, tcp.stream(), token).is_err() {
            self.who.remove(&token);
            return;
        }
        self.tcp.insert(flow, (token, tcp));
        self.dirty.insert(flow);
    }

    fn settle(&mut self, flow: Flow, next: Next) {
        match next {
            Next::Wait => {}
            Next::Blocked => {
                self.blocked.insert(flow);
            }
            Next::Over => {
                if let Some((token, _)) = self.tcp.remove(&flow) {
                    self.who.remove(&token);
                }
                self.dirty.remove(&flow);
                self.blocked.remove(&flow);
            }
        }
    }

    fn datagram(&mut self, flow: Flow, payload: &[u8]) {
        let mut link = Engine::link(self.guest, &mut self.out, &mut self.scratch);
        if let Some((_, udp)) = self.udp.get_mut(&flow) {
            udp.send(payload, &mut link);
            return;
        }
        let address = flow.remote.ip();
        let Some(to) = address::outside(flow.remote, self.resolver) else {
            // Nobody answers for groups (RFC 1122 §3.2.2).
            if !address.is_multicast() && !address.is_broadcast() && address.octets()[3] != 255 {
                let local = *address == NAME_SERVER;
                let why = if local {
                    Icmpv4DstUnreachable::PortUnreachable
                } else {
                    Icmpv4DstUnreachable::HostUnreachable
                };
                datagram::tell(&flow, why, &mut link);
            }
            return;
        };
        match Udp::open(flow, to, link.now) {
            Ok(mut udp) => {
                udp.send(payload, &mut link);
                self.add_udp(flow, udp);
            }
            Err(_) => datagram::tell(&flow, Icmpv4DstUnreachable::NetUnreachable, &mut link),
        }
    }

    fn add_udp(&mut self, flow: Flow, udp: Udp) {
        if self.udp.len() >= DATAGRAM_FLOWS_MAX {
            let oldest = self.udp.iter().min_by_key(|(_, (_, udp))| udp.deadline()).map(|(flow, _)| *flow);
            oldest.into_iter().for_each(|flow| self.remove_udp(&flow));
        }
        let token = self.token(Who::Udp(flow));
        if let Some(socket) = udp.socket()
            && watch(&self.epoll, socket, token).is_err()
        {
            self.who.remove(&token);
            return;
        }
        self.time(udp.deadline(), Who::Udp(flow));
        self.udp.insert(flow, (token, udp));
    }

    fn remove_udp(&mut self, flow: &Flow) {
        if let Some((token, _)) = self.udp.remove(flow) {
            self.who.remove(&token);
        }
    }

    fn echo_request(&mut self, flow: EchoFlow, request: &Icmpv4Repr<'_>) {
        let link = Engine::link(self.guest, &mut self.out, &mut self.scratch);
        if flow.remote == GATEWAY || flow.remote == NAME_SERVER {
            if let Icmpv4Repr::EchoRequest { ident, seq_no, data } = *request {
                let data = data.get(..data.len().min(frame::DATAGRAM_MAX)).unwrap_or_default();
                let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
                link.out.push_back(frame::icmp(link.guest, flow.remote, flow.guest, &reply));
            }
            return;
        }
        if !self.echo.contains_key(&flow) {
            let out = address::outside(SocketAddrV4::new(flow.remote, 0), None).is_some();
            if !out || self.echo.len() >= ECHO_FLOWS_MAX {
                return;
            }
            // Where the host allows its users no echo, there is none (icmp(7), ping_group_range).
            let Ok(echo) = Echo::open(flow, link.now) else { return };
            let deadline = echo.deadline();
            let token = self.next_token;
            self.next_token += 1;
            if watch(&self.epoll, echo.socket(), token).is_err() {
                return;
            }
            self.who.insert(token, Who::Echo(flow));
            self.echo.insert(flow, (token, echo));
            self.time(deadline, Who::Echo(flow));
        }
        let mut link = Engine::link(self.guest, &mut self.out, &mut self.scratch);
        if let Some((_, echo)) = self.echo.get_mut(&flow) {
            // Lost, as on any way.
            let _ = echo.send(request, &mut link);
        }
    }

    /// Somebody comes in by a published port.
    fn knock(&mut self, index: usize) {
        let Some((socket, port)) = self.sockets.get(index) else { return };
        let guest = SocketAddrV4::new(GUEST, *port);
        match socket {
            Socket::Tcp(listener) => {
                let mut came = Vec::new();
                while let Ok((stream, peer)) = listener.accept() {
                    came.push((stream, peer));
                }
                for (stream, peer) in came {
                    let Some(remote) = address::inside(peer) else { continue };
                    let flow = Flow { guest, remote };
                    let ready = stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true));
                    if ready.is_err() || self.tcp.len() >= CONNECTIONS_MAX || self.tcp.contains_key(&flow) {
                        continue;
                    }
                    let first = self.first_sequence(&flow);
                    let mut link = Engine::link(self.guest, &mut self.out, &mut self.scratch);
                    let tcp = Tcp::by_host(flow, stream, first, &mut link);
                    self.add_tcp(flow, tcp);
                }
            }
            Socket::Udp(socket) => {
                let socket = socket.clone();
                self.take_published(guest, &socket);
            }
        }
    }

    fn take_published(&mut self, guest: SocketAddrV4, socket: &Arc<UdpSocket>) {
        let now = Instant::now();
        loop {
            let (len, peer) = match socket.recv_from(&mut self.scratch) {
                Ok(came) => came,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An earlier answer did not get there: whoever asked is gone.
                Err(_) => continue,
            };
            let Some(remote) = address::inside(peer) else { continue };
            let flow = Flow { guest, remote };
            match self.udp.get_mut(&flow) {
                Some((_, udp)) => udp.touch(now),
                None => self.add_udp(flow, Udp::published(flow, socket.clone(), peer, now)),
            }
            if self.out.len() < 2 * OUT_MAX {
                let payload = self.scratch.get(..len.min(frame::DATAGRAM_MAX)).unwrap_or_default();
                self.out.push_back(frame::udp(self.guest, remote, guest, payload));
            }
        }
    }

    fn pump(&mut self) {
        let flows = std::mem::take(&mut self.dirty);
        for flow in flows {
            let mut link = Engine::link(self.guest, &mut self.out, &mut self.scratch);
            let Some((_, tcp)) = self.tcp.get_mut(&flow) else { continue };
            let next = tcp.pump(&mut link);
            let deadline = tcp.deadline();
            self.settle(flow, next);
            if let Some(deadline) = deadline {
                self.time(deadline, Who::Tcp(flow));
            }
        }
    }

    /// Hands packets to the guest, and lets those go on that waited for that.
    fn flush(&mut self) -> io::Result<()> {
        loop {
            while let Some(packet) = self.out.front() {
                if !self.port.send(packet)? {
                    return Ok(());
                }
                self.out.pop_front();
            }
            if self.blocked.is_empty() && self.dirty.is_empty() {
                return Ok(());
            }
            let mut waiting = std::mem::take(&mut self.blocked);
            self.dirty.append(&mut waiting);
            self.pump();
            if self.out.is_empty() {
                return Ok(());
            }
        }
    }

    fn time(&mut self, at: Instant, who: Who) {
        if self.timed.insert(who) {
            self.timers.push(Reverse((at, who)));
        }
    }

    fn expire(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, who))) = self.timers.peek().copied() {
            if at > now {
                return;
            }
            self.timers.pop();
            self.timed.remove(&who);
            let later = match who {
                Who::Tcp(flow) => self.tick(flow),
                Who::Udp(flow) => self.udp.get(&flow).map(|(_, udp)| udp.deadline()),
                Who::Echo(flow) => self.echo.get(&flow).map(|(_, echo)| echo.deadline()),
                Who::Port | Who::Listener(_) => None,
            };
            match later {
                Some(later) if later > now => self.time(later, who),
                Some(_) => self.forget(who),
                None => {}
            }
        }
    }

    fn tick(&mut self, flow: Flow) -> Option<Instant> {
        let mut link = Engine::link(self.guest, &mut self.out, &mut self.scratch);
        let (_, tcp) = self.tcp.get_mut(&flow)?;
        let next = tcp.tick(&mut link);
        let deadline = tcp.deadline();
        self.dirty.insert(flow);
        self.settle(flow, next);
        deadline
    }

    fn forget(&mut self, who: Who) {
        match who {
            Who::Udp(flow) => self.remove_udp(&flow),
            Who::Echo(flow) => {
                if let Some((token, _)) = self.echo.remove(&flow) {
                    self.who.remove(&token);
                }
            }
            Who::Tcp(_) | Who::Port | Who::Listener(_) => {}
        }
    }
}

fn watch(epoll: &OwnedFd, socket: impl AsFd, token: u64) -> io::Result<()> {
    let flags =
        epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    epoll::add(epoll, socket, epoll::EventData::new_u64(token), flags)?;
    Ok(())
}

/// Begins to connect.
fn open_tcp(to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    match connect(&socket, &to) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}
