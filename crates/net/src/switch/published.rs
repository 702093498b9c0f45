//! Published ports by both versions of IP.

use super::Listeners;
use super::address::interface;
use super::tests::{GATEWAY, GUEST, Guest, mac};
use smoltcp::socket::tcp;
use smoltcp::wire::{IpAddress, IpListenEndpoint};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use viv_model::{NetworkSpec, PortSpec};

/// Who connects to a port that leads to a guest's, which listens at this address alone, and which of its addresses the guest
/// sees them under.
fn leads(from: IpAddr, at: &str, listens: IpAddress) -> IpAddress {
    let spec: PortSpec = format!("{at}1:80").parse().unwrap();
    let listeners = Listeners::open(&[PortSpec { host: 0, ..spec }]).unwrap();
    let port = listeners.addresses()[0].port();
    let mut guest = Guest::plugged_into(listeners);
    // Its network knows the addresses of IPv6 that it has been seen to use.
    let known = guest.connect((NetworkSpec::USER.gateway6(), 9), 40000);
    guest.until(|sockets| (!sockets.get_mut::<tcp::Socket<'_>>(known).is_open()).then_some(()));
    let handle = guest.tcp();
    let endpoint = IpListenEndpoint { addr: Some(listens), port: 80 };
    guest.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(endpoint).unwrap();
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect((from, port)).unwrap();
        stream.write_all(b"ask").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let seen = guest.until(|sockets| {
        let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.may_send().then(|| socket.remote_endpoint().unwrap().addr)
    });
    assert_eq!(guest.exchange(handle, b"answer"), b"ask");
    guest.until(|_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), "answer");
    seen
}

#[test]
fn who_comes_by_one_version_of_ip_is_led_to_a_guest_that_listens_at_the_other() {
    let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    let own6 = interface(NetworkSpec::USER.prefix6(), mac(GUEST));
    let (own, own6) = (IpAddress::from(GUEST), IpAddress::from(own6));
    let gateway6 = IpAddress::from(NetworkSpec::USER.gateway6());
    let gateway = IpAddress::from(GATEWAY);
    assert_eq!(leads(v4, "", own), gateway);
    assert_eq!(leads(v4, "", own6), gateway6);
    if UdpSocket::bind((v6, 0)).is_err() {
        println!("this host has no IPv6: half of this was not tried");
        return;
    }
    assert_eq!(leads(v6, "", own6), gateway6);
    assert_eq!(leads(v6, "[::1]:", own), gateway);
}

#[test]
fn a_stream_of_the_host_leads_to_a_port_that_nobody_has_published() {
    let mut guest = Guest::plugged_into(Listeners::default());
    let lead = |guest: &Guest, port| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(guest.controls().connect("id-of-web", port, theirs.into()));
        ours
    };
    let handles = [guest.tcp(), guest.tcp()];
    for handle in handles {
        guest.sockets.get_mut::<tcp::Socket<'_>>(handle).listen(80).unwrap();
        let mut stream = lead(&guest, 80);
        let client = thread::spawn(move || {
            stream.write_all(b"ask").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let seen = guest.until(|sockets| {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
            socket.may_send().then(|| socket.remote_endpoint().unwrap())
        });
        assert_eq!(seen.addr, IpAddress::from(GATEWAY));
        assert_eq!(guest.exchange(handle, b"answer"), b"ask");
        guest.until(|_| client.is_finished().then_some(()));
        assert_eq!(client.join().unwrap(), "answer");
    }
    // Where nothing listens, it ends without a word.
    let mut refused = lead(&guest, 81);
    let reader = thread::spawn(move || refused.read(&mut [0; 1]));
    guest.until(|_| reader.is_finished().then_some(()));
    assert!(matches!(reader.join().unwrap(), Ok(0) | Err(_)));
    let (_ours, theirs) = UnixStream::pair().unwrap();
    assert!(!guest.controls().connect("id-of-nobody", 80, theirs.into()));
}
