use super::*;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

#[test]
fn what_is_written_is_read_also_when_its_name_is_gone() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let (node, handle) = create(&mut session, ROOT, "file").unwrap();
    let written = ask(&mut session, opcode::WRITE, node, &write_in(handle, 3, b"hello")).unwrap();
    assert_eq!(u32_at(&written, 0), 5);
    ask(&mut session, opcode::UNLINK, ROOT, &body(&[], &["file"])).unwrap();
    assert_eq!(ask(&mut session, opcode::READ, node, &read_in(handle, 0, 100)).unwrap(), b"\0\0\0hello");
    assert_eq!(ask(&mut session, opcode::READ, node, &read_in(handle, 6, 1)).unwrap(), b"l");
    assert_eq!(ask(&mut session, opcode::READ, node, &read_in(handle, 100, 1)).unwrap(), b"");
    let by_handle = [body(&[1, 0], &[]), longs(&[handle])].concat();
    let attr = ask(&mut session, opcode::GETATTR, node, &by_handle).unwrap();
    assert_eq!(u64_at(&attr, 24), 8);
    ask(&mut session, opcode::FSYNC, node, &[longs(&[handle]), body(&[1, 0], &[])].concat()).unwrap();
    ask(&mut session, opcode::RELEASE, node, &longs(&[handle, 0, 0])).unwrap();
    assert_eq!(ask(&mut session, opcode::READ, node, &read_in(handle, 0, 1)), Err(Errno::BADF));
    // More than its length says.
    let short = write_in(handle, 0, b"12345");
    assert_eq!(ask(&mut session, opcode::WRITE, node, &short[..short.len() - 1]), Err(Errno::INVAL));
}

#[test]
fn open_truncates_and_appends_as_asked() {
    let place = Place::new();
    let path = place.inside().join("file");
    fs::write(&path, "content").unwrap();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let node = look_up(&mut session, ROOT, "file").unwrap();
    let handle = open(&mut session, node, 0o2001).unwrap();
    ask(&mut session, opcode::WRITE, node, &write_in(handle, 0, b"+")).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"content+");
    // Direct I/O would want aligned buffers.
    open(&mut session, node, 0o41002).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"");
    let exclusive = ask(&mut session, opcode::CREATE, ROOT, &body(&[0o201, 0o600, 0, 0], &["file"]));
    assert_eq!(exclusive, Err(Errno::EXIST));
    assert_eq!(create(&mut session, ROOT, "file").unwrap().0, node, "without O_EXCL it is opened");
}

#[test]
fn attributes_are_set_one_by_one() {
    let place = Place::new();
    let path = place.inside().join("file");
    fs::write(&path, "content").unwrap();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let node = look_up(&mut session, ROOT, "file").unwrap();
    let setattr = |valid: u32, size: u64, times: [u64; 2], mode: u32, ids: [u32; 2]| {
        [
            body(&[valid, 0], &[]),
            longs(&[0, size, 0, times[0], times[1], 0]),
            body(&[111, 222, 0, mode, 0, ids[0], ids[1], 0], &[]),
        ]
        .concat()
    };
    let before = fs::metadata(&path).unwrap();
    let attr = ask(&mut session, opcode::SETATTR, node, &setattr(1, 9, [5, 6], 0o600, [7, 7])).unwrap();
    assert_eq!(u32_at(&attr, 16 + 60), 0o100600);
    let after = fs::metadata(&path).unwrap();
    assert_eq!(after.permissions().mode() & 0o7777, 0o600);
    assert_eq!((after.len(), after.mtime()), (before.len(), before.mtime()));
    ask(&mut session, opcode::SETATTR, node, &setattr(8 | 32, 3, [5, 6], 0, [7, 7])).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((after.len(), after.mtime(), after.mtime_nsec()), (3, 6, 222));
    assert_ne!(after.atime(), 5);
    ask(&mut session, opcode::SETATTR, node, &setattr(16 | 32 | 256, 0, [5, 6], 0, [7, 7])).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert!(after.atime() == 5 && after.mtime() > 1_000_000_000, "FATTR_MTIME_NOW");
    ask(&mut session, opcode::SETATTR, node, &setattr(2 | 4, 0, [0; 2], 0, [0, 0])).unwrap();
    for (valid, ids) in [(2, [7, 0]), (4, [0, 7]), (6, [7, 7])] {
        let changed = ask(&mut session, opcode::SETATTR, node, &setattr(valid, 0, [0; 2], 0, ids));
        assert_eq!(changed, Err(Errno::PERM), "nobody else's");
    }
}

#[test]
fn holes_are_made_found_and_copied_over() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let (node, handle) = create(&mut session, ROOT, "file").unwrap();
    ask(&mut session, opcode::WRITE, node, &write_in(handle, 1 << 20, b"data")).unwrap();
    let mut seek = |whence: u32, offset: u64| {
        let found = ask(
            &mut session,
            opcode::LSEEK,
            node,
            &[longs(&[handle, offset]), body(&[whence, 0], &[])].concat(),
        );
        found.map(|reply| u64_at(&reply, 0))
    };
    assert_eq!(seek(4, 0), Ok(0));
    assert_eq!(seek(0, 0), Err(Errno::INVAL));
    assert_eq!(seek(3, 2 << 20), Err(Errno::NXIO));
    ask(&mut session, opcode::FALLOCATE, node, &longs(&[handle, 0, 2 << 20, 0])).unwrap();
    assert_eq!(fs::metadata(place.inside().join("file")).unwrap().len(), 2 << 20);
    let wild = ask(&mut session, opcode::FALLOCATE, node, &longs(&[handle, 0, 1, 0x8000_0000]));
    assert_eq!(wild, Err(Errno::NOTSUP));
    let copy = longs(&[handle, 1 << 20, node, handle, 0, 4, 0]);
    assert_eq!(u32_at(&ask(&mut session, opcode::COPY_FILE_RANGE, node, &copy).unwrap(), 0), 4);
    assert_eq!(ask(&mut session, opcode::READ, node, &read_in(handle, 0, 4)).unwrap(), b"data");
}

#[test]
fn extended_attributes_of_users_are_kept() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let (node, _) = create(&mut session, ROOT, "file").unwrap();
    let set = [body(&[5, 0], &["user.name"]), b"value".to_vec()].concat();
    match ask(&mut session, opcode::SETXATTR, node, &set) {
        Err(Errno::NOTSUP) => return, // a file system without them
        result => drop(result.unwrap()),
    }
    let get = |size: u32| body(&[size, 0], &["user.name"]);
    assert_eq!(ask(&mut session, opcode::GETXATTR, node, &get(0)).unwrap(), longs(&[5]));
    assert_eq!(ask(&mut session, opcode::GETXATTR, node, &get(5)).unwrap(), b"value");
    assert_eq!(ask(&mut session, opcode::GETXATTR, node, &get(4)), Err(Errno::RANGE));
    assert_eq!(ask(&mut session, opcode::LISTXATTR, node, &body(&[100, 0], &[])).unwrap(), b"user.name\0");
    ask(&mut session, opcode::REMOVEXATTR, node, &body(&[], &["user.name"])).unwrap();
    assert_eq!(ask(&mut session, opcode::GETXATTR, node, &get(0)), Err(Errno::NODATA));
}

#[test]
fn statfs_access_and_sync_tell_of_the_host() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let stat = ask(&mut session, opcode::STATFS, ROOT, &[]).unwrap();
    assert_eq!((stat.len(), u32_at(&stat, 44)), (80, 255));
    assert!(u64_at(&stat, 0) >= u64_at(&stat, 8));
    ask(&mut session, opcode::ACCESS, ROOT, &body(&[7, 0], &[])).unwrap();
    assert_eq!(ask(&mut session, opcode::ACCESS, ROOT, &body(&[64, 0], &[])), Err(Errno::INVAL));
    ask(&mut session, opcode::SYNCFS, ROOT, &[0; 8]).unwrap();
    for unknown in [opcode::FLUSH, 0, 31, 39, 53, u32::MAX] {
        assert_eq!(ask(&mut session, unknown, ROOT, &[0; 64]), Err(Errno::NOSYS));
    }
}
