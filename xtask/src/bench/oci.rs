//! `cargo xtask bench --oci`: a layer of an image becomes a root file system, beside `umoci unpack` as root.
//!
//! The layer is this host's own: some 140 MB of documents, programs and libraries, gzip'd by umoci. Both read and check the same layout. umoci
//! writes files and a manifest of them (mtree) into a directory; we write data blobs and an EROFS. The rounds alternate.
use super::guest::must;
use super::options::Options;
use super::table::median;
use crate::{install, root, target_dir};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// What the layer has, as far as the host has it, up to so many bytes.
const SOURCES: [&str; 6] = [
    "usr/share/doc",
    "usr/share/perl",
    "usr/sbin",
    "usr/share/locale",
    "usr/bin",
    "usr/lib/x86_64-linux-gnu",
];
const BYTES_MAX: u64 = 140 << 20;
/// How many times as fast as umoci we want to be.
const TARGET: f64 = 1.5;

pub(super) fn run(options: &Options) -> Result<(), String> {
    install::need("umoci", "umoci")?;
    let dir = std::env::temp_dir().join(format!("viv-bench-oci-{}", std::process::id()));
    let measured = measure(&dir, options.runs);
    let _ = fs::remove_dir_all(&dir);
    measured
}

fn measure(dir: &Path, runs: usize) -> Result<(), String> {
    must(
        "the build",
        Command::new(env!("CARGO")).current_dir(root()).args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "viv-rootfs",
            "--example",
            "rootfs_disk",
        ]),
    )?;
    fs::create_dir_all(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    let layer = image(dir)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=runs {
        eprintln!("xtask: round {round} of {runs}");
        let out = dir.join("ours");
        let program = target_dir().join("release/examples/rootfs_disk");
        ours.push(timed("rootfs_disk", Command::new(program).arg(&out).arg(&layer))?);
        remove(&out)?;
        let out = dir.join("theirs");
        theirs.push(timed("umoci unpack", umoci(dir, "unpack").arg(&out))?);
        remove(&out)?;
    }
    let spread = |values: &[f64]| {
        let most = values.iter().copied().fold(0.0, f64::max);
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        format!("{least:.2} to {most:.2} s")
    };
    let (our_spread, their_spread) = (spread(&ours), spread(&theirs));
    let (Some(ours), Some(theirs)) = (median(ours), median(theirs)) else {
        return Err("nothing was measured".to_string());
    };
    let ratio = theirs / ours;
    println!("umoci unpack: {theirs:.2} s ({their_spread}); data blob and EROFS: {ours:.2} s ({our_spread})");
    println!("{ratio:.2} times as fast (target {TARGET}): {}", if ratio >= TARGET { "met" } else { "no" });
    super::containers::run(dir, runs)
}

/// Makes the image; its layer's file.
fn image(dir: &Path) -> Result<PathBuf, String> {
    let list = dir.join("files");
    let mut names = String::new();
    let mut bytes = 0;
    for source in SOURCES {
        collect(&Path::new("/").join(source), &mut names, &mut bytes);
    }
    fs::write(&list, names).map_err(|error| format!("cannot write {}: {error}", list.display()))?;
    let tar = dir.join("layer.tar");
    let mut command = Command::new("tar");
    command.args(["--directory=/", "--no-recursion", "--sort=name", "--create", "--file"]).arg(&tar);
    must("tar", command.arg("--files-from").arg(&list))?;
    must("umoci init", Command::new("umoci").arg("init").arg("--layout").arg(dir.join("image")))?;
    must("umoci new", &mut umoci(dir, "new"))?;
    let mut add = Command::new("umoci");
    add.args(["raw", "add-layer", "--image"]).arg(name(dir));
    must("umoci raw add-layer", add.arg(&tar))?;
    let blobs = dir.join("image/blobs/sha256");
    let blobs = fs::read_dir(&blobs).map_err(|error| format!("cannot read {}: {error}", blobs.display()))?;
    let size = |path: &PathBuf| fs::metadata(path).map_or(0, |data| data.len());
    let layer = blobs.flatten().map(|entry| entry.path()).max_by_key(size).ok_or("the image has no layer")?;
    println!("a layer of {} MB, {} MB as gzip", size(&tar) / 1_000_000, size(&layer) / 1_000_000);
    Ok(layer)
}

/// Names of files and directories under `path`, until there are enough bytes of them.
fn collect(path: &Path, names: &mut String, bytes: &mut u64) {
    let Ok(data) = fs::symlink_metadata(path) else { return };
    let Some(name) = path.to_str().filter(|name| !name.contains('\n')) else { return };
    if *bytes >= BYTES_MAX {
        return;
    }
    names.push_str(name.trim_start_matches('/'));
    names.push('\n');
    if data.is_dir() {
        let mut entries: Vec<PathBuf> =
            fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for entry in entries {
            collect(&entry, names, bytes);
        }
    } else {
        *bytes += data.len();
    }
}

fn name(dir: &Path) -> String {
    format!("{}:bench", dir.join("image").display())
}

fn umoci(dir: &Path, verb: &str) -> Command {
    let mut command = Command::new("umoci");
    command.args([verb, "--image"]).arg(name(dir));
    command
}

/// Seconds of a command; what earlier rounds left to be written to disk is not counted.
fn timed(what: &str, command: &mut Command) -> Result<f64, String> {
    must("sync", &mut Command::new("sync"))?;
    let started = Instant::now();
    must(what, command)?;
    Ok(started.elapsed().as_secs_f64())
}

fn remove(path: &Path) -> Result<(), String> {
    fs::remove_dir_all(path).map_err(|error| format!("cannot remove {}: {error}", path.display()))
}
