//! Disks as distributions make them, with file systems by mke2fs, mkfs.xfs and mkfs.btrfs.
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
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
    let of = |program: &str| {
        let mut command = Command::new(program);
        command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let (mut command, package) = match kind {
        "xfs" => {
            let (list, data) = (dir.0.join("list"), format!("name={},file=1,size=20m", image.display()));
            fs::write(&list, format!("/dev/null\n0 0\nd--755 0 0\n{}$\n", listed(&tree))).unwrap();
            let mut command = of("mkfs.xfs");
            // Smaller than is good for real ones.
            command
                .args(["--unsupported", "-q", "-m", &format!("uuid={uuid}"), "-L", label, "-d", &data, "-p"])
                .arg(list);
            (command, "xfsprogs")
        }
        "btrfs" => {
            fs::File::create(&image).unwrap().set_len(48 << 20).unwrap();
            let mut command = of("mkfs.btrfs");
            command.args(["-q", "--mixed", "-U", uuid, "-L", label, "--rootdir"]).args([&tree, &image]);
            (command, "btrfs-progs")
        }
        _ => {
            let mut command = of("mke2fs");
            command
                .args(["-q", "-F", "-t", kind, "-U", uuid, "-L", label, "-d"])
                .args([&tree, &image])
                .arg("8M");
            (command, "e2fsprogs")
        }
    };
    let made = command.status().unwrap_or_else(|error| panic!("{package} is needed: {error}"));
    assert!(made.success(), "{command:?}");
    fs::read(Path::new(&image)).unwrap()
}

/// What is below a directory, as mkfs.xfs wants it (mkfs.xfs(8), "protofile").
fn listed(directory: &Path) -> String {
    let mut list = String::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let (name, path) = (entry.file_name().into_string().unwrap(), entry.path());
        let kind = entry.file_type().unwrap();
        list += &match () {
            _ if kind.is_symlink() => {
                format!("{name} l--777 0 0 {}\n", fs::read_link(path).unwrap().display())
            }
            _ if kind.is_dir() => format!("{name} d--755 0 0\n{}$\n", listed(&path)),
            _ => format!("{name} ---644 0 0 {}\n", path.display()),
        };
    }
    list
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
fn xfs_and_btrfs_are_read_as_ext4_is() {
    // A directory of many blocks, a file of many pieces, links that are followed in the file system itself.
    let big = "a kernel that is not small ".repeat(150_000);
    let names: Vec<String> =
        (0..400).map(|n| format!("/lib/modules/a-module-with-a-name-{n:04}.ko")).collect();
    let menu = debian(ROOT, "/boot/links", "0");
    let mut files = vec![
        ("/boot/grub/grub.cfg", menu.as_str()),
        ("/boot/links", "-> ../usr/kernels"),
        ("/usr/kernels/vmlinuz-6.1.0-13-cloud-amd64", "-> /usr/./lib/../real/kernel"),
        ("/usr/real/kernel", big.as_str()),
        ("/usr/lib/nothing", ""),
        ("/usr/kernels/initrd.img-6.1.0-13-cloud-amd64", "new initrd"),
        ("/etc/loop", "-> loop"),
        ("/etc/cloud/cloud.cfg", "system_info:\n  default_user:\n    name: rocky\n"),
    ];
    files.extend(names.iter().map(|name| (name.as_str(), "module")));
    for kind in ["xfs", "btrfs"] {
        let bytes = file_system(kind, ROOT, "root", &files);
        for disk in [guest(gpt_disk(&[(2, bytes.clone())])), guest(bytes.clone())] {
            let (boot, kernel, initrd) = booted(&disk);
            assert!(kernel == big && initrd == "new initrd", "{kind}");
            assert_eq!(boot.append, "root=PARTUUID=abc ro console=tty0 console=ttyS0,115200", "{kind}");
            assert_eq!(disk.cloud_init().unwrap().default_user.as_deref(), Some("rocky"));
        }
        let plain = [("/boot/vmlinuz-5.14.0-503.el9.x86_64", "kernel"), ("/etc/fstab", "")];
        let (boot, ..) = booted(&guest(file_system(
            kind,
            ROOT,
            "",
            &[&plain[..], &[("/boot/initramfs-5.14.0-503.el9.x86_64.img", "x")]].concat(),
        )));
        assert_eq!(boot.append, format!("root=UUID={ROOT} ro console=ttyS0"));
        let error =
            guest(gpt_disk(&[(1, file_system(kind, ROOT, "", &[("/boot/vmlinuz-1", "-> vmlinuz-1")]))]))
                .boot();
        assert!(error.unwrap_err().to_string().contains(&format!("partition 1: {kind} without one")));
    }
}

/// A file system of 48 MiB with the subvolumes `root` and `boot`, compressed by zstd: made once by mkfs.btrfs, `btrfs subvolume create` and a mount
/// with `compress-force=zstd`. Its default subvolume is the top level, as in Fedora's images.
#[test]
fn fedoras_subvolumes_are_looked_into() {
    let mut bytes = Vec::new();
    let packed = &include_bytes!("data/fedora.btrfs.zst")[..];
    ruzstd::decoding::StreamingDecoder::new(packed).unwrap().read_to_end(&mut bytes).unwrap();
    let disk = guest(gpt_disk(&[(4, bytes)]));
    let (boot, kernel, initrd) = booted(&disk);
    assert_eq!(boot.title, "Fedora Linux (6.11.4-300.fc.x86_64)");
    assert_eq!(boot.append, format!("root=UUID={BOOT} ro rootflags=subvol=root console=tty0 console=ttyS0"));
    assert_eq!((kernel.len(), &kernel[..22]), (480_018, "kernel 6.11.4-300 lore"));
    assert_eq!(initrd, "initrd 6.11.4-300");
}

#[test]
fn a_disk_without_a_kernel_says_what_it_has_and_what_to_do() {
    let mut xfs = vec![0; 64 << 10];
    xfs[..4].copy_from_slice(b"XFSB");
    let mut lvm = vec![0; 64 << 10];
    lvm[536..544].copy_from_slice(b"LVM2 001");
    let ext = file_system("ext4", ROOT, "", &[("/etc/fstab", "")]);
    let error = guest(gpt_disk(&[(1, xfs), (2, ext), (3, lvm)])).boot().unwrap_err();
    let fault = viv_model::Fault::from(error);
    let found =
        "partition 2: ext4 without one, partition 1: xfs that cannot be read (sb_unsupported_version)";
    assert!(fault.message.contains(found), "{fault}");
    assert!(fault.message.contains("partition 3: a volume of LVM"), "{fault}");
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
    for (kind, rounds) in [("ext4", 500), ("xfs", 30), ("btrfs", 30)] {
        damage(&file_system(kind, ROOT, "", &files), rounds);
    }
}

/// Changes a sound file system, and cuts it off.
fn damage(sound: &[u8], rounds: usize) {
    // Where anything was written: superblocks, groups, inodes, directories, extents, the journal.
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
    for _ in 0..rounds {
        let mut bytes = sound.to_vec();
        for _ in 0..1 + random() % 8 {
            bytes[used[random() % used.len()]] = random() as u8;
        }
        viv_guestfs::trial::look_into(&bytes);
        bytes.truncate(random() % bytes.len());
        viv_guestfs::trial::look_into(&bytes);
    }
    assert_eq!(panics.load(Ordering::Relaxed), 0);
}
