//! Manifests, indexes and configurations, as OCI and docker write them. Fields that we do not need are passed over.
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// Media types (OCI image specification, media-types.md; docker, "Image Manifest Version 2, Schema 2").
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// A whole computer: the type of our artifact, and of its configuration (image specification, "Guidelines for Artifact Usage").
pub const MACHINE: &str = "application/vnd.vivarium.machine.v1+json";

/// A WebAssembly program (CNCF, "Wasm OCI Artifact layout").
pub(crate) const WASM: &str = "application/wasm";
/// The same, as tools wrote it before there was a layout.
pub(crate) const WASM_BEFORE: &str = "application/vnd.wasm.content.layer.v1+wasm";

/// Something by its content (descriptor.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: String,
    /// Its length, bytes.
    pub size: u64,
    /// What it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Free words.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// What an image runs on (image-index.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As Go calls it: `amd64`.
    #[serde(default)]
    pub architecture: String,
    /// As Go calls it: `linux`.
    #[serde(default)]
    pub os: String,
    /// The kind of processor: `v7` of an ARM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// Our guests are this.
    pub fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }

    /// Made for WebAssembly, on whatever system (the same layout).
    pub(crate) fn is_wasm(&self) -> bool {
        self.architecture == "wasm"
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

/// One image for each platform (image-index.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Its images.
    #[serde(default, deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
}

/// An image's parts (manifest.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// How to run it.
    pub config: Descriptor,
    /// Its layers, the lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
}

/// How an image is run, and where it came from (config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// When it was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// What it runs on.
    #[serde(flatten)]
    pub platform: Platform,
    /// What runs in it.
    #[serde(default, deserialize_with = "or_default")]
    pub config: Process,
    /// Its layers without compression.
    #[serde(default, deserialize_with = "or_default")]
    pub rootfs: Rootfs,
    /// How its layers came to be.
    #[serde(default, deserialize_with = "or_default")]
    pub history: Vec<History>,
}

/// What runs in a container of an image (config.md, "config").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Process {
    /// `USER[:GROUP]`, names or numbers.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `PORT[/tcp|/udp]`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// `NAME=VALUE`.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The words before the command's.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, if the user gives none.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Directories for data.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// Where it starts.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Free words.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// What ends it in good order: `SIGINT`, or a number.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// How to see whether it is well (docker's; OCI has none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// How to see whether a container is well (docker, "Image JSON"). Times are nanoseconds; 0, or less, is the usual one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["CMD", WORD…]`, `["CMD-SHELL", LINE]` or `["NONE"]`.
    #[serde(deserialize_with = "or_default")]
    pub test: Vec<String>,
    /// Between two looks.
    pub interval: i64,
    /// For one look.
    pub timeout: i64,
    /// After the start, when it need not be well yet.
    pub start_period: i64,
    /// Between two looks in that time.
    pub start_interval: i64,
    /// Failures in a row that make it unwell.
    pub retries: i64,
}

/// The layers without compression (config.md, "rootfs").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Their digests, the lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<String>,
}

/// How a layer came to be (config.md, "history").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which command.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// It made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
    /// Free words.
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

/// Go writes an empty list, map or string as `null` where it likes.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_docker_writes_is_read() {
        let text = r#"{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","config":{"User":"","Env":null,
            "Cmd":["sh"],"Entrypoint":null,"ExposedPorts":{"80/tcp":{}},"Volumes":null,"OnBuild":null,"StopSignal":"SIGQUIT",
            "Healthcheck":{"Test":["CMD-SHELL","true"],"Interval":5000000000}},
            "rootfs":{"type":"layers","diff_ids":["sha256:x"]},"history":[{"created_by":"/bin/sh","empty_layer":true}]}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        assert!(config.platform.is_ours());
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.healthcheck.unwrap().interval, 5_000_000_000);
        assert!(config.history[0].empty_layer);
        let bare: Config = serde_json::from_str(r#"{"config":null}"#).unwrap();
        assert_eq!(bare, Config::default());
    }
}
