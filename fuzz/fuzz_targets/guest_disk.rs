//! Any bytes as a disk, and as changes to a sound one with a file system by mke2fs, mkfs.xfs or mkfs.btrfs: looked into for what it would boot.
#![no_main]
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::{env, fs, process};

/// A file system with a configuration of GRUB and a kernel, and where it is not zero.
struct Sound {
    bytes: Vec<u8>,
    used: Vec<usize>,
}

/// ext4 with a journal, XFS and btrfs.
static SOUND: LazyLock<[Sound; 3]> = LazyLock::new(|| {
    let ext = "mke2fs -q -F -t ext4 -b 1024 -J size=1 -d TREE IMAGE";
    let xfs = "mkfs.xfs --unsupported -q -f -p LIST IMAGE";
    let btrfs = "mkfs.btrfs -q -f --mixed --rootdir TREE IMAGE";
    [(ext, 4), (xfs, 20), (btrfs, 32)].map(|(command, mib)| sound(command, mib << 20))
});

fn sound(command: &str, len: u64) -> Sound {
    let dir = env::temp_dir().join(format!("viv-fuzz-guest-disk-{}", process::id()));
    let boot = dir.join("tree/boot/grub");
    fs::create_dir_all(&boot).unwrap();
    fs::write(
        boot.join("grub.cfg"),
        "menuentry a {\nlinux /boot/vmlinuz-1 ro\ninitrd /boot/initrd.img-1\n}\n",
    )
    .unwrap();
    fs::write(dir.join("tree/boot/vmlinuz-1"), vec![1; 5000]).unwrap();
    fs::write(dir.join("tree/boot/initrd.img-1"), vec![2; 20_000]).unwrap();
    let (image, list) = (dir.join("image"), dir.join("list"));
    fs::File::create(&image).unwrap().set_len(len).unwrap();
    // As mkfs.xfs wants it (mkfs.xfs(8), "protofile").
    let file = |name: &str, path: &str| {
        format!("{name} ---644 0 0 {}\n", dir.join("tree/boot").join(path).display())
    };
    let files = [
        file("vmlinuz-1", "vmlinuz-1"),
        file("initrd.img-1", "initrd.img-1"),
        format!("grub d--755 0 0\n{}$\n", file("grub.cfg", "grub/grub.cfg")),
    ];
    fs::write(&list, format!("/dev/null\n0 0\nd--755 0 0\nboot d--755 0 0\n{}$\n$\n", files.concat()))
        .unwrap();
    let mut words = command.split(' ').map(|word| match word {
        "TREE" => dir.join("tree").into_os_string(),
        "LIST" => list.clone().into_os_string(),
        "IMAGE" => image.clone().into_os_string(),
        word => word.into(),
    });
    let program = words.next().unwrap();
    let made = Command::new(&program)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    assert!(
        made.is_ok_and(|status| status.success()),
        "{program:?} is needed (e2fsprogs, xfsprogs, btrfs-progs)"
    );
    let bytes = fs::read(&image).unwrap();
    fs::remove_dir_all(dir).unwrap();
    let used = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    Sound { bytes, used }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viv_guestfs::trial::read_partitions(data);
    viv_guestfs::trial::look_into(&viv_guestfs::trial::gpt_disk(&[(1, data.to_vec())]));
    // Each change: how far from the one before, among the bytes that are not zero, and what is there instead.
    let Some((which, data)) = data.split_first() else { return };
    let sound = &SOUND[usize::from(*which) % SOUND.len()];
    let mut image = sound.bytes.clone();
    let mut at = 0;
    for change in data.chunks_exact(3) {
        at += usize::from(u16::from_le_bytes([change[0], change[1]]));
        image[sound.used[at % sound.used.len()]] = change[2];
    }
    viv_guestfs::trial::look_into(&image);
});
