//! The step before a disk's own init: mount the disk, leave the agent and its service in `/run`, and make way.
use crate::setup::Wishes;
use crate::{say, shares, sys};
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a disk may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(10);
/// Where the disk is mounted before it becomes the root.
const NEW_ROOT: &str = "/newroot";
/// Where the running guest finds the agent that its host gave it.
const AGENT: &str = "/run/viv/agent";

/// A service that lives in `/run`, so that the disk need not know of us and always gets the host's agent.
const SERVICE: &str = "[Unit]
Description=Vivarium guest agent
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/run/viv/agent serve
Restart=always
RestartSec=1
KillMode=mixed
OOMScoreAdjust=-900
";

/// Makes the disk the root and starts its init in our place. Returns only if it cannot, or if there is a task to
/// run on the disk instead.
pub(crate) fn enter(device: &str, wishes: &Wishes) -> io::Result<()> {
    wait_for(device)?;
    fs::create_dir_all(NEW_ROOT)?;
    mount_root(device, wishes)?;
    let init = wishes.init.as_deref().unwrap_or("/sbin/init");
    // Links are followed only inside the new root; here only its presence counts.
    if wishes.task.is_none() && fs::symlink_metadata(format!("{NEW_ROOT}{init}")).is_err() {
        return Err(io::Error::new(io::ErrorKind::NotFound, format!("it has no {init}")));
    }
    if let Err(error) = leave_agent() {
        say(format_args!("the disk will have no agent: {error}"));
    }
    // The guest makes its own /tmp and control groups.
    for target in ["/tmp", "/sys/fs/cgroup", "/dev/shm", "/dev/pts"] {
        let _ = sys::umount(target);
    }
    for target in ["/dev", "/proc", "/sys", "/run"] {
        let new = format!("{NEW_ROOT}{target}");
        if Path::new(&new).is_dir() {
            sys::mount(target, &new, "", libc::MS_MOVE, "")?;
        }
    }
    std::env::set_current_dir(NEW_ROOT)?;
    free_memory();
    sys::mount(".", "/", "", libc::MS_MOVE, "")?;
    sys::chroot_here()?;
    std::env::set_current_dir("/")?;
    if wishes.task.is_some() {
        return Ok(());
    }
    shares::mount(&wishes.shares);
    let mut command = Command::new(init);
    command.env_clear().env("HOME", "/").env("TERM", "linux").env("PATH", crate::exec::DEFAULT_PATH);
    // What replaces us inherits blocked signals; init must not.
    sys::unblock_all();
    Err(command.exec())
}

pub(crate) fn wait_for(device: &str) -> io::Result<()> {
    let deadline = Instant::now() + DISK_WAIT;
    loop {
        match fs::metadata(device) {
            Ok(found) if found.file_type().is_block_device() => return Ok(()),
            Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no disk")),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Mounts the disk with the first file system that knows it, read-only if it allows no more.
fn mount_root(device: &str, wishes: &Wishes) -> io::Result<()> {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    // ext4 is the usual one; older kinds of the same family would complain about it.
    let disk_kinds = known.lines().filter_map(|line| line.strip_prefix('\t')).filter(|kind| *kind != "ext4");
    let mut last = io::Error::new(io::ErrorKind::InvalidData, "no file system of this kernel knows it");
    for kind in ["ext4"].into_iter().chain(disk_kinds) {
        // A task's disk is thrown away if the task does not end well: nothing need be safe before that.
        let data = if kind == "ext4" && wishes.task.is_some() { "barrier=0,commit=300" } else { "" };
        let wanted: &[u64] = if wishes.read_only { &[libc::MS_RDONLY] } else { &[0, libc::MS_RDONLY] };
        for flags in wanted {
            match sys::mount(device, NEW_ROOT, kind, *flags, data) {
                Ok(()) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINVAL) => break,
                    _ => last = error,
                },
            }
        }
    }
    Err(last)
}

/// Puts the agent and its service where a systemd of any disk finds them.
fn leave_agent() -> io::Result<()> {
    fs::create_dir_all("/run/viv")?;
    fs::copy("/proc/self/exe", AGENT)?;
    fs::set_permissions(AGENT, fs::Permissions::from_mode(0o755))?;
    let wants = "/run/systemd/system/sysinit.target.wants";
    fs::create_dir_all(wants)?;
    fs::write("/run/systemd/system/viv-agent.service", SERVICE)?;
    std::os::unix::fs::symlink("../viv-agent.service", format!("{wants}/viv-agent.service"))
}

/// Deletes the initial RAM disk's files: they would fill the guest's memory for ever.
fn free_memory() {
    for name in ["bin", "etc", "init", "lib", "root", "sbin", "usr", "var"] {
        let path = Path::new("/").join(name);
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        let _ = if found.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}
