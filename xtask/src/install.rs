//! What a chore needs from the host, installed where we may.
use std::process::Command;

/// Makes sure that `program` is there, from Debian's `package`.
pub(crate) fn need(program: &str, package: &str) -> Result<(), String> {
    if found(program) {
        return Ok(());
    }
    eprintln!("xtask: installing {package}");
    let apt = |args: &[&str]| {
        let mut command = if is_root() { Command::new("apt-get") } else { Command::new("sudo") };
        if !is_root() {
            command.args(["-n", "apt-get"]);
        }
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(args)
            .status()
            .is_ok_and(|status| status.success())
    };
    let wanted = ["install", "-y", "-qq", "--no-install-recommends", package];
    if apt(&wanted) || (apt(&["update", "-qq"]) && apt(&wanted)) && found(program) {
        return Ok(());
    }
    Err(format!("{program} is missing and could not be installed; run: apt-get install {package}"))
}

fn found(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':').chain(["/usr/sbin", "/sbin"]).any(|dir| std::path::Path::new(dir).join(program).is_file())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}
