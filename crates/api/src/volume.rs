//! Volumes with names: disks that outlive the VMs that use them.
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use viv_model::ProjectName;

/// A volume to make. VMs make those that they name and that are not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VolumeCreate {
    /// Its name: letters, digits, `_`, `.` and `-`, a letter or digit first.
    pub name: String,
    /// How much it can hold at most, MiB; none: 64 GiB. It takes up what is in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_mib: Option<u64>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Volume {
    /// Its name; unique in its project.
    pub name: String,
    /// The project that it is in.
    pub project: ProjectName,
    /// How much it can hold at most, bytes.
    pub size_bytes: u64,
    /// How much of the host's disk it takes up, bytes.
    pub used_bytes: u64,
    /// When it was made.
    pub created_at: Timestamp,
    /// The VMs that are described with it, by name; one at a time can run, unless all only read.
    pub vms: Vec<String>,
    /// The file: a raw disk with an ext4 file system.
    pub path: PathBuf,
}
