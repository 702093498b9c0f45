//! Runs the loads: on the host, in our machine, in QEMU.
use super::debian::{DEBIAN, Debian};
use super::guest::Userland;
use super::options::Options;
use super::rows::{BOOT, BOOT_Q35, Row};
use super::{clock, guest};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const APPEND: &str = "console=ttyS0 quiet panic=-1 reboot=k mitigations=off cryptomgr.notests";
pub(super) const VM: &str = "xtask-bench";
pub(super) const RAM_MIB: u64 = 512;
/// When the memory of the process is looked at.
pub(super) const MEMORY: [&str; 3] = ["after the boot", "after the loads", "after a full Debian boot"];
/// What the log-in of Debian's image prints when everything has been started.
const LOGGED_IN: &str = "(automatic";

/// Seconds that a load took, and its checksum or why there is none.
#[derive(Clone)]
pub(super) struct Measure {
    pub(super) wall: f64,
    pub(super) cpu: f64,
    pub(super) sum: Result<String, String>,
}

/// What one round of one contestant gave.
#[derive(Default)]
pub(super) struct Marks {
    pub(super) loads: BTreeMap<String, Measure>,
    /// MiB beyond the guest's RAM, at [`MEMORY`]'s moments.
    pub(super) memory: BTreeMap<&'static str, f64>,
}

/// Which machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Viv,
    Qemu,
}

/// The loads as a program on this host.
pub(super) fn bare(userland: &Userland, rows: &[&Row]) -> Result<Marks, String> {
    for left in ["viv-bench", "viv-bench-shell"] {
        let _ = fs::remove_dir_all(Path::new("/dev/shm").join(left));
    }
    let names = names(rows.iter().copied().filter(|row| !row.name.starts_with(BOOT)));
    let output = Command::new(userland.root.join("init"))
        .current_dir(&userland.root)
        .env_clear()
        .env("rows", &names)
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run the loads: {error}"))?;
    let mut marks = Marks::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["end", name, sum, cpu] => {
                let cpu = cpu.parse::<f64>().map_err(|error| format!("{cpu}: {error}"))? / 1e6;
                marks.loads.insert(name.to_string(), Measure { wall: cpu, cpu, sum: Ok(sum.to_string()) });
            }
            ["begin", _] => {}
            _ => eprintln!("xtask: bare CPU: {line}"),
        }
    }
    Ok(marks)
}

fn names<'a>(rows: impl Iterator<Item = &'a Row>) -> String {
    rows.map(|row| row.name).collect::<Vec<_>>().join(",")
}

/// The loads in a machine; after a failure it boots again for the rest.
pub(super) fn virtual_machine(userland: &Userland, options: &Options, kind: Kind) -> Result<Marks, String> {
    let mut marks = Marks::default();
    let kernel = userland.kernel.as_path();
    let boots: &[&str] = match kind {
        Kind::Viv => &[BOOT],
        Kind::Qemu => &[BOOT, BOOT_Q35],
    };
    for name in boots.iter().filter(|boot| options.wants(boot)) {
        let board = if *name == BOOT { "microvm,rtc=on" } else { "q35" };
        let append = format!("{APPEND} rows=");
        let boot =
            Boot { board, cpus: 1, kernel, initrd: &userland.boot_initrd, append: &append, disk: None };
        Session { options, kind, name, marks: &mut marks }
            .run(boot.command(options, kind), &mut Vec::new())?;
    }
    if kind == Kind::Viv
        && let Some(boot) = marks.loads.get(BOOT).cloned()
    {
        marks.loads.insert(BOOT_Q35.to_string(), boot);
    }
    for cpus in [1, 2] {
        let wanted = |row: &&&Row| row.cpus == cpus && !row.name.starts_with(BOOT);
        let mut left: Vec<&str> = options.rows.iter().filter(wanted).map(|row| row.name).collect();
        while !left.is_empty() {
            let append = format!("{APPEND} rows={}", left.join(","));
            let boot =
                Boot { board: "q35", cpus, kernel, initrd: &userland.initrd, append: &append, disk: None };
            Session { options, kind, name: "", marks: &mut marks }
                .run(boot.command(options, kind), &mut left)?;
        }
    }
    Ok(marks)
}

/// A full Debian up to its log-in and ten seconds on, for its memory.
pub(super) fn debian(debian: &Debian, options: &Options, kind: Kind) -> Result<Marks, String> {
    let mut marks = Marks::default();
    let boot = Boot {
        board: "q35",
        cpus: 1,
        kernel: &debian.kernel,
        initrd: &debian.initrd,
        append: &debian.append,
        disk: Some(&debian.disk),
    };
    let mut session = Session { options, kind, name: DEBIAN, marks: &mut marks };
    session.run(boot.command(options, kind), &mut Vec::new())?;
    Ok(marks)
}

/// How a machine is started.
struct Boot<'a> {
    /// QEMU's machine.
    board: &'a str,
    cpus: usize,
    kernel: &'a Path,
    initrd: &'a Path,
    append: &'a str,
    disk: Option<&'a Path>,
}

impl Boot<'_> {
    fn command(&self, options: &Options, kind: Kind) -> Command {
        let (cpus, memory) = (self.cpus.to_string(), format!("{RAM_MIB}M"));
        if kind == Kind::Viv {
            let mut command =
                guest::viv(&["run", "--rm", "--accel", "soft", "--name", VM, "--memory", &memory]);
            command.args(["--cpus", &cpus, "--append", self.append, "--kernel"]).arg(self.kernel);
            command.arg("--initrd").arg(self.initrd).args(&options.viv_args);
            if let Some(disk) = self.disk {
                command.arg("--disk").arg(disk);
            }
            return command;
        }
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args([
                "-M",
                self.board,
                "-accel",
                "tcg",
                "-cpu",
                &options.qemu_cpu,
                "-m",
                &memory,
                "-smp",
                &cpus,
            ])
            .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
            .args(["-append", self.append, "-kernel"])
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initrd)
            .stdin(Stdio::null());
        if let Some(disk) = self.disk {
            command.arg("-drive").arg(format!("file={},format=raw,if=virtio", disk.display()));
        }
        command
    }
}

impl Kind {
    pub(super) fn title(self) -> &'static str {
        if self == Kind::Viv { "viv" } else { "QEMU" }
    }

    /// The process that does the work.
    pub(super) fn process(self, child: &Child) -> Option<u32> {
        match self {
            Kind::Viv => guest::runner(VM),
            Kind::Qemu => Some(child.id()),
        }
    }
}

/// One machine from its start to its end.
struct Session<'a> {
    options: &'a Options,
    kind: Kind,
    /// The boot that this is, for its row; empty if the loads count.
    name: &'a str,
    marks: &'a mut Marks,
}

impl Session<'_> {
    /// Runs it; takes off `left` what was measured or failed.
    fn run(&mut self, mut command: Command, left: &mut Vec<&str>) -> Result<(), String> {
        let start = Instant::now();
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        let lines = lines(&mut child);
        let (mut pid, mut begun, mut running) = (None, (0.0, 0.0), None::<String>);
        let ended = loop {
            let wait = Duration::from_secs(self.options.timeout);
            let line = match lines.recv_timeout(wait) {
                Ok(line) => line,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    break Some(format!("nothing for {} s", wait.as_secs()));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break Some("the machine ended".to_string()),
            };
            let wall = start.elapsed().as_secs_f64();
            pid = pid.or_else(|| self.kind.process(&child));
            let now = (wall, pid.and_then(clock::cpu_seconds).unwrap_or(0.0));
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["booted"] => {
                    self.remember_memory(MEMORY[0], pid);
                    if !self.name.is_empty() {
                        let measure = Measure { wall: now.0, cpu: now.1, sum: Ok("0".to_string()) };
                        self.marks.loads.insert(self.name.to_string(), measure);
                    }
                }
                ["begin", name] => (begun, running) = (now, Some(name.to_string())),
                ["end", name, sum, _] => {
                    let (wall, cpu) = (now.0 - begun.0, now.1 - begun.1);
                    eprintln!("xtask: {:<5} {name:<9} {cpu:>8.3} s", self.kind.title());
                    self.finish(name, Measure { wall, cpu, sum: Ok(sum.to_string()) }, left);
                    running = None;
                }
                ["fail", name, ..] => {
                    self.fail(name, &line, left);
                    running = None;
                }
                ["finished"] => {
                    self.remember_memory(MEMORY[1], pid);
                    break None;
                }
                [.., LOGGED_IN, "login)"] => {
                    std::thread::sleep(Duration::from_secs(10));
                    self.remember_memory(MEMORY[2], pid);
                    self.finish(
                        self.name,
                        Measure { wall: now.0, cpu: now.1, sum: Ok("0".to_string()) },
                        left,
                    );
                    let _ = child.kill();
                    break None;
                }
                _ => {
                    if !line.trim().is_empty() {
                        eprintln!("xtask: {}: {}", self.kind.title(), line.trim());
                    }
                }
            }
        };
        if let Some(why) = &ended {
            let name = running.unwrap_or_else(|| left.first().copied().unwrap_or(self.name).to_string());
            self.fail(&name, why, left);
            let _ = child.kill();
        }
        let _ = child.wait();
        if self.kind == Kind::Viv && (ended.is_some() || self.name == DEBIAN) {
            let _ = guest::viv_output(&["rm", "-f", VM]);
        }
        Ok(())
    }

    fn finish(&mut self, name: &str, measure: Measure, left: &mut Vec<&str>) {
        left.retain(|other| *other != name);
        self.marks.loads.insert(name.to_string(), measure);
    }

    fn fail(&mut self, name: &str, why: &str, left: &mut Vec<&str>) {
        eprintln!("xtask: {}: {name} FAILED: {why}", self.kind.title());
        let why = format!("{}: {why}", self.kind.title());
        self.finish(name, Measure { wall: f64::NAN, cpu: f64::NAN, sum: Err(why) }, left);
    }

    fn remember_memory(&mut self, moment: &'static str, pid: Option<u32>) {
        if let Some(mib) = pid.and_then(|pid| clock::memory_beyond(pid, RAM_MIB)) {
            let most = self.marks.memory.entry(moment).or_default();
            *most = most.max(mib);
        }
    }
}

/// The lines that a machine prints, as they come, on both of its streams.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    fn follow(stream: impl std::io::Read + Send + 'static, to: mpsc::Sender<String>) {
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                if to.send(String::from_utf8_lossy(&line).trim().to_string()).is_err() {
                    return;
                }
            }
        });
    }
    let (to, lines) = mpsc::channel();
    if let Some(stream) = child.stdout.take() {
        follow(stream, to.clone());
    }
    if let Some(stream) = child.stderr.take() {
        follow(stream, to);
    }
    lines
}
