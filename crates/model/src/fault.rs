//! Errors as a person meets them: what happened, to what, why, and what to do now.
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;

/// The class of a fault; it fixes the exit status of the command and the status of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Anything not named below.
    Error,
    /// The command line or the request is wrong.
    Usage,
    /// The thing named does not exist.
    NotFound,
    /// The thing exists already, or is in a state that does not allow this.
    Conflict,
    /// Not enough memory, disk or processors.
    NoCapacity,
    /// The user may not do this.
    Denied,
    /// The work goes on in the background.
    StillGoingOn,
    /// The file is no program, or none that can be run.
    NotRunnable,
}

impl Kind {
    /// The class of a fault at a file that a user has named.
    pub fn of_file(error: &io::Error) -> Kind {
        match error.kind() {
            io::ErrorKind::NotFound => Kind::NotFound,
            io::ErrorKind::PermissionDenied => Kind::Denied,
            io::ErrorKind::AlreadyExists => Kind::Conflict,
            _ => Kind::Error,
        }
    }

    /// Exit status of the command (DESIGN §9).
    pub fn exit_status(self) -> u8 {
        match self {
            Kind::Error => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Conflict => 4,
            Kind::NoCapacity => 5,
            Kind::Denied => 6,
            Kind::StillGoingOn => 7,
            Kind::NotRunnable => 126,
        }
    }
}

/// An error with its way out. Libraries keep their own enums; the edges turn them into this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Fault {
    /// Its class.
    pub kind: Kind,
    /// What happened, to what, and why: one line without a full stop.
    pub message: String,
    /// What to do now: one line, never empty.
    pub fix: String,
}

impl Fault {
    /// A fault of `kind`; `fix` must say what the user can do.
    pub fn new(kind: Kind, message: impl Into<String>, fix: impl Into<String>) -> Fault {
        let fault = Fault { kind, message: message.into(), fix: fix.into() };
        debug_assert!(!fault.fix.is_empty(), "a fault without a fix: {}", fault.message);
        fault
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.message, self.fix)
    }
}

impl std::error::Error for Fault {}
