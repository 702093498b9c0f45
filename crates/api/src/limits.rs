//! How much of a host VMs have, and may have.
use serde::{Deserialize, Serialize};
use viv_model::{Limits, Need};

/// What an operator allows, and what is taken of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostLimits {
    /// What the operator allows.
    pub limits: Limits,
    /// Of all VMs that are described, against the quota.
    pub described: Taken,
    /// Of those that run, against the host.
    pub running: Taken,
}

/// What is taken, and how much there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Taken {
    /// By VMs; what is not named is without a limit, as of disks that may be as fast as they can.
    pub taken: Amounts,
    /// All that there is; what is not named has no limit.
    pub most: Amounts,
}

/// How much of each thing that a host has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Amounts {
    /// VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<u64>,
    /// vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u64>,
    /// Memory, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// What disks may be filled with, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    /// Requests of disks, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_iops: Option<u64>,
    /// Bytes of disks, a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bps: Option<u64>,
    /// Bytes of network cards, a second, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_bps: Option<u64>,
    /// Ports of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<u64>,
}

impl From<Need> for Amounts {
    fn from(need: Need) -> Amounts {
        let limit = |amount: u64| (amount != u64::MAX).then_some(amount);
        Amounts {
            vms: limit(need.vms),
            cpus: limit(need.cpus),
            memory_mib: limit(need.memory_mib),
            disk_mib: limit(need.disk_mib),
            disk_iops: limit(need.disk_iops),
            disk_bps: limit(need.disk_bps),
            net_bps: limit(need.net_bps),
            ports: limit(need.ports),
        }
    }
}
