//! A full Debian with systemd on both machines, for the memory that they take beside the guest's.
use super::machine::{self, Kind, VM};
use super::options::Options;
use super::{Results, guest};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the results call it.
pub(super) const DEBIAN: &str = "debian";

/// Copies of what our image boots.
pub(super) struct Debian {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) append: String,
    pub(super) disk: PathBuf,
}

/// Boots it on both, and adds what was measured to the results.
pub(super) fn measure(dir: &Path, options: &Options, results: &mut Results) -> Result<(), String> {
    eprintln!("xtask: a full Debian");
    let debian = prepare(&dir.join("debian"))?;
    results.viv.push(machine::debian(&debian, options, Kind::Viv)?);
    if options.peer {
        results.peer.push(machine::debian(&debian, options, Kind::Qemu)?);
    }
    let _ = fs::remove_file(&debian.disk);
    Ok(())
}

fn prepare(dir: &Path) -> Result<Debian, String> {
    guest::viv_output(&["build", "debian"])?;
    let _ = guest::viv_output(&["rm", "-f", VM]);
    guest::viv_output(&["run", "-d", "--accel", "soft", "--name", VM, "debian"])?;
    let json = guest::viv_output(&["inspect", VM, "--json"])?;
    guest::viv_output(&["kill", VM])?;
    fs::create_dir_all(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
    let copy = |name: &str| {
        let from = guest::field(&json, name).ok_or_else(|| format!("no {name} in {json}"))?;
        let to = dir.join(name);
        let mut command = Command::new("cp");
        guest::must("cp", command.args(["--sparse=always", from]).arg(&to)).map(|()| to)
    };
    let debian = Debian {
        kernel: copy("kernel")?,
        initrd: copy("initrd")?,
        append: guest::field(&json, "append").ok_or("no command line")?.to_string(),
        disk: copy("path")?,
    };
    guest::viv_output(&["rm", "-f", VM])?;
    Ok(debian)
}
