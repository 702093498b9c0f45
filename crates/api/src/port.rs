//! Ports of VMs as the host service shows them.
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use viv_model::{NetKind, NicLimits, PortSpec, ProjectName, Traffic};

/// Where a VM's card is plugged in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Port {
    /// The VM's identity.
    pub vm: String,
    /// The VM's name.
    pub name: String,
    /// The VM's project.
    #[serde(default)]
    pub project: ProjectName,
    /// What it is plugged into.
    pub network: NetKind,
    /// It is plugged in now.
    pub connected: bool,
    /// Its card's address.
    pub mac: String,
    /// Its guest's IPv4 address.
    pub address: Option<Ipv4Addr>,
    /// The IPv6 addresses that its guest has been seen to have.
    pub addresses6: Vec<Ipv6Addr>,
    /// How much may pass.
    pub limits: NicLimits,
    /// The security groups that it is in: its VM's, and its own.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Its published ports.
    pub ports: Vec<PortSpec>,
    /// What has passed since it was plugged in; nothing while it is not.
    pub counters: PortTraffic,
}

/// What has passed a port, and what has not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct PortTraffic {
    /// What the VM has sent.
    pub sent: Traffic,
    /// What it has got.
    pub received: Traffic,
    /// Packets of it that were nothing that a VM may send.
    pub refused: u64,
    /// Packets and flows of it that security groups denied.
    pub denied: u64,
    /// Packets for it that were lost, because it did not take them fast enough.
    pub lost: u64,
    /// Connections by TCP that it has now with the outside, and by its published ports.
    #[serde(default)]
    pub connections: u64,
}
