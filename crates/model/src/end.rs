//! How the life of a VM ended.
use serde::{Deserialize, Serialize};

/// Why a VM is no longer running. The runner writes it once, last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum End {
    /// The guest switched itself off (ACPI S5), or the user asked it to and it obeyed.
    PowerOff,
    /// The guest asked for a reset and the VM was told not to restart (`--rm`, `-- COMMAND`).
    Reboot,
    /// The guest's kernel reported a panic (pvpanic, or its own last words with `panic=`).
    Panic,
    /// A fault while delivering a double fault: the processor shut down.
    TripleFault,
    /// The guest agent's command ended with this status, and the VM existed for that command.
    Command {
        /// The command's exit status, 128 + the signal's number when a signal ended it.
        status: u8,
    },
    /// The user killed it.
    Killed,
    /// The program did what its abstract machine does not allow.
    Trap {
        /// What, and where.
        message: String,
    },
    /// The program came to the end of what it may use.
    Limit {
        /// Of what.
        message: String,
    },
    /// The program has run for as long as it may.
    Timeout {
        /// How long.
        message: String,
    },
    /// The VM process could not go on.
    Failed {
        /// What happened, to what, and why.
        message: String,
    },
}

impl End {
    /// The exit status of a foreground `viv run` for this end.
    pub fn exit_status(&self) -> u8 {
        match self {
            End::PowerOff | End::Reboot => 0,
            End::Command { status } => *status,
            End::Panic | End::TripleFault | End::Trap { .. } => 134,
            End::Killed | End::Limit { .. } => 137,
            End::Timeout { .. } => 124,
            End::Failed { .. } => 1,
        }
    }
}
