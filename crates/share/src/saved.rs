//! What a guest knows of its directory, as data: which files by which numbers, and what it has open.
//!
//! The files themselves stay the host's, as they are: whoever goes on from this finds each again by its name, and only if it is the very
//! same file. One that is not (removed, replaced, never was on this host) is ESTALE for the guest, whose kernel then looks the name up anew;
//! what it had open of it is lost to it.
use crate::nodes::Identity;
use crate::session::Session;
use serde::{Deserialize, Serialize};
use std::ffi::{CStr, CString};

/// Most bytes of it: what a section of a snapshot may have.
pub const SAVED_MAX: usize = 64 << 20;

/// Why it cannot be saved or taken back, in words.
pub(crate) type Why = String;

/// A file's name, which need not be text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Name {
    Text(String),
    Bytes(Vec<u8>),
}

impl From<&CStr> for Name {
    fn from(name: &CStr) -> Name {
        match name.to_str() {
            Ok(text) => Name::Text(text.to_string()),
            Err(_) => Name::Bytes(name.to_bytes().to_vec()),
        }
    }
}

impl Name {
    /// One component of a path; none if it is anything else.
    pub(crate) fn component(self) -> Option<CString> {
        let bytes = match self {
            Name::Text(text) => text.into_bytes(),
            Name::Bytes(bytes) => bytes,
        };
        crate::protocol::component(&bytes).ok()?;
        CString::new(bytes).ok()
    }
}

/// What tells a file from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdentitySaved {
    /// Major and minor number of its file system's device.
    pub(crate) device: (u32, u32),
    pub(crate) inode: u64,
    /// When it was made: seconds and nanoseconds, zero where the file system does not know.
    pub(crate) born: (i64, u32),
}

impl From<Identity> for IdentitySaved {
    fn from((major, minor, inode, seconds, nanoseconds): Identity) -> IdentitySaved {
        IdentitySaved { device: (major, minor), inode, born: (seconds, nanoseconds) }
    }
}

impl From<IdentitySaved> for Identity {
    fn from(saved: IdentitySaved) -> Identity {
        let IdentitySaved { device: (major, minor), inode, born: (seconds, nanoseconds) } = saved;
        (major, minor, inode, seconds, nanoseconds)
    }
}

/// A file that the guest knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeSaved {
    pub(crate) number: u64,
    /// The directory in which it was found, by its number, and as what.
    pub(crate) parent: u64,
    pub(crate) name: Name,
    pub(crate) file: IdentitySaved,
    /// The kind of file, as in `st_mode`.
    pub(crate) kind: u32,
    pub(crate) lookups: u64,
}

/// A file or directory that the guest has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HandleSaved {
    pub(crate) number: u64,
    pub(crate) node: u64,
    /// Flags of open(2), as this host has them; none of a directory.
    pub(crate) flags: Option<u32>,
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SessionSaved {
    /// The directory itself: a device that has another number by now is known by it.
    pub(crate) root: IdentitySaved,
    pub(crate) next_node: u64,
    pub(crate) nodes: Vec<NodeSaved>,
    pub(crate) next_handle: u64,
    pub(crate) handles: Vec<HandleSaved>,
}

impl Session<'_> {
    /// What the guest knows now, as JSON of at most [`SAVED_MAX`] bytes.
    pub fn save(&self) -> Result<Vec<u8>, Why> {
        let (root, next_node, nodes) = self.nodes.save();
        let (next_handle, handles) = self.handles.save();
        let saved = SessionSaved { root, next_node, nodes, next_handle, handles };
        let bytes = serde_json::to_vec(&saved).map_err(|error| error.to_string())?;
        match bytes.len() {
            len if len > SAVED_MAX => {
                let files = saved.nodes.len();
                Err(format!(
                    "the guest knows {files} files of it, more than can be kept: let it drop its caches"
                ))
            }
            _ => Ok(bytes),
        }
    }

    /// The guest goes on from what [`Session::save`] gave. What it had open is opened again.
    pub fn load(&mut self, bytes: &[u8]) -> Result<(), Why> {
        let saved: SessionSaved = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        self.nodes.load(saved.root, saved.next_node, saved.nodes)?;
        self.handles.clear();
        for handle in &saved.handles {
            let again = self.open_again(handle).ok();
            self.handles.load(handle, again)?;
        }
        self.handles.goes_on_at(saved.next_handle)
    }
}
