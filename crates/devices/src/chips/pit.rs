//! 8254 interval timer (Intel 8254 data sheet, 231164-005) with port 0x61 (PC/AT Technical Reference,
//! "System Control Port B"): channel 0 drives IRQ 0, channel 2 the speaker.
//!
//! Nothing counts by itself: each channel remembers when it was started, on the 1.193182 MHz clock, and
//! computes count and output from `now`. Two windows: ports 0x40-0x43 and port 0x61.

use super::{NS_PER_S, read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};

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

/// Ticks of the clock since power-on.
type Ticks = u64;

fn ticks(now: Ns) -> Ticks {
    (u128::from(now) * u128::from(CLOCK_HZ) / u128::from(NS_PER_S)) as Ticks
}

/// The first nanosecond at which `at` ticks have passed.
fn ns_of(at: Ticks) -> Ns {
    Ns::try_from((u128::from(at) * u128::from(NS_PER_S)).div_ceil(u128::from(CLOCK_HZ))).unwrap_or(Ns::MAX)
}

/// Whether and since when a channel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// No count or no trigger yet.
    Idle,
    /// Counting; the count was full at this tick.
    Since(Ticks),
    /// Held by the gate after so many ticks.
    Held(Ticks),
}

/// One counter.
#[derive(Clone, Debug)]
struct Channel {
    mode: u8,
    bcd: bool,
    /// Which bytes are written and read: 1 low, 2 high, 3 low then high.
    access: u8,
    low_written: Option<u8>,
    high_next: bool,
    latched: Option<u16>,
    status: Option<u8>,
    /// The count as written; 0 stands for the largest.
    count: u16,
    /// Takes the place of `count` at the end of the period (modes 2 and 3) or at the trigger (1 and 5).
    next: Option<u16>,
    run: Run,
    gate: bool,
    /// Up to this tick the rising edges have been counted.
    watched: Ticks,
    /// Rising edges of the output since power-on.
    edges: u64,
}

impl Channel {
    fn new(gate: bool) -> Channel {
        Channel {
            mode: 0,
            bcd: false,
            access: 3,
            low_written: None,
            high_next: false,
            latched: None,
            status: None,
            count: 0,
            next: None,
            run: Run::Idle,
            gate,
            watched: 0,
            edges: 0,
        }
    }

    /// How far the counter counts before it wraps.
    fn modulus(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// The number that `count` stands for, at least 1.
    fn length_of(&self, count: u16) -> u64 {
        let value = if self.bcd {
            (0..4).rev().fold(0, |value, digit| value * 10 + u64::from(count >> (4 * digit) & 0xf))
        } else {
            u64::from(count)
        };
        if value == 0 { self.modulus() } else { value }
    }

    fn length(&self) -> u64 {
        // A count of 1 is illegal where there are periods (8254 "Mode 2").
        self.length_of(self.count).max(if matches!(self.mode, 2 | 3) { 2 } else { 1 })
    }

    fn elapsed(&self, at: Ticks) -> Option<Ticks> {
        match self.run {
            Run::Idle => None,
            Run::Since(start) => Some(at.saturating_sub(start)),
            Run::Held(elapsed) => Some(elapsed),
        }
    }

    /// The counter as the guest reads it.
    fn counter(&self, at: Ticks) -> u16 {
        let length = self.length();
        let Some(elapsed) = self.elapsed(at) else { return self.count };
        let value = match self.mode {
            2 => length - elapsed % length,
            // Counts down by two, twice per period (8254 "Mode 3").
            3 => {
                let phase = elapsed % length;
                let high = length.div_ceil(2);
                let into = if phase < high { phase } else { phase - high };
                (length & !1).saturating_sub(2 * into).max(2)
            }
            _ => {
                let modulus = self.modulus();
                (length % modulus + modulus - elapsed % modulus) % modulus
            }
        };
        self.encode(value)
    }

    fn encode(&self, value: u64) -> u16 {
        if !self.bcd {
            return value as u16;
        }
        (0..4).fold(0, |encoded, digit| encoded | ((value / 10u64.pow(digit) % 10) as u16) << (4 * digit))
    }

    /// The OUT pin (8254 "Mode definitions").
    fn output(&self, at: Ticks) -> bool {
        let length = self.length();
        let Some(elapsed) = self.elapsed(at) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => elapsed >= length,
            2 => matches!(self.run, Run::Held(_)) || elapsed % length != length - 1,
            3 => matches!(self.run, Run::Held(_)) || elapsed % length < length.div_ceil(2),
            _ => elapsed != length,
        }
    }

    /// Rising edges of OUT in a run after `elapsed` ticks.
    fn edges_after(&self, elapsed: Ticks) -> u64 {
        let length = self.length();
        match self.mode {
            0 | 1 => u64::from(elapsed >= length),
            2 | 3 => elapsed / length,
            _ => u64::from(elapsed > length),
        }
    }

    /// The tick of the next rising edge after what was watched.
    fn next_edge(&self) -> Option<Ticks> {
        let Run::Since(start) = self.run else { return None };
        let length = self.length();
        let elapsed = self.watched.saturating_sub(start);
        let edge = match self.mode {
            2 | 3 => (elapsed / length + 1) * length,
            0 | 1 => length,
            _ => length + 1,
        };
        (edge > elapsed || self.watched < start).then(|| start.saturating_add(edge))
    }

    /// Counts the edges up to `at` and takes over a new count at the end of a period.
    fn advance(&mut self, at: Ticks) {
        if at <= self.watched {
            return;
        }
        if let Run::Since(start) = self.run {
            let before = self.watched.saturating_sub(start);
            let after = at.saturating_sub(start);
            let length = self.length();
            let period_end = (before / length + 1) * length;
            if let (2 | 3, Some(next)) = (self.mode, self.next)
                && after >= period_end
            {
                self.edges += 1;
                self.count = next;
                self.next = None;
                self.run = Run::Since(start.saturating_add(period_end));
                self.edges += self.edges_after(after - period_end);
            } else {
                self.edges += self.edges_after(after) - self.edges_after(before);
            }
        }
        self.watched = at;
    }

    fn write_control(&mut self, value: u8) {
        self.access = value >> 4 & 3;
        // Modes 6 and 7 are 2 and 3 (8254 "Control word format": don't care bit).
        self.mode = match value >> 1 & 7 {
            mode @ 0..=5 => mode,
            mode => mode - 4,
        };
        self.bcd = value & 1 != 0;
        self.low_written = None;
        self.high_next = false;
        self.latched = None;
        self.status = None;
        self.next = None;
        self.run = Run::Idle;
    }

    fn write_count(&mut self, value: u8, at: Ticks) {
        let count = match (self.access, self.low_written.take()) {
            (1, _) => u16::from(value),
            (2, _) => u16::from(value) << 8,
            (_, None) => {
                self.low_written = Some(value);
                if self.mode == 0 {
                    // Writing the first byte stops the counting (8254 "Mode 0").
                    self.run = Run::Idle;
                }
                return;
            }
            (_, Some(low)) => u16::from(low) | u16::from(value) << 8,
        };
        // The count is loaded with the next clock pulse.
        let start = at.saturating_add(1);
        match self.mode {
            0 | 4 => {
                self.count = count;
                self.run = if self.gate { Run::Since(start) } else { Run::Held(0) };
            }
            2 | 3 if self.run == Run::Idle => {
                self.count = count;
                self.run = if self.gate { Run::Since(start) } else { Run::Held(0) };
            }
            2 | 3 => self.next = Some(count),
            _ if self.run == Run::Idle => self.count = count,
            _ => self.next = Some(count),
        }
        if matches!(self.mode, 1 | 5) && self.run == Run::Idle {
            self.next = Some(count);
        }
    }

    /// The gate input (8254 "Gate pin operations summary").
    fn set_gate(&mut self, gate: bool, at: Ticks) {
        let rising = gate && !self.gate;
        let falling = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            0 | 4 => match self.run {
                Run::Since(start) if falling => self.run = Run::Held(at.saturating_sub(start)),
                Run::Held(elapsed) if rising => self.run = Run::Since(at.saturating_sub(elapsed)),
                _ => {}
            },
            2 | 3 if self.run != Run::Idle => {
                if falling {
                    self.run = Run::Held(0);
                } else if rising {
                    self.count = self.next.take().unwrap_or(self.count);
                    self.run = Run::Since(at.saturating_add(1));
                }
            }
            1 | 5 if rising && (self.next.is_some() || self.run != Run::Idle) => {
                self.count = self.next.take().unwrap_or(self.count);
                self.run = Run::Since(at.saturating_add(1));
            }
            _ => {}
        }
    }

    fn latch_count(&mut self, at: Ticks) {
        if self.latched.is_none() {
            self.latched = Some(self.counter(at));
        }
    }

    /// Output, null count, and the control word (8254 "Status byte").
    fn latch_status(&mut self, at: Ticks) {
        if self.status.is_none() {
            let loading = matches!(self.run, Run::Since(start) if at < start);
            let null = self.run == Run::Idle || self.next.is_some() || loading;
            self.status = Some(
                u8::from(self.output(at)) << 7
                    | u8::from(null) << 6
                    | self.access << 4
                    | self.mode << 1
                    | u8::from(self.bcd),
            );
        }
    }

    fn read(&mut self, at: Ticks) -> u8 {
        if let Some(status) = self.status.take() {
            return status;
        }
        let value = self.latched.unwrap_or_else(|| self.counter(at));
        let high = match self.access {
            1 => false,
            2 => true,
            _ => {
                self.high_next = !self.high_next;
                !self.high_next
            }
        };
        if self.access != 3 || high {
            self.latched = None;
        }
        if high { (value >> 8) as u8 } else { value as u8 }
    }
}

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
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn port(offset: u64) -> Access {
        Access { window: TIMER_WINDOW, offset, size: 1 }
    }
    fn port_61() -> Access {
        Access { window: PORT_B_WINDOW, offset: 0, size: 1 }
    }
    fn program(pit: &mut Pit, control: u8, count: u16, now: Ns) {
        let channel = u64::from(control >> 6);
        pit.write(port(3), control.into(), now);
        pit.write(port(channel), (count & 0xff).into(), now);
        pit.write(port(channel), (count >> 8).into(), now);
    }
    /// The time at which `count` more ticks than at zero have passed.
    fn at(count: u64) -> Ns {
        ns_of(count)
    }

    #[test]
    fn a_rate_generator_gives_an_edge_each_period() {
        let mut pit = Pit::new();
        assert_eq!(pit.deadline(), None);
        program(&mut pit, 0x34, 11932, 0);
        assert_eq!(pit.deadline(), Some(at(11933)));
        pit.tick(at(11933));
        assert!(pit.irq());
        assert_eq!(pit.take_edges(), 1);
        assert!(!pit.irq());
        pit.tick(at(1 + 11932 * 5));
        assert_eq!((pit.take_edges(), pit.missed()), (4, 3));
        assert_eq!(pit.deadline(), Some(at(1 + 11932 * 6)));
    }

    /// The loop of Linux's quick TSC calibration.
    #[test]
    fn channel_2_counts_while_its_gate_is_open() {
        let mut pit = Pit::new();
        pit.write(port_61(), 1, 0);
        program(&mut pit, 0xb0, 0xffff, 0);
        let mut last = 0x100;
        for step in 0..200u64 {
            let now = at(1 + 256 * step);
            pit.read(port(2), now);
            let high = pit.read(port(2), now);
            assert!(high == last - 1 || last == 0x100, "{high} after {last}");
            last = high;
        }
        assert_eq!(pit.read(port_61(), at(0xffff)) & 0x20, 0);
        assert_eq!(pit.read(port_61(), at(0x10000)) & 0x20, 0x20);
    }

    #[test]
    fn terminal_count_raises_the_output_once() {
        let mut pit = Pit::new();
        program(&mut pit, 0x30, 100, 0);
        assert_eq!(pit.deadline(), Some(at(101)));
        pit.tick(at(100));
        assert!(!pit.irq());
        pit.tick(at(101));
        assert_eq!(pit.take_edges(), 1);
        assert_eq!(pit.deadline(), None);
        pit.tick(NS_PER_S * 100);
        assert!(!pit.irq());
    }

    #[test]
    fn the_gate_holds_mode_0_and_triggers_mode_1() {
        let mut pit = Pit::new();
        pit.write(port_61(), 1, 0);
        program(&mut pit, 0xb0, 1000, 0);
        pit.write(port_61(), 0, at(501));
        pit.tick(at(90_000));
        assert_eq!(pit.read(port_61(), at(90_000)) & 0x20, 0);
        pit.write(port_61(), 1, at(90_000));
        assert_eq!(pit.read(port_61(), at(90_499)) & 0x20, 0);
        assert_eq!(pit.read(port_61(), at(90_500)) & 0x20, 0x20);

        pit.write(port_61(), 0, at(100_000));
        program(&mut pit, 0xb2, 10, at(100_000));
        assert_eq!(pit.read(port_61(), at(100_100)) & 0x20, 0x20, "high until the trigger");
        pit.write(port_61(), 1, at(100_200));
        assert_eq!(pit.read(port_61(), at(100_205)) & 0x20, 0);
        assert_eq!(pit.read(port_61(), at(100_211)) & 0x20, 0x20);
    }

    #[test]
    fn a_square_wave_is_high_for_the_longer_half() {
        let mut pit = Pit::new();
        pit.write(port_61(), 1, 0);
        program(&mut pit, 0xb6, 5, 0);
        let wave: Vec<bool> = (1..11).map(|tick| pit.read(port_61(), at(tick)) & 0x20 != 0).collect();
        assert_eq!(wave, [true, true, true, false, false, true, true, true, false, false]);
    }

    #[test]
    fn a_new_count_of_a_rate_generator_waits_for_the_period() {
        let mut pit = Pit::new();
        program(&mut pit, 0x34, 1000, 0);
        pit.write(port(0), 0x58, at(500));
        pit.write(port(0), 0x02, at(500));
        assert_eq!(pit.deadline(), Some(at(1001)));
        pit.tick(at(1001));
        assert_eq!(pit.deadline(), Some(at(1601)));
    }

    #[test]
    fn read_back_latches_status_and_count() {
        let mut pit = Pit::new();
        program(&mut pit, 0x34, 0x1234, 0);
        pit.write(port(3), 0xc2, at(1));
        assert_eq!(pit.read(port(0), at(9)), 0xb4);
        assert_eq!(pit.read(port(0), at(99)), 0x34);
        assert_eq!(pit.read(port(0), at(999)), 0x12);
        pit.write(port(3), 0x00, at(0x35));
        pit.write(port(3), 0x00, at(0x1000));
        assert_eq!(pit.read(port(0), at(0x1001)), 0x00, "the first latch holds");
        assert_eq!(pit.read(port(0), at(0x1001)), 0x12);
    }

    #[test]
    fn decimal_counts_wrap_at_ten_thousand() {
        let mut pit = Pit::new();
        program(&mut pit, 0x31, 0x0100, 0);
        pit.write(port(3), 0, at(52));
        assert_eq!((pit.read(port(0), at(60)), pit.read(port(0), at(60))), (0x49, 0x00));
        pit.write(port(3), 0, at(103));
        assert_eq!((pit.read(port(0), at(60)), pit.read(port(0), at(60))), (0x98, 0x99));
    }

    proptest! {
        /// Edges do not depend on how often the machine looks (8254 "Mode definitions").
        #[test]
        fn edges_are_a_function_of_time(
            mode in 0u8..6, count in any::<u16>(), steps in vec(0u64..3_000_000, 1..60),
        ) {
            let (mut often, mut once) = (Pit::new(), Pit::new());
            for pit in [&mut often, &mut once] {
                program(pit, 0x30 | mode << 1, count, 0);
            }
            let mut now = 0;
            for step in steps {
                now += step;
                if let Some(due) = often.deadline().filter(|due| *due <= now) {
                    let length = often.channels[0].length();
                    often.tick(due);
                    prop_assert!(often.irq() || length < 64, "a deadline without an edge");
                }
                often.tick(now);
            }
            once.tick(now);
            prop_assert_eq!(often.channels[0].edges, once.channels[0].edges);
        }

        /// Whatever is written, time goes on and deadlines lie ahead.
        #[test]
        fn hostile_programming_never_stops_the_clock(
            ops in vec((0u8..3, 0u64..5, any::<u64>(), 0u64..1_000_000, 0u8..3), 0..300),
        ) {
            let mut pit = Pit::new();
            let mut now = 0;
            for (window, offset, value, step, op) in ops {
                now += step;
                let access = Access { window, offset, size: 1 << (value >> 62) };
                match op {
                    0 => { pit.read(access, now); }
                    _ => pit.write(access, value, now),
                }
                if step & 1 == 0 {
                    pit.tick(now);
                }
                pit.take_edges();
                if let Some(due) = pit.deadline() {
                    prop_assert!(due > now.saturating_sub(1), "due {} at {}", due, now);
                }
            }
            pit.tick(u64::MAX);
        }
    }
}
