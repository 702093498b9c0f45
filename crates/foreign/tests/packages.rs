//! Packages as people have them, and as nobody should: through the front door of the crate, with disks that are compared.
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use viv_block::{Disk, MemoryDisk, write_vmdk_stream};
use viv_foreign::{Machine, Origin, Source};
use viv_model::{DiskFormat, Fault, Kind};

/// A directory that goes away with its test, and a canary beside the place where archives are.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Dir {
        let path = std::env::temp_dir().join(format!("viv-foreign-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("in")).unwrap();
        fs::write(path.join("canary"), "alive").unwrap();
        Dir(path)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join("in").join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        assert_eq!(fs::read_to_string(self.0.join("canary")).unwrap(), "alive");
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A disk that others look into later.
struct Shared(Arc<MemoryDisk>);

impl Disk for Shared {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, data)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// Imports the file at `path`; its machine and its disks' contents. Nothing is left in the scratch directory.
fn import(dir: &Dir, path: &Path) -> Result<(Machine, Vec<Vec<u8>>), Fault> {
    let scratch = dir.0.join("scratch");
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir_all(&scratch).unwrap();
    let source = Source::open(path, &mut |_, _, _| Ok(()))?;
    let made: RefCell<Vec<(usize, Arc<MemoryDisk>)>> = RefCell::default();
    source.write(
        &scratch,
        &mut |number, size| {
            let disk = Arc::new(MemoryDisk::new(vec![0; size as usize]));
            made.borrow_mut().push((number, disk.clone()));
            Ok(Box::new(Shared(disk)))
        },
        &mut |_, _, _| Ok(()),
    )?;
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
    let mut made = made.into_inner();
    made.sort_by_key(|(number, _)| *number);
    let read = |disk: &MemoryDisk| {
        let mut content = vec![0; disk.size() as usize];
        disk.read(0, &mut content).unwrap();
        content
    };
    Ok((source.machine().clone(), made.iter().map(|(_, disk)| read(disk)).collect()))
}

fn content(seed: u8) -> Vec<u8> {
    let mut content = vec![0u8; 1 << 20];
    for (at, byte) in content.iter_mut().enumerate().skip(70_000).take(5000) {
        *byte = (at as u8).wrapping_mul(seed);
    }
    content
}

fn vmdk(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_vmdk_stream(&MemoryDisk::new(content.to_vec()), &mut bytes, &mut |_| Ok(())).unwrap();
    bytes
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A description of a machine with these disks: file, attributes of the file, capacity.
fn ovf(disks: &[(&str, &str, u64)]) -> String {
    let (mut files, mut all, mut items) = (String::new(), String::new(), String::new());
    for (number, (file, attributes, capacity)) in disks.iter().enumerate() {
        files += &format!("<File ovf:id='f{number}' ovf:href='{file}' {attributes}/>");
        all += &format!("<Disk ovf:diskId='d{number}' ovf:fileRef='f{number}' ovf:capacity='{capacity}'/>");
        items += &format!(
            "<Item><r:AddressOnParent>{number}</r:AddressOnParent><r:HostResource>ovf:/disk/d{number}</r:HostResource><r:Parent>3</r:Parent><r:ResourceType>17</r:ResourceType></Item>"
        );
    }
    format!(
        "<?xml version='1.0'?><Envelope xmlns:ovf='http://schemas.dmtf.org/ovf/envelope/1' xmlns:r='r'><References>{files}</References>\
         <DiskSection>{all}</DiskSection><VirtualSystem ovf:id='box'><VirtualHardwareSection>\
         <Item><r:InstanceID>1</r:InstanceID><r:ResourceType>3</r:ResourceType><r:VirtualQuantity>2</r:VirtualQuantity></Item>\
         <Item><r:InstanceID>2</r:InstanceID><r:ResourceType>4</r:ResourceType><r:VirtualQuantity>256</r:VirtualQuantity><r:AllocationUnits>MegaBytes</r:AllocationUnits></Item>\
         <Item><r:InstanceID>3</r:InstanceID><r:ResourceType>6</r:ResourceType></Item>{items}</VirtualHardwareSection></VirtualSystem></Envelope>"
    )
}

fn manifest(files: &[(&str, &[u8])]) -> String {
    let hex =
        |bytes: &[u8]| -> String { Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect() };
    files.iter().map(|(name, bytes)| format!("SHA256({name})= {}\n", hex(bytes))).collect()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        // Such names are what the library does not write.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A small OVA of two disks, one of them compressed as a whole.
fn ova() -> (Vec<u8>, Vec<Vec<u8>>) {
    let contents = vec![content(3), content(5)];
    let (first, second) = (vmdk(&contents[0]), gzip(&contents[1]));
    let text = ovf(&[
        ("a.vmdk", &format!("ovf:size='{}'", first.len()), 1 << 20),
        ("b.gz", "ovf:compression='gzip'", 1 << 20),
    ]);
    let sums = manifest(&[("box.ovf", text.as_bytes()), ("a.vmdk", &first), ("b.gz", &second)]);
    let bytes = tar(&[
        ("box.ovf", text.as_bytes()),
        ("b.gz", &second),
        ("a.vmdk", &first),
        ("box.mf", sums.as_bytes()),
    ]);
    (bytes, contents)
}

#[test]
fn an_ova_gives_its_machine_and_disks() {
    let dir = Dir::new("ova");
    let (bytes, contents) = ova();
    let (machine, disks) = import(&dir, &dir.put("a.bin", &bytes)).unwrap();
    assert_eq!(machine.origin, Origin::Ova);
    assert_eq!(
        (machine.cpus, machine.memory_mib, machine.name.as_deref()),
        (Some(2), Some(256), Some("box"))
    );
    assert!(disks == contents);
    assert!(machine.left.is_empty(), "{:?}", machine.left);
}

#[test]
fn an_ova_that_is_cut_off_is_refused() {
    let dir = Dir::new("cut");
    let (bytes, _) = ova();
    // The second of the two records of zeroes at its end says nothing new.
    for len in (0..bytes.len() - 512).step_by(512).chain((1..bytes.len() - 512).step_by(4099)) {
        let fault = import(&dir, &dir.put("cut.ova", &bytes[..len])).map(drop);
        let fault = fault.expect_err(&format!("cut at {len} of {}", bytes.len()));
        assert!(!fault.fix.is_empty());
    }
}

#[test]
fn a_package_beside_its_disks_is_compared_with_its_manifest_too() {
    let dir = Dir::new("beside");
    let disk = vmdk(&content(7));
    let text = ovf(&[("my%20disk.vmdk", "", 1 << 20)]);
    let path = dir.put("box.ovf", text.as_bytes());
    assert_eq!(import(&dir, &path).unwrap_err().kind, Kind::NotFound);
    let file = dir.put("my disk.vmdk", &disk);
    let (machine, disks) = import(&dir, &path).unwrap();
    assert!(disks[0] == content(7));
    assert!(machine.left.iter().any(|item| item.contains("no manifest")), "{:?}", machine.left);
    dir.put("box.mf", manifest(&[("box.ovf", text.as_bytes()), ("my disk.vmdk", &disk)]).as_bytes());
    import(&dir, &path).unwrap();
    let mut other = disk.clone();
    *other.last_mut().unwrap() ^= 1;
    fs::write(&file, other).unwrap();
    assert!(import(&dir, &path).unwrap_err().message.contains("digest"));
    // A link out of the package's directory.
    fs::remove_file(&file).unwrap();
    fs::write(dir.0.join("outside"), &disk).unwrap();
    std::os::unix::fs::symlink("../outside", &file).unwrap();
    assert!(import(&dir, &path).unwrap_err().message.contains("outside the package"));
}

#[test]
fn archives_that_lie_are_refused_and_write_nothing_outside() {
    let dir = Dir::new("lies");
    let disk = vmdk(&content(3));
    let plain = |file: &str| ovf(&[(file, "", 1 << 20)]);
    let with = |name: &str, text: &str| tar(&[("box.ovf", text.as_bytes()), (name, &disk)]);
    let link = |kind: tar::EntryType| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, kind: tar::EntryType, bytes: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_path(name).unwrap();
            if bytes.is_empty() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            tar.append(&header, bytes).unwrap();
        };
        add("box.ovf", tar::EntryType::Regular, plain("d.vmdk").as_bytes());
        add("d.vmdk", kind, &[]);
        tar.into_inner().unwrap()
    };
    let bomb = gzip(&vec![0; 80 << 20]);
    let small = ovf(&[("d.vmdk", "", 4096)]);
    let sized = ovf(&[("d.vmdk", "ovf:size='5'", 1 << 20)]);
    let unpacked = ovf(&[("b.gz", "ovf:compression='gzip'", 1 << 20)]);
    let text = plain("d.vmdk");
    let wrong = manifest(&[("d.vmdk", b"other")]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("up", with("../canary", &plain("../canary")), "outside"),
        ("deep", with("a/../../canary", &plain("d.vmdk")), "outside"),
        ("absolute", with("/tmp/x", &plain("/tmp/x")), "outside"),
        ("symbolic link", link(tar::EntryType::Symlink), "is a link"),
        ("hard link", link(tar::EntryType::Link), "is a link"),
        ("device", link(tar::EntryType::Block), "is no file"),
        ("pipe", link(tar::EntryType::Fifo), "is no file"),
        ("not there", with("other.vmdk", &text), "is not in it"),
        ("twice", tar(&[("box.ovf", text.as_bytes()), ("d.vmdk", &disk), ("d.vmdk", &disk)]), "twice"),
        ("two machines", tar(&[("a.ovf", text.as_bytes()), ("b.ovf", text.as_bytes())]), "more than one"),
        ("none", tar(&[("readme", b"hello")]), "without a machine's description"),
        ("small", with("d.vmdk", &small), "its description says 4096"),
        ("sized", with("d.vmdk", &sized), "its description says 5"),
        ("bomb", tar(&[("box.ovf", unpacked.as_bytes()), ("b.gz", &bomb)]), "larger than it says"),
        (
            "digest",
            tar(&[("box.ovf", text.as_bytes()), ("box.mf", wrong.as_bytes()), ("d.vmdk", &disk)]),
            "digest",
        ),
        ("no disk", tar(&[("box.ovf", text.as_bytes()), ("d.vmdk", b"text")]), "d.vmdk"),
    ];
    for (name, bytes, why) in cases {
        for packed in [bytes.clone(), gzip(&bytes)] {
            let fault = import(&dir, &dir.put("x.ova", &packed)).map(drop).expect_err(name);
            assert!(fault.message.contains(why), "{name}: {fault:?}");
        }
    }
    // An archive's disk that refers to files of the host.
    let flat = "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\nRW 1 FLAT \"/etc/passwd\" 0\n";
    let fault =
        import(&dir, &dir.put("x.ova", &tar(&[("box.ovf", text.as_bytes()), ("d.vmdk", flat.as_bytes())])));
    assert!(fault.is_err());
    // Sizes of members that are not there.
    let mut huge = with("d.vmdk", &text);
    let at = huge.windows(6).position(|six| six == b"d.vmdk").filter(|at| at % 512 == 0);
    let at = at.unwrap_or_else(|| {
        (0..huge.len()).step_by(512).find(|at| huge[*at..].starts_with(b"d.vmdk")).unwrap()
    });
    for size in [
        &b"77777777777\0"[..],
        b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
    ] {
        huge[at + 124..at + 136].copy_from_slice(size);
        huge[at + 148..at + 156].fill(b' ');
        let sum: u32 = huge[at..at + 512].iter().map(|byte| u32::from(*byte)).sum();
        huge[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        for packed in [huge.clone(), gzip(&huge)] {
            assert!(import(&dir, &dir.put("x.ova", &packed)).is_err());
        }
    }
}

#[test]
fn boxes_of_vagrant_are_read_packed_or_not() {
    let dir = Dir::new("box");
    let disk = content(9);
    let settings = b"Vagrant.configure('2') do |c|\n v.memory = 512\n v.cpus = 3\nend\n";
    let libvirt = tar(&[
        ("./metadata.json", br#"{"provider":"libvirt","format":"raw","virtual_size":1}"#),
        ("./Vagrantfile", settings),
        ("./box.img", &disk),
    ]);
    for bytes in [libvirt.clone(), gzip(&libvirt)] {
        let (machine, disks) = import(&dir, &dir.put("x.box", &bytes)).unwrap();
        assert_eq!((machine.origin, machine.cpus, machine.memory_mib), (Origin::Vagrant, Some(3), Some(512)));
        assert!(disks[0] == disk);
    }
    let packed = gzip(&libvirt);
    for len in (0..packed.len()).step_by(97) {
        assert!(import(&dir, &dir.put("x.box", &packed[..len])).is_err(), "cut at {len}");
    }
    let text = ovf(&[("d.vmdk", "", 1 << 20)]);
    let virtualbox = tar(&[
        ("metadata.json", br#"{"provider":"virtualbox"}"#),
        ("box.ovf", text.as_bytes()),
        ("d.vmdk", &vmdk(&disk)),
    ]);
    let (machine, disks) = import(&dir, &dir.put("v.box", &gzip(&virtualbox))).unwrap();
    assert_eq!((machine.origin, machine.cpus, machine.memory_mib), (Origin::Vagrant, Some(2), Some(256)));
    assert!(disks[0] == disk);
    let none = tar(&[("metadata.json", br#"{"provider":"libvirt"}"#)]);
    assert!(import(&dir, &dir.put("n.box", &none)).unwrap_err().message.contains("box.img"));
}

#[test]
fn a_domain_of_libvirt_has_its_disks_beside_it_or_elsewhere() {
    let dir = Dir::new("domain");
    let disk = dir.put("d.raw", &content(2));
    let elsewhere = dir.0.join("e.vmdk");
    fs::write(&elsewhere, vmdk(&content(4))).unwrap();
    let xml = format!(
        "<domain><name>d</name><devices><disk type='file'><driver type='raw'/><source file='d.raw'/><target dev='vda'/></disk>\
         <disk type='file'><driver type='vmdk'/><source file='{}'/><target dev='vdb'/></disk></devices></domain>",
        elsewhere.display()
    );
    let (machine, disks) = import(&dir, &dir.put("d.xml", xml.as_bytes())).unwrap();
    assert_eq!(machine.origin, Origin::Libvirt);
    assert!(disks == [content(2), content(4)]);
    fs::remove_file(disk).unwrap();
    assert_eq!(import(&dir, &dir.0.join("in/d.xml")).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn a_machine_of_vmware_has_its_disks_beside_it() {
    let dir = Dir::new("vmx");
    dir.put("root.vmdk", &vmdk(&content(2)));
    let text = "config.version = \"8\"\nmemsize = \"1024\"\nscsi0:0.fileName = \"root.vmdk\"\n";
    let (machine, disks) = import(&dir, &dir.put("m.vmx", text.as_bytes())).unwrap();
    assert_eq!((machine.origin, machine.memory_mib), (Origin::Vmx, Some(1024)));
    assert!(disks == [content(2)]);
    // Whatever else is there is no disk of VMware.
    dir.put("root.vmdk", &content(2));
    assert!(import(&dir, &dir.0.join("in/m.vmx")).is_err());
    fs::remove_file(dir.0.join("in/root.vmdk")).unwrap();
    assert_eq!(import(&dir, &dir.0.join("in/m.vmx")).unwrap_err().kind, Kind::NotFound);
}

#[test]
fn disks_alone_are_told_by_their_content() {
    let dir = Dir::new("disk");
    let (machine, disks) = import(&dir, &dir.put("x.raw", &vmdk(&content(6)))).unwrap();
    assert_eq!(machine.origin, Origin::Disk(DiskFormat::Vmdk));
    assert!(disks[0] == content(6));
    // Split, and flat: a descriptor with its extents beside it.
    dir.put("s1.vmdk", &vmdk(&content(6)));
    dir.put("s2-flat.vmdk", &content(8));
    let text = "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"custom\"\n\
                RW 2048 SPARSE \"s1.vmdk\"\nRW 2048 FLAT \"s2-flat.vmdk\" 0\n";
    let (_, disks) = import(&dir, &dir.put("s.vmdk", text.as_bytes())).unwrap();
    assert!(disks[0] == [content(6), content(8)].concat());
    for (bytes, fix) in [
        (&b"\xfd7zXZ\0 and so on"[..], "xz -d"),
        (b"PK\x03\x04 and so on", "unzip"),
        (b".encoding = \"UTF-8\"\nconfig.version = \"8\"\n", "import a machine that has one"),
        (&gzip(b"a disk"), "gunzip"),
    ] {
        let fault = import(&dir, &dir.put("x", bytes)).unwrap_err();
        assert!(fault.fix.contains(fix), "{fault:?}");
    }
    assert!(import(&dir, &dir.0.join("in")).unwrap_err().message.contains("directory"));
    assert_eq!(import(&dir, &dir.0.join("none")).unwrap_err().kind, Kind::NotFound);
    assert!(import(&dir, &dir.put("empty", b"")).is_err());
}

#[test]
fn a_work_that_is_given_up_ends() {
    let dir = Dir::new("given-up");
    let (bytes, _) = ova();
    let path = dir.put("a.ova", &bytes);
    let fault = || Fault::new(Kind::Error, "given up", "again");
    let source = Source::open(&path, &mut |_, _, _| Ok(())).unwrap();
    let scratch = dir.0.join("scratch");
    fs::create_dir_all(&scratch).unwrap();
    let mut make = |_, size: u64| -> Result<Box<dyn Disk>, Fault> {
        Ok(Box::new(MemoryDisk::new(vec![0; size as usize])))
    };
    assert_eq!(source.write(&scratch, &mut make, &mut |_, _, _| Err(fault())).unwrap_err(), fault());
    assert!(Source::open(&path, &mut |_, _, _| Err(fault())).is_err_and(|found| found == fault()));
}
