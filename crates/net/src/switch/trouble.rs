//! Ways to the guest that are not good, and guests that are not either, against the host's real TCP.

use super::Listeners;
use super::address::GATEWAY_MAC;
use super::neighbours::{OTHER, Raw, ethernet, ipv4};
use super::tests::{GATEWAY, GUEST, Guest, Trouble, bytes, network, parrot};
use smoltcp::socket::tcp;
use std::net::TcpListener;
use std::thread;
use std::time::{Duration, Instant};
use viv_model::NetworkSpec;

#[test]
fn lost_doubled_and_late_packets_change_nothing_of_what_arrives() {
    let sent = bytes(200_000);
    for (name, to_guest, from_guest) in [
        ("lost from the guest", Trouble::default(), Trouble { lose: 11, ..Trouble::default() }),
        ("doubled", Trouble { twice: 3, ..Trouble::default() }, Trouble { twice: 2, ..Trouble::default() }),
        ("late", Trouble { late: 5, ..Trouble::default() }, Trouble { late: 6, ..Trouble::default() }),
        ("all", Trouble { lose: 29, twice: 7, late: 5 }, Trouble { lose: 31, twice: 8, late: 9 }),
    ] {
        let mut guest = Guest::new();
        let handle = guest.connect((GATEWAY, parrot()), 40000);
        guest.card.trouble = [to_guest, from_guest];
        assert!(guest.exchange(handle, &sent) == sent, "{name}");
    }
}

#[test]
fn both_sides_may_close_at_once() {
    let mut guest = Guest::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = (GATEWAY, listener.local_addr().unwrap().port());
    for port in 40000..40020 {
        let handle = guest.connect(to, port);
        guest.until(|sockets| sockets.get_mut::<tcp::Socket<'_>>(handle).may_send().then_some(()));
        let (stream, _) = listener.accept().unwrap();
        let closer = thread::spawn(move || drop(stream));
        guest.sockets.get_mut::<tcp::Socket<'_>>(handle).close();
        guest.until(|sockets| {
            let state = sockets.get_mut::<tcp::Socket<'_>>(handle).state();
            matches!(state, tcp::State::TimeWait | tcp::State::Closed).then_some(())
        });
        closer.join().unwrap();
    }
    let begin = Instant::now();
    guest.until(|_| (begin.elapsed() > Duration::from_millis(1)).then_some(()));
}

/// The first segment of a connection (RFC 9293 §3.1).
fn syn(from: u16, to: u16) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(from.to_be_bytes());
    segment.extend(to.to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    segment
}

#[test]
fn a_flood_of_half_open_connections_keeps_nobody_else_out() {
    let controls = network(&NetworkSpec { name: "shop".to_string(), ..NetworkSpec::user(true) }, None);
    let flooder = Raw::plugged_into(&controls, "flooder", OTHER);
    // Nobody takes these.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    for from in 1024..11_024u16 {
        let mut frame = ethernet(GATEWAY_MAC, flooder.mac, 0x0800);
        frame.extend(ipv4(OTHER, GATEWAY, 6, &syn(from, port)));
        let packet = [&[0; 12][..], &frame].concat();
        // It takes what it is told, so that it can go on.
        let mut message = Default::default();
        while crate::port::NetPort::receive(&flooder.port, &mut message).unwrap() {}
        let begin = Instant::now();
        while !flooder.port.send_one(&packet).unwrap() {
            assert!(begin.elapsed() < Duration::from_secs(20), "the switch stands still");
            while crate::port::NetPort::receive(&flooder.port, &mut message).unwrap() {}
        }
    }
    let mut guest = Guest::in_network(&controls, "web", GUEST, Listeners::default());
    let handle = guest.connect((GATEWAY, parrot()), 40000);
    let sent = bytes(100_000);
    assert!(guest.exchange(handle, &sent) == sent);
    let connections = |vm: &str| {
        let all = controls.counters().ports;
        all.into_iter().find(|port| port.vm == format!("id-of-{vm}")).unwrap().connections
    };
    assert!(connections("flooder") <= 4096, "no more than one may have");
}
