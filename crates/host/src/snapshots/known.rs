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
use viv_snapshot::{SnapshotError, disk_file, plain, sums_file};

/// Most files that are remembered.
const MOST: usize = 10_000;

/// Which file it is, and that it has not been written since: device, inode, size, time of the last change.
type Mark = (u64, u64, u64, i64, i64);

/// See the module.
#[derive(Default)]
pub(super) struct Known(Mutex<HashMap<Mark, String>>);

fn mark(path: &Path) -> Result<Mark, Fault> {
    let data = fs::metadata(path).map_err(io_fault("look at", path))?;
    Ok((data.dev(), data.ino(), data.len(), data.mtime(), data.mtime_nsec()))
}

impl Known {
    fn remember(&self, mark: Mark, checksum: &str) {
        let mut known = lock(&self.0);
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(mark, checksum.to_string());
    }

    /// The checksum of a whole file.
    pub(super) fn checksum(&self, path: &Path) -> Result<String, Fault> {
        let mark = mark(path)?;
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
        let name = disk_file(disk.index);
        let marks = [mark(&dir.join(&name))?, mark(&dir.join(sums_file(&name)))?];
        let is_known = |mark| lock(&self.0).get(mark) == Some(&disk.content.checksum);
        if !marks.iter().all(is_known) {
            verify()?;
            marks.into_iter().for_each(|mark| self.remember(mark, &disk.content.checksum));
        }
        Ok(())
    }
}
