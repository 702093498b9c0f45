//! 8254 interval timer (Intel 8254 data sheet, 231164-005) with port 0x61 (PC/AT Technical Reference,
//! "System Control Port B"): channel 0 drives IRQ 0, channel 2 the speaker.
//!
//! Nothing counts by itself: each channel remembers when it was started, on the 1.193182 MHz clock, and
//! computes count and output from `now`. Two windows: ports 0x40-0x43 and port 0x61.

mod channel;

use super::{read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};
use channel::{Channel, Ticks, ns_of, ticks};
use viv_arch::chips::PitSaved;

/// The window of ports 0x40 to 0x43.
pub const TIMER_WINDOW: u8 = 0;
/// The window of port 0x61.
pub const PORT_B_WINDOW: u8 = 1;
/// The clock of all channels, Hz.
pub const CLOCK_HZ: u64 = 1_193_182;
/// Channel 0 does not ask for the host more often than this; faster edges are counted together.
pub const EDGE_INTERVAL_NS_MIN: Ns = 50_000;

/// Port 0x61 bits ("System Control Port B").
mod port_b {
    pub(super) const GATE2: u8 = 1 << 0;
    pub(super) const WRITABLE: u8 = 0x0f;
    pub(super) const REFRESH: u8 = 1 << 4;
    pub(super) const OUTPUT2: u8 = 1 << 5;
}
/// The refresh bit toggles with each refresh request, every 15.085 us.
const REFRESH_NS: Ns = 15_085;

/// Control word fields (8254 "Control word format").
const LATCH: u8 = 0;
/// Read-back command: channel field 3 (8254 "Read-back command").
const READ_BACK: u8 = 3;

/// The timer with its port 0x61.
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    port_b: u8,
    taken: u64,
    missed: u64,
}

impl Default for Pit {
    fn default() -> Pit {
        Pit::new()
    }
}

impl Pit {
    /// The timer after power-on: nothing counts (8254 "Programming the 8254").
    pub fn new() -> Pit {
        Pit {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            port_b: 0,
            taken: 0,
            missed: 0,
        }
    }

    /// Takes the rising edges of channel 0's output since the last call. The machine pulses IRQ 0 once for
    /// any number of them, as the interrupt controller would have seen them; the others count as
    /// [`Pit::missed`].
    pub fn take_edges(&mut self) -> u64 {
        let edges = self.channels[0].edges.saturating_sub(self.taken);
        self.taken = self.channels[0].edges;
        self.missed = self.missed.saturating_add(edges.saturating_sub(1));
        edges
    }

    /// Edges of channel 0 that fell together with another.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    fn advance(&mut self, now: Ns) -> Ticks {
        let at = ticks(now);
        self.channels.iter_mut().for_each(|channel| channel.advance(at));
        at
    }

    fn write_timer(&mut self, offset: u64, value: u8, at: Ticks) {
        if offset < 3 {
            self.channels[offset as usize].write_count(value, at);
            return;
        }
        match value >> 6 {
            READ_BACK => {
                for (index, channel) in self.channels.iter_mut().enumerate() {
                    if value & (2 << index) == 0 {
                        continue;
                    }
                    if value & 0x20 == 0 {
                        channel.latch_count(at);
                    }
                    if value & 0x10 == 0 {
                        channel.latch_status(at);
                    }
                }
            }
            index => {
                let channel = &mut self.channels[usize::from(index)];
                if value >> 4 & 3 == LATCH {
                    channel.latch_count(at);
                } else {
                    channel.write_control(value);
                }
            }
        }
    }

    fn read_port_b(&self, now: Ns) -> u8 {
        let mut value = self.port_b;
        if now / REFRESH_NS % 2 == 1 {
            value |= port_b::REFRESH;
        }
        if self.channels[2].output(ticks(now)) {
            value |= port_b::OUTPUT2;
        }
        value
    }

    /// The whole state.
    pub fn save(&self) -> PitSaved {
        PitSaved {
            channels: [self.channels[0].save(), self.channels[1].save(), self.channels[2].save()],
            port_b: self.port_b,
            taken: self.taken,
            missed: self.missed,
        }
    }

    /// Replaces the whole state; what no chip can hold is cut off.
    pub fn load(&mut self, saved: &PitSaved) {
        self.channels.iter_mut().zip(&saved.channels).for_each(|(channel, saved)| channel.load(saved));
        self.port_b = saved.port_b & port_b::WRITABLE;
        self.taken = saved.taken.min(self.channels[0].edges);
        self.missed = saved.missed;
    }
}

impl BusDevice for Pit {
    fn read(&mut self, access: Access, now: Ns) -> u64 {
        let at = self.advance(now);
        read_byte_lanes(access, |offset| match (access.window, offset) {
            (TIMER_WINDOW, 0..=2) => self.channels[offset as usize].read(at),
            (PORT_B_WINDOW, 0) => self.read_port_b(now),
            _ => 0xff,
        })
    }

    fn write(&mut self, access: Access, value: u64, now: Ns) {
        let at = self.advance(now);
        write_byte_lanes(access, value, |offset, byte| match (access.window, offset) {
            (TIMER_WINDOW, 0..=3) => self.write_timer(offset, byte, at),
            (PORT_B_WINDOW, 0) => {
                self.port_b = byte & port_b::WRITABLE;
                self.channels[2].set_gate(byte & port_b::GATE2 != 0, at);
            }
            _ => {}
        });
    }

    /// Whether an edge of channel 0 waits to be taken with [`Pit::take_edges`].
    fn irq(&self) -> bool {
        self.channels[0].edges != self.taken
    }

    fn deadline(&self) -> Option<Ns> {
        let channel = &self.channels[0];
        let due = ns_of(channel.next_edge()?);
        let earliest = ns_of(channel.watched).saturating_add(EDGE_INTERVAL_NS_MIN);
        let repeats = matches!(channel.mode, 2 | 3);
        Some(if repeats && due < earliest && channel.length() < 64 { earliest } else { due })
    }

    fn tick(&mut self, now: Ns) {
        self.advance(now);
    }

    fn reset(&mut self) {
        let watched = self.channels[0].watched;
        let missed = self.missed;
        *self = Pit { missed, ..Pit::new() };
        self.channels.iter_mut().for_each(|channel| channel.watched = watched);
    }
}

#[cfg(test)]
mod tests;
