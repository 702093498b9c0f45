//! Copies of directories with all that is in them, and all that belongs to that.
use crate::sys;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, symlink};
use std::path::Path;

/// Copies `from`, which may be anything, to `to`, where nothing is. Names for one file become files of their own; sockets are left out.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let kind = fs::symlink_metadata(from)?.file_type();
    if kind.is_dir() {
        fs::create_dir(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if kind.is_symlink() {
        symlink(fs::read_link(from)?, to)?;
    } else if kind.is_file() {
        fs::copy(from, to)?;
    } else if kind.is_socket() {
        return Ok(());
    } else {
        sys::same_node(from, to)?;
    }
    // Last: times of a directory are those of its last entry until then.
    sys::same_attributes(from, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn a_copy_has_all_that_belongs_to_it() {
        let dir = std::env::temp_dir().join(format!("viv-agent-tree-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/file"), "text").unwrap();
        fs::set_permissions(from.join("a/file"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o2750)).unwrap();
        symlink("nowhere", from.join("a/link")).unwrap();
        let past = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        fs::File::open(from.join("a/b")).unwrap().set_modified(past).unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join("a/file")).unwrap(), "text");
        assert_eq!(fs::read_link(to.join("a/link")).unwrap(), Path::new("nowhere"));
        for (path, mode) in [("a", 0o2750), ("a/file", 0o640)] {
            assert_eq!(fs::metadata(to.join(path)).unwrap().mode() & 0o7777, mode, "{path}");
        }
        assert_eq!(fs::metadata(to.join("a/b")).unwrap().modified().unwrap(), past);
        assert!(copy(&from.join("missing"), &to.join("x")).is_err());
        fs::remove_dir_all(dir).unwrap();
    }
}
