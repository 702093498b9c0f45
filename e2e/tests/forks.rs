//! Forks whose memory comes while they run: what they see is what their source was, whatever becomes of it.
use std::time::Duration;
use std::{fs, thread};
use viv_e2e::{Network, Snapshot, Vm, run, until};

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
    let shown: serde_json::Value =
        serde_json::from_str(&run(&["--json", "inspect", vm], "").ok().out).unwrap();
    u32::try_from(shown[0]["pid"].as_u64().unwrap()).unwrap()
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

/// As many as one likes: `VIV_FORKS=500`.
#[test]
fn no_two_forks_are_the_same() {
    let count: usize = std::env::var("VIV_FORKS").ok().and_then(|count| count.parse().ok()).unwrap_or(4);
    let network = Network::create("fork-net", &["--subnet", "10.117.0.0/16"]);
    let source = Vm("fork-many");
    run(&["run", "-d", "--name", source.0, "--accel", "soft", "--memory", "128M", "--net", network.0], "")
        .ok();
    if count > 100 {
        // More than a host is usually overcommitted.
        run(&["limits", "--cpu-ratio", "1000", "--memory-ratio", "100"], "").ok();
    }
    const WHO: &str = "hostname; cat /proc/sys/kernel/random/boot_id /etc/machine-id; head -c 16 /dev/urandom | md5sum; cat /sys/class/net/eth0/address";
    exec(source.0, "head -c 16 /dev/urandom | md5sum | cut -d' ' -f1 > /etc/machine-id");
    let mut seen: Vec<String> = exec(source.0, WHO).lines().map(str::to_string).collect();
    let lines = seen.len();
    run(&["fork", source.0, "--count", &count.to_string(), "--rm"], "").ok();
    for number in 1..=count {
        let vm = format!("{}-fork-{number}", source.0);
        seen.extend(exec(&vm, WHO).lines().map(str::to_string));
    }
    for number in 1..=count {
        run(&["rm", "-f", &format!("{}-fork-{number}", source.0)], "").ok();
    }
    assert_eq!(seen.len(), lines * (count + 1));
    seen.sort();
    let all = seen.len();
    seen.dedup();
    assert_eq!(seen.len(), all, "something is there twice");
}
