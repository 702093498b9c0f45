//! `cargo xtask bench`: our software CPU beside Debian's QEMU, in one run.
//!
//! Both boot the same kernel with the same initial RAM disk, whose init is `bench/loads.c`. It marks the begin and
//! end of each load on the console; at each mark the user and system time of the virtual machine's process is read.
//! Rounds alternate, and the medians are compared.
use crate::{install, steps, target_dir};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const ROUNDS: usize = 5;
const APPEND: &str = "console=ttyS0 quiet panic=-1 reboot=k mitigations=off cryptomgr.notests";
const VM: &str = "xtask-bench";

/// Wall and processor seconds by load, and its checksum.
type Times = BTreeMap<String, (f64, f64, String)>;

/// Runs the benchmark; `names` picks loads to print.
pub(crate) fn run(names: &[String]) -> Result<(), String> {
    install::need("qemu-system-x86_64", "qemu-system-x86")?;
    install::need("cc", "gcc")?;
    steps::build()?;
    let dir = target_dir().join("bench");
    fs::create_dir_all(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    let (kernel, initrd) = (kernel(&dir)?, initrd(&dir)?);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        eprintln!("xtask: round {round} of {ROUNDS}");
        ours.push(viv(&kernel, &initrd)?);
        theirs.push(qemu(&kernel, &initrd)?);
    }
    print(&ours, &theirs, names)?;
    idle()
}

fn viv_command(args: &[&str]) -> Command {
    let mut command = Command::new(target_dir().join("release/viv"));
    command.args(args).env("VIV_HOME", target_dir().join("bench-home")).stdin(Stdio::null());
    command
}

fn output(args: &[&str]) -> Result<String, String> {
    let output = viv_command(args).output().map_err(|error| format!("cannot start viv: {error}"))?;
    if !output.status.success() {
        return Err(format!("viv {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The text of a field in JSON that we print ourselves.
fn field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let rest = json.split(&format!("\"{name}\":")).nth(1)?.trim_start();
    Some(rest.split([',', '}', '\n']).next()?.trim().trim_matches('"'))
}

/// A copy of the default guest's kernel.
fn kernel(dir: &Path) -> Result<PathBuf, String> {
    output(&["rm", "-f", VM]).ok();
    output(&["run", "-d", "--accel", "soft", "--name", VM])?;
    let json = output(&["inspect", VM, "--json"])?;
    let copy = dir.join("kernel");
    let from = field(&json, "kernel").ok_or_else(|| format!("no kernel in {json}"))?;
    fs::copy(from, &copy).map_err(|error| format!("cannot copy {from}: {error}"))?;
    output(&["rm", "-f", VM])?;
    Ok(copy)
}

fn initrd(dir: &Path) -> Result<PathBuf, String> {
    install::need("cpio", "cpio")?;
    let root = dir.join("root");
    fs::create_dir_all(&root).map_err(|error| error.to_string())?;
    let compiled = Command::new("cc")
        .args(["-O2", "-march=x86-64-v2", "-static", "-o"])
        .arg(root.join("init"))
        .arg(crate::root().join("bench/loads.c"))
        .status();
    if !compiled.is_ok_and(|status| status.success()) {
        return Err("bench/loads.c does not compile".to_string());
    }
    let path = dir.join("initrd.cpio");
    let pack = format!("echo init | cpio -o -H newc --quiet > '{}'", path.display());
    let packed = Command::new("sh").args(["-c", &pack]).current_dir(&root).status();
    if packed.is_ok_and(|status| status.success()) { Ok(path) } else { Err("cpio failed".to_string()) }
}

fn viv(kernel: &Path, initrd: &Path) -> Result<Times, String> {
    let (kernel, initrd) = (kernel.display().to_string(), initrd.display().to_string());
    let mut command = viv_command(&[
        "run", "--rm", "--accel", "soft", "--name", VM, "--memory", "512M", "--kernel", &kernel, "--initrd",
        &initrd, "--append", APPEND,
    ]);
    measure(&mut command, |_| {
        let json = output(&["inspect", VM, "--json"]).ok()?;
        field(&json, "pid")?.parse().ok()
    })
}

fn qemu(kernel: &Path, initrd: &Path) -> Result<Times, String> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults", "-display", "none"])
        .args(["-serial", "stdio", "-no-reboot", "-append", APPEND, "-kernel"])
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null());
    measure(&mut command, |child| Some(child.id()))
}

/// Runs a machine and reads its clock at each mark; `process` finds the process that does the work.
fn measure(command: &mut Command, process: impl Fn(&Child) -> Option<u32>) -> Result<Times, String> {
    let start = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
    let output = child.stdout.take().ok_or("no output")?;
    let (mut times, mut begun, mut pid) = (Times::new(), (0.0, 0.0), None);
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim().to_string();
        let words: Vec<&str> = line.split_whitespace().collect();
        pid = pid.or_else(|| process(&child));
        let now = (start.elapsed().as_secs_f64(), pid.and_then(cpu_seconds).unwrap_or(0.0));
        match words[..] {
            ["begin", _] => begun = now,
            ["end", name, sum] => {
                times.insert(name.to_string(), (now.0 - begun.0, now.1 - begun.1, sum.to_string()));
            }
            _ => {}
        }
    }
    let _ = child.wait();
    if times.is_empty() { Err(format!("{:?} printed no marks", command.get_program())) } else { Ok(times) }
}

/// User and system time of a process.
fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    Some((fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?) / 100.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn print(ours: &[Times], theirs: &[Times], names: &[String]) -> Result<(), String> {
    let first = ours.first().ok_or("no rounds")?;
    println!(
        "medians of {ROUNDS} alternating rounds; ratio: how many times faster than QEMU TCG (processor time)"
    );
    println!(
        "{:<10} {:>9} {:>9} {:>9} {:>9} {:>7}",
        "load", "viv wall", "qemu wall", "viv cpu", "qemu cpu", "ratio"
    );
    let mut logs = Vec::new();
    for (name, (_, _, sum)) in first {
        if !names.is_empty() && !names.contains(name) {
            continue;
        }
        let column = |rounds: &[Times], cpu: bool| {
            median(
                rounds
                    .iter()
                    .filter_map(|times| times.get(name))
                    .map(|t| if cpu { t.1 } else { t.0 })
                    .collect(),
            )
        };
        if theirs.iter().chain(ours).any(|times| times.get(name).is_some_and(|t| t.2 != *sum)) {
            return Err(format!("the machines disagree on the result of {name}"));
        }
        let ratio = column(theirs, true) / column(ours, true);
        logs.push(ratio.ln());
        println!(
            "{name:<10} {:>8.2}s {:>8.2}s {:>8.2}s {:>8.2}s {ratio:>7.2}",
            column(ours, false),
            column(theirs, false),
            column(ours, true),
            column(theirs, true)
        );
    }
    println!("geometric mean of the ratios: {:.2}", (logs.iter().sum::<f64>() / logs.len() as f64).exp());
    Ok(())
}

/// What a VM costs that does nothing.
fn idle() -> Result<(), String> {
    let start = Instant::now();
    output(&["run", "-d", "--accel", "soft", "--name", VM])?;
    output(&["exec", VM, "true"])?;
    println!("default guest, from the command to its first answer: {:.1} s", start.elapsed().as_secs_f64());
    std::thread::sleep(std::time::Duration::from_secs(3));
    let json = output(&["inspect", VM, "--json"])?;
    let pid: u32 = field(&json, "pid").and_then(|pid| pid.parse().ok()).ok_or("no pid")?;
    let before = cpu_seconds(pid).ok_or("the runner is gone")?;
    std::thread::sleep(std::time::Duration::from_secs(10));
    let used = cpu_seconds(pid).ok_or("the runner is gone")? - before;
    output(&["rm", "-f", VM])?;
    println!("idle default guest: {:.1} % of a core", used * 10.0);
    Ok(())
}
