//! Changes to a sound ext4 by mke2fs with what a guest leaves in the upper directory of its overlayfs: read as a layer. One form has
//! checksums, the other none, so that changes get behind them. What is taken is packed, merged and written as EROFS.
#![no_main]
use std::io::{self, Cursor};
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::LazyLock;
use std::{env, fs, process};
use viv_rootfs::{Layer, Limits, Tree, pack, upper};

const LIMITS: Limits = Limits { bytes: 4 << 20, entries: 1000, path_len: 4095, xattr_bytes: 64 << 10 };

/// What mke2fs cannot take from a tree of somebody who is not root; the last two take blocks of their own.
const BY_DEBUGFS: &str = "cd root\nmknod gone c 0 0\nmknod null c 1 3\nmknod disk b 259 70000\nmknod pipe p\n\
    ea_set opaque trusted.overlay.opaque y\nea_set etc/a user.x abc\nsif etc/a mode 0104755\nsif etc/a uid 70000\n\
    ea_set -f BIG etc/b user.big\nln etc/a etc/linked\nsif etc/a links_count 2\n";

fn made(checksums: bool) -> Vec<u8> {
    let dir = env::temp_dir().join(format!("viv-fuzz-upper-{}-{checksums}", process::id()));
    let root = dir.join("tree/root");
    fs::create_dir_all(root.join("etc/deep/er")).unwrap();
    fs::create_dir_all(root.join("opaque")).unwrap();
    fs::create_dir_all(dir.join("tree/work/work")).unwrap();
    for (file, length) in [("etc/a", 700), ("etc/b", 9000), ("etc/empty", 0), ("opaque/c", 1)] {
        fs::write(root.join(file), vec![7; length]).unwrap();
    }
    // Enough holes that its extents need a block of their own.
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    for piece in 0..8 {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"x", piece << 13).unwrap();
    }
    symlink("../etc", root.join("short")).unwrap();
    symlink("long/".repeat(30), root.join("long")).unwrap();
    for number in 0..60 {
        fs::write(root.join(format!("etc/deep/a-name-that-takes-room-{number:03}")), "").unwrap();
    }
    fs::write(dir.join("big"), vec![9; 2000]).unwrap();
    fs::write(dir.join("script"), BY_DEBUGFS.replace("BIG", &dir.join("big").display().to_string())).unwrap();
    let image = dir.join("image");
    let run = |program: &str, words: &[&str]| {
        let path = "/usr/sbin:/usr/bin:/sbin:/bin";
        let output = Command::new(program).env("PATH", path).args(words).output();
        let output = output.unwrap_or_else(|error| panic!("{program} (e2fsprogs) is needed: {error}"));
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let features =
        if checksums { "64bit,metadata_csum,^has_journal" } else { "64bit,^metadata_csum,^has_journal" };
    let path = |path: &std::path::Path| path.display().to_string();
    run(
        "mke2fs",
        &[
            "-q",
            "-F",
            "-t",
            "ext4",
            "-b",
            "4096",
            "-N",
            "128",
            "-O",
            features,
            "-E",
            "lazy_itable_init=0",
            "-d",
            &path(&dir.join("tree")),
            &path(&image),
            "1M",
        ],
    );
    run("debugfs", &["-w", "-f", &path(&dir.join("script")), &path(&image)]);
    let bytes = fs::read(&image).unwrap();
    fs::remove_dir_all(dir).unwrap();
    bytes
}

/// A disk, and where it is not zero.
type Sound = (Vec<u8>, Vec<usize>);

static SOUND: LazyLock<[Sound; 2]> = LazyLock::new(|| {
    [false, true].map(|checksums| {
        let image = made(checksums);
        let layer = read(&image).expect("the sound disk is read");
        let kinds = layer.entries.iter().map(|entry| std::mem::discriminant(&entry.kind));
        // Every kind that there is, hard links and marks among them.
        assert_eq!(kinds.collect::<std::collections::HashSet<_>>().len(), 8, "{layer:?}");
        let used =
            (0..image.len()).filter(|at| image[*at] != 0 && image[*at] != 7 && image[*at] != 9).collect();
        (image, used)
    })
});

fn read(image: &[u8]) -> Option<Layer> {
    let at = |offset: u64, bytes: &mut [u8]| {
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let found = image.get(from..).and_then(|rest| rest.get(..bytes.len()));
        bytes.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    };
    let mut data = Cursor::new(Vec::new());
    let layer = upper(&at, image.len() as u64, "root", &mut data, &LIMITS, &mut |_| Ok(())).ok()??;
    assert_eq!(data.get_ref().len() as u64, layer.data_blocks * viv_rootfs::BLOCK as u64);
    assert_eq!(Layer::from_bytes(&layer.to_bytes()).as_ref(), Ok(&layer));
    let _ = pack(&layer, &mut data, &mut io::sink(), &mut |_| Ok(()));
    if let Ok(tree) = Tree::merge(std::slice::from_ref(&layer)) {
        let _ = tree.write_erofs(&mut Vec::new(), &[layer.data_blocks]);
    }
    Some(layer)
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((form, data)) = data.split_first() else { return };
    let (sound, used) = &SOUND[usize::from(form % 2)];
    // Each change: how far from the one before, among the bytes that are not zero or some bytes behind one, and what is there instead.
    let mut image = sound.clone();
    let mut at = 0;
    for change in data.chunks_exact(4) {
        at += usize::from(u16::from_le_bytes([change[0], change[1]]));
        let place = used[at % used.len()] + usize::from(change[2] % 8);
        if let Some(byte) = image.get_mut(place) {
            *byte = change[3];
        }
    }
    let _ = read(&image);
});
