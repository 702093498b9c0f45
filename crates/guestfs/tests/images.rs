//! Disks as distributions make them, with file systems by mke2fs.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use viv_block::{Disk, MemoryDisk};
use viv_guestfs::trial::gpt_disk;
use viv_guestfs::{Boot, Error, Guest};

const ROOT: &str = "11111111-2222-3333-4444-555555555555";
const BOOT: &str = "aaaaaaaa-2222-3333-4444-555555555555";

/// A directory of this test's own.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Directory {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("viv-guestfs-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Directory(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file of a file system: its path, and its content, or `-> TARGET` for a link.
type File<'a> = (&'a str, &'a str);

/// A file system with these files.
fn file_system(kind: &str, uuid: &str, label: &str, files: &[File<'_>]) -> Vec<u8> {
    let dir = Directory::new();
    let (tree, image) = (dir.0.join("tree"), dir.0.join("image"));
    fs::create_dir_all(&tree).unwrap();
    for (path, content) in files {
        let path = tree.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match content.strip_prefix("-> ") {
            Some(target) => std::os::unix::fs::symlink(target, path).unwrap(),
            None => fs::write(path, content).unwrap(),
        }
    }
    let made = Command::new("mke2fs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-q", "-F", "-t", kind, "-U", uuid, "-L", label, "-d"])
        .args([&tree, &image])
        .arg("8M")
        .status()
        .expect("mke2fs of e2fsprogs");
    assert!(made.success());
    fs::read(Path::new(&image)).unwrap()
}

fn guest(bytes: Vec<u8>) -> Guest {
    Guest::open(Arc::new(MemoryDisk::new(bytes)) as Arc<dyn Disk>).unwrap()
}

/// What it boots, with the contents of kernel and initial RAM disk.
fn booted(guest: &Guest) -> (Boot, String, String) {
    let boot = guest.boot().unwrap();
    let (mut kernel, mut initrd) = (Vec::new(), Vec::new());
    guest.extract(&boot, &mut kernel, &mut initrd).unwrap();
    (boot, String::from_utf8(kernel).unwrap(), String::from_utf8(initrd).unwrap())
}

/// What Debian's update-grub writes, in short.
const DEBIAN: &str = r#"
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="DEFAULT"
fi
if [ x"${feature_menuentry_id}" = xy ]; then
  menuentry_id_option="--id"
else
  menuentry_id_option=""
fi
export menuentry_id_option
function load_video {
  if [ x$feature_all_video_module = xy ]; then
    insmod all_video
  else
    insmod vbe
  fi
}
if loadfont unicode ; then set gfxmode=auto; fi
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	insmod part_gpt
	set root='hd0,gpt2'
	if [ x$feature_platform_search_hint = xy ]; then
	  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 --hint='hd0,gpt1' UUID
	else
	  search --no-floppy --fs-uuid --set=root UUID
	fi
	echo	'Loading Linux 6.1.0-13-cloud-amd64 ...'
	linux	PATH/vmlinuz-6.1.0-13-cloud-amd64 root=PARTUUID=abc ro  console=tty0 console=ttyS0,115200
	echo	'Loading initial ramdisk ...'
	initrd	PATH/initrd.img-6.1.0-13-cloud-amd64
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'advanced' {
	menuentry 'with Linux 6.1.0-9' $menuentry_id_option 'old' {
		search --no-floppy --fs-uuid --set=root UUID
		linux	PATH/vmlinuz-6.1.0-9-cloud-amd64 root=PARTUUID=abc ro single
	}
}
"#;

fn debian(uuid: &str, path: &str, default: &str) -> String {
    DEBIAN
        .replace("UUID", uuid)
        .replace(&format!("PART{uuid}"), "PARTUUID")
        .replace("PATH", path)
        .replace("DEFAULT", default)
}

#[test]
fn debians_menu_is_followed_on_one_partition() {
    let files = |default: &str| {
        file_system(
            "ext4",
            ROOT,
            "root",
            &[
                ("/boot/grub/grub.cfg", &debian(ROOT, "/boot", default)),
                ("/boot/vmlinuz-6.1.0-13-cloud-amd64", "new kernel"),
                ("/boot/initrd.img-6.1.0-13-cloud-amd64", "new initrd"),
                ("/boot/vmlinuz-6.1.0-9-cloud-amd64", "old kernel"),
                ("/etc/cloud/cloud.cfg", "system_info:\n  default_user:\n    name: debian\n"),
            ],
        )
    };
    let disk = guest(gpt_disk(&[(1, files("0")), (14, vec![0; 4096])]));
    let (boot, kernel, initrd) = booted(&disk);
    assert_eq!((kernel.as_str(), initrd.as_str()), ("new kernel", "new initrd"));
    assert_eq!(boot.append, "root=PARTUUID=abc ro console=tty0 console=ttyS0,115200");
    assert_eq!(boot.title, "Debian GNU/Linux");
    assert_eq!(disk.cloud_init().unwrap().default_user.as_deref(), Some("debian"));
    let old = "root=PARTUUID=abc ro single console=ttyS0";
    for default in ["advanced>old", "1>0", "1>with Linux 6.1.0-9", "advanced"] {
        let (boot, kernel, initrd) = booted(&guest(files(default)));
        assert_eq!(
            (kernel.as_str(), initrd.as_str(), boot.append.as_str()),
            ("old kernel", "", old),
            "{default}"
        );
    }
    let (_, kernel, _) = booted(&guest(files("not there")));
    assert_eq!(kernel, "new kernel", "the first, as GRUB does");
}

#[test]
fn a_file_system_of_its_own_for_booting_is_found_and_what_was_saved_is_the_default() {
    let configuration = debian(BOOT, "", "${saved_entry}");
    let boot = file_system(
        "ext2",
        BOOT,
        "boot",
        &[
            ("/grub/grub.cfg", configuration.as_str()),
            (
                "/grub/grubenv",
                "# GRUB Environment Block\nsaved_entry=advanced>old\nnext_entry=gnulinux-simple\n####",
            ),
            ("/vmlinuz-6.1.0-13-cloud-amd64", "new kernel"),
            ("/vmlinuz-6.1.0-9-cloud-amd64", "old kernel"),
        ],
    );
    let root = file_system("ext4", ROOT, "root", &[("/etc/fstab", "")]);
    let (boot, kernel, _) = booted(&guest(gpt_disk(&[(1, root), (16, boot)])));
    assert_eq!(kernel, "old kernel");
    assert_eq!(boot.append, "root=PARTUUID=abc ro single console=ttyS0");
}

#[test]
fn fedoras_entries_are_found_through_grub_and_without_it() {
    let entry = |version: &str| {
        format!(
            "title Fedora {version}\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img\noptions root=UUID=x ro $kernelopts\n"
        )
    };
    let configuration =
        "set default=\"${saved_entry}\"\nload_env\nset default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n";
    let files = |grub: bool| {
        let (new, old) = (entry("6.10.1"), entry("6.9.7"));
        let mut files = vec![
            ("/loader/entries/m-6.10.1.conf", new.as_str()),
            ("/loader/entries/m-6.9.7.conf", old.as_str()),
            ("/vmlinuz-6.10.1", "new kernel"),
            ("/vmlinuz-6.9.7", "old kernel"),
            ("/initramfs-6.10.1.img", "new initrd"),
            ("/initramfs-6.9.7.img", "old initrd"),
        ];
        if grub {
            files.push(("/grub2/grub.cfg", configuration));
            files.push(("/grub2/grubenv", "saved_entry=m-6.9.7\nkernelopts=quiet rhgb\n"));
        }
        let root = vec![0; 4 << 20];
        gpt_disk(&[(2, file_system("ext4", BOOT, "boot", &files)), (3, root)])
    };
    let (boot, kernel, initrd) = booted(&guest(files(true)));
    assert_eq!((kernel.as_str(), initrd.as_str()), ("old kernel", "old initrd"));
    assert_eq!(boot.append, "root=UUID=x ro quiet rhgb console=ttyS0");
    let (boot, kernel, _) = booted(&guest(files(false)));
    assert_eq!((kernel.as_str(), boot.append.as_str()), ("new kernel", "root=UUID=x ro console=ttyS0"));
}

#[test]
fn without_a_configuration_debians_links_and_then_the_newest_kernel_are_taken() {
    let kernels = [
        ("/boot/vmlinuz-6.1.0-9-amd64", "old kernel"),
        ("/boot/vmlinuz-6.1.0-13-amd64", "new kernel"),
        ("/boot/initrd.img-6.1.0-13-amd64", "new initrd"),
        ("/etc/fstab", ""),
    ];
    let (boot, kernel, initrd) = booted(&guest(file_system("ext4", ROOT, "", &kernels)));
    assert_eq!((kernel.as_str(), initrd.as_str()), ("new kernel", "new initrd"));
    assert_eq!(boot.append, format!("root=UUID={ROOT} ro console=ttyS0"));
    let linked = [kernels.as_slice(), &[("/vmlinuz", "-> boot/vmlinuz-6.1.0-9-amd64")]].concat();
    let (boot, kernel, _) = booted(&guest(gpt_disk(&[(1, file_system("ext3", ROOT, "", &linked))])));
    assert_eq!(kernel, "old kernel");
    assert_eq!(boot.append, "root=PARTUUID=04030201-0605-0807-090a-0b0c0d0e0f01 ro console=ttyS0");
}

#[test]
fn a_disk_without_a_kernel_says_what_it_has_and_what_to_do() {
    let mut xfs = vec![0; 64 << 10];
    xfs[..4].copy_from_slice(b"XFSB");
    let ext = file_system("ext4", ROOT, "", &[("/etc/fstab", "")]);
    let error = guest(gpt_disk(&[(1, xfs), (2, ext)])).boot().unwrap_err();
    let fault = viv_model::Fault::from(error);
    assert!(fault.message.contains("partition 2: ext4 without one, partition 1: xfs"), "{fault}");
    assert!(fault.fix.contains("firmware") && fault.fix.contains("--kernel"), "{fault}");
    assert!(matches!(guest(vec![0; 4096]).boot(), Err(Error::NoKernel { .. })));
}

#[test]
fn damage_of_every_kind_is_an_error_and_never_a_panic() {
    let files = [
        ("/boot/grub/grub.cfg", &*debian(ROOT, "/boot", "0")),
        ("/boot/vmlinuz-6.1.0-13-cloud-amd64", "new kernel"),
        ("/boot/initrd.img-6.1.0-13-cloud-amd64", "new initrd"),
    ];
    let sound = file_system("ext4", ROOT, "", &files);
    // Where mke2fs has written anything: superblock, groups, inodes, directories, extents, the journal.
    let used: Vec<usize> = (0..sound.len()).filter(|at| sound[*at] != 0).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    // The guard around the reader would hide them.
    let panics = Arc::new(AtomicU32::new(0));
    let count = panics.clone();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        count.fetch_add(1, Ordering::Relaxed);
        usual(info);
    }));
    for _ in 0..500 {
        let mut bytes = sound.clone();
        for _ in 0..1 + random() % 8 {
            bytes[used[random() % used.len()]] = random() as u8;
        }
        viv_guestfs::trial::look_into(&bytes);
        bytes.truncate(random() % bytes.len());
        viv_guestfs::trial::look_into(&bytes);
    }
    assert_eq!(panics.load(Ordering::Relaxed), 0);
}
