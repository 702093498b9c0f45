//! Disks as images: booted by the kernel in them, with cloud-init's seed, and reached through their network.
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use viv_e2e::{Directory, exec, inspect, run, start, until};

const UUID: &str = "11111111-2222-3333-4444-555555555555";
const BOOT: Duration = Duration::from_secs(300);

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// GRUB's configuration with one entry, as update-grub writes it.
fn grub(words: &str) -> String {
    format!(
        "set default=0\nmenuentry 'Tiny' --class os $menuentry_id_option 'tiny' {{\n\tinsmod ext2\n\tsearch --no-floppy --fs-uuid --set=root {UUID}\n\t\
         linux\t/boot/vmlinuz-1 root=UUID={UUID} ro quiet {words}\n\tinitrd\t/boot/initrd.img-1\n}}\n"
    )
}

/// A raw disk with an MBR and, from its first MiB on, an ext4 with the files of `tree`.
fn disk(tree: &Path, mib: u32, image: &Path) {
    let part = image.with_extension("part");
    let made = Command::new("mke2fs")
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .args(["-q", "-F", "-t", "ext4", "-U", UUID, "-L", "root", "-d"])
        .args([tree, &part])
        .arg(format!("{mib}M"))
        .status()
        .expect("mke2fs of e2fsprogs");
    assert!(made.success());
    let mut bytes = vec![0; 1 << 20];
    bytes[446 + 4] = 0x83;
    bytes[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    bytes[446 + 12..446 + 16].copy_from_slice(&(mib * 2048).to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    fs::write(image, &bytes).unwrap();
    let mut target = fs::OpenOptions::new().append(true).open(image).unwrap();
    std::io::copy(&mut fs::File::open(&part).unwrap(), &mut target).unwrap();
    fs::remove_file(part).unwrap();
}

/// A disk that boots the default guest's kernel and its initial RAM disk, in which the agent is.
fn tiny(dir: &Directory) -> PathBuf {
    let default = start("e2e-cloud-kernel", &[]);
    let machine = &inspect(default.0)["machine"];
    let tree = dir.0.join("tree");
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    fs::create_dir_all(tree.join("etc/cloud")).unwrap();
    fs::copy(machine["kernel"].as_str().unwrap(), tree.join("boot/vmlinuz-1")).unwrap();
    fs::copy(machine["initrd"].as_str().unwrap(), tree.join("boot/initrd.img-1")).unwrap();
    fs::write(tree.join("boot/grub/grub.cfg"), grub("marker=1")).unwrap();
    fs::write(tree.join("etc/cloud/cloud.cfg"), "system_info:\n  default_user:\n    name: tiny\n").unwrap();
    symlink("boot/vmlinuz-1", tree.join("vmlinuz")).unwrap();
    let image = dir.0.join("tiny.raw");
    disk(&tree, 64, &image);
    image
}

/// What a VM takes on the disk and shares with no other.
fn own_bytes(vm: &str) -> u64 {
    let dir = PathBuf::from(inspect(vm)["dir"].as_str().unwrap());
    let files = fs::read_dir(dir).unwrap().flatten().filter_map(|entry| entry.metadata().ok());
    files.filter(|data| data.nlink() == 1).map(|data| data.blocks() * 512).sum()
}

#[test]
fn a_disk_is_booted_by_its_own_kernel_written_to_by_nobody_and_found_by_cloud_init() {
    let dir = Directory::new("tiny");
    let image = tiny(&dir);
    let before = fs::read(&image).unwrap();
    let key = dir.0.join("key.pub");
    fs::write(&key, "ssh-ed25519 AAAATEST me@here\n").unwrap();
    let options = ["--net", "user", "--ssh-key", text(&key), text(&image)];
    let vm = start("e2e-cloud", &options);
    let cost = own_bytes(vm.0);
    let line = exec(vm.0, "cat /proc/cmdline").ok().out;
    assert_eq!(line, format!("root=UUID={UUID} ro quiet marker=1 console=ttyS0\n"));

    // The seed, by its label, as cloud-init looks for it.
    let seed = "modprobe isofs; mkdir -p /seed; mount -t iso9660 -o ro /dev/vdb /seed && cat /seed/meta-data /seed/user-data";
    let seed = exec(vm.0, seed).ok().out;
    let id = inspect(vm.0)["id"].as_str().unwrap().to_string();
    for part in [
        &*format!("instance-id: \"viv-{id}\""),
        "local-hostname: \"e2e-cloud\"",
        "AAAATEST",
        "name: \"tiny\"",
    ] {
        assert!(seed.contains(part), "{part}: {seed}");
    }
    let label = exec(vm.0, "dd if=/dev/vdb bs=1 skip=32808 count=6 2>/dev/null").ok().out;
    assert_eq!(label, "cidata");

    // What the guest writes is its own, and what it boots next is what it has written.
    let configuration = grub("marker=2").replace('\n', "\\n");
    let write = format!(
        "mkdir -p /r && mount /dev/vda1 /r && printf '{configuration}' > /r/boot/grub/grub.cfg && umount /r"
    );
    exec(vm.0, &write).ok();
    assert!(fs::read(&image).unwrap() == before, "the image was written to");
    run(&["stop", vm.0], "").ok();
    run(&["start", vm.0], "").ok();
    assert!(exec(vm.0, "cat /proc/cmdline").ok().out.contains("marker=2 console=ttyS0"));
    assert!(cost < 1 << 20, "a VM that has written nothing takes {cost} bytes");

    // A port that nobody has published, through the network.
    exec(vm.0, "printf 'SSH-2.0-test\\r\\n' > /banner; (while true; do nc -l -p 22 < /banner; done) > /dev/null 2>&1 &").ok();
    until("the port", BOOT, || run(&["connect", vm.0, "22"], "").out == "SSH-2.0-test\r\n");

    // Its user, image and keys are what another one like it is made from.
    let spec = &inspect(vm.0)["spec"];
    assert_eq!(
        (spec["image"].as_str(), spec["cloud_init"]["user"].as_str()),
        (Some(text(&image)), Some("tiny"))
    );
    let state = PathBuf::from(inspect(vm.0)["dir"].as_str().unwrap());
    drop(vm);
    assert!(!state.exists() && image.exists());
}

#[test]
fn a_disk_that_cannot_be_booted_says_what_to_do() {
    let dir = Directory::new("refused");
    let empty = dir.0.join("empty.raw");
    fs::write(&empty, vec![0; 1 << 20]).unwrap();
    let refused = run(&["run", "-d", text(&empty)], "");
    assert_eq!(refused.status, 2, "{refused:?}");
    assert!(refused.err.contains("needs firmware") && refused.err.contains("--kernel"), "{refused:?}");
    let missing = run(&["run", "-d", text(&dir.0.join("none.qcow2"))], "");
    assert_eq!(missing.status, 3, "{missing:?}");
    let command = run(&["run", text(&empty), "--", "true"], "");
    assert!(command.status == 2 && command.err.contains("viv ssh"), "{command:?}");
    assert!(!run(&["ps", "-a"], "").ok().out.contains(text(&empty)), "nothing is left of it");
}

/// A VM without a network, or without an SSH server, is told from one that boots.
#[test]
fn what_ssh_cannot_reach_is_told() {
    let vm = start("e2e-no-ssh", &["--net", "none"]);
    let refused = run(&["ssh", vm.0, "--", "true"], "");
    assert_eq!(refused.status, 4, "{refused:?}");
    assert!(refused.err.contains("has no network") && refused.err.contains("viv attach"), "{refused:?}");
    drop(vm);
    let vm = start("e2e-no-ssh", &["--net", "user"]);
    let refused = run(&["ssh", "--wait", "1", vm.0, "--", "true"], "");
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.err.contains("no SSH server answers"), "{refused:?}");
}

/// The long form: Debian's own cloud-init, in a qcow2 image. It takes mmdebstrap, qemu-img, ssh, and the right to
/// make a tree of another system; `cargo xtask nightly` runs it.
#[test]
#[ignore = "minutes, and an archive of Debian's"]
fn cloud_init_of_a_debian_has_the_user_the_key_the_name_and_the_network() {
    let dir = Directory::new("debian");
    let image = debian(&dir);
    let vm = start("e2e-cloud-debian", &["--net", "user", "--memory", "1G", text(&image)]);
    let seen = run(
        &["ssh", vm.0, "--", "id -un; hostname; sudo -n true && echo root; cloud-init status --wait"],
        "",
    )
    .ok()
    .out;
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines.get(..3), Some(&["debian", "e2e-cloud-debian", "root"][..]), "{seen}");
    assert!(seen.contains("status: done"), "{seen}");
    let network = run(&["ssh", vm.0, "ip -4 addr; mount | grep ' / '"], "").ok().out;
    assert!(network.contains("10.0.2.15/24") && network.contains("/dev/vda1"), "{network}");
    let card = run(&["ssh", vm.0, "ls /sys/class/net | grep ^e"], "").ok().out.trim().to_string();
    let status = run(&["ssh", vm.0, "--", "exit 7"], "");
    assert_eq!(status.status, 7, "{status:?}");
    drop(vm);

    // The user's own data, key and network configuration.
    let (data, network, key) = (dir.0.join("user-data.yaml"), dir.0.join("network.yaml"), dir.0.join("id"));
    fs::write(&data, "#cloud-config\nwrite_files:\n- path: /etc/told\n  content: by viv\n").unwrap();
    let own = format!(
        "version: 1\nconfig:\n- type: physical\n  name: {card}\n  subnets:\n  - {{type: static, address: 10.0.2.15/24, gateway: 10.0.2.2}}\n"
    );
    fs::write(&network, own).unwrap();
    let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    assert!(made.unwrap().success());
    let options =
        ["--net", "user", "--memory", "1G", "--cloud-init", text(&data), "--network-config", text(&network)];
    let vm = start("e2e-cloud-debian", &[&options[..], &["--ssh-key", text(&key), text(&image)]].concat());
    let told =
        "cat /etc/told; ip -4 -o addr show dev $(ls /sys/class/net | grep ^e); wc -l < .ssh/authorized_keys";
    let told = run(&["ssh", vm.0, "-i", text(&key), "-o", "IdentitiesOnly=yes", "--", told], "").ok().out;
    // A lease would not be valid for ever.
    assert!(
        told.starts_with("by viv") && told.contains("10.0.2.15/24") && told.contains("forever"),
        "{told}"
    );
    assert!(told.ends_with("2\n"), "this user's key and the one that was named: {told}");
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn debian(dir: &Directory) -> PathBuf {
    let tree = dir.0.join("debian");
    let packages = "systemd-sysv,udev,dbus,linux-image-cloud-amd64,cloud-init,cloud-guest-utils,e2fsprogs,openssh-server,sudo,\
                    iproute2,isc-dhcp-client,ifupdown,netplan.io";
    let version = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let suite = version
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("bookworm")
        .to_string();
    succeeds(
        Command::new("mmdebstrap")
            .args(["--variant=minbase", &format!("--include={packages}"), &suite])
            .arg(&tree),
    );
    let kernel = fs::read_dir(tree.join("boot")).unwrap().flatten();
    let version = kernel
        .filter_map(|file| file.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_string))
        .next();
    let version = version.expect("a kernel");
    let configuration =
        grub("console=tty0 console=ttyS0,115200").replace("vmlinuz-1", &format!("vmlinuz-{version}"));
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    let configuration = configuration.replace("initrd.img-1", &format!("initrd.img-{version}"));
    fs::write(tree.join("boot/grub/grub.cfg"), configuration).unwrap();
    fs::write(tree.join("etc/fstab"), format!("UUID={UUID} / ext4 rw,errors=remount-ro 0 1\n")).unwrap();
    fs::write(tree.join("etc/machine-id"), "").unwrap();
    // Nothing is generated that a small image has no programs for.
    fs::write(tree.join("etc/cloud/cloud.cfg.d/90_small.cfg"), "locale: false\n").unwrap();
    let _ = fs::remove_file(tree.join("etc/hostname"));
    for file in fs::read_dir(tree.join("etc/ssh")).unwrap().flatten() {
        if file.file_name().to_string_lossy().starts_with("ssh_host_") {
            fs::remove_file(file.path()).unwrap();
        }
    }
    let (raw, image) = (dir.0.join("debian.raw"), dir.0.join("debian.qcow2"));
    disk(&tree, 1500, &raw);
    succeeds(Command::new("qemu-img").args(["convert", "-O", "qcow2", text(&raw), text(&image)]));
    fs::remove_file(raw).unwrap();
    image
}
