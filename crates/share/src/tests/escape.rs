//! A guest that wants out.
use super::*;
use std::os::unix::fs::{PermissionsExt, symlink};

/// Names by which no directory may be left.
const NAMES: &[&str] = &[
    "..",
    ".",
    "",
    "/",
    "../outside",
    "../outside/secret",
    "/etc/passwd",
    "sub/..",
    "sub/../../outside",
    "sub/file",
    "./sub",
    "..\0x",
    "link/secret",
    "//",
];

#[test]
fn a_name_is_one_component_and_never_a_way_up() {
    let place = Place::new();
    fs::create_dir(place.inside().join("sub")).unwrap();
    fs::write(place.inside().join("sub/file"), "").unwrap();
    symlink("../outside", place.inside().join("link")).unwrap();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let sub = look_up(&mut session, ROOT, "sub").unwrap();
    let file = look_up(&mut session, sub, "file").unwrap();
    for name in NAMES {
        for parent in [ROOT, sub] {
            let to = [longs(&[ROOT]), body(&[], &["file", name])].concat();
            let from = [longs(&[ROOT]), body(&[], &[name, "taken"])].concat();
            let to2 = [longs(&[ROOT, 0]), body(&[], &["file", name])].concat();
            for (what, bytes) in [
                (opcode::LOOKUP, body(&[], &[name])),
                (opcode::MKDIR, body(&[0o755, 0], &[name])),
                (opcode::MKNOD, body(&[0o100644, 0, 0, 0], &[name])),
                (opcode::SYMLINK, body(&[], &[name, "target"])),
                (opcode::CREATE, body(&[2, 0o644, 0, 0], &[name])),
                (opcode::UNLINK, body(&[], &[name])),
                (opcode::RMDIR, body(&[], &[name])),
                (opcode::RENAME, to),
                (opcode::RENAME, from),
                (opcode::RENAME2, to2),
                (opcode::LINK, [longs(&[file]), body(&[], &[name])].concat()),
            ] {
                assert_eq!(ask(&mut session, what, parent, &bytes), Err(Errno::INVAL), "{what} {name:?}");
            }
        }
    }
    let long = "x".repeat(256);
    let refused = ask(&mut session, opcode::LOOKUP, ROOT, &body(&[], &[&long]));
    assert_eq!(refused, Err(Errno::NAMETOOLONG));
    assert_eq!(ask(&mut session, opcode::LOOKUP, ROOT, b"no end"), Err(Errno::INVAL));
    place.assert_outside_untouched();
}

#[test]
fn a_link_is_never_followed_here() {
    let place = Place::new();
    let outside = place.0.join("outside");
    symlink(&outside, place.inside().join("absolute")).unwrap();
    symlink("../outside", place.inside().join("relative")).unwrap();
    symlink("../outside/secret", place.inside().join("file")).unwrap();
    symlink("/proc/self/root", place.inside().join("root")).unwrap();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    for name in ["absolute", "relative", "root"] {
        let node = look_up(&mut session, ROOT, name).unwrap();
        for (what, bytes) in [
            (opcode::LOOKUP, body(&[], &["secret"])),
            (opcode::OPENDIR, body(&[0, 0], &[])),
            (opcode::CREATE, body(&[2, 0o644, 0, 0], &["new"])),
            (opcode::MKDIR, body(&[0o755, 0], &["new"])),
            (opcode::UNLINK, body(&[], &["secret"])),
        ] {
            assert_eq!(ask(&mut session, what, node, &bytes), Err(Errno::NOTDIR), "{what} {name}");
        }
    }
    let node = look_up(&mut session, ROOT, "file").unwrap();
    assert_eq!(ask(&mut session, opcode::READLINK, node, &[]).unwrap(), b"../outside/secret");
    for flags in [0, 1, 2, 0o1000, 0o10000000] {
        assert_eq!(open(&mut session, node, flags), Err(Errno::LOOP));
    }
    // O_CREAT without O_EXCL opens what is there.
    assert_eq!(create(&mut session, ROOT, "file"), Err(Errno::LOOP));
    // chmod, truncate; times are the link's own.
    let setattr = |what: u32, mode: u32| {
        [body(&[what, 0], &[]), longs(&[0; 6]), body(&[0, 0, 0, mode, 0, 0, 0, 0], &[])].concat()
    };
    assert!(ask(&mut session, opcode::SETATTR, node, &setattr(1, 0o777)).is_err());
    assert_eq!(ask(&mut session, opcode::SETATTR, node, &setattr(8, 0)), Err(Errno::LOOP));
    let before = fs::metadata(outside.join("secret")).unwrap().modified().unwrap();
    ask(&mut session, opcode::SETATTR, node, &setattr(16 | 32, 0)).unwrap();
    assert_eq!(fs::metadata(outside.join("secret")).unwrap().modified().unwrap(), before);
    let linked = [longs(&[node]), body(&[], &["again"])].concat();
    ask(&mut session, opcode::LINK, ROOT, &linked).unwrap();
    assert!(fs::symlink_metadata(place.inside().join("again")).unwrap().is_symlink());
    let set = [body(&[1, 0], &["user.x"]), b"1".to_vec()].concat();
    assert_eq!(ask(&mut session, opcode::SETXATTR, node, &set), Err(Errno::NOTSUP));
    place.assert_outside_untouched();
}

#[test]
fn a_directory_that_is_swapped_for_a_link_leads_nowhere() {
    let place = Place::new();
    fs::create_dir(place.inside().join("sub")).unwrap();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let sub = look_up(&mut session, ROOT, "sub").unwrap();
    fs::rename(place.inside().join("sub"), place.inside().join("old")).unwrap();
    symlink("../outside", place.inside().join("sub")).unwrap();
    create(&mut session, sub, "new").unwrap();
    assert!(place.inside().join("old/new").is_file());
    let secret = ask(&mut session, opcode::LOOKUP, sub, &body(&[], &["secret"])).unwrap();
    assert_eq!(u64_at(&secret, 0), 0, "not there");
    place.assert_outside_untouched();
}

#[test]
fn nodes_and_handles_that_nobody_gave_are_errors() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    for node in [0, 2, 77, u64::MAX] {
        assert_eq!(ask(&mut session, opcode::GETATTR, node, &[0; 16]), Err(Errno::STALE));
        assert_eq!(open(&mut session, node, 0), Err(Errno::STALE));
        assert_eq!(ask(&mut session, opcode::READ, ROOT, &read_in(node, 0, 10)), Err(Errno::BADF));
        assert_eq!(ask(&mut session, opcode::READDIR, ROOT, &read_in(node, 0, 10)), Err(Errno::BADF));
    }
}

#[test]
fn pipes_sockets_and_devices_are_not_opened() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    for (name, mode) in [("pipe", 0o010644), ("socket", 0o140644)] {
        let reply = ask(&mut session, opcode::MKNOD, ROOT, &body(&[mode, 0, 0, 0], &[name])).unwrap();
        let node = u64_at(&reply, 0);
        for flags in 0..3 {
            assert_eq!(open(&mut session, node, flags), Err(Errno::NXIO));
        }
        assert_eq!(create(&mut session, ROOT, name), Err(Errno::NXIO), "without waiting for a reader");
    }
    for mode in [0o020644, 0o060644, 0o120644, 0o040755, 0] {
        let made = ask(&mut session, opcode::MKNOD, ROOT, &body(&[mode, 0x103, 0, 0], &["device"]));
        assert_eq!(made, Err(Errno::PERM));
    }
}

#[test]
fn a_guest_leaves_no_program_that_runs_as_its_owner() {
    let place = Place::new();
    let directory = place.directory(false);
    let mut session = Session::new(&directory).unwrap();
    let mode = |name: &str| fs::metadata(place.inside().join(name)).unwrap().permissions().mode() & 0o7777;
    let made = ask(&mut session, opcode::CREATE, ROOT, &body(&[2, 0o6755, 0, 0], &["made"])).unwrap();
    ask(&mut session, opcode::MKNOD, ROOT, &body(&[0o104755, 0, 0, 0], &["node"])).unwrap();
    ask(&mut session, opcode::MKDIR, ROOT, &body(&[0o3777, 0], &["directory"])).unwrap();
    let chmod = [body(&[1, 0], &[]), longs(&[0; 6]), body(&[0, 0, 0, 0o4711, 0, 0, 0, 0], &[])].concat();
    assert_eq!(mode("made") & 0o6000, 0);
    ask(&mut session, opcode::SETATTR, u64_at(&made, 0), &chmod).unwrap();
    assert_eq!((mode("made"), mode("node") & 0o6000, mode("directory") & 0o6000), (0o711, 0, 0));
    for name in ["security.capability", "trusted.x", "system.posix_acl_access", "users", ""] {
        let set = [body(&[1, 0], &[name]), b"1".to_vec()].concat();
        assert_eq!(ask(&mut session, opcode::SETXATTR, u64_at(&made, 0), &set), Err(Errno::NOTSUP));
        let get = body(&[0, 0], &[name]);
        assert_eq!(ask(&mut session, opcode::GETXATTR, u64_at(&made, 0), &get), Err(Errno::NOTSUP));
    }
}

#[test]
fn a_read_only_share_refuses_every_change() {
    let place = Place::new();
    fs::write(place.inside().join("file"), "content").unwrap();
    let directory = place.directory(true);
    let mut session = Session::new(&directory).unwrap();
    let node = look_up(&mut session, ROOT, "file").unwrap();
    for flags in [1, 2, 0o1000, 0o1001] {
        assert_eq!(open(&mut session, node, flags), Err(Errno::ROFS), "{flags:o}");
    }
    let handle = open(&mut session, node, 0).unwrap();
    assert_eq!(ask(&mut session, opcode::READ, node, &read_in(handle, 0, 100)).unwrap(), b"content");
    let two = [longs(&[ROOT]), body(&[], &["file", "new"])].concat();
    for (what, bytes) in [
        (opcode::SETATTR, vec![0; 88]),
        (opcode::SYMLINK, body(&[], &["new", "x"])),
        (opcode::MKNOD, body(&[0o100644, 0, 0, 0], &["new"])),
        (opcode::MKDIR, body(&[0o755, 0], &["new"])),
        (opcode::UNLINK, body(&[], &["file"])),
        (opcode::RMDIR, body(&[], &["file"])),
        (opcode::RENAME, two),
        (opcode::RENAME2, [longs(&[ROOT, 0]), body(&[], &["file", "new"])].concat()),
        (opcode::LINK, [longs(&[node]), body(&[], &["new"])].concat()),
        (opcode::WRITE, write_in(handle, 0, b"x")),
        (opcode::SETXATTR, [body(&[1, 0], &["user.x"]), b"1".to_vec()].concat()),
        (opcode::REMOVEXATTR, body(&[], &["user.x"])),
        (opcode::CREATE, body(&[2, 0o644, 0, 0], &["new"])),
        (opcode::FALLOCATE, longs(&[handle, 0, 10, 0])),
        (opcode::COPY_FILE_RANGE, longs(&[handle, 0, node, handle, 10, 5, 0])),
        (opcode::ACCESS, body(&[2, 0], &[])),
    ] {
        assert_eq!(
            ask(&mut session, what, if what == opcode::SETATTR { node } else { ROOT }, &bytes),
            Err(Errno::ROFS),
            "{what}"
        );
    }
    assert_eq!(fs::read_dir(place.inside()).unwrap().count(), 1);
    assert_eq!(fs::read(place.inside().join("file")).unwrap(), b"content");
}
