//! Any bytes as a disk, and as changes to a sound one with a file system by mke2fs: looked into for what it would boot.
#![no_main]
use std::process::Command;
use std::sync::LazyLock;
use std::{env, fs, process};

/// An ext4 with a journal, a configuration of GRUB and a kernel; empty where there is no mke2fs.
static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
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
    let image = dir.join("image");
    let made = Command::new("mke2fs")
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .args(["-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=1", "-d"])
        .args([&dir.join("tree"), &image])
        .arg("4M")
        .status();
    assert!(made.is_ok_and(|status| status.success()), "mke2fs (e2fsprogs) is needed");
    let bytes = fs::read(&image).unwrap();
    fs::remove_dir_all(dir).unwrap();
    bytes
});

/// Where it is not zero.
static USED: LazyLock<Vec<usize>> = LazyLock::new(|| (0..SOUND.len()).filter(|at| SOUND[*at] != 0).collect());

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viv_guestfs::trial::read_partitions(data);
    viv_guestfs::trial::look_into(&viv_guestfs::trial::gpt_disk(&[(1, data.to_vec())]));
    // Each change: how far from the one before, among the bytes that are not zero, and what is there instead.
    let mut image = SOUND.clone();
    let mut at = 0;
    for change in data.chunks_exact(3) {
        at += usize::from(u16::from_le_bytes([change[0], change[1]]));
        image[USED[at % USED.len()]] = change[2];
    }
    viv_guestfs::trial::look_into(&image);
});
