//! How much of a host VMs may have.
use crate::{Fault, Kind};
use serde::{Deserialize, Serialize};

/// vCPUs for each processor of the host, unless its operator says otherwise.
pub const CPU_RATIO_USUAL: f64 = 64.0;
/// MiB of VMs for each MiB of the host: a VM has of its memory only what its guest has touched.
pub const MEMORY_RATIO_USUAL: f64 = 4.0;
/// The largest ratio that makes sense.
const RATIO_MAX: f64 = 10_000.0;

/// What a VM needs of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct Need {
    /// VMs: one, for a VM.
    pub vms: u64,
    /// vCPUs.
    pub cpus: u64,
    /// Memory that it may come to have, MiB.
    pub memory_mib: u64,
}

impl Need {
    /// Both together.
    pub fn and(self, other: Need) -> Need {
        Need {
            vms: self.vms.saturating_add(other.vms),
            cpus: self.cpus.saturating_add(other.cpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
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
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            cpu_ratio: CPU_RATIO_USUAL,
            memory_ratio: MEMORY_RATIO_USUAL,
            vms: None,
            cpus: None,
            memory_mib: None,
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
        for (what, ratio) in [("cpu_ratio", self.cpu_ratio), ("memory_ratio", self.memory_ratio)] {
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
            vms: u64::MAX,
            cpus: times(cpus, self.cpu_ratio).max(1),
            memory_mib: times(memory_mib, self.memory_ratio),
        }
    }

    /// What VMs that are described may have.
    pub fn quota(&self) -> Need {
        let most = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        Need { vms: most(self.vms), cpus: most(self.cpus), memory_mib: most(self.memory_mib) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_host_and_quotas_are_absolute() {
        let limits = Limits { cpu_ratio: 2.0, memory_ratio: 1.5, vms: Some(3), ..Limits::default() };
        assert_eq!(limits.capacity(4, 1000), Need { vms: u64::MAX, cpus: 8, memory_mib: 1500 });
        assert_eq!(limits.quota(), Need { vms: 3, cpus: u64::MAX, memory_mib: u64::MAX });
        assert_eq!(Limits { cpu_ratio: 0.1, ..limits }.capacity(2, 10).cpus, 1, "one VM always runs");
        for ratio in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e9] {
            assert!(Limits { memory_ratio: ratio, ..Limits::default() }.check().is_err(), "{ratio}");
        }
        assert!(Limits::default().check().is_ok());
    }

    #[test]
    fn needs_add_up_without_overflow() {
        let all = Need { vms: u64::MAX, cpus: 1, memory_mib: u64::MAX };
        assert_eq!(all.and(all), Need { cpus: 2, ..all });
    }
}
