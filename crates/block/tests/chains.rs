//! Chains of images: what they may refer to, what they may not, and that nothing guest-made changes a format.

mod scratch;

use scratch::Directory;
use std::path::Path;
use viv_block::{CreateOptions, Disk, OpenError, Qcow2, RawDisk, Source, files, info, mark_raw, open, probe};
use viv_model::DiskFormat;

const SIZE: u64 = 1 << 20;

fn overlay(path: &Path, name: &str, format: &str) {
    let backing = Some((name.to_string(), format.to_string()));
    Qcow2::create(path, &CreateOptions { backing, ..CreateOptions::new(SIZE) }).unwrap();
}

fn opened(path: &Path) -> Result<(), OpenError> {
    open(&Source::new(path, false)).map(drop)
}

#[test]
fn a_disk_below_is_shared_and_never_written() {
    let dir = Directory::new("share");
    let base = dir.file("base.raw");
    RawDisk::create(&base, SIZE).unwrap().write(0, b"below").unwrap();
    for name in ["a.qcow2", "b.qcow2"] {
        overlay(&dir.file(name), "base.raw", "raw");
    }
    let a = open(&Source::new(&dir.file("a.qcow2"), false)).unwrap();
    let b = open(&Source::new(&dir.file("b.qcow2"), false)).unwrap();
    a.write(0, b"above").unwrap();
    let mut data = [0; 5];
    b.read(0, &mut data).unwrap();
    assert_eq!(&data, b"below");
    assert!(matches!(RawDisk::open(&base, false), Err(OpenError::InUse { .. })));
    assert!(matches!(opened(&dir.file("a.qcow2")), Err(OpenError::InUse { .. })));
    drop((a, b));
    RawDisk::open(&base, false).unwrap();
    let chain = files(&Source::new(&dir.file("a.qcow2"), true)).unwrap();
    assert_eq!(chain, [dir.file("a.qcow2"), base.canonicalize().unwrap()]);
}

#[test]
fn nothing_outside_the_directory_unless_named() {
    let (dir, other) = (Directory::new("in"), Directory::new("out"));
    let secret = other.file("secret.raw");
    RawDisk::create(&secret, SIZE).unwrap();
    let above = dir.file("above.qcow2");
    let relative = format!("../{}/secret.raw", other.path().file_name().unwrap().to_str().unwrap());
    for name in [secret.to_str().unwrap(), &relative, "/etc/shadow", "../no-such-file-anywhere"] {
        let _ = std::fs::remove_file(&above);
        overlay(&above, name, "raw");
        assert!(matches!(opened(&above), Err(OpenError::Outside { .. })), "{name}");
        assert!(matches!(files(&Source::new(&above, true)), Err(OpenError::Outside { .. })), "{name}");
    }
    // By a link of its own directory.
    std::fs::remove_file(&above).unwrap();
    overlay(&above, "link.raw", "raw");
    std::os::unix::fs::symlink(&secret, dir.file("link.raw")).unwrap();
    assert!(matches!(opened(&above), Err(OpenError::Outside { .. })));
    for allowed in [secret.clone(), other.path().to_owned()] {
        open(&Source { allowed: vec![allowed], ..Source::new(&above, false) }).unwrap();
    }
}

#[test]
fn chains_end() {
    let dir = Directory::new("circle");
    let path = |name: &str| dir.file(name);
    overlay(&path("self.qcow2"), "self.qcow2", "qcow2");
    assert!(matches!(opened(&path("self.qcow2")), Err(OpenError::Circle { .. })));
    overlay(&path("a.qcow2"), "b.qcow2", "qcow2");
    overlay(&path("b.qcow2"), "a.qcow2", "qcow2");
    assert!(matches!(opened(&path("a.qcow2")), Err(OpenError::Circle { .. })));
    assert!(matches!(info(&Source::new(&path("a.qcow2"), true)), Err(OpenError::Circle { .. })));
    overlay(&path("0.qcow2"), "nothing.raw", "raw");
    assert!(matches!(opened(&path("0.qcow2")), Err(OpenError::NoBacking { .. })));
    for level in 1..100 {
        overlay(&path(&format!("{level}.qcow2")), &format!("{}.qcow2", level - 1), "qcow2");
    }
    assert!(matches!(opened(&path("99.qcow2")), Err(OpenError::Circle { .. })));
    for name in ["nbd:localhost:10809", "ssh://host/disk", "json:{\"driver\":\"file\"}"] {
        let _ = std::fs::remove_file(path("net.qcow2"));
        overlay(&path("net.qcow2"), name, "raw");
        assert!(matches!(opened(&path("net.qcow2")), Err(OpenError::Unsupported { .. })), "{name}");
    }
}

/// A guest writes the header of an image into its raw disk: what is opened next time is still that raw disk.
#[test]
fn a_raw_disk_stays_raw() {
    let (dir, other) = (Directory::new("raw"), Directory::new("victim"));
    let (disk, image) = (dir.file("disk"), dir.file("evil.qcow2"));
    RawDisk::create(&other.file("secret"), SIZE).unwrap();
    overlay(&image, other.file("secret").to_str().unwrap(), "raw");
    let evil = std::fs::read(&image).unwrap();
    RawDisk::create(&disk, SIZE).unwrap();
    assert_eq!(probe(&disk).unwrap(), DiskFormat::Raw);
    let marked = mark_raw(&disk).is_ok();
    RawDisk::open(&disk, false).unwrap().write(0, &evil[..65536]).unwrap();
    // Known to be raw: never looked at.
    let raw = open(&Source { format: Some(DiskFormat::Raw), ..Source::new(&disk, false) }).unwrap();
    assert_eq!(raw.size(), SIZE);
    drop(raw);
    // Given to another VM without a word.
    if marked {
        assert_eq!(probe(&disk).unwrap(), DiskFormat::Raw);
        assert_eq!(open(&Source::new(&disk, false)).unwrap().size(), SIZE);
    }
    // Even where the mark was lost, it leads nowhere: not outside, and below another image not even inside.
    let copy = dir.file("copy");
    std::fs::write(&copy, std::fs::read(&disk).unwrap()).unwrap();
    assert_eq!(probe(&copy).unwrap(), DiskFormat::Qcow2);
    assert!(matches!(opened(&copy), Err(OpenError::Outside { .. })));
    let (inside, above) = (dir.file("inside"), dir.file("above.qcow2"));
    overlay(&inside, "disk", "raw");
    Qcow2::create(&above, &CreateOptions::new(SIZE)).unwrap();
    Qcow2::set_backing(&above, Some(("inside".into(), "qcow2".into()))).unwrap();
    opened(&above).unwrap();
    // The same without saying what format is below.
    let header = std::fs::read(&above).unwrap();
    let extension = header.windows(4).position(|bytes| bytes == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    let mut unsaid = header;
    unsaid[extension..extension + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    std::fs::write(&above, unsaid).unwrap();
    assert!(matches!(opened(&above), Err(OpenError::Outside { .. })));
}

#[test]
fn an_image_tells_about_itself() {
    let dir = Directory::new("info");
    RawDisk::create(&dir.file("base"), SIZE).unwrap();
    overlay(&dir.file("top"), "base", "raw");
    let top = info(&Source::new(&dir.file("top"), true)).unwrap();
    assert_eq!((top.format, top.size), (DiskFormat::Qcow2, SIZE));
    let qcow2 = top.qcow2.unwrap();
    assert_eq!((qcow2.version, qcow2.cluster, qcow2.snapshots), (3, 65536, 0));
    assert_eq!((qcow2.backing.as_deref(), qcow2.backing_format.as_deref()), (Some("base"), Some("raw")));
    let below: Vec<_> = top.below.iter().map(|below| (below.format, below.size)).collect();
    assert_eq!(below, [(DiskFormat::Raw, SIZE)]);
}
