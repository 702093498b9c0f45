//! Layers as archives again, and what a guest wrote to its ext4 as a layer.
use crate::archive::Archive;
use crate::host::{Scratch, layers, tool};
use crate::umoci::{compare, lower, third, upper};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use viv_model::{Fault, Kind as FaultKind};
use viv_rootfs::{Decompress, Kind, Layer, Limits, Tree, ext4, pack, pack_gzip, unpack};

fn packed(layer: &Layer, data: &mut File) -> Vec<u8> {
    let mut archive = Vec::new();
    pack(layer, data, &mut archive, &mut |_| Ok(())).unwrap();
    archive
}

#[test]
fn a_packed_layer_is_the_layer_that_it_was_made_of() {
    let scratch = Scratch::new();
    let mut sparse = Archive::new();
    // 3 MiB, of which the middle is something.
    sparse.file("sparse", &[&vec![0; 1 << 20][..], &vec![7; 1 << 20], &vec![0; (1 << 20) + 5]].concat());
    sparse.file("empty-and-large", &vec![0; 2 << 20]).file("l/".repeat(100) + "name", b"deep");
    let archives = [lower(), upper(), third(), sparse.end()];
    let (before, mut blobs) = layers(&scratch, &archives);
    let again: Vec<Vec<u8>> =
        before.iter().zip(&mut blobs).map(|(layer, data)| packed(layer, data)).collect();
    for ((layer, data), archive) in before.iter().zip(&mut blobs).zip(&again) {
        assert!(packed(layer, data) == *archive, "the same layer gives the same bytes");
        let (mut plain, mut gzip) = (Vec::new(), Vec::new());
        pack_gzip(layer, data, &mut plain, &mut gzip, &mut |_| Ok(())).unwrap();
        assert!(plain == *archive);
        let mut inflated = Vec::new();
        io::copy(&mut Decompress::new(io::Cursor::new(gzip)).unwrap(), &mut inflated).unwrap();
        assert!(inflated == plain);
    }
    assert!(again[3].len() < 2 << 20, "holes were written: {}", again[3].len());
    let other = Scratch::new();
    let (after, _) = layers(&other, &again);
    for (at, (before, after)) in before.iter().zip(&after).enumerate() {
        assert_eq!(before.entries.len(), after.entries.len());
        for (old, new) in before.entries.iter().zip(&after.entries) {
            assert_eq!(old, new);
        }
        let content = |scratch: &Scratch| fs::read(scratch.path(&format!("blob{at}"))).unwrap();
        assert!(content(&scratch) == content(&other));
    }
    // Other programs see the same, too.
    compare(&again[..3], &["gone"]);
}

const MIB: u64 = 1 << 20;

fn fresh(path: &Path, bytes: u64) {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    ext4::empty(bytes, [7; 16], "viv", &file).unwrap();
}

/// What is in `root` of the file system at `path`; the layer's contents come to `blob`.
fn read(path: &Path, blob: &Path) -> Result<Option<Layer>, Fault> {
    let disk = File::open(path).unwrap();
    let size = disk.metadata().unwrap().len();
    let mut data = File::options().read(true).write(true).create(true).truncate(true).open(blob).unwrap();
    let limits = Limits { bytes: 64 * MIB, ..Limits::default() };
    let read = |at: u64, bytes: &mut [u8]| disk.read_exact_at(bytes, at);
    viv_rootfs::upper(&read, size, "root", &mut data, &limits, &mut |_| Ok(()))
}

/// An ext4 into which debugfs has put what overlayfs would.
fn written(scratch: &Scratch) -> std::path::PathBuf {
    let image = scratch.path("ext4");
    fresh(&image, 64 * MIB);
    let big: Vec<u8> = (0..3_000_000u32).map(|at| (at / 4096) as u8).collect();
    fs::write(scratch.path("big"), &big).unwrap();
    fs::write(scratch.path("small"), b"some\n").unwrap();
    let sparse = File::create(scratch.path("sparse")).unwrap();
    sparse.write_all_at(b"middle", 20 * MIB).unwrap();
    sparse.set_len(40 * MIB).unwrap();
    let file = |name: &str| scratch.path(name).display().to_string();
    let mut script = format!(
        "mkdir root\nmkdir work\nmkdir root/etc\nmkdir root/hidden\nea_set root/hidden trusted.overlay.opaque y\n\
         write {0} root/etc/small\nln root/etc/small root/other\nsif root/etc/small links_count 2\n\
         write {1} root/etc/big\nwrite {2} root/sparse\ncd root\nmknod gone c 0 0\nmknod null c 1 3\nmknod disk b 259 700\n\
         mknod pipe p\ncd /\nsymlink root/short target\nsymlink root/long {3}\n\
         sif root/etc/small mode 0104750\nsif root/etc/small uid 70000\nsif root/etc/small gid 3\nsif root/etc/small mtime @1234567890\n\
         ea_set root/etc/small user.name value\nea_set root/etc/small trusted.overlay.origin x\nea_set root/etc/small user.long {4}\n",
        file("small"),
        file("big"),
        file("sparse"),
        "long/".repeat(40),
        "v".repeat(900),
    );
    script.push_str("mkdir root/many\n");
    for number in 0..400 {
        script.push_str(&format!("write {} root/many/a-name-that-takes-some-room-{number}\n", file("small")));
    }
    fs::write(scratch.path("script"), script).unwrap();
    let said = tool("debugfs", &[&"-w", &"-f", &scratch.path("script"), &image]);
    assert!(!said.contains("No such file") && !said.contains("Usage"), "{said}");
    tool("e2fsck", &[&"-fn", &image]);
    image
}

#[test]
fn what_a_guest_changed_is_a_layer() {
    let scratch = Scratch::new();
    let image = written(&scratch);
    let layer = read(&image, &scratch.path("blob")).unwrap().unwrap();
    let entries: BTreeMap<String, _> = layer
        .entries
        .iter()
        .filter(|entry| entry.kind != Kind::Opaque)
        .map(|entry| (String::from_utf8(entry.path.clone()).unwrap(), entry))
        .collect();
    assert_eq!(entries.len(), 14 + 400, "{:?}", entries.keys().take(20).collect::<Vec<_>>());
    assert_eq!(entries[""].kind, Kind::Directory);
    assert_eq!(
        layer.entries.iter().filter(|entry| entry.kind == Kind::Opaque && entry.path == b"hidden").count(),
        1
    );
    assert_eq!(entries["gone"].kind, Kind::Whiteout);
    assert_eq!(entries["null"].kind, Kind::Device { block: false, major: 1, minor: 3 });
    assert_eq!(entries["disk"].kind, Kind::Device { block: true, major: 259, minor: 700 });
    assert_eq!(entries["pipe"].kind, Kind::Fifo);
    assert_eq!(entries["short"].kind, Kind::Symlink(b"target".to_vec()));
    assert_eq!(entries["long"].kind, Kind::Symlink("long/".repeat(40).into_bytes()));
    // The names of a directory come before those of the directories in it.
    assert_eq!(entries["etc/small"].kind, Kind::Hardlink(b"other".to_vec()));
    let other = &entries["other"].attributes;
    assert_eq!((other.mode, other.uid, other.gid, other.mtime.seconds), (0o4750, 70_000, 3, 1_234_567_890));
    assert_eq!(other.xattrs.get(&b"user.name"[..]).unwrap(), b"value");
    assert_eq!(other.xattrs.get(&b"user.long"[..]).unwrap(), "v".repeat(900).as_bytes());
    assert_eq!(other.xattrs.len(), 2, "overlayfs' own are not the image's");
    let tree = Tree::merge(std::slice::from_ref(&layer)).unwrap();
    let content = |path: &str| {
        let inode = tree.resolve(path).unwrap();
        tree.read(inode, &mut [File::open(scratch.path("blob")).unwrap()], 64 << 20).unwrap()
    };
    for (path, name) in [
        ("etc/small", "small"),
        ("etc/big", "big"),
        ("sparse", "sparse"),
        ("many/a-name-that-takes-some-room-399", "small"),
    ] {
        assert!(content(path) == fs::read(scratch.path(name)).unwrap(), "{path}");
    }
    assert!(layer.data_blocks < 2000, "the sparse file's holes take no room: {}", layer.data_blocks);
}

#[test]
fn a_disk_without_changes_or_in_disorder_is_told_from_one_with_them() {
    let scratch = Scratch::new();
    let (image, blob) = (scratch.path("ext4"), scratch.path("blob"));
    fresh(&image, 16 * MIB);
    assert_eq!(read(&image, &blob).unwrap(), None);
    tool("debugfs", &[&"-w", &"-R", &"feature +needs_recovery", &image]);
    let fault = read(&image, &blob).unwrap_err();
    assert!(fault.kind == FaultKind::Conflict && fault.fix.contains("viv stop"), "{fault:?}");
    fs::write(&image, vec![0; 1 << 20]).unwrap();
    assert!(read(&image, &blob).unwrap_err().message.contains("there is none"));
    fs::write(&image, b"short").unwrap();
    assert!(read(&image, &blob).is_err());
}

#[test]
fn damaged_file_systems_are_errors_and_end() {
    let scratch = Scratch::new();
    let (image, blob) = (written(&scratch), scratch.path("blob"));
    let whole = fs::read(&image).unwrap();
    // Superblock, descriptors and inodes: changed bit by bit, at places that a generator of numbers chooses.
    let used: Vec<usize> = (1024..whole.len().min(1 << 20)).filter(|at| whole[*at] != 0).collect();
    let mut number = 0x2545_f491_4f6c_dd1du64;
    let mut refused = 0;
    let mut bytes = whole.clone();
    for _ in 0..100 {
        let mut changed = Vec::new();
        for _ in 0..4 {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            changed.push((used[number as usize % used.len()], 1u8 << (number >> 60 & 7)));
        }
        changed.iter().for_each(|(at, bit)| bytes[*at] ^= bit);
        let disk = &bytes;
        let read = |at: u64, out: &mut [u8]| {
            let at = at as usize;
            let from = disk.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(from);
            Ok(())
        };
        let mut data =
            File::options().read(true).write(true).create(true).truncate(true).open(&blob).unwrap();
        let limits = Limits { bytes: 64 * MIB, ..Limits::default() };
        let found = viv_rootfs::upper(&read, whole.len() as u64, "root", &mut data, &limits, &mut |_| Ok(()));
        refused += usize::from(found.is_err());
        changed.iter().for_each(|(at, bit)| bytes[*at] ^= bit);
    }
    assert!(refused > 20, "{refused} of 100 were refused");
}

#[test]
fn what_archives_cannot_say_is_refused() {
    let scratch = Scratch::new();
    let (image, blob) = (scratch.path("ext4"), scratch.path("blob"));
    fresh(&image, 16 * MIB);
    fs::write(scratch.path("script"), "mkdir root\nmkdir root/.wh.name\n").unwrap();
    tool("debugfs", &[&"-w", &"-f", &scratch.path("script"), &image]);
    assert!(read(&image, &blob).unwrap_err().message.contains(".wh."));
    let mut archive = Archive::new();
    archive.file("a", b"a");
    let archive = archive.end();
    let mut data = File::options().read(true).write(true).create(true).truncate(true).open(&blob).unwrap();
    let mut layer = unpack(&archive[..], &mut data, &Limits::default(), &mut |_| Ok(())).unwrap();
    layer.entries[0].attributes.xattrs.insert(b"user.a=b".to_vec(), Vec::new());
    assert!(
        pack(&layer, &mut data, &mut io::sink(), &mut |_| Ok(())).unwrap_err().message.contains("equals")
    );
}
