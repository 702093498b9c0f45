//! Several VMs on one network: they reach one another as themselves only.

use super::address::{LINK_LOCAL, ROUTER, interface};
use super::tests::{GATEWAY, GUEST, Guest, PATIENCE, attachment, bytes, mac, network};
use super::{Controls, Listeners, PlugError};
use crate::port::{Message, NetPort, SocketPort};
use smoltcp::socket::tcp;
use std::cell::RefCell;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::thread;
use std::time::Instant;
use viv_model::{NetworkSpec, SecGroup};

pub(super) const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 16);
const THIRD: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 17);

pub(super) fn shop() -> Controls {
    network(&NetworkSpec { name: "shop".to_string(), ..NetworkSpec::user(false) }, None)
}

/// A VM whose frames are the test's own.
pub(super) struct Raw {
    pub(super) port: SocketPort,
    pub(super) incoming: RefCell<Message>,
    pub(super) mac: [u8; 6],
    pub(super) address: Ipv4Addr,
}

impl Raw {
    pub(super) fn plugged_into(controls: &Controls, name: &str, address: Ipv4Addr) -> Raw {
        let (port, theirs) = SocketPort::pair().unwrap();
        controls.plug(attachment(name, address), theirs, Listeners::default()).unwrap();
        Raw { port, incoming: RefCell::default(), mac: mac(address), address }
    }

    pub(super) fn send(&self, frame: &[u8]) {
        let mut packet = vec![0; 12];
        packet.extend(frame);
        assert!(self.port.send_one(&packet).unwrap());
    }

    /// The next frame that is there, or comes, but for what the network says of itself by IPv6.
    pub(super) fn frame(&self) -> Vec<u8> {
        loop {
            let frame = self.any_frame();
            let is_news =
                frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && (134..=136).contains(&frame[54]);
            if !is_news {
                return frame;
            }
        }
    }

    /// The next answer about neighbours of IPv6: its type, its flags, and the address that it is about.
    fn neighbourly(&self) -> (u8, u8, Ipv6Addr) {
        loop {
            let frame = self.any_frame();
            if frame[12..14] == [0x86, 0xdd] && frame[20] == 58 && frame[54] == 136 {
                let target: [u8; 16] = frame[62..78].try_into().unwrap();
                return (frame[54], frame[58], target.into());
            }
        }
    }

    /// Its card's address below a prefix.
    fn own6(&self, prefix: Ipv6Addr) -> Ipv6Addr {
        interface(prefix, self.mac)
    }

    fn datagram6(&self, to: &Raw, mark: u8) -> Vec<u8> {
        let prefix = NetworkSpec::USER.prefix6();
        let mut frame = ethernet(to.mac, self.mac, 0x86dd);
        frame.extend(ipv6(self.own6(prefix), to.own6(prefix), 17, 64, &udp(5000, 5001, &[mark])));
        frame
    }

    fn any_frame(&self) -> Vec<u8> {
        let begin = Instant::now();
        let mut incoming = self.incoming.borrow_mut();
        loop {
            if let Some(frame) = incoming.front().map(|packet| packet[12..].to_vec()) {
                incoming.pop();
                return frame;
            }
            if self.port.receive(&mut incoming).unwrap() {
                continue;
            }
            assert!(begin.elapsed() < PATIENCE, "no frame comes");
            thread::yield_now();
        }
    }

    /// A datagram to `to`, as it should be.
    fn datagram(&self, to: &Raw, mark: u8) -> Vec<u8> {
        let mut frame = ethernet(to.mac, self.mac, 0x0800);
        frame.extend(ipv4(self.address, to.address, 17, &udp(5000, 5001, &[mark])));
        frame
    }
}

pub(super) fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16) -> Vec<u8> {
    [&to[..], &from[..], &kind.to_be_bytes()].concat()
}

pub(super) fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&len.to_be_bytes());
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, hops: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((payload.len() as u16).to_be_bytes());
    packet.extend([protocol, hops]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// A question for a neighbour, or an answer, with the card of whoever says it.
fn discovery(kind: u8, target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0x60, 0, 0, 0];
    message.extend(target.octets());
    message.extend([if kind == 135 { 1 } else { 2 }, 1]);
    message.extend(mac);
    message
}

pub(super) fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len()) as u16;
    let mut packet = Vec::new();
    packet.extend([from.to_be_bytes(), to.to_be_bytes(), len.to_be_bytes(), [0, 0]].concat());
    packet.extend(payload);
    packet
}

fn arp(operation: u8, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, address) in [sender, target] {
        packet.extend(mac);
        packet.extend(address.octets());
    }
    packet
}

#[test]
fn two_vms_reach_each_other() {
    let controls = shop();
    let mut web = Guest::in_network(&controls, "web", GUEST, Listeners::default());
    let server = thread::spawn(move || {
        let mut db = Guest::in_network(&controls, "db", OTHER, Listeners::default());
        let handle = db.tcp();
        db.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(5432).unwrap();
        db.until(|sockets| sockets.get_mut::<tcp::Socket<'_>>(handle).may_send().then_some(()));
        let got = db.exchange(handle, b"answer");
        // Until the other side has it all.
        db.until(|sockets| (!sockets.get_mut::<tcp::Socket<'_>>(handle).is_active()).then_some(()));
        got
    });
    let handle = web.connect((OTHER, 5432), 40000);
    let sent = bytes(2 << 20);
    assert_eq!(web.exchange(handle, &sent), b"answer");
    web.until(|_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == sent, "what arrives is what was sent");
}

#[test]
fn no_spoofed_frame_reaches_another_vm() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let db = Raw::plugged_into(&controls, "db", OTHER);
    let all = [0xff; 6];
    let (own, theirs) = ((web.mac, GUEST), (db.mac, OTHER));
    let stranger = [2, 9, 9, 9, 9, 9];
    let good = udp(5000, 5001, b"x");
    let ip = |from, to| ipv4(from, to, 17, &good);
    let mut spoofed: Vec<(&str, Vec<u8>)> = Vec::new();
    let mut add = |what, parts: &[&[u8]]| spoofed.push((what, parts.concat()));
    let v4 = |to, from| ethernet(to, from, 0x0800);
    let arp_frame = |to, from| ethernet(to, from, 0x0806);
    let sane = ip(GUEST, OTHER);
    add("a card that nobody has", &[&v4(db.mac, stranger), &sane]);
    add("the neighbour's own card", &[&v4(db.mac, db.mac), &sane]);
    add("the gateway's card", &[&v4(db.mac, super::address::GATEWAY_MAC), &sane]);
    add("a group's card", &[&v4(db.mac, all), &sane]);
    add("an address that nobody has", &[&v4(db.mac, web.mac), &ip(THIRD, OTHER)]);
    add("the neighbour's address", &[&v4(db.mac, web.mac), &ip(OTHER, OTHER)]);
    add("the gateway's address", &[&v4(db.mac, web.mac), &ip(GATEWAY, OTHER)]);
    add("the name server's", &[&v4(db.mac, web.mac), &ip(Ipv4Addr::new(10, 0, 2, 3), OTHER)]);
    add("an address of the outside", &[&v4(db.mac, web.mac), &ip(Ipv4Addr::new(198, 51, 100, 1), OTHER)]);
    add("no address", &[&v4(db.mac, web.mac), &ip(Ipv4Addr::UNSPECIFIED, OTHER)]);
    add("loopback", &[&v4(db.mac, web.mac), &ip(Ipv4Addr::LOCALHOST, OTHER)]);
    add("to all, from loopback", &[&v4(all, web.mac), &ip(Ipv4Addr::LOCALHOST, Ipv4Addr::BROADCAST)]);
    add("to all, from the neighbour", &[&v4(all, web.mac), &ip(OTHER, Ipv4Addr::BROADCAST)]);
    add("another card at its address", &[&v4(db.mac, web.mac), &ip(GUEST, THIRD)]);
    add("a card of all, one address", &[&v4(all, web.mac), &sane]);
    add("behind a VLAN tag", &[&ethernet(db.mac, web.mac, 0x8100), &[0, 1, 8, 0], &ip(OTHER, OTHER)]);
    add("behind two", &[&ethernet(db.mac, web.mac, 0x88a8), &[0, 1, 0x81, 0, 0, 1, 8, 0], &sane]);
    add("IPv6 of nobody", &[&ethernet(db.mac, web.mac, 0x86dd), &[0x60, 0, 0, 0, 0, 0, 59, 1], &[0; 32]]);
    add("a protocol of its own", &[&ethernet(db.mac, web.mac, 0x9000), b"hello"]);
    add("a length, not a type", &[&ethernet(db.mac, web.mac, 5), b"hello"]);
    add(
        "a reply that we are the gateway",
        &[&arp_frame(db.mac, web.mac), &arp(2, (web.mac, GATEWAY), theirs)],
    );
    add("a reply that is true", &[&arp_frame(db.mac, web.mac), &arp(2, own, theirs)]);
    add("a gratuitous reply to all", &[&arp_frame(all, web.mac), &arp(2, (web.mac, OTHER), (all, OTHER))]);
    add(
        "an announcement of another's",
        &[&arp_frame(all, web.mac), &arp(1, (web.mac, OTHER), ([0; 6], OTHER))],
    );
    add("a request in another's name", &[&arp_frame(all, web.mac), &arp(1, theirs, ([0; 6], THIRD))]);
    add("a request to the neighbour", &[&arp_frame(db.mac, web.mac), &arp(1, (web.mac, GATEWAY), theirs)]);
    let mut options = ip(GUEST, OTHER);
    options[0] = 0x46;
    let route: &[u8] = &[0x83, 3, 4, 0];
    add("a source route", &[&v4(db.mac, web.mac), &options[..20], route, &good]);
    let mut first = ip(GUEST, OTHER);
    first[6] = 0x20;
    add("a first fragment", &[&v4(db.mac, web.mac), &first]);
    let mut later = ip(GUEST, OTHER);
    later[7] = 1;
    add("a later fragment", &[&v4(db.mac, web.mac), &later]);
    let offer = ipv4(GUEST, OTHER, 17, &udp(67, 68, &[2; 300]));
    add("an offer of a lease", &[&v4(db.mac, web.mac), &offer]);
    let offer = ipv4(GUEST, Ipv4Addr::BROADCAST, 17, &udp(67, 68, &[2; 300]));
    add("an offer of a lease to all", &[&v4(all, web.mac), &offer]);
    let ask = ipv4(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, 17, &udp(68, 67, &[1; 300]));
    add("a question for a lease", &[&v4(all, web.mac), &ask]);
    add("nothing of IP", &[&v4(db.mac, web.mac)]);
    let mut short = ip(GUEST, OTHER);
    short[3] = 200;
    add("more than there is", &[&v4(db.mac, web.mac), &short]);
    let mut version = ip(GUEST, OTHER);
    version[0] = 0x65;
    add("version 6 in IPv4's type", &[&v4(db.mac, web.mac), &version]);
    assert!(spoofed.len() >= 30, "{}", spoofed.len());
    for (index, (what, frame)) in spoofed.iter().enumerate() {
        web.send(frame);
        // What was sent later comes first: so nothing came in between.
        let mark = web.datagram(&db, index as u8);
        web.send(&mark);
        assert_eq!(db.frame(), mark, "{what}");
    }
}

#[test]
fn no_spoofed_frame_of_ipv6_reaches_another_vm() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let db = Raw::plugged_into(&controls, "db", OTHER);
    let prefix = NetworkSpec::USER.prefix6();
    let (own, theirs) = (web.own6(prefix), db.own6(prefix));
    let all: Ipv6Addr = "ff02::1".parse().unwrap();
    let all_card = [0x33, 0x33, 0, 0, 0, 1];
    let good = udp(5000, 5001, b"x");
    let gateway = NetworkSpec::USER.gateway6();
    let local = |raw: &Raw| raw.own6(LINK_LOCAL);
    let nobody = interface(prefix, [2, 9, 9, 9, 9, 9]);
    let mut spoofed: Vec<(&str, [u8; 6], Vec<u8>)> = Vec::new();
    for (what, from) in [
        ("the neighbour's address", theirs),
        ("the neighbour's on the link", local(&db)),
        ("another card's address", nobody),
        ("the gateway's", gateway),
        ("the router's on the link", ROUTER),
        ("the name server's", NetworkSpec::USER.name_server6()),
        ("one of the outside", "2001:db8::1".parse().unwrap()),
        ("another network's", "fd76:6976:a76:100::5".parse().unwrap()),
        ("loopback", Ipv6Addr::LOCALHOST),
        ("an IPv4 address", Ipv4Addr::new(10, 0, 2, 15).to_ipv6_mapped()),
        ("a group's", all),
        ("none", Ipv6Addr::UNSPECIFIED),
    ] {
        spoofed.push((what, db.mac, ipv6(from, theirs, 17, 64, &good)));
    }
    let neighbour = |from, to, kind, target| ipv6(from, to, 58, 255, &discovery(kind, target, web.mac));
    let mut advertisement = vec![134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1];
    advertisement.extend(web.mac);
    for (what, to, packet) in [
        ("that we are the neighbour", db.mac, neighbour(own, theirs, 136, theirs)),
        ("that we are the router", db.mac, neighbour(own, theirs, 136, ROUTER)),
        ("to all, that we are the router", all_card, neighbour(own, all, 136, ROUTER)),
        ("what is true", db.mac, neighbour(own, theirs, 136, own)),
        ("a question", db.mac, neighbour(own, theirs, 135, theirs)),
        ("a question to all", all_card, neighbour(own, all, 135, theirs)),
        ("that we want the neighbour's", all_card, neighbour(Ipv6Addr::UNSPECIFIED, all, 135, theirs)),
        ("that we are a router", all_card, ipv6(local(&web), all, 58, 255, &advertisement)),
        ("that there is a better way", db.mac, ipv6(local(&web), theirs, 58, 255, &[137; 40])),
        ("that it listens to groups", all_card, ipv6(local(&web), all, 58, 1, &[131; 24])),
        ("a DHCPv6 server's answer", db.mac, ipv6(own, theirs, 17, 64, &udp(547, 546, b"x"))),
        ("a DHCPv6 client's question", all_card, ipv6(own, all, 17, 1, &udp(546, 547, b"x"))),
        (
            "options of each hop",
            db.mac,
            ipv6(own, theirs, 0, 64, &[&[17, 0, 1, 4, 0, 0, 0, 0], &good[..]].concat()),
        ),
        ("a route", db.mac, ipv6(own, theirs, 43, 64, &[&[17, 0, 0, 0, 0, 0, 0, 0], &good[..]].concat())),
        ("a fragment", db.mac, ipv6(own, theirs, 44, 64, &[&[17, 0, 0, 1, 0, 0, 0, 0], &good[..]].concat())),
        ("to an address that it has not", db.mac, ipv6(own, nobody, 17, 64, &good)),
        ("a packet in a packet", db.mac, ipv6(own, theirs, 4, 64, &ipv4(OTHER, OTHER, 17, &good))),
        ("version 4", db.mac, [&[0x45][..], &ipv6(own, theirs, 17, 64, &good)[1..]].concat()),
    ] {
        spoofed.push((what, to, packet));
    }
    assert!(spoofed.len() >= 30, "{}", spoofed.len());
    for (index, (what, to, packet)) in spoofed.iter().enumerate() {
        web.send(&[&ethernet(*to, web.mac, 0x86dd)[..], packet].concat());
        let mark = web.datagram6(&db, index as u8);
        web.send(&mark);
        assert_eq!(db.frame(), mark, "{what}");
    }
}

#[test]
fn who_has_an_address_of_ipv6_is_known_and_it_is_nobody_elses() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let db = Raw::plugged_into(&controls, "db", OTHER);
    let prefix = NetworkSpec::USER.prefix6();
    // The router tells of itself and of the prefix.
    let advertisement = db.any_frame();
    assert_eq!(
        (advertisement[6..12].to_vec(), advertisement[54]),
        (super::address::GATEWAY_MAC.to_vec(), 134)
    );
    assert!(advertisement.windows(16).any(|window| window == prefix.octets()));
    web.neighbourly();
    let ask = |raw: &Raw, from: Ipv6Addr, target| {
        let packet = ipv6(from, "ff02::1".parse().unwrap(), 58, 255, &discovery(135, target, raw.mac));
        raw.send(&[&ethernet([0x33, 0x33, 0, 0, 0, 1], raw.mac, 0x86dd)[..], &packet].concat());
    };
    let (own, nobody) = (web.own6(prefix), Ipv6Addr::UNSPECIFIED);
    let gateway = NetworkSpec::USER.gateway6();
    let private = Ipv6Addr::from_bits(prefix.to_bits() | 0x1234_5678_9abc_def0);
    for (from, target, flags) in [
        (own, db.own6(prefix), 0x60),
        (own, db.own6(LINK_LOCAL), 0x60),
        (own, gateway, 0xe0),
        (own, ROUTER, 0xe0),
        (nobody, db.own6(prefix), 0x20),
        (nobody, gateway, 0xa0),
    ] {
        ask(&web, from, target);
        assert_eq!(web.neighbourly(), (136, flags, target));
    }
    // One that nobody has is its own once it wants to have it, and then the other may not.
    ask(&web, nobody, private);
    ask(&web, own, gateway);
    assert_eq!(web.neighbourly(), (136, 0xe0, gateway), "no answer came before that one");
    ask(&db, nobody, private);
    assert_eq!(db.neighbourly(), (136, 0x20, private));
    ask(&db, db.own6(prefix), private);
    assert_eq!(db.neighbourly(), (136, 0x60, private));
    let mut frame = ethernet(db.mac, web.mac, 0x86dd);
    frame.extend(ipv6(private, db.own6(prefix), 17, 64, &udp(1, 2, b"x")));
    web.send(&frame);
    assert_eq!(db.frame(), frame);
}

#[test]
fn a_vm_is_found_by_its_address_of_ipv6_once_it_has_one() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let db = Raw::plugged_into(&controls, "db", OTHER);
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x02db\x04shop\x03viv\x00\x00\x1c\x00\x01");
    let mut frame = ethernet(super::address::GATEWAY_MAC, web.mac, 0x0800);
    frame.extend(ipv4(GUEST, Ipv4Addr::new(10, 0, 2, 3), 17, &udp(5000, 53, &query)));
    let answers = || loop {
        web.send(&frame);
        let frame = web.frame();
        if frame[12..14] == [8, 0] {
            return frame[14 + 20 + 8..][7] == 1
                && frame.ends_with(&db.own6(NetworkSpec::USER.prefix6()).octets());
        }
    };
    assert!(!answers(), "it has not said that it has one");
    db.send(&db.datagram6(&web, 1));
    let begin = Instant::now();
    while !answers() {
        assert!(begin.elapsed() < PATIENCE);
    }
}

#[test]
fn what_is_for_all_reaches_all_others_and_each_knows_whose_address_it_is() {
    let controls = shop();
    let vms = [("web", GUEST), ("db", OTHER), ("cache", THIRD)];
    let vms = vms.map(|(name, address)| Raw::plugged_into(&controls, name, address));
    // Each newcomer is announced to those before it.
    for newcomer in &vms[1..] {
        let expected = arp(1, (newcomer.mac, newcomer.address), ([0; 6], newcomer.address));
        assert_eq!(vms[0].frame()[14..42], expected);
    }
    vms[1].frame();
    let mut frame = ethernet([0xff; 6], vms[0].mac, 0x0800);
    frame.extend(ipv4(GUEST, Ipv4Addr::new(10, 0, 2, 255), 17, &udp(1, 2, b"hello")));
    vms[0].send(&frame);
    assert_eq!((vms[1].frame(), vms[2].frame()), (frame.clone(), frame));
    for (asked, owner) in [(OTHER, vms[1].mac), (GATEWAY, super::address::GATEWAY_MAC)] {
        let mut request = ethernet([0xff; 6], vms[0].mac, 0x0806);
        request.extend(arp(1, (vms[0].mac, GUEST), ([0; 6], asked)));
        // For its own address, which nobody else has, there is no answer.
        let mut own = ethernet([0xff; 6], vms[0].mac, 0x0806);
        own.extend(arp(1, (vms[0].mac, Ipv4Addr::UNSPECIFIED), ([0; 6], GUEST)));
        vms[0].send(&own);
        vms[0].send(&request);
        assert_eq!(vms[0].frame()[14..42], arp(2, (owner, asked), (vms[0].mac, GUEST)));
    }
}

#[test]
fn no_two_vms_have_one_address_and_a_vm_moves_with_its_plug() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let plug = |name: &str, address: Ipv4Addr| {
        let (_, theirs) = SocketPort::pair().unwrap();
        controls.plug(attachment(name, address), theirs, Listeners::default())
    };
    assert_eq!(plug("db", GUEST), Err(PlugError::Taken("web".to_string())));
    for address in [GATEWAY, Ipv4Addr::new(10, 0, 2, 255), Ipv4Addr::new(10, 0, 3, 15)] {
        assert_eq!(plug("db", address), Err(PlugError::NotOurs(address)));
    }
    let again = Raw::plugged_into(&controls, "web", OTHER);
    assert!(web.port.send_one(b"x").is_err(), "its earlier port is closed");
    assert_eq!(controls.list(), [attachment("web", OTHER)]);
    assert!(controls.unplug("id-of-web") && !controls.unplug("id-of-web"));
    assert!(again.port.send_one(b"x").is_err());
}

#[test]
fn the_host_is_not_reached_unless_the_network_may() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let controls = shop();
    let mut guest = Guest::in_network(&controls, "web", GUEST, Listeners::default());
    let handle = guest.connect((GATEWAY, listener.local_addr().unwrap().port()), 40000);
    guest.until(|sockets| {
        (sockets.get_mut::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed).then_some(())
    });
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "nobody came");
}

#[test]
fn groups_decide_who_reaches_whom_and_a_change_cuts_what_is_open() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let db = Raw::plugged_into(&controls, "db", OTHER);
    web.frame();
    let rules = |rules: &[&str]| {
        let rules = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        controls.set_groups(vec![SecGroup { name: "db".to_string(), rules }]);
    };
    rules(&["in udp/5001 from group:web", "in udp/7"]);
    assert!(controls.set_member("id-of-db", vec!["db".to_string()]) && !controls.set_member("x", vec![]));
    // What passes for certain, so that what does not can be told from what is late.
    let mut sure = ethernet(db.mac, web.mac, 0x0800);
    sure.extend(ipv4(GUEST, OTHER, 17, &udp(5000, 7, b"sure")));
    let passes = |frame: &[u8]| {
        web.send(frame);
        web.send(&sure);
        let first = db.frame();
        first != sure && {
            assert_eq!((first, db.frame()), (frame.to_vec(), sure.clone()));
            true
        }
    };
    assert!(!passes(&web.datagram(&db, 1)), "it is not in the group that may");
    controls.set_member("id-of-web", vec!["web".to_string()]);
    assert!(passes(&web.datagram(&db, 2)), "now it is");
    rules(&["in udp/7"]);
    assert!(!passes(&web.datagram(&db, 3)), "the rule is gone, and the flow with it");
    rules(&["in udp from group:web", "deny in udp/5001"]);
    assert!(!passes(&web.datagram(&db, 4)), "to deny is stronger");
    // And the answers of a flow that is let in pass a door that lets nothing else in.
    let mut answer = ethernet(web.mac, db.mac, 0x0800);
    answer.extend(ipv4(OTHER, GUEST, 17, &udp(7, 5000, b"answer")));
    let mut stray = ethernet(web.mac, db.mac, 0x0800);
    stray.extend(ipv4(OTHER, GUEST, 17, &udp(8, 5000, b"stray")));
    db.send(&stray);
    db.send(&answer);
    assert_eq!(web.frame(), answer);
}

#[test]
fn a_flow_to_the_outside_ends_when_the_rules_forbid_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let controls = network(&NetworkSpec { name: "shop".to_string(), ..NetworkSpec::user(true) }, None);
    let mut guest = Guest::in_network(&controls, "web", GUEST, Listeners::default());
    controls.set_member("id-of-web", vec!["web".to_string()]);
    let rules = |rule: &str| {
        let rules = vec![rule.parse().unwrap()];
        controls.set_groups(vec![SecGroup { name: "web".to_string(), rules }]);
    };
    let is_closed = |sockets: &mut smoltcp::iface::SocketSet<'static>, handle| {
        (sockets.get_mut::<tcp::Socket<'_>>(handle).state() == tcp::State::Closed).then_some(())
    };
    rules("out tcp to 10.0.2.2");
    let handle = guest.connect((GATEWAY, port), 40000);
    guest.until(|sockets| sockets.get_mut::<tcp::Socket<'_>>(handle).may_send().then_some(()));
    let (mut stream, _) = listener.accept().unwrap();
    rules("out udp to 10.0.2.2");
    guest.until(|sockets| is_closed(sockets, handle));
    let error = std::io::Read::read(&mut stream, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "on the host, too");
}

#[test]
fn who_asks_in_circles_for_names_is_told_that_it_fails() {
    // A name server that asks the network's own by its VM, and never answers.
    let resolver = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let spec = NetworkSpec { name: "shop".to_string(), ..NetworkSpec::user(false) };
    let controls = network(&spec, Some(resolver.local_addr().unwrap()));
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x07example\x03org\x00\x00\x01\x00\x01");
    for from in 0..200u16 {
        let mut frame = ethernet(super::address::GATEWAY_MAC, web.mac, 0x0800);
        frame.extend(ipv4(GUEST, Ipv4Addr::new(10, 0, 2, 3), 17, &udp(5000 + from, 53, &query)));
        web.send(&frame);
    }
    let answer = web.frame();
    assert_eq!(answer[14 + 20 + 8 + 3] & 0xf, 2, "the server has failed");
}

#[test]
fn names_of_vms_are_answered_by_the_network() {
    let controls = shop();
    let web = Raw::plugged_into(&controls, "web", GUEST);
    let _db = Raw::plugged_into(&controls, "db", OTHER);
    web.frame();
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x02db\x04shop\x03viv\x00\x00\x01\x00\x01");
    let mut frame = ethernet(super::address::GATEWAY_MAC, web.mac, 0x0800);
    frame.extend(ipv4(GUEST, Ipv4Addr::new(10, 0, 2, 3), 17, &udp(5000, 53, &query)));
    web.send(&frame);
    let answer = web.frame();
    assert_eq!(answer[answer.len() - 4..], OTHER.octets());
}
