//! An ext4 disk image from a tree, by the e2fsprogs that are in the tree: whatever the host has or has not, the file
//! system is the distribution's own.
use super::tree::Tree;
use crate::images::Watcher;
use crate::images::fault::{cancelled, io_fault};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use viv_model::{Fault, Kind};

/// The dynamic linker and the libraries of amd64.
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Makes the file system in a new sparse file.
pub(super) fn make(tree: &Tree, disk: &Path, mib: u64, watcher: &dyn Watcher) -> Result<(), Fault> {
    let file = File::create(disk).map_err(io_fault("make", disk))?;
    file.set_len(mib.saturating_mul(1 << 20)).map_err(io_fault("make", disk))?;
    drop(file);
    let mut command = program(tree, "usr/sbin/mke2fs");
    command.env("MKE2FS_CONFIG", tree.root().join("etc/mke2fs.conf"));
    // Without lazy initialisation: the guest would spend its first minutes on zeroing tables that are zeros.
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", "viv-root"]);
    command.args(["-E", "root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0", "-d"]);
    command.arg(tree.root()).arg(disk);
    run(command, "mke2fs")?;
    if watcher.cancelled() {
        return Err(cancelled());
    }
    give_owners(tree, disk)
}

/// Gives every inode the owner and the mode that its file on this host could not have.
fn give_owners(tree: &Tree, disk: &Path) -> Result<(), Fault> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut script = String::new();
    for (path, wish) in tree.wishes() {
        let path = path.replace('"', "\"\"");
        if wish.uid != uid {
            script.push_str(&format!("sif \"/{path}\" uid {}\n", wish.uid));
        }
        if wish.gid != gid {
            script.push_str(&format!("sif \"/{path}\" gid {}\n", wish.gid));
        }
        // On this host its owner can always read and write it.
        if wish.mode != 0 && wish.mode & 0o600 != 0o600 || wish.mode & 0o040700 == 0o040600 {
            script.push_str(&format!("sif \"/{path}\" mode 0{:o}\n", wish.mode));
        }
    }
    if script.is_empty() {
        return Ok(());
    }
    let commands = disk.with_extension("debugfs");
    fs::write(&commands, script).map_err(io_fault("write", &commands))?;
    let mut command = program(tree, "usr/sbin/debugfs");
    command.arg("-w").arg("-f").arg(&commands).arg(disk);
    let result = run(command, "debugfs");
    let _ = fs::remove_file(&commands);
    result
}

/// Looks whether the file system is whole, and mends what a mount leaves open.
pub(super) fn check(tree: &Tree, disk: &Path) -> Result<(), Fault> {
    let mut command = program(tree, "usr/sbin/e2fsck");
    command.args(["-f", "-p"]).arg(disk);
    let output = output(command, "e2fsck")?;
    // 1: errors were corrected (e2fsck(8)).
    if matches!(output.status.code(), Some(0 | 1)) { Ok(()) } else { Err(failed("e2fsck", &output)) }
}

/// A program of the tree, run by the tree's own dynamic linker.
fn program(tree: &Tree, path: &str) -> Command {
    let mut command = Command::new(tree.root().join(LOADER));
    command.arg("--library-path").arg(tree.root().join(LIBRARIES)).arg(tree.root().join(path));
    command.env("LC_ALL", "C").env_remove("LD_PRELOAD").env_remove("LD_LIBRARY_PATH").stdin(Stdio::null());
    command
}

fn output(mut command: Command, name: &str) -> Result<std::process::Output, Fault> {
    command.output().map_err(|error| {
        Fault::new(
            Kind::Error,
            format!("cannot run the distribution's {name}: {error}"),
            "is the image store on a file system from which programs may run, on an x86-64 host?",
        )
    })
}

fn run(command: Command, name: &str) -> Result<(), Fault> {
    let output = output(command, name)?;
    if output.status.success() { Ok(()) } else { Err(failed(name, &output)) }
}

fn failed(name: &str, output: &std::process::Output) -> Fault {
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
    let full = text.contains("No space left") || text.contains("Could not allocate block");
    let (kind, fix) = if full {
        (Kind::NoCapacity, "free some space on the host, or give the disk more MiB")
    } else {
        (Kind::Error, "run the build again; if it stays so, report it")
    };
    Fault::new(kind, format!("the distribution's {name} failed ({}): {line}", output.status), fix)
}
