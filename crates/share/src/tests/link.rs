//! The link between machine and server.
use super::*;
use crate::link::{Caller, REPLY_MAX, REQUEST_MAX, control, open_session, serve};
use crate::protocol::error_reply;
use std::io::{Read, Write};
use std::thread;

#[test]
fn one_server_serves_one_guest_after_the_other_until_nobody_can_come() {
    let place = Place::new();
    let directory = place.directory(false);
    let (ours, theirs) = control().unwrap();
    thread::scope(|scope| {
        let server = scope.spawn(|| serve(&directory, theirs));
        let mut second = {
            let mut first = Caller::new(open_session(&ours).unwrap());
            let mut reply = Vec::new();
            first
                .call(&request(opcode::MKDIR, ROOT, &body(&[0o755, 0], &["made"])), 4096, &mut reply)
                .unwrap();
            assert_eq!((reply.len(), u32_at(&reply, 4)), (144, 0));
            first.call(&request(opcode::FORGET, 2, &longs(&[0])), 0, &mut reply).unwrap();
            assert!(reply.is_empty());
            first.call(&request(opcode::GETATTR, 2, &[0; 16]), 4096, &mut reply).unwrap();
            assert_eq!(u32_at(&reply, 4), 0);
            Caller::new(open_session(&ours).unwrap())
        };
        let mut reply = Vec::new();
        second.call(&request(opcode::GETATTR, 2, &[0; 16]), 4096, &mut reply).unwrap();
        assert_eq!(u32_at(&reply, 4) as i32, -Errno::STALE.raw_os_error(), "a new guest knows nothing");
        // As large as they get.
        second
            .call(&request(opcode::CREATE, ROOT, &body(&[2, 0o644, 0, 0], &["big"])), 4096, &mut reply)
            .unwrap();
        let (node, handle) = (u64_at(&reply, 16), u64_at(&reply, 16 + 128));
        let data: Vec<u8> = (0..1 << 20).map(|n: u32| (n * 7 >> 3) as u8).collect();
        second.call(&request(opcode::WRITE, node, &write_in(handle, 0, &data)), 4096, &mut reply).unwrap();
        assert_eq!(u32_at(&reply, 16), 1 << 20);
        second
            .call(&request(opcode::READ, node, &read_in(handle, 0, 1 << 20)), REPLY_MAX, &mut reply)
            .unwrap();
        assert!(reply[16..] == data);
        assert!(second.call(&vec![0; REQUEST_MAX + 1], 16, &mut reply).is_err());
        drop((second, ours));
        server.join().unwrap().unwrap();
    });
}

#[test]
fn a_guest_goes_on_with_another_server() {
    let place = Place::new();
    let (one, other) = (place.directory(false), place.directory(false));
    let ((ours, theirs), (our_other, their_other)) = (control().unwrap(), control().unwrap());
    thread::scope(|scope| {
        scope.spawn(|| serve(&one, theirs).unwrap());
        scope.spawn(|| serve(&other, their_other).unwrap());
        let mut first = Caller::new(open_session(&ours).unwrap());
        let mut reply = Vec::new();
        let made = request(opcode::CREATE, ROOT, &body(&[2, 0o644, 0, 0], &["file"]));
        first.call(&made, 4096, &mut reply).unwrap();
        let (node, handle) = (u64_at(&reply, 16), u64_at(&reply, 16 + 128));
        let state = first.save().unwrap().unwrap();
        let mut second = Caller::new(open_session(&our_other).unwrap());
        let why = second.load(b"no state").unwrap().unwrap_err();
        assert!(why.contains("expected"), "{why}");
        second.load(&state).unwrap().unwrap();
        for (caller, at) in [(&mut first, 0), (&mut second, 5)] {
            let write = request(opcode::WRITE, node, &write_in(handle, at, b"hello"));
            caller.call(&write, 4096, &mut reply).unwrap();
            assert_eq!(u32_at(&reply, 16), 5);
        }
        drop((first, second, ours, our_other));
    });
    assert_eq!(fs::read(place.inside().join("file")).unwrap(), b"hellohello");
}

#[test]
fn a_server_that_is_gone_or_mad_is_an_error_and_no_wait() {
    let answers: [&[u8]; 4] = [b"", b"\x05\0", b"\xff\xff\xff\x7f", b"\x02\0\0\0abcd"];
    for answer in answers {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let mut bytes = [0; 48];
            theirs.read_exact(&mut bytes).unwrap();
            theirs.write_all(answer).unwrap();
        });
        let mut caller = Caller::new(ours);
        assert!(caller.call(&request(opcode::STATFS, ROOT, &[]), 100, &mut Vec::new()).is_err());
        server.join().unwrap();
        assert!(caller.call(&request(opcode::STATFS, ROOT, &[]), 100, &mut Vec::new()).is_err());
    }
    let states: [Vec<u8>; 4] =
        [longs(&[]), longs(&[1, u64::MAX]), longs(&[2, 0]), [longs(&[1, 9]), b"less".to_vec()].concat()];
    for answer in states {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        theirs.write_all(&answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(Caller::new(ours).save().is_err(), "{answer:?}");
    }
}

#[test]
fn an_error_is_a_reply_to_what_expects_one() {
    let reply = error_reply(&request(opcode::STATFS, ROOT, &[]), 5).unwrap();
    assert_eq!((u32_at(&reply, 0), u32_at(&reply, 4) as i32, u64_at(&reply, 8)), (16, -5, 0x1234_5678_9abc));
    assert_eq!(error_reply(&request(opcode::FORGET, ROOT, &[]), 5), None);
    assert_eq!(error_reply(&[0; 39], 5), None);
}
