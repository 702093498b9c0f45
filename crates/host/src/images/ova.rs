//! A machine leaves as an OVA, for VirtualBox, VMware and others: OVF 1.1 (DMTF DSP0243), stream-optimised VMDKs and a manifest with SHA-256
//! digests, in a tar in which the description is first (DSP0243 §5.1). The same machine gives the same bytes.
use super::carry::{add, head};
use super::commit::{Stopped, Told, open};
use super::fault::{cancelled, io_fault};
use super::stack::Summed;
use super::store::{Store, sha256};
use super::{DISK_QCOW2, Image, Watcher};
use crate::new_file::NewFile;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use viv_api::image::Exported;
use viv_model::{DiskFormat, DiskSpec, Fault, Kind, MEMORY_MIB_USUAL};

/// Disks that the controller takes: of 16 places one is its own.
const DISKS_MAX: usize = 15;
/// The controller's own place.
const CONTROLLER_PLACE: usize = 7;
/// What is said of a kernel that other programs do not see.
const OUTSIDE: &str = "its kernel, which is not on its disks: where it goes, a boot loader must be on them";

/// A machine that is to be described.
struct Machine<'a> {
    name: String,
    cpus: u32,
    memory_mib: u64,
    cards: usize,
    disks: Vec<&'a DiskSpec>,
    left: Vec<String>,
}

/// A disk as it goes into the archive.
struct Packed {
    file: PathBuf,
    name: String,
    bytes: u64,
    sha256: String,
    capacity: u64,
    /// What its contents take, about.
    populated: u64,
}

/// Writes an image of the store.
pub(super) fn of_image(
    store: &Store,
    image: &Image,
    to: &Path,
    watcher: &dyn Watcher,
) -> Result<Exported, Fault> {
    let manifest = &image.manifest;
    if manifest.disks.is_empty() {
        return Err(Fault::new(
            Kind::Usage,
            format!("{} has no disks that another program could boot", image.name),
            "export an image of containers as oci: viv export IMAGE FILE.tar; or a VM with disks as ova",
        ));
    }
    let disks = manifest.disks.iter().map(|part| {
        let format = if part.media_type == DISK_QCOW2 { DiskFormat::Qcow2 } else { DiskFormat::Raw };
        let path = store.part(image, part)?;
        Ok(DiskSpec { path, format: Some(format), read_only: true, ..DiskSpec::default() })
    });
    let disks: Vec<DiskSpec> = disks.collect::<Result<_, Fault>>()?;
    let machine = Machine {
        name: plain(&image.name),
        cpus: manifest.usual.cpus.unwrap_or(1),
        memory_mib: manifest.usual.memory_mib.unwrap_or(MEMORY_MIB_USUAL),
        cards: 1,
        disks: disks.iter().collect(),
        left: if manifest.boots_itself() { Vec::new() } else { vec![OUTSIDE.to_string()] },
    };
    write(store, &machine, to, watcher)
}

/// Writes a VM that does not run.
pub(super) fn of_vm(
    store: &Store,
    vm: &Stopped<'_>,
    to: &Path,
    watcher: &dyn Watcher,
) -> Result<Exported, Fault> {
    let disks: Vec<&DiskSpec> = vm.machine.disks.iter().filter(|disk| !disk.read_only).collect();
    let of_containers = vm
        .machine
        .disks
        .iter()
        .any(|disk| disk.read_only && disk.path.file_name() == Some(viv_snapshot::IMAGE.as_ref()));
    if disks.is_empty() || of_containers {
        return Err(Fault::new(
            Kind::Usage,
            format!("VM {:?} has no disks that another program could boot", vm.name),
            format!(
                "make an image of it: viv commit {} IMAGE; and export that: viv export IMAGE FILE.tar",
                vm.name
            ),
        ));
    }
    let mut left = Vec::new();
    if !vm.boots_itself {
        left.push(OUTSIDE.to_string());
    }
    left.extend(vm.machine.disks.iter().filter(|disk| disk.read_only).map(|disk| {
        let name = disk.path.file_name().unwrap_or_default().to_string_lossy();
        format!("the disk {name}, to which it cannot write")
    }));
    left.extend(vm.machine.shares.iter().map(|share| format!("the directory {}", share.path.display())));
    let machine = Machine {
        name: plain(vm.name),
        cpus: vm.machine.cpus,
        memory_mib: vm.machine.memory_mib,
        cards: vm.machine.nics.len(),
        disks,
        left,
    };
    write(store, &machine, to, watcher)
}

/// A name that is one everywhere.
fn plain(name: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let name: String = name.chars().map(|c| if allowed(c) { c } else { '-' }).collect();
    name.trim_start_matches(['.', '-']).to_string()
}

fn write(store: &Store, machine: &Machine<'_>, to: &Path, watcher: &dyn Watcher) -> Result<Exported, Fault> {
    if machine.disks.len() > DISKS_MAX {
        let text =
            format!("{} has {} disks, and an OVA holds {DISKS_MAX}", machine.name, machine.disks.len());
        return Err(Fault::new(
            Kind::Usage,
            text,
            "export its disks alone: viv export VM FILE.qcow2 --disk N",
        ));
    }
    let new = NewFile::begin(to)?;
    let size_bytes = archive(store, machine, &new, watcher)?;
    Ok(Exported { path: new.finish()?, size_bytes, digest: None, left: machine.left.clone() })
}

/// Writes the archive; gives its length.
fn archive(store: &Store, machine: &Machine<'_>, new: &NewFile, watcher: &dyn Watcher) -> Result<u64, Fault> {
    let fault = |error| new.fault(error);
    let out = OpenOptions::new().write(true).create_new(true).mode(0o644).open(new.path()).map_err(fault)?;
    let scratch = store.pull_scratch()?;
    let mut packed = Vec::new();
    for (number, disk) in machine.disks.iter().enumerate() {
        packed.push(pack(disk, number, &machine.name, scratch.path(), watcher)?);
    }
    let description = description(machine, &packed);
    let name = &machine.name;
    let mut sums = format!("SHA256({name}.ovf)= {}\n", sha256(description.as_bytes()));
    for disk in &packed {
        let _ = writeln!(sums, "SHA256({})= {}", disk.name, disk.sha256);
    }
    let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, out));
    add(&mut tar, &format!("{name}.ovf"), description.as_bytes()).map_err(fault)?;
    add(&mut tar, &format!("{name}.mf"), sums.as_bytes()).map_err(fault)?;
    for disk in &packed {
        if watcher.cancelled() {
            return Err(cancelled());
        }
        let content = File::open(&disk.file).map_err(io_fault("read", &disk.file))?;
        tar.append_data(&mut head(disk.bytes), &disk.name, BufReader::new(content)).map_err(fault)?;
        fs::remove_file(&disk.file).map_err(io_fault("remove", &disk.file))?;
    }
    let out = tar.into_inner().map_err(fault)?;
    let out = out.into_inner().map_err(io::IntoInnerError::into_error).map_err(fault)?;
    out.sync_all().map_err(fault)?;
    Ok(out.metadata().map_err(fault)?.len())
}

/// Compresses a disk into a file of `scratch`.
fn pack(
    disk: &DiskSpec,
    number: usize,
    machine: &str,
    scratch: &Path,
    watcher: &dyn Watcher,
) -> Result<Packed, Fault> {
    let content = open(disk)?;
    let file = scratch.join(format!("disk{number}.vmdk"));
    let out =
        OpenOptions::new().write(true).create_new(true).open(&file).map_err(io_fault("write", &file))?;
    let mut told = Told::new(watcher, format!("compressing {}", disk.path.display()));
    told.total = Some(content.size());
    let mut given_up = false;
    let mut to = Summed::new(BufWriter::with_capacity(1 << 20, out));
    let written = viv_block::write_vmdk_stream(&*content, &mut to, &mut |done| {
        told.bytes(done).map_err(|_| {
            given_up = true;
            io::ErrorKind::Interrupted.into()
        })
    })
    .and_then(|()| to.flush());
    match written {
        Err(_) if given_up => return Err(cancelled()),
        written => written.map_err(io_fault("write", &file))?,
    }
    let (sha256, bytes) = to.finish();
    let name = format!("{machine}-disk{}.vmdk", number + 1);
    Ok(Packed { file, name, bytes, sha256, capacity: content.size(), populated: bytes })
}

/// The description. Its hardware is what both VirtualBox and VMware have: hardware families may be several (DSP0243 §8.2, VirtualSystemType).
fn description(machine: &Machine<'_>, disks: &[Packed]) -> String {
    let name = &machine.name;
    let (mut references, mut sections, mut items) = (String::new(), String::new(), String::new());
    for (number, disk) in disks.iter().enumerate() {
        let id = number + 1;
        let _ = writeln!(
            references,
            "    <File ovf:href=\"{}\" ovf:id=\"file{id}\" ovf:size=\"{}\"/>",
            disk.name, disk.bytes
        );
        let _ = writeln!(
            sections,
            "    <Disk ovf:capacity=\"{}\" ovf:capacityAllocationUnits=\"byte\" ovf:diskId=\"vmdisk{id}\" ovf:fileRef=\"file{id}\" \
             ovf:format=\"http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized\" ovf:populatedSize=\"{}\"/>",
            disk.capacity, disk.populated
        );
    }
    let mut item = |id: usize, fields: &[(&str, &str)]| {
        items.push_str("      <Item>\n");
        // The schema wants them in the order of the alphabet.
        let id = id.to_string();
        let mut all: Vec<(&str, &str)> = [fields, &[("InstanceID", id.as_str())]].concat();
        all.sort_unstable();
        for (field, value) in all {
            let _ = writeln!(items, "        <rasd:{field}>{value}</rasd:{field}>");
        }
        items.push_str("      </Item>\n");
    };
    let (cpus, memory) = (machine.cpus.to_string(), machine.memory_mib.to_string());
    let cpus_called = format!("{cpus} virtual CPU(s)");
    item(
        1,
        &[
            ("AllocationUnits", "hertz * 10^6"),
            ("Description", "Number of Virtual CPUs"),
            ("ElementName", &cpus_called),
            ("ResourceType", "3"),
            ("VirtualQuantity", &cpus),
        ],
    );
    let memory_called = format!("{memory}MB of memory");
    item(
        2,
        &[
            ("AllocationUnits", "byte * 2^20"),
            ("Description", "Memory Size"),
            ("ElementName", &memory_called),
            ("ResourceType", "4"),
            ("VirtualQuantity", &memory),
        ],
    );
    item(
        3,
        &[
            ("Address", "0"),
            ("Description", "SCSI Controller"),
            ("ElementName", "SCSI Controller 0"),
            ("ResourceSubType", "lsilogic"),
            ("ResourceType", "6"),
        ],
    );
    for number in 0..disks.len() {
        let place = if number < CONTROLLER_PLACE { number } else { number + 1 }.to_string();
        let (called, resource) =
            (format!("Hard Disk {}", number + 1), format!("ovf:/disk/vmdisk{}", number + 1));
        item(
            4 + number,
            &[
                ("AddressOnParent", &place),
                ("ElementName", &called),
                ("HostResource", &resource),
                ("Parent", "3"),
                ("ResourceType", "17"),
            ],
        );
    }
    for number in 0..machine.cards {
        let called = format!("Network adapter {}", number + 1);
        item(
            4 + disks.len() + number,
            &[
                ("AutomaticAllocation", "true"),
                ("Connection", "NAT"),
                ("Description", "E1000 ethernet adapter on NAT"),
                ("ElementName", &called),
                ("ResourceSubType", "E1000"),
                ("ResourceType", "10"),
            ],
        );
    }
    let network = match machine.cards {
        0 => "",
        _ => {
            "    <Network ovf:name=\"NAT\">\n      <Description>The NAT network</Description>\n    </Network>\n"
        }
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" xmlns:cim=\"http://schemas.dmtf.org/wbem/wscim/1/common\" \
         xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\" \
         xmlns:rasd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData\" \
         xmlns:vssd=\"http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData\" \
         xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\">\n  \
         <References>\n{references}  </References>\n  \
         <DiskSection>\n    <Info>Virtual disk information</Info>\n{sections}  </DiskSection>\n  \
         <NetworkSection>\n    <Info>The list of logical networks</Info>\n{network}  </NetworkSection>\n  \
         <VirtualSystem ovf:id=\"{name}\">\n    <Info>A virtual machine</Info>\n    <Name>{name}</Name>\n    \
         <OperatingSystemSection ovf:id=\"101\">\n      <Info>The kind of installed guest operating system</Info>\n      \
         <Description>Linux 64-Bit</Description>\n    </OperatingSystemSection>\n    \
         <VirtualHardwareSection>\n      <Info>Virtual hardware requirements</Info>\n      <System>\n        \
         <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>\n        <vssd:InstanceID>0</vssd:InstanceID>\n        \
         <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>\n        \
         <vssd:VirtualSystemType>vmx-10 virtualbox-2.2</vssd:VirtualSystemType>\n      </System>\n\
         {items}    </VirtualHardwareSection>\n  </VirtualSystem>\n</Envelope>\n"
    )
}
