//! Snapshots as the host service shows and takes them.
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use viv_model::{Accel, MachineSpec, PortSpec, ProjectName};

/// A snapshot to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotCreate {
    /// Its name; the VM's and a number if there is none.
    pub name: Option<String>,
    /// What there is to say of it.
    pub comment: String,
    /// Whether VMs are to be made by its name: it is a template then.
    pub template: bool,
    /// Write all of it, and not only what differs from the VM's last snapshot.
    pub full: bool,
    /// Of a program with connections to others: leave them behind. They are reset where it goes on.
    pub drop_sockets: bool,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Snapshot {
    /// Its identity: 12 hexadecimal digits, for ever.
    pub id: String,
    /// Its name: unique in its project.
    pub name: String,
    /// The project that it belongs to: that of its VM.
    #[serde(default)]
    pub project: ProjectName,
    /// What its maker had to say of it.
    pub comment: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// The VM that it is of.
    pub vm: String,
    /// The image that this VM was made from.
    pub image: Option<String>,
    /// The name of the snapshot that this VM came from, or its identity if it is gone.
    pub parent: Option<String>,
    /// The processor that it goes on on.
    pub accel: Accel,
    /// What it takes on the host's disk, bytes.
    pub data_bytes: u64,
    /// Whether it has only what differs from an earlier one. It shares that one's files, and does not need it otherwise.
    pub differential: bool,
    /// How long the VM stood still for it, nanoseconds.
    pub paused_ns: u64,
    /// How many of the guest's file systems stood still for it, whole; none: its disks are as after a loss of power.
    pub frozen_file_systems: Option<usize>,
    /// Whether VMs are made by its name.
    pub template: bool,
    /// Its machine; not there if it is damaged.
    pub machine: Option<MachineSpec>,
    /// Where its files are.
    pub dir: PathBuf,
    /// Why it cannot be used, if so.
    pub damaged: Option<String>,
}

/// How a new VM goes on from a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotRestore {
    /// Its name; a pleasant one is made up if there is none.
    pub name: Option<String>,
    /// Forget it when it ends.
    pub remove: bool,
    /// Ports of the host that lead to it; those of the snapshot's VM are still that one's.
    pub ports: Vec<PortSpec>,
    /// The processor that it goes on with; the kind that it was saved on, or the other where this host has none of that, if it is left
    /// out.
    pub accel: Option<Accel>,
}

/// Which forks to make of a running VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VmFork {
    /// How many.
    pub count: u32,
    /// Their name; with several, a number follows. The VM's name and `-fork` if there is none.
    pub name: Option<String>,
    /// Forget each when it ends.
    pub remove: bool,
    /// Of a program with connections to others: the forks go on without them. They are reset there.
    pub drop_sockets: bool,
}

impl Default for VmFork {
    fn default() -> VmFork {
        VmFork { count: 1, name: None, remove: false, drop_sockets: false }
    }
}

/// Where a VM is to go on from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VmRollback {
    /// A snapshot of it; the one that it came from last if there is none.
    pub snapshot: Option<String>,
}

/// The other snapshot of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotOther {
    /// Its name or id.
    pub other: String,
}

/// What differs between two snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SnapshotDiff {
    /// The name of one.
    pub first: String,
    /// The name of the other.
    pub second: String,
    /// Whether the machines are described differently.
    pub machine: bool,
    /// Whether processors or devices are in another state.
    pub state: bool,
    /// Memory and disks.
    pub contents: Vec<ContentDiff>,
}

/// How much of a memory or a disk differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ContentDiff {
    /// Which: `memory`, `disk0`.
    pub name: String,
    /// Its size, bytes.
    pub bytes: u64,
    /// Bytes that differ, counted in pieces of 64 KiB.
    pub changed_bytes: u64,
}

/// A tar file to write a snapshot to, or to read it from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotFile {
    /// An absolute path of the host.
    pub path: PathBuf,
    /// The name that it gets here; its own if there is none.
    pub name: Option<String>,
}
