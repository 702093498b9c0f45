//! Images as the host service shows and builds them.
use crate::agent::Exec;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use viv_model::{Fault, GuestKind, HealthCheck, Kind};

/// The image that `viv run` takes if none is named.
pub const DEFAULT: &str = "default";

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
    /// What runs in it, if it is an image of containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ImageProcess>,
    /// What kind of program it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<GuestKind>,
    /// The vCPUs that a VM of it gets if nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// The memory that a VM of it gets if nothing is said, MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
}

/// What an image of containers runs, and how (OCI image specification, config.md).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct ImageProcess {
    /// The words before the command's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, if none is given.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Variables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Where it starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// As whom: `USER[:GROUP]`, names or numbers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The number of the signal that ends it in good order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<u8>,
    /// The ports that it serves: `PORT/tcp` or `PORT/udp`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// Its directories for data.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// How to see whether it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
}

impl ImageProcess {
    /// With `entrypoint` in the place of its own, as docker has it: its command goes with that. Nothing changes without one.
    pub fn with_entrypoint(self, entrypoint: Option<&str>) -> ImageProcess {
        match entrypoint {
            None => self,
            Some(word) => {
                let entrypoint = Some(word.to_string()).filter(|word| !word.is_empty()).into_iter().collect();
                ImageProcess { entrypoint, command: Vec::new(), ..self }
            }
        }
    }

    /// A command inside, as the image has its programs started: its variables, directory and user, where `asked` has none.
    pub fn exec(&self, asked: Exec) -> Exec {
        Exec {
            // Those that were asked for win: they come later.
            env: self.env.iter().cloned().chain(asked.env).collect(),
            cwd: asked.cwd.or_else(|| self.cwd.clone()).or_else(|| Some("/".to_string())),
            user: asked.user.or_else(|| self.user.clone()),
            ..asked
        }
    }

    /// The program for which it exists: its entry point, and `asked`'s words or its own command.
    pub fn main(&self, asked: Exec) -> Result<Exec, Fault> {
        let words = if asked.argv.is_empty() { &self.command } else { &asked.argv };
        let argv: Vec<String> = self.entrypoint.iter().chain(words).cloned().collect();
        if argv.is_empty() {
            return Err(Fault::new(
                Kind::Usage,
                "the image does not say what runs in it",
                "say it behind its name: viv run IMAGE -- COMMAND",
            ));
        }
        Ok(self.exec(Exec { argv, ..asked }))
    }
}

/// What is in an image, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageDetails {
    /// The image.
    pub image: Image,
    /// The digest of its manifest in its registry, if it is an image of containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_digest: Option<String>,
    /// When its maker made it, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<String>,
    /// Its layers, the lowest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<ImageLayer>,
    /// How it came to be, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<ImageHistory>,
    /// The packages that it was made from here: name and version.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<(String, String)>,
    /// Its labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// A layer of an image of containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageLayer {
    /// Its digest in its registry, hexadecimal SHA-256.
    pub digest: String,
    /// What it takes on the host's disk, bytes.
    pub size_bytes: u64,
    /// How many other images have it, too.
    pub shared_with: usize,
}

/// A step in which an image of containers was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageHistory {
    /// When, RFC 3339.
    pub created: Option<String>,
    /// By which command.
    pub created_by: String,
    /// What its layer takes on the host's disk, bytes; none if it made no layer.
    pub size_bytes: Option<u64>,
    /// What its maker says of it.
    pub comment: String,
}

/// What a check of an image found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImageVerified {
    /// The image's name.
    pub name: String,
    /// Bytes that were read.
    pub bytes: u64,
    /// What is wrong, a line for each; nothing if it is whole.
    pub damage: Vec<String>,
}

/// One more name for an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImageTag {
    /// The name.
    pub name: String,
}

/// What was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pruned {
    /// Bytes that are free now.
    pub bytes: u64,
}

/// The header field in which requests that have to do with a registry say who to be there (Docker Engine API): base64url of
/// `{"REGISTRY": {"username": "…", "password": "…"}}`. Without it, it is whoever the host service's user is there.
pub const REGISTRY_CONFIG: &str = "X-Registry-Config";

/// How to build an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImageBuild {
    /// The size of its disk, MiB, where it has one.
    pub size_mib: Option<u64>,
    /// Build it even if it is there and up to date.
    pub force: bool,
    /// If it is there, take it as it is, without a look at newer packages.
    pub if_missing: bool,
    /// Talk to its registry without TLS, or with any certificate.
    pub insecure: bool,
    /// The guest agent to put into it: the static binary on the host.
    pub agent: Option<std::path::PathBuf>,
    /// For `debian`: these packages; with them or with commands it becomes an image of containers.
    pub packages: Vec<String>,
    /// For `debian`: commands of its shell, in order, in a VM of the image so far.
    pub run: Vec<String>,
    /// Then: the new image's name; made of the packages' if there is none.
    pub tag: Option<String>,
    /// Then: what runs in it if nothing is said.
    pub command: Option<Vec<String>>,
    /// Then: no time in it is later than this, seconds since 1970; than the newest file of its packages if there is none.
    pub source_date_epoch: Option<u64>,
}

impl ImageBuild {
    /// Whether no more is asked for than that the image is there.
    pub fn is_only_if_missing(&self) -> bool {
        let (insecure, agent) = (self.insecure, self.agent.clone());
        *self == ImageBuild { if_missing: true, insecure, agent, ..ImageBuild::default() }
    }
}

/// How to make an image of a VM. Of an image of containers it changes what is said here, and keeps the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImageCommit {
    /// The new image's name.
    pub name: String,
    /// The words before the command's.
    pub entrypoint: Option<Vec<String>>,
    /// The command, if none is given.
    pub command: Option<Vec<String>>,
    /// Variables, besides those that it has.
    pub env: Vec<(String, String)>,
    /// Where it starts.
    pub cwd: Option<String>,
    /// As whom.
    pub user: Option<String>,
    /// What the image's history says of it.
    pub message: String,
}

/// Where an image is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImagePush {
    /// Registry, repository and tag.
    pub reference: String,
    /// Talk to the registry without TLS, or with any certificate.
    pub insecure: bool,
}

/// An image in a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Pushed {
    /// Where it is, in full.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: String,
    /// Bytes that were sent.
    pub sent_bytes: u64,
    /// Layers that were there already.
    pub known_layers: usize,
}

/// Where an image is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImageExport {
    /// The new file, absolute.
    pub path: std::path::PathBuf,
    /// What it is to be.
    pub format: MachineFormat,
}

/// A machine of another program that becomes an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ImageImport {
    /// Its file, absolute.
    pub path: std::path::PathBuf,
    /// The new image's name; the machine's own if none is given.
    pub name: Option<String>,
    /// Look at it, and make nothing.
    pub dry_run: bool,
}

/// A machine that was imported, or looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Imported {
    /// The name of the image that it is, or would be.
    pub name: String,
    /// What its file is: `OVA`, `Proxmox backup`.
    pub from: String,
    /// The image, unless nothing was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// Its vCPUs, if its file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Its memory, MiB, if its file says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// Its disks, in their order.
    pub disks: Vec<ImportedDisk>,
    /// The kernel that was found on them, unless nothing was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boots: Option<String>,
    /// What was not carried over, an item each.
    pub left: Vec<String>,
}

/// A disk of a machine of another program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ImportedDisk {
    /// What it is called there.
    pub name: String,
    /// Its size, bytes, as far as it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
}

/// How an image, or a VM, leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MachineFormat {
    /// An image of containers as an OCI archive.
    #[default]
    Oci,
    /// A machine with its disks as an OVA.
    Ova,
}

/// Which disk of a VM is written where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct DiskExport {
    /// The new file, absolute.
    pub path: std::path::PathBuf,
    /// Raw or qcow2.
    pub format: Option<viv_model::DiskFormat>,
    /// Which of its disks, counted from 0; the only one to which it writes if none is named.
    pub disk: Option<usize>,
    /// The whole machine with all disks to which it writes, as an OVA.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ova: bool,
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Exported {
    /// The file.
    pub path: std::path::PathBuf,
    /// What it takes, bytes.
    pub size_bytes: u64,
    /// The digest of the manifest in it, if it is an image of containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What is not in it, an item each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<String>,
}

/// One line of a build's answer.
pub type BuildLine = crate::operation::WorkLine<Image>;

/// Whether an image's name is a disk's file: those of the store have no such names. In a document, and as the service is
/// asked, it begins with `/`; as a user writes it, also with `./`, `../` or by naming a file that has the end of a disk's.
pub fn is_disk_file(name: &str) -> bool {
    const ENDS: [&str; 8] = [".qcow2", ".raw", ".img", ".vmdk", ".vdi", ".vhd", ".vhdx", ".qcow"];
    let begins = ["/", "./", "../"].iter().any(|begin| name.starts_with(begin));
    let lower = name.to_ascii_lowercase();
    begins || ENDS.iter().any(|end| lower.len() > end.len() && lower.ends_with(end) && !name.contains(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disks_file_is_told_from_a_name() {
        for file in ["/srv/debian", "./debian", "../x", "debian-12.qcow2", "Old.VMDK", "images/d.raw"] {
            assert!(is_disk_file(file), "{file}");
        }
        for name in
            ["debian", "docker.io/library/debian", "oci:DIR:tag", "oci-archive:/x.img", ".img", "qcow2", ""]
        {
            assert!(!is_disk_file(name), "{name}");
        }
    }

    #[test]
    fn what_is_asked_for_wins_over_the_image() {
        let pair = |name: &str, value: &str| (name.to_string(), value.to_string());
        let process = ImageProcess {
            entrypoint: vec!["/entry".into()],
            command: vec!["serve".into()],
            env: vec![pair("A", "1"), pair("B", "2")],
            cwd: Some("/srv".into()),
            user: Some("web".into()),
            ..ImageProcess::default()
        };
        let none = Exec::new([""; 0]);
        let main = process.main(none.clone()).unwrap();
        assert_eq!(main.argv, ["/entry", "serve"]);
        assert_eq!((main.cwd.as_deref(), main.user.as_deref()), (Some("/srv"), Some("web")));
        let mut asked = Exec::new(["check"]);
        (asked.env, asked.user) = (vec![pair("A", "3")], Some("root".into()));
        let main = process.main(asked.clone()).unwrap();
        assert_eq!(main.argv, ["/entry", "check"]);
        assert_eq!(main.env, [pair("A", "1"), pair("B", "2"), pair("A", "3")]);
        assert_eq!(process.exec(asked.clone()).argv, ["check"]);
        assert_eq!(
            process.clone().with_entrypoint(Some("/x")).main(asked.clone()).unwrap().argv,
            ["/x", "check"]
        );
        assert_eq!(process.clone().with_entrypoint(Some("")).main(asked).unwrap().argv, ["check"]);
        assert!(process.clone().with_entrypoint(Some("")).main(none.clone()).is_err());
        assert_eq!(process.clone().with_entrypoint(None), process);
        assert_eq!(ImageProcess::default().main(none).unwrap_err().kind, Kind::Usage);
    }
}
