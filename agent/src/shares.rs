//! Directories of the host: mounted where the kernel's command line says.
use crate::{say, sys};
use std::fs;
use std::process::Command;
use viv_model::ShareMount;

/// The file system's name.
const KIND: &str = "virtiofs";

/// Loads the driver, while its module is within reach: a disk that becomes the root may not have it.
pub(crate) fn load_driver(shares: &[ShareMount]) {
    if shares.is_empty() || is_known() {
        return;
    }
    let loaded = Command::new("/sbin/modprobe").arg(KIND).status();
    if !is_known() {
        let why = loaded.map_or_else(|error| error.to_string(), |status| status.to_string());
        say(format_args!("this kernel cannot use directories of the host: modprobe {KIND}: {why}"));
    }
}

/// Whether the kernel has the file system already.
fn is_known() -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known.lines().any(|line| line.ends_with(&format!("\t{KIND}")))
}

/// Mounts them. Programs of the host that run as their owner do not do so here, and devices are none.
pub(crate) fn mount(shares: &[ShareMount]) {
    for share in shares {
        let read_only = if share.read_only { libc::MS_RDONLY } else { 0 };
        let flags = libc::MS_NOSUID | libc::MS_NODEV | read_only;
        // What is in the way, or a read-only root, shows when it is mounted.
        let _ = fs::create_dir_all(&share.target);
        if let Err(error) = sys::mount(&share.tag, &share.target, KIND, flags, "") {
            say(format_args!("cannot mount the host's directory {} on {}: {error}", share.tag, share.target));
        }
    }
}
