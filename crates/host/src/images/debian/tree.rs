//! The new system's files in a directory of this host, with what only root could give them written down beside.
use crate::images::fault::{broken, io_fault};
use crate::images::tar::{Entry, Kind};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use viv_model::Fault;

/// Directories of the root that are links into `/usr` on a merged system.
const MERGED: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Documents for which a disk image has no room; dpkg is told the same (`viv-slim`).
const EXCLUDED: [&str; 5] =
    ["usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/"];

/// File types of an inode's mode (ext4, Inode Table).
const S_IFDIR: u32 = 0o040000;
const S_IFREG: u32 = 0o100000;

/// What an inode should be, where the file on this host cannot be it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// With the file type; 0 for links, whose mode does not matter.
    pub(super) mode: u32,
}

/// A tree being filled.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    /// Real directories: nothing is ever written through a link.
    directories: BTreeSet<String>,
    wishes: BTreeMap<String, Wish>,
}

impl Tree {
    /// An empty one with merged `/usr`.
    pub(super) fn new(root: &Path) -> Result<Tree, Fault> {
        let mut tree =
            Tree { root: root.to_path_buf(), directories: BTreeSet::new(), wishes: BTreeMap::new() };
        fs::create_dir_all(root).map_err(io_fault("make", root))?;
        tree.directories.insert(String::new());
        for (path, mode) in [("dev", 0o755), ("proc", 0o555), ("sys", 0o555), ("run", 0o755), ("tmp", 0o1777)]
        {
            tree.directory(path, Wish { uid: 0, gid: 0, mode }).map_err(io_fault("make", root))?;
        }
        for name in ["bin", "sbin", "lib", "lib64"] {
            tree.merge(name).map_err(io_fault("make", root))?;
        }
        Ok(tree)
    }

    /// The tree's directory on this host.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// What each inode should be: path, and wish.
    pub(super) fn wishes(&self) -> impl Iterator<Item = (&str, Wish)> {
        self.wishes.iter().map(|(path, wish)| (path.as_str(), *wish))
    }

    /// Makes a merged directory and its link.
    fn merge(&mut self, name: &str) -> io::Result<()> {
        let target = format!("usr/{name}");
        if !self.directories.contains(&target) {
            self.directory(&target, Wish { uid: 0, gid: 0, mode: 0o755 })?;
            symlink(&target, self.root.join(name))?;
            self.wishes.insert(name.to_string(), Wish { uid: 0, gid: 0, mode: 0 });
        }
        Ok(())
    }

    /// Where a path of a package is in a merged system.
    fn place(&mut self, path: &str) -> io::Result<String> {
        let top = path.split('/').next().unwrap_or_default();
        if !MERGED.contains(&top) {
            return Ok(path.to_string());
        }
        self.merge(top)?;
        Ok(format!("usr/{path}"))
    }

    /// Adds an entry of package `package`; `content` is read for files.
    pub(super) fn add(&mut self, package: &str, entry: &Entry, content: &mut impl Read) -> Result<(), Fault> {
        if entry.path.is_empty() || is_excluded(&entry.path) {
            return Ok(());
        }
        self.try_add(entry, content).map_err(|error| broken(package, format_args!("{}: {error}", entry.path)))
    }

    fn try_add(&mut self, entry: &Entry, content: &mut impl Read) -> io::Result<()> {
        let wish = Wish { uid: entry.uid, gid: entry.gid, mode: entry.mode };
        if MERGED.contains(&entry.path.as_str()) {
            return self.merge(&entry.path);
        }
        let path = self.place(&entry.path)?;
        match &entry.kind {
            Kind::Directory => self.directory(&path, wish),
            Kind::File => {
                let modified = SystemTime::UNIX_EPOCH + Duration::from_secs(entry.mtime.min(u32::MAX.into()));
                self.file(&path, wish, content, Some(modified))
            }
            Kind::Symlink(target) => {
                let host = self.fresh(&path)?;
                symlink(target, host)?;
                self.wishes.insert(path, Wish { mode: 0, ..wish });
                Ok(())
            }
            Kind::Hardlink(target) => {
                let target = self.place(target)?;
                let old = self.wishes.get(&target).copied();
                let old = old.filter(|old| old.mode & S_IFREG == S_IFREG);
                let old = old.ok_or_else(|| io::Error::other("a link to no file of the package"))?;
                let host = self.fresh(&path)?;
                fs::hard_link(self.root.join(&target), host)?;
                self.wishes.insert(path, old);
                Ok(())
            }
            Kind::Other(_) => Err(io::Error::other("a device or a pipe")),
        }
    }

    /// Writes a file of root's own.
    pub(super) fn write(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), Fault> {
        let host = self.root.join(path);
        self.file(path, Wish { uid: 0, gid: 0, mode }, &mut &content[..], None)
            .map_err(io_fault("write", &host))
    }

    fn directory(&mut self, path: &str, wish: Wish) -> io::Result<()> {
        self.parents(path)?;
        let host = self.root.join(path);
        if !self.directories.contains(path) {
            fs::create_dir(&host)?;
            self.directories.insert(path.to_string());
        }
        // We must be able to write into it and to remove it, whoever we are.
        fs::set_permissions(&host, fs::Permissions::from_mode(wish.mode | 0o700))?;
        self.wishes.insert(path.to_string(), Wish { mode: S_IFDIR | wish.mode, ..wish });
        Ok(())
    }

    fn file(
        &mut self,
        path: &str,
        wish: Wish,
        content: &mut impl Read,
        modified: Option<SystemTime>,
    ) -> io::Result<()> {
        let host = self.fresh(path)?;
        let mut file = File::create_new(host)?;
        io::copy(content, &mut file)?;
        if let Some(modified) = modified {
            file.set_modified(modified)?;
        }
        file.set_permissions(fs::Permissions::from_mode(wish.mode | 0o600))?;
        self.wishes.insert(path.to_string(), Wish { mode: S_IFREG | wish.mode, ..wish });
        Ok(())
    }

    /// A place where nothing is, in a directory that is one.
    fn fresh(&mut self, path: &str) -> io::Result<PathBuf> {
        self.parents(path)?;
        let host = self.root.join(path);
        if self.wishes.contains_key(path) {
            fs::remove_file(&host)?;
        }
        Ok(host)
    }

    /// Makes sure that every directory above `path` is there and is one.
    fn parents(&mut self, path: &str) -> io::Result<()> {
        for (at, _) in path.match_indices('/') {
            let parent = path.get(..at).unwrap_or_default();
            if !self.directories.contains(parent) {
                if self.wishes.contains_key(parent) {
                    return Err(io::Error::other(format!("{parent} is no directory")));
                }
                self.directory(parent, Wish { uid: 0, gid: 0, mode: 0o755 })?;
            }
        }
        Ok(())
    }

    /// Reads a file back, e.g. for its sum; `None` if it is not there.
    pub(super) fn read(&mut self, path: &str) -> Option<Vec<u8>> {
        let path = self.place(path).ok()?;
        self.wishes.get(&path).filter(|wish| wish.mode & S_IFREG == S_IFREG)?;
        fs::read(self.root.join(path)).ok()
    }

    /// Writes it as an archive in the order of its paths, with what each inode should be. No time in it is later than `epoch`.
    pub(super) fn pack(&self, archive: &Path, epoch: u64) -> io::Result<()> {
        let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, File::create(archive)?));
        let mut linked: HashMap<u64, &str> = HashMap::new();
        for (path, wish) in &self.wishes {
            let host = self.root.join(path);
            let found = fs::symlink_metadata(&host)?;
            let mut header = tar::Header::new_gnu();
            header.set_uid(wish.uid.into());
            header.set_gid(wish.gid.into());
            header.set_mode(wish.mode & 0o7777);
            header.set_size(0);
            // Only files have the times of their packages.
            header.set_mtime(epoch);
            if found.is_dir() {
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, path, io::empty())?;
            } else if found.is_symlink() {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_mode(0o777);
                tar.append_link(&mut header, path, fs::read_link(&host)?)?;
            } else if let Some(first) = linked.get(&found.ino()) {
                header.set_entry_type(tar::EntryType::Link);
                tar.append_link(&mut header, path, first)?;
            } else {
                if found.nlink() > 1 {
                    linked.insert(found.ino(), path);
                }
                let modified = found.modified()?.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                header.set_mtime(modified.as_secs().min(epoch));
                header.set_size(found.len());
                tar.append_data(&mut header, path, File::open(&host)?)?;
            }
        }
        tar.into_inner()?.into_inner().map(drop).map_err(|error| error.into_error())
    }

    /// Deletes it.
    pub(super) fn remove(self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

fn is_excluded(path: &str) -> bool {
    EXCLUDED.iter().any(|prefix| path.starts_with(prefix)) && !path.ends_with("/copyright")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind, mode: u32) -> Entry {
        Entry { path: path.into(), kind, mode, uid: 0, gid: 42, mtime: 1, size: 0 }
    }

    fn tree(name: &str) -> Tree {
        let root = std::env::temp_dir().join(format!("viv-tree-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        Tree::new(&root).unwrap()
    }

    #[test]
    fn packages_land_in_usr_with_their_owners_written_down() {
        let mut tree = tree("merged");
        tree.add("p", &entry("bin", Kind::Directory, 0o755), &mut &b""[..]).unwrap();
        tree.add("p", &entry("bin/su", Kind::File, 0o4755), &mut &b"su"[..]).unwrap();
        tree.add("p", &entry("sbin/su2", Kind::Hardlink("bin/su".into()), 0), &mut &b""[..]).unwrap();
        tree.add("p", &entry("usr/share/doc/p/README", Kind::File, 0o644), &mut &b"x"[..]).unwrap();
        assert_eq!(fs::read_link(tree.root().join("bin")).unwrap(), Path::new("usr/bin"));
        assert_eq!(tree.read("bin/su").unwrap(), b"su");
        assert_eq!(tree.read("usr/sbin/su2").unwrap(), b"su");
        assert!(tree.read("usr/share/doc/p/README").is_none());
        let wish = tree.wishes().find(|(path, _)| *path == "usr/bin/su").unwrap().1;
        assert_eq!(wish, Wish { uid: 0, gid: 42, mode: 0o104755 });
        tree.remove();
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let mut tree = tree("links");
        tree.add("p", &entry("etc/x", Kind::Symlink("/tmp".into()), 0o777), &mut &b""[..]).unwrap();
        let fault = tree.add("p", &entry("etc/x/y", Kind::File, 0o644), &mut &b""[..]).unwrap_err();
        assert!(fault.message.contains("etc/x"), "{fault}");
        assert!(tree.add("p", &entry("dev/sda", Kind::Other(b'4'), 0o600), &mut &b""[..]).is_err());
        tree.remove();
    }
}
