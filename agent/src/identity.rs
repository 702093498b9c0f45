//! Who the guest is, wherever its programs look it up, after it was copied from another one.
use crate::{root, sys};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use viv_api::agent::Identity;

/// The kernel makes it when it is first read, and never again (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// machine-id(5), and where D-Bus had it before.
const MACHINE_IDS: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];
/// Digits of a machine's identity. A file without them is filled at the first boot.
const MACHINE_ID_LEN: usize = 32;
/// Where our files are that are mounted over others.
const OURS: &str = "/run/viv";

/// Bears it from now on; the first failure is told.
pub(crate) fn take(identity: &Identity) -> io::Result<()> {
    fs::create_dir_all(OURS)?;
    let ours = |name: &str| File::create(Path::new(OURS).join(name));
    let (boot, machine) = (ours("boot-id")?, ours("machine-id")?);
    // Links in the guest's root are followed there.
    let inside = || {
        root::enter()?;
        let has_one =
            |path: &&str| fs::read_to_string(path).is_ok_and(|known| known.trim().len() == MACHINE_ID_LEN);
        let mut machine_ids = MACHINE_IDS.iter().copied().filter(has_one);
        machine_ids.try_for_each(|path| show(&identity.machine_id, path, &machine)).and(show(
            &identity.boot_id,
            BOOT_ID,
            &boot,
        ))
    };
    let done = std::thread::scope(|scope| scope.spawn(inside).join());
    done.unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
}

/// Has a file say this: itself if it can be written, another one over it if not.
fn show(id: &str, path: &str, over: &File) -> io::Result<()> {
    let text = format!("{id}\n");
    if fs::write(path, &text).is_ok() {
        return Ok(());
    }
    let ours = format!("/proc/self/fd/{}", over.as_raw_fd());
    fs::write(&ours, &text)?;
    sys::mount(&ours, path, "", libc::MS_BIND, "")
}
