//! A guest that goes on with another server from what the first one knew.
use super::*;
use crate::saved::SessionSaved;
use serde_json::{Value, json};

const O_RDONLY: i32 = 0;
const O_RDWR: i32 = 2;
const O_TRUNC: i32 = 0o1000;
const O_APPEND: i32 = 0o2000;

/// Another server's session, which knows what `session` knows.
fn moved<'a>(session: &Session<'_>, directory: &'a Directory) -> Session<'a> {
    let mut other = Session::new(directory).unwrap();
    other.load(&session.save().unwrap()).unwrap();
    other
}

fn content(session: &mut Session<'_>, node: u64, handle: u64) -> Result<Vec<u8>, Errno> {
    ask(session, opcode::READ, node, &read_in(handle, 0, 100))
}

#[test]
fn what_was_known_and_open_is_the_same_files_again() {
    let place = Place::new();
    fs::create_dir(place.inside().join("sub")).unwrap();
    fs::write(place.inside().join("sub/old"), "old content").unwrap();
    let directory = place.directory(false);
    let mut first = Session::new(&directory).unwrap();
    let sub = look_up(&mut first, ROOT, "sub").unwrap();
    let old = look_up(&mut first, sub, "old").unwrap();
    let reading = open(&mut first, old, O_RDONLY).unwrap();
    let appending = open(&mut first, old, O_RDWR | O_APPEND).unwrap();
    let (new, writing) = create(&mut first, sub, "new").unwrap();
    ask(&mut first, opcode::WRITE, new, &write_in(writing, 0, b"before ")).unwrap();
    let emptied = open(&mut first, new, O_RDWR | O_TRUNC).unwrap();
    ask(&mut first, opcode::WRITE, new, &write_in(writing, 0, b"again ")).unwrap();
    ask(&mut first, opcode::RELEASE, new, &longs(&[emptied, 0, 0])).unwrap();

    // A directory above it may have another name by now: the guest's kernel has said so.
    let renamed = [longs(&[ROOT]), body(&[], &["sub", "moved"])].concat();
    ask(&mut first, opcode::RENAME, ROOT, &renamed).unwrap();
    let other = place.directory(false);
    let mut second = moved(&first, &other);
    drop(first);
    assert_eq!(content(&mut second, old, reading).unwrap(), b"old content");
    ask(&mut second, opcode::WRITE, old, &write_in(appending, 0, b", more")).unwrap();
    ask(&mut second, opcode::WRITE, new, &write_in(writing, 6, b"after")).unwrap();
    assert_eq!(ask(&mut second, opcode::WRITE, old, &write_in(reading, 0, b"x")), Err(Errno::BADF));
    assert_eq!(content(&mut second, new, emptied), Err(Errno::BADF), "was closed");
    assert_eq!(fs::read(place.inside().join("moved/old")).unwrap(), b"old content, more");
    assert_eq!(fs::read(place.inside().join("moved/new")).unwrap(), b"again after", "and not emptied again");
    // What comes new has numbers that nothing had.
    let (newest, handle) = create(&mut second, sub, "newest").unwrap();
    assert!(newest > new && handle > emptied);
    assert_eq!(look_up(&mut second, sub, "old"), Some(old));
    // Each lookup is still counted.
    ask(&mut second, opcode::GETATTR, old, &[0; 16]).unwrap();
    let mut reply = Vec::new();
    second.answer(&request(opcode::FORGET, old, &longs(&[2])), 0, &mut reply);
    assert_eq!(ask(&mut second, opcode::GETATTR, old, &[0; 16]), Err(Errno::STALE));
}

#[test]
fn a_listing_goes_on_behind_what_was_listed() {
    let place = Place::new();
    for n in 0..40 {
        fs::write(place.inside().join(format!("file{n:02}")), "").unwrap();
    }
    let directory = place.directory(false);
    let mut first = Session::new(&directory).unwrap();
    let handle = u64_at(&ask(&mut first, opcode::OPENDIR, ROOT, &body(&[0, 0], &[])).unwrap(), 0);
    let mut names = Vec::new();
    let mut list = |session: &mut Session<'_>, offset| -> Option<u64> {
        let reply = ask(session, opcode::READDIR, ROOT, &read_in(handle, offset, 400)).unwrap();
        let (mut rest, mut next) = (&reply[..], None);
        while !rest.is_empty() {
            let len = u32_at(rest, 16) as usize;
            names.push(String::from_utf8(rest[24..24 + len].to_vec()).unwrap());
            next = Some(u64_at(rest, 8));
            rest = &rest[(24 + len).next_multiple_of(8)..];
        }
        next
    };
    let mut offset = list(&mut first, 0).unwrap();
    let mut second = moved(&first, &directory);
    while let Some(next) = list(&mut second, offset) {
        offset = next;
    }
    names.sort();
    let files = (0..40).map(|n| format!("file{n:02}"));
    let all: Vec<String> = [".".to_string(), "..".to_string()].into_iter().chain(files).collect();
    assert_eq!(names, all, "each once");
}

#[test]
fn what_is_another_file_or_none_by_now_is_stale_and_looked_up_anew() {
    let place = Place::new();
    for name in ["gone", "replaced", "stays"] {
        fs::write(place.inside().join(name), name).unwrap();
    }
    let directory = place.directory(false);
    let mut first = Session::new(&directory).unwrap();
    let known = ["gone", "replaced", "stays"].map(|name| {
        let node = look_up(&mut first, ROOT, name).unwrap();
        (node, open(&mut first, node, O_RDWR).unwrap())
    });
    let (unlinked, handle) = create(&mut first, ROOT, "unlinked").unwrap();
    fs::remove_file(place.inside().join("unlinked")).unwrap();
    assert!(content(&mut first, unlinked, handle).is_ok(), "here it is still there");
    fs::remove_file(place.inside().join("gone")).unwrap();
    fs::write(place.inside().join("new"), "another").unwrap();
    fs::rename(place.inside().join("new"), place.inside().join("replaced")).unwrap();
    let mut second = moved(&first, &directory);
    let [gone, replaced, stays] = known;
    for (node, handle) in [gone, replaced, (unlinked, handle)] {
        assert_eq!(ask(&mut second, opcode::GETATTR, node, &[0; 16]), Err(Errno::STALE));
        assert_eq!(content(&mut second, node, handle), Err(Errno::STALE));
        assert_eq!(ask(&mut second, opcode::FSYNC, node, &longs(&[handle, 0])), Err(Errno::STALE));
        ask(&mut second, opcode::RELEASE, node, &longs(&[handle, 0, 0])).unwrap();
    }
    assert_eq!(content(&mut second, stays.0, stays.1).unwrap(), b"stays");
    let anew = look_up(&mut second, ROOT, "replaced").unwrap();
    assert_ne!(anew, replaced.0);
    let handle = open(&mut second, anew, O_RDONLY).unwrap();
    assert_eq!(content(&mut second, anew, handle).unwrap(), b"another");
}

#[test]
fn a_directory_that_only_lets_read_opens_nothing_for_writing_again() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut first = Session::new(&directory).unwrap();
    let (node, handle) = create(&mut first, ROOT, "file").unwrap();
    let read_only = place.directory(true);
    let mut second = moved(&first, &read_only);
    assert_eq!(content(&mut second, node, handle), Err(Errno::STALE));
    assert!(ask(&mut second, opcode::GETATTR, node, &[0; 16]).is_ok());
}

#[test]
fn its_form_is_what_the_documents_say() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    create(&mut session, ROOT, "a").unwrap();
    let no_text = std::os::unix::ffi::OsStrExt::from_bytes(b"\xff");
    fs::write(place.inside().join::<&std::ffi::OsStr>(no_text), "").unwrap();
    ask(&mut session, opcode::LOOKUP, ROOT, b"\xff\0").unwrap();
    ask(&mut session, opcode::OPENDIR, ROOT, &body(&[0, 0], &[])).unwrap();
    let mut saved: Value = serde_json::from_slice(&session.save().unwrap()).unwrap();
    for list in ["nodes", "handles"] {
        saved[list].as_array_mut().unwrap().sort_by_key(|entry| entry["number"].as_u64());
    }
    let files: Vec<Value> = (0..2).map(|n| saved["nodes"][n]["file"].take()).collect();
    assert!(files.iter().all(|file| file["inode"].as_u64() > Some(0)), "{files:?}");
    for file in files.iter().chain([&saved["root"].take()]) {
        let keys: Vec<&String> = file.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["born", "device", "inode"]);
    }
    assert_eq!(
        saved,
        json!({
            "root": null,
            "next_node": 4,
            "nodes": [
                {"number": 2, "parent": 1, "name": "a", "file": null, "kind": 0o100000, "lookups": 1},
                {"number": 3, "parent": 1, "name": [255], "file": null, "kind": 0o100000, "lookups": 1},
            ],
            "next_handle": 3,
            "handles": [{"number": 1, "node": 2, "flags": 0o4402}, {"number": 2, "node": 1, "flags": null}],
        })
    );
}

#[test]
fn what_no_server_has_written_is_refused_in_words() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    create(&mut session, ROOT, "file").unwrap();
    let good: Value = serde_json::from_slice(&session.save().unwrap()).unwrap();
    let cases: [(&str, Value, &str); 12] = [
        ("/nodes/0/number", json!(1), "never given"),
        ("/nodes/0/number", json!(99), "never given"),
        ("/nodes/0/name", json!(".."), "has no name"),
        ("/nodes/0/name", json!("a/b"), "has no name"),
        ("/nodes/0/name", json!([97, 0]), "has no name"),
        ("/nodes/0/name", json!("a".repeat(256)), "has no name"),
        ("/nodes/0/name", json!(7), "Name"),
        ("/nodes/1", good["nodes"][0].clone(), "twice"),
        ("/handles/1", good["handles"][0].clone(), "twice"),
        ("/next_handle", json!(1), "never given"),
        ("/next_node", json!(-1), "invalid"),
        ("/more", json!(1), "unknown field"),
    ];
    for (place, value, why) in cases {
        let mut bad = good.clone();
        match (bad.pointer_mut(place), place.rsplit_once('/').unwrap()) {
            (Some(there), _) => *there = value,
            (None, (list, key)) => match bad.pointer_mut(list).unwrap() {
                Value::Array(list) => list.push(value),
                object => object[key] = value,
            },
        }
        let error = session.load(bad.to_string().as_bytes()).unwrap_err();
        assert!(error.contains(why), "{place}: {error}");
    }
    for bytes in [&b""[..], b"{", b"[]", b"\xff"] {
        assert!(session.load(bytes).is_err());
    }
    // It serves all the same, a guest that knows nothing or little.
    assert!(look_up(&mut session, ROOT, "file").is_some());
}

#[test]
fn files_of_a_file_system_with_another_number_are_known_by_the_directorys() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let (node, handle) = create(&mut session, ROOT, "file").unwrap();
    let mut saved: SessionSaved = serde_json::from_slice(&session.save().unwrap()).unwrap();
    let booted_anew = (saved.root.device.0, saved.root.device.1 + 1);
    saved.root.device = booted_anew;
    saved.nodes[0].file.device = booted_anew;
    session.load(&serde_json::to_vec(&saved).unwrap()).unwrap();
    assert!(content(&mut session, node, handle).is_ok());
    saved.nodes[0].file.device = (saved.root.device.0, saved.root.device.1 + 7);
    session.load(&serde_json::to_vec(&saved).unwrap()).unwrap();
    assert_eq!(content(&mut session, node, handle), Err(Errno::STALE));
}
