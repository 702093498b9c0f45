//! The flows of a network that go on as sockets of the host.

use super::address::{DNS_PORT, Flow, Plan, Way};
use super::datagram::{self, Echo, EchoFlow, Udp};
use super::filter::Filter;
use super::frame::{self, Reason};
use super::listen::Socket;
use super::poll::{Poll, Who};
use super::ports::Ports;
use super::rules::Opening;
use super::tcp::{self, Next, OUT_MAX, PIECE, Tcp};
use crate::port::PACKET_MAX;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use smoltcp::wire::{TcpControl, TcpRepr};
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};
use viv_model::Direction;

/// Most connections of a guest, and of a network, at a time; more are refused.
const CONNECTIONS_MAX: usize = 4096;
const CONNECTIONS_IN_ALL_MAX: usize = 4 * CONNECTIONS_MAX;
/// Most UDP flows of a network at a time; a new one then takes the place of the one that has been silent longest.
const DATAGRAM_FLOWS_MAX: usize = 4096;
/// Most names at a time that one guest waits for, and for how long it counts as waiting. The host's name server may be a VM
/// that asks us: who asks in circles is told so, and not asked for ever.
const NAMES_MAX: usize = 128;
const NAME_WAIT: Duration = Duration::from_secs(10);
/// Most addresses at a time whose echo is waited for.
const ECHO_FLOWS_MAX: usize = 256;

/// The ports that streams of the host itself come from (RFC 6335 §6).
const OWN_PORTS: RangeInclusive<u16> = 49152..=65535;

/// See the module.
pub(super) struct Nat {
    pub(super) plan: Plan,
    pub(super) filter: Filter,
    pub(super) poll: Poll,
    scratch: Vec<u8>,
    /// Each connection with its token.
    tcp: HashMap<Flow, (u64, Tcp)>,
    udp: HashMap<Flow, (u64, Udp)>,
    echo: HashMap<EchoFlow, (u64, Echo)>,
    /// How many connections a guest has.
    connections: HashMap<Ipv4Addr, usize>,
    /// Connections to look at after this round.
    pub(super) dirty: BTreeSet<Flow>,
    /// Deadlines, perhaps too early ones; each flow at most once.
    timers: BinaryHeap<Reverse<(Instant, Who)>>,
    timed: BTreeSet<Who>,
    /// Where sequence numbers begin (RFC 6528).
    secret: RandomState,
    start: Instant,
    /// The port that the last stream of the host's own came from, in [`OWN_PORTS`].
    last_own: u16,
}

impl Nat {
    pub(super) fn new(plan: Plan) -> io::Result<Nat> {
        Ok(Nat {
            plan,
            filter: Filter::default(),
            poll: Poll::new()?,
            scratch: vec![0; PIECE.max(PACKET_MAX)],
            tcp: HashMap::new(),
            udp: HashMap::new(),
            echo: HashMap::new(),
            connections: HashMap::new(),
            dirty: BTreeSet::new(),
            timers: BinaryHeap::new(),
            timed: BTreeSet::new(),
            secret: RandomState::new(),
            last_own: 0,
            start: Instant::now(),
        })
    }

    /// How long until something is due.
    pub(super) fn until_timer(&self) -> Option<Duration> {
        let Reverse((first, _)) = self.timers.peek()?;
        Some(first.saturating_duration_since(Instant::now()))
    }

    /// Something came for a flow, or there is room for something.
    pub(super) fn event(&mut self, who: Who, readable: bool, writable: bool, ports: &mut Ports) {
        match who {
            Who::Tcp(flow) => {
                if let Some((_, tcp)) = self.tcp.get_mut(&flow) {
                    tcp.readable |= readable;
                    tcp.writable |= writable;
                    self.dirty.insert(flow);
                }
            }
            Who::Udp(flow) => {
                if let Some((_, udp)) = self.udp.get_mut(&flow)
                    && let Some(mut link) = ports.link(flow.port, &mut self.scratch)
                {
                    udp.receive(&mut link);
                }
            }
            Who::Echo(flow) => {
                if let Some((_, echo)) = self.echo.get_mut(&flow)
                    && let Some(mut link) = ports.link(flow.port, &mut self.scratch)
                {
                    echo.receive(&mut link);
                }
            }
            Who::Listener(guest, index) => self.knock(guest, index, ports),
            Who::Port(_) | Who::Commands => {}
        }
    }

    fn first_sequence(&self, flow: &Flow) -> u32 {
        // A clock of 4 microseconds and a secret (RFC 6528 §3).
        let clock = self.start.elapsed().as_micros() / 4;
        (self.secret.hash_one(flow) as u32).wrapping_add(clock as u32)
    }

    /// The rules have changed: flows that they do not let be opened any more end.
    pub(super) fn look_again(&mut self, ports: &mut Ports) {
        let denied = |(flow, (_, tcp)): (&Flow, &(u64, Tcp))| {
            let allowed = match tcp.is_by_guest() {
                true => allows_out(&self.plan, &self.filter, flow, Opening::Tcp(flow.remote.port())),
                false => allows_in(&self.filter, flow, Opening::Tcp(flow.guest.port())),
            };
            (!allowed).then_some(*flow)
        };
        let connections: Vec<Flow> = self.tcp.iter().filter_map(denied).collect();
        for flow in connections {
            if let Some((_, tcp)) = self.tcp.get_mut(&flow)
                && let Some(mut link) = ports.link(flow.port, &mut self.scratch)
            {
                let next = tcp.reset(&mut link);
                self.settle(flow, next, ports);
            }
        }
        let denied = |(flow, (_, udp)): (&Flow, &(u64, Udp))| {
            let allowed = match udp.socket() {
                Some(_) => allows_out(&self.plan, &self.filter, flow, Opening::Udp(flow.remote.port())),
                None => allows_in(&self.filter, flow, Opening::Udp(flow.guest.port())),
            };
            (!allowed).then_some(Who::Udp(*flow))
        };
        let datagrams: Vec<Who> = self.udp.iter().filter_map(denied).collect();
        let echoes = self
            .echo
            .keys()
            .filter(|flow| !self.filter.allows(flow.port, Direction::Out, Opening::Icmp, flow.remote));
        let all: Vec<Who> = echoes.map(|flow| Who::Echo(*flow)).chain(datagrams).collect();
        all.into_iter().for_each(|who| self.forget(who));
    }

    /// Connections that a guest has now.
    pub(super) fn connections(&self, guest: Ipv4Addr) -> u64 {
        self.connections.get(&guest).map_or(0, |count| *count as u64)
    }

    fn is_full(&self, guest: Ipv4Addr) -> bool {
        let own = self.connections.get(&guest).copied().unwrap_or(0);
        own >= CONNECTIONS_MAX || self.tcp.len() >= CONNECTIONS_IN_ALL_MAX
    }

    /// A segment from a guest.
    pub(super) fn segment(&mut self, flow: Flow, segment: &TcpRepr<'_>, ports: &mut Ports) {
        let full = self.is_full(flow.port);
        let Some(mut link) = ports.link(flow.port, &mut self.scratch) else { return };
        if let Some((_, tcp)) = self.tcp.get_mut(&flow) {
            let next = tcp.segment(segment, &mut link);
            self.dirty.insert(flow);
            self.settle(flow, next, ports);
            return;
        }
        let asks = segment.control == TcpControl::Syn && segment.ack_number.is_none();
        if !asks || full {
            tcp::stray(&flow, segment, &mut link);
            return;
        }
        let expected = (segment.seq_number.0 as u32).wrapping_add(1);
        let opened = match way_out(&self.plan, &self.filter, &flow, Opening::Tcp(flow.remote.port())) {
            Way::Out(to) => open_tcp(to),
            Way::Nobody => Err(io::ErrorKind::HostUnreachable.into()),
            Way::Closed => Err(io::ErrorKind::ConnectionRefused.into()),
            Way::Forbidden => Err(io::ErrorKind::PermissionDenied.into()),
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
        let Some(token) = self.poll.watch(tcp.stream(), Who::Tcp(flow)) else { return };
        self.tcp.insert(flow, (token, tcp));
        *self.connections.entry(flow.port).or_default() += 1;
        self.dirty.insert(flow);
    }

    fn remove_tcp(&mut self, flow: &Flow) -> Option<Tcp> {
        let (token, tcp) = self.tcp.remove(flow)?;
        self.poll.forget(token);
        self.dirty.remove(flow);
        if let Some(count) = self.connections.get_mut(&flow.port) {
            *count -= 1;
        }
        Some(tcp)
    }

    fn settle(&mut self, flow: Flow, next: Next, ports: &mut Ports) {
        let port = ports.get_mut(flow.port);
        match next {
            Next::Wait => {}
            Next::Blocked => {
                port.map(|port| port.blocked.insert(flow));
            }
            Next::Over => {
                port.map(|port| port.blocked.remove(&flow));
                self.remove_tcp(&flow);
            }
            Next::Refused => {
                port.map(|port| port.blocked.remove(&flow));
                if let Some(tcp) = self.remove_tcp(&flow) {
                    self.try_otherwise(flow, tcp, ports);
                }
            }
        }
    }

    /// A datagram from a guest.
    pub(super) fn datagram(&mut self, flow: Flow, payload: &[u8], ports: &mut Ports) {
        let Some(mut link) = ports.link(flow.port, &mut self.scratch) else { return };
        if let Some((_, udp)) = self.udp.get_mut(&flow) {
            udp.send(payload, &mut link);
            return;
        }
        let is_name = self.plan.is_name_server(flow.remote.ip()) && flow.remote.port() == DNS_PORT;
        let waits = |udp: &Udp| udp.waits(flow.port, DNS_PORT, link.now, NAME_WAIT);
        if is_name && self.udp.values().filter(|(_, udp)| waits(udp)).count() >= NAMES_MAX {
            let failed = super::dns::failure(payload);
            let failed = failed.map(|answer| frame::udp(link.guest, flow.remote, flow.guest, &answer));
            failed.into_iter().for_each(|packet| link.out.push_back(packet));
            return;
        }
        let to = match way_out(&self.plan, &self.filter, &flow, Opening::Udp(flow.remote.port())) {
            Way::Out(to) => to,
            // Nobody answers for groups (RFC 1122 §3.2.2).
            _ if self.plan.is_group(flow.remote.ip()) => return,
            Way::Nobody => return datagram::tell(&flow, Reason::Host, &mut link),
            Way::Closed => return datagram::tell(&flow, Reason::Port, &mut link),
            Way::Forbidden => return datagram::tell(&flow, Reason::Prohibited, &mut link),
        };
        match Udp::open(flow, to, link.now) {
            Ok(mut udp) => {
                udp.send(payload, &mut link);
                self.add_udp(flow, udp);
            }
            Err(_) => datagram::tell(&flow, Reason::Network, &mut link),
        }
    }

    fn add_udp(&mut self, flow: Flow, udp: Udp) {
        if self.udp.len() >= DATAGRAM_FLOWS_MAX {
            let oldest = self.udp.iter().min_by_key(|(_, (_, udp))| udp.deadline()).map(|(flow, _)| *flow);
            oldest.into_iter().for_each(|flow| self.forget(Who::Udp(flow)));
        }
        let token = match udp.socket() {
            Some(socket) => self.poll.watch(socket, Who::Udp(flow)),
            None => Some(self.poll.token(Who::Udp(flow))),
        };
        let Some(token) = token else { return };
        self.time(udp.deadline(), Who::Udp(flow));
        self.udp.insert(flow, (token, udp));
    }

    /// An echo request from a guest.
    pub(super) fn echo_request(&mut self, flow: EchoFlow, sequence: u16, data: &[u8], ports: &mut Ports) {
        let Some(mut link) = ports.link(flow.port, &mut self.scratch) else { return };
        let EchoFlow { port, guest, remote, ident } = flow;
        if self.plan.is_ours(remote) {
            link.out.push_back(frame::echo_reply(link.guest, [remote, guest], ident, sequence, data));
            return;
        }
        if !self.echo.contains_key(&flow) {
            let ends = Flow { port, guest: (guest, 0).into(), remote: (remote, 0).into() };
            let why = match way_out(&self.plan, &self.filter, &ends, Opening::Icmp) {
                Way::Out(_) => None,
                Way::Nobody | Way::Closed => Some(Reason::Host),
                Way::Forbidden => Some(Reason::Prohibited),
            };
            if let Some(why) = why {
                return datagram::tell_echo(&flow, sequence, why, &mut link);
            }
            if self.echo.len() >= ECHO_FLOWS_MAX {
                return;
            }
            // Where the host allows its users no echo, there is none (icmp(7), ping_group_range).
            let echo = match Echo::open(flow, link.now) {
                Ok(echo) => echo,
                Err(error) => {
                    let why = datagram::reason(&error).unwrap_or(Reason::Prohibited);
                    return datagram::tell_echo(&flow, sequence, why, &mut link);
                }
            };
            let deadline = echo.deadline();
            let Some(token) = self.poll.watch(echo.socket(), Who::Echo(flow)) else { return };
            self.echo.insert(flow, (token, echo));
            self.time(deadline, Who::Echo(flow));
        }
        if let Some((_, echo)) = self.echo.get_mut(&flow)
            && let Some(mut link) = ports.link(port, &mut self.scratch)
        {
            // Lost, as on any way.
            let _ = echo.send(sequence, data, &mut link);
        }
    }

    /// Somebody comes in by a published port.
    fn knock(&mut self, guest: Ipv4Addr, index: usize, ports: &mut Ports) {
        let Some((socket, port, _)) = ports.get(guest).and_then(|port| port.listeners.get(index)) else {
            return;
        };
        let number = *port;
        match socket {
            Socket::Tcp(listener) => {
                let mut came = Vec::new();
                while let Ok((stream, peer)) = listener.accept() {
                    came.push((stream, peer));
                }
                for (stream, peer) in came {
                    let by6 = peer.ip().to_canonical().is_ipv6();
                    let flow = self.flow_in((guest, number), peer, by6, ports);
                    let flow = flow.or_else(|| self.flow_in((guest, number), peer, false, ports));
                    if let Some(flow) = flow {
                        self.admit(flow, stream, ports);
                    }
                }
            }
            Socket::Udp(socket) => {
                let socket = socket.clone();
                self.take_published(guest, (guest, number).into(), &socket, ports);
            }
        }
    }

    /// Leads a stream of this host to a guest's port, which sees it come from the gateway. It ends at once if the guest does not
    /// want it, or its security groups do not.
    pub(super) fn lead_in(&mut self, guest: Ipv4Addr, number: u16, stream: TcpStream, ports: &mut Ports) {
        // Those that the host itself would take (RFC 6335 §6), from behind the last one on.
        let count = OWN_PORTS.end() - OWN_PORTS.start() + 1;
        for step in 1..=count {
            let port = OWN_PORTS.start() + (self.last_own + step) % count;
            let flow = self.flow_in((guest, number), (Ipv4Addr::LOCALHOST, port).into(), false, ports);
            let Some(flow) = flow.filter(|flow| !self.tcp.contains_key(flow)) else { continue };
            self.last_own = port - OWN_PORTS.start();
            return self.admit(flow, stream, ports);
        }
    }

    /// The flow of somebody who comes in by a published port to a guest's port, by one version of IP; none if the guest is not
    /// known to have an address of it.
    fn flow_in(
        &self,
        (guest, number): (Ipv4Addr, u16),
        peer: SocketAddr,
        by6: bool,
        ports: &Ports,
    ) -> Option<Flow> {
        let address = match by6 {
            true => ports.get(guest).and_then(|port| ports.address6(port))?.into(),
            false => guest.into(),
        };
        Some(Flow {
            port: guest,
            guest: SocketAddr::new(address, number),
            remote: self.plan.inside(peer, by6),
        })
    }

    /// Whom the guest has refused by the version of IP that they came by, by that, is led to it by the other.
    fn try_otherwise(&mut self, flow: Flow, tcp: Tcp, ports: &mut Ports) {
        let by6 = flow.guest.is_ipv6();
        let other = tcp.stream().peer_addr().ok().and_then(|peer| {
            let came_by6 = peer.ip().to_canonical().is_ipv6();
            self.flow_in((flow.port, flow.guest.port()), peer, !by6, ports).filter(|_| came_by6 == by6)
        });
        match other {
            Some(other) => {
                self.poll.release(tcp.stream());
                self.admit(other, tcp.into_stream(), ports);
            }
            None => drop(tcp.abandon()),
        }
    }

    fn admit(&mut self, flow: Flow, stream: TcpStream, ports: &mut Ports) {
        // One that is no TCP has no delay.
        let _ = stream.set_nodelay(true);
        if stream.set_nonblocking(true).is_err() || self.is_full(flow.port) || self.tcp.contains_key(&flow) {
            return;
        }
        if !allows_in(&self.filter, &flow, Opening::Tcp(flow.guest.port())) {
            // Without lingering, closing is resetting (socket(7)).
            let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
            return;
        }
        let first = self.first_sequence(&flow);
        let Some(mut link) = ports.link(flow.port, &mut self.scratch) else { return };
        let tcp = Tcp::by_host(flow, stream, first, &mut link);
        self.add_tcp(flow, tcp);
    }

    fn take_published(
        &mut self,
        vm: Ipv4Addr,
        guest: SocketAddr,
        socket: &Arc<UdpSocket>,
        ports: &mut Ports,
    ) {
        let now = Instant::now();
        loop {
            let (len, peer) = match socket.recv_from(&mut self.scratch) {
                Ok(came) => came,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // An earlier answer did not get there: whoever asked is gone.
                Err(_) => continue,
            };
            // Nothing says whether a datagram was wanted: it goes by IPv4, which every guest has.
            let remote = self.plan.inside(peer, false);
            let flow = Flow { port: vm, guest, remote };
            match self.udp.get_mut(&flow) {
                Some((_, udp)) => udp.touch(now),
                None if !allows_in(&self.filter, &flow, Opening::Udp(guest.port())) => continue,
                None => self.add_udp(flow, Udp::published(flow, socket.clone(), peer, now)),
            }
            let payload = self.scratch.get(..len.min(frame::DATAGRAM_MAX)).unwrap_or_default();
            let Some(link) = ports.link(vm, &mut []) else { return };
            if !link.out.is_full(2 * OUT_MAX) {
                link.out.push_back(frame::udp(link.guest, remote, guest, payload));
            }
        }
    }

    /// Lets connections do what they can.
    pub(super) fn pump(&mut self, ports: &mut Ports) {
        let flows = std::mem::take(&mut self.dirty);
        for flow in flows {
            let Some((_, tcp)) = self.tcp.get_mut(&flow) else { continue };
            let Some(mut link) = ports.link(flow.port, &mut self.scratch) else { continue };
            let next = tcp.pump(&mut link);
            let deadline = tcp.deadline();
            self.settle(flow, next, ports);
            if let Some(deadline) = deadline {
                self.time(deadline, Who::Tcp(flow));
            }
        }
    }

    fn time(&mut self, at: Instant, who: Who) {
        if self.timed.insert(who) {
            self.timers.push(Reverse((at, who)));
        }
    }

    /// Does what is due.
    pub(super) fn expire(&mut self, ports: &mut Ports) {
        let now = Instant::now();
        while let Some(Reverse((at, who))) = self.timers.peek().copied() {
            if at > now {
                return;
            }
            self.timers.pop();
            self.timed.remove(&who);
            let later = match who {
                Who::Tcp(flow) => self.tick(flow, ports),
                Who::Udp(flow) => self.udp.get(&flow).map(|(_, udp)| udp.deadline()),
                Who::Echo(flow) => self.echo.get(&flow).map(|(_, echo)| echo.deadline()),
                Who::Port(_) | Who::Listener(..) | Who::Commands => None,
            };
            match later {
                Some(later) if later > now => self.time(later, who),
                Some(_) => self.forget(who),
                None => {}
            }
        }
    }

    fn tick(&mut self, flow: Flow, ports: &mut Ports) -> Option<Instant> {
        let mut link = ports.link(flow.port, &mut self.scratch)?;
        let (_, tcp) = self.tcp.get_mut(&flow)?;
        let next = tcp.tick(&mut link);
        let deadline = tcp.deadline();
        self.dirty.insert(flow);
        self.settle(flow, next, ports);
        deadline
    }

    fn forget(&mut self, who: Who) {
        let token = match who {
            Who::Udp(flow) => self.udp.remove(&flow).map(|(token, _)| token),
            Who::Echo(flow) => self.echo.remove(&flow).map(|(token, _)| token),
            Who::Tcp(_) | Who::Port(_) | Who::Listener(..) | Who::Commands => None,
        };
        token.into_iter().for_each(|token| self.poll.forget(token));
    }

    /// Ends all flows of a guest whose plug was pulled: on the host they are reset.
    pub(super) fn forget_guest(&mut self, guest: Ipv4Addr) {
        let is_its = |flow: &&Flow| flow.port == guest;
        let connections: Vec<Flow> = self.tcp.keys().filter(is_its).copied().collect();
        for flow in connections {
            if let Some(tcp) = self.remove_tcp(&flow) {
                tcp.abandon();
            }
        }
        self.connections.remove(&guest);
        self.filter.forget_vm(guest);
        let datagrams: Vec<Flow> = self.udp.keys().filter(is_its).copied().collect();
        datagrams.into_iter().for_each(|flow| self.forget(Who::Udp(flow)));
        let echoes: Vec<EchoFlow> = self.echo.keys().filter(|flow| flow.port == guest).copied().collect();
        echoes.into_iter().for_each(|flow| self.forget(Who::Echo(flow)));
    }
}

/// Where a guest's flow goes, if the rules let it.
fn way_out(plan: &Plan, filter: &Filter, flow: &Flow, opening: Opening) -> Way {
    match allows_out(plan, filter, flow, opening) {
        true => plan.outside(flow.remote),
        false => Way::Forbidden,
    }
}

fn allows_out(plan: &Plan, filter: &Filter, flow: &Flow, opening: Opening) -> bool {
    let remote = flow.remote.ip();
    // Names are found whatever else is.
    let asks = plan.is_name_server(remote) && flow.remote.port() == DNS_PORT;
    asks || filter.allows(flow.port, Direction::Out, opening, remote)
}

fn allows_in(filter: &Filter, flow: &Flow, opening: Opening) -> bool {
    filter.allows(flow.port, Direction::In, opening, flow.remote.ip())
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
