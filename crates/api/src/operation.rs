//! Long works as things that can be looked at, followed, waited for and given up.
use crate::endpoint::Route;
use crate::timestamp::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fmt;
use std::str::FromStr;
use viv_model::{Fault, ProjectName};

/// What a long work does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    /// Builds an image, or gets it from its registry.
    ImageBuild,
    /// Sends one to a registry.
    ImagePush,
    /// Writes one to a file.
    ImageExport,
    /// Makes one of another program's machine.
    ImageImport,
    /// Makes one of a VM.
    VmCommit,
    /// Writes a VM or its disk to a file.
    VmExport,
    /// Saves a VM that lives.
    SnapshotCreate,
    /// Compares a snapshot with its checksums.
    SnapshotVerify,
    /// Writes a snapshot to a file.
    SnapshotExport,
    /// Takes a snapshot from a file.
    SnapshotImport,
}

impl OperationKind {
    /// Every kind.
    pub const ALL: [OperationKind; 10] = [
        OperationKind::ImageBuild,
        OperationKind::ImagePush,
        OperationKind::ImageExport,
        OperationKind::ImageImport,
        OperationKind::VmCommit,
        OperationKind::VmExport,
        OperationKind::SnapshotCreate,
        OperationKind::SnapshotVerify,
        OperationKind::SnapshotExport,
        OperationKind::SnapshotImport,
    ];

    /// The endpoint that begins one.
    pub fn route(self) -> Route {
        match self {
            OperationKind::ImageBuild => Route::ImageBuild,
            OperationKind::ImagePush => Route::ImagePush,
            OperationKind::ImageExport => Route::ImageExport,
            OperationKind::ImageImport => Route::ImageImport,
            OperationKind::VmCommit => Route::VmCommit,
            OperationKind::VmExport => Route::VmExport,
            OperationKind::SnapshotCreate => Route::SnapshotCreate,
            OperationKind::SnapshotVerify => Route::SnapshotVerify,
            OperationKind::SnapshotExport => Route::SnapshotExport,
            OperationKind::SnapshotImport => Route::SnapshotImport,
        }
    }

    /// Its name, as it is on the wire.
    pub fn name(self) -> &'static str {
        match self {
            OperationKind::ImageBuild => "image-build",
            OperationKind::ImagePush => "image-push",
            OperationKind::ImageExport => "image-export",
            OperationKind::ImageImport => "image-import",
            OperationKind::VmCommit => "vm-commit",
            OperationKind::VmExport => "vm-export",
            OperationKind::SnapshotCreate => "snapshot-create",
            OperationKind::SnapshotVerify => "snapshot-verify",
            OperationKind::SnapshotExport => "snapshot-export",
            OperationKind::SnapshotImport => "snapshot-import",
        }
    }
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where a long work is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum OperationState {
    /// It begins when others have ended.
    Waiting,
    /// It goes on.
    Running,
    /// It is done.
    Done,
    /// It could not be done.
    Failed,
    /// It was given up.
    Cancelled,
    /// The service ended before it, and nobody waits for it any more.
    Interrupted,
}

impl OperationState {
    /// Every state.
    pub const ALL: [OperationState; 6] = [
        OperationState::Waiting,
        OperationState::Running,
        OperationState::Done,
        OperationState::Failed,
        OperationState::Cancelled,
        OperationState::Interrupted,
    ];

    /// Its name, as it is on the wire.
    pub fn name(self) -> &'static str {
        match self {
            OperationState::Waiting => "waiting",
            OperationState::Running => "running",
            OperationState::Done => "done",
            OperationState::Failed => "failed",
            OperationState::Cancelled => "cancelled",
            OperationState::Interrupted => "interrupted",
        }
    }

    /// Whether nothing more comes.
    pub fn is_over(self) -> bool {
        !matches!(self, OperationState::Waiting | OperationState::Running)
    }
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for OperationState {
    type Err = String;

    fn from_str(text: &str) -> Result<OperationState, String> {
        OperationState::ALL.into_iter().find(|state| state.name() == text).ok_or_else(|| {
            let names = OperationState::ALL.map(OperationState::name).join(", ");
            format!("no state of an operation is called {text:?}; there are: {names}")
        })
    }
}

/// A long work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Operation {
    /// Its number on this host; later ones have greater ones.
    pub id: u64,
    /// What it does.
    pub kind: OperationKind,
    /// The image, VM, snapshot or file that it does it with.
    pub subject: String,
    /// The project of whoever began it, if he is bound to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectName>,
    /// Where it is.
    pub state: OperationState,
    /// It goes on by itself, also when the service begins anew; else it is given up when whoever began it goes.
    pub detached: bool,
    /// When it was asked for.
    pub started_at: Timestamp,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// How often it began: once more each time the service ended in the middle of it.
    pub runs: u32,
    /// What is being done now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// Why it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// What it has made, as its endpoint shows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it is not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
}

/// One line of the answer to a long work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum WorkLine<T> {
    /// What it is, in the first line, unless all is there already; again when it has waited.
    Operation(Box<Operation>),
    /// What is being done now.
    Progress(Progress),
    /// A command of the user's has written this line.
    Said(String),
    /// The last line of a work that went well.
    Done(T),
    /// The last line of one that did not.
    Failed(Fault),
}

/// Where a long work is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_wire() {
        for kind in OperationKind::ALL {
            assert_eq!(serde_json::to_string(&kind).unwrap(), format!("{:?}", kind.name()));
        }
        for state in OperationState::ALL {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("{:?}", state.name()));
            assert_eq!(state.name().parse(), Ok(state));
        }
        assert!("gone".parse::<OperationState>().unwrap_err().contains("interrupted"));
    }
}
