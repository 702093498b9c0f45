//! A whole network with a guest that is smoltcp's own stack, against sockets of the host's loopback.

use super::address::MTU;
use super::{Controls, Engine, Listeners, parse_frame};
use crate::port::{Message, NetPort, SocketPort};
use proptest::prelude::*;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::time::Instant as Clock;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, IpEndpoint};
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};
use viv_model::{Attachment, NetworkSpec, PortSpec, Protocol};

pub(super) const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// What happens to every so manieth packet on its way to the guest; zero: to none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trouble {
    pub(super) lose: u32,
    pub(super) twice: u32,
    /// It comes behind the one that follows it.
    pub(super) late: u32,
}

/// A card for smoltcp, with trouble both ways.
pub(super) struct Card {
    port: SocketPort,
    incoming: Message,
    /// To the guest, and from it.
    pub(super) trouble: [Trouble; 2],
    count: [u32; 2],
    ready: VecDeque<Vec<u8>>,
    /// A packet each way that is late.
    late: [Option<Vec<u8>>; 2],
}

pub(super) struct Received(Vec<u8>);
pub(super) struct Sent<'a>(&'a mut Card);

impl Card {
    /// What becomes of a packet, to the guest or from it.
    fn pass(&mut self, way: usize, packet: Vec<u8>) -> Vec<Vec<u8>> {
        self.count[way] += 1;
        let Trouble { lose, twice, late } = self.trouble[way];
        let is = |every: u32| every != 0 && self.count[way].is_multiple_of(every);
        let before = self.late[way].take();
        let mut packets = match () {
            () if is(lose) => Vec::new(),
            () if is(twice) => vec![packet.clone(), packet],
            () if is(late) => {
                self.late[way] = Some(packet);
                Vec::new()
            }
            () => vec![packet],
        };
        packets.extend(before);
        packets
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0[12..])
    }
}

impl TxToken for Sent<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; 12 + len];
        let result = f(&mut packet[12..]);
        for packet in self.0.pass(1, packet) {
            self.0.port.send_one(&packet).expect("the network lives");
        }
        result
    }
}

impl Device for Card {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sent<'a>;

    fn receive(&mut self, _: Clock) -> Option<(Received, Sent<'_>)> {
        loop {
            if let Some(mut buffer) = self.ready.pop_front() {
                assert!(crate::offload::finish_checksum(&mut buffer), "every packet's header is right");
                return Some((Received(buffer), Sent(self)));
            }
            let Some(packet) = self.incoming.front().map(<[u8]>::to_vec) else {
                if self.port.receive(&mut self.incoming).expect("the network lives") {
                    continue;
                }
                return None;
            };
            self.incoming.pop();
            let passed = self.pass(0, packet);
            self.ready.extend(passed);
        }
    }

    fn transmit(&mut self, _: Clock) -> Option<Sent<'_>> {
        Some(Sent(self))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(MTU) + 14;
        capabilities
    }
}

/// The card of the guest with this address.
pub(super) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [.., last] = address.octets();
    [2, 0, 0, 0, 0, last]
}

pub(super) fn attachment(name: &str, address: Ipv4Addr) -> Attachment {
    Attachment {
        vm: format!("id-of-{name}"),
        name: name.to_string(),
        mac: mac(address),
        address,
        groups: Vec::new(),
        labels: Vec::new(),
        limits: Default::default(),
        aliases: Vec::new(),
    }
}

/// A network that runs until nobody is in it.
pub(super) fn network(spec: &NetworkSpec, resolver: Option<SocketAddr>) -> Controls {
    let (mut engine, controls) = Engine::new(spec, resolver).unwrap();
    thread::spawn(move || engine.serve().unwrap());
    controls
}

pub(super) struct Guest {
    controls: Controls,
    pub(super) card: Card,
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
}

impl Guest {
    pub(super) fn plugged_into(listeners: Listeners) -> Guest {
        let controls = network(&NetworkSpec::user(true), None);
        Guest::in_network(&controls, "web", GUEST, listeners)
    }

    pub(super) fn in_network(
        controls: &Controls,
        name: &str,
        address: Ipv4Addr,
        listeners: Listeners,
    ) -> Guest {
        let (port, theirs) = SocketPort::pair().unwrap();
        let mac = mac(address);
        controls.plug(attachment(name, address), theirs, listeners).unwrap();
        let mut card = Card {
            port,
            incoming: Message::default(),
            trouble: Default::default(),
            count: [0; 2],
            ready: VecDeque::new(),
            late: Default::default(),
        };
        let config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        let mut interface = Interface::new(config, &mut card, Clock::now());
        let prefix = NetworkSpec::USER.prefix6();
        let global = super::address::interface(prefix, mac);
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(address.into(), 24)).unwrap();
            addresses.push(IpCidr::new(global.into(), 64)).unwrap();
        });
        interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
        interface.routes_mut().add_default_ipv6_route(super::address::ROUTER).unwrap();
        let controls = controls.clone();
        Guest { controls, card, interface, sockets: SocketSet::new(Vec::new()) }
    }

    pub(super) fn new() -> Guest {
        Guest::plugged_into(Listeners::default())
    }

    pub(super) fn controls(&self) -> &Controls {
        &self.controls
    }

    pub(super) fn tcp(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 256 << 10]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    pub(super) fn connect(&mut self, to: impl Into<IpEndpoint>, from: u16) -> SocketHandle {
        let handle = self.tcp();
        self.connect_by(handle, to, from);
        handle
    }

    pub(super) fn connect_by(&mut self, handle: SocketHandle, to: impl Into<IpEndpoint>, from: u16) {
        let context = self.interface.context();
        self.sockets.get_mut::<tcp::Socket<'_>>(handle).connect(context, to, from).unwrap();
    }

    /// Lets the stack run until `done` gives something.
    pub(super) fn until<T>(&mut self, mut done: impl FnMut(&mut SocketSet<'static>) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            self.interface.poll(Clock::now(), &mut self.card, &mut self.sockets);
            if let Some(result) = done(&mut self.sockets) {
                self.interface.poll(Clock::now(), &mut self.card, &mut self.sockets);
                return result;
            }
            assert!(begin.elapsed() < PATIENCE, "it takes too long");
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Sends all and finishes; takes all until the other side finishes.
    pub(super) fn exchange(&mut self, handle: SocketHandle, bytes: &[u8]) -> Vec<u8> {
        let (mut sent, mut got, mut closed) = (0, Vec::new(), false);
        self.until(|sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            if socket.can_send() && sent < bytes.len() {
                sent += socket.send_slice(&bytes[sent..]).unwrap();
            }
            if sent == bytes.len() && socket.may_send() && !closed {
                closed = true;
                socket.close();
            }
            while socket.can_recv() {
                socket.recv(|piece| (piece.len(), got.extend_from_slice(piece))).unwrap();
            }
            (closed && !socket.may_recv()).then_some(())
        });
        got
    }
}

pub(super) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

/// A server that answers what it was sent, once that is over.
pub(super) fn parrot() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            stream.write_all(&all).unwrap();
        }
    });
    port
}

#[test]
fn a_guest_gets_its_lease() {
    let mut guest = Guest::new();
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let lease = guest.until(|sockets| match sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
        Some(dhcpv4::Event::Configured(lease)) => {
            Some((lease.address.to_string(), lease.router, lease.dns_servers.first().copied()))
        }
        _ => None,
    });
    let name_server = Ipv4Addr::new(10, 0, 2, 3);
    assert_eq!(lease, ("10.0.2.15/24".to_string(), Some(GATEWAY), Some(name_server)));
}

#[test]
fn a_connection_to_the_gateway_reaches_the_hosts_loopback_and_halves_close_by_themselves() {
    let mut guest = Guest::new();
    let handle = guest.connect((GATEWAY, parrot()), 40000);
    let sent = bytes(3 << 20);
    assert!(guest.exchange(handle, &sent) == sent, "what comes back is what was sent");
}

#[test]
fn lost_packets_are_sent_again() {
    let mut guest = Guest::new();
    guest.card.trouble[0].lose = 7;
    let handle = guest.connect((GATEWAY, parrot()), 40000);
    let sent = bytes(1 << 20);
    assert!(guest.exchange(handle, &sent) == sent);
}

#[test]
fn a_port_where_nobody_listens_is_refused_at_once() {
    let mut guest = Guest::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let begin = Instant::now();
    for (to, from) in [((GATEWAY, port), 40000), ((Ipv4Addr::new(10, 0, 2, 3), 80), 40001)] {
        let handle = guest.connect(to, from);
        guest.until(|sockets| {
            (sockets.get_mut::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed).then_some(())
        });
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_reset_on_the_host_is_one_in_the_guest() {
    let mut guest = Guest::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = guest.connect((GATEWAY, listener.local_addr().unwrap().port()), 40000);
    guest.until(|sockets| sockets.get_mut::<tcp::Socket<'_>>(handle).may_send().then_some(()));
    let (stream, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    drop(stream);
    guest.until(|sockets| {
        (sockets.get_mut::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed).then_some(())
    });
}

#[test]
fn a_slow_reader_in_the_guest_stops_the_sender_and_loses_nothing() {
    let mut guest = Guest::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let handle = guest.connect((GATEWAY, listener.local_addr().unwrap().port()), 40000);
    let sent = bytes(24 << 20);
    let (said, heard) = mpsc::channel();
    let copy = sent.clone();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&copy).unwrap();
        said.send(()).unwrap();
    });
    guest.until(|sockets| sockets.get_mut::<tcp::Socket<'_>>(handle).can_recv().then_some(()));
    let begin = Instant::now();
    guest.until(|_| (begin.elapsed() > Duration::from_millis(500)).then_some(()));
    assert!(heard.try_recv().is_err(), "24 MiB do not fit between them");
    assert!(guest.exchange(handle, &[]) == sent);
}

fn published(protocol: Protocol, guest: u16) -> (Listeners, u16) {
    // The host's kernel chooses a port that is free.
    let port = PortSpec { ip: Ipv4Addr::LOCALHOST.into(), host: 0, guest, protocol };
    let listeners = Listeners::open(&[port]).unwrap();
    let at = listeners.addresses()[0].port();
    (listeners, at)
}

#[test]
fn a_published_port_leads_into_the_guest() {
    let (listeners, port) = published(Protocol::Tcp, 80);
    let mut guest = Guest::plugged_into(listeners);
    let handle = guest.tcp();
    guest.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(80).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.write_all(b"ask").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let from = guest.until(|sockets| {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.may_send().then(|| socket.remote_endpoint().unwrap().addr)
    });
    assert_eq!(from, GATEWAY.into());
    assert_eq!(guest.exchange(handle, b"answer"), b"ask");
    let begin = Instant::now();
    guest.until(|_| (client.is_finished() || begin.elapsed() > PATIENCE).then_some(()));
    assert_eq!(client.join().unwrap(), "answer");
}

#[test]
fn a_published_port_that_the_guest_refuses_is_closed() {
    let (listeners, port) = published(Protocol::Tcp, 81);
    let mut guest = Guest::plugged_into(listeners);
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.read(&mut [0]).map_or(0, |count| count)
    });
    guest.until(|_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), 0);
}

fn datagrams(guest: &mut Guest) -> SocketHandle {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 16], vec![0; 256 << 10]);
    guest.sockets.add(udp::Socket::new(buffer(), buffer()))
}

#[test]
fn datagrams_go_out_and_come_back_small_and_large() {
    let mut guest = Guest::new();
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = (GATEWAY, server.local_addr().unwrap().port());
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            server.send_to(&buffer[..len], from).unwrap();
        }
    });
    let handle = datagrams(&mut guest);
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).bind(5000).unwrap();
    for len in [0, 1, 1472, 9000, 60000] {
        guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(&bytes(len), to).unwrap();
        let got = guest.until(|sockets| {
            let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
            socket.recv().ok().map(|(payload, from)| (payload.to_vec(), from.endpoint))
        });
        assert_eq!(got, (bytes(len), IpEndpoint::from(to)));
    }
}

#[test]
fn a_published_datagram_port_leads_into_the_guest_and_back() {
    let (listeners, port) = published(Protocol::Udp, 7);
    let mut guest = Guest::plugged_into(listeners);
    let handle = datagrams(&mut guest);
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).bind(7).unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"ask", (Ipv4Addr::LOCALHOST, port)).unwrap();
    guest.until(|sockets| {
        let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
        let (payload, from) = socket.recv().map(|(payload, from)| (payload.to_vec(), from)).ok()?;
        assert_eq!(payload, b"ask");
        socket.send_slice(b"answer", from).unwrap();
        Some(())
    });
    // The answer goes once the guest knows the gateway's address.
    client.set_nonblocking(true).unwrap();
    let mut buffer = [0; 16];
    let (len, from) = guest.until(|_| client.recv_from(&mut buffer).ok());
    assert_eq!((&buffer[..len], from.port()), (b"answer".as_slice(), port));
}

#[test]
fn names_are_asked_for_at_the_resolver_that_the_host_has_now() {
    // Loopback, but not the gateway's: nothing else leads there.
    let [first, second] = ["127.0.0.53:0", "127.0.0.54:0"].map(|address| UdpSocket::bind(address).unwrap());
    let controls = network(&NetworkSpec::user(false), Some(first.local_addr().unwrap()));
    let mut guest = Guest::in_network(&controls, "web", GUEST, Listeners::default());
    let handle = datagrams(&mut guest);
    for (port, resolver) in [(5000, first), (5001, second)] {
        controls.set_resolver(resolver.local_addr().ok());
        let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
        socket.close();
        socket.bind(port).unwrap();
        socket.send_slice(b"query", (Ipv4Addr::new(10, 0, 2, 3), 53)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            let (len, from) = resolver.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"query");
            resolver.send_to(b"reply", from).unwrap();
        });
        let got = guest.until(|sockets| {
            sockets.get_mut::<udp::Socket<'_>>(handle).recv().ok().map(|(payload, _)| payload.to_vec())
        });
        assert_eq!(got, b"reply");
    }
}

/// Ways to the host's loopback by IPv6, which not every host has.
fn loopback6() -> Option<(TcpListener, UdpSocket)> {
    Some((TcpListener::bind("[::1]:0").ok()?, UdpSocket::bind("[::1]:0").ok()?))
}

#[test]
fn ipv6_reaches_the_host_as_its_gateway_and_what_is_not_there_says_so() {
    let Some((listener, server)) = loopback6() else { return eprintln!("this host has no IPv6") };
    let mut guest = Guest::new();
    let gateway = NetworkSpec::USER.gateway6();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let handle = guest.connect((gateway, port), 40000);
    let sent = bytes(2 << 20);
    assert!(guest.exchange(handle, &sent) == sent, "what comes back is what was sent");
    // The listener is gone; and nobody is at these.
    let begin = Instant::now();
    for (to, from) in [((gateway, port), 40001), ((gateway, 9), 40002)] {
        let handle = guest.connect(to, from);
        guest.until(|sockets| {
            (sockets.get_mut::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed).then_some(())
        });
    }
    assert!(begin.elapsed() < Duration::from_secs(5));
    let to = (gateway, server.local_addr().unwrap().port());
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            server.send_to(&buffer[..len], from).unwrap();
        }
    });
    let handle = datagrams(&mut guest);
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).bind(5000).unwrap();
    for len in [0, 1, 1472, 60000] {
        guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(&bytes(len), to).unwrap();
        let got = guest.until(|sockets| {
            let socket = sockets.get_mut::<udp::Socket<'_>>(handle);
            socket.recv().ok().map(|(payload, from)| (payload.to_vec(), from.endpoint))
        });
        assert_eq!(got, (bytes(len), IpEndpoint::from(to)));
    }
}

proptest! {
    #[test]
    fn any_frame_is_taken(packet in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..9u8) {
        let mut packet = packet;
        if packet.len() > 90 {
            packet[18..24].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
            match kind {
                0 => packet[24..26].copy_from_slice(&[0x08, 0x06]),
                1..=3 => {
                    packet[24..26].copy_from_slice(&[0x08, 0x00]);
                    packet[26] = 0x45;
                    packet[35] = [6, 17, 1][usize::from(kind - 1)];
                    packet[38..42].copy_from_slice(&GUEST.octets());
                }
                _ => {
                    packet[24..26].copy_from_slice(&[0x86, 0xdd]);
                    packet[26] = 0x60;
                    let len = (packet.len() - 26 - 40) as u16;
                    packet[30..32].copy_from_slice(&len.to_be_bytes());
                    packet[32] = [6, 17, 58, 58, 58][usize::from(kind - 4)];
                    if kind > 5 {
                        packet[33] = 255;
                        packet[66] = [133, 135, 128][usize::from(kind - 6)];
                    }
                }
            }
        }
        parse_frame(&packet);
    }
}
