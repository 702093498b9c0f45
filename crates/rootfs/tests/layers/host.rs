//! What tests need of the host: scratch directories, disks out of layers, trees as lists, Debian's tools.
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use viv_rootfs::{Decompress, Layer, Limits, Tree, unpack};

/// A directory that goes away with its test.
pub(crate) struct Scratch(pub(crate) PathBuf);

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("viv-rootfs-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a tool; it must succeed. Its output.
pub(crate) fn tool(program: &str, words: &[&dyn AsRef<OsStr>]) -> String {
    // Debian's users do not have the directories of the administrator's tools.
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let output = Command::new(program).args(words).env("PATH", path).output();
    let output =
        output.unwrap_or_else(|error| panic!("{program} is needed ({error}): cargo xtask test installs it"));
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program}: {said}");
    said
}

/// Whether a tool is there. Those of EROFS and of images are not everywhere: a test that has to do without says so.
pub(crate) fn installed(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').any(|dir| Path::new(dir).join(program).is_file())
}

/// fsck.erofs has nothing to say of a disk.
pub(crate) fn check_erofs(disk: &Path) {
    if installed("fsck.erofs") {
        assert_eq!(tool("fsck.erofs", &[&disk]), "");
    } else {
        not_tested("an EROFS by fsck.erofs", "it is not installed (package erofs-utils)");
    }
}

/// Reads layers, given as they are stored; the archives' data blobs are in `scratch`.
pub(crate) fn layers(scratch: &Scratch, archives: &[Vec<u8>]) -> (Vec<Layer>, Vec<File>) {
    let mut blobs = Vec::new();
    let read = |(at, archive): (usize, &Vec<u8>)| {
        let blob = scratch.path(&format!("blob{at}"));
        let mut blob = File::options().read(true).write(true).create_new(true).open(blob).unwrap();
        let source = Decompress::new(io::Cursor::new(archive.clone())).unwrap();
        let layer = unpack(source, &mut blob, &Limits::default(), &mut |_| Ok(())).unwrap();
        blobs.push(blob);
        let again = Layer::from_bytes(&layer.to_bytes()).unwrap();
        assert!(again == layer, "the index gives back what it was made of");
        layer
    };
    let layers: Vec<Layer> = archives.iter().enumerate().map(read).collect();
    (layers, blobs)
}

/// Writes a disk: metadata, then blobs. Holes stay holes.
pub(crate) fn disk(path: &Path, tree: &Tree, layers: &[Layer], blobs: &mut [File]) {
    let mut out = File::create(path).unwrap();
    let blocks: Vec<u64> = layers.iter().map(|layer| layer.data_blocks).collect();
    tree.write_erofs(&mut out, &blocks).unwrap();
    for blob in blobs {
        blob.rewind().unwrap();
        io::copy(blob, &mut out).unwrap();
    }
    out.flush().unwrap();
}

/// A file system mounted from a disk, for reading.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// Mounts `disk`; it is an error only if the host mounts none of that kind, not even one that Debian's tools have made.
    pub(crate) fn new(kind: &str, options: &str, disk: &Path, at: PathBuf) -> Result<Mount, String> {
        let Err(why) = Mount::any(kind, options, disk, at.clone()) else { return Ok(Mount(at)) };
        let scratch = Scratch::new();
        let reference = scratch.path("reference");
        if kind == "erofs" && !installed("mkfs.erofs") {
            return Err(why);
        } else if kind == "erofs" {
            fs::create_dir(scratch.path("empty")).unwrap();
            tool("mkfs.erofs", &[&reference, &scratch.path("empty")]);
        } else {
            File::create(&reference).unwrap().set_len(64 << 20).unwrap();
            tool("mke2fs", &[&"-q", &"-t", &kind, &reference]);
        }
        match Mount::any(kind, options, &reference, scratch.path("mount")) {
            Ok(()) => {
                drop(Mount(scratch.path("mount")));
                panic!("{} cannot be mounted: {why}", disk.display());
            }
            Err(_) => Err(format!("no {kind} can be mounted here: {why}")),
        }
    }

    fn any(kind: &str, options: &str, disk: &Path, at: PathBuf) -> Result<(), String> {
        fs::create_dir_all(&at).unwrap();
        let options = format!("loop,{options}");
        let mount = Command::new("mount").args(["-t", kind, "-o", &options]).args([disk, &at]).output();
        let mount = mount.map_err(|error| format!("mount: {error}"))?;
        let said = String::from_utf8_lossy(&mount.stderr).trim().to_string();
        if mount.status.success() { Ok(()) } else { Err(said) }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// Past the test harness, which keeps to itself what tests print that succeed.
pub(crate) fn not_tested(what: &str, why: &str) {
    let _ = writeln!(io::stderr(), "!!! NOT TESTED: {what}: {why}");
}

/// A file as a line: all that a process sees of it but its times of access and change.
pub(crate) fn listing(root: &Path) -> BTreeMap<Vec<u8>, String> {
    let mut lines = BTreeMap::new();
    let mut first_names: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let mut queue = vec![root.to_path_buf()];
    let mut paths = Vec::new();
    while let Some(path) = queue.pop() {
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            queue.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        paths.push(path);
    }
    paths.sort();
    for path in paths {
        let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        let data = fs::symlink_metadata(&path).unwrap();
        let kind = data.file_type();
        let content = match () {
            () if kind.is_file() => format!("file {} {}", data.len(), digest(&path)),
            () if kind.is_dir() => "directory".to_string(),
            () if kind.is_symlink() => format!("link to {:?}", fs::read_link(&path).unwrap()),
            () if kind.is_fifo() => "pipe".to_string(),
            () if kind.is_block_device() => format!("block device {:x}", data.rdev()),
            () => format!("character device {:x}", data.rdev()),
        };
        let shown = String::from_utf8_lossy(&name).into_owned();
        let first = first_names.entry((data.dev(), data.ino())).or_insert(shown).clone();
        let line = format!(
            "{content}, mode {:o}, owner {}:{}, changed {}.{:09}, links {}, first name {first:?}, attributes {:?}",
            data.mode(),
            data.uid(),
            data.gid(),
            data.mtime(),
            data.mtime_nsec(),
            data.nlink(),
            xattrs(&path)
        );
        lines.insert(name, line);
    }
    lines
}

fn digest(path: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut File::open(path).unwrap(), &mut hasher).unwrap();
    hasher.finalize().to_hex()[..16].to_string()
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    names.truncate(length);
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let name = std::ffi::OsString::from_vec(name.to_vec());
        let length = rustix::fs::lgetxattr(path, &name, &mut value[..]).unwrap();
        value.truncate(length);
        (name.to_string_lossy().into_owned(), value)
    };
    names.map(value).collect()
}
