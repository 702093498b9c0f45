//! A directory for each VM, with its record as JSON beside the VM's other files.
use super::{Store, StoreError, VmRecord, sort};
use serde::Serialize;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The record's file in the VM's directory.
const RECORD: &str = "record.json";
/// What a directory is called between the moment in which its VM is forgotten and the one in which its
/// last file is gone.
const REMOVED: &str = ".removed-";

/// A store in a directory.
#[derive(Debug)]
pub struct DirectoryStore {
    root: PathBuf,
    /// A change looks at all names first.
    changing: Mutex<()>,
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
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

impl DirectoryStore {
    /// Opens the store in `root`, and finishes what a crash left half done.
    pub fn open(root: &Path) -> Result<DirectoryStore, StoreError> {
        DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(io_error("make", root))?;
        for entry in fs::read_dir(root).map_err(io_error("read", root))? {
            let path = entry.map_err(io_error("read", root))?.path();
            let removed = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(REMOVED));
            let unfinished = path.is_dir() && !path.join(RECORD).exists();
            if removed || unfinished {
                fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(DirectoryStore { root: root.to_path_buf(), changing: Mutex::new(()) })
    }
}

impl Store for DirectoryStore {
    fn all(&self) -> Result<Vec<VmRecord>, StoreError> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(io_error("read", &self.root))? {
            let path = entry.map_err(io_error("read", &self.root))?.path().join(RECORD);
            let hidden = path.to_string_lossy().contains(REMOVED);
            match fs::read(&path) {
                Ok(_) if hidden => {}
                Ok(text) => {
                    let record = serde_json::from_slice(&text).map_err(io::Error::other);
                    records.push(record.map_err(io_error("understand", &path))?);
                }
                // Just being made, or just removed.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
                Err(error) => return Err(io_error("read", &path)(error)),
            }
        }
        sort(&mut records);
        Ok(records)
    }

    fn insert(&self, record: &VmRecord) -> Result<(), StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.all()?.iter().any(|other| other.name == record.name) {
            return Err(StoreError::NameTaken { name: record.name.clone() });
        }
        let directory = self.root.join(&record.id);
        // It may be there already, with the VM's disk.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(io_error("make", &directory))?;
        let path = directory.join(RECORD);
        let written = write_whole(&path, record).and_then(|()| sync_parent(&directory));
        if written.is_err() {
            let _ = fs::remove_dir_all(&directory);
        }
        written.map_err(io_error("write", &path))
    }

    fn update(&self, record: &VmRecord) -> Result<(), StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.root.join(&record.id).join(RECORD);
        if !path.exists() {
            return Err(StoreError::Missing { id: record.id.clone() });
        }
        write_whole(&path, record).map_err(io_error("write", &path))
    }

    fn remove(&self, id: &str) -> Result<(), StoreError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let (directory, away) = (self.root.join(id), self.root.join(format!("{REMOVED}{id}")));
        match fs::rename(&directory, &away) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { id: id.to_string() });
            }
            Err(error) => return Err(io_error("remove", &directory)(error)),
        }
        fs::remove_dir_all(&away).map_err(io_error("remove", &away))
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance::{record, suite};
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("viv-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        root
    }

    #[test]
    fn conforms() {
        let root = scratch("suite");
        suite(&|| Box::new(DirectoryStore::open(&root).unwrap()));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_a_crash_left_is_cleared_away() {
        let root = scratch("crash");
        let store = DirectoryStore::open(&root).unwrap();
        store.insert(&record("a1", "web", 1)).unwrap();
        fs::create_dir(root.join("b2")).unwrap(); // made, no record yet
        fs::write(root.join("b2/disk.raw"), "half").unwrap();
        fs::create_dir(root.join(".removed-c3")).unwrap();
        fs::write(root.join(".removed-c3/record.json"), "{}").unwrap();
        fs::write(root.join("a1/record.new"), "{half").unwrap();
        assert_eq!(store.all().unwrap().len(), 1);
        let store = DirectoryStore::open(&root).unwrap();
        assert_eq!(store.all().unwrap().len(), 1);
        assert!(!root.join("b2").exists() && !root.join(".removed-c3").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
