//! What a guest is said to know of a shared directory, and FUSE requests to its server, one after the other: nothing outside
//! changes or is told.
#![no_main]
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use viv_share::protocol::{IN_HEADER_LEN, opcode};
use viv_share::{Directory, Session};

const ROOM: usize = 4096;

/// A directory that is shared, beside a secret.
fn place() -> &'static PathBuf {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| {
        let place = std::env::temp_dir().join(format!("viv-fuzz-share-{}", std::process::id()));
        fs::create_dir_all(&place).expect("a place");
        fs::write(place.join("secret"), "do not tell").expect("a secret");
        place
    })
}

fn reset() {
    let inside = place().join("inside");
    let _ = fs::remove_dir_all(&inside);
    fs::create_dir_all(inside.join("a")).expect("a directory");
    fs::write(inside.join("b"), "content").expect("a file");
    std::os::unix::fs::symlink("../secret", inside.join("c")).expect("a link");
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((first, mut rest)) = data.split_first() else { return };
    reset();
    let directory = Directory::open(&place().join("inside"), first & 1 != 0).expect("it is there");
    let mut session = Session::new(&directory).expect("it can be shared");
    if first & 2 != 0 {
        let end = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
        let (state, more) = rest.split_at(end);
        let _ = session.load(state);
        rest = more.get(1..).unwrap_or_default();
    }
    let mut reply = Vec::new();
    while let Some(([what, node, len], more)) =
        rest.split_first_chunk::<3>().map(|(head, more)| (*head, more))
    {
        let len = usize::from(len).min(more.len());
        let (body, more) = more.split_at(len);
        rest = more;
        let mut request = Vec::with_capacity(IN_HEADER_LEN + len);
        // Mostly what it has; sometimes a length of its own.
        let total = if node & 0x80 == 0 { IN_HEADER_LEN + len } else { usize::from(node) };
        let what = match u32::from(what) {
            // It would fill the disk of who fuzzes.
            opcode::FALLOCATE => opcode::LSEEK,
            what => what,
        };
        request.extend((total as u32).to_le_bytes());
        request.extend(what.to_le_bytes());
        request.extend([7; 8]);
        request.extend(u64::from(node & 0x7f).to_le_bytes());
        request.extend([0; 16]);
        request.extend(body);
        session.answer(&request, ROOM, &mut reply);
        assert!(reply.len() <= ROOM);
        assert!(!reply.windows(11).any(|bytes| bytes == b"do not tell"));
    }
    let state = session.save().expect("it is small");
    Session::new(&directory).expect("it can be shared").load(&state).expect("it is what a server wrote");
    drop(session);
    assert_eq!(fs::read(place().join("secret")).expect("the secret"), b"do not tell");
    assert_eq!(fs::read_dir(place()).expect("the place").count(), 2);
});
