//! Images built from the real archive and booted by an independent machine: QEMU's TCG.
//!
//! Needs apt, a network, `qemu-system-x86_64` and the agent (`cargo xtask agent`):
//! `cargo test -p viv-host --release --test images -- --ignored --nocapture`
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
use viv_api::agent::Exec;
use viv_api::operation::Progress;
use viv_host::images::{Images, Options, Recipe, RunVm, Watcher, find_agent};
use viv_model::{End, Fault, MachineSpec};

/// Prints each step once.
struct Steps;

impl Watcher for Steps {
    fn progress(&self, progress: Progress) {
        eprintln!("{} {:?}/{:?}", progress.step, progress.done, progress.total);
    }
}

/// A machine with its serial port in our hands.
struct Qemu {
    child: Child,
    stdin: ChildStdin,
    output: Receiver<Vec<u8>>,
    seen: String,
}

impl Qemu {
    fn start(kernel: &Path, initrd: Option<&Path>, append: &str, disks: &[PathBuf]) -> Qemu {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-m", "512", "-nographic", "-no-reboot"]);
        command.args(["-nic", "none", "-device", "virtio-rng-pci"]);
        command.arg("-kernel").arg(kernel);
        if let Some(initrd) = initrd {
            command.arg("-initrd").arg(initrd);
        }
        command.arg("-append").arg(format!("console=ttyS0 quiet loglevel=4 panic=-1 reboot=k {append}"));
        for disk in disks {
            command.arg("-drive").arg(format!("file={},if=virtio,format=raw,cache=unsafe", disk.display()));
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("qemu-system-x86_64");
        let (send, output) = channel();
        let mut stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut piece) {
                let _ = std::io::stderr().write_all(&piece[..length]);
                if send.send(piece[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Qemu { stdin: child.stdin.take().unwrap(), child, output, seen: String::new() }
    }

    /// Waits until the serial port has said `what` since the last call.
    fn expect(&mut self, what: &str, seconds: u64) -> String {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        loop {
            if let Some(at) = self.seen.find(what) {
                let rest = self.seen.split_off(at + what.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {what:?} ({error}) in {:?}", self.seen),
            }
        }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.stdin, "{line}").unwrap();
    }

    fn wait(mut self, seconds: u64) {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the machine is still on");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has QEMU play the host's runner.
struct QemuVm;

impl RunVm for QemuVm {
    fn run(
        &self,
        spec: &MachineSpec,
        command: Option<&Exec>,
        console: &mut dyn FnMut(&[u8]),
    ) -> Result<End, Fault> {
        assert_eq!(command, None, "QEMU has no vsock here");
        let disks: Vec<PathBuf> = spec.disks.iter().map(|disk| disk.path.clone()).collect();
        let qemu = Qemu::start(&spec.kernel, spec.initrd.as_deref(), &spec.append, &disks);
        while let Ok(bytes) = qemu.output.recv() {
            console(&bytes);
        }
        qemu.wait(10);
        Ok(End::PowerOff)
    }
}

/// A directory that stays between runs, so that downloads are made once.
fn place() -> PathBuf {
    let dir = std::env::var_os("CARGO_TARGET_TMPDIR").map(PathBuf::from);
    dir.unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into()).join("viv-images")
}

#[test]
#[ignore = "downloads a kernel and boots it in QEMU"]
fn the_default_guest_is_built_and_boots_to_its_shell() {
    let images = Images::open(place()).unwrap();
    let options = Options::new(find_agent().unwrap());
    let begun = Instant::now();
    let image = images.build(Recipe::DefaultGuest, &options, None, &Steps).unwrap();
    eprintln!("{} in {:?}", image.summary, begun.elapsed());
    assert_eq!(images.build(Recipe::DefaultGuest, &options, None, &Steps).unwrap(), image, "it is cached");
    assert_eq!(images.ensure_default(&options, &Steps).unwrap(), image);
    assert!(image.size_bytes < 64 << 20, "{}", image.size_bytes);

    let vm = place().join("vm-default");
    std::fs::create_dir_all(&vm).unwrap();
    let instance = images.instantiate(&image, &[], &vm).unwrap();
    let mut qemu = Qemu::start(&instance.kernel, instance.initrd.as_deref(), &instance.append, &[]);
    qemu.expect("viv:/root# ", 120);
    qemu.type_line("echo a$((6*7))b; tty; cat /proc/1/comm; lsmod | grep -c virtio; mount | grep -c tmpfs");
    let said = qemu.expect("viv:/root# ", 20);
    assert!(said.contains("a42b") && said.contains("/dev/ttyS0") && said.contains("init"), "{said}");
    qemu.type_line("sleep 100 & exit");
    qemu.wait(30);

    let mut qemu = Qemu::start(&instance.kernel, instance.initrd.as_deref(), &instance.append, &[]);
    qemu.expect("viv:/root# ", 120);
    qemu.type_line("sleep 100");
    // Ctrl-A c: from the serial port to QEMU's monitor.
    qemu.type_line("\x01csystem_powerdown");
    qemu.wait(30);

    let append = "viv.task=/bin/nproc";
    let mut qemu = Qemu::start(&instance.kernel, instance.initrd.as_deref(), append, &[]);
    qemu.expect("viv-task: exit 0", 120);
    qemu.wait(30);

    let append = "viv.root=/dev/vda";
    let mut qemu = Qemu::start(&instance.kernel, instance.initrd.as_deref(), append, &[]);
    qemu.expect("cannot start the disk /dev/vda", 120);
    qemu.wait(30);
}

#[test]
#[ignore = "downloads a Debian, configures it in QEMU and boots it"]
fn a_full_debian_is_built_boots_to_its_prompt_and_remembers() {
    let images = Images::open(place()).unwrap();
    let mut options = Options::new(find_agent().unwrap());
    let begun = Instant::now();
    options.force = std::env::var_os("VIV_TEST_FORCE").is_some();
    let image = images.build(Recipe::Debian, &options, Some(&QemuVm), &Steps).unwrap();
    options.force = false;
    eprintln!("{} in {:?}, {} MiB", image.summary, begun.elapsed(), image.size_bytes >> 20);
    assert_eq!(images.build(Recipe::Debian, &options, None, &Steps).unwrap(), image, "it is cached");

    let vm = place().join("vm-debian");
    std::fs::create_dir_all(&vm).unwrap();
    let instance = images.instantiate(&image, &[], &vm).unwrap();
    let disks: Vec<PathBuf> = instance.disks.iter().map(|disk| disk.path.clone()).collect();
    let boot = || Qemu::start(&instance.kernel, instance.initrd.as_deref(), &instance.append, &disks);
    let mut qemu = boot();
    qemu.expect("root@debian:~# ", 300);
    qemu.type_line("systemctl is-system-running --wait; systemctl --failed --no-legend; dpkg --audit; apt-get --version | head -1; ls -l /usr/bin/su /etc/shadow; systemctl is-active viv-agent");
    let said = qemu.expect("root@debian:~# ", 120);
    assert!(said.contains("running") && said.contains("apt 2"), "{said}");
    assert!(said.contains("-rwsr-xr-x 1 root root") && said.contains("-rw-r----- 1 root shadow"), "{said}");
    qemu.type_line(
        "systemd-analyze; systemd-analyze blame | head -15; echo kept > /root/note; sync; poweroff",
    );
    qemu.wait(120);
    let mut qemu = boot();
    qemu.expect("root@debian:~# ", 300);
    qemu.type_line("cat /root/note; poweroff");
    qemu.expect("kept\r\n", 20);
    qemu.wait(120);
}
