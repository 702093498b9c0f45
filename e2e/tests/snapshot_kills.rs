//! Snapshots, restores, forks, rollbacks and templates in which a process is killed at one system call after the other, or is told of an
//! error there. Afterwards all that is listed is whole, nothing is there that is not listed, and the VM goes on: as before or as after.
//!
//! CI kills at some of the points; `VIV_KILL_POINTS=50 cargo test --release -p viv-e2e --test snapshot_kills` at so many of each work.
use nix::libc;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use viv_e2e::Home;
use viv_e2e::client::Service;
use viv_e2e::traced::{NOTHING, Traced, What, Whom};

const WAIT: Duration = Duration::from_secs(20);

/// A work that is cut off.
struct Work {
    name: &'static str,
    request: &'static str,
    body: &'static str,
    /// Whether it starts processes.
    starts: bool,
}

const WORKS: [Work; 8] = [
    Work::new("create, full", "POST /v1/vms/vm/snapshots", r#"{"name": "made", "full": true}"#),
    Work::new("create, differential", "POST /v1/vms/vm/snapshots", r#"{"name": "made"}"#),
    Work::new("rm in the middle", "DELETE /v1/snapshots/two", ""),
    Work::new("rollback", "POST /v1/vms/vm/rollback", r#"{"snapshot": "two"}"#).starting(),
    Work::new("restore", "POST /v1/snapshots/three/restore", r#"{"name": "other"}"#).starting(),
    Work::new("fork", "POST /v1/vms/vm/fork", r#"{"name": "other", "count": 2}"#).starting(),
    Work::new("template create", "POST /v1/vms/vm/snapshots", r#"{"name": "made", "template": true}"#),
    Work::new("template rm", "DELETE /v1/snapshots/pattern", ""),
];

impl Work {
    const fn new(name: &'static str, request: &'static str, body: &'static str) -> Work {
        Work { name, request, body, starts: false }
    }

    const fn starting(self) -> Work {
        Work { starts: true, ..self }
    }
}

/// A link of a chain of hashes: the last one is in memory, and on the disk at the place of its number. `CHECK` says whether they agree,
/// and which it is; `ON_DISK` looks at the disk alone; `LINK` adds one.
const BEGIN: &str = "echo 0 > /tmp/n; echo start > /tmp/last; echo start | dd of=/dev/vda bs=512 conv=sync,notrunc,fsync 2>/dev/null";
const CHECK: &str = "n=$(cat /tmp/n); last=$(cat /tmp/last); \
    there=$(dd if=/dev/vda bs=512 skip=$n count=1 2>/dev/null | tr -d '\\0'); \
    next=$(dd if=/dev/vda bs=512 skip=$((n+1)) count=1 2>/dev/null | tr -d '\\0'); \
    [ \"$there\" = \"$last\" ] && [ -z \"$next\" ] && echo $n || echo the disk has $there and $next instead of $last at $n";
const ON_DISK: &str = "n=0; while [ -n \"$(dd if=/dev/vda bs=512 skip=$((n+1)) count=1 2>/dev/null | tr -d '\\0')\" ]; \
    do n=$((n+1)); done; echo $n";
const LINK: &str = "n=$(($(cat /tmp/n)+1)); last=$(echo $(cat /tmp/last) $n | md5sum | cut -d' ' -f1); \
    echo $last | dd of=/dev/vda bs=512 seek=$n conv=sync,notrunc,fsync 2>/dev/null; echo $last > /tmp/last; echo $n > /tmp/n";

/// Where the chain is in each of the snapshots, and in the VM: where it is begun, each has one link more.
const TWO: &str = "2";
const THREE: &str = "3";
const NOW: &str = "4";

/// A home with a VM that has a disk of its own, three snapshots of it and a template.
struct World {
    home: Home,
    service: Option<Service>,
    /// Whether the host refuses what it refuses for good: also to forget a VM again.
    is_full: bool,
    /// How often a VM was there without a process, as after a power cut.
    cut_off: u32,
}

/// What has become of a work.
#[derive(Debug)]
enum Came {
    Done,
    Refused(String),
    /// Without an answer.
    Gone,
}

impl World {
    fn new(name: &str) -> World {
        let home = Home::new(name);
        let disk = home.path("disk.raw");
        File::create(&disk).unwrap().set_len(16 << 20).unwrap();
        let mut world = World { home, service: None, is_full: false, cut_off: 0 };
        world.serve();
        let words = ["run", "-d", "--name", "user", "--accel", "soft", "--memory", "96M", "--disk", &disk];
        world.home.run(&words).ok();
        world.exec("user", BEGIN);
        world.home.run(&["fork", "user", "--name", "vm"]).ok();
        world.home.run(&["rm", "-f", "user"]).ok();
        for snapshot in ["one", "two", "three"] {
            world.exec("vm", LINK);
            world.home.run(&["snapshot", "create", "vm", snapshot]).ok();
        }
        world.exec("vm", LINK);
        world.home.run(&["template", "create", "vm", "pattern"]).ok();
        world
    }

    fn serve(&mut self) {
        self.service = None;
        self.service = Some(Service::start(&self.home));
    }

    #[track_caller]
    fn exec(&self, vm: &str, command: &str) -> String {
        self.home.run(&["exec", vm, "--", "sh", "-c", command]).ok().out.trim().to_string()
    }

    #[track_caller]
    fn get(&self, path: &str) -> Vec<Value> {
        let answer = self.home.ask(&format!("GET {path}"), "", "");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body.as_array().unwrap().clone()
    }

    fn names(&self, path: &str) -> BTreeSet<String> {
        self.get(path).iter().map(|item| item["name"].as_str().unwrap().to_string()).collect()
    }

    fn pid(&self, vm: &str) -> u32 {
        let vms = self.get("/v1/vms");
        let vm = vms.iter().find(|one| one["name"] == vm).expect("it is listed");
        u32::try_from(vm["pid"].as_u64().expect("it runs")).unwrap()
    }

    /// All is as in the beginning, with a service that runs.
    fn restore_all(&mut self, work: &Work) {
        if self.service.is_none() {
            self.serve();
        }
        for vm in self.names("/v1/vms").iter().filter(|name| *name != "vm") {
            self.home.run(&["rm", "-f", vm]).ok();
        }
        if self.names("/v1/snapshots").contains("made") {
            self.home.run(&["snapshot", "rm", "made"]).ok();
        }
        let whole = ["one", "pattern", "three", "two"].map(String::from).into();
        let is_above = || !work.name.contains("differential") || self.parent() == "three";
        if self.names("/v1/snapshots") == whole && self.exec("vm", CHECK) == NOW && is_above() {
            return;
        }
        self.home.run(&["rollback", "vm", "one"]).ok();
        for snapshot in self.names("/v1/snapshots").iter().filter(|name| *name != "one") {
            self.home.run(&["snapshot", "rm", snapshot]).ok();
        }
        for snapshot in ["two", "three"] {
            self.exec("vm", LINK);
            self.home.run(&["snapshot", "create", "vm", snapshot]).ok();
        }
        self.exec("vm", LINK);
        self.home.run(&["template", "create", "vm", "pattern"]).ok();
    }

    /// What the next snapshot would be the difference from.
    fn parent(&self) -> String {
        let made = self.home.json(&["snapshot", "create", "vm", "probe"])["parent"].clone();
        self.home.run(&["snapshot", "rm", "probe"]).ok();
        made.as_str().unwrap_or_default().to_string()
    }

    /// Does the work.
    fn work(&self, work: &Work) -> Came {
        match self.home.try_ask(work.request, "", work.body) {
            Some(answer) if answer.status == 200 => Came::Done,
            Some(answer) => Came::Refused(answer.body.to_string()),
            None => Came::Gone,
        }
    }

    /// Where a VM's chain is by now; on its disk only, if its process may have `died` and it boots anew.
    fn chain(&mut self, vm: &Value, died: bool, at: &str) -> String {
        let name = vm["name"].as_str().unwrap();
        let ask = |command| self.home.run(&["exec", name, "--", "sh", "-c", command]);
        let mut is = None;
        if vm["state"] == "running" {
            is = Some(ask(CHECK)).filter(|is| is.status == 0);
            assert!(is.is_some() || died, "{at}: {name} does not answer");
        }
        let is = is.unwrap_or_else(|| {
            self.cut_off += 1;
            // It may be just about to end.
            assert!(
                soon(|| self.home.run(&["start", name]).status == 0),
                "{at}: {:?}",
                self.home.run(&["start", name])
            );
            ask(CHECK)
        });
        match died && is.out.trim().parse::<u32>().is_err() {
            true => ask(ON_DISK).ok().out.trim().to_string(),
            false => is.ok().out.trim().to_string(),
        }
    }

    /// Does the work while something happens to the VM's process, or to those that are started over it; how much was counted.
    fn trace(&mut self, work: &Work, whom: Whom, what: What) -> (Came, u64) {
        if whom == Whom::Itself {
            let traced = Traced::running(self.pid("vm"), what);
            let came = self.work(work);
            return (came, traced.leave());
        }
        self.service = None;
        let traced = Traced::service(&self.home, whom, what);
        let came = self.work(work);
        let counted = traced.end();
        self.serve();
        (came, counted)
    }

    /// The same; to the service if it is said to happen to nobody else.
    fn trace_any(&mut self, work: &Work, whom: Option<Whom>, what: What) -> (Came, u64) {
        let Some(whom) = whom else {
            self.service = None;
            let traced = Traced::service(&self.home, Whom::Itself, what);
            let came = self.work(work);
            let counted = traced.end();
            self.serve();
            return (came, counted);
        };
        self.trace(work, whom, what)
    }

    /// What is there is whole, and listed, and nothing else is; where a VM's process may have `died`, it may have booted anew.
    fn is_whole(&mut self, work: &Work, came: &Came, died: bool, at: &str) {
        let at = &format!("{} {at}, which came to {came:?}", work.name);
        let (snapshots, vms) = (self.get("/v1/snapshots"), self.get("/v1/vms"));
        for snapshot in &snapshots {
            let name = snapshot["name"].as_str().unwrap();
            let verified = self.home.ask(&format!("POST /v1/snapshots/{name}/verify"), "", "");
            assert_eq!(verified.status, 200, "{at}: {name}: {verified:?}");
        }
        let mut kept: BTreeSet<&str> = snapshots.iter().map(|one| one["name"].as_str().unwrap()).collect();
        let has = |kept: &mut BTreeSet<&str>, name| kept.remove(name);
        let (is_done, may_be_done) = (matches!(came, Came::Done), !matches!(came, Came::Refused(_)));
        let agrees = |is: bool| if is { may_be_done } else { !is_done };
        assert!(has(&mut kept, "one") && has(&mut kept, "three"), "{at}");
        if work.name.contains(" rm") || work.name.starts_with("rm") {
            let name = work.request.rsplit('/').next().unwrap();
            // Whoever could not remove its last file has removed it all the same.
            assert!(!is_done || !kept.contains(name), "{at}: {name} is there");
        }
        if work.name.contains("create") {
            assert!(agrees(has(&mut kept, "made")), "{at}: {snapshots:?}");
        }
        kept.remove("two");
        kept.remove("pattern");
        assert!(kept.is_empty(), "{at}: {kept:?}");
        // Each VM goes on, or can be started.
        let mut others = 0;
        for vm in &vms {
            let name = vm["name"].as_str().unwrap();
            if name != "vm" {
                assert!(name.starts_with("other"), "{at}: {name}");
                others += 1;
            }
            // Where there is no room to forget a VM that came to nothing, it has ended and stays, to boot from its disks.
            let stayed = self.is_full && name != "vm" && matches!(came, Came::Refused(_));
            // Nor does one go on whose memory cannot be read: it says so.
            let end = vm["end"]["message"].as_str();
            let has_lost = end.is_some_and(|why| why.starts_with("cannot read resume/memory"));
            let is = self.chain(vm, died || stayed || has_lost, at);
            let may_be: &[&str] = match (work.name, name) {
                ("rollback", "vm") if is_done => &[TWO],
                ("rollback", "vm") => &[TWO, NOW],
                ("restore", "other") => &[THREE],
                _ => &[NOW],
            };
            assert!(
                has_lost || may_be.contains(&is.as_str()),
                "{at}: {name} is at {is:?} and not {may_be:?}; it was {vm}"
            );
        }
        match work.name {
            "restore" => assert!(others <= 1 && (!is_done || others == 1), "{at}: {others} VMs"),
            "fork" => assert!(others <= 2 && (!is_done || others == 2), "{at}: {others} VMs"),
            _ => assert_eq!(others, 0, "{at}"),
        }
        if matches!(came, Came::Refused(_)) && !self.is_full {
            assert_eq!(others, 0, "{at}");
        }
        self.has_nothing_unlisted(at);
    }

    fn has_nothing_unlisted(&self, at: &str) {
        let ids = |path: &str| -> BTreeSet<String> {
            self.get(path).iter().map(|item| item["id"].as_str().unwrap().to_string()).collect()
        };
        for (listed, path) in [("/v1/snapshots", "state/snapshots"), ("/v1/vms", "state/vms")] {
            let there: BTreeSet<String> = fs::read_dir(self.home.path(path))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
                .collect();
            assert_eq!(there, ids(listed), "{at}: {path}");
        }
        // What a VM's process has open is what it needs of its directory; of what is small we do not speak.
        let mut left = BTreeMap::new();
        let is_clean = soon(|| {
            left.clear();
            for vm in self.get("/v1/vms") {
                let pid = vm["pid"].as_u64().expect("all run by now");
                let open: BTreeSet<(u64, u64)> = fs::read_dir(format!("/proc/{pid}/fd"))
                    .unwrap()
                    .flatten()
                    .filter_map(|entry| fs::metadata(entry.path()).ok())
                    .map(|data| (data.dev(), data.ino()))
                    .collect();
                let named = vm.to_string();
                for path in files(Path::new(vm["dir"].as_str().unwrap())) {
                    let data = fs::symlink_metadata(&path).unwrap();
                    let is_known =
                        open.contains(&(data.dev(), data.ino())) || named.contains(&*path.to_string_lossy());
                    // What it says, and what it boots anew with.
                    let is_usual = path.extension().is_some_and(|end| end == "log")
                        || path.ends_with("kernel")
                        || path.ends_with("initrd");
                    if data.is_file() && data.blocks() * 512 > 16 << 10 && !is_known && !is_usual {
                        left.insert(path, data.blocks() * 512);
                    }
                }
            }
            left.is_empty()
        });
        assert!(is_clean, "{at}: nobody has {left:?}");
        // No process is left over: those that hold a fork's memory end with that.
        let mut processes = Vec::new();
        let is_clean = soon(|| {
            let listed: BTreeSet<u64> =
                self.get("/v1/vms").iter().filter_map(|vm| vm["pid"].as_u64()).collect();
            let service = self.service.as_ref().map(|service| u64::from(service.pid()));
            processes = self.processes();
            processes.retain(|pid| !listed.contains(pid) && Some(*pid) != service);
            processes.is_empty()
        });
        assert!(is_clean, "{at}: processes {processes:?} are left");
    }

    /// All processes of this home.
    fn processes(&self) -> Vec<u64> {
        let state = self.home.path("state");
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
        let is_ours = |pid: &u64| {
            let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.contains("\0runner\0") && words.contains(&state)
        };
        pids.filter(is_ours).collect()
    }
}

/// Whether something comes about within some seconds.
fn soon(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > WAIT {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

/// All files below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(files(&path))
        } else {
            all.push(path)
        }
    }
    all
}

/// How many points of each work.
fn points(usual: u64) -> u64 {
    std::env::var("VIV_KILL_POINTS").map_or(usual, |points| points.parse().expect("a number"))
}

/// Only those works whose names have this in them: `VIV_WORKS=fork`.
fn works() -> Vec<&'static Work> {
    let only = std::env::var("VIV_WORKS").unwrap_or_default();
    let is_asked = |work: &&Work| only.split(',').any(|part| work.name.contains(part));
    let works: Vec<_> = WORKS.iter().filter(is_asked).collect();
    assert!(!works.is_empty(), "no work is called {only:?}");
    works
}

#[test]
fn the_service_is_killed_at_any_system_call_of_a_snapshots_life() {
    let points = points(1);
    let mut world = World::new("snapshot-kills");
    for work in works() {
        let start = Instant::now();
        world.restore_all(work);
        world.service = None;
        let service = Traced::service(&world.home, Whom::Itself, NOTHING);
        let came = world.work(work);
        assert!(matches!(came, Came::Done), "{}: {came:?}", work.name);
        let stops = service.end();
        world.cut_off = 0;
        for point in 0..points {
            world.restore_all(work);
            world.service = None;
            let last = 1 + (2 * point + 1) * stops / (2 * points);
            let service = Traced::service(&world.home, Whom::Itself, What::Kill(last));
            let came = world.work(work);
            service.end();
            world.serve();
            world.is_whole(work, &came, false, &format!("with the service killed at {last} of {stops}"));
        }
        let took = start.elapsed().as_secs_f64();
        println!("{}: {points} of {stops} points, {} VMs cut off, {took:.1} s", work.name, world.cut_off);
    }
}

/// The process of the VM, or those that go on from a snapshot, are killed.
#[test]
#[ignore = "needs the right to trace: cargo xtask disks"]
fn the_process_of_a_vm_is_killed_at_any_system_call_of_a_snapshots_life() {
    let points = points(6);
    let mut world = World::new("snapshot-vm-kills");
    for work in works() {
        for whom in [Whom::Itself, Whom::Started] {
            if whom == Whom::Started && !work.starts {
                continue;
            }
            let start = Instant::now();
            world.restore_all(work);
            let (came, stops) = world.trace(work, whom, NOTHING);
            assert!(matches!(came, Came::Done), "{}: {came:?}", work.name);
            world.cut_off = 0;
            let mut done = 0;
            for point in 0..points.min(stops) {
                world.restore_all(work);
                let last = 1 + (2 * point + 1) * stops / (2 * points);
                let (came, _) = world.trace(work, whom, What::Kill(last));
                assert!(!matches!(came, Came::Gone), "{}: the service is gone, too", work.name);
                done += u32::from(matches!(came, Came::Done));
                world.is_whole(work, &came, true, &format!("with {whom:?} killed at {last} of {stops}"));
            }
            let (cut_off, took) = (world.cut_off, start.elapsed().as_secs_f64());
            println!(
                "{}, {whom:?}: {points} of {stops} points, {done} done, {cut_off} VMs cut off, {took:.1} s",
                work.name
            );
        }
    }
}

/// What the host may refuse, and how that is called.
struct Refusal {
    errno: i32,
    calls: &'static [i64],
    says: &'static str,
    /// Whether it goes on.
    on: bool,
}

const REFUSALS: [Refusal; 4] = [
    Refusal {
        errno: libc::ENOSPC,
        calls: &[
            libc::SYS_write,
            libc::SYS_pwrite64,
            libc::SYS_ftruncate,
            libc::SYS_fallocate,
            libc::SYS_copy_file_range,
            libc::SYS_mkdir,
            libc::SYS_mkdirat,
            libc::SYS_link,
            libc::SYS_linkat,
            libc::SYS_mknodat,
            libc::SYS_rename,
            libc::SYS_renameat,
            libc::SYS_renameat2,
        ],
        says: "No space left",
        on: true,
    },
    Refusal {
        errno: libc::EIO,
        calls: &[
            libc::SYS_read,
            libc::SYS_pread64,
            libc::SYS_write,
            libc::SYS_pwrite64,
            libc::SYS_fsync,
            libc::SYS_fdatasync,
            libc::SYS_ftruncate,
            libc::SYS_openat,
            libc::SYS_getdents64,
            libc::SYS_rename,
            libc::SYS_linkat,
            libc::SYS_unlink,
            libc::SYS_unlinkat,
            libc::SYS_fchmod,
            libc::SYS_chmod,
        ],
        says: "Input/output error",
        on: false,
    },
    Refusal {
        errno: libc::ENOMEM,
        calls: &[
            libc::SYS_mmap,
            libc::SYS_memfd_create,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_sendmsg,
            libc::SYS_openat,
        ],
        says: "allocate memory",
        on: false,
    },
    Refusal {
        errno: libc::EMFILE,
        calls: &[
            libc::SYS_openat,
            libc::SYS_memfd_create,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_pipe2,
        ],
        says: "open files",
        on: false,
    },
];

#[test]
#[ignore = "needs the right to trace: cargo xtask disks"]
fn an_error_at_any_system_call_of_a_snapshots_life_is_told_and_harms_nobody() {
    let points = points(4);
    let mut world = World::new("snapshot-errors");
    let mut wrong = Vec::new();
    for work in works() {
        for whom in [None, Some(Whom::Itself), Some(Whom::Started)] {
            if whom == Some(Whom::Started) && !work.starts {
                continue;
            }
            for Refusal { errno, calls, says, on } in REFUSALS {
                let start = Instant::now();
                world.is_full = on;
                world.restore_all(work);
                let fail = |at| What::Fail { calls, errno, at, on };
                let (came, all) = world.trace_any(work, whom, fail(u64::MAX));
                assert!(matches!(came, Came::Done), "{}: {came:?}", work.name);
                let mut done = 0;
                for point in 0..points.min(all) {
                    world.restore_all(work);
                    let at = 1 + (2 * point + 1) * all / (2 * points.min(all));
                    let pid = world.pid("vm");
                    let (came, _) = world.trace_any(work, whom, fail(at));
                    let how = format!("with {says:?} for {whom:?} at {at} of {all}");
                    match &came {
                        Came::Done => done += 1,
                        // Also in the words of SQLite, of a thread that is not to be had, and of the loader of programs.
                        Came::Refused(why)
                            if [
                                says,
                                "is full",
                                "disk I/O error",
                                "temporarily unavailable",
                                "failed to map",
                            ]
                            .iter()
                            .any(|says| why.contains(says)) => {}
                        _ => wrong.push(format!("{} {how}: {came:?}", work.name)),
                    }
                    world.is_whole(work, &came, work.name == "rollback", &how);
                    assert!(
                        work.name == "rollback" || world.pid("vm") == pid,
                        "{} {how}: the VM is another",
                        work.name
                    );
                }
                let took = start.elapsed().as_secs_f64();
                println!(
                    "{}, {whom:?}, {says}: {} of {all} calls, {done} done, {took:.1} s",
                    work.name,
                    points.min(all)
                );
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
