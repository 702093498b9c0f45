//! `qemu-server.conf`, Proxmox VE's configuration of a machine, as a backup holds it: `OPTION: value` lines (qm.conf(5)).
use crate::machine::{Machine, Origin, shown};

/// Buses whose drives are disks, or drives for discs.
const BUSES: [&str; 4] = ["ide", "sata", "scsi", "virtio"];

/// What a configuration says.
pub(crate) struct Configuration {
    /// The machine, without its disks.
    pub(crate) machine: Machine,
    /// Its drives that are disks: `scsi0`.
    pub(crate) drives: Vec<String>,
    /// What is booted from, the first first.
    pub(crate) boot: Vec<String>,
    /// Its processor's architecture, if that is said.
    pub(crate) arch: Option<String>,
}

/// Reads it; lines that are not understood are not meant for us.
pub(crate) fn parse(text: &str) -> Configuration {
    let mut machine = Machine::new(Origin::Vzdump);
    let (mut drives, mut boot, mut arch) = (Vec::new(), Vec::new(), None);
    let (mut cores, mut sockets, mut vcpus) = (None::<u32>, None::<u32>, None::<u32>);
    let mut cards = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            machine.leave("snapshots of the source: its present state is taken");
            break;
        }
        let Some((key, value)) = line
            .split_once(':')
            .filter(|_| !line.starts_with('#'))
            .map(|(key, value)| (key.trim(), value.trim()))
        else {
            continue;
        };
        match key {
            "name" => machine.name = Some(shown(value)),
            "memory" => {
                // Newer ones name the number: current=4096.
                let number = value.split(',').next().unwrap_or_default();
                machine.memory_mib = number.strip_prefix("current=").unwrap_or(number).parse().ok();
            }
            "cores" => cores = value.parse().ok(),
            "sockets" => sockets = value.parse().ok(),
            "vcpus" => vcpus = value.parse().ok(),
            "arch" => arch = Some(value.to_string()),
            "bios" if value == "ovmf" => machine.leave("firmware: UEFI; its kernel is booted directly"),
            "boot" => {
                let order = value.split(',').find_map(|part| part.trim().strip_prefix("order="));
                boot.extend(order.into_iter().flat_map(|order| order.split(';')).map(str::to_string));
            }
            "bootdisk" => boot.push(value.to_string()),
            "args" => machine.leave(format!("options for QEMU: {value}")),
            "vga" => machine.leave(format!("display: {value}; the console is serial")),
            _ => device(key, value, &mut machine, &mut drives, &mut cards),
        }
    }
    let all = cores.unwrap_or(1).saturating_mul(sockets.unwrap_or(1));
    machine.cpus = Some(vcpus.unwrap_or(all)).filter(|count| *count > 0);
    machine.leave_cards(&cards);
    Configuration { machine, drives, boot, arch }
}

/// A line about a device, which has a number.
fn device(key: &str, value: &str, machine: &mut Machine, drives: &mut Vec<String>, cards: &mut Vec<String>) {
    let bus = key.trim_end_matches(|c: char| c.is_ascii_digit());
    if bus.len() == key.len() {
        return;
    }
    match bus {
        "net" => {
            let model = value.split(['=', ',']).next().unwrap_or_default();
            let bridge = value.split(',').find_map(|part| part.strip_prefix("bridge="));
            cards.push(format!("{model}{}", bridge.map_or_else(String::new, |name| format!(" on {name:?}"))));
        }
        "efidisk" => machine.leave("firmware: the disk of UEFI's variables"),
        "tpmstate" => machine.leave("TPM"),
        "audio" => machine.leave(format!("sound card: {value}")),
        "usb" => machine.leave(format!("USB: {value}")),
        "hostpci" => machine.leave(format!("device of the host: {value}")),
        "parallel" => machine.leave("parallel port"),
        "virtiofs" => machine.leave(format!("shared directory: {value}; name it when it is run: -v")),
        _ if BUSES.contains(&bus) && value.split(',').any(|part| part == "media=cdrom") => {
            // cloud-init's drive is one, too.
            machine.leave(format!("CD drive {key}: {value}"));
        }
        _ if BUSES.contains(&bus) => drives.push(key.to_string()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_is_read() {
        let text = "#a note: x\nagent: 1\nbios: ovmf\nboot: order=scsi1;ide2;net0\ncores: 2\nsockets: 2\nmemory: 4096\nname: db\n\
                    efidisk0: l:x,size=4M\nide2: none,media=cdrom\nscsi0: l:100/a.raw,size=1G\nscsi1: l:100/b.raw\nscsihw: virtio-scsi-pci\n\
                    net0: virtio=AA:BB:CC:DD:EE:FF,bridge=vmbr0,firewall=1\nnet1: e1000=AA:BB:CC:DD:EE:FE,bridge=vmbr1\nusb0: host=1-2\n\
                    #qmdump#map:scsi0:drive-scsi0:l:raw:\n\n[before]\nmemory: 1\ncores: 64\n";
        let found = parse(text);
        let machine = &found.machine;
        assert_eq!(
            (machine.name.as_deref(), machine.memory_mib, machine.cpus),
            (Some("db"), Some(4096), Some(4))
        );
        assert_eq!(found.drives, ["scsi0", "scsi1"]);
        assert_eq!(found.boot, ["scsi1", "ide2", "net0"]);
        for part in ["UEFI", "snapshots", "CD drive ide2", "card 2: e1000 on \"vmbr1\"", "USB: host=1-2"] {
            assert!(machine.left.iter().any(|item| item.contains(part)), "{part}: {:?}", machine.left);
        }
        assert_eq!(parse("memory: current=512\n").machine.memory_mib, Some(512));
        assert_eq!(parse("cores: 4294967295\nsockets: 2\n").machine.cpus, Some(u32::MAX));
    }
}
