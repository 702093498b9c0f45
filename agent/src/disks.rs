//! Who uses a disk.
use std::fs;
use std::path::{Path, PathBuf};

/// The disk with this serial number, as a directory of sysfs, if there is one.
fn with_serial(serial: &str) -> Option<PathBuf> {
    let disks = fs::read_dir("/sys/block").ok()?;
    let mut disks = disks.flatten().map(|entry| entry.path());
    disks.find(|path| fs::read_to_string(path.join("serial")).is_ok_and(|found| found.trim() == serial))
}

/// The device of the disk with this serial number.
pub(crate) fn device(serial: &str) -> Option<String> {
    Some(format!("/dev/{}", with_serial(serial)?.file_name()?.to_str()?))
}

/// Who uses the disk with this serial number, if there is one and somebody does.
pub(crate) fn in_use(serial: &str) -> Option<String> {
    let disk = with_serial(serial)?;
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    parts(&disk).iter().find_map(|part| user_of(part, &mounts, &swaps))
}

/// The disk and its partitions, as directories of sysfs.
fn parts(disk: &Path) -> Vec<PathBuf> {
    let below = fs::read_dir(disk).into_iter().flatten().flatten().map(|entry| entry.path());
    let partitions = below.filter(|path| path.join("partition").exists());
    std::iter::once(disk.to_owned()).chain(partitions).collect()
}

fn user_of(part: &Path, mounts: &str, swaps: &str) -> Option<String> {
    let name = part.file_name()?.to_str()?;
    let device = format!("/dev/{name}");
    let column = |line: &str, n: usize| line.split_whitespace().nth(n).unwrap_or_default().to_string();
    if let Some(mount) = mounts.lines().find(|line| column(line, 0) == device) {
        return Some(format!("{device} is mounted on {}", crate::root::inside(&column(mount, 1))));
    }
    if swaps.lines().any(|line| column(line, 0) == device) {
        return Some(format!("{device} is swap space"));
    }
    let mut holders = fs::read_dir(part.join("holders")).into_iter().flatten().flatten();
    let holder = holders.next()?.file_name();
    Some(format!("{device} is part of {}", holder.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_and_swap_are_use() {
        let mounts = "proc /proc proc rw 0 0\n/dev/vdb1 /srv/data ext4 rw 0 0\n";
        let swaps = "Filename Type Size Used Priority\n/dev/vdc partition 1 0 -2\n";
        let of = |name: &str| user_of(&Path::new("/nowhere").join(name), mounts, swaps);
        assert_eq!(of("vdb1").as_deref(), Some("/dev/vdb1 is mounted on /srv/data"));
        assert_eq!(of("vdc").as_deref(), Some("/dev/vdc is swap space"));
        assert_eq!(of("vdb"), None);
        assert_eq!(in_use("no disk has this serial number"), None);
    }
}
