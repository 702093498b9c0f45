//! Networks as the host service shows and takes them.
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use viv_model::{NetKind, NetworkSpec, NicLimits, PortSpec, ProjectName, Subnet};

/// A network to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetworkCreate {
    /// Its name.
    pub name: String,
    /// Its addresses; a free subnet is chosen if there is none.
    pub subnet: Option<Subnet>,
    /// Its VMs reach one another, and nothing else.
    pub isolated: bool,
    /// Its VMs reach this host: its loopback address as the gateway's.
    pub host: bool,
}

/// A VM to plug into a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConnect {
    /// Its name or id.
    pub vm: String,
}

/// A network that VMs share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Network {
    /// What it is.
    #[serde(flatten)]
    pub spec: NetworkSpec,
    /// The project that it belongs to: only VMs of it are in it.
    #[serde(default)]
    pub project: ProjectName,
    /// Its gateway's address.
    pub gateway: Ipv4Addr,
    /// Its name server's address.
    pub name_server: Ipv4Addr,
    /// The first of its IPv6 addresses, which have the same first 64 bits.
    pub prefix6: Ipv6Addr,
    /// Its gateway's IPv6 address.
    pub gateway6: Ipv6Addr,
    /// Its name server's IPv6 address.
    pub name_server6: Ipv6Addr,
    /// The process of its switch; none while no VM of it runs.
    pub pid: Option<u32>,
    /// What restricts that process, by name.
    pub sandbox: Vec<String>,
    /// Its VMs, also those that do not run.
    pub vms: Vec<NetworkVm>,
}

/// A VM of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct NetworkVm {
    /// Its identity.
    pub id: String,
    /// Its name, by which the others find it.
    pub name: String,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// The IPv6 address that its card gives itself; the guest may have others beside it.
    pub address6: Ipv6Addr,
    /// Its card's address.
    pub mac: String,
    /// Its published ports.
    pub ports: Vec<PortSpec>,
    /// It is plugged in now.
    pub connected: bool,
}

/// A further network card for a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NicAttach {
    /// What it is plugged into.
    pub net: NetKind,
    /// Ports of the host that lead to it.
    pub ports: Vec<PortSpec>,
    /// How much may pass it.
    pub limits: NicLimits,
    /// The security groups that it is in beside its VM's.
    pub groups: Vec<String>,
    /// Its guest's address, on a tap device or a bridge of the host.
    pub ip: Option<Ipv4Addr>,
}
