//! Builds the guest agent: one small static binary that runs in any x86-64 Linux.
use std::path::{Path, PathBuf};
use std::process::Command;

/// The only target that guests have.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds it and gives its path, `<target directory>/<target>/agent/viv-agent`, where `viv` looks for it.
pub(crate) fn build(target_dir: &Path) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--package", "viv-agent", "--profile", "agent", "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status()
        .map_err(|error| format!("cannot start cargo: {error}"))?;
    let path = target_dir.join(TARGET).join("agent").join("viv-agent");
    if !status.success() || !path.is_file() {
        return Err("the guest agent was not built; see the messages above".to_string());
    }
    Ok(path)
}
