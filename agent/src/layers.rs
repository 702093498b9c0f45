//! Starts an image of containers: its file system, which nobody writes to, below a disk of this VM's own, by overlayfs; with what
//! containers expect to find.
use crate::setup::{self, Wishes};
use crate::{root, say, stage, sys};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

/// Where things are mounted, in the initial RAM disk.
pub(crate) const LOWER: &str = "/lower";
pub(crate) const UPPER: &str = "/upper";
const GUEST: &str = "/guest";
/// Files that a container gets from its host, whatever its image has.
const FROM_HOST: [&str; 3] = [HOSTS, HOSTNAME, "/etc/resolv.conf"];
const HOSTS: &str = "/etc/hosts";
const HOSTNAME: &str = "/etc/hostname";

/// Mounts the image's disk `lower` and this VM's own disk `upper`, one above the other, and makes them the guest's root.
pub(crate) fn enter(lower: &str, upper: &str, wishes: &Wishes) -> io::Result<()> {
    for kind in ["erofs", "overlay"] {
        if let Err(why) = setup::load_file_system(kind) {
            say(format_args!("this kernel cannot start images of containers: {why}"));
        }
    }
    for dir in [LOWER, UPPER, GUEST] {
        fs::create_dir_all(dir)?;
    }
    let told = |what: &str| {
        let what = what.to_string();
        move |error: io::Error| io::Error::new(error.kind(), format!("{what}: {error}"))
    };
    stage::wait_for(lower).map_err(told(lower))?;
    stage::wait_for(upper).map_err(told(upper))?;
    sys::mount(lower, LOWER, "erofs", libc::MS_RDONLY, "").map_err(told("the image"))?;
    sys::mount(upper, UPPER, "ext4", 0, "").map_err(told("the VM's own disk"))?;
    let (above, work) = (format!("{UPPER}/root"), format!("{UPPER}/work"));
    if !Path::new(&above).exists() {
        fs::create_dir_all(&above)?;
        same_attributes(LOWER, &above)?;
    }
    fs::create_dir_all(&work)?;
    let data = format!("lowerdir={LOWER},upperdir={above},workdir={work}");
    sys::mount("overlay", GUEST, "overlay", 0, &data).map_err(told("overlayfs"))?;
    for target in ["/dev", "/proc", "/sys"] {
        let inside = format!("{GUEST}{target}");
        make_dir(&inside)?;
        sys::mount(target, &inside, "", libc::MS_BIND | libc::MS_REC, "").map_err(told(target))?;
    }
    if make_dir(&format!("{GUEST}/tmp")).is_ok_and(|made| made) {
        fs::set_permissions(format!("{GUEST}/tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))?;
    }
    let name = wishes.hostname.as_deref().unwrap_or("viv");
    fs::write(HOSTS, format!("{}::1 localhost ip6-localhost ip6-loopback\n", line_of(name)))?;
    fs::write(HOSTNAME, format!("{name}\n"))?;
    // The DHCP client's script writes to ours; it is the same file.
    fs::write("/etc/resolv.conf", "")?;
    for path in FROM_HOST {
        if let Err(error) = give(path) {
            say(format_args!("the guest has its image's {path}: {error}"));
        }
    }
    // Programs of the image look for these (docker makes them, too).
    let _ = symlink("/proc/mounts", format!("{GUEST}/etc/mtab"));
    root::set(GUEST);
    Ok(())
}

/// From now on nobody writes to the image's files in the guest; what is mounted in them stays as it is.
pub(crate) fn seal() -> io::Result<()> {
    sys::mount("", GUEST, "", libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY, "")
}

/// The guest's own line in `/etc/hosts`.
fn line_of(name: &str) -> String {
    format!("127.0.0.1 localhost {name}\n")
}

/// The guest is called so from now on; what it has written to these files besides stays.
pub(crate) fn rename(name: &str) -> io::Result<()> {
    if !root::is_apart() {
        return Ok(());
    }
    let (was, hosts) = (fs::read_to_string(HOSTNAME)?, fs::read_to_string(HOSTS)?);
    fs::write(HOSTS, hosts.replacen(&line_of(was.trim_end()), &line_of(name), 1))?;
    fs::write(HOSTNAME, format!("{name}\n"))
}

/// Makes a directory of the guest's root where there is none; whether it did. What is in the way of it makes room.
fn make_dir(path: &str) -> io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => return Ok(false),
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    fs::create_dir(path).map(|()| true)
}

/// The root directory of the overlay is that of its upper part: it is to look like the image's.
pub(crate) fn same_attributes(from: &str, to: &str) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, chown};
    let found = fs::metadata(from)?;
    chown(to, Some(found.uid()), Some(found.gid()))?;
    fs::set_permissions(to, found.permissions())
}

/// Gives the guest our file at `path`. A link there, which may lead anywhere, makes room for it.
fn give(path: &str) -> io::Result<()> {
    let inside = format!("{GUEST}{path}");
    make_dir(&format!("{GUEST}/etc"))?;
    if !fs::symlink_metadata(&inside).is_ok_and(|found| found.is_file()) {
        match fs::symlink_metadata(&inside) {
            Ok(found) if found.is_dir() => fs::remove_dir(&inside)?,
            Ok(_) => fs::remove_file(&inside)?,
            Err(_) => {}
        }
        fs::write(&inside, "")?;
    }
    sys::mount(path, &inside, "", libc::MS_BIND, "")
}
