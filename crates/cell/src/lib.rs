//! What the process of any VM has around its guest, whole computer or single program: the directory that it lives in, the
//! control socket, the console with its log, and a sandbox.
//!
//! It knows no guest. `runner` puts a machine into it, `process` a program.
mod console;
mod control;
mod follow;
mod place;
mod quota;
pub mod sandbox;
mod saving;
mod usage;
mod written;

pub use console::{Console, Log, Reader, attach};
pub use control::{Asker, answer, serve};
pub use follow::wait_for_news;
pub use place::{DRAIN_LIMIT, Place, broken, finish, keep_log, report, spawn, watch_owner, watch_signals};
pub use quota::Quota;
pub use saving::Saving;
pub use usage::{OtherProcess, cpu_ns, memory_bytes};
pub use written::write_json;
