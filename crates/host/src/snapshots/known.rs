//! Files that have been compared with their checksums. They are never written again: as long as one is the same file, of the same
//! size and age, it is not read once more. `viv snapshot verify` always reads.
use super::io_fault;
use crate::vms::lock;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;
use viv_model::{DiskContent, Fault};
use viv_snapshot::{SnapshotError, content_files, disk_file, plain};

/// Most files that are remembered.
const MOST: usize = 10_000;

/// Which file it is, and that it has not been written since: device, inode, size, time of the last change.
type Mark = (u64, u64, u64, i64, i64);

/// See the module. Several files may make up one content.
#[derive(Default)]
pub(super) struct Known(Mutex<HashMap<Vec<Mark>, String>>);

fn mark(path: &Path) -> Result<Mark, Fault> {
    let data = fs::metadata(path).map_err(io_fault("look at", path))?;
    Ok((data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

impl Known {
    fn remember(&self, marks: Vec<Mark>, checksum: &str) {
        let mut known = lock(&self.0);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(marks, checksum.to_string());
    }

    /// The checksum of a whole file.
    pub(super) fn checksum(&self, path: &Path) -> Result<String, Fault> {
        let mark = vec![mark(path)?];
        let known = lock(&self.0).get(&mark).cloned();
        if let Some(checksum) = known {
            return Ok(checksum);
        }
        let (dir, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
        let checksum = plain(dir, &name.to_string_lossy())?.checksum;
        self.remember(mark, &checksum);
        Ok(checksum)
    }

    /// Has a disk compared by `verify`, unless that has been done.
    pub(super) fn good(
        &self,
        dir: &Path,
        disk: &DiskContent,
        verify: impl FnOnce() -> Result<(), SnapshotError>,
    ) -> Result<(), Fault> {
        let files = content_files(&disk_file(disk.index), &disk.content).into_iter();
        let marks = files.map(|(name, _)| mark(&dir.join(name))).collect::<Result<Vec<_>, Fault>>()?;
        if lock(&self.0).get(&marks) != Some(&disk.content.checksum) {
            verify()?;
            self.remember(marks, &disk.content.checksum);
        }
        Ok(())
    }
}
