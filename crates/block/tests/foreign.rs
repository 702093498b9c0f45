//! Images of other programs, for reading: made by QEMU, converted back by us.

mod scratch;

use scratch::{Directory, alone, qemu_img, qemu_img_is_there};
use viv_block::{CreateOptions, Disk, NewVdi, OpenError, Qcow2, RawDisk, Source, copy, info, open};
use viv_model::DiskFormat;

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|index| if index / 150_000 % 3 == 0 { (index * 11 / 7) as u8 } else { 0 }).collect()
}

/// Each kind that QEMU can make: its format there, options, ours.
const KINDS: [(&str, &str, DiskFormat); 12] = [
    ("vdi", "static=off", DiskFormat::Vdi),
    ("vdi", "static=on", DiskFormat::Vdi),
    ("vpc", "subformat=dynamic,force_size=on", DiskFormat::Vhd),
    ("vpc", "subformat=fixed,force_size=on", DiskFormat::Vhd),
    ("vhdx", "subformat=dynamic,block_size=1M", DiskFormat::Vhdx),
    ("vhdx", "subformat=dynamic", DiskFormat::Vhdx),
    ("vhdx", "subformat=fixed", DiskFormat::Vhdx),
    ("vmdk", "subformat=monolithicSparse", DiskFormat::Vmdk),
    ("vmdk", "subformat=monolithicFlat", DiskFormat::Vmdk),
    ("vmdk", "subformat=twoGbMaxExtentSparse", DiskFormat::Vmdk),
    ("vmdk", "subformat=twoGbMaxExtentFlat", DiskFormat::Vmdk),
    ("vmdk", "subformat=streamOptimized", DiskFormat::Vmdk),
];

#[test]
fn they_are_read_as_qemu_reads_them() {
    let _alone = alone();
    if !qemu_img_is_there() {
        return;
    }
    let dir = Directory::new("foreign");
    let (size, raw) = (5 * 1024 * 1024 + 512 * 3, dir.file("raw"));
    let bytes = content(size);
    std::fs::write(&raw, &bytes).unwrap();
    for (index, (name, options, format)) in KINDS.into_iter().enumerate() {
        let image = dir.file(&format!("{index}.{name}"));
        qemu_img(&["convert", "-f", "raw", "-O", name, "-o", options], &[&raw, &image]);
        let source = Source::new(&image, true);
        let seen = info(&source).unwrap();
        assert_eq!((seen.format, seen.below.len()), (format, 0), "{name} {options}");
        let disk = open(&source).unwrap();
        let mut data = vec![0x55; disk.size() as usize];
        disk.read(0, &mut data).unwrap();
        assert!(data.starts_with(&bytes), "{name} {options}");
        assert!(data[size..].iter().all(|byte| *byte == 0));
        assert_eq!(disk.write(0, &[1]).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
        // Without its zeroes into an image of ours.
        let ours = dir.file(&format!("{index}.qcow2"));
        let target = Qcow2::create(&ours, &CreateOptions::new(disk.size())).unwrap();
        copy(&*disk, &target, &mut |_| Ok(())).unwrap();
        drop((target, disk));
        assert!(matches!(open(&Source::new(&image, false)), Err(OpenError::ReadOnlyFormat { .. })));
        qemu_img(&["compare", "-q", "-f", "qcow2", "-F", name], &[&ours, &image]);
        qemu_img(&["check", "-q"], &[&ours]);
    }
}

#[test]
fn a_disk_is_copied_into_a_vdi() {
    let _alone = alone();
    let dir = Directory::new("new-vdi");
    for size in [512, (1 << 20) - 512, 5 * 1024 * 1024 + 512 * 3] {
        let (raw, vdi) = (dir.file(&format!("{size}.raw")), dir.file(&format!("{size}.vdi")));
        let bytes = content(size);
        std::fs::write(&raw, &bytes).unwrap();
        let target = NewVdi::create(&vdi, size as u64).unwrap();
        copy(&*open(&Source::new(&raw, true)).unwrap(), &target, &mut |_| Ok(())).unwrap();
        assert!(target.write(size as u64, &[0; 512]).is_err(), "nothing is behind its end");
        drop(target);
        let disk = open(&Source::new(&vdi, true)).unwrap();
        let mut data = vec![0x55; disk.size() as usize];
        disk.read(0, &mut data).unwrap();
        assert!(data == bytes, "{size}");
        drop(disk);
        if qemu_img_is_there() {
            qemu_img(&["compare", "-q", "-f", "raw", "-F", "vdi"], &[&raw, &vdi]);
            qemu_img(&["check", "-q", "-f", "vdi"], &[&vdi]);
        }
    }
    for size in [0, 100, u64::MAX / 1024 * 512] {
        assert!(matches!(NewVdi::create(&dir.file("wrong"), size), Err(OpenError::BadSize { .. })));
        assert!(!dir.file("wrong").exists(), "nothing is left of it");
    }
}

#[test]
fn a_vmdk_names_no_file_outside_its_directory() {
    let _alone = alone();
    let (dir, other) = (Directory::new("vmdk"), Directory::new("elsewhere"));
    let secret = other.file("secret");
    RawDisk::create(&secret, 1 << 20).unwrap();
    let image = dir.file("evil.vmdk");
    let text = |name: &str| {
        format!("# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\nRW 2048 FLAT \"{name}\" 0\n")
    };
    for name in [secret.to_str().unwrap(), "/etc/shadow", "../../etc/passwd"] {
        std::fs::write(&image, text(name)).unwrap();
        assert!(matches!(open(&Source::new(&image, true)), Err(OpenError::Outside { .. })), "{name}");
    }
    std::fs::write(&image, text(secret.to_str().unwrap())).unwrap();
    let named = Source { allowed: vec![secret], ..Source::new(&image, true) };
    assert_eq!(open(&named).unwrap().size(), 1 << 20);
    assert_eq!(viv_block::files(&named).unwrap().len(), 2);
    assert_eq!(info(&named).unwrap().size, 1 << 20);
}
