//! What nothing that is listed has: removed when a user asks for it. Most of it goes also when the service starts, but one that
//! stays for months is not restarted for a directory that could not be removed.
use crate::boot_code;
use crate::disk_image;
use crate::images;
use crate::runners::Runner;
use crate::service::Service;
use crate::store::leftovers;
use crate::volumes;
use crate::warm;
use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use viv_api::prune::{HostPrune, HostPruned};
use viv_model::Fault;

/// How old a file of a cache is before it can be missed by nobody who is just writing it: compiling is given up before.
const AGE: Duration = Duration::from_secs(600);
/// What has been removed.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    bytes: u64,
    removed: u64,
}

impl Gone {
    /// Removes a file or a directory with all that is in it. What cannot be removed stays for the next time.
    pub(crate) fn remove(&mut self, path: &Path) {
        let Ok(data) = fs::symlink_metadata(path) else { return };
        let before = bytes_of(path);
        let removed = if data.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
        self.bytes += before.saturating_sub(bytes_of(path));
        self.removed += u64::from(removed.is_ok());
    }

    /// Notes something of so many bytes that somebody else has removed.
    pub(crate) fn count(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.removed += 1;
    }
}

/// Bytes of the disk that would be free without it: what has another name elsewhere would stay.
fn bytes_of(path: &Path) -> u64 {
    let Ok(data) = fs::symlink_metadata(path) else { return 0 };
    if data.is_dir() {
        return fs::read_dir(path).into_iter().flatten().flatten().map(|entry| bytes_of(&entry.path())).sum();
    }
    if data.nlink() == 1 { on_disk(&data) } else { 0 }
}

/// Bytes that a file takes up, holes left out: the kernel counts 512 at a time (stat(2), `st_blocks`).
pub(crate) fn on_disk(data: &Metadata) -> u64 {
    data.blocks().saturating_mul(512)
}

/// Removes it all.
pub(crate) fn prune(service: &Service, ask: &HostPrune) -> Result<HostPruned, Fault> {
    let mut gone = Gone::default();
    service.snapshots.forget_unfinished(&mut gone)?;
    let known: HashSet<String> = service.vms.records()?.into_iter().map(|record| record.id).collect();
    forget_others(&service.places.translated(), &known, &mut gone);
    let left = leftovers(&service.places.vms(), &known)?;
    left.removed.iter().for_each(|path| gone.remove(path));
    // Those of images that are just built have a process.
    let kept = left.used.into_iter().filter(|path| Runner::new(path).process().is_none()).collect();
    volumes::forget_unfinished(&service.places, AGE, &mut gone);
    boot_code::forget_stale(service, &mut gone);
    disk_image::prune(&service.places.boot(), &mut gone);
    if ask.caches {
        forget_old(&service.places.programs(), &mut gone);
        warm::forget_all(service, &mut gone)?;
        service.images.prune_downloads(&images::Unwatched, &mut |path| gone.remove(path))?;
    }
    let of_images = service.images.prune(&images::Unwatched)?;
    Ok(HostPruned { bytes: gone.bytes + of_images, removed: gone.removed, kept })
}

/// Removes what is in a directory and is not called as one of these.
pub(crate) fn forget_others(dir: &Path, known: &HashSet<String>, gone: &mut Gone) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !known.contains(entry.file_name().to_string_lossy().as_ref()) {
            gone.remove(&entry.path());
        }
    }
}

/// Whether nobody has written to a file for so long.
pub(crate) fn is_older(data: &Metadata, age: Duration) -> bool {
    data.modified().is_ok_and(|time| time.elapsed().is_ok_and(|since| since >= age))
}

/// Removes the files of a cache that nobody is just writing.
fn forget_old(dir: &Path, gone: &mut Gone) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(data) = entry.metadata() else { continue };
        if data.is_dir() {
            forget_old(&entry.path(), gone);
        } else if is_older(&data, AGE) {
            gone.remove(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_another_name_frees_nothing() {
        let dir = std::env::temp_dir().join(format!("viv-host-prune-{}", std::process::id()));
        fs::create_dir_all(dir.join("a/b")).unwrap();
        fs::write(dir.join("a/b/one"), [1; 8192]).unwrap();
        fs::write(dir.join("a/two"), [1; 8192]).unwrap();
        fs::hard_link(dir.join("a/two"), dir.join("stays")).unwrap();
        let mut gone = Gone::default();
        gone.remove(&dir.join("a"));
        assert!(gone.bytes >= 8192 && gone.bytes < 16384 && gone.removed == 1, "{gone:?}");
        gone.remove(&dir.join("a"));
        assert_eq!(gone.removed, 1);
        fs::write(dir.join("new"), [1; 8]).unwrap();
        forget_old(&dir, &mut gone);
        assert!(dir.join("new").exists() && dir.join("stays").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
