//! What the host service says of itself and its host.
use crate::limits::HostLimits;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// The service and its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Info {
    /// The version of the service.
    pub version: String,
    /// The service's process.
    pub service: Service,
    /// The machine that it runs on.
    pub host: Host,
    /// What KVM was found to be worth.
    pub kvm: Kvm,
    /// Which processor `--accel auto` takes here: `kvm` or `soft`.
    pub accel: String,
    /// Where state lives.
    pub places: Places,
    /// How many VMs there are.
    pub vms: VmCount,
    /// How much of the host VMs may have, and have.
    pub limits: HostLimits,
}

/// The service's process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Service {
    /// Its number.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// Its socket.
    pub socket: PathBuf,
}

/// The machine that the service runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Host {
    /// Logical processors that we may use.
    pub cpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Memory that is free or can be freed at once, MiB.
    pub memory_available_mib: u64,
    /// The version of the control groups by which VMs have weights (`cpu_weight`); none: here they cannot have any.
    #[serde(default)]
    pub control_groups: Option<u32>,
    /// The kernel's release.
    pub kernel: String,
}

/// What KVM is worth on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum KvmState {
    /// There is no `/dev/kvm`.
    Missing,
    /// There is one that we may not open.
    Denied,
    /// It works, far too slowly or wrongly.
    Unusable,
    /// It is what a VM should run on.
    Good,
}

/// What KVM was found to be worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Kvm {
    /// In a word.
    pub state: KvmState,
    /// In a sentence, with the number that was measured.
    pub detail: String,
    /// What to do about it; empty if nothing needs to be done.
    pub fix: String,
}

/// Where state lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Places {
    /// Records, logs and disks of VMs.
    pub state: PathBuf,
    /// Images.
    pub data: PathBuf,
    /// Sockets and locks.
    pub runtime: PathBuf,
}

/// How many VMs there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct VmCount {
    /// With a process.
    pub live: usize,
    /// In all.
    pub all: usize,
}
