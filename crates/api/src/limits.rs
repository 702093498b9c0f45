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
    /// By VMs.
    pub taken: Need,
    /// All that there is; what is not named has no limit.
    pub most: Most,
}

/// An upper limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Most {
    /// VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vms: Option<u64>,
    /// vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u64>,
    /// Memory, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
}

impl From<Need> for Most {
    fn from(most: Need) -> Most {
        let limit = |most: u64| (most != u64::MAX).then_some(most);
        Most { vms: limit(most.vms), cpus: limit(most.cpus), memory_mib: limit(most.memory_mib) }
    }
}
