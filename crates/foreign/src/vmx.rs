//! `.vmx`, VMware's configuration of a machine: `KEY = "VALUE"` lines; its disks are files beside it. There is no specification: this is what
//! Workstation, Fusion and ESXi write.
use crate::fault::{damaged, unsupported};
use crate::libvirt::Drive;
use crate::machine::{Machine, MachineDisk, Origin, shown};
use crate::ovf::DISKS_MAX;
use std::collections::BTreeMap;
use std::path::PathBuf;
use viv_model::{DiskFormat, Fault};

/// Buses of drives, in the order in which their disks are listed.
const BUSES: [&str; 4] = ["scsi", "nvme", "sata", "ide"];
/// What only a machine of VMware has, by the key that says so, if its value is TRUE.
const DEVICES: [(&str, &str); 9] = [
    ("usb.present", "USB controller"),
    ("ehci.present", "USB controller"),
    ("usb_xhci.present", "USB controller"),
    ("sound.present", "sound card"),
    ("floppy0.present", "floppy drive"),
    ("serial0.present", "serial port: the console is one"),
    ("parallel0.present", "parallel port"),
    ("vtpm.present", "TPM"),
    ("uefi.secureboot.enabled", "secure boot; its kernel is booted directly"),
];

/// Whether a file that begins so is one.
pub(crate) fn is_one(head: &[u8]) -> bool {
    let head = head.get(..512.min(head.len())).unwrap_or_default();
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let begins =
        |key: &str| text.lines().any(|line| line.split_once('=').is_some_and(|(name, _)| name.trim() == key));
    begins(".encoding") || begins("config.version")
}

/// Reads one; `what` is its name for a person.
pub(crate) fn parse(text: &str, what: &str) -> Result<(Machine, Vec<Drive>), Fault> {
    let all = values(text);
    let value = |key: &str| all.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let is_set = |key: &str| value(key).is_some_and(|value| value.eq_ignore_ascii_case("true"));
    if all.keys().any(|key| key.starts_with("encryption.")) || value("encryptedvm.guid").is_some() {
        return Err(unsupported(
            what,
            "the machine is encrypted",
            "decrypt it first, in VMware's settings of the machine",
        ));
    }
    let guest = value("guestos").unwrap_or_default();
    if guest.to_ascii_lowercase().starts_with("arm") {
        return Err(unsupported(
            what,
            format!("its guest is {:?}", shown(guest)),
            "import a machine of x86-64",
        ));
    }
    let mut machine = Machine::new(Origin::Vmx);
    machine.name = value("displayname").map(shown);
    machine.memory_mib = value("memsize").and_then(|size| size.parse().ok());
    // One is usual, and not written down.
    machine.cpus = value("numvcpus").unwrap_or("1").parse().ok().filter(|count| *count > 0);
    if value("firmware") == Some("efi") {
        machine.leave("firmware: UEFI; its kernel is booted directly");
    }
    if value("checkpoint.vmstate").is_some() {
        machine.leave("the state of the suspended machine: it boots anew");
    }
    for (key, name) in DEVICES {
        if is_set(key) {
            machine.leave(name);
        }
    }
    let folders = all
        .iter()
        .filter_map(|(key, path)| key.strip_prefix("sharedfolder")?.strip_suffix(".hostpath").map(|_| path));
    folders.for_each(|path| machine.leave(format!("shared directory: {path}; name it when it is run: -v")));
    machine.leave_cards(&cards(&all));
    let mut drives = Vec::new();
    for (slot, file) in disks(&all, &mut machine) {
        machine.disks.push(MachineDisk { name: shown(&slot), size: None });
        drives.push(Drive { path: PathBuf::from(file), format: Some(DiskFormat::Vmdk), below: Vec::new() });
    }
    match drives.len() {
        0 => Err(unsupported(what, "the machine has no disks", "import a machine that has one")),
        1..=DISKS_MAX => Ok((machine, drives)),
        many => Err(damaged(what, format!("it has {many} disks"))),
    }
}

/// All that is said, by keys in small letters: their case means nothing.
fn values(text: &str) -> BTreeMap<String, String> {
    let pair = |line: &str| {
        let (key, value) = line.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        Some((key.trim().to_ascii_lowercase(), plain(value)))
    };
    text.trim_start_matches('\u{feff}')
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(pair)
        .collect()
}

/// A value without its escapes: `|22` is a quotation mark.
fn plain(value: &str) -> String {
    let mut parts = value.split('|');
    let mut plain = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let code = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (code, part.get(2..)) {
            (Some(code), Some(rest)) if code.is_ascii() => {
                plain.push(char::from(code));
                plain.push_str(rest);
            }
            _ => {
                plain.push('|');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// The network cards: of each what it is there.
fn cards(all: &BTreeMap<String, String>) -> Vec<String> {
    let is_there = |number: &usize| {
        all.get(&format!("ethernet{number}.present")).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    };
    let card = |number: usize| {
        let of = |key: &str| all.get(&format!("ethernet{number}.{key}"));
        let model = of("virtualdev").map_or("e1000", String::as_str);
        let network = of("networkname").or_else(|| of("connectiontype")).or_else(|| of("vnet"));
        format!("{model}{}", network.map_or_else(String::new, |name| format!(" on {name:?}")))
    };
    (0..10).filter(is_there).map(card).collect()
}

/// The disks, what is booted from first: their slots, as `scsi0:1`, and their files. Other drives are left.
fn disks(all: &BTreeMap<String, String>, machine: &mut Machine) -> Vec<(String, String)> {
    let slot = |key: &str| -> Option<(usize, u32, u32)> {
        let slot = key.strip_suffix(".filename")?;
        let bus = BUSES.iter().position(|bus| slot.starts_with(bus))?;
        let (controller, unit) =
            slot.trim_start_matches(|c: char| c.is_ascii_alphabetic()).split_once(':')?;
        Some((bus, controller.parse().ok()?, unit.parse().ok()?))
    };
    let mut found = Vec::new();
    for (key, file) in all {
        let Some(place) = slot(key) else { continue };
        let slot = key.trim_end_matches(".filename");
        let of = |name: &str| all.get(&format!("{slot}.{name}")).map(|value| value.to_ascii_lowercase());
        let kind = of("devicetype").unwrap_or_default();
        if of("present").is_some_and(|value| value == "false") {
            continue;
        }
        if kind.contains("cdrom") || file.to_ascii_lowercase().ends_with(".iso") {
            machine.leave(format!("CD drive {slot}: {file}"));
        } else if kind.contains("rawdisk") {
            machine.leave(format!("disk {slot}: it is one of the host: {file}"));
        } else {
            if of("mode").is_some_and(|mode| mode.ends_with("nonpersistent")) {
                machine.leave(format!("disk {slot} forgot what was written to it: here it remembers"));
            }
            found.push((place, slot.to_string(), file.clone()));
        }
    }
    let first = all.get("bios.hddorder").map(|order| order.to_ascii_lowercase()).unwrap_or_default();
    let rank = |slot: &str| first.split(',').position(|one| one.trim() == slot).unwrap_or(usize::MAX);
    found.sort_by_key(|(place, slot, _)| (rank(slot), *place));
    found.into_iter().map(|(_, slot, file)| (slot, file)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "#!/usr/bin/vmware\n.encoding = \"UTF-8\"\nconfig.version = \"8\"\ndisplayName = \"a |22web|22 | 1\"\nguestOS = \"debian12-64\"\n\
        memsize = \"2048\"\nnumvcpus = \"2\"\nfirmware = \"efi\"\nuefi.secureBoot.enabled = \"TRUE\"\nSound.present=\"FALSE\"\nvtpm.present = \"TRUE\"\n\
        scsi0.present = \"TRUE\"\nscsi0.virtualDev = \"lsilogic\"\nscsi0:1.fileName = \"data.vmdk\"\nscsi0:1.mode = \"independent-nonpersistent\"\nscsi0:0.present = \"TRUE\"\nSCSI0:0.fileName = \"root.vmdk\"\n\
        sata0:1.present = \"TRUE\"\nsata0:1.deviceType = \"cdrom-image\"\nsata0:1.fileName = \"C:\\debian.iso\"\nide1:0.present = \"FALSE\"\nide1:0.fileName = \"gone.vmdk\"\n\
        nvme0:0.fileName = \"fast.vmdk\"\nethernet0.present = \"TRUE\"\nethernet0.virtualDev = \"vmxnet3\"\nethernet0.connectionType = \"nat\"\nethernet1.present = \"FALSE\"\n\
        sharedFolder0.hostPath = \"/home/me\"\n";

    #[test]
    fn a_configuration_is_read() {
        assert!(is_one(TEXT.as_bytes()) && !is_one(b"a = \"b\"\n") && !is_one(b""));
        let (machine, drives) = parse(TEXT, "x").unwrap();
        assert_eq!(machine.name.as_deref(), Some("a \"web\" | 1"));
        assert_eq!((machine.memory_mib, machine.cpus), (Some(2048), Some(2)));
        let paths: Vec<_> = drives.iter().map(|drive| drive.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["root.vmdk", "data.vmdk", "fast.vmdk"]);
        let names: Vec<_> = machine.disks.iter().map(|disk| disk.name.as_str()).collect();
        assert_eq!(names, ["scsi0:0", "scsi0:1", "nvme0:0"]);
        let left = [
            "UEFI",
            "secure boot",
            "TPM",
            "CD drive sata0:1",
            "vmxnet3 on \"nat\"",
            "scsi0:1 forgot",
            "/home/me",
        ];
        for part in left {
            assert!(machine.left.iter().any(|item| item.contains(part)), "{part}: {:?}", machine.left);
        }
        assert!(!machine.left.iter().any(|item| item.contains("sound")));
        let (_, drives) = parse(&format!("{TEXT}bios.hddOrder = \"nvme0:0\"\n"), "x").unwrap();
        assert_eq!(drives[0].path.to_str(), Some("fast.vmdk"));
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        for (text, says) in [
            ("config.version = \"8\"\n".to_string(), "no disks"),
            (format!("{TEXT}guestOS = \"arm-ubuntu-64\"\n"), "arm-ubuntu"),
            (format!("{TEXT}encryption.keySafe = \"vmware:key/x\"\n"), "encrypted"),
            ((0..70).map(|unit| format!("scsi0:{unit}.fileName = \"{unit}\"\n")).collect(), "70 disks"),
        ] {
            let fault = parse(&text, "x").unwrap_err();
            assert!(fault.message.contains(says), "{fault:?}");
        }
        let (machine, _) =
            parse("memsize = \"x\"\nscsi0:0.fileName = \"a|\"\nscsi:.fileName=b\nide0:0.filename\n", "x")
                .unwrap();
        assert_eq!((machine.memory_mib, machine.cpus, machine.disks.len()), (None, Some(1), 1));
    }
}
