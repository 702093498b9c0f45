//! A directory for each VM, with its disks, logs and sockets, beside its record in the store.
use super::{StoreError, VmRecord};
use crate::places::is_gone;
use serde::Serialize;
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use viv_api::runner::LOCK;

/// The record's file in the VM's directory, until 0.1: the store takes it over.
const RECORD: &str = "record.json";
/// What a directory is called from the moment before its VM is forgotten until its last file is gone.
const REMOVED: &str = ".removed-";

/// The directories of all VMs.
#[derive(Debug)]
pub(super) struct Directories {
    root: PathBuf,
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl Fn(io::Error) -> StoreError + 'a {
    move |source| StoreError::Io { what, path: path.to_path_buf(), source }
}

/// Writes `value` to `path`, whole or not at all: beside it, synced, renamed, and the rename synced.
pub(crate) fn write_whole<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(&serde_json::to_vec_pretty(value)?)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

/// A directory that is being removed.
pub(super) struct Removal {
    here: PathBuf,
    away: PathBuf,
}

impl Removal {
    /// The VM is forgotten: so are its files.
    pub(super) fn finish(self) -> Result<(), StoreError> {
        match fs::remove_dir_all(&self.away) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(io_error("remove", &self.away)(error))
            }
            _ => Ok(()),
        }
    }

    /// It is not.
    pub(super) fn undo(self) {
        let _ = fs::rename(&self.away, &self.here);
    }
}

/// Directories of VMs that nobody remembers.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Of those that were removed: they have no name any more.
    pub(crate) removed: Vec<PathBuf>,
    /// In which a VM was started.
    pub(crate) used: Vec<PathBuf>,
}

/// What is left below `root` of others than these VMs.
pub(crate) fn leftovers(root: &Path, known: &HashSet<String>) -> Result<Leftovers, StoreError> {
    let mut left = Leftovers::default();
    for path in (Directories { root: root.to_path_buf() }).all()? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match name.strip_prefix(REMOVED) {
            Some(id) if known.contains(id) => {}
            Some(_) => left.removed.push(path),
            None if known.contains(name.as_ref()) => {}
            None if !is_gone(&path.join(LOCK)) => left.used.push(path),
            // It may be one that is just made.
            None => {}
        }
    }
    Ok(left)
}

impl Directories {
    pub(super) fn open(root: &Path) -> Result<Directories, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(io_error("make", root))?;
        Ok(Directories { root: root.to_path_buf() })
    }

    fn all(&self) -> Result<Vec<PathBuf>, StoreError> {
        let entries = fs::read_dir(&self.root).map_err(io_error("read", &self.root))?;
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        paths.collect::<io::Result<_>>().map_err(io_error("read", &self.root))
    }

    /// The records that releases before the store have left in the directories.
    pub(super) fn records(&self) -> Result<Vec<VmRecord>, StoreError> {
        let mut records = Vec::new();
        for path in self.all()? {
            let path = path.join(RECORD);
            if path.to_string_lossy().contains(REMOVED) {
                continue;
            }
            match fs::read(&path) {
                Ok(text) => {
                    let record = serde_json::from_slice(&text).map_err(io::Error::other);
                    records.push(record.map_err(io_error("understand", &path))?);
                }
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(io_error("read", &path)(error)),
            }
        }
        Ok(records)
    }

    /// Directories of VMs that have been started: they may hold what somebody needs.
    pub(super) fn used(&self) -> Result<Vec<PathBuf>, StoreError> {
        Ok(self.all()?.into_iter().filter(|path| !is_removed(path) && !is_gone(&path.join(LOCK))).collect())
    }

    /// Finishes what a crash has left half done, where these VMs are remembered. Gives the directories that no VM has and
    /// that are kept all the same, for a VM was started in them.
    pub(super) fn tidy(&self, known: &HashSet<String>) -> Result<Vec<PathBuf>, StoreError> {
        let mut left = Vec::new();
        for path in self.all()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match name.strip_prefix(REMOVED) {
                Some(id) if known.contains(id) => {
                    fs::rename(&path, self.root.join(id)).map_err(io_error("keep", &path))?;
                }
                Some(_) => fs::remove_dir_all(&path).map_err(io_error("remove", &path))?,
                None if known.contains(&name) => match fs::remove_file(path.join(RECORD)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(io_error("remove", &path)(error));
                    }
                    _ => {}
                },
                None if !path.is_dir() => {}
                None if !is_gone(&path.join(LOCK)) => left.push(path),
                None => fs::remove_dir_all(&path).map_err(io_error("remove", &path))?,
            }
        }
        Ok(left)
    }

    /// Makes the directory of a VM, unless it is there, with the VM's disk.
    pub(super) fn make(&self, id: &str) -> Result<(), StoreError> {
        let path = self.root.join(id);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(io_error("make", &path))
    }

    /// Takes the directory of a VM out of sight, before the VM is forgotten.
    pub(super) fn remove(&self, id: &str) -> Result<Removal, StoreError> {
        let (here, away) = (self.root.join(id), self.root.join(format!("{REMOVED}{id}")));
        match fs::rename(&here, &away) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &here)(error)),
            _ => Ok(Removal { here, away }),
        }
    }
}

fn is_removed(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(REMOVED))
}
