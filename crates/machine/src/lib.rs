//! A whole computer: a board built from a table, its memory map, its boot, and its threads.
//!
//! ```text
//!  MachineSpec ─► Machine::build ─► files ─► boot (kernel, initrd, zero page) ─► memory, CpuState
//!                     │                       acpi (tables) ─────────────────────┘
//!                     ├─► board (table ─► parts on buses) ◄─ bus (CpuView: what a vCPU sees)
//!                     └─► threads (vCPUs, timekeeper, disk queues, console)   core (clock, lines, control)
//! ```
//! What it will never do: talk to a user, keep state on disk, know of other machines. Start reading at
//! [`Machine::build`].

pub mod acpi;
pub mod boot;
pub mod layout;
#[cfg(feature = "trial")]
pub mod trial;
pub mod vsock;

mod board;
mod bus;
mod core;
mod drives;
mod files;
mod hot_plug;
mod identity;
mod machine;
mod parts;
mod saving;
mod threads;

pub use drives::HandedFiles;
pub use files::files_below;
pub use machine::{ConsoleWriter, Machine, MachineIo, MachineStats};
pub use parts::ShareState;
pub use saving::{Frozen, KeepDisks};
pub use viv_arch::saved::MachineSaved;
pub use viv_block::{Preserved, Shortage};
pub use viv_cpu::kvm::{KvmReport, KvmWorth, probe_kvm};
pub use viv_cpu::soft::{KeptCode, KeptMark, PerfMap, SoftStats as SoftCounts};
pub use viv_devices::virtio::GuestMemoryStats;
pub use viv_mem::{Arrival, Check, SavedMemory};
