//! What an image is made of, as its manifest says. The form follows the OCI image manifest, with media types
//! of our own.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// A blob of the store and what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// What it is, e.g. `application/vnd.vivarium.kernel`.
    pub media_type: String,
    /// `sha256:` and the blob's SHA-256 in hexadecimal.
    pub digest: String,
    /// Its length, bytes; a sparse disk takes less.
    pub size: u64,
}

/// A package that went into an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// The image as the store holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// The digest of its manifest, hexadecimal SHA-256.
    pub digest: String,
    /// When it was built.
    pub created_at: SystemTime,
    /// What is in it, in a line.
    pub summary: String,
    /// What it takes on the host's disk, bytes.
    pub size_bytes: u64,
    /// Its manifest.
    pub manifest: Manifest,
}

/// The manifest, as its blob in the store says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2, as in every OCI manifest.
    pub schema_version: u32,
    /// [`Manifest::MEDIA_TYPE`].
    pub media_type: String,
    /// What decides whether it must be built again.
    pub key: String,
    /// When it was built, seconds since 1970.
    pub created: u64,
    /// What is in it, in a line.
    pub summary: String,
    /// The kernel.
    pub kernel: Part,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Part>,
    /// The disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<Part>,
    /// Words for the kernel's command line.
    #[serde(default)]
    pub append: String,
    /// The packages that it was made from.
    #[serde(default)]
    pub packages: Vec<Package>,
    /// Free words.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Manifest {
    /// The media type of our manifests.
    pub const MEDIA_TYPE: &str = "application/vnd.vivarium.image.manifest.v1+json";

    /// When it was built.
    pub fn created_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.created)
    }
}
