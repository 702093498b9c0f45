//! How the host service and a network's switch talk.
//!
//! The switch lives in one directory. It reads [`SPEC`], holds a lock on [`LOCK`] for as long as it lives, says on its
//! standard output in one line whether it serves ([`Started`]), and then answers on [`CONTROL`]: JSON lines, an [`Ask`],
//! then its [`Reply`], and so on. It ends when no VM has been plugged in for a while.
use crate::vm::Process;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use viv_model::{Attachment, Fault, NetworkSpec, NicLimits, PortSpec, SecGroup, SwitchCounters};

/// Which network it is: a [`NetworkSpec`]. All names are relative to the switch's directory.
pub const SPEC: &str = "switch.json";
/// Held while the switch lives; contains its [`Process`].
pub const LOCK: &str = "switch.lock";
/// The control socket.
pub const CONTROL: &str = "switch.sock";
/// What the switch itself had to say; empty on a good day.
pub const LOG: &str = "switch.log";
/// Most bytes of a request on [`CONTROL`]: it has all rules.
pub const LINE_MAX: usize = 64 << 20;
/// Most bytes of an answer: it names all ports.
pub const REPLY_MAX: usize = 8 << 20;

/// The one line on the switch's standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Started {
    /// It serves.
    Serving(Status),
    /// It cannot, and why; the process ends.
    Refused(Fault),
}

/// What a switch can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// How is it?
    Status,
    /// Plug a VM in, in place of its earlier port. With the request come (SCM_RIGHTS of unix(7)) the switch's end of a
    /// pair of sockets, and the sockets of the published ports.
    Plug {
        /// The port.
        port: Attachment,
        /// Its published ports, as many as sockets come.
        publish: Vec<PortSpec>,
    },
    /// These are the security groups from now on, also for open flows.
    Groups {
        /// All of them.
        groups: Vec<SecGroup>,
    },
    /// Other names are asked for there from now on: the host's name server is another one.
    Resolver {
        /// Its address; nothing if the host has none.
        address: Option<SocketAddr>,
    },
    /// A VM is in these groups from now on, if it is plugged in.
    Member {
        /// The VM's identity.
        vm: String,
        /// Their names.
        groups: Vec<String>,
    },
    /// So much may pass a VM's card from now on, if it is plugged in.
    Limit {
        /// The VM's identity.
        vm: String,
        /// How much.
        limits: NicLimits,
    },
    /// Tell of what passes a VM's port, a record for each packet, on the socket that comes with the request
    /// (SCM_RIGHTS of unix(7)), until it is closed or the plug is pulled.
    Capture {
        /// The VM's identity.
        vm: String,
    },
    /// Lead the stream that comes with the request (SCM_RIGHTS of unix(7)) to a TCP port of a VM.
    Connect {
        /// The VM's identity.
        vm: String,
        /// The port.
        port: u16,
    },
    /// What has been counted?
    Counters,
    /// Pull a VM's plug, if it has one.
    Unplug {
        /// The VM's identity.
        vm: String,
    },
}

/// What a switch answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; this is how it is now.
    Ok(Status),
    /// The answer to [`Ask::Counters`].
    Counters(SwitchCounters),
    /// Not done.
    Refused(Fault),
}

/// How a switch is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its process.
    pub process: Process,
    /// Its network.
    pub network: NetworkSpec,
    /// Who is plugged in.
    pub ports: Vec<Attachment>,
    /// What restricts the process, by name.
    pub sandbox: Vec<String>,
}
