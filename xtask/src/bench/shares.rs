//! `cargo xtask bench --shares`: the package of Linux headers is untarred into a shared directory, beside QEMU with its virtiofsd.
//!
//! Both boot the same kernel and initial RAM disk, and get the same script on the serial console. The archive is in the guest's
//! memory before the clock starts. QEMU's other way, 9p, needs drivers that Debian's cloud kernel does not have.
use super::guest::{self, must};
use super::machine::{Kind, VM};
use super::options::Options;
use super::table;
use crate::install;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Debian's server for QEMU (package qemu-system-common).
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// The script's marks. The quotes keep the console's echo from looking like them.
const MARKS: [&str; 2] = ["untar-begins", "untar-ended"];
const SCRIPT: &str = "modprobe virtiofs; mkdir /data; mount -t virtiofs share0 /data; cat /dev/vda > /tmp/headers.tar; cd /data; \
                      echo untar-begin''s; tar -x -f /tmp/headers.tar; sync; echo untar-end''ed; poweroff -f\n";
/// What the shell of the guest says when it is there.
const SHELL: &str = "built-in shell";

struct Boot {
    kernel: PathBuf,
    initrd: PathBuf,
    append: String,
    archive: PathBuf,
    dir: PathBuf,
}

/// Measures and prints the medians.
pub(super) fn run(options: &Options) -> Result<(), String> {
    if options.peer {
        install::need("qemu-system-x86_64", "qemu-system-x86")?;
    }
    crate::steps::build()?;
    let boot = prepare()?;
    let mut times = [Vec::new(), Vec::new()];
    for round in 1..=options.runs {
        for (kind, place) in [(Kind::Qemu, 0), (Kind::Viv, 1)] {
            if kind == Kind::Viv || options.peer {
                let (time, files) = measure(&boot, kind)?;
                eprintln!(
                    "xtask: round {round} of {}: {}: {time:.1} s, {files} files",
                    options.runs,
                    kind.title()
                );
                times.get_mut(place).ok_or("no place for it")?.push(time);
            }
        }
    }
    let [qemu, viv] = times.map(|times| table::median(times).unwrap_or(f64::NAN));
    println!("untar of the Linux headers into a shared directory, s      QEMU      viv    ratio");
    println!("{:<53} {qemu:>9.1} {viv:>8.1} {:>8.2}", "virtio-fs", qemu / viv);
    Ok(())
}

fn prepare() -> Result<Boot, String> {
    let dir =
        std::path::absolute(crate::target_dir().join("bench/shares")).map_err(|error| error.to_string())?;
    fs::create_dir_all(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    let (kernel, initrd, append) = guest::default_guest(&dir)?;
    let archive = dir.join("headers.tar");
    let script = r#"
        set -eu
        [ ! -s "$1/headers.tar" ] || exit 0
        cd "$1"
        package=$(apt-cache depends linux-headers-cloud-amd64 | sed -n 's/.*Depends: \(linux-headers-.*\)-cloud-amd64$/\1-common/p')
        apt-get -qq download "$package"
        dpkg-deb --fsys-tarfile "$package"_*.deb > headers.tar
    "#;
    must("getting the Linux headers", Command::new("sh").args(["-c", script, "sh"]).arg(&dir))?;
    Ok(Boot { kernel, initrd, append, archive, dir })
}

fn command(boot: &Boot, shared: &Path, socket: &Path, kind: Kind) -> Command {
    if kind == Kind::Viv {
        let mut command = guest::viv(&["run", "--rm", "--accel", "soft", "--name", VM, "--memory", "1G"]);
        command
            .args(["--append", &boot.append, "--kernel"])
            .arg(&boot.kernel)
            .arg("--initrd")
            .arg(&boot.initrd);
        command.args(["--disk", &format!("{},ro,format=raw", boot.archive.display())]);
        command.args(["-v", &format!("{}:/data", shared.display())]);
        return command;
    }
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "1G", "-nodefaults"]);
    command.args(["-display", "none", "-serial", "stdio", "-no-reboot", "-append", &boot.append]);
    command.arg("-kernel").arg(&boot.kernel).arg("-initrd").arg(&boot.initrd);
    command.args([
        "-object",
        "memory-backend-memfd,id=ram,size=1G,share=on",
        "-machine",
        "memory-backend=ram",
    ]);
    command.arg("-drive").arg(format!("if=virtio,format=raw,readonly=on,file={}", boot.archive.display()));
    command.arg("-chardev").arg(format!("socket,id=share,path={}", socket.display()));
    command.args(["-device", "vhost-user-fs-pci,chardev=share,tag=share0"]);
    command
}

/// One boot with one untar: how long that took, and how many files there were.
fn measure(boot: &Boot, kind: Kind) -> Result<(f64, usize), String> {
    let (shared, socket) = (boot.dir.join("shared"), boot.dir.join("virtiofsd.sock"));
    let _ = fs::remove_dir_all(&shared);
    fs::create_dir_all(&shared).map_err(|error| format!("cannot make {}: {error}", shared.display()))?;
    let mut server = None;
    if kind == Kind::Qemu {
        let _ = fs::remove_file(&socket);
        let started = Command::new(VIRTIOFSD)
            .arg(format!("--socket-path={}", socket.display()))
            .args(["-o", &format!("source={}", shared.display()), "-o", "cache=auto"])
            .stderr(Stdio::null())
            .spawn();
        server = Some(started.map_err(|error| format!("cannot start {VIRTIOFSD}: {error}"))?);
        let begin = Instant::now();
        while !socket.exists() && begin.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let mut child = guest::spawn(&mut command(boot, &shared, &socket, kind))?;
    let time = follow(&mut child, kind);
    let _ = child.kill();
    let _ = child.wait();
    if let Some(mut server) = server {
        let _ = server.kill();
        let _ = server.wait();
    }
    let found = Command::new("find").arg(&shared).output().map_err(|error| error.to_string())?;
    Ok((time?, found.stdout.iter().filter(|byte| **byte == b'\n').count()))
}

fn follow(child: &mut Child, kind: Kind) -> Result<f64, String> {
    let mut input = child.stdin.take().ok_or("no console")?;
    let output = child.stdout.take().ok_or("no console")?;
    let (mut begin, mut last) = (None, String::new());
    for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim().to_string();
        if line.contains(SHELL) {
            // Before there is a reader, a serial line may lose what it gets.
            input
                .write_all(SCRIPT.as_bytes())
                .map_err(|error| format!("cannot write to the console: {error}"))?;
        } else if line == MARKS[0] {
            begin = Some(Instant::now());
        } else if let (true, Some(begin)) = (line == MARKS[1], begin) {
            return Ok(begin.elapsed().as_secs_f64());
        }
        last = line;
    }
    Err(format!("{}: the guest ended early; its console's last line: {last}", kind.title()))
}
