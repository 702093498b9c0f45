//! The thread of a switch.

use super::address::{GATEWAY_MAC, Plan};
use super::command::{Command, Commands, Controls, PlugError};
use super::discovery::{self, Discovery};
use super::fragments::Taken;
use super::input::{self, Frame, Input, Sender};
use super::listen::{Listeners, Socket};
use super::nat::Nat;
use super::poll::{Event, Who};
use super::ports::{Flushed, Port, Ports};
use super::tcp::OUT_MAX;
use super::{dhcp, dns, frame};
use crate::capture::Capture;
use crate::port::{Message, NetPort, SocketPort};
use smoltcp::wire::EthernetAddress;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};
use viv_model::{Attachment, NetworkSpec, PortCounters, SwitchCounters};

/// Packets that are taken from a port at once, and bytes of them: then the others have their turn.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 1 << 20;
/// A switch into which nobody is plugged any more ends; at its beginning it waits so long for the first.
const LONELY_FIRST: Duration = Duration::from_secs(30);
/// How often the router is advertised.
const ADVERTISE: Duration = Duration::from_secs(discovery::AGAIN_S);
/// And later so long: a VM that starts anew finds it.
const LONELY: Duration = Duration::from_secs(2);

/// A switch. It is moved into the thread that serves it.
pub struct Engine {
    nat: Nat,
    ports: Ports,
    commands: Commands,
    /// When it ends if nobody is plugged in by then.
    lonely_until: Option<Instant>,
    /// When the router is advertised again.
    advertise_at: Instant,
}

impl Engine {
    /// A switch for this network, whose guests have other names asked for at `resolver`.
    pub fn new(network: &NetworkSpec, resolver: Option<SocketAddr>) -> io::Result<(Engine, Controls)> {
        let plan = Plan::new(network, resolver);
        let ports = Ports::new(&plan);
        let mut nat = Nat::new(plan)?;
        let (controls, commands) = Commands::new()?;
        nat.poll.watch(&commands.waker, Who::Commands).ok_or(io::ErrorKind::OutOfMemory)?;
        let lonely_until = Some(Instant::now() + LONELY_FIRST);
        let advertise_at = Instant::now() + ADVERTISE;
        Ok((Engine { nat, ports, commands, lonely_until, advertise_at }, controls))
    }

    /// Serves until nobody has been plugged in for a while.
    pub fn serve(&mut self) -> io::Result<()> {
        let mut more = true;
        loop {
            let timeout = if more { Some(Duration::ZERO) } else { self.until_something() };
            let events = self.nat.poll.wait(timeout)?;
            self.ports.set_now(Instant::now());
            for event in events {
                self.event(event);
            }
            self.nat.expire(&mut self.ports);
            more = self.take_packets();
            self.nat.pump(&mut self.ports);
            if self.advertise_at <= self.ports.now {
                self.advertise();
            }
            self.flush();
            // Those that took too few answers may have taken them now.
            more |= self.ports.are_ready(4 * OUT_MAX);
            if self.lonely_until.is_some_and(|end| end <= self.ports.now) {
                return Ok(());
            }
        }
    }

    fn until_something(&self) -> Option<Duration> {
        let now = Instant::now();
        let deadlines = [self.lonely_until, self.ports.held_until(), Some(self.advertise_at)];
        let own =
            deadlines.into_iter().flatten().min().map(|deadline| deadline.saturating_duration_since(now));
        [own, self.nat.until_timer()].into_iter().flatten().min()
    }

    fn event(&mut self, event: Event) {
        match event.who {
            Who::Commands => {
                self.commands.clear();
                while let Ok(command) = self.commands.receiver.try_recv() {
                    self.obey(command);
                }
            }
            Who::Port(address) => {
                if event.readable {
                    self.ports.readable.insert(address);
                }
                if event.writable {
                    self.ports.writable.insert(address);
                }
            }
            who => self.nat.event(who, event.readable, event.writable, &mut self.ports),
        }
    }

    fn obey(&mut self, command: Command) {
        // Whoever asked may be gone.
        match command {
            Command::Plug(attachment, socket, listeners, answer) => {
                let _ = answer.send(self.plug(*attachment, socket, listeners));
            }
            Command::Unplug(vm, answer) => {
                let address = self.address_of(&vm);
                address.into_iter().for_each(|address| self.unplug(address));
                let _ = answer.send(address.is_some());
            }
            Command::Groups(groups, answer) => {
                let members = self.ports.all().map(|port| &port.attachment);
                self.nat.filter.set_groups(groups, members);
                self.nat.look_again(&mut self.ports);
                let _ = answer.send(());
            }
            Command::Resolver(resolver, answer) => {
                self.nat.plan.set_resolver(resolver);
                let _ = answer.send(());
            }
            Command::Member(vm, groups, answer) => {
                let port = self.address_of(&vm).and_then(|address| self.ports.get_mut(address));
                let known = port.map(|port| port.attachment.groups = groups).is_some();
                self.members_changed();
                let _ = answer.send(known);
            }
            Command::Limit(vm, limits, answer) => {
                let address = self.address_of(&vm);
                let now = self.ports.now;
                if let Some(address) = address
                    && let Some(port) = self.ports.get_mut(address)
                {
                    port.limit(limits, now);
                    self.ports.hold(address, now);
                    self.ports.set_now(now);
                }
                let _ = answer.send(address.is_some());
            }
            Command::Capture(vm, socket, answer) => {
                let port = self.address_of(&vm).and_then(|address| self.ports.get_mut(address));
                let _ = answer.send(port.is_some_and(|port| port.watch(Capture::new(socket))));
            }
            Command::Connect(vm, port, stream, answer) => {
                let address = self.address_of(&vm);
                if let Some(address) = address {
                    self.nat.lead_in(address, port, stream.into(), &mut self.ports);
                }
                let _ = answer.send(address.is_some());
            }
            Command::Counters(answer) => {
                let nat = &self.nat;
                let ports = self.ports.counters(|guest| nat.connections(guest));
                let _ = answer.send(SwitchCounters { ports, rules: nat.filter.counters() });
            }
            Command::List(answer) => {
                let _ = answer.send(self.ports.all().map(|port| port.attachment.clone()).collect());
            }
        }
    }

    fn members_changed(&mut self) {
        self.nat.filter.compile(self.ports.all().map(|port| &port.attachment));
        self.nat.look_again(&mut self.ports);
    }

    fn address_of(&self, vm: &str) -> Option<Ipv4Addr> {
        self.ports.all().find(|port| port.attachment.vm == vm).map(|port| port.attachment.address)
    }

    fn plug(
        &mut self,
        attachment: Attachment,
        socket: SocketPort,
        listeners: Listeners,
    ) -> Result<(), PlugError> {
        let (address, mac) = (attachment.address, EthernetAddress(attachment.mac));
        let plan = &self.nat.plan;
        if !plan.subnet.contains(address) || plan.is_ours(address.into()) || plan.is_group(address.into()) {
            return Err(PlugError::NotOurs(address));
        }
        if mac.0 == GATEWAY_MAC || !mac.is_unicast() {
            return Err(PlugError::Taken("of the gateway".to_string()));
        }
        self.address_of(&attachment.vm).into_iter().for_each(|earlier| self.unplug(earlier));
        let same = self.ports.of_mac(mac).or(self.ports.get(address).map(|_| address));
        if let Some(other) = same.and_then(|same| self.ports.get(same)) {
            return Err(PlugError::Taken(other.attachment.name.clone()));
        }
        let refused = || PlugError::Host("it watches no more descriptors".to_string());
        let token = self.nat.poll.watch(socket.descriptor(), Who::Port(address)).ok_or_else(refused)?;
        let mut port = Port::new(attachment, socket, token, self.ports.now);
        for (index, (socket, guest)) in listeners.into_sockets().into_iter().enumerate() {
            let who = Who::Listener(address, index);
            let token = match &socket {
                Socket::Tcp(listener) => self.nat.poll.watch(listener, who),
                Socket::Udp(socket) => self.nat.poll.watch(socket.as_ref(), who),
            };
            let Some(token) = token else {
                self.forget_tokens(&port);
                return Err(refused());
            };
            port.listeners.push((socket, guest, token));
        }
        self.announce(address, mac);
        self.ports.add(port);
        // A guest that knew the network before tells what it has.
        let advertisement = discovery::router_advertisement(&self.nat.plan, mac);
        self.reply(address, Some(advertisement));
        self.reply(address, Some(discovery::question(mac, self.ports.global(mac))));
        self.members_changed();
        self.lonely_until = None;
        Ok(())
    }

    /// Tells the others whose address that is now: an earlier VM may have had it.
    fn announce(&mut self, address: Ipv4Addr, mac: EthernetAddress) {
        let others: Vec<_> = self.ports.all().map(|port| (port.attachment.address, port.called())).collect();
        for (other, to) in others {
            let global = self.ports.global(mac);
            let announcements =
                [frame::arp_announcement(to, mac, address), Some(discovery::announcement(to, mac, global))];
            if !announcements.iter().flatten().all(|packet| self.ports.forward(other, packet)) {
                self.unplug(other);
            }
        }
    }

    /// Tells all guests of the router.
    fn advertise(&mut self) {
        self.advertise_at = Instant::now() + ADVERTISE;
        let guests: Vec<_> = self.ports.all().map(|port| (port.attachment.address, port.called())).collect();
        for (guest, mac) in guests {
            let advertisement = discovery::router_advertisement(&self.nat.plan, mac);
            self.reply(guest, Some(advertisement));
        }
    }

    fn forget_tokens(&mut self, port: &Port) {
        self.nat.poll.forget(port.token);
        port.listeners.iter().for_each(|(_, _, token)| self.nat.poll.forget(*token));
    }

    fn unplug(&mut self, address: Ipv4Addr) {
        let Some(port) = self.ports.remove(address) else { return };
        self.nat.forget_guest(address);
        self.members_changed();
        self.forget_tokens(&port);
        if self.ports.len() == 0 {
            self.lonely_until = Some(Instant::now() + LONELY);
        }
    }

    /// Takes packets from the ports; true if there may be more.
    fn take_packets(&mut self) -> bool {
        let mut more = false;
        for address in std::mem::take(&mut self.ports.readable) {
            let Some(port) = self.ports.get_mut(address) else { continue };
            let mut message = std::mem::take(&mut port.incoming);
            let taken = self.take_packets_of(address, &mut message);
            if let Some(port) = self.ports.get_mut(address) {
                port.incoming = message;
            }
            match taken {
                Ok(Batch::All) => {}
                Ok(Batch::Some) => {
                    self.ports.readable.insert(address);
                    more = true;
                }
                // It asks faster than it takes our answers.
                Ok(Batch::Waiting) => {
                    self.ports.readable.insert(address);
                }
                Ok(Batch::Until(until)) => self.ports.hold(address, until),
                Err(_) => self.unplug(address),
            }
        }
        more
    }

    fn take_packets_of(&mut self, address: Ipv4Addr, message: &mut Message) -> io::Result<Batch> {
        let now = self.ports.now;
        let (mut packets, mut bytes) = (0, 0);
        while packets < BATCH && bytes < BATCH_BYTES {
            let Some(port) = self.ports.get_mut(address) else { return Ok(Batch::All) };
            if port.out.is_full(4 * OUT_MAX) {
                return Ok(Batch::Waiting);
            }
            let Some(packet) = message.front_mut() else {
                if port.socket.receive(message)? {
                    continue;
                }
                port.sends_nothing(now);
                return Ok(Batch::All);
            };
            if let Some(until) = port.sends_at(now) {
                return Ok(Batch::Until(until));
            }
            port.sent(packet, now);
            port.own(packet);
            packets += 1;
            bytes += packet.len();
            self.input(address, packet);
            message.pop();
        }
        Ok(Batch::Some)
    }

    /// A packet from the port of this address, or a part of one.
    fn input(&mut self, from: Ipv4Addr, packet: &[u8]) {
        let now = self.ports.now;
        let Some(port) = self.ports.get_mut(from) else { return };
        match port.fragments.take(packet, now) {
            Taken::Whole => self.whole(from, packet),
            Taken::Part => {}
            Taken::Refused => port.counters.refused += 1,
            Taken::Packet(packet) => self.whole(from, &packet),
        }
    }

    fn whole(&mut self, from: Ipv4Addr, packet: &[u8]) {
        let Some(port) = self.ports.get(from) else { return };
        let (mac, called) = (port.mac, port.called());
        let ports = &mut self.ports;
        let sender = Sender { mac, address: from, owns: |address| ports.claim(from, address) };
        match input::parse(packet, &self.nat.plan, sender) {
            None => self.count(from, |counters| counters.refused += 1),
            Some(Frame::Arp(request)) => {
                // Its own nobody else has: it asks to find that out (RFC 5227).
                let owner = |address| self.owner(address).filter(|_| address != from);
                let reply = frame::arp_reply(request, owner);
                self.reply(from, reply);
            }
            Some(Frame::Discovery(asker, discovery)) => self.discover(from, [mac, called], asker, discovery),
            Some(Frame::Gateway(Input::Tcp(flow, segment))) => {
                self.nat.segment(flow, &segment, &mut self.ports);
            }
            Some(Frame::Gateway(Input::Udp(flow, payload))) => self.datagram(from, flow, payload),
            Some(Frame::Gateway(Input::Echo(flow, sequence, data))) => {
                self.nat.echo_request(flow, sequence, data, &mut self.ports);
            }
            Some(Frame::Neighbours { to, address }) => self.forward(from, to, address, packet),
        }
    }

    fn count(&mut self, port: Ipv4Addr, count: impl Fn(&mut PortCounters)) {
        if let Some(port) = self.ports.get_mut(port) {
            count(&mut port.counters);
        }
    }

    /// Whose card has an address.
    fn owner(&self, address: impl Into<IpAddr>) -> Option<EthernetAddress> {
        let address = address.into();
        if self.nat.plan.is_ours(address) {
            return Some(EthernetAddress(GATEWAY_MAC));
        }
        self.ports.of_address(address).and_then(|port| self.ports.get(port)).map(|port| port.mac)
    }

    /// Answers what a guest asks of neighbours.
    fn discover(
        &mut self,
        from: Ipv4Addr,
        [mac, called]: [EthernetAddress; 2],
        asker: Ipv6Addr,
        discovery: Discovery,
    ) {
        let answer = match discovery {
            Discovery::Nothing => return,
            Discovery::Router => discovery::router_advertisement(&self.nat.plan, called),
            Discovery::Neighbour(target) => {
                // One that asks without an address wants to have it (RFC 4862 §5.4): it is its own if nobody has it.
                if asker.is_unspecified() && self.ports.claim(from, target) {
                    return;
                }
                let owner = self.owner(target).filter(|owner| *owner != mac);
                match owner {
                    Some(owner) => discovery::answer(called, asker, target, owner),
                    // It may not have it: as if we had it.
                    None if asker.is_unspecified() => {
                        discovery::answer(called, asker, target, EthernetAddress(GATEWAY_MAC))
                    }
                    None => return,
                }
            }
        };
        self.reply(from, Some(answer));
    }

    fn datagram(&mut self, from: Ipv4Addr, flow: super::address::Flow, payload: &[u8]) {
        let plan = &self.nat.plan;
        if flow.remote.port() == dhcp::SERVER_PORT && flow.remote.is_ipv4() {
            let Some(port) = self.ports.get(from) else { return };
            let answer = dhcp::answer(payload, plan, from, &port.attachment.name);
            // Its card takes it, whatever address it has or thinks to have.
            let source = (plan.gateway.v4, dhcp::SERVER_PORT).into();
            let to = (Ipv4Addr::BROADCAST, dhcp::CLIENT_PORT).into();
            let reply = answer.map(|answer| frame::udp(port.called(), source, to, &answer));
            return self.reply(from, reply);
        }
        if flow.remote.port() == super::address::DNS_PORT && plan.is_name_server(flow.remote.ip()) {
            let named = |name: &str| {
                let mut ports = self.ports.all();
                let port = ports.find(|port| port.attachment.name.eq_ignore_ascii_case(name))?;
                Some(dns::Addresses { v4: port.attachment.address, v6: self.ports.address6(port) })
            };
            let name = |address| {
                let port = self.ports.of_address(address).and_then(|port| self.ports.get(port))?;
                Some(port.attachment.name.clone())
            };
            if let Some(answer) = dns::answer(payload, plan, named, name)
                && let Some(port) = self.ports.get(from)
            {
                let reply = frame::udp(port.called(), flow.remote, flow.guest, &answer);
                return self.reply(from, Some(reply));
            }
        }
        self.nat.datagram(flow, payload, &mut self.ports);
    }

    fn reply(&mut self, to: Ipv4Addr, packet: Option<Vec<u8>>) {
        if let Some(packet) = packet
            && let Some(link) = self.ports.link(to, &mut [])
        {
            link.out.push_back(packet);
        }
    }

    /// Hands a packet to the neighbours whom it is for.
    fn forward(&mut self, from: Ipv4Addr, to: EthernetAddress, address: IpAddr, packet: &[u8]) {
        if to.is_unicast() {
            // A card is reached at its guest's own addresses only: nobody is a router here but us.
            let port = self.ports.of_mac(to).filter(|port| *port != from);
            match port.filter(|port| self.ports.of_address(address) == Some(*port)) {
                Some(port) => self.forward_to(from, port, packet, false),
                None => self.count(from, |counters| counters.refused += 1),
            }
            return;
        }
        if !self.nat.plan.is_group(address) {
            return self.count(from, |counters| counters.refused += 1);
        }
        let others: Vec<Ipv4Addr> = self.ports.all().map(|port| port.attachment.address).collect();
        for other in others.into_iter().filter(|other| *other != from) {
            self.forward_to(from, other, packet, true);
        }
    }

    fn forward_to(&mut self, from: Ipv4Addr, to: Ipv4Addr, packet: &[u8], is_group: bool) {
        let ip = packet.get(frame::NETWORK..).unwrap_or_default();
        if !self.nat.filter.passes(ip, [from, to], is_group, self.ports.now) {
            self.count(from, |counters| counters.denied += 1);
        } else if !self.ports.forward(to, packet) {
            self.unplug(to);
        }
    }

    /// Hands packets to the guests, and lets those connections go on that waited for that.
    fn flush(&mut self) {
        while let Some(address) = self.ports.writable.pop_first() {
            while self.flush_port(address) {}
        }
    }

    /// True if there is more to hand over.
    fn flush_port(&mut self, address: Ipv4Addr) -> bool {
        let now = self.ports.now;
        let Some(port) = self.ports.get_mut(address) else { return false };
        match port.flush(now) {
            Ok(Flushed::All) => {}
            Ok(Flushed::Full) => return false,
            Ok(Flushed::Until(until)) => {
                self.ports.hold(address, until);
                return false;
            }
            Err(_) => {
                self.unplug(address);
                return false;
            }
        }
        let Some(port) = self.ports.get_mut(address) else { return false };
        if port.blocked.is_empty() {
            return false;
        }
        self.nat.dirty.append(&mut port.blocked);
        self.nat.pump(&mut self.ports);
        self.ports.get(address).is_some_and(|port| !port.out.is_empty())
    }
}

/// What was taken from a port.
enum Batch {
    All,
    Some,
    Waiting,
    /// Its limit lets the next one pass only then.
    Until(Instant),
}
