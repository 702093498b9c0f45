//! `cargo xtask bench --snapshots`: how long a snapshot holds a guest up, and how soon one goes on.
//!
//! The peer is QEMU TCG with the same kernel and userland: its state in a file, from which it starts (`-incoming`). Both guests
//! print a line every millisecond; what counts is the first that comes out after the start of the command. Rounds alternate.
use super::guest::{self, must};
use super::machine::VM;
use super::options::Options;
use crate::install;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Rounds for each of `--runs`.
const ROUNDS: usize = 6;
/// Prints for ever.
const TICKS: &str = "(while :; do echo tick >/dev/ttyS0; usleep 1000; done) >/dev/null 2>&1 &";
/// Fills a part of the guest's memory.
const FILL: &str =
    "mount -o remount,size=90% /dev/shm 2>/dev/null; head -c 350000000 /dev/urandom > /dev/shm/fill; sync";
/// Changes a part of that.
const CHANGE: &str = "head -c 20000000 /dev/urandom | dd of=/dev/shm/fill bs=1M conv=notrunc 2>/dev/null";
/// How long QEMU may take to write its state.
const PATIENCE: Duration = Duration::from_secs(120);
const SNAPSHOT: &str = "bench-snapshot";
const DIFFERENTIAL: &str = "bench-differential";
const TEMPLATE: &str = "bench-template";

/// A thing that is measured, and how long it took, milliseconds.
struct Row {
    name: &'static str,
    times: Vec<f64>,
}

/// Measures and prints the table.
pub(super) fn run(options: &Options) -> Result<(), String> {
    if options.peer {
        install::need("qemu-system-x86_64", "qemu-system-x86")?;
    }
    crate::steps::build()?;
    let dir = guest::bench_dir()?;
    let boot = guest::default_guest(&dir)?;
    let outcome = measure(options, &dir, &boot);
    forget();
    print(&outcome?);
    Ok(())
}

fn forget() {
    let _ = guest::viv_output(&["rm", "-f", VM, "bench-gone-on"]);
    let _ = guest::viv_output(&[
        "snapshot",
        "rm",
        SNAPSHOT,
        DIFFERENTIAL,
        TEMPLATE,
        "bench-small",
        "bench-large",
    ]);
}

fn start(memory: &str) -> Result<(), String> {
    let _ = guest::viv_output(&["rm", "-f", VM]);
    guest::viv_output(&["run", "-d", "--accel", "soft", "--name", VM, "--memory", memory]).map(drop)
}

fn exec(command: &str) -> Result<String, String> {
    guest::viv_output(&["exec", VM, "--", "sh", "-c", command])
}

/// How long a command takes, milliseconds.
fn timed(words: &[&str]) -> Result<f64, String> {
    let begin = Instant::now();
    guest::viv_output(words)?;
    Ok(begin.elapsed().as_secs_f64() * 1e3)
}

fn measure(options: &Options, dir: &Path, boot: &(PathBuf, PathBuf, String)) -> Result<Vec<Row>, String> {
    forget();
    let rounds = options.runs * ROUNDS;
    let mut rows: Vec<Row> = Vec::new();
    let mut note = |name: &'static str, time: f64| match rows.iter_mut().find(|row| row.name == name) {
        Some(row) => row.times.push(time),
        None => rows.push(Row { name, times: vec![time] }),
    };
    // Of a guest with 512 MiB, of which 350 MB are in use.
    start("512M")?;
    exec(FILL)?;
    for round in 1..=rounds {
        eprintln!("xtask: round {round} of {rounds}: snapshots");
        note("snapshot, whole command", timed(&["snapshot", "create", VM, SNAPSHOT])?);
        let json = guest::viv_output(&["--json", "snapshot", "show", SNAPSHOT])?;
        let paused = guest::field(&json, "paused_ns").and_then(|value| value.parse::<f64>().ok());
        note("snapshot, the guest stands still", paused.ok_or("no pause in it")? / 1e6);
        exec(CHANGE)?;
        note("differential snapshot, whole command", timed(&["snapshot", "create", VM, DIFFERENTIAL])?);
        let json = guest::viv_output(&["--json", "snapshot", "show", DIFFERENTIAL])?;
        let bytes = guest::field(&json, "data_bytes").and_then(|value| value.parse::<f64>().ok());
        note("differential snapshot, MB (the guest wrote 20)", bytes.ok_or("no size in it")? / 1e6);
        note("restore of it, whole command", timed(&["restore", DIFFERENTIAL, "--name", "bench-gone-on"])?);
        guest::viv_output(&["rm", "-f", "bench-gone-on"])?;
        guest::viv_output(&["snapshot", "rm", SNAPSHOT, DIFFERENTIAL])?;
        let fork = timed(&["fork", VM, "--name", "bench-gone-on"])?;
        note("fork, whole command", fork);
        let first = timed(&["exec", "bench-gone-on", "--", "true"])?;
        note("fork, until a command has run in it", fork + first);
        guest::viv_output(&["rm", "-f", "bench-gone-on"])?;
        note("20 forks, whole command", timed(&["fork", VM, "--count", "20"])?);
        let forks: Vec<String> = (1..=20).map(|number| format!("{VM}-fork-{number}")).collect();
        let remove = ["rm", "-f"].into_iter().chain(forks.iter().map(String::as_str));
        guest::viv_output(&remove.collect::<Vec<_>>())?;
    }
    // Whose memory is of different sizes.
    for (memory, name) in [("128M", "bench-small"), ("4G", "bench-large")] {
        start(memory)?;
        exec("true")?;
        guest::viv_output(&["snapshot", "create", VM, name])?;
    }
    // That print.
    start("256M")?;
    exec("true")?;
    guest::viv_output(&["template", "create", VM, TEMPLATE])?;
    exec(TICKS)?;
    std::thread::sleep(Duration::from_millis(200));
    guest::viv_output(&["template", "create", VM, "bench-ticks"])?;
    guest::viv_output(&["rm", "-f", VM])?;
    let state = dir.join("qemu-state");
    if options.peer {
        save_qemu(boot, dir, &state)?;
    }
    let measured = (1..=rounds).try_for_each(|round| {
        eprintln!("xtask: round {round} of {rounds}: restores");
        for (name, row) in [
            ("bench-small", "restore of 128 MiB, whole command"),
            ("bench-large", "restore of 4 GiB, whole command"),
        ] {
            note(row, timed(&["restore", name, "--name", "bench-gone-on"])?);
            guest::viv_output(&["rm", "-f", "bench-gone-on"])?;
        }
        note(
            "run of a template, to the first byte of a command",
            first_byte(&mut guest::viv(&["run", "--rm", TEMPLATE, "--", "echo", "x"]))?,
        );
        note(
            "restore, to the first output of the guest",
            first_byte(&mut guest::viv(&["run", "--rm", "bench-ticks"]))?,
        );
        if options.peer {
            note("QEMU TCG, to the first output of the guest", first_byte(&mut incoming(boot, &state))?);
        }
        Ok(())
    });
    let _ = guest::viv_output(&["snapshot", "rm", "bench-ticks"]);
    measured.map(|()| rows)
}

/// How long a command takes to say something, milliseconds.
fn first_byte(command: &mut Command) -> Result<f64, String> {
    let begin = Instant::now();
    let mut child = guest::spawn(command)?;
    let mut byte = [0];
    let read = child.stdout.as_mut().map(|output| output.read(&mut byte));
    let time = begin.elapsed().as_secs_f64() * 1e3;
    end(&mut child);
    match read {
        Some(Ok(1)) => Ok(time),
        _ => Err(format!("{:?} says nothing", command.get_program())),
    }
}

/// Ends a command as an impatient user does: what it has made goes too.
fn end(child: &mut Child) {
    drop(child.stdin.take());
    let _ = Command::new("kill").arg(child.id().to_string()).status();
    let begin = Instant::now();
    while matches!(child.try_wait(), Ok(None)) && begin.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let _ = child.kill();
    let _ = child.wait();
}

fn qemu((kernel, initrd, append): &(PathBuf, PathBuf, String)) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "256M", "-nodefaults"]);
    command.args(["-display", "none", "-serial", "stdio", "-no-reboot", "-append", append]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initrd);
    command
}

fn incoming(boot: &(PathBuf, PathBuf, String), state: &Path) -> Command {
    let mut command = qemu(boot);
    command.arg("-incoming").arg(format!("exec:cat {}", state.display()));
    command
}

/// Boots the guest in QEMU, lets it print, and writes its state.
fn save_qemu(boot: &(PathBuf, PathBuf, String), dir: &Path, state: &Path) -> Result<(), String> {
    let monitor = dir.join("qemu-monitor");
    let _ = fs::remove_file(&monitor);
    let mut command = qemu(boot);
    command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", monitor.display()));
    let mut child = guest::spawn(&mut command)?;
    let saved = (|| {
        let (mut input, output) =
            (child.stdin.take().ok_or("no console")?, child.stdout.take().ok_or("no console")?);
        let mut lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
        if !lines.any(|line| String::from_utf8_lossy(&line).contains("built-in shell")) {
            return Err("QEMU's guest has no shell".to_string());
        }
        let io = |error: std::io::Error| format!("QEMU's guest: {error}");
        input.write_all(format!("set +m; {TICKS}\n").as_bytes()).map_err(io)?;
        if !lines.any(|line| line.starts_with(b"tick")) {
            return Err("QEMU's guest does not print".to_string());
        }
        // Its output must not stand still.
        std::thread::spawn(move || lines.count());
        let mut monitor = UnixStream::connect(&monitor).map_err(io)?;
        monitor.set_read_timeout(Some(Duration::from_millis(200))).map_err(io)?;
        let save = format!(
            "migrate_set_parameter max-bandwidth 100G\nmigrate -d \"exec:cat>{}\"\n",
            state.display()
        );
        monitor.write_all(save.as_bytes()).map_err(io)?;
        let begin = Instant::now();
        let mut said = String::new();
        while !said.contains("Migration status: completed") {
            if begin.elapsed() > PATIENCE || said.contains("Migration status: failed") {
                return Err(format!("QEMU does not write its state: {said}"));
            }
            monitor.write_all(b"info migrate\n").map_err(io)?;
            let mut piece = [0; 4096];
            if let Ok(length) = monitor.read(&mut piece) {
                said += &String::from_utf8_lossy(piece.get(..length).unwrap_or_default());
            }
        }
        Ok(())
    })();
    let _ = child.kill();
    let _ = child.wait();
    saved?;
    // In the page cache, as ours is.
    must("reading QEMU's state", Command::new("cat").arg(state))
}

fn print(rows: &[Row]) {
    println!("{:<52} {:>8} {:>8} {:>8}", "milliseconds, if nothing else is said", "median", "least", "most");
    let mut medians = Vec::new();
    for Row { name, times } in rows {
        let mut times = times.clone();
        times.sort_by(f64::total_cmp);
        let at = |place: usize| times.get(place).copied().unwrap_or(f64::NAN);
        let median = at(times.len() / 2);
        medians.push((*name, median));
        println!("{name:<52} {median:>8.1} {:>8.1} {:>8.1}", at(0), at(times.len().saturating_sub(1)));
    }
    let of =
        |begin: &str| medians.iter().find(|(name, _)| name.starts_with(begin)).map(|(_, median)| *median);
    if let (Some(qemu), Some(viv)) = (of("QEMU"), of("restore, to")) {
        println!("\nQEMU to viv, to the first output of the guest: {:.1}", qemu / viv);
    }
}
