//! The classic chips of a PC: registers in, lines and messages out. A file each; the constants of a chip
//! stand at the head of its file with the section of the document that defines them.
//!
//! ```text
//!  uart rtc pit pm i8042 ── irq() ──► pic ── output() ─────────┐
//!        │                                                      ▼
//!        └────── set_line ──► ioapic ── messages() ── route ──► lapic (one per vCPU) ──► pending()
//! ```
//! Each answers every access in the way of the hardware: reserved bits read as defined, wide accesses to
//! 8-bit chips are split as the bus splits them, and nothing that a guest sends makes a queue grow
//! without a bound.

pub mod i8042;
pub mod ioapic;
pub mod lapic;
pub mod message;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod pvpanic;
pub mod rtc;
mod saved;
pub mod slots;
pub mod uart;

pub use saved::SavedChip;

use crate::Access;

/// Nanoseconds in a second.
pub(crate) const NS_PER_S: u64 = 1_000_000_000;

/// A wide read of an 8-bit chip: the bus makes one cycle for each byte, lowest address first.
pub(crate) fn read_byte_lanes(access: Access, mut read: impl FnMut(u64) -> u8) -> u64 {
    let lanes = u64::from(access.size.min(8));
    (0..lanes).fold(0, |value, lane| value | u64::from(read(access.offset.wrapping_add(lane))) << (8 * lane))
}

/// A wide write to an 8-bit chip, likewise.
pub(crate) fn write_byte_lanes(access: Access, value: u64, mut write: impl FnMut(u64, u8)) {
    for lane in 0..u64::from(access.size.min(8)) {
        write(access.offset.wrapping_add(lane), (value >> (8 * lane)) as u8);
    }
}
