//! Directories of the host: mounted where the kernel's command line says, and when the host says that one has come.
use crate::{root, say, setup, sys};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};
use viv_model::ShareMount;

/// The file system's name.
const KIND: &str = "virtiofs";

/// Loads the driver, while its module is within reach: a disk that becomes the root may not have it.
pub(crate) fn load_driver() {
    if let Err(why) = setup::load_file_system(KIND) {
        say(format_args!("this kernel cannot use directories of the host: {why}"));
    }
}

/// Mounts them.
pub(crate) fn mount(shares: &[ShareMount]) {
    for share in shares {
        if let Err(error) = mount_one(share) {
            say(format_args!("cannot mount the host's directory {} on {}: {error}", share.tag, share.target));
        }
    }
}

/// Mounts them in the guest's root, from a thread that enters it.
pub(crate) fn mount_in_guest(shares: &[ShareMount]) {
    if !root::is_apart() || shares.is_empty() {
        return mount(shares);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| match root::enter() {
            Ok(()) => mount(shares),
            Err(error) => say(format_args!("cannot mount the host's directories: {error}")),
        });
    });
}

/// Programs of the host that run as their owner do not do so here, and devices are none.
fn mount_one(share: &ShareMount) -> io::Result<()> {
    let read_only = if share.read_only { libc::MS_RDONLY } else { 0 };
    let flags = libc::MS_NOSUID | libc::MS_NODEV | read_only;
    // What is in the way, or a read-only root, shows when it is mounted.
    let _ = fs::create_dir_all(&share.target);
    sys::mount(&share.tag, &share.target, KIND, flags, "")
}

/// How long a device may take to come up that the host has announced.
const ARRIVAL: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

/// Mounts one that has come or is about to: why it cannot, if so.
pub(crate) fn mount_when_there(share: &ShareMount) -> Result<(), String> {
    load_driver();
    let outside = root::outside(&share.target);
    if let Some(mount) =
        Mount::all().iter().find(|mount| Path::new(&mount.target) == outside && mount.is_of(&share.tag))
    {
        return Err(format!("{} is mounted there already", mount.source));
    }
    root::enter().map_err(|error| error.to_string())?;
    let begin = Instant::now();
    loop {
        match mount_one(share) {
            Ok(()) => return Ok(()),
            // No device with this tag, or no driver.
            Err(error)
                if begin.elapsed() < ARRIVAL
                    && matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) =>
            {
                std::thread::sleep(LOOK);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Unmounts the one with this tag wherever it is: who uses it, if that is why it stays.
pub(crate) fn unmount(tag: &str, force: bool) -> io::Result<Option<String>> {
    // The last mounted first.
    for mount in Mount::all().iter().rev().filter(|mount| mount.is_of(tag)) {
        match sys::unmount(&mount.target, force) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                let user =
                    user_of(&mount.target).unwrap_or_else(|| "the kernel, or a mount inside it".to_string());
                return Ok(Some(format!("{} is used by {user}", root::inside(&mount.target))));
            }
            result => result?,
        }
    }
    Ok(None)
}

/// A line of `/proc/self/mounts` (fstab(5)).
pub(crate) struct Mount {
    source: String,
    pub(crate) target: String,
    kind: String,
}

impl Mount {
    /// All that this process sees, in the order in which they were mounted.
    pub(crate) fn all() -> Vec<Mount> {
        let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        text.lines().filter_map(Mount::of).collect()
    }

    fn of(line: &str) -> Option<Mount> {
        let mut columns = line.split(' ').map(plain);
        Some(Mount { source: columns.next()?, target: columns.next()?, kind: columns.next()? })
    }

    /// Whether it has a disk behind it.
    pub(crate) fn is_on_disk(&self) -> bool {
        self.source.starts_with("/dev/")
    }

    fn is_of(&self, tag: &str) -> bool {
        self.kind == KIND && self.source == tag
    }
}

/// A column without its octal escapes: `\\040` is a space.
fn plain(column: &str) -> String {
    let mut parts = column.split('\\');
    let mut bytes: Vec<u8> = parts.next().unwrap_or_default().bytes().collect();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                bytes.extend(part.bytes().skip(3));
            }
            None => bytes.extend(b"\\".iter().copied().chain(part.bytes())),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A process that has its working directory, its root or a file below `target`.
fn user_of(target: &str) -> Option<String> {
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    processes.filter(|process| process.join("exe").exists()).find_map(|process| {
        let mut links = vec![process.join("cwd"), process.join("root"), process.join("exe")];
        links.extend(
            fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path()),
        );
        let uses =
            links.iter().any(|link| fs::read_link(link).is_ok_and(|to| to.starts_with(Path::new(target))));
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        let pid = process.file_name()?.to_str()?.to_string();
        uses.then(|| format!("process {pid} ({})", name.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_their_tag_whatever_their_path() {
        let mount = Mount::of("share0 /a\\040b\\134x virtiofs rw,nosuid,nodev,relatime 0 0").unwrap();
        assert_eq!(
            (mount.target.as_str(), mount.is_of("share0"), mount.is_of("share")),
            ("/a b\\x", true, false)
        );
        assert!(!Mount::of("share0 /a ext4 rw 0 0").unwrap().is_of("share0"));
        assert_eq!(plain("\\x\\0"), "\\x\\0");
        assert!(Mount::of("none").is_none());
    }

    #[test]
    fn a_directory_in_use_has_a_user() {
        let dir = std::env::temp_dir().join(format!("viv-agent-use-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let dir = dir.canonicalize().unwrap();
        assert_eq!(user_of(dir.to_str().unwrap()), None);
        let file = fs::File::create(dir.join("file")).unwrap();
        // We, or a child that another test has just forked off us.
        let user = user_of(dir.to_str().unwrap()).unwrap();
        assert!(user.starts_with("process ") && user.ends_with(')'), "{user}");
        drop(file);
        fs::remove_dir_all(dir).unwrap();
    }
}
