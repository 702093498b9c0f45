//! Files of the host's that are there whole, or not at all.
use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use viv_model::{Fault, Kind};

/// Where some are being written.
static TAKEN: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);

fn with_taken<T>(act: impl FnOnce(&mut HashSet<PathBuf>) -> T) -> T {
    act(TAKEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// A file that is written beside its place. What is left of it by a service that ended is written over by the next one.
pub(crate) struct NewFile {
    to: PathBuf,
    part: PathBuf,
}

impl NewFile {
    /// Begins one at a path where none is.
    pub(crate) fn begin(to: &Path) -> Result<NewFile, Fault> {
        let name = to.file_name().ok_or_else(|| {
            let text = format!("{} names no file", to.display());
            Fault::new(Kind::Usage, text, "name a new file, with its directory")
        })?;
        let mut part = std::ffi::OsString::from(".");
        part.push(name);
        part.push(".viv-part");
        let part = to.with_file_name(part);
        if !with_taken(|taken| taken.insert(to.to_path_buf())) {
            let text = format!("{} is being written", to.display());
            return Err(Fault::new(Kind::Conflict, text, "name another file, or see: viv operation ls"));
        }
        // From here on it is given back when this ends.
        let new = NewFile { to: to.to_path_buf(), part };
        match fs::symlink_metadata(to) {
            Ok(_) => return Err(new.fault(io::ErrorKind::AlreadyExists.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(new.fault(error)),
        }
        match fs::remove_file(&new.part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(new.fault(error)),
            _ => Ok(new),
        }
    }

    /// Where it is to be written; nothing is there.
    pub(crate) fn path(&self) -> &Path {
        &self.part
    }

    /// What is said of a refusal of the file system.
    pub(crate) fn fault(&self, error: io::Error) -> Fault {
        let message = format!("cannot write {}: {error}", self.to.display());
        match error.kind() {
            io::ErrorKind::AlreadyExists => Fault::new(
                Kind::Conflict,
                format!("{} exists already", self.to.display()),
                "name a new file, or remove that one first",
            ),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Fault::new(Kind::NoCapacity, message, "free some space there, or name a file on another disk")
            }
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Fault::new(Kind::Denied, message, "name a file where you may write")
            }
            io::ErrorKind::NotFound => {
                Fault::new(Kind::NotFound, message, "make its directory first, or name another file")
            }
            _ => Fault::new(Kind::Error, message, "look at the disk and its file system, then try again"),
        }
    }

    /// Puts what was written, and synced, into its place. What has come there meanwhile stays.
    pub(crate) fn finish(self) -> Result<PathBuf, Fault> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        let renamed = match renameat_with(CWD, &self.part, CWD, &self.to, RenameFlags::NOREPLACE) {
            // A file system that knows no such flag.
            Err(rustix::io::Errno::INVAL) => {
                fs::hard_link(&self.part, &self.to).and_then(|()| fs::remove_file(&self.part))
            }
            renamed => renamed.map_err(io::Error::from),
        };
        renamed.map_err(|error| self.fault(error))?;
        let directory = self.to.parent().unwrap_or(Path::new("/"));
        fs::File::open(directory).and_then(|all| all.sync_all()).map_err(|error| self.fault(error))?;
        Ok(self.to.clone())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.part); // there is none any more, if it went well
        with_taken(|taken| taken.remove(&self.to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_whole_or_not_at_all() {
        let root = std::env::temp_dir().join(format!("viv-new-file-{}", std::process::id()));
        fs::create_dir(&root).unwrap();
        let to = root.join("x.tar");
        let names = || fs::read_dir(&root).unwrap().count();
        let new = NewFile::begin(&to).unwrap();
        assert_eq!(NewFile::begin(&to).err().map(|fault| fault.kind), Some(Kind::Conflict), "once at a time");
        fs::write(new.path(), "half").unwrap();
        drop(new);
        assert_eq!(names(), 0);

        fs::write(root.join(".x.tar.viv-part"), "of one that was killed").unwrap();
        let new = NewFile::begin(&to).unwrap();
        fs::write(new.path(), "whole").unwrap();
        assert_eq!(new.finish().unwrap(), to);
        assert_eq!((fs::read_to_string(&to).unwrap().as_str(), names()), ("whole", 1));

        assert_eq!(NewFile::begin(&to).err().map(|fault| fault.kind), Some(Kind::Conflict));
        fs::remove_file(&to).unwrap();
        let new = NewFile::begin(&to).unwrap();
        fs::write(new.path(), "mine").unwrap();
        fs::write(&to, "somebody else's").unwrap();
        assert_eq!(new.finish().unwrap_err().kind, Kind::Conflict);
        assert_eq!((fs::read_to_string(&to).unwrap().as_str(), names()), ("somebody else's", 1));
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(NewFile::begin(Path::new("/")).err().map(|fault| fault.kind), Some(Kind::Usage));
        assert_eq!(NewFile::begin(&to).unwrap().fault(io::ErrorKind::NotFound.into()).kind, Kind::NotFound);
    }
}
