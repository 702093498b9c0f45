//! What an image is made of, as its manifest says. The form follows the OCI image manifest, with media types
//! of our own.
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use viv_api::image::ImageProcess;

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

/// An image of containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// An EROFS of its files, whose contents lie behind it: those of each layer after the other.
    pub tree: Part,
    /// Its manifest, as its registry has it.
    pub manifest: Part,
    /// Its configuration, as its registry has it.
    pub config: Part,
    /// The digests of its layers, hexadecimal SHA-256, the lowest first.
    pub layers: Vec<String>,
    /// What runs in it.
    pub process: ImageProcess,
}

/// What a VM of an image gets if its user says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usual {
    /// vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Memory, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
}

impl Usual {
    fn is_none(&self) -> bool {
        *self == Usual::default()
    }
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
    /// The kernel. Without one, an image with disks boots what it has on these, and one of containers the default guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<Part>,
    /// The initial RAM disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<Part>,
    /// The disks, in the order in which the guest finds them.
    #[serde(default)]
    pub disks: Vec<Part>,
    /// What it has if it is an image of containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Container>,
    /// The WebAssembly program that it is, and no computer's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<Part>,
    /// What a VM of it gets if nothing is said.
    #[serde(default, skip_serializing_if = "Usual::is_none")]
    pub usual: Usual,
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

    /// One without anything.
    pub(super) fn bare() -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: Manifest::MEDIA_TYPE.to_string(),
            key: String::new(),
            created: 0,
            summary: String::new(),
            kernel: None,
            initrd: None,
            disks: Vec::new(),
            container: None,
            program: None,
            usual: Default::default(),
            append: String::new(),
            packages: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    /// What runs in it, if it is an image of containers.
    pub fn process(&self) -> Option<&ImageProcess> {
        self.container.as_ref().map(|container| &container.process)
    }

    /// Whether its VMs boot the kernel that is on their disks.
    pub fn boots_itself(&self) -> bool {
        self.kernel.is_none() && self.container.is_none() && !self.disks.is_empty()
    }

    /// Every blob that it has.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Part> {
        let container = self.container.iter().flat_map(|has| [&has.tree, &has.manifest, &has.config]);
        self.disks.iter().chain(&self.initrd).chain(&self.kernel).chain(&self.program).chain(container)
    }

    /// The digests of its layers.
    pub(super) fn layers(&self) -> impl Iterator<Item = &String> {
        self.container.iter().flat_map(|has| &has.layers)
    }

    /// When it was built.
    pub fn created_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.created)
    }
}
