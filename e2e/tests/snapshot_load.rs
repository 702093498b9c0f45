//! Snapshots, forks, restores and rollbacks of guests whose devices are busy. Judged by what the guests see.
//!
//! `VIV_ROUNDS=20 cargo test --release -p viv-e2e --test snapshot_load` as often as one likes.
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use viv_e2e::{Network, Snapshot, Vm, exec, inspect, load, run, start, until};

const WAIT: Duration = Duration::from_secs(60);

fn rounds() -> u32 {
    std::env::var("VIV_ROUNDS").map_or(2, |rounds| rounds.parse().expect("a number"))
}

#[track_caller]
fn said(vm: &str, command: &str) -> String {
    exec(vm, command).ok().out.trim().to_string()
}

/// Has the guest's disk program come to its end, and say whether all is there that it was told to be written.
#[track_caller]
fn is_good(vm: &str, when: &str) {
    exec(vm, "touch /tmp/stop").ok();
    until("the end of its requests", WAIT, || {
        !said(vm, "grep -e good -e WRONG /tmp/disk || true").is_empty()
    });
    let says = said(vm, "cat /tmp/disk");
    assert!(says.contains("\ngood ") && !says.contains("WRONG"), "{vm}, {when}: {says}");
    // And more than the first of each.
    let written: u64 = says.split(' ').rev().nth(4).unwrap().parse().unwrap();
    assert!(written >= 256, "{vm}, {when}: {says}");
}

/// 256 requests are on their way to a disk whenever it is saved: nobody loses one that was answered, whoever goes on.
#[test]
fn no_disk_request_is_lost_by_a_snapshot_fork_or_rollback() {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("snapshot-load.raw");
    File::create(&place).unwrap().set_len(64 << 20).unwrap();
    let disk = place.to_str().unwrap();
    let _vms = [Vm("load-fork-1"), Vm("load-fork-2"), Vm("load-again"), Vm("load-child")];
    let _saved = [Snapshot("load-two"), Snapshot("load-one")];
    // Its own disk, in layers, and the user's: forks go above the one, and copy the other.
    let _user = start("load-user", &["--disk", disk, "--cpus", "2", "--memory", "128M"]);
    let _vm = Vm("load-vm");
    let _ = run(&["rm", "-f", "load-vm"], "");
    run(&["fork", "load-user", "--name", "load-vm"], "").ok();
    run(&["rm", "-f", "load-user"], "").ok();
    load::put("load-vm");
    for round in 1..=rounds() {
        let when = &format!("round {round}");
        exec("load-vm", "rm -f /tmp/stop /tmp/disk").ok();
        load::begin("load-vm", "disk /dev/vda /tmp/stop", "/tmp/disk");
        until("256 requests", WAIT, || said("load-vm", "cat /tmp/disk").contains("all in flight"));
        let in_flight = said(
            "load-vm",
            "for i in 1 2 3 4 5 6 7 8; do awk '{print $9}' /sys/block/vda/stat; done | sort -n | tail -1",
        );
        println!("{when}: {in_flight} requests are with the disk");
        run(&["snapshot", "create", "load-vm", "load-one"], "").ok();
        run(&["fork", "load-vm", "--name", "load-fork", "--count", "2"], "").ok();
        run(&["snapshot", "create", "load-vm", "load-two"], "").ok();
        run(&["restore", "load-two", "--name", "load-again"], "").ok();
        // A child of a child, while its parent's requests are on their way, too.
        run(&["fork", "load-fork-2", "--name", "load-child"], "").ok();
        for vm in ["load-fork-1", "load-child", "load-fork-2", "load-again", "load-vm"] {
            is_good(vm, when);
        }
        // Twice, and into the middle of what it did.
        for snapshot in ["load-two", "load-one"] {
            run(&["rollback", "load-vm", snapshot], "").ok();
            is_good("load-vm", &format!("{when}, rolled back to {snapshot}"));
        }
        for snapshot in ["load-two", "load-one"] {
            run(&["snapshot", "verify", snapshot], "").ok();
            run(&["snapshot", "rm", snapshot], "").ok();
        }
        run(&["rm", "-f", "load-fork-1", "load-fork-2", "load-again", "load-child"], "").ok();
    }
    let _ = fs::remove_file(place);
}

fn address(vm: &str) -> String {
    inspect(vm)["machine"]["nics"][0]["address"].as_str().unwrap().to_string()
}

/// A connection between two VMs goes on through a snapshot and a fork of either, where it was. A copy has an address of its own, and
/// nobody there knows its connections: they end with an error. What was rolled back has its connections as they were; the other side
/// has gone on.
#[test]
fn connections_stay_with_the_source() {
    let network = Network::create("load-net", &[]);
    let _vms = [Vm("flow-fork"), Vm("flow-again")];
    let _saved = Snapshot("flow-saved");
    let (_peer, _vm) = (start("flow-peer", &["--net", network.0]), start("flow-vm", &["--net", network.0]));
    load::put("flow-peer");
    load::put("flow-vm");
    load::begin("flow-peer", "serve 7", "/tmp/serve");
    until("an address", WAIT, || exec("flow-vm", "ip route").out.contains("eth0"));
    load::begin("flow-vm", &format!("flow {} 7", address("flow-peer")), "/tmp/flow");
    let count = |vm: &str| said(vm, "grep -c '^[0-9]' /tmp/flow || true").parse::<u64>().unwrap();
    until("a flow", WAIT, || count("flow-vm") > 5);
    run(&["snapshot", "create", "flow-vm", "flow-saved"], "").ok();
    run(&["fork", "flow-vm", "--name", "flow-fork"], "").ok();
    run(&["restore", "flow-saved", "--name", "flow-again"], "").ok();
    let goes_on = || {
        let before = count("flow-vm");
        until("more of it", WAIT, || count("flow-vm") > before + 5);
        let flow = said("flow-vm", "cat /tmp/flow");
        assert!(!flow.contains("ended") && !flow.contains("WRONG"), "{flow}");
    };
    goes_on();
    for copy in ["flow-fork", "flow-again"] {
        until("the end of a copy's flow", WAIT, || said(copy, "tail -1 /tmp/flow").starts_with("ended: "));
        println!("{copy}: {}", said(copy, "tail -1 /tmp/flow"));
        assert_ne!(address(copy), address("flow-vm"));
        // New ones are as good as any.
        load::begin(copy, &format!("flow {} 7", address("flow-peer")), "/tmp/flow");
        until("a flow of its own", WAIT, || count(copy) > 5);
    }
    goes_on();
    run(&["rm", "-f", "flow-fork", "flow-again"], "").ok();
    // The peer is saved, and forked, as well: it has the other end.
    run(&["fork", "flow-peer", "--name", "flow-fork"], "").ok();
    goes_on();
    run(&["rollback", "flow-vm", "flow-saved"], "").ok();
    until("the end of the flow", WAIT, || said("flow-vm", "tail -1 /tmp/flow").starts_with("ended: "));
    println!("rolled back: {}", said("flow-vm", "tail -1 /tmp/flow"));
    load::begin("flow-vm", &format!("flow {} 7", address("flow-peer")), "/tmp/flow");
    until("another flow", WAIT, || count("flow-vm") > 5);
    goes_on();
    // What came to the other end was one row of numbers each time: nobody else spoke in between.
    let served = said("flow-peer", "cat /tmp/serve");
    assert!(!served.contains("WRONG"), "{served}");
}

/// Numbers that come from a console's port of a VM, until there are so many; without a gap.
fn numbers(socket: &str, count: usize) -> Vec<u64> {
    let lines = BufReader::new(UnixStream::connect(socket).unwrap()).lines();
    // Whoever comes into the middle of a line has its rest first.
    let numbers: Vec<u64> = lines.skip(1).take(count).map(|line| line.unwrap().parse().unwrap()).collect();
    let gap = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    assert!(gap.is_none() && numbers.len() == count, "{socket}: {gap:?}");
    numbers
}

fn port(vm: &str) -> String {
    let path = &inspect(vm)["machine"]["console_ports"][0]["path"];
    let own =
        || Path::new(inspect(vm)["dir"].as_str().unwrap()).join("port-numbers.sock").display().to_string();
    path.as_str().map_or_else(own, str::to_string)
}

/// The stream of a console's port has no gap in the source; a copy goes on with it at a socket of its own.
#[test]
fn the_stream_of_a_consoles_port_goes_on() {
    let socket = std::env::temp_dir().join(format!("viv-e2e-numbers-{}", std::process::id()));
    let socket = socket.to_str().unwrap();
    let _vms = [Vm("port-fork"), Vm("port-again")];
    let _saved = Snapshot("port-saved");
    let _vm = start("port-vm", &["--console-port", &format!("numbers={socket}")]);
    load::put("port-vm");
    let reader = {
        let socket = socket.to_string();
        std::thread::spawn(move || numbers(&socket, 2000))
    };
    load::begin("port-vm", "stream /dev/virtio-ports/numbers", "/tmp/stream");
    std::thread::sleep(Duration::from_millis(500));
    run(&["snapshot", "create", "port-vm", "port-saved"], "").ok();
    run(&["fork", "port-vm", "--name", "port-fork"], "").ok();
    run(&["restore", "port-saved", "--name", "port-again"], "").ok();
    let there = reader.join().unwrap();
    assert!(there[0] <= 1, "{}", there[0]);
    for copy in ["port-fork", "port-again"] {
        let here = numbers(&port(copy), 50);
        println!("{copy} goes on with {}", here[0]);
        assert!(here[0] > 1, "{copy} begins anew");
    }
    // Put back, it says again what it had said since.
    run(&["rollback", "port-vm", "port-saved"], "").ok();
    assert!(numbers(&port("port-vm"), 50)[0] < there[there.len() - 1]);
    let _: Value = inspect("port-vm");
}
