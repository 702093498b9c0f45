//! One host's service: what VMs and images there are, and the API to them.
//!
//! ```text
//!   viv ── Unix socket ──► service ─► routes ─┬─► vms ──► runner processes (one per VM, detached)
//!                          (http)             │    ├────► store (what was asked for)
//!                                             │    └────► networks ──► switch processes (one per network)
//!                                             ├─► operations (long works, beside the requests)
//!                                             └─► images
//! ```
//!
//! Over the network it is reached by TLS alone (`network_door`); each request passes the `door`, which knows who asks (`access`), and
//! writes down what was done (`audit`).
//!
//! It never holds a VM's life: a runner is a process of its own, found again by its directory when the
//! service starts anew. It links no CPU, device or machine code. It is started on demand ([`start`]) and
//! ends by itself when it has nothing to do. Start reading at [`service`].
#![forbid(unsafe_code)]

mod access;
mod admission;
mod apart;
mod audit;
mod blocking;
mod boot_code;
mod builder;
mod connections;
mod container_ask;
mod control_groups;
mod creation;
mod described;
mod disk_image;
mod disks;
mod door;
mod events;
mod following;
mod guest_commands;
mod http;
pub mod images;
mod info;
mod keep;
mod kernel;
mod limits;
mod lists;
mod manners;
mod metrics;
mod names;
mod network_door;
mod networks;
mod new_file;
mod operations;
mod page;
mod pcapng;
pub mod places;
mod plugs;
mod ports;
mod precondition;
mod programs;
mod projects;
mod prune;
mod routes;
mod runners;
mod secgroups;
mod seed;
mod service;
mod shares;
mod signs;
mod snapshots;
pub mod start;
pub mod store;
mod streams;
mod telemetry;
mod tickets;
mod tls;
mod tokens;
mod update;
mod vms;
mod volumes;
mod waiting;
mod warm;
mod watch;
mod websocket;

pub use network_door::Listen;
pub use places::Places;
pub use seed::private_key;
pub use service::{Serving, serve};
pub use telemetry::Collector;
