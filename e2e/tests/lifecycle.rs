//! What a user does to a VM between its start and its end, with the default guest.
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;
use viv_e2e::{Outcome, Vm, inspect, run, until, viv};

const LIMIT: Duration = Duration::from_secs(120);

#[track_caller]
fn start(name: &'static str, words: &[&str]) -> Vm {
    run(&["rm", "-f", name], "").ok();
    let vm = Vm(name);
    run(&[&["run", "-d", "--accel", "soft", "--name", name], words].concat(), "").ok();
    vm
}

fn exec(name: &str, argv: &[&str]) -> Outcome {
    run(&[&["exec", name, "--"], argv].concat(), "")
}

#[test]
fn a_vm_in_the_background_runs_commands_pauses_stops_and_starts_again() {
    let _vm = start("e2e-web", &[]);
    assert_eq!(exec("e2e-web", &["sh", "-c", "kill -9 $$"]).status, 128 + 9);

    // A signal for `viv exec` is one for the command.
    let child = viv(&["exec", "e2e-web", "--", "sleep", "100"]).stdout(Stdio::null()).spawn().unwrap();
    until("the command", LIMIT, || exec("e2e-web", &["pidof", "sleep"]).status == 0);
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(128 + 2));

    run(&["pause", "e2e-web"], "").ok();
    assert_eq!(inspect("e2e-web")["state"], "paused");
    run(&["resume", "e2e-web"], "").ok();
    assert_eq!(exec("e2e-web", &["echo", "on"]).ok().out, "on\n");

    run(&["stop", "--time", "100", "e2e-web"], "").ok();
    assert_eq!(inspect("e2e-web")["end"]["reason"], "power-off");
    run(&["start", "e2e-web"], "").ok();
    assert_eq!(exec("e2e-web", &["echo", "again"]).ok().out, "again\n");

    // In the background a reset is a boot.
    exec("e2e-web", &["reboot"]);
    until("the second boot", LIMIT, || inspect("e2e-web")["boots"] == 2);
    assert_eq!(exec("e2e-web", &["echo", "back"]).ok().out, "back\n");
}

#[test]
fn memory_that_the_guest_frees_or_is_asked_for_goes_back_to_the_host() {
    let vm = start("balloon", &["--memory", "512M"]);
    let _ = run(&["snapshot", "rm", "e2e-balloon"], ""); // of a run that was cut
    let in_use = || {
        let stats: serde_json::Value =
            serde_json::from_str(&run(&["stats", "--json", "balloon"], "").ok().out).unwrap();
        (
            stats[0]["memory_bytes"].as_u64().unwrap() >> 20,
            stats[0]["guest_memory"]["given_back"].as_u64().unwrap() >> 20,
        )
    };
    for snapshots in 0..2 {
        exec("balloon", &["dd", "if=/dev/zero", "of=/filled", "bs=1M", "count=200"]).ok();
        let (full, _) = in_use();
        assert!(full > 200, "{full} MiB");
        if snapshots == 1 {
            // What a snapshot holds of the memory is its own.
            run(&["snapshot", "create", "balloon", "e2e-balloon"], "").ok();
        }
        exec("balloon", &["rm", "/filled"]).ok();
        let freed = std::time::Instant::now();
        while in_use().0 > full - 150 {
            assert!(freed.elapsed().as_secs() < 15, "{full} MiB before, {:?} after", in_use());
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }
    run(&["snapshot", "rm", "e2e-balloon"], "").ok();
    run(&["resize-memory", "balloon", "256M"], "").ok();
    let asked = std::time::Instant::now();
    while in_use().1 != 256 {
        assert!(asked.elapsed().as_secs() < 30, "{:?}", in_use());
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    let refused = run(&["resize-memory", "balloon", "1G"], "");
    assert_eq!(refused.status, 2, "{refused:?}");
    drop(vm);
}

#[test]
fn a_running_guest_gets_more_memory_and_gives_it_back() {
    let _vm = start("e2e-growing", &["--memory", "256M", "--memory-max", "1G"]);
    let total = || {
        let line = exec("e2e-growing", &["grep", "MemTotal", "/proc/meminfo"]).ok().out;
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap() >> 10
    };
    assert!(total() < 256);
    run(&["resize-memory", "e2e-growing", "1G"], "").ok();
    until("more memory", LIMIT, || total() > 900);
    run(&["resize-memory", "e2e-growing", "256M"], "").ok();
    until("less memory", LIMIT, || total() < 256);
}

#[test]
fn disks_come_and_go_while_it_runs() {
    let _vm = start("e2e-plug", &[]);
    let place = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (raw, cow) = (place.join("plug.raw"), place.join("plug.qcow2"));
    let _ = (fs::remove_file(&raw), fs::remove_file(&cow));
    fs::write(&raw, vec![0; 16 << 20]).unwrap();
    run(&["disk", "create", "--format", "qcow2", cow.to_str().unwrap(), "64M"], "").ok();
    let there = |serial: &str| {
        let find = format!("grep -lx {serial} /sys/block/*/serial");
        exec("e2e-plug", &["sh", "-c", &find]).out.trim().split('/').nth(3).map(|name| format!("/dev/{name}"))
    };
    let attach = |disk: &str| run(&["attach", "e2e-plug", disk], "");
    attach(&format!("{},serial=data", raw.display())).ok();
    attach(cow.to_str().unwrap()).ok();
    until("both disks", LIMIT, || there("data").is_some() && there("viv-disk-0").is_some());
    let shell = |script: &str| exec("e2e-plug", &["sh", "-ec", script]).ok().out;
    let device = there("data").unwrap();
    shell(&format!(
        "mke2fs {device} >/dev/null 2>&1; mkdir /data; mount {device} /data; echo kept > /data/file"
    ));
    assert_eq!(attach(raw.to_str().unwrap()).status, 4, "it has it already");
    // Both grow while the guest uses them.
    let size = |device: &str| shell(&format!("cat /sys/block/{}/size", device.trim_start_matches("/dev/")));
    let cow_device = there("viv-disk-0").unwrap();
    run(&["disk", "resize", raw.to_str().unwrap(), "+8M"], "").ok();
    run(&["disk", "resize", cow.to_str().unwrap(), "96M"], "").ok();
    until("the new sizes", LIMIT, || (size(&device).trim(), size(&cow_device).trim()) == ("49152", "196608"));
    shell(&format!("echo grown | dd of={cow_device} bs=512 seek=196607 conv=fsync,sync"));
    assert_eq!(run(&["disk", "resize", "--shrink", raw.to_str().unwrap(), "8M"], "").status, 2);

    let refused = run(&["detach", "e2e-plug", "data"], "");
    assert!(refused.status == 4 && refused.err.contains("is mounted on /data"), "{refused:?}");
    shell("umount /data");
    run(&["detach", "e2e-plug", "data"], "").ok();
    assert_eq!(there("data"), None);
    // Whoever comes next may have it at once.
    let other = run(
        &[
            "run",
            "--rm",
            "--accel",
            "soft",
            "--disk",
            raw.to_str().unwrap(),
            "--",
            "sh",
            "-c",
            "mkdir /data; mount /dev/vda /data && cat /data/file",
        ],
        "",
    )
    .ok();
    assert_eq!(other.out, "kept\n");

    // The other one is still there after the guest's reboot, and after the VM's next start.
    exec("e2e-plug", &["reboot"]);
    until("the second boot", LIMIT, || inspect("e2e-plug")["boots"] == 2);
    until("the disk", LIMIT, || there("viv-disk-0").is_some());
    run(&["stop", "--time", "100", "e2e-plug"], "").ok();
    run(&["start", "e2e-plug"], "").ok();
    until("the disk", LIMIT, || there("viv-disk-0").is_some());
    run(&["detach", "e2e-plug", "0"], "").ok();
    assert_eq!(inspect("e2e-plug")["machine"]["disks"], serde_json::json!([]));
}

#[test]
fn a_command_in_the_background_ends_its_vm_with_its_status() {
    let _vm = start("e2e-job", &["--", "sh", "-c", "echo from the job; exit 3"]);
    until("the job's end", LIMIT, || inspect("e2e-job")["state"] == "stopped");
    assert_eq!(inspect("e2e-job")["end"]["status"], 3);
    assert!(run(&["logs", "e2e-job"], "").ok().out.contains("from the job"));
}

#[test]
fn a_kernel_boots_with_words_and_disks_of_the_users() {
    let _vm = start("e2e-files", &[]);
    let machine = inspect("e2e-files")["machine"].clone();
    let (kernel, initrd) = (machine["kernel"].as_str().unwrap(), machine["initrd"].as_str().unwrap());
    let disk = std::env::temp_dir().join(format!("viv-e2e-disk-{}", std::process::id()));
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let path = disk.to_str().unwrap();
    let own = ["run", "--rm", "--accel", "soft", "--kernel", kernel, "--initrd", initrd, "--disk", path];
    let own = [&own[..], &["--append", "console=ttyS0 panic=-1"]].concat();
    let script = "printf hello | dd of=/dev/vda conv=fsync,notrunc; dd if=/dev/vda bs=5 count=1";
    let outcome = run(&[&own[..], &["--", "sh", "-c", script]].concat(), "").ok();
    assert_eq!(outcome.out, "hello");
    assert!(fs::read(&disk).unwrap().starts_with(b"hello"));
    // Its console from the first word on, and input that waits for the guest to listen.
    let outcome = run(&own, "exit\n").ok();
    assert!(outcome.out.contains("Linux version"), "{outcome:?}");
    fs::remove_file(disk).unwrap();
}

#[test]
fn a_wait_for_the_agent_of_a_panicked_kernel_ends_and_shows_why() {
    let outcome = run(&["run", "--rm", "--accel", "soft", "--append", "rdinit=/nowhere", "--", "true"], "");
    assert_eq!(outcome.status, 1, "{outcome:?}");
    assert!(outcome.err.contains("its kernel panicked"), "{outcome:?}");
    assert!(outcome.err.contains("Kernel panic - not syncing"), "{outcome:?}");
}
