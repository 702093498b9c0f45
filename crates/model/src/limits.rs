//! How much of a host VMs may have.
use crate::{Fault, Kind, MachineSpec, NetKind};
use serde::{Deserialize, Serialize};

/// vCPUs for each processor of the host, unless its operator says otherwise.
pub const CPU_RATIO_USUAL: f64 = 64.0;
/// MiB of VMs for each MiB of the host: a VM has of its memory only what its guest has touched.
pub const MEMORY_RATIO_USUAL: f64 = 4.0;
/// MiB of disks for each MiB of the file system that VMs are on: a disk has on it only what its guest has written.
pub const DISK_RATIO_USUAL: f64 = 64.0;
/// The largest ratio that makes sense.
const RATIO_MAX: f64 = 10_000.0;

/// What a VM needs of its host, or several together. [`u64::MAX`] is: without a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// VMs: one, for a VM.
    pub vms: u64,
    /// vCPUs.
    pub cpus: u64,
    /// Memory that it may come to have, MiB.
    pub memory_mib: u64,
    /// Disks that it may fill, MiB.
    pub disk_mib: u64,
    /// Requests that its disks may take, a second.
    pub disk_iops: u64,
    /// Bytes that its disks may take, a second.
    pub disk_bps: u64,
    /// Bytes that its network cards may send, and as many that they may get, a second.
    pub net_bps: u64,
    /// Ports of the host.
    pub ports: u64,
}

impl Need {
    /// More than there can be of anything.
    pub const WITHOUT_LIMIT: Need = Need {
        vms: u64::MAX,
        cpus: u64::MAX,
        memory_mib: u64::MAX,
        disk_mib: u64::MAX,
        disk_iops: u64::MAX,
        disk_bps: u64::MAX,
        net_bps: u64::MAX,
        ports: u64::MAX,
    };

    /// Both together.
    pub fn and(self, other: Need) -> Need {
        Need {
            vms: self.vms.saturating_add(other.vms),
            cpus: self.cpus.saturating_add(other.cpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_mib: self.disk_mib.saturating_add(other.disk_mib),
            disk_iops: self.disk_iops.saturating_add(other.disk_iops),
            disk_bps: self.disk_bps.saturating_add(other.disk_bps),
            net_bps: self.net_bps.saturating_add(other.net_bps),
            ports: self.ports.saturating_add(other.ports),
        }
    }

    /// What a machine needs whose disks may be filled with so much.
    pub fn of(machine: &MachineSpec, disk_mib: u64) -> Need {
        let memory_mib = machine.memory_max_mib.unwrap_or(machine.memory_mib).max(machine.memory_mib);
        let sum = |of: &mut dyn Iterator<Item = Option<u64>>| {
            of.fold(0u64, |sum, limit| sum.saturating_add(limit.unwrap_or(u64::MAX)))
        };
        let plugged = || machine.nics.iter().filter(|nic| nic.net != NetKind::None);
        Need {
            vms: 1,
            cpus: u64::from(machine.cpus),
            memory_mib,
            disk_mib,
            disk_iops: sum(&mut machine.disks.iter().map(|disk| disk.limits.iops)),
            disk_bps: sum(&mut machine.disks.iter().map(|disk| disk.limits.bps)),
            net_bps: sum(&mut plugged().map(|nic| nic.limits.bps)),
            ports: machine.published().count() as u64,
        }
    }
}

/// What the operator of a host allows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// vCPUs of VMs that run, for each processor of the host.
    pub cpu_ratio: f64,
    /// MiB of VMs that run, for each MiB of the host.
    pub memory_ratio: f64,
    /// Most VMs that are described; without it, as many as fit on the disk.
    pub vms: Option<u64>,
    /// Most vCPUs of all VMs that are described.
    pub cpus: Option<u64>,
    /// Most memory of all VMs that are described, MiB.
    pub memory_mib: Option<u64>,
    /// MiB of the disks of VMs that are described, for each MiB of the file system that VMs are on.
    pub disk_ratio: f64,
    /// Most that the disks of all VMs that are described may be filled with, MiB.
    pub disk_mib: Option<u64>,
    /// Most requests a second of all their disks; one without a limit has no room then.
    pub disk_iops: Option<u64>,
    /// Most bytes a second of all their disks; so, too.
    pub disk_bps: Option<u64>,
    /// Most bytes a second of all their network cards, each way; so, too.
    pub net_bps: Option<u64>,
    /// Most ports of the host that lead to them.
    pub ports: Option<u64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            cpu_ratio: CPU_RATIO_USUAL,
            memory_ratio: MEMORY_RATIO_USUAL,
            vms: None,
            cpus: None,
            memory_mib: None,
            disk_ratio: DISK_RATIO_USUAL,
            disk_mib: None,
            disk_iops: None,
            disk_bps: None,
            net_bps: None,
            ports: None,
        }
    }
}

/// The smaller part of a product that is surely there.
fn times(number: u64, ratio: f64) -> u64 {
    (number as f64 * ratio) as u64
}

impl Limits {
    /// Whether they make sense.
    pub fn check(&self) -> Result<(), Fault> {
        let ratios = [
            ("cpu_ratio", self.cpu_ratio),
            ("memory_ratio", self.memory_ratio),
            ("disk_ratio", self.disk_ratio),
        ];
        for (what, ratio) in ratios {
            if !(ratio > 0.0 && ratio <= RATIO_MAX) {
                return Err(Fault::new(
                    Kind::Usage,
                    format!("{what} cannot be {ratio}"),
                    format!("use more than 0, up to {RATIO_MAX}; 1 lets VMs have what the host has"),
                ));
            }
        }
        Ok(())
    }

    /// What VMs that run may have of a host with so much.
    pub fn capacity(&self, cpus: u64, memory_mib: u64) -> Need {
        Need {
            cpus: times(cpus, self.cpu_ratio).max(1),
            memory_mib: times(memory_mib, self.memory_ratio),
            ..Need::WITHOUT_LIMIT
        }
    }

    /// What VMs that are described may have of a host on whose file system for them there is so much.
    pub fn quota(&self, disk_mib: u64) -> Need {
        let most = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        Need {
            vms: most(self.vms),
            cpus: most(self.cpus),
            memory_mib: most(self.memory_mib),
            disk_mib: most(self.disk_mib).min(times(disk_mib, self.disk_ratio)),
            disk_iops: most(self.disk_iops),
            disk_bps: most(self.disk_bps),
            net_bps: most(self.net_bps),
            ports: most(self.ports),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DiskLimits, DiskSpec, NicSpec};

    #[test]
    fn ratios_are_of_the_host_and_quotas_are_absolute() {
        let limits = Limits { cpu_ratio: 2.0, memory_ratio: 1.5, vms: Some(3), ..Limits::default() };
        assert_eq!(limits.capacity(4, 1000), Need { cpus: 8, memory_mib: 1500, ..Need::WITHOUT_LIMIT });
        assert_eq!(limits.quota(u64::MAX), Need { vms: 3, ..Need::WITHOUT_LIMIT });
        assert_eq!(limits.quota(100).disk_mib, 6400, "a disk is thin");
        assert_eq!(Limits { disk_mib: Some(5), ..limits }.quota(100).disk_mib, 5);
        assert_eq!(Limits { cpu_ratio: 0.1, ..limits }.capacity(2, 10).cpus, 1, "one VM always runs");
        for ratio in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(Limits { memory_ratio: ratio, ..Limits::default() }.check().is_err(), "{ratio}");
        }
        assert!(Limits::default().check().is_ok());
    }

    #[test]
    fn needs_add_up_without_overflow() {
        let all = Need { cpus: 1, ..Need::WITHOUT_LIMIT };
        assert_eq!(all.and(all), Need { cpus: 2, ..all });
    }

    #[test]
    fn what_has_no_limit_needs_more_than_there_is() {
        let disk = |iops| DiskSpec {
            limits: DiskLimits { iops, bps: Some(7), ..DiskLimits::default() },
            ..DiskSpec::default()
        };
        let text = r#"{"cpus": 2, "memory_mib": 64, "kernel": "/k"}"#;
        let mut machine: MachineSpec = serde_json::from_str(text).unwrap();
        machine.disks = vec![disk(Some(10)), disk(Some(20))];
        let need = Need::of(&machine, 30);
        let all = Need {
            vms: 1,
            cpus: 2,
            memory_mib: 64,
            disk_mib: 30,
            disk_iops: 30,
            disk_bps: 14,
            ..Need::default()
        };
        assert_eq!(need, all);
        machine.disks.push(disk(None));
        machine.nics =
            vec![NicSpec::default(), NicSpec { net: NetKind::User { host: false }, ..NicSpec::default() }];
        let need = Need::of(&machine, 0);
        assert_eq!((need.disk_iops, need.disk_bps, need.net_bps), (u64::MAX, 21, u64::MAX));
        machine.nics.pop();
        assert_eq!(Need::of(&machine, 0).net_bps, 0, "a card that is plugged into nothing");
    }
}
