//! The fuzz targets: builds all of them and runs each for a bounded number of executions.
use crate::{root, target_dir};
use std::fs;
use std::process::{Command, Stdio};
use std::time::Instant;

/// Executions of a target in the nightly form, and bytes of its longest input. Others get [`OTHER`].
const LIMITS: &[(&str, u64, u32)] = &[
    ("guest_code", 1_000_000, 800),
    ("board_access", 1_000_000, 2000),
    ("virtqueue", 1_000_000, 2000),
    ("emitter", 1_000_000, 2000),
    ("block_finder", 1_000_000, 600),
    ("kernel_file", 200_000, 8192),
    ("deb_package", 200_000, 8192),
    // Each input is a file that is written, used and checked.
    ("disk_qcow2", 10_000, 300),
    ("disk_vmdk", 50_000, 300),
    ("disk_vdi", 20_000, 300),
    ("disk_vhd", 20_000, 300),
    ("disk_vhdx", 5_000, 300),
    ("disk_layers", 20_000, 300),
    ("snapshot_files", 100_000, 1000),
    ("layer_archive", 300_000, 8192),
    ("layer_index", 300_000, 2000),
    ("guest_disk", 20_000, 1000),
    ("upper_disk", 100_000, 1000),
    ("machine_backup", 300_000, 4096),
    // Each input is compiled, and has a directory of its own.
    ("wasm_program", 20_000, 300),
    // The same, and what goes on is compiled.
    ("wasm_saved", 20_000, 300),
    // Each input is a call on a chain.
    ("evm_request", 300_000, 4096),
];
const OTHER: (u64, u32) = (1_000_000, 4096);

/// Seconds that one input may take, and MiB.
const TIMEOUT_S: u32 = 30;
const MEMORY_MIB: u32 = 4096;

/// `cargo xtask fuzz [TARGET [EXECUTIONS]]`.
pub(crate) fn run(args: &[String]) -> Result<(), String> {
    let targets = targets()?;
    let only = args.first();
    let runs = args.get(1).map(|text| text.parse::<u64>().map_err(|_| format!("{text:?} is no number")));
    let runs = runs.transpose()?;
    if let Some(only) = only.filter(|only| !targets.contains(only)) {
        return Err(format!("no target is called {only:?}; there are: {}", targets.join(", ")));
    }
    install()?;
    for target in targets.iter().filter(|target| only.is_none_or(|only| only == *target)) {
        one(target, runs)?;
    }
    Ok(())
}

/// The targets are the files in `fuzz/fuzz_targets`.
fn targets() -> Result<Vec<String>, String> {
    let dir = root().join("fuzz/fuzz_targets");
    let files = fs::read_dir(&dir).map_err(|error| format!("cannot read {}: {error}", dir.display()))?;
    let mut names: Vec<String> = files
        .flatten()
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".rs")?.to_string()))
        .collect();
    names.sort();
    Ok(names)
}

fn install() -> Result<(), String> {
    let there = Command::new("cargo")
        .args(["fuzz", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if there.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    eprintln!("xtask: install cargo-fuzz");
    let installed = Command::new("cargo").args(["install", "--locked", "cargo-fuzz"]).status();
    match installed {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err("cargo-fuzz was not installed; see the messages above".to_string()),
        Err(error) => Err(format!("cannot start cargo: {error}")),
    }
}

fn one(target: &str, runs: Option<u64>) -> Result<(), String> {
    let known = LIMITS.iter().find(|(name, ..)| *name == target).map(|(_, runs, len)| (*runs, *len));
    let (usual, len) = known.unwrap_or(OTHER);
    let runs = runs.unwrap_or(usual);
    eprintln!("xtask: fuzz {target}: {runs} executions");
    let start = Instant::now();
    // A stable toolchain takes the flags of a nightly one with this variable. The sanitizer would halve the speed;
    // guard pages find wild accesses to guest memory without it.
    let status = Command::new("cargo")
        .current_dir(root().join("fuzz"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", target_dir().join("fuzz"))
        .args(["fuzz", "run", "--sanitizer", "none", "--codegen-units", "16", target, "--"])
        .args([format!("-runs={runs}"), format!("-max_len={len}"), "-len_control=0".to_string()])
        .args([format!("-timeout={TIMEOUT_S}"), format!("-rss_limit_mb={MEMORY_MIB}")])
        .status()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    eprintln!("xtask: fuzz {target}: {:.0} s", start.elapsed().as_secs_f64());
    if status.success() {
        Ok(())
    } else {
        Err(format!("{target} has a finding: fuzz/artifacts/{target} has its input; see fuzz/README.md"))
    }
}
