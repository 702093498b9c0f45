//! A directory of the host that a guest may use: the FUSE protocol as virtio-fs carries it, and its server, which
//! runs in a process of its own and cannot leave the directory.
//!
//! ```text
//!  guest's kernel ─ virtio-fs ─► machine ─ link ─► Session::answer ─► nodes (O_PATH descriptors), handles
//!                                                        │
//!                                 names, attributes, content, listing: system calls on those descriptors
//! ```
//! How it is kept inside: every name is one component, looked up relative to its directory's descriptor with openat2 and
//! RESOLVE_BENEATH; symbolic links are never followed here, the guest resolves them in its own tree; files are opened
//! only by a descriptor that was found so. The process that serves has a sandbox besides (`viv_runner::share`).
//!
//! Files belong to the user who shares; the guest's root is that user, and everybody else's files are nobody's.
//! Start reading at [`Session`].
#![forbid(unsafe_code)]

mod attributes;
mod content;
mod directory;
mod handles;
pub mod link;
mod listing;
mod names;
mod nodes;
pub mod protocol;
mod saved;
pub mod server;
mod session;
#[cfg(test)]
mod tests;

pub use directory::Directory;
pub use saved::SAVED_MAX;
pub use session::Session;
