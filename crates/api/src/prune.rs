//! What nothing that is listed has.
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct HostPrune {
    /// Also what is only kept to save time: compiled code of programs, downloaded packages.
    pub caches: bool,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct HostPruned {
    /// Bytes of this host's disks that are free now.
    pub bytes: u64,
    /// How many files and directories went, those within others not counted. What belonged to images is in `bytes` alone.
    pub removed: u64,
    /// Directories of VMs that nobody remembers and in which one was started: they may hold what somebody needs, and stay.
    pub kept: Vec<PathBuf>,
}
