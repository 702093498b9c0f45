use super::*;
use crate::virtio::mock::MockVsock;
use crate::virtio::vsock::{BUFFER_LEN, CONNECTIONS_MAX, StreamEnd, StreamId, VsockEvent};
use proptest::prelude::*;
use viv_arch::virtio::vsock as reg;

type Guest = MockVsock<VirtioPci<Vsock>>;

fn guest(buffers: usize) -> Guest {
    let memory = memory();
    MockVsock::new(function(Vsock::new(3), &memory), memory, 3, buffers)
}

fn host<R>(guest: &mut Guest, act: impl FnOnce(&mut Vsock, &mut Rings<'_>) -> R) -> R {
    let (vsock, mut rings) = guest.driver.transport.device();
    act(vsock, &mut rings)
}

fn events(guest: &mut Guest) -> Vec<VsockEvent> {
    host(guest, |vsock, _| vsock.take_events())
}

/// A stream that the host opened to port 1024: its ID and the host's port.
fn open(guest: &mut Guest) -> (StreamId, u32) {
    let stream = host(guest, |vsock, rings| vsock.connect(rings, 1024)).unwrap();
    let (request, _) = guest.receive().unwrap();
    assert_eq!((request.op, request.dst_port, request.flags), (reg::OP_REQUEST, 1024, 0));
    assert_eq!(request.buf_alloc as usize, BUFFER_LEN);
    guest.send(request.src_port, 1024, reg::OP_RESPONSE, 0, &[]);
    assert_eq!(events(guest), [VsockEvent::Connected { stream, host_port: request.src_port }]);
    (stream, request.src_port)
}

fn ops(guest: &mut Guest) -> Vec<u16> {
    std::iter::from_fn(|| guest.receive()).map(|(header, _)| header.op).collect()
}

#[test]
fn the_configuration_is_the_cid() {
    let mut guest = guest(4);
    let bytes: Vec<u8> = (0..9).map(|offset| guest.driver.transport.config(offset)).collect();
    assert_eq!(bytes, [3, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn a_host_stream_carries_bytes_both_ways() {
    let mut guest = guest(16);
    let (stream, port) = open(&mut guest);
    assert_eq!(host(&mut guest, |vsock, rings| vsock.send(rings, stream, b"ping")), 4);
    let (header, payload) = guest.receive().unwrap();
    assert_eq!((header.op, payload.as_slice()), (reg::OP_RW, &b"ping"[..]));
    guest.send(port, 1024, reg::OP_RW, 0, b"pong");
    assert_eq!(events(&mut guest), [VsockEvent::Readable(stream)]);
    let received = host(&mut guest, |vsock, rings| vsock.receive(rings, stream, 100));
    assert_eq!((received.bytes.as_slice(), received.end), (&b"pong"[..], None));
}

#[test]
fn without_a_driver_the_host_is_refused_at_once() {
    let memory = memory();
    let mut function = function(Vsock::new(3), &memory);
    let (vsock, mut rings) = function.device();
    assert_eq!(vsock.connect(&mut rings, 1), None);
}

#[test]
fn a_reset_answers_a_request_that_nobody_listens_to() {
    let mut guest = guest(16);
    let stream = host(&mut guest, |vsock, rings| vsock.connect(rings, 9)).unwrap();
    let (request, _) = guest.receive().unwrap();
    guest.send(request.src_port, 9, reg::OP_RST, 0, &[]);
    assert_eq!(events(&mut guest), [VsockEvent::Refused(stream)]);
    assert_eq!(ops(&mut guest), []);
}

#[test]
fn a_guest_stream_is_offered_and_accepted_or_refused() {
    let mut guest = guest(16);
    guest.send(52, 5000, reg::OP_REQUEST, 0, &[]);
    let [VsockEvent::Incoming { stream, port: 52 }] = events(&mut guest)[..] else { panic!() };
    assert_eq!(ops(&mut guest), []);
    host(&mut guest, |vsock, rings| vsock.accept(rings, stream));
    assert_eq!(ops(&mut guest), [reg::OP_RESPONSE]);
    guest.send(53, 5000, reg::OP_REQUEST, 0, &[]);
    let [VsockEvent::Incoming { stream, .. }] = events(&mut guest)[..] else { panic!() };
    host(&mut guest, |vsock, rings| vsock.reset_stream(rings, stream));
    assert_eq!(ops(&mut guest), [reg::OP_RST]);
}

#[test]
fn the_device_sends_no_more_than_the_credit_of_the_driver() {
    let mut guest = guest(16);
    guest.buf_alloc = 10_000;
    let (stream, port) = open(&mut guest);
    assert_eq!(host(&mut guest, |vsock, rings| vsock.send(rings, stream, &[1; 50_000])), 50_000);
    let mut got = 0;
    let mut last = 0;
    while let Some((header, payload)) = guest.receive() {
        got += payload.len();
        last = header.op;
    }
    assert_eq!((got, last), (10_000, reg::OP_CREDIT_REQUEST));
    guest.fwd_cnt = 4_000;
    guest.send(port, 1024, reg::OP_CREDIT_UPDATE, 0, &[]);
    let more: usize = std::iter::from_fn(|| guest.receive()).map(|(_, payload)| payload.len()).sum();
    assert_eq!(more, 4_000);
}

#[test]
fn a_slow_guest_stops_the_host_and_gives_it_room_again() {
    let mut guest = guest(16);
    guest.buf_alloc = 0;
    let (stream, port) = open(&mut guest);
    let taken = host(&mut guest, |vsock, rings| vsock.send(rings, stream, &vec![1; BUFFER_LEN + 1]));
    assert_eq!(taken, BUFFER_LEN);
    assert_eq!(events(&mut guest), []);
    guest.buf_alloc = u32::MAX;
    guest.send(port, 1024, reg::OP_CREDIT_UPDATE, 0, &[]);
    let got: usize = std::iter::from_fn(|| guest.receive()).map(|(_, payload)| payload.len()).sum();
    assert_eq!(got, BUFFER_LEN);
    assert_eq!(events(&mut guest), [VsockEvent::Writable(stream)]);
}

#[test]
fn a_guest_that_sends_more_than_its_credit_is_reset() {
    let mut guest = guest(16);
    let (stream, port) = open(&mut guest);
    for _ in 0..BUFFER_LEN / (64 << 10) {
        guest.send(port, 1024, reg::OP_RW, 0, &[0; 64 << 10]);
    }
    assert_eq!(ops(&mut guest), []);
    guest.send(port, 1024, reg::OP_RW, 0, b"x");
    assert_eq!(ops(&mut guest), [reg::OP_RST]);
    let all = host(&mut guest, |vsock, rings| vsock.receive(rings, stream, usize::MAX));
    assert_eq!((all.bytes.len(), all.end), (BUFFER_LEN, Some(StreamEnd::Reset)));
}

#[test]
fn taking_bytes_gives_the_guest_credit() {
    let mut guest = guest(16);
    let (stream, port) = open(&mut guest);
    guest.send(port, 1024, reg::OP_RW, 0, &[0; 64 << 10]);
    host(&mut guest, |vsock, rings| vsock.receive(rings, stream, 100));
    assert_eq!(ops(&mut guest), [], "not for every byte");
    host(&mut guest, |vsock, rings| vsock.receive(rings, stream, usize::MAX));
    let (update, _) = guest.receive().unwrap();
    assert_eq!((update.op, update.fwd_cnt), (reg::OP_CREDIT_UPDATE, 64 << 10));
    guest.send(port, 1024, reg::OP_CREDIT_REQUEST, 0, &[]);
    assert_eq!(ops(&mut guest), [reg::OP_CREDIT_UPDATE]);
}

#[test]
fn half_close_leaves_the_other_direction_open() {
    let mut guest = guest(16);
    let (stream, port) = open(&mut guest);
    host(&mut guest, |vsock, rings| {
        vsock.send(rings, stream, b"last");
        vsock.finish(rings, stream);
    });
    assert_eq!(guest.receive().unwrap().1, b"last");
    let (shutdown, _) = guest.receive().unwrap();
    assert_eq!((shutdown.op, shutdown.flags), (reg::OP_SHUTDOWN, reg::SHUTDOWN_SEND));
    guest.send(port, 1024, reg::OP_RW, 0, b"output");
    guest.send(port, 1024, reg::OP_SHUTDOWN, reg::SHUTDOWN_SEND, &[]);
    let received = host(&mut guest, |vsock, rings| vsock.receive(rings, stream, 100));
    assert_eq!((received.bytes.as_slice(), received.end), (&b"output"[..], Some(StreamEnd::Finished)));
    host(&mut guest, |vsock, rings| vsock.close(rings, stream));
    let (shutdown, _) = guest.receive().unwrap();
    assert_eq!((shutdown.op, shutdown.flags), (reg::OP_SHUTDOWN, 3));
    guest.send(port, 1024, reg::OP_RST, 0, &[]);
    assert_eq!(ops(&mut guest), []);
    guest.send(port, 1024, reg::OP_RW, 0, b"?");
    assert_eq!(ops(&mut guest), [reg::OP_RST], "the stream is forgotten");
}

#[test]
fn what_the_guest_sent_before_it_closed_still_arrives() {
    let mut guest = guest(16);
    let (stream, port) = open(&mut guest);
    guest.send(port, 1024, reg::OP_RW, 0, b"bye");
    guest.send(port, 1024, reg::OP_SHUTDOWN, 3, &[]);
    assert_eq!(ops(&mut guest), [reg::OP_RST], "the guest may forget it at once");
    let received = host(&mut guest, |vsock, rings| vsock.receive(rings, stream, 100));
    assert_eq!((received.bytes.as_slice(), received.end), (&b"bye"[..], Some(StreamEnd::Closed)));
    host(&mut guest, |vsock, rings| vsock.close(rings, stream));
    assert_eq!(ops(&mut guest), []);
}

#[test]
fn data_for_a_stream_that_the_host_closed_is_answered_with_a_reset() {
    let mut guest = guest(16);
    let (stream, port) = open(&mut guest);
    host(&mut guest, |vsock, rings| vsock.close(rings, stream));
    assert_eq!(ops(&mut guest), [reg::OP_SHUTDOWN]);
    guest.send(port, 1024, reg::OP_RW, 0, b"more");
    assert_eq!(ops(&mut guest), [reg::OP_RST]);
}

#[test]
fn streams_take_turns() {
    let mut guest = guest(2);
    let (first, first_port) = open(&mut guest);
    let (second, _) = open(&mut guest);
    host(&mut guest, |vsock, rings| {
        vsock.send(rings, first, &[1; 40_000]);
        vsock.send(rings, second, &[2; 4_000]);
    });
    let ports: Vec<u32> = (0..4).map(|_| guest.receive().unwrap().0.src_port).collect();
    assert!(ports.iter().any(|port| *port != first_port), "{ports:?}");
}

#[test]
fn unknown_types_operations_and_streams_get_a_reset_and_strangers_nothing() {
    let mut guest = guest(16);
    let header = crate::virtio::vsock::Header {
        src_cid: 3,
        dst_cid: 2,
        src_port: 7,
        dst_port: 8,
        socket_type: 1,
        op: reg::OP_RW,
        ..Default::default()
    };
    guest.send_raw(&header, &[]);
    assert_eq!(ops(&mut guest), [reg::OP_RST]);
    guest.send_raw(&crate::virtio::vsock::Header { socket_type: 2, op: reg::OP_REQUEST, ..header }, &[]);
    assert_eq!(ops(&mut guest), [reg::OP_RST]);
    guest.send_raw(&crate::virtio::vsock::Header { op: 99, ..header }, &[]);
    assert_eq!(ops(&mut guest), [reg::OP_RST]);
    guest.send_raw(&crate::virtio::vsock::Header { op: reg::OP_RST, ..header }, &[]);
    guest.send_raw(&crate::virtio::vsock::Header { src_cid: 4, ..header }, &[]);
    guest.send_raw(&crate::virtio::vsock::Header { dst_cid: 5, ..header }, &[]);
    assert_eq!(ops(&mut guest), []);
    let (_, port) = open(&mut guest);
    guest.send(port, 1024, 99, 0, &[]);
    assert_eq!(ops(&mut guest), [reg::OP_RST]);
}

#[test]
fn a_guest_fills_the_table_but_never_grows_it() {
    let mut guest = guest(16);
    let mut offered = Vec::new();
    for port in 0..CONNECTIONS_MAX as u32 + 10 {
        guest.send(52, port, reg::OP_REQUEST, 0, &[]);
        guest.send(52, port, reg::OP_RST, 0, &[]);
        while guest.receive().is_some() {}
        offered.extend(events(&mut guest));
    }
    let incoming = offered.iter().filter(|event| matches!(event, VsockEvent::Incoming { .. })).count();
    assert_eq!(incoming, CONNECTIONS_MAX, "streams stay until the host gives them up");
    for event in offered {
        if let VsockEvent::Incoming { stream, .. } = event {
            host(&mut guest, |vsock, rings| vsock.reset_stream(rings, stream));
        }
    }
    guest.send(52, 1, reg::OP_REQUEST, 0, &[]);
    assert_eq!(events(&mut guest).len(), 1);
}

#[test]
fn answers_wait_in_a_bounded_list_and_the_tx_ring_waits_with_them() {
    // No rx buffers at all: the device must stop taking packets that need answers.
    let mut guest = guest(0);
    let header = crate::virtio::vsock::Header {
        src_cid: 3,
        dst_cid: 2,
        socket_type: 1,
        op: reg::OP_RW,
        ..Default::default()
    };
    let buffer = guest.driver.buffer(&header.to_bytes());
    let mut taken = 0;
    for _ in 0..1000 {
        guest.driver.submit(1, &[buffer], &[]);
        while guest.driver.queues[1].take_used().is_some() {
            taken += 1;
        }
    }
    assert_eq!(taken, 256);
}

#[test]
fn a_reset_of_the_driver_ends_every_stream() {
    let mut guest = guest(16);
    let (stream, port) = open(&mut guest);
    guest.send(port, 1024, reg::OP_RW, 0, b"last words");
    guest.driver.transport.set_status(0);
    assert_eq!(events(&mut guest), [VsockEvent::Readable(stream)]);
    let received = host(&mut guest, |vsock, rings| vsock.receive(rings, stream, 100));
    assert_eq!((received.bytes.as_slice(), received.end), (&b"last words"[..], Some(StreamEnd::Reset)));
}

proptest! {
    /// Any packets and any calls: no panic, no more streams than the bound, no lost turn.
    #[test]
    fn a_wild_guest_never_breaks_the_table(
        packets in proptest::collection::vec(
            (0..3u32, 0..3u32, 0..9u16, 0..4u32, 0..200usize, any::<u32>(), any::<u32>(), 0..8u8), 0..300)
    ) {
        let mut guest = guest(8);
        let mut streams = Vec::new();
        for (host_port, port, op, flags, len, buf_alloc, fwd_cnt, act) in packets {
            (guest.buf_alloc, guest.fwd_cnt) = (buf_alloc, fwd_cnt);
            guest.send(host_port, port, op, flags, &vec![7; len]);
            for event in events(&mut guest) {
                if let VsockEvent::Incoming { stream, .. } = event {
                    streams.push(stream);
                }
            }
            let stream = streams.get(usize::from(act) % streams.len().max(1)).copied().unwrap_or(StreamId(99));
            host(&mut guest, |vsock, rings| match act {
                0 => vsock.accept(rings, stream),
                1 => { vsock.send(rings, stream, &[1; 300]); }
                2 => { vsock.receive(rings, stream, 50); }
                3 => vsock.finish(rings, stream),
                4 => vsock.close(rings, stream),
                5 => vsock.reset_stream(rings, stream),
                _ => { vsock.connect(rings, port); }
            });
            while guest.receive().is_some() {}
        }
    }
}
