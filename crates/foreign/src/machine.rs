//! A machine as its description has it, whatever program wrote that.
use std::fmt;
use viv_model::DiskFormat;

/// What kind of file a machine comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// An OVF package in one file.
    Ova,
    /// An OVF description with its disks beside it.
    Ovf,
    /// libvirt's XML of a domain.
    Libvirt,
    /// VMware's configuration with its disks beside it.
    Vmx,
    /// A backup of Proxmox VE.
    Vzdump,
    /// A box of Vagrant.
    Vagrant,
    /// A disk alone.
    Disk(DiskFormat),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Ova => f.write_str("OVA"),
            Origin::Ovf => f.write_str("OVF"),
            Origin::Libvirt => f.write_str("libvirt domain"),
            Origin::Vmx => f.write_str("VMware machine"),
            Origin::Vzdump => f.write_str("Proxmox backup"),
            Origin::Vagrant => f.write_str("Vagrant box"),
            Origin::Disk(format) => write!(f, "{format} disk"),
        }
    }
}

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineDisk {
    /// What its description calls it.
    pub name: String,
    /// Its size in bytes, if that is said anywhere but in the disk's own file.
    pub size: Option<u64>,
}

/// A machine of another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Where it comes from.
    pub origin: Origin,
    /// Its name there.
    pub name: Option<String>,
    /// Its memory, MiB.
    pub memory_mib: Option<u64>,
    /// Its virtual processors.
    pub cpus: Option<u32>,
    /// Its disks, in the order of their controllers.
    pub disks: Vec<MachineDisk>,
    /// What is not carried over, an item each.
    pub left: Vec<String>,
}

impl Machine {
    pub(crate) fn new(origin: Origin) -> Machine {
        Machine { origin, name: None, memory_mib: None, cpus: None, disks: Vec::new(), left: Vec::new() }
    }

    /// Notes what is not carried over, once, as something that a terminal may be shown.
    pub(crate) fn leave(&mut self, item: impl Into<String>) {
        let item = shown(&item.into());
        if !self.left.contains(&item) && self.left.len() < LEFT_MAX {
            self.left.push(item);
        }
    }

    /// The network cards: of each what it is there. The first is an ordinary choice of `viv run`.
    pub(crate) fn leave_cards(&mut self, cards: &[String]) {
        for (number, card) in cards.iter().enumerate() {
            let instead = match number {
                0 => "choose the network when it is run: --net user or --net NETWORK; the card is virtio-net",
                _ => "plug it in when it is run: one more --net; the card is virtio-net",
            };
            self.leave(format!("network card {}: {card}; {instead}", number + 1));
        }
    }
}

/// Most items that are listed.
const LEFT_MAX: usize = 200;
/// Most characters of an item.
const ITEM_MAX: usize = 300;

/// What a stranger wrote, without what a terminal obeys, and no longer than one reads.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(ITEM_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
