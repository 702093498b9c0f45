//! What a file is, by its content, and the way from there to a machine and its disks.
use crate::archive::{Archive, spill};
use crate::fault::{damaged, failed, unsupported};
use crate::libvirt::{self, Drive};
use crate::lzop::{self, Lzop};
use crate::machine::{Machine, MachineDisk, Origin, shown};
use crate::package::{self, Package};
use crate::vagrant::{self, Contents, METADATA, VAGRANTFILE};
use crate::vma::{self, Header};
use crate::vmx;
use crate::{proxmox, xml};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use viv_block::Disk;
use viv_model::{DiskFormat, Fault, Kind};
use viv_rootfs::Decompress;

/// Told what is being done, how far it is and how much there is; a fault ends the work.
pub type Watcher<'a> = &'a mut dyn FnMut(&str, u64, Option<u64>) -> Result<(), Fault>;
/// Makes the disk that takes the machine's disk of a number and a size.
pub type Targets<'a> = &'a mut dyn FnMut(usize, u64) -> Result<Box<dyn Disk>, Fault>;

/// The configuration in a backup.
const CONFIGURATION: &str = "qemu-server.conf";
/// Devices of a backup that are no disks of the guest.
const NO_DISKS: [&str; 3] = ["efidisk", "tpmstate", "vmstate"];

/// What files that are compressed begin with: gzip, zstd, lzop.
const COMPRESSED: [&[u8]; 3] = [&[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], lzop::MAGIC];

/// To what formats round a disk's size up.
const GRAIN: u64 = 64 << 10;

/// A file that holds a machine.
pub struct Source {
    path: PathBuf,
    machine: Machine,
    content: Content,
}

enum Content {
    Package(Package),
    Disks(Vec<viv_block::Source>),
    /// Disks that are members of an archive.
    Members(Archive, Vec<String>),
    /// The same, of VMware: members that name others.
    Parts(Archive, Vec<String>),
    /// A backup, and the number of its disk for each of its devices.
    Backup(Header, Vec<Option<usize>>),
}

/// What a file begins with.
enum Form {
    Tar,
    Vma,
    Xml,
    Vmx,
    Compressed,
    Other,
}

impl Form {
    fn of(head: &[u8]) -> Form {
        let text = head.strip_prefix(b"\xef\xbb\xbf").unwrap_or(head).trim_ascii_start();
        match () {
            () if head.starts_with(vma::MAGIC) => Form::Vma,
            () if head.get(257..262) == Some(b"ustar") => Form::Tar,
            () if COMPRESSED.iter().any(|magic| head.starts_with(magic)) => Form::Compressed,
            () if text.starts_with(b"<?xml") || text.starts_with(b"<domain") || text.starts_with(b"<!--") => {
                Form::Xml
            }
            () if vmx::is_one(head) => Form::Vmx,
            () if text.starts_with(b"<Envelope") || text.starts_with(b"<ovf:") => Form::Xml,
            () => Form::Other,
        }
    }
}

impl Source {
    /// Looks at the file at `path`, which is absolute. Of archives that are compressed, all is read.
    pub fn open(path: &Path, watcher: Watcher<'_>) -> Result<Source, Fault> {
        let found = std::fs::metadata(path).map_err(failed("read", path))?;
        if found.is_dir() {
            return Err(Fault::new(
                Kind::Usage,
                format!("{} is a directory", path.display()),
                "name the machine's file in it: its .ovf, its XML, its backup, or its disk",
            ));
        }
        if !found.is_file() {
            return Source::disk(path);
        }
        let mut file = File::open(path).map_err(failed("read", path))?;
        let head = head(&mut file).map_err(failed("read", path))?;
        let what = path.display().to_string();
        match Form::of(&head) {
            Form::Tar => Source::archive(path, false, watcher),
            Form::Vma => Source::backup(path, &what),
            Form::Xml => Source::description(path, &what),
            Form::Vmx => Source::vmware(path, &what),
            Form::Compressed => {
                let inner = self::head(&mut unpacked(path)?).map_err(|error| damaged(&what, error))?;
                match Form::of(&inner) {
                    Form::Tar => Source::archive(path, true, watcher),
                    Form::Vma => Source::backup(path, &what),
                    _ => Err(unsupported(
                        &what,
                        "what is compressed in it is no archive of a machine",
                        "if it is a disk, unpack it first: gunzip, zstd -d, or lzop -d",
                    )),
                }
            }
            Form::Other => {
                refuse_others(&head, &mut file, &what)?;
                Source::disk(path)
            }
        }
    }

    /// What the machine is.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Writes each of its disks into one that `targets` makes; `scratch` is a directory for what has to be unpacked on the way.
    pub fn write(&self, scratch: &Path, targets: Targets<'_>, watcher: Watcher<'_>) -> Result<(), Fault> {
        match &self.content {
            Content::Package(package) => package.write(&self.machine, scratch, targets, watcher),
            Content::Disks(sources) => {
                for (number, source) in sources.iter().enumerate() {
                    copy_file(source, (number, &one_of(&source.path), None), targets, watcher)?;
                }
                Ok(())
            }
            Content::Members(archive, names) => archive.each(&mut |name, size, content| {
                let Some(number) = names.iter().position(|known| known == name) else { return Ok(()) };
                let packed = scratch.join(format!("packed{number}"));
                spill(content, (name, Some(size), size), &packed, None, watcher)?;
                let declared = self.machine.disks.get(number).and_then(|disk| disk.size);
                copy_file(
                    &viv_block::Source::new(&packed, true),
                    (number, name, declared),
                    targets,
                    watcher,
                )?;
                std::fs::remove_file(&packed).map_err(failed("remove", &packed))
            }),
            Content::Parts(archive, names) => {
                let place = scratch.join("parts");
                std::fs::create_dir(&place).map_err(failed("make", &place))?;
                archive.each(&mut |name, size, content| match is_part(name) {
                    true => spill(content, (name, Some(size), size), &place.join(name), None, watcher),
                    false => Ok(()),
                })?;
                for (number, name) in names.iter().enumerate() {
                    let format = Some(DiskFormat::Vmdk);
                    let source =
                        viv_block::Source { format, ..viv_block::Source::new(&place.join(name), true) };
                    copy_file(&source, (number, name, None), targets, watcher)?;
                }
                std::fs::remove_dir_all(&place).map_err(failed("remove", &place))
            }
            Content::Backup(header, numbers) => {
                let what = self.path.display().to_string();
                let mut input = unpacked(&self.path)?;
                Header::read(&mut input, &what)?;
                let mut made = Vec::new();
                for (device, number) in header.devices.iter().zip(numbers) {
                    if let Some(number) = number {
                        made.push((device.id, targets(*number, device.size)?));
                    }
                }
                let take = |id| {
                    let at = made.iter().position(|(of, _)| *of == id)?;
                    Some(made.swap_remove(at).1)
                };
                vma::write(&mut input, header, &what, take, watcher)
            }
        }
    }

    fn archive(path: &Path, compressed: bool, watcher: Watcher<'_>) -> Result<Source, Fault> {
        let what = path.display().to_string();
        let archive = Archive::open(path, compressed, watcher)?;
        let source = |machine, content| Source { path: path.to_owned(), machine, content };
        let Some(metadata) = archive.bytes(METADATA).map(String::from_utf8_lossy) else {
            let (mut machine, package) = package::of_archive(archive, &what)?;
            machine.origin = Origin::Ova;
            return Ok(source(machine, Content::Package(package)));
        };
        let settings = archive.bytes(VAGRANTFILE).map(String::from_utf8_lossy).unwrap_or_default();
        let (machine, contents) = vagrant::parse(&metadata, &settings)?;
        match contents {
            Contents::Disks(names) => match names.iter().find(|name| !archive.has(name)) {
                Some(missing) => Err(damaged(&what, format!("its disk {:?} is not in it", shown(missing)))),
                None => Ok(source(machine, Content::Members(archive, names))),
            },
            Contents::Ovf => {
                let (described, package) = package::of_archive(archive, &what)?;
                Ok(source(in_a_box(machine, described), Content::Package(package)))
            }
            Contents::Vmx => {
                let all: Vec<_> = archive.names().filter(|name| name.ends_with(".vmx")).collect();
                let [name] = all[..] else {
                    let why = format!("a box of VMware has one .vmx, and it has {}", all.len());
                    return Err(damaged(&what, why));
                };
                let text = archive.bytes(name).ok_or_else(|| damaged(name, "it is too long"))?;
                let (described, drives) = vmx::parse(&String::from_utf8_lossy(text), &shown(name))?;
                let names = drives.iter().map(|drive| drive.path.to_string_lossy().into_owned());
                let names: Vec<String> = names.collect();
                match names.iter().find(|name| !is_part(name) || !archive.has(name)) {
                    Some(missing) => {
                        Err(damaged(&what, format!("its disk {:?} is not in it", shown(missing))))
                    }
                    None => Ok(source(in_a_box(machine, described), Content::Parts(archive, names))),
                }
            }
        }
    }

    fn description(path: &Path, what: &str) -> Result<Source, Fault> {
        let text = text_of(path, what)?;
        let read = std::str::from_utf8(&text).map_err(|_| damaged(what, "it is not in UTF-8"))?;
        let root = xml::parse(read, what)?.root_element().tag_name().name().to_string();
        match root.as_str() {
            "Envelope" => {
                let (machine, package) = package::beside(path, &text)?;
                Ok(Source { path: path.to_owned(), machine, content: Content::Package(package) })
            }
            "domain" => {
                let (machine, drives) = libvirt::parse(read, what)?;
                Source::beside(path, machine, &drives)
            }
            other => Err(unsupported(
                what,
                format!("its root is {:?}", shown(other)),
                "import an OVF (its root is Envelope), or what virsh dumpxml prints (domain)",
            )),
        }
    }

    fn backup(path: &Path, what: &str) -> Result<Source, Fault> {
        let mut input = unpacked(path)?;
        let header = Header::read(&mut input, what)?;
        let found = header.configurations.iter().find(|(name, _)| name == CONFIGURATION);
        let text = found.map(|(_, text)| String::from_utf8_lossy(text)).unwrap_or_default();
        let configuration = proxmox::parse(&text);
        let mut machine = configuration.machine;
        if let Some(arch) = configuration.arch.filter(|arch| arch != "x86_64") {
            let why = format!("its processor is {:?}", shown(&arch));
            return Err(unsupported(what, why, "import a machine of x86-64"));
        }
        if found.is_none() {
            machine.leave(format!("memory and processors: the backup has no {CONFIGURATION}"));
            (machine.cpus, machine.memory_mib) = (None, None);
        }
        let name = |index: usize| {
            let name = header.devices.get(index).map(|device| device.name.as_str()).unwrap_or_default();
            name.strip_prefix("drive-").unwrap_or(name)
        };
        let mut order: Vec<usize> = (0..header.devices.len()).collect();
        order.retain(|index| !NO_DISKS.iter().any(|other| name(*index).starts_with(other)));
        // What it boots from is first.
        let rank = |index: &usize| configuration.boot.iter().position(|drive| drive == name(*index));
        order.sort_by_key(|index| rank(index).unwrap_or(usize::MAX));
        if header.devices.iter().any(|device| device.name == "vmstate") {
            machine.leave("the state of the running machine (vmstate): it boots anew");
        }
        for drive in &configuration.drives {
            if !order.iter().any(|index| name(*index) == drive) {
                machine.leave(format!("disk {drive}: it is not in the backup"));
            }
        }
        if order.is_empty() {
            return Err(unsupported(
                what,
                "it has no disks",
                "back up the machine with its disks (backup=1)",
            ));
        }
        let mut numbers = vec![None; header.devices.len()];
        for (number, index) in order.into_iter().enumerate() {
            let size = header.devices.get(index).map(|device| device.size);
            machine.disks.push(MachineDisk { name: shown(name(index)), size });
            if let Some(slot) = numbers.get_mut(index) {
                *slot = Some(number);
            }
        }
        Ok(Source { path: path.to_owned(), machine, content: Content::Backup(header, numbers) })
    }

    fn vmware(path: &Path, what: &str) -> Result<Source, Fault> {
        // What is not UTF-8 (.encoding) is a name.
        let text = text_of(path, what)?;
        let (machine, drives) = vmx::parse(&String::from_utf8_lossy(&text), what)?;
        Source::beside(path, machine, &drives)
    }

    /// A machine whose disks are files, named from where its description is.
    fn beside(path: &Path, mut machine: Machine, drives: &[Drive]) -> Result<Source, Fault> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let sources: Vec<viv_block::Source> = drives.iter().map(|drive| of_drive(drive, directory)).collect();
        for source in &sources {
            look(source, &mut machine)?;
        }
        Ok(Source { path: path.to_owned(), machine, content: Content::Disks(sources) })
    }

    fn disk(path: &Path) -> Result<Source, Fault> {
        let source = viv_block::Source::new(path, true);
        let format = viv_block::probe(path)?;
        let mut machine = Machine::new(Origin::Disk(format));
        machine.name = path.file_stem().map(|name| shown(&name.to_string_lossy()));
        machine.disks = vec![MachineDisk { name: one_of(path), size: None }];
        look(&source, &mut machine)?;
        Ok(Source { path: path.to_owned(), machine, content: Content::Disks(vec![source]) })
    }
}

/// A machine as its own description says, and the box around it.
fn in_a_box(mut around: Machine, described: Machine) -> Machine {
    let left = described.left.iter().filter(|item| !item.starts_with("checksums:")).cloned();
    around.left.extend(left);
    Machine {
        origin: Origin::Vagrant,
        memory_mib: around.memory_mib.or(described.memory_mib),
        cpus: around.cpus.or(described.cpus),
        left: around.left,
        ..described
    }
}

/// Whether a member of a box may be a disk of VMware, or a part of one: a file by a plain name.
fn is_part(name: &str) -> bool {
    let is_plain = Path::new(name).file_name().is_some_and(|plain| plain == name);
    is_plain && name.to_ascii_lowercase().ends_with(".vmdk")
}

/// A description, which is not longer than any is.
fn text_of(path: &Path, what: &str) -> Result<Vec<u8>, Fault> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(failed("read", path))?;
    file.take(xml::TEXT_MAX + 1).read_to_end(&mut text).map_err(failed("read", path))?;
    match text.len() as u64 > xml::TEXT_MAX {
        true => Err(damaged(what, "it is too long for a description")),
        false => Ok(text),
    }
}

/// A file's content, unpacked if it is compressed.
pub(crate) fn unpacked(path: &Path) -> Result<Box<dyn Read>, Fault> {
    let mut file = File::open(path).map_err(failed("read", path))?;
    let head = head(&mut file).and_then(|head| file.rewind().map(|()| head)).map_err(failed("read", path))?;
    if !head.starts_with(lzop::MAGIC) {
        return Ok(Box::new(Decompress::new(file)?));
    }
    let content = Lzop::new(BufReader::new(file)).map_err(|error| damaged(path.display(), error))?;
    Ok(Box::new(content))
}

/// The first bytes, as many as tell what it is.
fn head(input: &mut dyn Read) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    input.take(4096).read_to_end(&mut head).map(|_| head)
}

/// Refuses what would be taken for a raw disk, and is known to be something else.
fn refuse_others(head: &[u8], file: &mut File, what: &str) -> Result<(), Fault> {
    let refuse = |why: &str, fix: &str| Err(unsupported(what, why, fix));
    if head.starts_with(b"\xfd7zXZ\0") {
        return refuse("it is compressed by xz", "unpack it first: xz -d FILE");
    }
    if head.starts_with(b"BZh") && head.get(4..10) == Some(&[0x31, 0x41, 0x59, 0x26, 0x53, 0x59]) {
        return refuse("it is compressed by bzip2", "unpack it first: bzip2 -d FILE");
    }
    if head.starts_with(b"PK\x03\x04") {
        return refuse("it is a zip archive", "unpack it first: unzip FILE");
    }
    let mut sign = [0; 5];
    let iso = file.seek(SeekFrom::Start(32769)).and_then(|_| file.read_exact(&mut sign));
    if iso.is_ok() && &sign == b"CD001" && head.get(510..512) != Some(&[0x55, 0xaa]) {
        return refuse("it is a disc (ISO 9660)", "import a disk on which a system is installed");
    }
    Ok(())
}

/// A domain's disk as a source. One whose format is not said is raw, as it is for libvirt: its guest may have written what looks like another.
fn of_drive(drive: &Drive, directory: &Path) -> viv_block::Source {
    let below = drive.below.iter().map(|path| directory.join(path)).filter(|path| path.exists());
    viv_block::Source {
        format: Some(drive.format.unwrap_or(DiskFormat::Raw)),
        allowed: below.collect(),
        ..viv_block::Source::new(&directory.join(&drive.path), true)
    }
}

/// Looks whether a disk can be opened, and at what it has that is not carried over.
fn look(source: &viv_block::Source, machine: &mut Machine) -> Result<(), Fault> {
    let info = viv_block::info(source)?;
    viv_block::open(source)?;
    if info.qcow2.is_some_and(|qcow2| qcow2.snapshots > 0) {
        machine.leave(format!("snapshots in {}: its present state is taken", one_of(&source.path)));
    }
    Ok(())
}

/// A file's own name.
pub(crate) fn one_of(path: &Path) -> String {
    shown(&path.file_name().unwrap_or_default().to_string_lossy())
}

/// Copies the disk in a file to one that is made for it. It may not be larger than its machine's description says.
pub(crate) fn copy_file(
    source: &viv_block::Source,
    (number, name, size): (usize, &str, Option<u64>),
    targets: Targets<'_>,
    watcher: Watcher<'_>,
) -> Result<(), Fault> {
    let disk = viv_block::open(source)
        .map_err(Fault::from)
        .map_err(|fault| Fault { message: format!("{}: {}", shown(name), fault.message), ..fault })?;
    if let Some(size) = size.filter(|size| disk.size() > size.next_multiple_of(GRAIN)) {
        let why = format!("its disk has {} bytes, and its description says {size}", disk.size());
        return Err(damaged(shown(name), why));
    }
    let target = targets(number, disk.size())?;
    let step = format!("copying {}", shown(name));
    let mut refused = None;
    let copied = viv_block::copy(&*disk, &*target, &mut |done| {
        watcher(&step, done, Some(disk.size())).map_err(|fault| {
            refused = Some(fault);
            io::ErrorKind::Interrupted.into()
        })
    });
    match (refused, copied) {
        (Some(fault), _) => Err(fault),
        (None, copied) => copied.map_err(failed("copy the disk", Path::new(&shown(name)))),
    }
}
