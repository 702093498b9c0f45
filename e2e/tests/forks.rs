//! Forks whose memory comes while they run: what they see is what their source was, whatever becomes of it.
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use viv_e2e::{Home, Network, Snapshot, Vm, inspect, kill_service, load, own_bytes, run, start, until, viv};

const WAIT: Duration = Duration::from_secs(60);

#[track_caller]
fn exec(vm: &str, command: &str) -> String {
    run(&["exec", vm, "--", "sh", "-c", command], "").ok().out.trim().to_string()
}

/// A VM with so much in its memory that it takes a while to come, and the sum of it.
fn full(name: &str) -> String {
    run(&["run", "-d", "--name", name, "--accel", "soft", "--memory", "384M"], "").ok();
    exec(name, "head -c 150000000 /dev/urandom > /dev/shm/much; md5sum < /dev/shm/much")
}

/// The process of a VM, by `viv inspect`.
fn process(vm: &str) -> u32 {
    u32::try_from(inspect(vm)["pid"].as_u64().unwrap()).unwrap()
}

/// The processes that it has made: those that hold what its memory was.
fn copies(of: u32) -> Vec<u32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let is_its = |pid: &u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Behind the name, which may have anything in it: state, parent.
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
        parent == Some(of)
    };
    pids.filter(is_its).collect()
}

fn kill(pid: u32) {
    let _ = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.cast_signed()),
        nix::sys::signal::Signal::SIGKILL,
    );
}

#[test]
fn a_fork_needs_its_source_no_longer() {
    let _vms = [Vm("fork-left"), Vm("fork-left-1"), Vm("fork-left-2"), Vm("fork-left-3"), Vm("fork-left-4")];
    let _moment = Snapshot("fork-left-moment");
    let sum = full("fork-left");
    // Nothing of this waits until the memory is there.
    run(&["fork", "fork-left", "--name", "fork-left-1"], "").ok();
    run(&["fork", "fork-left-1", "--name", "fork-left-2"], "").ok();
    run(&["snapshot", "create", "fork-left-2", "fork-left-moment"], "").ok();
    run(&["fork", "fork-left", "--name", "fork-left-3"], "").ok();
    run(&["rm", "-f", "fork-left"], "").ok();
    run(&["rm", "-f", "fork-left-1"], "").ok();
    run(&["restore", "fork-left-moment", "--name", "fork-left-4"], "").ok();
    for vm in ["fork-left-3", "fork-left-2", "fork-left-4"] {
        assert_eq!(exec(vm, "md5sum < /dev/shm/much"), sum, "{vm}");
    }
    run(&["snapshot", "verify", "fork-left-moment"], "").ok();
}

/// What a VM's processor has made of its code is written down once, and again when there is much more of it.
#[test]
fn code_is_not_written_down_for_each_fork() {
    let _vms = [Vm("fork-code"), Vm("fork-code-fork-1"), Vm("fork-code-two"), Vm("fork-code-three")];
    run(&["run", "-d", "--name", "fork-code", "--accel", "soft"], "").ok();
    exec("fork-code", "true");
    let last = |vm: &str| {
        let vm = inspect(vm);
        let state = Path::new(vm["dir"].as_str().unwrap()).ancestors().nth(2).unwrap().join("translated");
        fs::metadata(state.join(vm["id"].as_str().unwrap())).map(|data| (data.ino(), data.nlink())).ok()
    };
    assert_eq!(last("fork-code"), None);
    run(&["fork", "fork-code"], "").ok();
    let first = last("fork-code").unwrap().0;
    assert_eq!(last("fork-code-fork-1").unwrap().0, first, "it begins with that");
    run(&["fork", "fork-code", "--name", "fork-code-two"], "").ok();
    run(&["fork", "fork-code-two", "--name", "fork-code-three"], "").ok();
    assert!([last("fork-code"), last("fork-code-three")].iter().all(|last| last.unwrap().0 == first));
    run(&["rm", "-f", "fork-code", "fork-code-fork-1", "fork-code-two"], "").ok();
    assert_eq!(last("fork-code-three"), Some((first, 1)), "the others' names for it are gone");
    run(&["kill", "fork-code-three"], "").ok();
    until("it is forgotten with the process", WAIT, || last("fork-code-three").is_none());
}

/// What a disk has stays where it is: the VM and its forks each have only what they write themselves, whoever ends, boots anew, is
/// removed or saved meanwhile.
#[test]
fn forks_share_their_disks_until_they_write() {
    let _vms = [Vm("fork-disk"), Vm("fork-own"), Vm("fork-own-1"), Vm("fork-own-2"), Vm("fork-own-3")];
    let (_again, _moment) = (Vm("fork-again"), Snapshot("fork-disk-moment"));
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fork-disk.raw");
    File::create(&place).unwrap().set_len(256 << 20).unwrap();
    run(&["run", "-d", "--name", "fork-disk", "--accel", "soft", "--disk", place.to_str().unwrap()], "").ok();
    let sum = exec(
        "fork-disk",
        "head -c 64000000 /dev/urandom | dd of=/dev/vda bs=1M seek=1 conv=fsync 2>/dev/null; \
         dd if=/dev/vda bs=1M skip=1 2>/dev/null | md5sum",
    );
    let same =
        |vm: &str| assert_eq!(exec(vm, "dd if=/dev/vda bs=1M skip=1 2>/dev/null | md5sum"), sum, "{vm}");
    let mark = |vm: &str, word: &str| {
        exec(vm, &format!("echo {word} | dd of=/dev/vda bs=512 conv=sync,notrunc,fsync 2>/dev/null"))
    };
    let marked = |vm: &str| exec(vm, "dd if=/dev/vda bs=512 count=1 2>/dev/null | tr -d '\\0'");
    // The user's file stays the VM's: its fork has a copy, and is the first to have a disk of its own.
    run(&["fork", "fork-disk", "--name", "fork-own"], "").ok();
    mark("fork-own", "source");
    // Not written out by the guest itself, but there at that moment.
    run(
        &[
            "exec",
            "fork-own",
            "--",
            "sh",
            "-c",
            "echo late | dd of=/dev/vda bs=512 seek=1 conv=sync,notrunc 2>/dev/null",
        ],
        "",
    )
    .ok();
    for fork in ["fork-own-1", "fork-own-2"] {
        run(&["fork", "fork-own", "--name", fork], "").ok();
        same(fork);
        assert_eq!(marked(fork), "source");
        assert_eq!(exec(fork, "dd if=/dev/vda bs=512 skip=1 count=1 2>/dev/null | tr -d '\\0'"), "late");
        mark(fork, fork);
    }
    mark("fork-own", "went on");
    run(&["fork", "fork-own-1", "--name", "fork-own-3"], "").ok();
    mark("fork-own-3", "child of a child");
    for (vm, word) in [
        ("fork-disk", ""),
        ("fork-own", "went on"),
        ("fork-own-1", "fork-own-1"),
        ("fork-own-2", "fork-own-2"),
        ("fork-own-3", "child of a child"),
    ] {
        same(vm);
        assert_eq!(marked(vm), word, "{vm}");
    }
    for vm in ["fork-own", "fork-own-1", "fork-own-2", "fork-own-3"] {
        assert!(own_bytes(vm) < 8 << 20, "{vm} has {} bytes of its own", own_bytes(vm));
    }
    // A guest that boots anew in the same process has the disk as it is by now; so has one whose process is another.
    exec("fork-own", "touch /dev/shm/before");
    let _ = run(&["exec", "fork-own", "--", "reboot", "-f"], "");
    let anew = || run(&["exec", "fork-own", "--", "test", "-e", "/dev/shm/before"], "").status == 1;
    until("the other boot", WAIT, anew);
    assert_eq!(marked("fork-own"), "went on");
    same("fork-own");
    run(&["stop", "fork-own-1"], "").ok();
    // Neither is needed by who came from it.
    run(&["rm", "-f", "fork-own"], "").ok();
    run(&["start", "fork-own-1"], "").ok();
    same("fork-own-1");
    let disk = inspect("fork-own-2")["machine"]["disks"][0]["path"].as_str().unwrap().to_string();
    run(&["disk", "resize", &disk, "+16M"], "").ok();
    run(&["snapshot", "create", "fork-own-2", "fork-disk-moment"], "").ok();
    mark("fork-own-2", "lost");
    run(&["rollback", "fork-own-2"], "").ok();
    assert_eq!(marked("fork-own-2"), "fork-own-2");
    run(&["rm", "-f", "fork-own-1", "fork-own-2"], "").ok();
    same("fork-own-3");
    run(&["restore", "fork-disk-moment", "--name", "fork-again"], "").ok();
    assert_eq!(exec("fork-again", "dd if=/dev/vda bs=1M skip=1 count=255 2>/dev/null | md5sum"), sum);
    assert_eq!(exec("fork-again", "cat /sys/block/vda/size"), ((272 << 20) / 512).to_string());
    let _ = fs::remove_file(place);
}

/// What is written on a VM's disk is there after whatever becomes of a fork of it. As many times as one likes: `VIV_KILLS=500`.
#[test]
fn a_service_that_is_killed_over_a_fork_leaves_the_disk_whole() {
    let _vms = [Vm("fork-killed-from"), Vm("fork-killed")];
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fork-killed.raw");
    File::create(&place).unwrap().set_len(16 << 20).unwrap();
    let disk = place.to_str().unwrap();
    run(&["run", "-d", "--name", "fork-killed-from", "--accel", "soft", "--disk", disk], "").ok();
    run(&["fork", "fork-killed-from", "--name", "fork-killed"], "").ok();
    let kills: u64 = std::env::var("VIV_KILLS").ok().and_then(|number| number.parse().ok()).unwrap_or(6);
    for number in 0..kills {
        let fork = format!("fork-killed-{number}");
        let mut forking = viv(&["fork", "fork-killed", "--name", &fork]);
        let forking = forking.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        thread::sleep(Duration::from_millis(
            [3, 12, 25, 40, 60, 90][number as usize % 6] + number / 6 * 13 % 29,
        ));
        kill_service();
        // It asks the next service, which knows what the one before has done.
        let said = String::from_utf8(forking.wait_with_output().unwrap().stderr).unwrap();
        assert!(!said.contains("exists already"), "{said}");
        // Each time in another place, and all of them are there when it has booted anew.
        let write = format!(
            "echo mark {number} | dd of=/dev/vda bs=512 seek={number} conv=sync,notrunc,fsync 2>/dev/null"
        );
        until("the VM goes on", WAIT, || {
            run(&["exec", "fork-killed", "--", "sh", "-c", &write], "").status == 0
        });
        kill(process("fork-killed"));
        let started = || run(&["start", "fork-killed"], "").status == 0;
        until("the next start", WAIT, started);
        let marks = exec(
            "fork-killed",
            &format!("dd if=/dev/vda bs=512 count={} 2>/dev/null | tr -d '\\0'", number + 1),
        );
        let expected: Vec<String> = (0..=number).map(|mark| format!("mark {mark}")).collect();
        assert_eq!(marks, expected.join("\n"), "after {number} kills");
        let _ = run(&["rm", "-f", &fork], "");
    }
    let _ = fs::remove_file(place);
}

#[test]
fn a_request_that_is_repeated_makes_its_vms_once() {
    let home = Home::new("fork-once");
    home.run(&["run", "-d", "--name", "once", "--accel", "soft"]).ok();
    let ask = |what: &str, body: &str| home.ask(&format!("POST /v1/{what}"), "Idempotency-Key: a\r\n", body);
    let ids = |body: &serde_json::Value| -> Vec<String> {
        let all = body.as_array().cloned().unwrap_or_else(|| vec![body.clone()]);
        all.iter().map(|vm| vm["id"].as_str().unwrap().to_string()).collect()
    };
    let two = r#"{"count": 2, "name": "child"}"#;
    let made = ids(&ask("vms/once/fork", two).body);
    assert_eq!((made.len(), &made), (2, &ids(&ask("vms/once/fork", two).body)));
    assert_eq!(ask("vms/once/fork", r#"{"count": 1, "name": "other"}"#).status, 409);
    // As if the service had been killed over them: what belongs together is of one moment.
    home.run(&["rm", "-f", "child-2"]).ok();
    let anew = ids(&ask("vms/once/fork", two).body);
    assert!(anew.len() == 2 && !anew.contains(&made[0]), "{made:?} {anew:?}");
    home.run(&["rm", "-f", "child-1", "child-2"]).ok();
    home.run(&["snapshot", "create", "once", "moment"]).ok();
    home.run(&["template", "create", "once", "pattern"]).ok();
    for (what, body) in [
        ("snapshots/moment/restore", r#"{"name": "back"}"#),
        ("vms", r#"{"image": "pattern", "name": "like", "start": true}"#),
        ("vms", r#"{"name": "plain", "start": true}"#),
    ] {
        let first = ask(what, body);
        assert_eq!(first.status, 200, "{first:?}");
        assert_eq!(ids(&first.body), ids(&ask(what, body).body), "{what}");
        home.run(&["rm", "-f", &ids(&first.body)[0]]).ok();
    }
    assert_eq!(home.run(&["ps", "-a", "-q"]).ok().out, "once\n");
}

/// The host kills what holds the memory, as it may when it has none left.
#[test]
fn what_never_comes_ends_a_fork_with_the_reason() {
    let _vms = [Vm("fork-cut"), Vm("fork-cut-fork-1"), Vm("fork-cut-fork-2")];
    let sum = full("fork-cut");
    let source = process("fork-cut");
    let killer = thread::spawn(move || {
        for _ in 0..10_000 {
            let copies = copies(source);
            copies.iter().copied().for_each(kill);
            if !copies.is_empty() {
                return true;
            }
            thread::sleep(Duration::from_millis(1));
        }
        false
    });
    let made = run(&["fork", "fork-cut", "--count", "2"], "");
    assert!(killer.join().unwrap());
    assert_eq!(exec("fork-cut", "md5sum < /dev/shm/much"), sum, "the source is as it was");
    if made.status != 0 {
        // It was killed before the forks were there: there are none.
        assert!(!made.err.is_empty());
        assert_ne!(run(&["inspect", "fork-cut-fork-1"], "").status, 0);
        return;
    }
    for vm in ["fork-cut-fork-1", "fork-cut-fork-2"] {
        // It ends when it comes to what is missing, and boots from its disks then.
        let _ = run(&["exec", vm, "--", "md5sum", "/dev/shm/much"], "");
        until("its end", WAIT, || !run(&["ps"], "").ok().out.contains(vm));
        let shown = run(&["--json", "inspect", vm], "").ok().out;
        assert!(shown.contains("was killed"), "{shown}");
        run(&["start", vm], "").ok();
        assert_eq!(exec(vm, "ls /dev/shm"), "");
    }
}

/// Forks that are there at a time: as many as a small host takes that is overcommitted as usual.
const BATCH: usize = 40;

/// As many as one likes, some at a time: `VIV_FORKS=1000`.
#[test]
fn no_two_forks_are_the_same() {
    are_all_different("fork-many", &[]);
}

/// Nor are they if the processor has no random numbers for the kernel to stir in.
#[test]
fn no_two_forks_are_the_same_without_the_processors_random_numbers() {
    let hidden = "random.trust_cpu=off clearcpuid=rdrand,rdseed";
    are_all_different("fork-many-none", &["--append", hidden]);
}

fn are_all_different(name: &'static str, options: &[&str]) {
    let count: usize = std::env::var("VIV_FORKS").ok().and_then(|count| count.parse().ok()).unwrap_or(4);
    let network = Network::create("fork-net", &["--subnet", "10.117.0.0/16"]);
    let source = start(name, &[&["--memory", "128M", "--net", network.0], options].concat());
    let flags = exec(source.0, "grep -m1 ^flags /proc/cpuinfo");
    assert_eq!(flags.contains("rdrand"), options.is_empty(), "{flags}");
    load::put(source.0);
    exec(source.0, "head -c 16 /dev/urandom | md5sum | cut -d' ' -f1 > /etc/machine-id");
    until("an address", WAIT, || exec(source.0, "ip route").contains("eth0"));
    // A name, and what no other has under that. The first connection of the source has the kernel make the secret that the numbers of
    // all later ones come from: theirs, too.
    const WHO: &str = "echo hostname $(hostname); echo boot $(cat /proc/sys/kernel/random/boot_id); \
        echo machine $(cat /etc/machine-id); echo uuid $(cat /proc/sys/kernel/random/uuid); \
        echo mac $(cat /sys/class/net/eth0/address); for i in 1 2 3; do ip -4 addr show dev eth0 | grep -q inet && break; sleep 1; done; \
        /tmp/load who eth0 $(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p')";
    let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let look = |vm: &str, seen: &mut BTreeMap<String, Vec<String>>| {
        for line in exec(vm, WHO).lines() {
            let (what, value) = line.split_once(' ').unwrap_or_else(|| panic!("{vm}: {line}"));
            seen.entry(what.to_string()).or_default().push(value.to_string());
        }
    };
    look(source.0, &mut seen);
    for first in (0..count).step_by(BATCH) {
        let (batch, base) = (BATCH.min(count - first), format!("{name}-{first}"));
        // A single one would have the name without a number.
        run(&["fork", source.0, "--count", &batch.to_string(), "--name", &base, "--rm"], "").ok();
        let names: Vec<String> = match batch {
            1 => vec![base],
            _ => (1..=batch).map(|number| format!("{base}-{number}")).collect(),
        };
        names.iter().for_each(|vm| look(vm, &mut seen));
        // Those of VMs that are gone are given again.
        let addresses = seen.get_mut("address").expect("each has one");
        assert_eq!(addresses.len(), batch + 1);
        assert_eq!(
            addresses.iter().collect::<BTreeSet<_>>().len(),
            batch + 1,
            "two at a time: {addresses:?}"
        );
        addresses.truncate(1);
        let words: Vec<&str> = ["rm", "-f"].into_iter().chain(names.iter().map(String::as_str)).collect();
        run(&words, "").ok();
    }
    let kinds: Vec<&str> = seen.keys().map(String::as_str).collect();
    assert_eq!(
        kinds,
        ["address", "boot", "getrandom", "hostname", "mac", "machine", "sequence", "urandom", "uuid"]
    );
    seen.remove("address");
    for (what, mut values) in seen {
        assert_eq!(values.len(), count + 1, "{what}");
        values.sort();
        values.dedup();
        assert_eq!(values.len(), count + 1, "{what}: two are the same");
    }
    println!("{count} forks and their source have nothing in common");
}
