//! Whatever comes, an answer goes back, and nothing outside is touched.
use super::*;
use proptest::prelude::*;
use std::os::unix::fs::symlink;

fn place() -> Place {
    let place = Place::new();
    fs::create_dir(place.inside().join("sub")).unwrap();
    fs::write(place.inside().join("file"), "content").unwrap();
    symlink("../outside", place.inside().join("link")).unwrap();
    place
}

const NAMES: [&str; 12] = [
    "file",
    "sub",
    "link",
    "new",
    "other",
    "..",
    "../outside/secret",
    "a/b",
    "",
    ".",
    "user.a",
    "/etc/passwd",
];

fn piece() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => prop::sample::select(&NAMES[..]).prop_map(|name| body(&[], &[name])),
        4 => (0u64..8).prop_map(|word| word.to_le_bytes().to_vec()),
        2 => any::<u32>().prop_map(|word| word.to_le_bytes().to_vec()),
        1 => prop::sample::select(&[u64::MAX, 1 << 63, 1 << 40, i64::MAX as u64][..]).prop_map(|word| word.to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn requests_of_any_kind_with_any_content(
        read_only: bool,
        requests in prop::collection::vec((0u32..54, 0u64..8, prop::collection::vec(piece(), 0..9), 0usize..5000), 1..60),
    ) {
        let place = place();
        let directory = place.directory(read_only);
        let mut session = Session::new(&directory).unwrap();
        for name in ["file", "sub", "link"] {
            look_up(&mut session, ROOT, name);
        }
        let mut reply = Vec::new();
        for (opcode, node, pieces, room) in requests {
            // It would fill the disk of who tests.
            let opcode = if opcode == opcode::FALLOCATE { opcode::LSEEK } else { opcode };
            session.answer(&request(opcode, node, &pieces.concat()), room, &mut reply);
            prop_assert!(reply.len() <= room);
            prop_assert!(!reply.windows(6).any(|bytes| bytes == b"secret"), "{reply:?}");
            if !reply.is_empty() {
                prop_assert_eq!(u32_at(&reply, 0) as usize, reply.len());
                prop_assert_eq!(u64_at(&reply, 8), 0x1234_5678_9abc);
            }
        }
        // Whatever the guest did, it goes on with another server as it is.
        let saved = session.save().unwrap();
        let sorted = |saved: &[u8]| {
            let mut saved: crate::saved::SessionSaved = serde_json::from_slice(saved).unwrap();
            saved.nodes.sort_by_key(|node| node.number);
            saved.handles.sort_by_key(|handle| handle.number);
            saved
        };
        let mut other = Session::new(&directory).unwrap();
        other.load(&saved).unwrap();
        prop_assert_eq!(sorted(&other.save().unwrap()), sorted(&saved));
        place.assert_outside_untouched();
        if read_only {
            prop_assert_eq!(fs::read(place.inside().join("file")).unwrap(), b"content");
            prop_assert_eq!(fs::read_dir(place.inside()).unwrap().count(), 3);
        }
    }

    #[test]
    fn bytes_that_are_no_request(bytes in prop::collection::vec(any::<u8>(), 0..200), room in 0usize..300) {
        let place = place();
        let directory = place.directory(false);
        let mut session = Session::new(&directory).unwrap();
        let mut reply = vec![1, 2, 3];
        session.answer(&bytes, room, &mut reply);
        prop_assert!(reply.is_empty() || reply.len() >= OUT_HEADER_LEN && reply.len() <= room);
        place.assert_outside_untouched();
    }
}
