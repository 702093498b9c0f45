//! Many connections of one guest at a time, and one after the other: none is lost, and nothing of them stays.

use super::tests::{GATEWAY, Guest, PATIENCE};
use rustix::process::{Resource, getrlimit, setrlimit};
use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

const IDLE: usize = 1000;
const SHORT: usize = 10_000;
/// So many at a time.
const TOGETHER: usize = 100;

fn small(guest: &mut Guest) -> SocketHandle {
    let buffer = || tcp::SocketBuffer::new(vec![0; 512]);
    guest.sockets.add(tcp::Socket::new(buffer(), buffer()))
}

/// Answers each with what it says, and closes.
fn serve_short() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream: TcpStream = stream.unwrap();
            let mut said = [0; 8];
            stream.read_exact(&mut said).unwrap();
            stream.write_all(&said).unwrap();
        }
    });
    port
}

#[test]
fn ten_thousand_short_connections_and_a_thousand_idle_ones_are_all_there_and_all_go() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let room = limit.current.is_none_or(|most| most >= 3 * IDLE as u64);
    let idle_count = if room { IDLE } else { IDLE / 10 };
    let mut guest = Guest::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = (GATEWAY, listener.local_addr().unwrap().port());
    let accept = thread::spawn(move || {
        let accepted = listener.incoming().take(idle_count).map(|stream| stream.unwrap());
        accepted.collect::<Vec<_>>()
    });
    let mut idle = Vec::new();
    for number in 0..idle_count {
        let handle = small(&mut guest);
        guest.connect_by(handle, to, 10_000 + number as u16);
        idle.push(handle);
        if (number + 1) % TOGETHER == 0 {
            guest.until(|sockets| {
                let is_open = |handle: &SocketHandle| sockets.get::<tcp::Socket<'_>>(*handle).may_send();
                idle.iter().all(is_open).then_some(())
            });
        }
    }
    guest.until(|_| accept.is_finished().then_some(()));
    let mut ends = accept.join().unwrap();

    let port = serve_short();
    let handles: Vec<SocketHandle> = (0..TOGETHER).map(|_| small(&mut guest)).collect();
    for batch in 0..SHORT / TOGETHER {
        for (place, handle) in handles.iter().enumerate() {
            // Ports are used again, as a guest does.
            guest.connect_by(*handle, (GATEWAY, port), 20_000 + ((batch * TOGETHER + place) % 20_000) as u16);
        }
        let said = |place: usize| ((batch * TOGETHER + place) as u64).to_be_bytes();
        let (mut sent, mut answered) = ([false; TOGETHER], [false; TOGETHER]);
        guest.until(|sockets| {
            for (place, handle) in handles.iter().enumerate() {
                let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
                if !sent[place] && socket.can_send() {
                    socket.send_slice(&said(place)).unwrap();
                    socket.close();
                    sent[place] = true;
                }
                if socket.can_recv() {
                    let mut answer = [0; 8];
                    assert_eq!(socket.recv_slice(&mut answer), Ok(8));
                    assert_eq!(answer, said(place));
                    answered[place] = true;
                }
            }
            let is_over = |handle: &SocketHandle| {
                let state = sockets.get::<tcp::Socket<'_>>(*handle).state();
                matches!(state, tcp::State::TimeWait | tcp::State::Closed)
            };
            (answered == [true; TOGETHER] && handles.iter().all(is_over)).then_some(())
        });
        handles.iter().for_each(|handle| guest.sockets.get_mut::<tcp::Socket<'_>>(*handle).abort());
        guest.until(|_| Some(()));
    }
    // Those that were idle meanwhile still lead through.
    for (place, end) in ends.iter_mut().enumerate() {
        end.write_all(&(place as u64).to_be_bytes()).unwrap();
    }
    let mut heard: Vec<u64> = Vec::new();
    guest.until(|sockets| {
        for handle in &idle {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
            let mut said = [0; 8];
            if socket.can_recv() && socket.recv_slice(&mut said) == Ok(8) {
                heard.push(u64::from_be_bytes(said));
            }
        }
        (heard.len() == idle_count).then_some(())
    });
    heard.sort_unstable();
    assert!(heard.iter().copied().eq(0..idle_count as u64));
    let connections =
        |guest: &Guest| guest.controls().counters().ports.iter().map(|port| port.connections).sum::<u64>();
    assert_eq!(connections(&guest), idle_count as u64, "of the short ones nothing is left");
    drop(ends);
    idle.iter().for_each(|handle| guest.sockets.get_mut::<tcp::Socket<'_>>(*handle).close());
    let begin = Instant::now();
    while connections(&guest) > 0 {
        guest.until(|_| Some(()));
        assert!(begin.elapsed() < PATIENCE);
    }
}
