//! A guest's kernel that is not one: requests as bytes, byte by byte from fuse.h, also such as no kernel would send.

mod anything;
mod content;
mod escape;
mod link;
mod listing;
mod names;
mod saved;

use crate::protocol::{OUT_HEADER_LEN, ROOT, opcode};
use crate::{Directory, Session};
use rustix::io::Errno;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory with `inside`, which is shared, and `outside`, which is not.
pub(super) struct Place(PathBuf);

impl Place {
    pub(super) fn new() -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("viv-share-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("inside")).unwrap();
        fs::create_dir_all(path.join("outside/directory")).unwrap();
        fs::write(path.join("outside/secret"), "secret").unwrap();
        Place(path)
    }

    pub(super) fn inside(&self) -> PathBuf {
        self.0.join("inside")
    }

    pub(super) fn directory(&self, read_only: bool) -> Directory {
        Directory::open(&self.inside(), read_only).unwrap()
    }

    /// Everything outside is as it was.
    pub(super) fn assert_outside_untouched(&self) {
        let names = |path: &Path| -> Vec<_> {
            let mut names: Vec<_> =
                fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&self.0), ["inside", "outside"]);
        assert_eq!(names(&self.0.join("outside")), ["directory", "secret"]);
        assert_eq!(names(&self.0.join("outside/directory")).len(), 0);
        let secret = self.0.join("outside/secret");
        assert_eq!(fs::read(&secret).unwrap(), b"secret");
        use std::os::unix::fs::MetadataExt;
        let found = fs::metadata(&secret).unwrap();
        assert_eq!((found.mode() & 0o7777, found.nlink()), (0o644, 1));
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Room that replies get.
const ROOM: usize = 1 << 16;

/// A request's bytes.
pub(super) fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((40 + body.len() as u32).to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(0x1234_5678_9abc_u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    // A user of the guest: who it is means nothing here.
    bytes.extend([1000u32, 1000, 77, 0].iter().flat_map(|word| word.to_le_bytes()));
    bytes.extend(body);
    bytes
}

/// Asks, and takes the reply apart.
pub(super) fn ask(session: &mut Session<'_>, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut reply = Vec::new();
    session.answer(&request(opcode, node, body), ROOM, &mut reply);
    assert_eq!(u32_at(&reply, 0) as usize, reply.len());
    assert_eq!(u64_at(&reply, 8), 0x1234_5678_9abc);
    match u32_at(&reply, 4) as i32 {
        0 => Ok(reply.split_off(OUT_HEADER_LEN)),
        error => {
            assert!(error < 0 && reply.len() == OUT_HEADER_LEN, "{reply:?}");
            Err(Errno::from_raw_os_error(-error))
        }
    }
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Words, then text with its zero.
pub(super) fn body(words: &[u32], texts: &[&str]) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    for text in texts {
        bytes.extend(text.bytes());
        bytes.push(0);
    }
    bytes
}

pub(super) fn longs(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Looks a name up; what is not there has no node.
pub(super) fn look_up(session: &mut Session<'_>, parent: u64, name: &str) -> Option<u64> {
    let entry = ask(session, opcode::LOOKUP, parent, &body(&[], &[name])).unwrap();
    Some(u64_at(&entry, 0)).filter(|node| *node != 0)
}

/// Opens a node with flags.
pub(super) fn open(session: &mut Session<'_>, node: u64, flags: i32) -> Result<u64, Errno> {
    ask(session, opcode::OPEN, node, &body(&[flags as u32, 0], &[])).map(|reply| u64_at(&reply, 0))
}

/// Makes a file: its node and its handle.
pub(super) fn create(session: &mut Session<'_>, parent: u64, name: &str) -> Result<(u64, u64), Errno> {
    const O_RDWR: u32 = 2;
    let reply = ask(session, opcode::CREATE, parent, &body(&[O_RDWR, 0o644, 0, 0], &[name]))?;
    Ok((u64_at(&reply, 0), u64_at(&reply, 128)))
}

/// Bytes of a `fuse_read_in`.
pub(super) fn read_in(handle: u64, offset: u64, size: u32) -> Vec<u8> {
    [longs(&[handle, offset]), body(&[size, 0, 0, 0, 0, 0], &[])].concat()
}

/// Bytes of a `fuse_write_in` with its data.
pub(super) fn write_in(handle: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    [read_in(handle, offset, data.len() as u32), data.to_vec()].concat()
}

#[test]
fn init_agrees_on_a_version_and_on_what_both_can() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let reply = ask(&mut session, opcode::INIT, 0, &body(&[7, 36, 1 << 17, u32::MAX], &[])).unwrap();
    assert_eq!(reply.len(), 64);
    assert_eq!((u32_at(&reply, 0), u32_at(&reply, 4), u32_at(&reply, 8)), (7, 36, 1 << 17));
    assert_eq!(u32_at(&reply, 20), 1 << 20, "max_write");
    assert_eq!(u32_at(&reply, 28) & 0xffff, 256, "max_pages");
    let flags = u32_at(&reply, 12);
    assert_eq!(
        flags & (1 << 16 | 1 << 20 | 1 << 4 | 1 << 29),
        0,
        "writeback, ACLs, exports, another SETXATTR"
    );
    let none = ask(&mut session, opcode::INIT, 0, &body(&[7, 31, 1 << 17, 0], &[])).unwrap();
    assert_eq!(u32_at(&none, 12), 0);
    let old = ask(&mut session, opcode::INIT, 0, &body(&[7, 30, 1 << 17, 0], &[]));
    assert_eq!(old.unwrap_err(), Errno::PROTO);
}

#[test]
fn the_guests_root_owns_what_the_sharing_user_owns() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let reply = ask(&mut session, opcode::GETATTR, ROOT, &[0; 16]).unwrap();
    assert_eq!(reply.len(), 104);
    assert_eq!(u64_at(&reply, 0), 1, "valid for a second");
    let attr = &reply[16..];
    assert_eq!(u32_at(attr, 60) & 0o170000, 0o040000);
    assert_eq!((u32_at(attr, 68), u32_at(attr, 72)), (0, 0));
}

#[test]
fn what_is_not_there_or_no_directory_has_a_way_out() {
    let place = Place::new();
    for (path, kind) in [("inside/no", viv_model::Kind::NotFound), ("outside/secret", viv_model::Kind::Usage)]
    {
        let fault = Directory::open(&place.0.join(path), false).err().unwrap();
        assert_eq!(fault.kind, kind);
        assert!(fault.message.contains(path), "{fault}");
    }
}
