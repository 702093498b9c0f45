//! Boxes of Vagrant: an archive with `metadata.json`, which names the program that the machine is for (Vagrant, "Box File Format").
use crate::fault::{damaged, unsupported};
use crate::machine::{Machine, MachineDisk, Origin, shown};
use crate::ovf::DISKS_MAX;
use serde_json::Value;
use viv_model::Fault;

/// The file that every box has.
pub(crate) const METADATA: &str = "metadata.json";
/// The settings that come with a box.
pub(crate) const VAGRANTFILE: &str = "Vagrantfile";

/// What a box holds.
pub(crate) enum Contents {
    /// An OVF, for VirtualBox.
    Ovf,
    /// Disks by their names in the box, for libvirt.
    Disks(Vec<String>),
    /// A `.vmx` with its disks, for VMware.
    Vmx,
}

/// Reads a box's metadata and settings.
pub(crate) fn parse(metadata: &str, vagrantfile: &str) -> Result<(Machine, Contents), Fault> {
    let said: Value = serde_json::from_str(metadata).map_err(|error| damaged(METADATA, error))?;
    let mut machine = Machine::new(Origin::Vagrant);
    machine.memory_mib = setting(vagrantfile, ".memory");
    machine.cpus = setting(vagrantfile, ".cpus").and_then(|count| count.try_into().ok());
    if !vagrantfile.trim().is_empty() {
        machine.leave(
            "the box's Vagrantfile, but for memory and processors: provisioning, folders, forwarded ports",
        );
    }
    let provider = said.get("provider").and_then(Value::as_str).unwrap_or_default();
    match provider {
        "virtualbox" => Ok((machine, Contents::Ovf)),
        // The second and third are of before there was one for all.
        "vmware_desktop" | "vmware_fusion" | "vmware_workstation" | "vmware" => Ok((machine, Contents::Vmx)),
        "libvirt" => {
            let names: Vec<String> = match said.get("disks").and_then(Value::as_array) {
                None => vec!["box.img".to_string()],
                Some(disks) => {
                    let paths = disks.iter().filter_map(|disk| disk.get("path").and_then(Value::as_str));
                    paths
                        .map(|path| path.strip_prefix("./").unwrap_or(path).to_string())
                        .take(DISKS_MAX + 1)
                        .collect()
                }
            };
            if names.is_empty() || names.len() > DISKS_MAX {
                return Err(damaged(METADATA, "it names no disks, or too many"));
            }
            // In GiB, of the first disk; rounded up.
            let size = said.get("virtual_size").and_then(Value::as_u64).filter(|_| names.len() == 1);
            let size = size.and_then(|gib| gib.checked_mul(1 << 30));
            machine.disks = names.iter().map(|name| MachineDisk { name: shown(name), size }).collect();
            Ok((machine, Contents::Disks(names)))
        }
        other => Err(unsupported(
            "the Vagrant box",
            format!("it is for {:?}", shown(other)),
            "get the box of the provider libvirt, virtualbox or vmware_desktop; or unpack it (tar xf), and import the disk in it",
        )),
    }
}

/// A number that a settings file assigns: `libvirt.memory = 2048`, also in quotes. It is Ruby, which is not executed.
fn setting(text: &str, name: &str) -> Option<u64> {
    text.lines().map(str::trim).filter(|line| !line.starts_with('#')).find_map(|line| {
        let (key, value) = line.split_once('=')?;
        let value = value.split('#').next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        key.trim().ends_with(name).then(|| value.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_says_what_it_is_for() {
        let file = "Vagrant.configure('2') do |config|\n  config.vm.provider :libvirt do |v|\n    v.memory = '2048'\n    v.cpus = 2 # two\n    # v.cpus = 9\n";
        let text = r#"{"provider": "libvirt", "format": "qcow2", "virtual_size": 40}"#;
        let (machine, contents) = parse(text, file).unwrap();
        assert_eq!((machine.memory_mib, machine.cpus), (Some(2048), Some(2)));
        assert!(matches!(contents, Contents::Disks(names) if names == ["box.img"]));
        assert_eq!(machine.disks[0].size, Some(40 << 30));
        let text = r#"{"provider": "libvirt", "disks": [{"path": "./a.img"}, {"path": "b.img"}]}"#;
        assert!(matches!(parse(text, "").unwrap().1, Contents::Disks(names) if names == ["a.img", "b.img"]));
        assert!(matches!(parse(r#"{"provider": "virtualbox"}"#, "").unwrap().1, Contents::Ovf));
        assert!(matches!(parse(r#"{"provider": "vmware_desktop"}"#, "").unwrap().1, Contents::Vmx));
        for bad in ["{", "{}", r#"{"provider": "hyperv"}"#, r#"{"provider": "libvirt", "disks": []}"#] {
            assert!(parse(bad, "").is_err(), "{bad}");
        }
    }
}
