//! `cargo xtask bench`: our software CPU beside Debian's QEMU, in one run.

/// Runs the benchmark.
pub(crate) fn run(_names: &[String]) -> Result<(), String> {
    Err("not yet".to_string())
}
