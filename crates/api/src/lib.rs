//! The contract between command and host service, host service and runner, host and guest agent.
//!
//! ```text
//! viv ──HTTP/JSON, Unix socket──► viv serve ──JSON lines──► viv runner ──vsock──► guest agent
//!   endpoint, vm, image, network, info    │    runner                      agent
//!                                         └──JSON lines──► viv switch: switch
//! ```
//!
//! Wire types and the table of endpoints ([`endpoint::TABLE`]), written once and used by both ends, and
//! the blocking [`client::Client`] of the command. No policy and no state: what a request *does* is told
//! in `host`. Start reading at [`endpoint`].
#![forbid(unsafe_code)]

pub mod access;
pub mod agent;
pub mod client;
pub mod cloud;
pub mod contract;
mod encoding;
pub mod endpoint;
pub mod event;
mod finding;
pub mod goal;
pub mod image;
pub mod info;
pub mod limits;
mod method;
pub mod network;
#[cfg(feature = "schema")]
pub mod openapi;
pub mod operation;
pub mod passed;
pub mod port;
pub mod process;
pub mod project;
pub mod prune;
mod route;
pub mod runner;
pub mod secgroup;
pub mod snapshot;
pub mod socket;
pub mod stats;
pub mod switch;
pub mod timestamp;
pub mod vm;
pub mod volume;
pub mod websocket;

/// Says something to whoever looks after the host, on standard error: a line, as `eprintln!` takes it. That is a file, as a rule, on a disk
/// that may be full: who cannot say it goes on all the same, where `eprintln!` panics.
#[macro_export]
macro_rules! complain {
    ($($words:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}
