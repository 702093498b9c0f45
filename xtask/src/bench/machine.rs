//! Runs the loads: on the host, in our machine, in QEMU.
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
/// Memory of the process once init runs, and once the loads are done.
pub(super) const MEMORY: [&str; 2] = ["after the boot", "after the loads"];

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
    let boots: &[&str] = match kind {
        Kind::Viv => &[BOOT],
        Kind::Qemu => &[BOOT, BOOT_Q35],
    };
    for boot in boots.iter().filter(|boot| options.wants(boot)) {
        let board = if *boot == BOOT { "microvm,rtc=on" } else { "q35" };
        let command = command(userland, options, kind, (board, 1, &userland.boot_initrd), "");
        Session { options, kind, name: boot, marks: &mut marks }.run(command, &mut Vec::new())?;
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
            let command = command(userland, options, kind, ("q35", cpus, &userland.initrd), &left.join(","));
            let before = left.len();
            Session { options, kind, name: "", marks: &mut marks }.run(command, &mut left)?;
            if left.len() == before {
                return Err(format!("{} did not start; its console is in {VM}.log", kind.title()));
            }
        }
    }
    Ok(marks)
}

fn command(
    userland: &Userland,
    options: &Options,
    kind: Kind,
    (board, cpus, initrd): (&str, usize, &Path),
    rows: &str,
) -> Command {
    let (kernel, initrd) = (userland.kernel.display().to_string(), initrd.display().to_string());
    let append = format!("{APPEND} rows={rows}");
    let (cpus, memory) = (cpus.to_string(), format!("{RAM_MIB}M"));
    if kind == Kind::Viv {
        let mut command = guest::viv(&["run", "--rm", "--accel", "soft", "--name", VM, "--memory", &memory]);
        command.args(["--cpus", &cpus, "--kernel", &kernel, "--initrd", &initrd, "--append", &append]);
        command.args(&options.viv_args);
        return command;
    }
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", board, "-accel", "tcg", "-cpu", &options.qemu_cpu, "-m", &memory, "-smp", &cpus])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-kernel", &kernel, "-initrd", &initrd, "-append", &append])
        .stdin(Stdio::null());
    command
}

impl Kind {
    pub(super) fn title(self) -> &'static str {
        if self == Kind::Viv { "viv" } else { "QEMU" }
    }

    /// The process that does the work.
    fn process(self, child: &Child) -> Option<u32> {
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
                Err(mpsc::RecvTimeoutError::Timeout) => break format!("nothing for {} s", wait.as_secs()),
                Err(mpsc::RecvTimeoutError::Disconnected) => break "the machine ended".to_string(),
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
                    break String::new();
                }
                _ => {
                    if !line.trim().is_empty() {
                        eprintln!("xtask: {}: {}", self.kind.title(), line.trim());
                    }
                }
            }
        };
        let stopped = !ended.is_empty();
        if stopped {
            let name = running.unwrap_or_else(|| left.first().copied().unwrap_or(self.name).to_string());
            self.fail(&name, &ended, left);
            let _ = child.kill();
        }
        let _ = child.wait();
        if stopped && self.kind == Kind::Viv {
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
