//! Volumes of images of containers: directories on the VM's own disk beside what becomes an image of it. What the image has in their
//! place is seen there: each is an overlayfs of its own over that. Those with names are on disks of their own, which outlive the VM: they get a
//! copy of what the image has, the first time. Some are in memory instead.
use crate::layers::{LOWER, UPPER, same_attributes};
use crate::setup::Wishes;
use crate::{disks, root, say, sys, tree};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use viv_model::{ShareMount, TmpfsMount};

/// Where those on the VM's own disk are, in the order in which the host names them.
const PLACE: &str = "volumes";

/// Where a directory of the guest has its content.
enum Place<'a> {
    /// On the VM's own disk, with this number.
    Own(usize),
    Disk(&'a ShareMount),
    Memory(&'a TmpfsMount),
}

/// Mounts all of them. A program that found its image's files in the place of a disk, or of memory, would write to what goes with the VM: the
/// error is that one of these is missing.
pub(crate) fn mount(wishes: &Wishes) -> io::Result<()> {
    let own = wishes.volumes.iter().enumerate().map(|(number, path)| (path, Place::Own(number)));
    let disks = wishes.volume_disks.iter().map(|disk| (&disk.target, Place::Disk(disk)));
    let memory = wishes.tmpfs.iter().map(|mount| (&mount.path, Place::Memory(mount)));
    let mut all: Vec<(&String, Place<'_>)> = own.chain(disks).chain(memory).collect();
    // One may be in another one.
    all.sort_by_key(|(path, _)| *path);
    all.into_iter().try_for_each(|(path, place)| {
        let told = |error: io::Error| {
            io::Error::new(error.kind(), format!("the volume at {path} is not there: {error}"))
        };
        match place {
            Place::Own(number) => {
                one(number, path).map_err(told).unwrap_or_else(|error| say(format_args!("{error}")));
                Ok(())
            }
            Place::Disk(disk) => of_disk(disk).map_err(told),
            Place::Memory(mount) => in_memory(mount).map_err(told),
        }
    })
}

fn one(number: usize, path: &str) -> io::Result<()> {
    let real = real(path)?;
    let inside = real.strip_prefix("/").unwrap_or(&real);
    let target = root::outside(path_text(&real)?);
    let store = Path::new(UPPER).join(PLACE).join(number.to_string());
    let (data, work) = (store.join("data"), store.join("work"));
    let is_new = !data.exists();
    fs::create_dir_all(&data)?;
    fs::create_dir_all(&work)?;
    let lower = Path::new(LOWER).join(inside);
    // What was put there instead of the image's is not the image's.
    let in_image = fs::canonicalize(&lower).is_ok_and(|found| found == lower) && lower.is_dir();
    if is_new {
        same_attributes(path_text(if in_image { &lower } else { &target })?, path_text(&data)?)?;
    }
    let target = path_text(&target)?;
    if !in_image {
        return sys::mount(path_text(&data)?, target, "", libc::MS_BIND, "");
    }
    let option = |path: &Path| path_text(path).map(escaped);
    let options =
        format!("lowerdir={},upperdir={},workdir={}", option(&lower)?, option(&data)?, option(&work)?);
    sys::mount("overlay", target, "overlay", 0, &options)
}

/// Where the disks of those are that have their own, outside the guest.
const DISKS: &str = "/run/viv-volumes";
/// On such a disk: what the guest has, and what is to become that.
const DATA: &str = "data";
const BEGUN: &str = "data.new";

fn of_disk(wish: &ShareMount) -> io::Result<()> {
    let device = disks::device(&wish.tag).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, format!("no disk has the serial number {}", wish.tag))
    })?;
    let own = format!("{DISKS}/{}", wish.tag);
    fs::create_dir_all(&own)?;
    match wish.read_only {
        // After a loss of power there is something to be done first, which nobody may do here.
        true => sys::mount(&device, &own, "ext4", libc::MS_RDONLY, "")
            .or_else(|_| sys::mount(&device, &own, "ext4", libc::MS_RDONLY, "noload")),
        false => sys::mount(&device, &own, "ext4", 0, ""),
    }?;
    let target = root::outside(path_text(&real(&wish.target)?)?);
    let data = Path::new(&own).join(DATA);
    if !data.exists() {
        if wish.read_only {
            return Err(io::Error::new(io::ErrorKind::NotFound, "nobody has written to it yet"));
        }
        // The first time it gets what the image has there, all of it or, after a loss of power, all of it again.
        let begun = Path::new(&own).join(BEGUN);
        if begun.exists() {
            fs::remove_dir_all(&begun)?;
        }
        tree::copy(&target, &begun)?;
        sys::sync();
        fs::rename(&begun, &data)?;
    }
    sys::mount(path_text(&data)?, path_text(&target)?, "", libc::MS_BIND, "")
}

fn in_memory(mount: &TmpfsMount) -> io::Result<()> {
    let target = root::outside(path_text(&real(&mount.path)?)?);
    let (flags, data) = tmpfs_options(&mount.options);
    sys::mount("tmpfs", path_text(&target)?, "tmpfs", flags, &data)
}

/// Options as mount(2) has them: flags, and what the file system reads. What is not said is as tools of containers have it.
fn tmpfs_options(options: &[String]) -> (u64, String) {
    let mut flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let mut data = vec!["mode=1777"];
    for option in options {
        match option.as_str() {
            "rw" => flags &= !libc::MS_RDONLY,
            "ro" => flags |= libc::MS_RDONLY,
            "exec" => flags &= !libc::MS_NOEXEC,
            "noexec" => flags |= libc::MS_NOEXEC,
            "suid" => flags &= !libc::MS_NOSUID,
            "nosuid" => flags |= libc::MS_NOSUID,
            "dev" => flags &= !libc::MS_NODEV,
            "nodev" => flags |= libc::MS_NODEV,
            "noatime" => flags |= libc::MS_NOATIME,
            // The last one of a name counts.
            valued => data.push(valued),
        }
    }
    (flags, data.join(","))
}

/// Where a path of the guest really is, in the guest; made if there is nothing.
fn real(path: &str) -> io::Result<PathBuf> {
    let path = path.to_string();
    let thread = std::thread::spawn(move || {
        root::enter()?;
        fs::create_dir_all(&path)?;
        fs::canonicalize(&path)
    });
    thread.join().unwrap_or_else(|_| Err(io::Error::other("looking for it broke off")))
}

fn path_text(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "its path is no text"))
}

/// In the options of overlayfs, some characters end a path (Documentation/filesystems/overlayfs.rst, "Multiple lower layers").
fn escaped(path: &str) -> String {
    path.chars()
        .flat_map(|c| [Some('\\').filter(|_| matches!(c, '\\' | ',' | ':')), Some(c)])
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_tmpfs_are_flags_or_its_own() {
        let of = |options: &str| tmpfs_options(&options.split(' ').map(String::from).collect::<Vec<_>>());
        assert_eq!(
            tmpfs_options(&[]),
            (libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC, "mode=1777".into())
        );
        assert_eq!(of("ro exec suid dev"), (libc::MS_RDONLY, "mode=1777".into()));
        assert_eq!(of("exec suid dev size=1m mode=700"), (0, "mode=1777,size=1m,mode=700".into()));
    }

    #[test]
    fn what_ends_a_path_is_escaped() {
        assert_eq!(escaped("/a:b,c\\d e"), "/a\\:b\\,c\\\\d e");
    }
}
