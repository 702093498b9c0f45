use super::*;
use std::collections::BTreeMap;

/// All that a directory lists, with `size` bytes at a time: name to (kind, node).
fn list(session: &mut Session<'_>, plus: bool, size: u32) -> BTreeMap<String, (u32, u64)> {
    let what = if plus { opcode::READDIRPLUS } else { opcode::READDIR };
    let handle = u64_at(&ask(session, opcode::OPENDIR, ROOT, &body(&[0, 0], &[])).unwrap(), 0);
    let (mut found, mut offset) = (BTreeMap::new(), 0);
    loop {
        let reply = ask(session, what, ROOT, &read_in(handle, offset, size)).unwrap();
        assert!(reply.len() <= size as usize);
        if reply.is_empty() {
            break;
        }
        let mut rest = &reply[..];
        while !rest.is_empty() {
            let node = if plus { u64_at(rest, 0) } else { 0 };
            let entry = &rest[if plus { 128 } else { 0 }..];
            let (next, len, kind) = (u64_at(entry, 8), u32_at(entry, 16) as usize, u32_at(entry, 20));
            let name = String::from_utf8(entry[24..24 + len].to_vec()).unwrap();
            assert!(found.insert(name, (kind, node)).is_none(), "twice");
            offset = next;
            rest = &entry[(24 + len).next_multiple_of(8)..];
        }
    }
    ask(session, opcode::FSYNCDIR, ROOT, &longs(&[handle, 0])).unwrap();
    ask(session, opcode::RELEASEDIR, ROOT, &longs(&[handle, 0, 0])).unwrap();
    found
}

#[test]
fn every_name_is_listed_once_however_small_the_pieces() {
    let place = Place::new();
    for n in 0..700 {
        fs::write(place.inside().join(format!("file-{n}-{}", "x".repeat(n % 40))), "").unwrap();
    }
    fs::create_dir(place.inside().join("sub")).unwrap();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    for (plus, size) in [(false, 4096), (false, 100), (true, 4096), (true, 400), (true, 60000)] {
        let found = list(&mut session, plus, size);
        assert_eq!(found.len(), 703, "{plus} {size}");
        assert_eq!((found["sub"].0, found["file-0-"].0), (4, 8));
        assert_eq!((found["."].1, found[".."].1), (0, 0), "no nodes");
        assert_eq!(found["sub"].1 != 0, plus);
    }
}

#[test]
fn a_listing_goes_on_where_the_guest_wants() {
    let place = Place::new();
    for n in 0..50 {
        fs::write(place.inside().join(format!("file{n}")), "").unwrap();
    }
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let handle = u64_at(&ask(&mut session, opcode::OPENDIR, ROOT, &body(&[0, 0], &[])).unwrap(), 0);
    let mut read =
        |offset: u64| ask(&mut session, opcode::READDIR, ROOT, &read_in(handle, offset, 300)).unwrap();
    let first = read(0);
    let second = read(u64_at(&first, 8));
    assert_ne!(first, second);
    assert_eq!(read(0), first, "rewinddir");
    assert_eq!(read(u64_at(&first, 8)), second, "seekdir");
    assert!(ask(&mut session, opcode::READDIR, ROOT, &read_in(handle, 0, 0)).unwrap().is_empty());
    let (_, file) = create(&mut session, ROOT, "file0").unwrap();
    assert_eq!(ask(&mut session, opcode::READDIR, ROOT, &read_in(file, 0, 300)), Err(Errno::NOTDIR));
    assert_eq!(ask(&mut session, opcode::READ, ROOT, &read_in(handle, 0, 300)), Err(Errno::ISDIR));
}

#[test]
fn a_listing_tells_of_what_is_in_a_directory_and_not_of_itself() {
    let place = Place::new();
    fs::create_dir_all(place.inside().join("sub/below")).unwrap();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let sub = look_up(&mut session, ROOT, "sub").unwrap();
    let handle = u64_at(&ask(&mut session, opcode::OPENDIR, sub, &body(&[0, 0], &[])).unwrap(), 0);
    ask(&mut session, opcode::READDIRPLUS, sub, &read_in(handle, 0, 4096)).unwrap();
    // Neither under another name nor looked up once more: it is forgotten when its one lookup is.
    assert!(!String::from_utf8(session.save().unwrap()).unwrap().contains("\".\""));
    let mut reply = Vec::new();
    session.answer(&request(opcode::FORGET, sub, &longs(&[1])), 0, &mut reply);
    assert_eq!(ask(&mut session, opcode::GETATTR, sub, &[0; 16]), Err(Errno::STALE));
}
