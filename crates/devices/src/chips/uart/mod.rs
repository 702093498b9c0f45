//! 16550A serial port (National Semiconductor PC16550D, June 1995): bytes in, bytes out, one interrupt line.
//!
//! The line has no speed: a byte that the guest sends is on the wire at once, and a character timeout
//! follows at once on any byte that is left below the trigger level. The machine drains
//! [`Uart::transmitted`] after each write and offers input with [`Uart::receive`] while
//! [`Uart::ready_for_input`] holds: so neither the kernel's FIFO resets nor a slow guest lose a byte, and
//! each burst of input is an interrupt of its own. On an endless line an interrupt handler would never find
//! the FIFO empty, give up in the end, and then wait for an edge that has already been.

use super::{read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};
use std::collections::VecDeque;
use viv_arch::chips::UartSaved;

/// Registers by offset (PC16550D table II).
mod reg {
    /// Receiver buffer and transmitter holding register; divisor latch, low byte, when DLAB is set.
    pub(super) const DATA: u64 = 0;
    /// Interrupt enable; divisor latch, high byte, when DLAB is set.
    pub(super) const IER: u64 = 1;
    /// Interrupt identification (read), FIFO control (write).
    pub(super) const IIR_FCR: u64 = 2;
    /// Line control.
    pub(super) const LCR: u64 = 3;
    /// Modem control.
    pub(super) const MCR: u64 = 4;
    /// Line status.
    pub(super) const LSR: u64 = 5;
    /// Modem status.
    pub(super) const MSR: u64 = 6;
    /// Scratch.
    pub(super) const SCR: u64 = 7;
}

/// Interrupt enable bits (PC16550D §8.6).
mod ier {
    pub(super) const RECEIVED_DATA: u8 = 1 << 0;
    pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 1;
    pub(super) const LINE_STATUS: u8 = 1 << 2;
    pub(super) const MODEM_STATUS: u8 = 1 << 3;
    pub(super) const ALL: u8 = 0x0f;
}

/// Interrupt identification codes (PC16550D §8.5, table IV).
mod iir {
    pub(super) const NONE: u8 = 0x01;
    pub(super) const MODEM_STATUS: u8 = 0x00;
    pub(super) const TRANSMITTER_EMPTY: u8 = 0x02;
    pub(super) const RECEIVED_DATA: u8 = 0x04;
    pub(super) const LINE_STATUS: u8 = 0x06;
    pub(super) const CHARACTER_TIMEOUT: u8 = 0x0c;
    pub(super) const FIFOS_ENABLED: u8 = 0xc0;
}

/// FIFO control bits (PC16550D §8.4).
mod fcr {
    pub(super) const ENABLE: u8 = 1 << 0;
    pub(super) const RESET_RECEIVER: u8 = 1 << 1;
    /// Receiver trigger levels for bits 7 and 6.
    pub(super) const TRIGGER_LEVELS: [usize; 4] = [1, 4, 8, 14];
}

/// Line control: divisor latch access (PC16550D §8.1).
const LCR_DLAB: u8 = 1 << 7;
/// Line control after reset is zero; 8 data bits when the guest asks (PC16550D §8.1).
const LCR_RESET: u8 = 0;

/// Modem control bits (PC16550D §8.7).
mod mcr {
    pub(super) const DTR: u8 = 1 << 0;
    pub(super) const RTS: u8 = 1 << 1;
    pub(super) const OUT1: u8 = 1 << 2;
    /// On a PC this pin opens the gate between the chip's interrupt and the interrupt controller.
    pub(super) const OUT2: u8 = 1 << 3;
    pub(super) const LOOPBACK: u8 = 1 << 4;
    pub(super) const ALL: u8 = 0x1f;
}

/// Line status bits (PC16550D §8.3).
mod lsr {
    pub(super) const DATA_READY: u8 = 1 << 0;
    pub(super) const OVERRUN: u8 = 1 << 1;
    pub(super) const HOLDING_EMPTY: u8 = 1 << 5;
    pub(super) const TRANSMITTER_EMPTY: u8 = 1 << 6;
}

/// Modem status bits (PC16550D §8.8).
mod msr {
    pub(super) const TRAILING_RING: u8 = 1 << 2;
    pub(super) const CTS: u8 = 1 << 4;
    pub(super) const DSR: u8 = 1 << 5;
    pub(super) const RING: u8 = 1 << 6;
    pub(super) const DCD: u8 = 1 << 7;
}

/// Bytes in each FIFO (PC16550D §1.0).
pub const FIFO_LEN: usize = 16;
/// Most bytes on the wire that the machine has not yet collected; beyond them the transmitter is busy.
pub const WIRE_LEN_MAX: usize = 64;

/// A driver that has emptied the FIFO and does not ask for the cause of the interrupt gets more input after
/// this time (that of 11 characters at 115,200 bit/s).
const QUIET_NS: Ns = 1_000_000;

/// A 16550A. One window of 8 ports.
#[derive(Clone, Debug)]
pub struct Uart {
    rx: VecDeque<u8>,
    wire: VecDeque<u8>,
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    fifos: bool,
    trigger: usize,
    overrun: bool,
    /// Input lines of the modem status, high nibble, as last seen.
    modem_lines: u8,
    /// Changes of them since the last read, low nibble.
    modem_delta: u8,
    /// The transmitter-empty interrupt has not been answered yet.
    empty_pending: bool,
    /// Input has come since the guest last found no interrupt pending.
    burst: bool,
    /// Since when the FIFO has been empty after it.
    emptied: Option<Ns>,
}

impl Default for Uart {
    fn default() -> Uart {
        Uart::new()
    }
}

impl Uart {
    /// A port after power-on with a terminal connected (CTS, DSR and DCD are on).
    pub fn new() -> Uart {
        let mut uart = Uart {
            rx: VecDeque::with_capacity(FIFO_LEN),
            wire: VecDeque::with_capacity(WIRE_LEN_MAX),
            ier: 0,
            lcr: LCR_RESET,
            mcr: 0,
            scratch: 0,
            divisor: 12,
            fifos: false,
            trigger: 1,
            overrun: false,
            modem_lines: 0,
            modem_delta: 0,
            empty_pending: false,
            burst: false,
            emptied: None,
        };
        uart.modem_lines = uart.lines_now();
        uart
    }

    /// Takes bytes from the line into the receiver and returns how many fitted. It takes none in loopback
    /// mode, where the input pin is disconnected (PC16550D §8.7): offer them again later.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        if self.loopback() {
            return 0;
        }
        let room = self.depth().saturating_sub(self.rx.len());
        let taken = bytes.len().min(room);
        self.rx.extend(bytes.iter().take(taken));
        if taken > 0 {
            (self.burst, self.emptied) = (true, None);
        }
        taken
    }

    /// Whether input given now reaches the guest's driver as an interrupt: it has enabled that, so its FIFO
    /// resets are over, there is room, and it is done with the last burst. Earlier input waits in the machine.
    pub fn ready_for_input(&self) -> bool {
        // A driver that looks for the chip sets every enable bit for a moment, with the FIFOs off: what it reads
        // then is lost.
        let probes = self.ier == ier::ALL && !self.fifos;
        let gate = self.mcr & (mcr::OUT2 | mcr::LOOPBACK) == mcr::OUT2;
        let listens = self.ier & ier::RECEIVED_DATA != 0 && gate && !probes;
        listens && !self.burst && self.rx.len() < self.depth()
    }

    /// Takes the bytes that the guest has sent.
    pub fn transmitted(&mut self) -> Vec<u8> {
        let was_full = self.wire.len() >= WIRE_LEN_MAX;
        let bytes = self.wire.drain(..).collect();
        if was_full {
            self.empty_pending = true;
        }
        bytes
    }

    /// Whether the guest has sent bytes that [`Uart::transmitted`] has not yet given out.
    pub fn has_transmitted(&self) -> bool {
        !self.wire.is_empty()
    }

    fn loopback(&self) -> bool {
        self.mcr & mcr::LOOPBACK != 0
    }

    fn depth(&self) -> usize {
        if self.fifos { FIFO_LEN } else { 1 }
    }

    fn holding_empty(&self) -> bool {
        self.wire.len() < WIRE_LEN_MAX
    }

    /// The modem's input lines: the peer's, or our own outputs in loopback (PC16550D §8.7).
    fn lines_now(&self) -> u8 {
        if !self.loopback() {
            return msr::CTS | msr::DSR | msr::DCD;
        }
        [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RING), (mcr::OUT2, msr::DCD)]
            .into_iter()
            .filter(|(output, _)| self.mcr & output != 0)
            .fold(0, |lines, (_, input)| lines | input)
    }

    fn update_modem_lines(&mut self) {
        let lines = self.lines_now();
        let changed = lines ^ self.modem_lines;
        // The ring indicator reports only its trailing edge (PC16550D §8.8).
        let mut delta = (changed >> 4) & !msr::TRAILING_RING;
        if changed & msr::RING != 0 && lines & msr::RING == 0 {
            delta |= msr::TRAILING_RING;
        }
        self.modem_delta |= delta;
        self.modem_lines = lines;
    }

    /// The highest cause that is pending and enabled (PC16550D table IV).
    fn cause(&self) -> u8 {
        let enabled = |bit| self.ier & bit != 0;
        if enabled(ier::LINE_STATUS) && self.overrun {
            iir::LINE_STATUS
        } else if enabled(ier::RECEIVED_DATA) && !self.rx.is_empty() {
            let trigger = if self.fifos { self.trigger } else { 1 };
            if self.rx.len() >= trigger { iir::RECEIVED_DATA } else { iir::CHARACTER_TIMEOUT }
        } else if enabled(ier::TRANSMITTER_EMPTY) && self.empty_pending && self.holding_empty() {
            iir::TRANSMITTER_EMPTY
        } else if enabled(ier::MODEM_STATUS) && self.modem_delta != 0 {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    fn send(&mut self, byte: u8) {
        if self.loopback() {
            if self.rx.len() < self.depth() {
                self.rx.push_back(byte);
            } else {
                // Without FIFOs the new character destroys the old one, with them it is lost itself (§8.3).
                self.overrun = true;
                if !self.fifos {
                    self.rx.clear();
                    self.rx.push_back(byte);
                }
            }
        } else if self.wire.len() < WIRE_LEN_MAX {
            self.wire.push_back(byte);
        }
        self.empty_pending = true;
    }

    /// Notes when the guest has taken all of a burst.
    fn watch_fifo(&mut self, now: Ns) {
        if !self.burst || !self.rx.is_empty() {
            self.emptied = None;
        } else if self.emptied.is_none() {
            self.emptied = Some(now);
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let dlab = self.lcr & LCR_DLAB != 0;
        match offset {
            reg::DATA if dlab => self.divisor as u8,
            reg::DATA => self.rx.pop_front().unwrap_or(0),
            reg::IER if dlab => (self.divisor >> 8) as u8,
            reg::IER => self.ier,
            reg::IIR_FCR => {
                let cause = self.cause();
                match cause {
                    iir::TRANSMITTER_EMPTY => self.empty_pending = false,
                    iir::NONE => self.burst = false,
                    _ => {}
                }
                cause | if self.fifos { iir::FIFOS_ENABLED } else { 0 }
            }
            reg::LCR => self.lcr,
            reg::MCR => self.mcr,
            reg::LSR => {
                let mut status = 0;
                if !self.rx.is_empty() {
                    status |= lsr::DATA_READY;
                }
                if std::mem::take(&mut self.overrun) {
                    status |= lsr::OVERRUN;
                }
                if self.holding_empty() {
                    status |= lsr::HOLDING_EMPTY | lsr::TRANSMITTER_EMPTY;
                }
                status
            }
            reg::MSR => self.modem_lines | std::mem::take(&mut self.modem_delta),
            reg::SCR => self.scratch,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let dlab = self.lcr & LCR_DLAB != 0;
        match offset {
            reg::DATA if dlab => self.divisor = self.divisor & 0xff00 | u16::from(value),
            reg::DATA => self.send(value),
            reg::IER if dlab => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            reg::IER => {
                let enabled = value & !self.ier;
                self.ier = value & ier::ALL;
                // Enabling the interrupt with an empty holding register raises it at once (§8.6).
                if enabled & ier::TRANSMITTER_EMPTY != 0 && self.holding_empty() {
                    self.empty_pending = true;
                }
            }
            reg::IIR_FCR => {
                let fifos = value & fcr::ENABLE != 0;
                // Switching FIFO mode resets both FIFOs (§8.4). What was sent is on the wire already. Bytes that came
                // while the FIFOs were off stay, other than on the chip: Linux enables the interrupt just before it
                // switches them on, and our input does not come at a person's pace, so that the two would meet.
                if self.fifos && !fifos || fifos && value & fcr::RESET_RECEIVER != 0 {
                    self.rx.clear();
                }
                self.fifos = fifos;
                if fifos {
                    self.trigger = fcr::TRIGGER_LEVELS[usize::from(value >> 6)];
                }
            }
            reg::LCR => self.lcr = value,
            reg::MCR => {
                self.mcr = value & mcr::ALL;
                self.update_modem_lines();
            }
            reg::SCR => self.scratch = value,
            // Line and modem status are for reading; the factory test writes them (§8.3, §8.8).
            _ => {}
        }
    }

    /// The whole state.
    pub fn save(&self) -> UartSaved {
        let level = fcr::TRIGGER_LEVELS.iter().position(|level| *level == self.trigger).unwrap_or(0);
        UartSaved {
            receiver: self.rx.iter().copied().collect(),
            wire: self.wire.iter().copied().collect(),
            ier: self.ier,
            fcr: (level as u8) << 6 | u8::from(self.fifos),
            lcr: self.lcr,
            mcr: self.mcr,
            scr: self.scratch,
            divisor: self.divisor,
            overrun: self.overrun,
            msr: self.modem_lines | self.modem_delta,
            empty_pending: self.empty_pending,
            burst: self.burst,
            emptied: self.emptied,
        }
    }

    /// Replaces the whole state; what no chip can hold is cut off.
    pub fn load(&mut self, saved: &UartSaved) {
        self.ier = saved.ier & ier::ALL;
        self.fifos = saved.fcr & fcr::ENABLE != 0;
        self.trigger = fcr::TRIGGER_LEVELS[usize::from(saved.fcr >> 6)];
        self.rx = saved.receiver.iter().copied().take(self.depth()).collect();
        self.wire = saved.wire.iter().copied().take(WIRE_LEN_MAX).collect();
        self.lcr = saved.lcr;
        self.mcr = saved.mcr & mcr::ALL;
        self.scratch = saved.scr;
        self.divisor = saved.divisor;
        self.overrun = saved.overrun;
        self.modem_lines = self.lines_now();
        self.modem_delta = saved.msr & 0x0f;
        self.empty_pending = saved.empty_pending;
        self.burst = saved.burst;
        self.emptied = saved.emptied;
    }
}

impl BusDevice for Uart {
    fn read(&mut self, access: Access, now: Ns) -> u64 {
        let value = read_byte_lanes(access, |offset| self.read_register(offset));
        self.watch_fifo(now);
        value
    }

    fn write(&mut self, access: Access, value: u64, now: Ns) {
        write_byte_lanes(access, value, |offset, byte| self.write_register(offset, byte));
        self.watch_fifo(now);
    }

    /// High for an enabled cause while OUT2 opens the gate; loopback forces OUT2's pin inactive (§8.7).
    fn irq(&self) -> bool {
        self.mcr & (mcr::OUT2 | mcr::LOOPBACK) == mcr::OUT2 && self.cause() != iir::NONE
    }

    fn deadline(&self) -> Option<Ns> {
        self.emptied?.checked_add(QUIET_NS)
    }

    fn tick(&mut self, now: Ns) {
        if self.deadline().is_some_and(|due| due <= now) {
            self.burst = false;
        }
        self.watch_fifo(now);
    }

    /// Master reset (PC16550D table III). Bytes on the wire have left the chip.
    fn reset(&mut self) {
        let wire = std::mem::take(&mut self.wire);
        *self = Uart::new();
        self.wire = wire;
    }
}

#[cfg(test)]
mod tests;
