//! Snapshots as the host service shows and takes them.
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use viv_model::{Accel, MachineSpec, PortSpec};

/// A snapshot to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotCreate {
    /// Its name; the VM's and a number if there is none.
    pub name: Option<String>,
    /// What there is to say of it.
    pub comment: String,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its identity: 12 hexadecimal digits, for ever.
    pub id: String,
    /// Its name: unique on this host.
    pub name: String,
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
    /// How long the VM stood still for it, nanoseconds.
    pub paused_ns: u64,
    /// Its machine; not there if it is damaged.
    pub machine: Option<MachineSpec>,
    /// Where its files are.
    pub dir: PathBuf,
    /// Why it cannot be used, if so.
    pub damaged: Option<String>,
}

/// How a new VM goes on from a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnapshotRestore {
    /// Its name; a pleasant one is made up if there is none.
    pub name: Option<String>,
    /// Forget it when it ends.
    pub remove: bool,
    /// Ports of the host that lead to it; those of the snapshot's VM are still that one's.
    pub ports: Vec<PortSpec>,
}

/// Which forks to make of a running VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmFork {
    /// How many.
    pub count: u32,
    /// Their name; with several, a number follows. The VM's name and `-fork` if there is none.
    pub name: Option<String>,
    /// Forget each when it ends.
    pub remove: bool,
}

impl Default for VmFork {
    fn default() -> VmFork {
        VmFork { count: 1, name: None, remove: false }
    }
}
