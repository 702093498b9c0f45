//! What the host refuses to a disk: the guest gets an I/O error, or waits until there is room, and nothing else happens.
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use viv_e2e::{Outcome, SmallFileSystem, Vm, inspect, run, until, viv};

const LIMIT: Duration = Duration::from_secs(120);

fn start(name: &'static str, words: &[&str]) -> Vm {
    run(&["rm", "-f", name], "").ok();
    let vm = Vm(name);
    run(&[&["run", "-d", "--accel", "soft", "--name", name], words].concat(), "").ok();
    vm
}

fn shell(vm: &str, script: &str) -> Outcome {
    run(&["exec", vm, "--", "sh", "-c", script], "")
}

fn place(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

fn tool(command: &mut Command) {
    let done = command.stdin(Stdio::null()).output().expect("the tool is there");
    assert!(done.status.success(), "{command:?}: {done:?}");
}

#[test]
fn a_write_that_the_host_refuses_is_an_io_error_in_the_guest_and_no_more() {
    let (raw, vm) = (place("refused.raw"), "e2e-refused");
    fs::write(&raw, vec![0; 4 << 20]).unwrap();
    let _vm = start(vm, &["--disk", raw.to_str().unwrap()]);
    let write = |at: u32| {
        shell(vm, &format!("dd if=/etc/passwd of=/dev/vda bs=4096 seek={at} count=1 conv=sync,fsync,notrunc"))
    };
    write(600).ok();
    let pid = inspect(vm)["pid"].to_string();
    // Nothing may be written behind the first MiB (RLIMIT_FSIZE of setrlimit(2)).
    tool(Command::new("prlimit").args(["--pid", &pid, "--fsize=1048576:"]));
    write(3).ok();
    let refused = write(601);
    assert!(refused.status != 0 && refused.err.contains("Input/output error"), "{refused:?}");
    assert_eq!(inspect(vm)["state"], "running");
    tool(Command::new("prlimit").args(["--pid", &pid, "--fsize=unlimited:"]));
    write(602).ok();
    run(&["stop", "--time", "100", vm], "").ok();
    let content = fs::read(&raw).unwrap();
    let has = |block: usize| content[block * 4096..].starts_with(b"root:");
    assert_eq!([3, 600, 601, 602].map(has), [true, true, false, true]);
}

#[test]
#[ignore = "needs the right to mount: cargo xtask disks"]
fn a_full_file_system_pauses_the_vm_until_there_is_room_or_is_an_error() {
    let file_system = SmallFileSystem::mount("full", "size=8M");
    let vm = "e2e-full";
    for (name, format) in [("waits.raw", "raw"), ("waits.qcow2", "qcow2"), ("errs.raw", "raw")] {
        let image = file_system.0.join(name);
        run(&["disk", "create", "--format", format, image.to_str().unwrap(), "16M"], "").ok();
    }
    let path = |name: &str| file_system.0.join(name).display().to_string();
    let errs = path("errs.raw") + ",on-full=error";
    let (raw, cow) = (path("waits.raw"), path("waits.qcow2"));
    let _vm = start(vm, &["--cpus", "2", "--disk", &raw, "--disk", &cow, "--disk", &errs]);
    shell(vm, "dd if=/dev/urandom of=/tmp/content bs=1M count=12").ok();
    for (device, image, size) in [("vda", &raw, "8M"), ("vdb", &cow, "18M")] {
        tool(Command::new("mount").args(["-o", &format!("remount,size={size}")]).arg(&file_system.0));
        let copy = format!("dd if=/tmp/content of=/dev/{device} bs=1M conv=fsync");
        let writer = viv(&["exec", vm, "--", "sh", "-c", &copy]).stderr(Stdio::piped()).spawn().unwrap();
        until("the pause", LIMIT, || inspect(vm)["state"] == "paused");
        assert_eq!(inspect(vm)["full_disks"], serde_json::json!([image]));
        assert!(run(&["ps"], "").ok().out.contains("paused (disk full)"));
        // In vain.
        run(&["resume", vm], "").ok();
        until("the pause", LIMIT, || inspect(vm)["state"] == "paused");
        tool(Command::new("mount").args(["-o", "remount,size=64M"]).arg(&file_system.0));
        until("that it goes on", LIMIT, || inspect(vm)["state"] == "running");
        let written = writer.wait_with_output().unwrap();
        assert!(written.status.success(), "{written:?}");
        let same = format!("head -c 12582912 /dev/{device} | cmp - /tmp/content");
        shell(vm, &format!("echo 3 > /proc/sys/vm/drop_caches; {same}")).ok();
    }
    // A command in the foreground says why it stands still.
    let other = file_system.0.join("other.raw").display().to_string();
    run(&["disk", "create", &other, "48M"], "").ok();
    let words = ["run", "--rm", "--accel", "soft", "--disk", &other, "--", "dd", "if=/dev/urandom"];
    let mut foreground = viv(&[&words[..], &["of=/dev/vda", "bs=1M", "count=48", "conv=fsync"]].concat())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(foreground.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains("the host has no room for")), "it ended without a word");
    tool(Command::new("mount").args(["-o", "remount,size=128M"]).arg(&file_system.0));
    said.for_each(drop);
    assert!(foreground.wait().unwrap().success());
    fs::write(&other, "").unwrap(); // whoever still has it open
    tool(Command::new("mount").args(["-o", "remount,size=26M"]).arg(&file_system.0));
    let refused = shell(vm, "dd if=/tmp/content of=/dev/vdc bs=1M conv=fsync");
    assert!(refused.status != 0 && refused.err.contains("Input/output error"), "{refused:?}");
    assert_eq!(inspect(vm)["state"], "running");
    tool(Command::new("mount").args(["-o", "remount,size=64M"]).arg(&file_system.0));
    run(&["stop", "--time", "100", vm], "").ok();
    run(&["disk", "check", &cow], "").ok();
}

/// `strace`, which lets system calls of a VM's process on one file fail.
struct Injection(Child);

impl Injection {
    fn new(pid: &str, file: &Path, calls: &str, when: &str) -> Injection {
        let mut child = Command::new("strace")
            .args(["-f", "-p", pid, "-P"])
            .arg(file)
            .args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{when}")])
            .stderr(Stdio::piped())
            .spawn()
            .expect("strace is there");
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let attached = lines.by_ref().find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
        assert!(attached.is_some(), "strace does not attach to {pid}: may it trace this process?");
        std::thread::spawn(move || lines.for_each(drop)); // it must not wait for a reader
        Injection(child)
    }

    fn end(mut self) {
        tool(Command::new("kill").args(["-INT", &self.0.id().to_string()]));
        self.0.wait().unwrap();
    }
}

#[test]
#[ignore = "needs strace and the right to trace: cargo xtask disks"]
fn errors_at_every_nth_call_reach_the_guest_and_damage_nothing() {
    let vm = "e2e-errors";
    let _vm = start(vm, &["--cpus", "2"]);
    let pid = inspect(vm)["pid"].to_string();
    let mut errors = 0;
    for (n, calls) in
        (1..=4).flat_map(|n| [(n, "pwrite64"), (n, "fdatasync"), (n, "pread64,pwrite64,fdatasync")])
    {
        let image = place("errors.qcow2");
        run(&["disk", "create", "--format", "qcow2", image.to_str().unwrap(), "64M"], "").ok();
        run(&["attach", vm, &format!("{},serial=errors", image.display())], "").ok();
        let find = "grep -lx errors /sys/block/*/serial | cut -d/ -f4";
        until("the disk", LIMIT, || !shell(vm, find).out.is_empty());
        let injection = Injection::new(&pid, &image, calls, &format!("error=EIO:when={n}+{}", n + 2));
        let script = format!(
            "dev=/dev/$({find}); for at in 0 5 9; do dd if=/dev/urandom of=$dev bs=64k seek=$at count=20 conv=fsync || echo wrong; done; \
             dd if=$dev of=/dev/null bs=64k count=40 || echo wrong"
        );
        errors += shell(vm, &script).ok().out.matches("wrong").count();
        injection.end();
        assert_eq!(inspect(vm)["state"], "running");
        run(&["detach", vm, "errors"], "").ok();
        let ours = run(&["disk", "check", image.to_str().unwrap()], "");
        // Clusters that nobody uses are what an error may leave.
        assert!(ours.status == 0 || ours.err.contains("has 0 errors"), "{n} {calls}: {ours:?}");
        let checked = Command::new("qemu-img").arg("check").arg(&image).output().unwrap();
        assert!(matches!(checked.status.code(), Some(0 | 3)), "{n} {calls}: {checked:?}");
    }
    assert!(errors > 10, "the guest saw {errors} errors");
}
