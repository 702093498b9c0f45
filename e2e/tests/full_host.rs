//! A host without room: what cannot be saved is refused, the VM goes on, and nothing is left behind.
use std::fs::File;
use std::io::Write;
use std::path::Path;
use viv_e2e::{Directory, Home, SmallFileSystem, tool};

/// Bytes that are free when it is tried.
const FREE: [u64; 15] = [
    0,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    8 << 20,
    12 << 20,
    16 << 20,
    24 << 20,
    32 << 20,
    48 << 20,
    64 << 20,
    128 << 20,
];

/// Takes all of a file system but so many bytes, until it is dropped.
struct Filler<'a>(&'a Path);

impl<'a> Filler<'a> {
    fn new(path: &'a Path, leave: u64) -> Filler<'a> {
        let shown = tool("df", &["--output=avail", "-B1", &path.parent().unwrap().to_string_lossy()]);
        let free: u64 = shown.lines().nth(1).unwrap().trim().parse().unwrap();
        let mut file = File::create(path).unwrap();
        let piece = vec![0; 4096];
        for _ in 0..free.saturating_sub(leave) / 4096 {
            file.write_all(&piece).unwrap();
        }
        Filler(path)
    }
}

impl Drop for Filler<'_> {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.0);
    }
}

#[test]
#[ignore = "needs the right to mount: cargo xtask disks"]
fn whoever_saves_without_room_is_told_and_nothing_is_left() {
    let file_system = SmallFileSystem::ext4("full-host", 400);
    let place = file_system.0.join("home");
    std::fs::create_dir(&place).unwrap();
    let home = Home::at(Directory(place));
    let disk = home.path("disk.raw");
    File::create(&disk).unwrap().set_len(16 << 20).unwrap();
    let exec = |vm: &str, script: &str| home.run(&["exec", vm, "--", "sh", "-c", script]);
    home.run(&["run", "-d", "--name", "user", "--accel", "soft", "--memory", "96M", "--disk", &disk]).ok();
    exec("user", "head -c 8000000 /dev/urandom > /dev/vda; echo here > /here").ok();
    // It has a disk of its own.
    home.run(&["fork", "user", "--name", "vm"]).ok();
    home.run(&["snapshot", "create", "vm", "before"]).ok();
    let filler = file_system.0.join("filler");
    let works: [&[&str]; 6] = [
        &["snapshot", "create", "vm", "made"],
        &["snapshot", "create", "--full", "vm", "made"],
        &["template", "create", "vm", "made"],
        &["fork", "vm", "--name", "other"],
        &["restore", "before", "--name", "other"],
        &["rollback", "vm", "before"],
    ];
    for work in works {
        let mut done = 0;
        for free in FREE {
            let full = Filler::new(&filler, free);
            let outcome = home.run(work);
            let refused = outcome.status == 5
                && ["No space left", "is full"].iter().any(|why| outcome.err.contains(why));
            assert!(refused || outcome.status == 0, "{work:?} with {free} bytes: {outcome:?}");
            done += u32::from(outcome.status == 0);
            let here = exec("vm", "cat /here");
            assert_eq!(here.out, "here\n", "{work:?} with {free} bytes: {outcome:?}, {here:?}");
            drop(full);
            let _ = home.run(&["rm", "-f", "other"]);
            let _ = home.run(&["snapshot", "rm", "made"]);
            // Nothing is there that is not listed.
            home.run(&["snapshot", "verify", "before"]).ok();
            let count = |path: &str| std::fs::read_dir(home.path(path)).unwrap().count();
            assert_eq!((count("state/snapshots"), count("state/vms")), (1, 2), "{work:?} with {free} bytes");
        }
        println!("{work:?}: done {done} times of {}", FREE.len());
        home.run(work).ok();
        let _ = home.run(&["rm", "-f", "other"]);
        let _ = home.run(&["snapshot", "rm", "made"]);
    }
}
