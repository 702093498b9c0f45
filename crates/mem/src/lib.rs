//! Guest memory: the machine's RAM as one object, and the three kinds of address as three types.
//!
//! RAM is memory of this process, above a snapshot's file if it came from one; KVM, the software CPU and every
//! device see the same bytes. Reads and writes that other vCPUs may race with go through volatile or atomic accesses: a guest
//! can make data stale, never make this process misbehave.
//!
//! Most of the project's `unsafe` lives here, behind safe calls that check every range.

mod address;
mod arrival;
mod code;
mod frozen;
mod guest;
mod mapping;
mod origin;

pub use address::{Gpa, Gva, PAGE_SIZE};
pub use arrival::Arrival;
pub use code::CodeMap;
pub use frozen::FrozenMemory;
pub use guest::{GuestMemory, HostRange, MemError, ReadSaved, Region, SavedMemory};
pub use origin::Check;
