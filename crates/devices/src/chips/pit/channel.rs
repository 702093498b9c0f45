//! One counter of the 8254, computed from the time (Intel 8254 data sheet, 231164-005, "Mode definitions").

use super::CLOCK_HZ;
use crate::Ns;
use crate::chips::NS_PER_S;
use viv_arch::chips::PitChannelSaved;

/// Ticks of the clock since power-on.
pub(super) type Ticks = u64;

pub(super) fn ticks(now: Ns) -> Ticks {
    (u128::from(now) * u128::from(CLOCK_HZ) / u128::from(NS_PER_S)) as Ticks
}

/// The first nanosecond at which `at` ticks have passed.
pub(super) fn ns_of(at: Ticks) -> Ns {
    Ns::try_from((u128::from(at) * u128::from(NS_PER_S)).div_ceil(u128::from(CLOCK_HZ))).unwrap_or(Ns::MAX)
}

/// More than the ticks of 500 years: a bound for saved ones.
const TICKS_MAX: Ticks = 1 << 55;

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
pub(super) struct Channel {
    pub(super) mode: u8,
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
    pub(super) watched: Ticks,
    /// Rising edges of the output since power-on.
    pub(super) edges: u64,
}

impl Channel {
    pub(super) fn new(gate: bool) -> Channel {
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

    pub(super) fn length(&self) -> u64 {
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
    pub(super) fn output(&self, at: Ticks) -> bool {
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
    pub(super) fn next_edge(&self) -> Option<Ticks> {
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
    pub(super) fn advance(&mut self, at: Ticks) {
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

    pub(super) fn write_control(&mut self, value: u8) {
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

    pub(super) fn write_count(&mut self, value: u8, at: Ticks) {
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
    pub(super) fn set_gate(&mut self, gate: bool, at: Ticks) {
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

    pub(super) fn latch_count(&mut self, at: Ticks) {
        if self.latched.is_none() {
            self.latched = Some(self.counter(at));
        }
    }

    /// Output, null count, and the control word (8254 "Status byte").
    pub(super) fn latch_status(&mut self, at: Ticks) {
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

    pub(super) fn read(&mut self, at: Ticks) -> u8 {
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

    pub(super) fn save(&self) -> PitChannelSaved {
        PitChannelSaved {
            mode: self.mode,
            bcd: self.bcd,
            access: self.access,
            low_written: self.low_written,
            high_next: self.high_next,
            latched: self.latched,
            status: self.status,
            count: self.count,
            next: self.next,
            since: if let Run::Since(start) = self.run { Some(start) } else { None },
            held: if let Run::Held(elapsed) = self.run { Some(elapsed) } else { None },
            gate: self.gate,
            watched: self.watched,
            edges: self.edges,
        }
    }

    pub(super) fn load(&mut self, saved: &PitChannelSaved) {
        *self = Channel {
            mode: saved.mode.min(5),
            bcd: saved.bcd,
            access: saved.access & 3,
            low_written: saved.low_written,
            high_next: saved.high_next,
            latched: saved.latched,
            status: saved.status,
            count: saved.count,
            next: saved.next,
            run: match (saved.since, saved.held) {
                (Some(start), _) => Run::Since(start.min(TICKS_MAX)),
                (None, Some(elapsed)) => Run::Held(elapsed.min(TICKS_MAX)),
                (None, None) => Run::Idle,
            },
            gate: saved.gate,
            watched: saved.watched.min(TICKS_MAX),
            edges: saved.edges.min(TICKS_MAX),
        };
    }
}
