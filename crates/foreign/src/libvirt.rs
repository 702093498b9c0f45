//! libvirt's XML of a domain, as `virsh dumpxml` prints it (libvirt, "Domain XML format").
use crate::fault::{damaged, unsupported};
use crate::machine::{Machine, MachineDisk, Origin, shown};
use crate::ovf::DISKS_MAX;
use crate::xml::{self, attribute, child, children, text};
use roxmltree::Node;
use std::path::PathBuf;
use viv_model::{DiskFormat, Fault};

/// A disk of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drive {
    /// Its file, as the domain names it.
    pub(crate) path: PathBuf,
    /// Its format, as the domain says.
    pub(crate) format: Option<DiskFormat>,
    /// The files below it that the domain names.
    pub(crate) below: Vec<PathBuf>,
}

/// Reads a domain; `what` is its name for a person.
pub(crate) fn parse(text_of: &str, what: &str) -> Result<(Machine, Vec<Drive>), Fault> {
    let document = xml::parse(text_of, what)?;
    let domain = document.root_element();
    if domain.tag_name().name() != "domain" {
        return Err(damaged(what, format!("its root is {:?}, and not domain", domain.tag_name().name())));
    }
    let mut machine = Machine::new(Origin::Libvirt);
    machine.name = text(domain, "name").map(shown);
    machine.cpus = text(domain, "vcpu").and_then(|count| count.parse().ok()).filter(|count| *count > 0);
    machine.memory_mib =
        ["memory", "currentMemory"].into_iter().find_map(|name| memory(child(domain, name)?));
    boot(domain, what, &mut machine)?;
    let Some(devices) = child(domain, "devices") else {
        return Err(damaged(what, "it has no devices"));
    };
    let mut drives = Vec::new();
    for disk in children(devices, "disk") {
        let target = child(disk, "target").and_then(|target| attribute(target, "dev")).unwrap_or("?");
        match attribute(disk, "device").unwrap_or("disk") {
            "disk" => {}
            other => {
                machine.leave(format!("drive {target}: {other}"));
                continue;
            }
        }
        let drive = drive(disk, target, what)?;
        machine.disks.push(MachineDisk { name: shown(target), size: None });
        drives.push(drive);
    }
    if drives.len() > DISKS_MAX {
        return Err(damaged(what, format!("it has {} disks", drives.len())));
    }
    if drives.is_empty() {
        return Err(unsupported(what, "the domain has no disks", "import a machine that has one"));
    }
    leave_devices(devices, &mut machine);
    Ok((machine, drives))
}

/// How it boots, as far as that decides whether it is one for us.
fn boot(domain: Node<'_, '_>, what: &str, machine: &mut Machine) -> Result<(), Fault> {
    let Some(os) = child(domain, "os") else { return Ok(()) };
    if let Some(arch) = child(os, "type").and_then(|kind| attribute(kind, "arch"))
        && !matches!(arch, "x86_64" | "i686" | "amd64")
    {
        let fix = "import a machine of x86-64";
        return Err(unsupported(what, format!("its processor is {:?}", shown(arch)), fix));
    }
    let loader = child(os, "loader");
    let pflash = loader.and_then(|loader| attribute(loader, "type")) == Some("pflash");
    if attribute(os, "firmware") == Some("efi") || pflash {
        machine.leave("firmware: UEFI; its kernel is booted directly");
    }
    if let Some(kernel) = text(os, "kernel") {
        machine.leave(format!(
            "a kernel outside its disks: {kernel}; name it when it is run: --kernel, --initrd, --append"
        ));
    }
    Ok(())
}

/// Memory, which is in KiB if nothing is said.
fn memory(node: Node<'_, '_>) -> Option<u64> {
    let count: u64 = node.text()?.trim().parse().ok()?;
    let unit = match attribute(node, "unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    Some(count.checked_mul(unit)? >> 20)
}

fn drive(disk: Node<'_, '_>, target: &str, what: &str) -> Result<Drive, Fault> {
    let target = shown(target);
    let kind = attribute(disk, "type").unwrap_or("file");
    let refused = |why: String, fix: &str| Err(unsupported(what, format!("its disk {target} {why}"), fix));
    let copy = "copy it into a file (qemu-img convert), and name that in the XML: <disk type='file'>";
    let source = child(disk, "source");
    match kind {
        "file" => {}
        "network" => {
            let protocol = source.and_then(|source| attribute(source, "protocol")).unwrap_or("?");
            return refused(format!("is in the network, by {}", shown(protocol)), copy);
        }
        "block" => return refused("is a block device of its host".to_string(), copy),
        other => return refused(format!("is of type {:?}", shown(other)), copy),
    }
    let path = source
        .and_then(|source| attribute(source, "file"))
        .filter(|path| !path.is_empty() && !path.contains('\0'));
    let Some(path) = path else { return refused("names no file".to_string(), copy) };
    let encrypted =
        child(disk, "encryption").or_else(|| source.and_then(|source| child(source, "encryption"))).is_some();
    if encrypted {
        return refused("is encrypted".to_string(), "decrypt it into another file (qemu-img convert)");
    }
    let format = match child(disk, "driver").and_then(|driver| attribute(driver, "type")) {
        None => None,
        Some("raw") => Some(DiskFormat::Raw),
        Some("qcow2") => Some(DiskFormat::Qcow2),
        Some("vmdk") => Some(DiskFormat::Vmdk),
        Some("vdi") => Some(DiskFormat::Vdi),
        Some("vpc") => Some(DiskFormat::Vhd),
        Some("vhdx") => Some(DiskFormat::Vhdx),
        Some(other) => return refused(format!("has the format {:?}", shown(other)), copy),
    };
    let below = disk
        .descendants()
        .filter(|node| node.tag_name().name() == "backingStore")
        .filter_map(|node| attribute(child(node, "source")?, "file"))
        .filter(|path| !path.is_empty() && !path.contains('\0'))
        .map(PathBuf::from)
        .take(DISKS_MAX)
        .collect();
    Ok(Drive { path: PathBuf::from(path), format, below })
}

fn leave_devices(devices: Node<'_, '_>, machine: &mut Machine) {
    let mut cards = Vec::new();
    for node in devices.children().filter(Node::is_element) {
        let kind = attribute(node, "type").unwrap_or("?");
        let model =
            || child(node, "model").and_then(|model| attribute(model, "type")).or(attribute(node, "model"));
        match node.tag_name().name() {
            "interface" => {
                let source = child(node, "source");
                let on = source.and_then(|source| {
                    ["network", "bridge", "dev"].into_iter().find_map(|name| attribute(source, name))
                });
                let on = on.map_or_else(String::new, |name| format!(" {name:?}"));
                cards.push(format!("{} on {kind}{on}", model().unwrap_or("of the usual model")));
            }
            "sound" => machine.leave(format!("sound card: {}", model().unwrap_or("?"))),
            "hostdev" => machine.leave(format!("device of the host: {kind}")),
            "redirdev" => machine.leave(format!("USB: a redirected device ({kind})")),
            "controller" if kind == "usb" => machine.leave("USB: its controllers"),
            "input" if attribute(node, "bus") == Some("usb") => machine.leave(format!("USB: {kind}")),
            "graphics" => machine.leave(format!("display: {kind}; the console is serial")),
            "video" => {
                let accelerated =
                    node.descendants().any(|node| attribute(node, "accel3d").is_some_and(|on| on == "yes"));
                if accelerated {
                    machine.leave("3D graphics");
                }
            }
            "tpm" => machine.leave("TPM"),
            "filesystem" => {
                let source = child(node, "source").and_then(|source| attribute(source, "dir")).unwrap_or("?");
                machine.leave(format!("shared directory: {source}; name it when it is run: -v"));
            }
            "watchdog" => machine.leave(format!("watchdog: {}", model().unwrap_or("?"))),
            "smartcard" => machine.leave("smart card reader"),
            "parallel" => machine.leave("parallel port"),
            _ => {}
        }
    }
    machine.leave_cards(&cards);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(disk: &str) -> String {
        format!(
            "<domain type='kvm'><name>db</name><memory unit='KiB'>2097152</memory><vcpu placement='static'>4</vcpu>\
             <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type></os><devices>{disk}\
             <disk type='file' device='cdrom'><source file='/x.iso'/><target dev='sda'/></disk>\
             <interface type='network'><source network='default'/><model type='e1000e'/></interface>\
             <interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>\
             <sound model='ich9'/><video><model type='virtio'><acceleration accel3d='yes'/></model></video></devices></domain>"
        )
    }

    #[test]
    fn a_domain_is_read() {
        let disk = "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='db.qcow2'/>\
                    <backingStore type='file'><source file='/srv/base.raw'/><backingStore/></backingStore><target dev='vda'/></disk>";
        let (machine, drives) = parse(&domain(disk), "x").unwrap();
        assert_eq!(
            (machine.name.as_deref(), machine.memory_mib, machine.cpus),
            (Some("db"), Some(2048), Some(4))
        );
        let below = vec![PathBuf::from("/srv/base.raw")];
        assert_eq!(drives, [Drive { path: "db.qcow2".into(), format: Some(DiskFormat::Qcow2), below }]);
        for part in
            ["UEFI", "sda: cdrom", "card 1: e1000e on network \"default\"", "card 2: virtio", "ich9", "3D"]
        {
            assert!(machine.left.iter().any(|item| item.contains(part)), "{part}: {:?}", machine.left);
        }
    }

    #[test]
    fn disks_that_are_no_files_are_refused_with_the_reason() {
        for (disk, reason) in [
            ("<disk type='network'><source protocol='rbd' name='p/v'/><target dev='vda'/></disk>", "by rbd"),
            ("<disk type='block'><source dev='/dev/sdb'/><target dev='vda'/></disk>", "block device"),
            ("<disk type='file'><target dev='vda'/></disk>", "names no file"),
            ("<disk type='file'><source file='x'><encryption format='luks'/></source></disk>", "encrypted"),
            ("<disk type='file'><driver type='qed'/><source file='x'/></disk>", "format \"qed\""),
            ("", "no disks"),
        ] {
            let fault = parse(&domain(disk), "x").unwrap_err();
            assert!(fault.message.contains(reason), "{fault:?}");
        }
        let arm = domain("").replace("x86_64", "aarch64");
        assert!(parse(&arm, "x").unwrap_err().message.contains("aarch64"));
    }
}
