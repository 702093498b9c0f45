//! Projects as the host service shows and takes them.
use crate::limits::Taken;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use viv_model::{Limits, ProjectName};

/// A project to make.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ProjectCreate {
    /// Its name: 1 to 63 of a-z, 0-9 and `-`, the first a letter.
    pub name: String,
    /// What there is to say of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// What its VMs may have together; the ratios are the host's and count for nothing here.
    pub limits: Limits,
}

/// A project: VMs, snapshots, networks, security groups and tokens that belong together, and do not see those of others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Project {
    /// Its name; unique on this host.
    pub name: ProjectName,
    /// What its maker had to say of it.
    pub comment: String,
    /// When it was made; nothing for `default`, which is always there.
    pub created_at: Option<Timestamp>,
    /// What its VMs may have together.
    pub limits: Limits,
    /// Of its VMs, against these limits.
    pub described: Taken,
}
