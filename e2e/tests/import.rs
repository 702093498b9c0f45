//! Machines of other programs: an OVA, a backup of Proxmox, a domain of libvirt, a Vagrant box and disks alone, with one small disk that boots; and
//! back: an OVA whose disk qemu-img reads, and which is imported again.
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use viv_e2e::{Directory, Vm, exec, inspect, own_bytes, run, start, tool};

const UUID: &str = "11111111-2222-3333-4444-666666666666";
const MIB: u64 = 1 << 20;

/// An image that goes away with its test.
struct Image(&'static str);

impl Image {
    /// Makes place for it.
    fn new(name: &'static str) -> Image {
        let _ = run(&["image", "rm", name], "");
        Image(name)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = run(&["image", "rm", self.0], "");
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// GRUB's configuration with one entry.
fn grub(words: &str) -> String {
    format!(
        "menuentry 'Tiny' {{\n\tsearch --no-floppy --fs-uuid --set=root {UUID}\n\tlinux\t/boot/vmlinuz-1 root=UUID={UUID} ro quiet {words}\n\tinitrd\t/boot/initrd.img-1\n}}\n"
    )
}

/// A raw disk with an MBR and an ext4 that boots the default guest's kernel and its initial RAM disk, in which the agent is; `name` is for a VM that has them.
fn tiny(dir: &Directory, name: &'static str) -> String {
    let default = start(name, &[]);
    let machine = &inspect(default.0)["machine"];
    let tree = dir.0.join("tree");
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    fs::create_dir_all(tree.join("etc")).unwrap();
    fs::copy(machine["kernel"].as_str().unwrap(), tree.join("boot/vmlinuz-1")).unwrap();
    fs::copy(machine["initrd"].as_str().unwrap(), tree.join("boot/initrd.img-1")).unwrap();
    fs::write(tree.join("boot/grub/grub.cfg"), grub("marker=1")).unwrap();
    symlink("boot/vmlinuz-1", tree.join("vmlinuz")).unwrap();
    let (image, part) = (dir.path("tiny.raw"), dir.path("part"));
    tool("mke2fs", &["-q", "-F", "-t", "ext4", "-U", UUID, "-d", &tree.display().to_string(), &part, "64M"]);
    let mut bytes = vec![0; MIB as usize];
    bytes[446 + 4] = 0x83;
    bytes[446 + 8..446 + 12].copy_from_slice(&2048u32.to_le_bytes());
    bytes[446 + 12..446 + 16].copy_from_slice(&(64u32 * 2048).to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes.extend(fs::read(&part).unwrap());
    fs::remove_file(part).unwrap();
    fs::write(&image, bytes).unwrap();
    image
}

/// An OVF as VirtualBox writes it, with a sound card and a CD drive.
fn ovf(disk: &str, capacity: u64) -> String {
    let item = |id: u32, kind: u32, rest: &str| {
        format!(
            "<Item><rasd:ElementName>device {id}</rasd:ElementName><rasd:InstanceID>{id}</rasd:InstanceID><rasd:ResourceType>{kind}</rasd:ResourceType>{rest}</Item>\n"
        )
    };
    let quantity = |n: u32| format!("<rasd:VirtualQuantity>{n}</rasd:VirtualQuantity>");
    let items = [
        item(1, 3, &quantity(2)),
        item(2, 4, &format!("<rasd:AllocationUnits>MegaByte</rasd:AllocationUnits>{}", quantity(384))),
        item(3, 20, "<rasd:ResourceSubType>AHCI</rasd:ResourceSubType>"),
        item(
            4,
            17,
            "<rasd:AddressOnParent>0</rasd:AddressOnParent><rasd:HostResource>/disk/vmdisk1</rasd:HostResource><rasd:Parent>3</rasd:Parent>",
        ),
        item(
            5,
            10,
            "<rasd:Connection>NAT</rasd:Connection><rasd:ResourceSubType>E1000</rasd:ResourceSubType>",
        ),
        item(6, 35, "<rasd:ResourceSubType>ensoniq1371</rasd:ResourceSubType>"),
        item(7, 15, ""),
    ];
    format!(
        "<?xml version=\"1.0\"?>\n<Envelope ovf:version=\"1.0\" xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\">\n\
         <References><File ovf:href=\"{disk}\" ovf:id=\"file1\"/></References>\n\
         <DiskSection><Info>d</Info><Disk ovf:capacity=\"{capacity}\" ovf:diskId=\"vmdisk1\" ovf:fileRef=\"file1\"/></DiskSection>\n\
         <VirtualSystem ovf:id=\"Tiny Box\"><VirtualHardwareSection><Info>h</Info>\n{}</VirtualHardwareSection></VirtualSystem></Envelope>\n",
        items.concat()
    )
}

/// Packs files of the directory into an archive, in this order.
fn tar(dir: &Directory, archive: &str, options: &[&str], files: &[&str]) -> String {
    let path = dir.path(archive);
    let at = dir.0.display().to_string();
    tool("tar", &[options, &["-C", &at, "-cf", &path], files].concat());
    path
}

/// The disks of an OVA, unpacked, and whether its manifest is right.
fn unpack(dir: &Directory, ova: &str, name: &str) -> Vec<PathBuf> {
    let to = dir.0.join(name);
    fs::create_dir_all(&to).unwrap();
    let to_text = to.display().to_string();
    tool("tar", &["-C", &to_text, "-xf", ova]);
    let mut disks = Vec::new();
    for file in fs::read_dir(&to).unwrap().flatten().map(|file| file.path()) {
        match file.extension().and_then(|end| end.to_str()) {
            Some("vmdk") => disks.push(file),
            Some("mf") => {
                for line in fs::read_to_string(&file).unwrap().lines() {
                    let (name, digest) = line.strip_prefix("SHA256(").unwrap().split_once(")= ").unwrap();
                    let sum = tool("sha256sum", &[to.join(name).to_str().unwrap()]);
                    assert!(sum.starts_with(digest), "{line}: {sum}");
                }
            }
            Some("ovf") => {}
            other => panic!("{other:?}"),
        }
    }
    disks.sort();
    disks
}

fn same_disk(vmdk: &Path, raw: &str) {
    let vmdk = vmdk.to_str().unwrap();
    tool("qemu-img", &["check", "-f", "vmdk", vmdk]);
    tool("qemu-img", &["compare", "-f", "vmdk", "-F", "raw", vmdk, raw]);
}

#[test]
fn an_ova_runs_with_what_it_says_and_leaves_as_one_again() {
    let dir = Directory::new("ova");
    let raw = tiny(&dir, "e2e-import-kernel");
    let vmdk = dir.path("tiny-disk1.vmdk");
    tool("qemu-img", &["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", &raw, &vmdk]);
    fs::write(dir.path("tiny.ovf"), ovf("tiny-disk1.vmdk", 65 * MIB)).unwrap();
    let sum = |name: &str| tool("sha256sum", &[&dir.path(name)])[..64].to_string();
    let sums =
        ["tiny.ovf", "tiny-disk1.vmdk"].map(|name| format!("SHA256({name})= {}\n", sum(name))).concat();
    fs::write(dir.path("tiny.mf"), sums).unwrap();
    // Its name says nothing of what it is.
    let ova = tar(&dir, "appliance.img", &["--format=ustar"], &["tiny.ovf", "tiny-disk1.vmdk", "tiny.mf"]);

    let (_image, _again) = (Image::new("tiny-box"), Image::new("e2e-import-again"));
    let seen = json(&run(&["--json", "import", "--dry-run", &ova], "").ok().out);
    assert!(seen["name"] == "tiny-box" && seen["image"].is_null() && seen["from"] == "OVA", "{seen}");
    let done = json(&run(&["--json", "import", &ova], "").ok().out);
    assert!(
        done["boots"] == "Tiny (/boot/vmlinuz-1)"
            && done["image"]["cpus"] == 2
            && done["image"]["memory_mib"] == 384,
        "{done}"
    );
    let left = done["left"].to_string();
    for item in ["sound card", "CD drive", "network card 1: device 5 (E1000)"] {
        assert!(left.contains(item), "{item}: {left}");
    }
    let twice = run(&["import", &ova], "");
    assert!(twice.status == 4 && twice.err.contains("--name"), "{twice:?}");

    let vm = start("e2e-import", &["tiny-box"]);
    let cost = own_bytes(vm.0);
    assert!(cost < MIB, "a VM that has written nothing takes {cost} bytes");
    let line = exec(vm.0, "cat /proc/cmdline").ok().out;
    assert_eq!(line, format!("root=UUID={UUID} ro quiet marker=1 console=ttyS0\n"));
    assert_eq!(exec(vm.0, "grep -c ^processor /proc/cpuinfo").ok().out, "2\n");
    assert_eq!(inspect(vm.0)["machine"]["memory_mib"], 384);
    // What the guest writes is what it boots next.
    let configuration = grub("marker=2").replace('\n', "\\n");
    let write = format!(
        "mkdir -p /r && mount /dev/vda1 /r && printf '{configuration}' > /r/boot/grub/grub.cfg && umount /r"
    );
    exec(vm.0, &write).ok();
    let live = run(&["export", vm.0, &dir.path("live.ova")], "");
    assert!(live.status == 4 && !dir.0.join("live.ova").exists(), "{live:?}");
    run(&["stop", vm.0], "").ok();
    run(&["start", vm.0], "").ok();
    assert!(exec(vm.0, "cat /proc/cmdline").ok().out.contains("marker=2"));
    run(&["stop", vm.0], "").ok();

    // The image may go: its VMs keep what they have of it. A snapshot of one goes on, and boots its own kernel too.
    run(&["image", "rm", "tiny-box"], "").ok();
    run(&["start", vm.0], "").ok();
    exec(vm.0, "echo kept > /kept").ok();
    let _ = run(&["snapshot", "rm", "e2e-import-moment"], "");
    run(&["snapshot", "create", vm.0, "e2e-import-moment"], "").ok();
    run(&["stop", vm.0], "").ok();
    let _ = run(&["rm", "-f", "e2e-import-fork"], "");
    run(&["restore", "e2e-import-moment", "--name", "e2e-import-fork"], "").ok();
    let fork = Vm("e2e-import-fork");
    assert_eq!(
        exec(fork.0, "cat /kept; mkdir -p /r; mount -o ro /dev/vda1 /r && ls /r/vmlinuz").ok().out,
        "kept\n/r/vmlinuz\n"
    );
    drop(fork);
    run(&["snapshot", "rm", "e2e-import-moment"], "").ok();

    // Out: twice the same bytes, whose disk is the VM's.
    let (first, second, now) = (dir.path("a.ova"), dir.path("b.ova"), dir.path("now.raw"));
    run(&["export", vm.0, &first], "").ok();
    run(&["export", vm.0, &second, "--format", "ova"], "").ok();
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
    run(&["export", vm.0, &now], "").ok();
    let disks = unpack(&dir, &first, "out");
    assert_eq!(disks.len(), 1);
    same_disk(&disks[0], &now);
    // And in again: the same machine, with the same disk.
    let again = json(&run(&["--json", "import", &first, "--name", "e2e-import-again"], "").ok().out);
    assert!(again["image"]["cpus"] == 2 && again["image"]["memory_mib"] == 384, "{again}");
    let third = dir.path("c.ova");
    run(&["export", "e2e-import-again", &third], "").ok();
    same_disk(&unpack(&dir, &third, "again")[0], &now);
    let other = start("e2e-import-again", &["--cpus", "1", "e2e-import-again"]);
    assert!(exec(other.0, "cat /proc/cmdline").ok().out.contains("marker=2"));
    assert_eq!(inspect(other.0)["machine"]["cpus"], 1);

    // An image of such a VM boots what is on its disk, too.
    let _committed = Image::new("e2e-import-committed");
    run(&["commit", vm.0, "e2e-import-committed"], "").ok();
    drop(other);
    let third = start("e2e-import-again", &["e2e-import-committed"]);
    assert!(exec(third.0, "cat /proc/cmdline").ok().out.contains(&format!("root=UUID={UUID}")));

    drop(third);

    // As an artifact, and from it: the same machine, with the same disk.
    let archive = dir.path("machine.tar");
    run(&["export", "e2e-import-again", &archive], "").ok();
    let reference = format!("oci-archive:{archive}");
    let fourth = start("e2e-import-again", &[&reference]);
    assert!(exec(fourth.0, "cat /proc/cmdline").ok().out.contains("marker=2"));
    assert_eq!(inspect(fourth.0)["machine"]["memory_mib"], 384);
    drop(fourth);
    run(&["image", "rm", &reference], "").ok();

    // What is cut off leaves nothing.
    let bytes = fs::read(&ova).unwrap();
    fs::write(&ova, &bytes[..bytes.len() / 2]).unwrap();
    let cut = run(&["import", &ova, "--name", "e2e-import-cut"], "");
    assert!(cut.status == 1 && cut.err.contains("cut off"), "{cut:?}");
    assert!(!run(&["images", "-q"], "").ok().out.contains("e2e-import-cut"));
}

/// A VMA of a disk (Proxmox, `vma_spec.txt`), with its blocks of zeroes left out.
fn vma(disk: &[u8]) -> Vec<u8> {
    const CLUSTER: usize = 65536;
    const BLOCK: usize = 4096;
    let mut blobs = vec![0u8];
    let mut blob = |bytes: &[u8]| {
        let at = blobs.len() as u32;
        blobs.extend((bytes.len() as u16).to_le_bytes());
        blobs.extend(bytes);
        at.to_be_bytes()
    };
    let name = blob(b"qemu-server.conf\0");
    let configuration = blob(b"name: pve-tiny\nmemory: 320\ncores: 1\nsockets: 3\nbios: ovmf\nscsi0: local:vm-1-disk-0,size=65M\nnet0: virtio=AA:BB:CC:DD:EE:FF,bridge=vmbr0\n");
    let device = blob(b"drive-scsi0\0");
    let size = (12288 + blobs.len()).next_multiple_of(512);
    let mut head = vec![0u8; size];
    let mut put = |at: usize, bytes: &[u8]| head[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"VMA\0\0\0\0\x01");
    put(8, b"0123456789abcdef");
    put(48, &12288u32.to_be_bytes());
    put(52, &(blobs.len() as u32).to_be_bytes());
    put(56, &(size as u32).to_be_bytes());
    put(2044, &name);
    put(3068, &configuration);
    put(4096 + 32, &device);
    put(4096 + 40, &(disk.len() as u64).to_be_bytes());
    put(12288, &blobs);
    sign(&mut head, 32);
    let mut archive = head;
    let clusters: Vec<&[u8]> = disk.chunks(CLUSTER).collect();
    for (first, group) in clusters.chunks(59).enumerate() {
        let (mut extent, mut data) = (vec![0u8; 512], Vec::new());
        for (index, cluster) in group.iter().enumerate() {
            let mut mask = 0u64;
            for (block, bytes) in cluster.chunks(BLOCK).enumerate() {
                if bytes.iter().any(|byte| *byte != 0) {
                    mask |= 1 << block;
                    data.extend(bytes);
                    data.resize(data.len().next_multiple_of(BLOCK), 0);
                }
            }
            let info = mask << 48 | 1 << 32 | (first * 59 + index) as u64;
            extent[40 + index * 8..48 + index * 8].copy_from_slice(&info.to_be_bytes());
        }
        extent[..4].copy_from_slice(b"VMAE");
        extent[6..8].copy_from_slice(&((data.len() / BLOCK) as u16).to_be_bytes());
        extent[8..24].copy_from_slice(b"0123456789abcdef");
        sign(&mut extent, 24);
        archive.extend(extent);
        archive.extend(data);
    }
    archive
}

/// Puts the MD5 of bytes, with zeroes in its place, at `at`.
fn sign(bytes: &mut [u8], at: usize) {
    let file = std::env::temp_dir().join(format!("viv-vma-{}", std::process::id()));
    fs::write(&file, &*bytes).unwrap();
    let sum = tool("md5sum", &[file.to_str().unwrap()]);
    for (index, byte) in bytes[at..at + 16].iter_mut().enumerate() {
        *byte = u8::from_str_radix(&sum[index * 2..index * 2 + 2], 16).unwrap();
    }
    fs::remove_file(file).unwrap();
}

#[test]
fn every_other_form_gives_the_same_disk() {
    let dir = Directory::new("forms");
    let raw = tiny(&dir, "e2e-import-forms");
    let mut forms = Vec::new();
    fs::write(dir.path("b.vma"), vma(&fs::read(&raw).unwrap())).unwrap();
    tool("gzip", &["-k", &dir.path("b.vma")]);
    tool("zstd", &["-q", "-k", &dir.path("b.vma")]);
    tool("lzop", &["-q", &dir.path("b.vma")]);
    forms.extend([
        ("b.vma", "Proxmox backup"),
        ("b.vma.gz", "Proxmox backup"),
        ("b.vma.zst", "Proxmox backup"),
        ("b.vma.lzo", "Proxmox backup"),
    ]);
    for (format, file, options) in [
        ("qcow2", "d.qcow2", "compat=1.1"),
        ("vhdx", "d.vhdx", "subformat=dynamic"),
        ("vpc", "d.vhd", "subformat=dynamic,force_size"),
        ("vdi", "d.vdi", "static=off"),
        ("vmdk", "s.vmdk", "subformat=twoGbMaxExtentSparse"),
        ("vmdk", "f.vmdk", "subformat=monolithicFlat"),
    ] {
        tool("qemu-img", &["convert", "-f", "raw", "-O", format, "-o", options, &raw, &dir.path(file)]);
    }
    forms.extend([
        ("d.vhdx", "vhdx disk"),
        ("d.vhd", "vhd disk"),
        ("d.vdi", "vdi disk"),
        ("s.vmdk", "vmdk disk"),
        ("f.vmdk", "vmdk disk"),
        ("tiny.raw", "raw disk"),
    ]);
    let domain = "<domain type='kvm'><name>d</name><memory unit='MiB'>512</memory><vcpu>2</vcpu><os><type arch='x86_64'>hvm</type></os><devices>\
                  <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='d.qcow2'/><target dev='vda' bus='virtio'/></disk></devices></domain>";
    fs::write(dir.path("d.xml"), domain).unwrap();
    forms.push(("d.xml", "libvirt domain"));
    let vmx = "config.version = \"8\"\nmemsize = \"512\"\nide0:0.fileName = \"f.vmdk\"\n";
    fs::write(dir.path("d.vmx"), vmx).unwrap();
    forms.push(("d.vmx", "VMware machine"));
    fs::copy(dir.path("d.qcow2"), dir.path("box.img")).unwrap();
    fs::write(dir.path("metadata.json"), r#"{"provider":"libvirt","format":"qcow2","virtual_size":1}"#)
        .unwrap();
    tar(&dir, "v.box", &["-z", "-S"], &["./metadata.json", "./box.img"]);
    forms.push(("v.box", "Vagrant box"));
    fs::write(dir.path("metadata.json"), r#"{"provider":"vmware_desktop"}"#).unwrap();
    fs::write(dir.path("w.vmx"), vmx.replace("f.vmdk", "s.vmdk")).unwrap();
    let parts = ["./metadata.json", "./w.vmx", "./s.vmdk", "./s-s001.vmdk"];
    tar(&dir, "w.box", &["-z"], &parts);
    forms.push(("w.box", "Vagrant box"));
    // One of which a disk, or a part of one, is missing.
    for missing in [2, 3] {
        let mut some = parts.to_vec();
        let gone = some.remove(missing).trim_start_matches("./");
        tar(&dir, "x.box", &["-z"], &some);
        let refused = run(&["import", &dir.path("x.box"), "--name", "e2e-import-none"], "");
        assert!(refused.status != 0 && refused.err.contains(gone), "{refused:?}");
    }
    for (number, (file, from)) in forms.iter().enumerate() {
        let _image = Image::new("e2e-import-form");
        let done = run(&["--json", "import", &dir.path(file), "--name", "e2e-import-form"], "").ok();
        let done = json(&done.out);
        assert!(done["from"] == *from && done["boots"] == "Tiny (/boot/vmlinuz-1)", "{file}: {done}");
        if file.contains("vma") {
            assert!(done["cpus"] == 3 && done["memory_mib"] == 320, "{done}");
            assert!(done["left"].to_string().contains("UEFI"), "{done}");
        }
        let ova = dir.path(&format!("{number}.ova"));
        run(&["export", "e2e-import-form", &ova], "").ok();
        same_disk(&unpack(&dir, &ova, &number.to_string())[0], &raw);
        fs::remove_file(ova).unwrap();
        fs::remove_dir_all(dir.0.join(number.to_string())).unwrap();
    }
    // Those of containers have no disks; a VM in memory neither.
    let none = run(&["export", "default", &dir.path("x.ova")], "");
    assert!(none.status == 2 && none.err.contains("has no disks"), "{none:?}");
    let nobody = run(&["export", "e2e-nobody", &dir.path("x.ova")], "");
    assert!(nobody.status == 3 && nobody.err.contains("no VM and no image"), "{nobody:?}");
    assert!(!dir.0.join("x.ova").exists());
}
