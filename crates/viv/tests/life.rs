//! VMs through the front door: with a kernel of a hundred bytes, so that each takes a moment.
mod kit;

use kit::{Home, LIMIT, Outcome, is_alive, kernel, signal, until};
use rustix::process::Signal;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Waits until a foreground VM's kernel has said `ready`; gives what reads on.
fn ready(child: &mut Child) -> BufReader<std::process::ChildStdout> {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    if line != "ready\n" {
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        panic!("not ready: {line:?} {err}");
    }
    out
}

#[test]
fn without_a_terminal_the_console_is_plain_bytes() {
    let home = Home::new("console");
    let kernel = home.kernel();
    let outcome = home.feed(&["run", "--rm", "--accel", "soft", "--kernel", &kernel], "abc\x1d.\nq").ok();
    assert_eq!(outcome.out, "ready\nabc\x1d.\nq");
    assert_eq!(outcome.err, "", "nothing goes without saying");
    assert_eq!(home.names(), [""; 0]);
    assert_eq!(home.vm_files(), [""; 0]);
}

#[test]
fn every_end_has_its_exit_status_and_is_kept() {
    let home = Home::new("ends");
    let kernel = home.kernel();
    for (letter, status, words, reason, state) in [
        ("q", 0, "", "power-off", "stopped"),
        ("r", 0, "the guest asked for a reset", "reboot", "stopped"),
        ("t", 134, "triple fault", "triple-fault", "failed"),
    ] {
        let outcome = home.feed(&["run", "--name", reason, "--accel", "soft", "--kernel", &kernel], letter);
        assert_eq!(outcome.status, status, "{outcome:?}");
        assert!(outcome.err.contains(words), "{outcome:?}");
        let vm = home.inspect(reason);
        assert_eq!(vm["end"]["reason"], reason);
        assert_eq!(vm["state"], state);
        assert_eq!(home.viv(&["logs", reason]).ok().out, format!("ready\n{letter}"));
    }
    home.viv(&["exec", "reboot", "true"]).fails(4, &["does not run", "viv start reboot"]);
    home.viv(&["console", "reboot"]).fails(4, &["does not run"]);
    home.viv(&["stop", "reboot"]).fails(4, &["it is stopped", "nothing needs to be done", "viv rm reboot"]);
    assert_eq!(
        home.viv(&["rm", "reboot", "power-off", "triple-fault"]).ok().out,
        "reboot\npower-off\ntriple-fault\n"
    );
    assert_eq!(home.names(), [""; 0]);
}

#[test]
fn logs_can_be_followed_to_the_end() {
    let home = Home::new("follow");
    home.viv(&["run", "-d", "--name", "web", "--accel", "soft", "--kernel", &home.kernel()]).ok();
    until("its first word", || home.viv(&["logs", "web"]).ok().out == "ready\n");
    let mut follower = home.spawn(&["logs", "-f", "web"]);
    let mut out = ready(&mut follower);
    let mut console =
        home.command(&["console", "web"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    console.stdin.as_mut().unwrap().write_all(b"ab").unwrap();
    let mut typed = [0; 2];
    out.read_exact(&mut typed).unwrap(); // no end of line is waited for
    assert_eq!(&typed, b"ab");
    home.viv(&["kill", "web"]).ok();
    assert_eq!(follower.wait().unwrap().code(), Some(0), "it ends with the VM");
    console.wait().unwrap();
    // A follower that is interrupted, or whose reader goes, leaves the VM alone.
    home.viv(&["start", "web"]).ok();
    let mut follower = home.spawn(&["logs", "-f", "web"]);
    ready(&mut follower);
    signal(follower.id(), Signal::INT);
    follower.wait().unwrap();
    assert_eq!(home.inspect("web")["state"], "running");
}

#[test]
fn a_vm_in_the_background_obeys_every_verb() {
    let home = Home::new("background");
    let kernel = home.kernel();
    let run = ["run", "-d", "--name", "web", "--accel", "soft", "--memory", "64M", "--kernel", &kernel];
    assert_eq!(home.viv(&run).ok().out, "web\n");
    home.viv(&run).fails(4, &["\"web\" exists already", "viv rm -f web"]);
    let vm = home.inspect("web");
    assert_eq!((vm["state"].as_str(), vm["accel"].as_str()), (Some("running"), Some("soft")));
    assert_eq!(vm["machine"]["memory_mib"], 64);
    let by_id = home.viv(&["ps", "--json"]).ok().json()[0]["id"].as_str().unwrap()[..6].to_string();
    assert_eq!(home.viv(&["pause", &by_id]).ok().out, "web\n");
    assert_eq!(home.inspect("web")["state"], "paused");
    home.viv(&["pause", "web"]).fails(4, &["it is paused"]);
    home.viv(&["exec", "web", "ls"]).fails(4, &["it is paused", "viv resume web"]);
    home.viv(&["resume", "web"]).ok();
    home.viv(&["rm", "web"]).fails(4, &["cannot remove", "it is running", "viv stop web"]);
    home.viv(&["start", "web"]).fails(4, &["it is running"]);

    // A reset restarts it, as it runs in the background.
    let mut console =
        home.command(&["console", "web"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    console.stdin.as_mut().unwrap().write_all(b"r").unwrap();
    until("the second boot", || home.inspect("web")["boots"] == 2);
    console.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    let mut seen = String::new();
    let mut out = console.stdout.take().unwrap();
    while !seen.ends_with("rready\nx") {
        let mut byte = [0];
        out.read_exact(&mut byte).unwrap();
        seen.push(byte[0] as char);
    }
    console.kill().unwrap();
    console.wait().unwrap();

    // It does not listen to the power button.
    let before = Instant::now();
    home.viv(&["stop", "--time", "1", "web"]).ok();
    assert!(before.elapsed() >= Duration::from_secs(1));
    assert_eq!(home.inspect("web")["end"]["reason"], "killed");
    home.viv(&["start", "web"]).ok();
    assert_eq!(home.viv(&["ps", "-q"]).ok().out, "web\n");
    home.viv(&["kill", "web"]).ok();
    assert_eq!(home.viv(&["ps", "-q"]).ok().out, "");
    home.viv(&["rm", "web", "web"]).fails(3, &["no VM is called"]);
    home.viv(&["rm", "-f", "web"]).ok();
}

#[test]
fn vms_outlive_their_service_and_are_found_again() {
    let home = Home::new("service");
    let kernel = home.kernel();
    home.viv(&["run", "-d", "--name", "a", "--accel", "soft", "--kernel", &kernel]).ok();
    home.viv(&["run", "-d", "--rm", "--name", "b", "--accel", "soft", "--kernel", &kernel]).ok();
    let pid = |info: Outcome| info.json()["service"]["pid"].as_u64().unwrap();
    let first = pid(home.viv(&["info", "--json"]).ok());
    let runner = home.inspect("a")["pid"].as_u64().unwrap();
    signal(first as u32, Signal::KILL);
    until("the service's end", || !is_alive(first));
    assert!(is_alive(runner));
    assert_eq!(home.viv(&["ps", "-q"]).ok().out, "a\nb\n");
    assert_ne!(pid(home.viv(&["info", "--json"]).ok()), first);
    assert_eq!(home.inspect("a")["pid"].as_u64(), Some(runner));
    // The new one also knows that b is to be forgotten at its end.
    home.viv(&["kill", "b"]).ok();
    until("b is forgotten", || home.names() == ["a"]);
    // A VM's process that was killed is a VM that failed.
    signal(runner as u32, Signal::KILL);
    until("the VM's end", || home.inspect("a")["state"] == "failed");
    assert!(home.inspect("a")["end"]["message"].as_str().unwrap().contains("without a word"));
}

#[test]
fn a_session_outlives_the_service() {
    let home = Home::new("session");
    let kernel = home.kernel();
    let words = ["run", "--rm", "--name", "web", "--accel", "soft", "--kernel", &kernel];
    let mut child = home
        .command(&words)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = ready(&mut child);
    signal(home.service().unwrap(), Signal::KILL);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"on and on!").unwrap();
    let mut echo = [0; 10];
    out.read_exact(&mut echo).unwrap();
    assert_eq!(&echo, b"on and on!");
    stdin.write_all(b"q").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(home.names(), [""; 0], "another service forgets it");
}

#[test]
fn a_console_is_a_stream_of_the_api() {
    let home = Home::new("upgrade");
    let kernel = home.kernel();
    home.viv(&["run", "-d", "--name", "web", "--accel", "soft", "--kernel", &kernel]).ok();
    let mut stream = UnixStream::connect(home.dir.join("home/run/viv.sock")).unwrap();
    let request = "POST /v1/vms/web/console HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\n\
                   Upgrade: vivarium-stream\r\nContent-Length: 0\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{head}");
    }
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    stream.get_mut().write_all(b"abq").unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "ready\nabq");
    until("its end", || home.inspect("web")["end"]["reason"] == "power-off");
}

#[test]
fn there_is_one_service_and_it_goes_when_it_is_not_needed() {
    let home = Home::new("idle");
    let children: Vec<Child> = (0..6).map(|_| home.spawn(&["info", "--json"])).collect();
    let pids: Vec<u64> = children
        .into_iter()
        .map(|child| {
            Outcome::of(child.wait_with_output().unwrap()).ok().json()["service"]["pid"].as_u64().unwrap()
        })
        .collect();
    assert!(pids.windows(2).all(|pair| pair[0] == pair[1]), "{pids:?}");
    let before = Instant::now();
    until("the service's end", || !is_alive(pids[0]));
    assert!(before.elapsed() < Duration::from_secs(10));
    assert!(!home.dir.join("home/run/viv.sock").exists(), "its socket is left");
}

#[test]
fn a_signal_leaves_nothing() {
    let home = Home::new("signals");
    let kernel = home.kernel();
    for (number, name) in [(Signal::INT, "int"), (Signal::TERM, "term"), (Signal::HUP, "hup")] {
        let mut child = home.spawn(&["run", "--rm", "--name", name, "--accel", "soft", "--kernel", &kernel]);
        let _out = ready(&mut child);
        let runner = home.inspect(name)["pid"].as_u64().unwrap();
        signal(child.id(), number);
        assert_eq!(child.wait().unwrap().code(), Some(128 + number.as_raw()), "{name}");
        assert!(!is_alive(runner), "{name}");
        assert_eq!(home.names(), [""; 0]);
        assert_eq!(home.vm_files(), [""; 0]);
    }
}

#[test]
fn even_a_killed_command_takes_its_vm_with_it() {
    let home = Home::new("killed");
    let kernel = home.kernel();
    let mut child = home.spawn(&["run", "--rm", "--name", "web", "--accel", "soft", "--kernel", &kernel]);
    let _out = ready(&mut child);
    let runner = home.inspect("web")["pid"].as_u64().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the VM's end", || !is_alive(runner));
    until("the VM is forgotten", || home.vm_files().is_empty());
}

#[test]
fn a_wait_for_an_agent_ends_with_a_panic_and_shows_it() {
    let home = Home::new("panic");
    let words = "[    0.5] VFS: no root\n[    0.6] Kernel panic - not syncing: VFS\n[    0.7] ---[ end Kernel panic\n";
    let kernel = home.file("kernel", &kernel(words));
    let before = Instant::now();
    let outcome = home.viv(&["run", "--rm", "--accel", "soft", "--kernel", &kernel, "--", "true"]);
    outcome.fails(1, &["its kernel panicked", "VFS: no root", "Kernel panic - not syncing: VFS"]);
    assert!(before.elapsed() < LIMIT);
    assert_eq!(home.vm_files(), [""; 0]);
    let outcome = home.viv(&["run", "--rm", "--accel", "soft", "--kernel", &kernel]);
    assert_eq!((outcome.status, outcome.out.as_str()), (134, words), "{outcome:?}");
}

#[test]
fn a_disk_belongs_to_one_writer() {
    let home = Home::new("disk");
    let kernel = home.kernel();
    let disk = home.file("disk", &[0; 65536]);
    let run = |name: &str, disk: &str| {
        home.viv(&["run", "-d", "--name", name, "--accel", "soft", "--kernel", &kernel, "--disk", disk])
    };
    run("one", &disk).ok();
    run("two", &disk).fails(4, &["disk"]);
    run("three", &format!("{disk},ro")).fails(4, &["disk"]);
    assert_eq!(home.names(), ["one"], "a VM that could not be started is not kept");
    home.viv(&["kill", "one"]).ok();
    run("four", &format!("{disk},ro")).ok();
    run("five", &format!("{disk},ro")).ok();
}

#[test]
fn standard_output_that_closes_ends_the_vm() {
    let home = Home::new("pipe");
    let kernel = home.kernel();
    let mut child = home
        .command(&["run", "--rm", "--accel", "soft", "--kernel", &kernel])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(ready(&mut child));
    child.stdin.as_mut().unwrap().write_all(b"more").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(141));
    assert_eq!(home.names(), [""; 0]);
}

#[test]
fn stats_tell_interpreter_and_translator_apart_while_it_runs_and_afterwards() {
    let home = Home::new("stats");
    let kernel = home.kernel();
    let vms = [
        ("plain", vec![]),
        ("reference", vec!["-o", "soft.interpreter=on"]),
        ("counts", vec!["-o", "soft.count=on", "-o", "soft.perf-map=on"]),
    ];
    for (name, options) in &vms {
        let run = ["run", "-d", "--name", name, "--accel", "soft", "--kernel", &kernel];
        home.viv(&[&run[..], options].concat()).ok();
    }
    let soft = |name: &str| home.viv(&["stats", "--json", name]).ok().json()[0]["soft"].clone();
    let check = || {
        let (plain, reference, counts) = (soft("plain"), soft("reference"), soft("counts"));
        assert!(plain["instructions"].is_null() && plain["translator"].is_object(), "{plain}");
        assert!(reference["translator"].is_null(), "{reference}");
        assert_eq!(reference["instructions"], reference["interpreted"]);
        assert!(counts["translator"]["blocks"].is_u64(), "{counts}");
        assert!(counts["instructions"].as_u64() >= counts["interpreted"].as_u64(), "{counts}");
    };
    check();
    let map = format!("/tmp/perf-{}.map", home.inspect("counts")["pid"]);
    let named = std::fs::read_to_string(&map).unwrap();
    assert!(named.contains(" viv_translator_stubs\n"), "{named}");
    // It polls its serial line for ever: pausing makes it look up.
    home.viv(&["pause", "plain", "reference", "counts"]).ok();
    assert!(soft("reference")["instructions"].as_u64() > Some(10_000));
    let counts = soft("counts");
    assert!(counts["translator"]["blocks"].as_u64() > Some(1000), "{counts}");
    let named = std::fs::read_to_string(&map).unwrap();
    assert!(named.lines().any(|line| line.contains(" guest_") && line.ends_with(" [kernel]")), "{named}");
    let text = home.viv(&["stats", "plain", "counts"]).ok().out;
    assert!(text.starts_with("plain\n") && text.contains("\ncounts\n"), "{text}");
    assert!(text.contains("not counted") && text.contains("hit rates"), "{text}");
    let table = home.viv(&["top"]).ok().out;
    assert_eq!(table.lines().count(), 4, "{table}");
    let words = |line: &str| line.split_whitespace().map(str::to_string).collect::<Vec<_>>();
    let seen = table.lines().map(words).find(|words| words[0] == "reference").unwrap();
    assert_eq!(seen[1..3], ["paused", "soft"], "{table}");
    let rows = home.viv(&["top", "--json"]).ok().json();
    assert_eq!(rows.as_array().map(Vec::len), Some(3));
    home.viv(&["kill", "plain", "reference", "counts"]).ok();
    check();
    assert_eq!(home.viv(&["top"]).ok().out.lines().count(), 1);
    // Its options are part of it.
    home.viv(&["start", "reference"]).ok();
    assert!(soft("reference")["translator"].is_null());
    std::fs::remove_file(&map).unwrap();
}

#[test]
fn stats_at_the_end_go_to_standard_error() {
    let home = Home::new("stats-end");
    let kernel = home.kernel();
    let run = ["run", "--rm", "--stats", "--name", "web", "--accel", "soft", "--kernel", &kernel];
    let outcome = home.feed(&run, "q").ok();
    assert_eq!(outcome.out, "ready\nq");
    assert!(outcome.err.starts_with("web\n  processor") && outcome.err.contains("\n  exits "), "{outcome:?}");
    let quiet = home.feed(&[&run[..], &["--json"]].concat(), "q").ok();
    let stats: serde_json::Value = serde_json::from_str(&quiet.err).unwrap();
    assert_eq!(stats["accel"], "soft");
    home.viv(&["stats", "web"]).fails(3, &["no VM is called"]);
    let outcome = home.viv(&["run", "--accel", "kvm", "-o", "soft.count=on", "--kernel", &kernel]);
    outcome.fails(2, &["mean nothing to KVM", "--accel soft"]);
}

#[test]
fn what_nothing_has_goes_when_it_is_asked_for() {
    let home = Home::new("prune");
    let kernel = home.kernel();
    home.viv(&["run", "-d", "--name", "web", "--accel", "soft", "--kernel", &kernel]).ok();
    home.viv(&["snapshot", "create", "web", "kept"]).ok();
    // After the service has started, which sweeps itself.
    let make = |path: &str| {
        let path = home.dir.join("home").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, [7; 9000]).unwrap();
        path
    };
    let left = [
        "state/snapshots/0123abcd/memory",
        "state/snapshots/4567abcd.gone/manifest.json",
        "state/snapshots/89ababcd.passing/memory",
        "state/vms/.removed-0123abcd/disk.qcow2",
        "state/boot/0123",
        "data/images/blobs/sha256/0123",
    ]
    .map(make);
    let (code, stays) = (make("data/programs/code"), make("state/vms/4567abcd/runner.lock"));
    let before = std::time::SystemTime::now() - Duration::from_secs(3600);
    std::fs::File::options().write(true).open(&code).unwrap().set_modified(before).unwrap();

    let pruned = home.viv(&["prune", "--json"]).ok().json();
    assert!(left.iter().all(|path| !path.exists()), "{left:?}");
    assert!(pruned["bytes"].as_u64().unwrap() >= 6 * 9000 && pruned["removed"] == 5, "{pruned}");
    assert_eq!(pruned["kept"], serde_json::json!([stays.parent().unwrap()]));
    assert!(code.exists() && stays.exists());
    let text = home.viv(&["prune", "--caches"]).ok().out;
    assert!(text.contains("belongs to no VM") && text.contains("are free now") && !code.exists(), "{text}");
    home.viv(&["snapshot", "verify", "kept"]).ok();
    home.viv(&["restore", "kept", "--name", "again"]).ok();
    assert_eq!(home.inspect("web")["state"], "running");
    home.viv(&["prune", "more"]).fails(2, &["more"]);
    home.viv(&["rm", "-f", "web", "again"]).ok();
}
