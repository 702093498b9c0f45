//! What cloud-init in a guest is told.
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Whether a VM gets a disk that tells cloud-init in its guest who it is: a seed of its `NoCloud` data source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Seed {
    /// If something else is said here, or the image is a disk with cloud-init in it.
    #[default]
    Auto,
    /// Yes.
    Yes,
    /// No.
    No,
}

/// What cloud-init in the guest is told, by a disk with the label `cidata`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CloudInit {
    /// Whether it is told anything.
    #[serde(skip_serializing_if = "Seed::is_auto")]
    pub seed: Seed,
    /// The file with its user-data, taken as it is; none: a user with the keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<PathBuf>,
    /// The file with its network configuration; none: DHCP at the first card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_config: Option<PathBuf>,
    /// The user who gets the keys, and whom `viv ssh` logs in as; none: the image's default user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Public keys for SSH, as in `authorized_keys`; this host's own is always one more.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
}

impl Seed {
    /// Whether nothing is said.
    pub fn is_auto(&self) -> bool {
        *self == Seed::Auto
    }
}

impl CloudInit {
    /// Whether nothing is said.
    pub fn is_usual(&self) -> bool {
        *self == CloudInit::default()
    }

    /// Whether there is a seed, for a guest that has cloud-init installed or is not known to.
    pub fn is_wanted(&self, installed: bool) -> bool {
        match self.seed {
            Seed::Yes => true,
            Seed::No => false,
            Seed::Auto => {
                installed || self.user_data.is_some() || self.network_config.is_some() || self.user.is_some()
            }
        }
    }
}
