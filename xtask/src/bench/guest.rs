//! The kernel and the userland that both machines boot: `bench/*.c`, with libraries and programs of Debian's packages.
//! The packages are fetched through the host's apt and unpacked aside; nothing is installed but compiler and QEMU.
use super::machine::VM;
use crate::{install, steps, target_dir};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::SystemTime;

const PACKAGES: &[&str] = &[
    "busybox-static",
    "gzip",
    "xz-utils",
    "liblzma5",
    "libc6",
    "liblua5.4-dev",
    "libluajit-5.1-dev",
    "libsqlite3-dev",
];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
/// Where each file of the userland comes from among the packages' files.
const COPIES: &[(&str, &str)] = &[
    ("bin/busybox", "bin/busybox"),
    ("bin/gzip", "bin/gzip"),
    ("usr/bin/xz", "bin/xz"),
    ("lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "lib/ld-linux-x86-64.so.2"),
    ("lib/x86_64-linux-gnu/libc.so.6", "lib/libc.so.6"),
    ("lib/x86_64-linux-gnu/liblzma.so.5", "lib/liblzma.so.5"),
];
/// What the script calls, beside the shell's own commands.
const APPLETS: &[&str] = &[
    "awk", "basename", "cat", "cut", "dirname", "expr", "grep", "ls", "mkdir", "rm", "sed", "seq", "sort",
    "tail", "tr", "wc",
];
const SCRIPTS: &[&str] = &["interpreted.lua", "jitted.lua", "script.sh"];

/// What a machine boots.
pub(super) struct Userland {
    pub(super) dir: PathBuf,
    pub(super) kernel: PathBuf,
    /// The userland as a directory, for the bare CPU.
    pub(super) root: PathBuf,
    /// The same as an initial RAM disk.
    pub(super) initrd: PathBuf,
    /// Its init alone.
    pub(super) boot_initrd: PathBuf,
}

/// Builds all of it, and viv.
pub(super) fn prepare(peer: bool) -> Result<Userland, String> {
    install::need("cc", "gcc")?;
    install::need("cpio", "cpio")?;
    install::need("xz", "xz-utils")?;
    if peer {
        install::need("qemu-system-x86_64", "qemu-system-x86")?;
    }
    steps::build()?;
    let dir = target_dir().join("bench");
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    make_dir(&dir)?;
    let packages = packages(&dir)?;
    let (root, initrd, boot_initrd) = (dir.join("root"), dir.join("initrd.cpio"), dir.join("boot.cpio"));
    if newest(&crate::root().join("bench")).max(modified(&packages)) >= modified(&boot_initrd) {
        eprintln!("xtask: building the userland");
        fill(&root, &packages)?;
        pack(&root, ".", &initrd)?;
        pack(&root, "init", &boot_initrd)?;
    }
    Ok(Userland { kernel: kernel(&dir)?, dir, root, initrd, boot_initrd })
}

fn make_dir(dir: &Path) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).and_then(|about| about.modified()).unwrap_or(SystemTime::UNIX_EPOCH)
}

fn newest(dir: &Path) -> SystemTime {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| modified(&entry.path())).max().unwrap_or(SystemTime::now())
}

/// Runs a command that must succeed.
pub(super) fn must(what: &str, command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{what}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{what} failed:\n{}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// The files of the packages.
fn packages(dir: &Path) -> Result<PathBuf, String> {
    let (archives, files) = (dir.join("packages"), dir.join("sysroot"));
    if files.is_dir() {
        return Ok(files);
    }
    eprintln!("xtask: fetching {}", PACKAGES.join(" "));
    make_dir(&archives)?;
    must(
        "fetching packages with apt (is there a network? have you run: apt-get update?)",
        Command::new("apt-get").args(["-qq", "download"]).args(PACKAGES).current_dir(&archives),
    )?;
    let unpacked = dir.join("sysroot.new");
    for archive in fs::read_dir(&archives).map_err(|error| error.to_string())?.flatten() {
        must("dpkg-deb", Command::new("dpkg-deb").arg("-x").arg(archive.path()).arg(&unpacked))?;
    }
    fs::rename(&unpacked, &files).map_err(|error| format!("cannot make {}: {error}", files.display()))?;
    Ok(files)
}

/// The userland's directory.
fn fill(root: &Path, packages: &Path) -> Result<(), String> {
    let _ = fs::remove_dir_all(root);
    for part in ["bin", "lib", "data"] {
        make_dir(&root.join(part))?;
    }
    let copy = |from: &Path, to: &str| {
        fs::copy(from, root.join(to)).map(|_| ()).map_err(|error| format!("{}: {error}", from.display()))
    };
    COPIES.iter().try_for_each(|(from, to)| copy(&packages.join(from), to))?;
    let bench = crate::root().join("bench");
    SCRIPTS.iter().try_for_each(|name| copy(&bench.join(name), &format!("data/{name}")))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet))
            .map_err(|error| error.to_string())?;
    }
    let include = packages.join("usr/include");
    let archive = |name: &str| packages.join(LIBRARIES).join(name);
    let compile = |to: &str, sources: &[&str], headers: &str, library: Option<PathBuf>| {
        let mut command = Command::new("cc");
        command.args(["-O2", "-march=x86-64-v2", "-static", "-Wall", "-Wextra", "-o"]).arg(root.join(to));
        command.arg("-I").arg(include.join(headers)).arg("-I").arg(include.join("x86_64-linux-gnu"));
        command.args(sources).args(library).args(["-lm", "-lpthread", "-ldl"]).current_dir(&bench);
        must(&format!("compiling {}", sources.join(" ")), &mut command)
    };
    let init = ["main.c", "compute.c", "numbers.c", "memory.c", "kernel.c", "programs.c"];
    compile("init", &init, "", None)?;
    compile("bin/lua", &["lua.c"], "lua5.4", Some(archive("liblua5.4.a")))?;
    compile("bin/luajit", &["lua.c"], "luajit-2.1", Some(archive("libluajit-5.1.a")))?;
    compile("bin/sqlite", &["sqlite.c"], "", Some(archive("libsqlite3.a")))?;
    must(
        "packing the text",
        Command::new("sh").args(["-c", "./init text | xz -9 > data/text.xz"]).current_dir(root),
    )
}

fn pack(root: &Path, what: &str, to: &Path) -> Result<(), String> {
    let script = format!("find {what} | LC_ALL=C sort | cpio -o -H newc --quiet > '{}'", to.display());
    must("cpio", Command::new("sh").args(["-c", &script]).current_dir(root))
}

/// A copy of the default guest's kernel, kept as long as that image is the newest.
fn kernel(dir: &Path) -> Result<PathBuf, String> {
    viv_output(&["build", "default"])?;
    let images = viv_output(&["images", "--json"])?;
    let digest = field(&images, "digest").unwrap_or("unknown");
    let copy = dir.join(format!("kernel-{}", digest.get(..16).unwrap_or(digest)));
    if copy.is_file() {
        return Ok(copy);
    }
    let _ = viv_output(&["rm", "-f", super::machine::VM]);
    viv_output(&["run", "-d", "--accel", "soft", "--name", super::machine::VM])?;
    let json = viv_output(&["inspect", super::machine::VM, "--json"])?;
    let from = field(&json, "kernel").ok_or_else(|| format!("no kernel in {json}"))?;
    fs::copy(from, &copy).map_err(|error| format!("cannot copy {from}: {error}"))?;
    viv_output(&["rm", "-f", super::machine::VM])?;
    Ok(copy)
}

/// A call of our binary, with its own state.
pub(super) fn viv(args: &[&str]) -> Command {
    let mut command = Command::new(target_dir().join("release/viv"));
    command.args(args).env("VIV_HOME", target_dir().join("bench-home")).stdin(Stdio::null());
    command
}

/// What it prints.
pub(super) fn viv_output(args: &[&str]) -> Result<String, String> {
    let output = viv(args).output().map_err(|error| format!("cannot start viv: {error}"))?;
    if !output.status.success() {
        return Err(format!("viv {} failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where a benchmark has its files, from the root.
pub(super) fn bench_dir() -> Result<PathBuf, String> {
    let dir = target_dir().join("bench");
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    make_dir(&dir)?;
    Ok(dir)
}

/// A disk with a program of this host and its libraries, for a guest that changes its root to it.
pub(super) fn disk_with(program: &str, dir: &Path) -> Result<PathBuf, String> {
    let disk = dir.join(format!("{program}.ext4"));
    let script = r#"
        set -eu
        rm -rf "$2" "$3"
        for file in $(command -v "$1") $(ldd "$(command -v "$1")" | grep -o '/[^ ]*'); do
            mkdir -p "$2$(dirname "$file")"
            cp -L "$file" "$2$file"
        done
        mkdir -p "$2/dev" "$2/tmp" "$2/proc" "$2/sys" "$2/etc"
        mke2fs -q -t ext4 -d "$2" "$3" 100M
    "#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh", program]).arg(dir.join(program)).arg(&disk);
    must(&format!("making a disk with {program}"), &mut command)?;
    Ok(disk)
}

/// Starts a machine whose console is its standard input and output.
pub(super) fn spawn(command: &mut Command) -> Result<Child, String> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))
}

/// The lines of a console, as they come.
pub(super) fn lines(output: ChildStdout) -> mpsc::Receiver<String> {
    let (to, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if to.send(String::from_utf8_lossy(&line).trim().to_string()).is_err() {
                return;
            }
        }
    });
    lines
}

/// Kernel, initial RAM disk and command line of the default guest, for machines beside ours.
pub(super) fn default_guest(dir: &Path) -> Result<(PathBuf, PathBuf, String), String> {
    viv_output(&["build", "default"])?;
    let _ = viv_output(&["rm", "-f", VM]);
    viv_output(&["run", "-d", "--accel", "soft", "--name", VM])?;
    let json = viv_output(&["inspect", VM, "--json"])?;
    let copy = |name: &str| {
        let from = field(&json, name).ok_or_else(|| format!("no {name} in {json}"))?;
        let to = dir.join(format!("default-{name}"));
        fs::copy(from, &to).map_err(|error| format!("cannot copy {from}: {error}")).map(|_| to)
    };
    let (kernel, initrd) = (copy("kernel")?, copy("initrd")?);
    let append = field(&json, "append").ok_or("no command line")?.to_string();
    viv_output(&["rm", "-f", VM])?;
    Ok((kernel, initrd, append))
}

/// The process that runs a VM.
pub(super) fn runner(name: &str) -> Option<u32> {
    let json = viv_output(&["inspect", name, "--json"]).ok()?;
    field(&json, "pid")?.parse().ok()
}

/// The text of a field in JSON that we print ourselves.
pub(super) fn field<'a>(json: &'a str, name: &str) -> Option<&'a str> {
    let rest = json.split(&format!("\"{name}\":")).nth(1)?.trim_start();
    Some(rest.split([',', '}', '\n']).next()?.trim().trim_matches('"'))
}
