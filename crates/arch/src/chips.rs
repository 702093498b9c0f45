//! The saved state of a PC's classic chips, as plain data.
//!
//! Times are nanoseconds on the guest's clock, which goes on where it stood when a machine is restored.
//! What the data sheets name has their names; the forms of PIC, IOAPIC and PIT hold what KVM's
//! `kvm_pic_state`, `kvm_ioapic_state` and `kvm_pit_state2` hold. The local APIC has none here: it is the
//! register page in [`crate::x86::CpuState::lapic`] with two of its MSRs.
use serde::{Deserialize, Serialize};

/// 16550A (PC16550D).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UartSaved {
    /// Receiver FIFO, oldest first.
    pub receiver: Vec<u8>,
    /// Bytes sent that the machine has not yet collected, oldest first.
    pub wire: Vec<u8>,
    /// Interrupt enable register.
    pub ier: u8,
    /// FIFO control register: the enable bit and the trigger level.
    pub fcr: u8,
    /// Line control register.
    pub lcr: u8,
    /// Modem control register.
    pub mcr: u8,
    /// Scratch register.
    pub scr: u8,
    /// Divisor latch.
    pub divisor: u16,
    /// The overrun bit of the line status register.
    pub overrun: bool,
    /// Modem status register, with the changes not yet read.
    pub msr: u8,
    /// The transmitter-empty interrupt has not been answered.
    pub empty_pending: bool,
    /// Input has come since the guest last found no interrupt pending.
    pub burst: bool,
    /// Since when the receiver FIFO has been empty after it, ns.
    pub emptied: Option<u64>,
}

/// MC146818 with its CMOS memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcSaved {
    /// The index register.
    pub index: u8,
    /// The 128 bytes of memory; those of the time and of registers C and D mean nothing.
    pub cmos: Vec<u8>,
    /// Seconds since 1970 at the guest's time 0, by this clock.
    pub start_s: i64,
    /// The rest of it, 0 to 999,999,999 ns.
    pub start_ns: u32,
    /// The time shown, while the SET bit stops the updates.
    pub stopped: Option<CalendarSaved>,
    /// The flags of register C.
    pub flags: u8,
    /// Up to here events have been counted, ns.
    pub watched: u64,
}

/// A moment on the calendar, as the registers hold it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalendarSaved {
    /// With the century.
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 is Sunday.
    pub weekday: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

/// 8042.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042Saved {
    /// The controller's 32 bytes of memory; the first is the configuration.
    pub ram: Vec<u8>,
    /// The output port.
    pub output_port: u8,
    /// The command that waits for its data byte, or 0.
    pub command: u8,
    /// Status register: command/data and system flag bits.
    pub status: u8,
    /// Waiting answers, oldest first: the byte, and whether it reports a time-out.
    pub answers: Vec<(u8, bool)>,
    /// The last byte read.
    pub last: u8,
}

/// One 8259A.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicSaved {
    /// Levels of the inputs (KVM: `last_irr`).
    pub lines: u8,
    /// Interrupt request register.
    pub irr: u8,
    /// In-service register.
    pub isr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// Edge/level control register.
    pub elcr: u8,
    /// The input with the highest priority (KVM: `priority_add`).
    pub highest: u8,
    /// Vector of input 0 (KVM: `irq_base`).
    pub vector_base: u8,
    /// The initialization word that comes next, 2 to 4, or 0.
    pub init_state: u8,
    /// The first initialization word.
    pub icw1: u8,
    /// Automatic end of interrupt.
    pub auto_eoi: bool,
    /// Rotation in automatic end of interrupt.
    pub rotate_on_auto_eoi: bool,
    /// Special fully nested mode.
    pub special_fully_nested: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// The next read is a poll.
    pub poll: bool,
    /// A read of the command port gives the in-service register.
    pub read_isr: bool,
}

/// 8254 with port 0x61.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitSaved {
    /// The three counters.
    pub channels: [PitChannelSaved; 3],
    /// The bits of port 0x61 that can be written.
    pub port_b: u8,
    /// Edges of channel 0 that the machine has taken.
    pub taken: u64,
    /// Edges of channel 0 that fell together with another.
    pub missed: u64,
}

/// One counter of an 8254. Its clock ticks at 1.193182 MHz from the guest's time 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitChannelSaved {
    /// Mode, 0 to 5.
    pub mode: u8,
    /// Decimal counting.
    pub bcd: bool,
    /// Bytes that are read and written: 1 low, 2 high, 3 both.
    pub access: u8,
    /// The low byte of a count that waits for its high byte.
    pub low_written: Option<u8>,
    /// The next read gives the high byte.
    pub high_next: bool,
    /// A latched count.
    pub latched: Option<u16>,
    /// A latched status.
    pub status: Option<u8>,
    /// The count as written.
    pub count: u16,
    /// The count that follows it.
    pub next: Option<u16>,
    /// The tick at which the count was full, if it counts.
    pub since: Option<u64>,
    /// Ticks counted when the gate stopped it, if it did.
    pub held: Option<u64>,
    /// The gate.
    pub gate: bool,
    /// Up to this tick the edges have been counted.
    pub watched: u64,
    /// Rising edges of the output.
    pub edges: u64,
}

/// 82093AA.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicSaved {
    /// The register select register.
    pub select: u8,
    /// The ID register.
    pub id: u32,
    /// Levels of the inputs, a bit each (KVM: `irr`).
    pub lines: u32,
    /// The 24 redirection entries.
    pub entries: Vec<u64>,
}

/// ACPI fixed hardware (ACPI 6.5 §4.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PmSaved {
    /// PM1 status register.
    pub status: u16,
    /// PM1 enable register.
    pub enable: u16,
    /// PM1 control register.
    pub control: u16,
    /// General-purpose event status.
    pub gpe_status: u16,
    /// General-purpose event enable.
    pub gpe_enable: u16,
    /// Up to here the timer's top bit has been watched, ns.
    pub watched: u64,
}

/// The registers of PCI's slots, a bit for each slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotsSaved {
    /// Where a device came.
    pub came: u32,
    /// Whose device shall go.
    pub go: u32,
}
