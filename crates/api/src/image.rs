//! Images as the host service shows and builds them.
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use viv_model::Fault;

/// The image that `viv run` takes if none is named.
pub const DEFAULT: &str = "default";

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// What it is, by the content: the digest of its manifest, hexadecimal SHA-256.
    pub digest: String,
    /// What it takes on the host's disk, bytes.
    pub size_bytes: u64,
    /// When it was built.
    pub created_at: Timestamp,
    /// What is in it, in a line.
    pub summary: String,
}

/// How to build an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ImageBuild {
    /// The size of its disk, MiB, where it has one.
    pub size_mib: Option<u64>,
    /// Build it even if it is there and up to date.
    pub force: bool,
    /// If it is there, take it as it is, without a look at newer packages.
    pub if_missing: bool,
    /// The guest agent to put into it: the static binary on the host.
    pub agent: Option<std::path::PathBuf>,
}

/// One line of a build's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildLine {
    /// What is being done now.
    Progress(Progress),
    /// The last line of a build that went well.
    Done(Image),
    /// The last line of one that did not.
    Failed(Fault),
}

/// Where a long work is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done: `downloading linux-image-…`.
    pub step: String,
    /// How much of this step is done, in the unit below.
    pub done: u64,
    /// How much there is to do, if that is known.
    pub total: Option<u64>,
    /// The unit is bytes; else it is pieces.
    pub bytes: bool,
}
