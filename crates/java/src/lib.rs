//! Java programs, as far as one knows them without a machine: what an archive or a class file is, classes of a directory as one
//! archive, and how a machine is told to let debuggers and monitors in.
#![forbid(unsafe_code)]

mod doors;
mod pack;
mod program;

pub use doors::{DEBUG_PORT, Doors, JMX_PORT};
pub use pack::{BYTES_MAX, FILES_MAX, pack};
pub use program::{Program, look};
