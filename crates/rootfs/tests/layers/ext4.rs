//! Fresh ext4 file systems, as e2fsck, resize2fs and Linux see them.
use crate::host::{Mount, Scratch, not_tested, tool};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use viv_rootfs::ext4;

const UUID: [u8; 16] = *b"\x12\x34\x56\x78\x9a\xbc\x4d\xef\x80\x01\x02\x03\x04\x05\x06\x07";
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn made(path: &Path, bytes: u64) -> u64 {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    ext4::empty(bytes, UUID, "scratch", &file).unwrap();
    let data = file.metadata().unwrap();
    assert_eq!(data.len(), bytes);
    data.blocks() * 512
}

fn check(path: &Path) {
    let said = tool("e2fsck", &[&"-fn", &path]);
    let fine = !["?", "Fix", "WARNING", "error", "MODIFIED"].iter().any(|word| said.contains(word));
    assert!(fine && said.contains("11/"), "{said}");
}

#[test]
fn e2fsck_is_content_with_every_size() {
    let scratch = Scratch::new();
    let image = scratch.path("ext4");
    // Sizes at which something changes: journals, whole and cut groups, groups of groups, the last group too short.
    let group = 128 * MIB;
    for bytes in [
        16 * MIB,
        16 * MIB + 4095,
        100 * MIB,
        group,
        group + 4096,
        group + 3 * MIB,
        2 * group,
        3 * group,
        GIB,
        2 * GIB - 4096,
        2 * GIB + 2 * MIB,
        2 * GIB + 3 * MIB,
        16 * group + 20 * MIB,
        10 * GIB,
        64 * GIB,
        64 * GIB + 8192,
        333 * GIB + 123,
        1024 * GIB,
    ] {
        let room = made(&image, bytes);
        check(&image);
        if bytes == 64 * GIB {
            assert!(room < MIB, "64 GiB take {room} bytes");
        }
        let said = tool("dumpe2fs", &[&"-h", &image]);
        for line in ["12345678-9abc-4def-8001-020304050607", "scratch", "metadata_csum", "clean"] {
            assert!(said.contains(line), "{said}");
        }
        fs::remove_file(&image).unwrap();
    }
}

#[test]
fn other_sizes_are_refused_and_nothing_is_overwritten() {
    let scratch = Scratch::new();
    let file = File::create_new(scratch.path("ext4")).unwrap();
    for bytes in [0, 16 * MIB - 1, 16 * 1024 * GIB + 1, u64::MAX] {
        let fault = ext4::empty(bytes, UUID, "", &file).unwrap_err();
        assert!(fault.fix.contains("16 MiB"), "{fault}");
    }
    file.set_len(1).unwrap();
    assert!(ext4::empty(GIB, UUID, "", &file).unwrap_err().message.contains("not empty"));
}

#[test]
fn it_grows() {
    let scratch = Scratch::new();
    for (number, (from, to)) in
        [(16, 40), (100, 1000), (1024, 9 * 1024), (300, 70_000)].into_iter().enumerate()
    {
        let image = scratch.path(&format!("ext4.{number}"));
        made(&image, from * MIB);
        File::options().write(true).open(&image).unwrap().set_len(to * MIB).unwrap();
        tool("resize2fs", &[&image]);
        check(&image);
        let said = tool("dumpe2fs", &[&"-h", &image]);
        let blocks = said.lines().find_map(|line| line.strip_prefix("Block count:")).unwrap();
        assert!(blocks.trim().parse::<u64>().unwrap() * 4096 > (to - 4) * MIB, "{said}");
    }
}

#[test]
fn linux_writes_to_it() {
    let scratch = Scratch::new();
    let image = scratch.path("ext4");
    made(&image, 3 * GIB);
    match Mount::new("ext4", "rw", &image, scratch.path("mount")) {
        Err(why) => return not_tested("a fresh ext4 as Linux sees it", &why),
        Ok(_mount) => {
            let at = |name: &str| scratch.path("mount").join(name);
            fs::create_dir_all(at("a/b/c")).unwrap();
            for number in 0..2000 {
                fs::write(at(&format!("a/b/{number}")), vec![number as u8; 5000]).unwrap();
            }
            fs::write(at("large"), vec![7; 100 << 20]).unwrap();
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(at("a"), "trusted.overlay.opaque", b"y", flags).unwrap();
            assert_eq!(fs::read(at("a/b/99")).unwrap(), [99; 5000]);
        }
    }
    let said = tool("e2fsck", &[&"-fn", &image]);
    assert!(said.contains("2015/") && !said.contains('?'), "{said}");
}
