//! Snapshots as nouns: what one is. How it lies on a disk is `viv-snapshot`'s business.
use crate::{Label, MachineSpec, ProgramSpec, ProjectName};
use serde::{Deserialize, Serialize};

/// What a snapshot is, and the checksums of all that it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format: 1, 2 if contents of it lie in layers, 3 if it is of a program, or 4 if `asked` is there.
    pub format: u32,
    /// The release of Vivarium that wrote it.
    pub release: String,
    /// The snapshot's identity.
    pub id: String,
    /// Its name; unique in its project.
    pub name: String,
    /// The project that it belongs to: that of its VM.
    #[serde(default, skip_serializing_if = "ProjectName::is_default")]
    pub project: ProjectName,
    /// What its maker had to say of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// When it was made, seconds since 1970.
    pub created_unix_s: u64,
    /// The VM that it is of: identity and name.
    pub vm: (String, String),
    /// The image that this VM was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The snapshot that the VM came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The security groups that the VM was in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// The VM's labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<Label>,
    /// Whether VMs are made by its name.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub template: bool,
    /// The machine; its processor is the one that it ran on.
    pub machine: MachineSpec,
    /// The program that the VM is, if it is no whole computer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<ProgramSpec>,
    /// What the VM is besides its machine, if that is more than usual, as the service keeps it: its command, for example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<serde_json::Value>,
    /// How long the VM stood still for it, nanoseconds.
    pub paused_ns: u64,
    /// How many of the guest's file systems its agent had stand still for it, whole; none: disks are as after a loss of power.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_file_systems: Option<usize>,
    /// The pieces of the state file.
    pub sections: Vec<Section>,
    /// The memory.
    pub memory: Content,
    /// The disks that are in it, by their place in `machine`.
    pub disks: Vec<DiskContent>,
    /// Files that are kept as they are.
    pub files: Vec<Plain>,
}

/// A disk that is in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskContent {
    /// Which disk of the machine, from 0.
    pub index: usize,
    /// What it held.
    pub content: Content,
}

/// A piece of state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// The version of its form.
    pub version: u32,
    /// Where it begins in the state file.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// Its checksum, in hexadecimal digits.
    pub checksum: String,
}

/// A small file that is kept whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plain {
    /// Its name.
    pub name: String,
    /// Its checksum, in hexadecimal digits.
    pub checksum: String,
}

/// What the manifest knows of a content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Its size.
    pub bytes: u64,
    /// Bytes of it that are not left out, nor in the layers below.
    pub data_bytes: u64,
    /// The checksum of its checksums, in hexadecimal digits. Empty: it has none, for it arrives while it is used. So it is with the memory of
    /// a fork, which no snapshot that is kept has.
    pub checksum: String,
    /// If it is only what differs from what is below: the checksum of the map of its pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
    /// The layers below, from the top.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub below: Vec<Layer>,
}

/// A layer below a content, of another snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// Its size.
    pub bytes: u64,
    /// The checksum of the map of its pieces; the lowest has all, and no map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub map: Option<String>,
}

/// What the VM's process has written of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedParts {
    /// The machine; its processor is the one that it runs on.
    pub machine: MachineSpec,
    /// How long the VM stood still for it, nanoseconds.
    pub paused_ns: u64,
    /// How many of the guest's file systems its agent had stand still for it, whole; none: disks are as after a loss of power.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_file_systems: Option<usize>,
    /// The pieces of the state file.
    pub sections: Vec<Section>,
    /// The memory.
    pub memory: Content,
    /// The disks that are in it.
    pub disks: Vec<DiskContent>,
}

impl Manifest {
    /// Whether it has only what differs from another one.
    pub fn is_differential(&self) -> bool {
        self.contents().any(|content| content.map.is_some())
    }

    /// Whether its memory arrives while it is used.
    pub fn memory_arrives(&self) -> bool {
        self.memory.checksum.is_empty()
    }

    fn contents(&self) -> impl Iterator<Item = &Content> {
        std::iter::once(&self.memory).chain(self.disks.iter().map(|disk| &disk.content))
    }

    /// Bytes that it takes.
    pub fn data_bytes(&self) -> u64 {
        self.contents().map(|content| content.data_bytes).fold(0, u64::saturating_add)
    }
}
