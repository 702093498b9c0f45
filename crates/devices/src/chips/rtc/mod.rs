//! MC146818 real-time clock with 128 bytes of CMOS memory (Motorola MC146818A, 1984; the memory's use by
//! the PC/AT Technical Reference and its followers). IRQ 8.
//!
//! The time is a start on the wall clock plus the guest's nanoseconds; setting it moves the start. One
//! window: ports 0x70 (index) and 0x71 (data).

mod calendar;

use super::{NS_PER_S, read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};
use calendar::{Calendar, DAY_S, UNIX_S_MAX};
use viv_arch::chips::RtcSaved;

/// Registers (MC146818A figure 12).
mod reg {
    pub(super) const SECONDS: u8 = 0x00;
    pub(super) const SECONDS_ALARM: u8 = 0x01;
    pub(super) const MINUTES: u8 = 0x02;
    pub(super) const MINUTES_ALARM: u8 = 0x03;
    pub(super) const HOURS: u8 = 0x04;
    pub(super) const HOURS_ALARM: u8 = 0x05;
    pub(super) const WEEKDAY: u8 = 0x06;
    pub(super) const DAY: u8 = 0x07;
    pub(super) const MONTH: u8 = 0x08;
    pub(super) const YEAR: u8 = 0x09;
    pub(super) const A: u8 = 0x0a;
    pub(super) const B: u8 = 0x0b;
    pub(super) const C: u8 = 0x0c;
    pub(super) const D: u8 = 0x0d;
    /// Not the chip's: where PC firmware keeps the century, and what the FADT's `CENTURY` names.
    pub(super) const CENTURY: u8 = 0x32;
}

/// CMOS index of the century, for the FADT.
pub const CENTURY_INDEX: u8 = reg::CENTURY;

/// Register A: divider 32.768 kHz and periodic rate (MC146818A "Register A").
mod a {
    pub(super) const UPDATE_IN_PROGRESS: u8 = 0x80;
    pub(super) const DIVIDER: u8 = 0x70;
    pub(super) const DIVIDER_32KHZ: u8 = 0x20;
    pub(super) const RATE: u8 = 0x0f;
}

/// Register B (MC146818A "Register B").
mod b {
    pub(super) const SET: u8 = 0x80;
    pub(super) const PERIODIC: u8 = 0x40;
    pub(super) const ALARM: u8 = 0x20;
    pub(super) const UPDATE: u8 = 0x10;
    pub(super) const SQUARE_WAVE: u8 = 0x08;
    pub(super) const BINARY: u8 = 0x04;
    pub(super) const HOURS_24: u8 = 0x02;
}

/// Register C: the flags stand at the places of their enables in B (MC146818A "Register C").
const C_INTERRUPT: u8 = 0x80;
const FLAGS: u8 = b::PERIODIC | b::ALARM | b::UPDATE;
/// Register D: the battery is good (MC146818A "Register D").
const D_VALID: u8 = 0x80;
/// An hour after noon in 12-hour mode.
const PM: u8 = 0x80;
/// An alarm byte of 0xc0 and above means any value (MC146818A "Alarm").
const ANY: u8 = 0xc0;

/// The update flag in register A rises this long before the time changes (MC146818A figure 14).
const UPDATE_NS: u64 = 244_000;
/// Bytes behind ports 0x70 and 0x71.
const CMOS_LEN: usize = 128;

/// The clock and its memory.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: u8,
    cmos: [u8; CMOS_LEN],
    /// Nanoseconds since 1970 at the guest's time 0.
    start: i128,
    /// The time while register B's SET bit stops the updates.
    stopped: Option<Calendar>,
    flags: u8,
    /// Up to here the events have been counted.
    watched: Ns,
    /// When the alarm rings next, in seconds since 1970.
    alarm: Option<i64>,
}

impl Rtc {
    /// A clock that shows `unix_s` (seconds since 1970, UTC) at the guest's time 0, in BCD and 24 hours.
    pub fn new(unix_s: i64) -> Rtc {
        let mut cmos = [0; CMOS_LEN];
        cmos[usize::from(reg::A)] = a::DIVIDER_32KHZ | 6;
        cmos[usize::from(reg::B)] = b::HOURS_24;
        let mut rtc = Rtc {
            index: 0,
            cmos,
            start: i128::from(unix_s.clamp(-UNIX_S_MAX, UNIX_S_MAX)) * i128::from(NS_PER_S),
            stopped: None,
            flags: 0,
            watched: 0,
            alarm: None,
        };
        rtc.plan_alarm();
        rtc
    }

    /// Sets the time, as after a pause of the machine.
    pub fn set_unix_s(&mut self, unix_s: i64, now: Ns) {
        self.advance(now);
        let unix_ns = i128::from(unix_s.clamp(-UNIX_S_MAX, UNIX_S_MAX)) * i128::from(NS_PER_S);
        self.start = unix_ns - i128::from(now);
        self.plan_alarm();
    }

    /// Leaves the amounts of memory where firmware does: base and extended memory in KiB, memory above
    /// 16 MiB and above 4 GiB in 64 KiB.
    pub fn set_memory_size(&mut self, below_4g: u64, above_4g: u64) {
        let extended_kib = (below_4g.saturating_sub(1 << 20) >> 10).min(0xffff);
        let above_16m = (below_4g.saturating_sub(16 << 20) >> 16).min(0xffff);
        let above_4g = (above_4g >> 16).min(0xff_ffff);
        for (index, value) in [
            (0x15, 640u64),
            (0x16, 640 >> 8),
            (0x17, extended_kib),
            (0x18, extended_kib >> 8),
            (0x30, extended_kib),
            (0x31, extended_kib >> 8),
            (0x34, above_16m),
            (0x35, above_16m >> 8),
            (0x5b, above_4g),
            (0x5c, above_4g >> 8),
            (0x5d, above_4g >> 16),
        ] {
            self.cmos[index] = value as u8;
        }
    }

    /// The shutdown code that the guest has left at 0x0f for the firmware's next reset.
    pub fn shutdown_code(&self) -> u8 {
        self.cmos[0x0f]
    }

    fn b(&self) -> u8 {
        self.cmos[usize::from(reg::B)]
    }

    fn unix_ns(&self, now: Ns) -> i128 {
        self.start + i128::from(now)
    }

    fn unix_s(&self, now: Ns) -> i64 {
        self.unix_ns(now).div_euclid(i128::from(NS_PER_S)) as i64
    }

    fn updates(&self) -> bool {
        self.b() & b::SET == 0
    }

    /// Nanoseconds between periodic interrupts (MC146818A table 5), as a count of 1/32768 s.
    fn period_ticks(&self) -> Option<u32> {
        match self.cmos[usize::from(reg::A)] & a::RATE {
            0 => None,
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Periods of the periodic interrupt that have passed since 1970.
    fn periods(&self, now: Ns, ticks: u32) -> i128 {
        (self.unix_ns(now) * 32_768).div_euclid(i128::from(NS_PER_S) * i128::from(ticks))
    }

    /// Sets the flags of all events since the last look.
    fn advance(&mut self, now: Ns) {
        if now <= self.watched {
            return;
        }
        if let Some(ticks) = self.period_ticks()
            && self.periods(now, ticks) != self.periods(self.watched, ticks)
        {
            self.flags |= b::PERIODIC;
        }
        if self.updates() {
            let second = self.unix_s(now);
            if second != self.unix_s(self.watched) {
                self.flags |= b::UPDATE;
            }
            if self.alarm.is_some_and(|alarm| alarm <= second) {
                self.flags |= b::ALARM;
                self.watched = now;
                self.plan_alarm();
            }
        }
        self.watched = now;
    }

    /// Finds the first second after `watched` that matches the alarm bytes.
    fn plan_alarm(&mut self) {
        let after = self.unix_s(self.watched);
        let field = |index: u8, decode: &dyn Fn(u8) -> Option<u8>| {
            let byte = self.cmos[usize::from(index)];
            if byte >= ANY { Some(None) } else { decode(byte).map(Some) }
        };
        let alarm = (|| {
            let hour = field(reg::HOURS_ALARM, &|byte| self.decode_hour(byte))?;
            let minute = field(reg::MINUTES_ALARM, &|byte| self.decode(byte))?;
            let second = field(reg::SECONDS_ALARM, &|byte| self.decode(byte))?;
            let matches =
                |wanted: Option<u8>, value: i64| wanted.is_none_or(|wanted| i64::from(wanted) == value);
            let mut at = after + 1;
            // At most a day of hours, then an hour of minutes, then a minute of seconds.
            for _ in 0..160 {
                let day = at.rem_euclid(DAY_S);
                if !matches(hour, day / 3600) {
                    at += 3600 - day % 3600;
                } else if !matches(minute, day / 60 % 60) {
                    at += 60 - day % 60;
                } else if !matches(second, day % 60) {
                    at += 1;
                } else {
                    return Some(at);
                }
            }
            None
        })();
        self.alarm = alarm;
    }

    fn encode(&self, value: u8) -> u8 {
        if self.b() & b::BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, byte: u8) -> Option<u8> {
        let value = if self.b() & b::BINARY != 0 { byte } else { (byte >> 4) * 10 + (byte & 0xf) };
        (value < 100).then_some(value)
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.b() & b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        // An hour of a saved state may be any.
        let twelve = (hour % 12 + 11) % 12 + 1;
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, byte: u8) -> Option<u8> {
        if self.b() & b::HOURS_24 != 0 {
            return self.decode(byte);
        }
        let hour = self.decode(byte & !PM)? % 12;
        Some(if byte & PM != 0 { hour + 12 } else { hour })
    }

    fn calendar(&self, now: Ns) -> Calendar {
        self.stopped.unwrap_or_else(|| Calendar::from_unix(self.unix_s(now)))
    }

    /// The update flag is up before the time changes; it never is while SET stops the updates.
    fn update_in_progress(&self, now: Ns) -> bool {
        let into = self.unix_ns(now).rem_euclid(i128::from(NS_PER_S)) as u64;
        let divider = self.cmos[usize::from(reg::A)] & a::DIVIDER;
        self.updates() && divider == a::DIVIDER_32KHZ && into >= NS_PER_S - UPDATE_NS
    }

    fn read_data(&mut self, now: Ns) -> u8 {
        let time = self.calendar(now);
        match self.index {
            reg::SECONDS => self.encode(time.second),
            reg::MINUTES => self.encode(time.minute),
            reg::HOURS => self.encode_hour(time.hour),
            reg::WEEKDAY => self.encode(time.weekday),
            reg::DAY => self.encode(time.day),
            reg::MONTH => self.encode(time.month),
            reg::YEAR => self.encode(time.year.rem_euclid(100) as u8),
            reg::CENTURY => self.encode(time.year.div_euclid(100).rem_euclid(100) as u8),
            reg::A => {
                let busy = if self.update_in_progress(now) { a::UPDATE_IN_PROGRESS } else { 0 };
                self.cmos[usize::from(reg::A)] | busy
            }
            reg::C => {
                let asserted = if self.irq() { C_INTERRUPT } else { 0 };
                std::mem::take(&mut self.flags) | asserted
            }
            reg::D => D_VALID,
            index => self.cmos.get(usize::from(index)).copied().unwrap_or(0xff),
        }
    }

    fn write_data(&mut self, value: u8, now: Ns) {
        match self.index {
            reg::SECONDS
            | reg::MINUTES
            | reg::HOURS
            | reg::WEEKDAY
            | reg::DAY
            | reg::MONTH
            | reg::YEAR
            | reg::CENTURY => self.write_time(value, now),
            reg::A => self.cmos[usize::from(reg::A)] = value & !a::UPDATE_IN_PROGRESS,
            reg::B => self.write_b(value, now),
            reg::C | reg::D => {}
            index => {
                if let Some(byte) = self.cmos.get_mut(usize::from(index)) {
                    *byte = value;
                }
                if matches!(index, reg::SECONDS_ALARM | reg::MINUTES_ALARM | reg::HOURS_ALARM) {
                    self.plan_alarm();
                }
            }
        }
    }

    fn write_time(&mut self, value: u8, now: Ns) {
        let mut time = self.calendar(now);
        let decoded = if self.index == reg::HOURS { self.decode_hour(value) } else { self.decode(value) };
        let Some(number) = decoded else { return };
        let (century, year) = (time.year.div_euclid(100), time.year.rem_euclid(100));
        match self.index {
            reg::SECONDS => time.second = number,
            reg::MINUTES => time.minute = number,
            reg::HOURS => time.hour = number,
            reg::WEEKDAY => time.weekday = number,
            reg::DAY => time.day = number,
            reg::MONTH => time.month = number,
            reg::YEAR => time.year = century * 100 + i64::from(number),
            _ => time.year = i64::from(number) * 100 + year,
        }
        if self.stopped.is_some() {
            self.stopped = Some(time);
        } else {
            self.set_calendar(time, now);
        }
    }

    /// Keeps the place within the second: only SET and the divider can move that.
    fn set_calendar(&mut self, time: Calendar, now: Ns) {
        let into = self.unix_ns(now).rem_euclid(i128::from(NS_PER_S));
        self.start = i128::from(time.to_unix()) * i128::from(NS_PER_S) + into - i128::from(now);
        self.plan_alarm();
    }

    fn write_b(&mut self, value: u8, now: Ns) {
        let was_stopped = !self.updates();
        // SET clears the update-ended enable (MC146818A "Register B").
        let value = if value & b::SET != 0 { value & !b::UPDATE } else { value };
        if !was_stopped && value & b::SET != 0 {
            self.stopped = Some(self.calendar(now));
        }
        self.cmos[usize::from(reg::B)] = value;
        if value & b::SET == 0
            && let Some(time) = self.stopped.take()
        {
            self.set_calendar(time, now);
        }
        self.plan_alarm();
    }

    /// The whole state.
    pub fn save(&self) -> RtcSaved {
        let second = i128::from(NS_PER_S);
        RtcSaved {
            index: self.index,
            cmos: self.cmos.to_vec(),
            start_s: i64::try_from(self.start.div_euclid(second)).unwrap_or(0),
            start_ns: self.start.rem_euclid(second) as u32,
            stopped: self.stopped.map(Calendar::save),
            flags: self.flags,
            watched: self.watched,
        }
    }

    /// Replaces the whole state; what no chip can hold is cut off.
    pub fn load(&mut self, saved: &RtcSaved) {
        *self = Rtc::new(saved.start_s);
        self.start += i128::from(saved.start_ns.min(NS_PER_S as u32 - 1));
        self.index = saved.index & 0x7f;
        self.cmos.iter_mut().zip(&saved.cmos).for_each(|(byte, saved)| *byte = *saved);
        self.cmos[usize::from(reg::A)] &= !a::UPDATE_IN_PROGRESS;
        self.stopped = if self.updates() { None } else { saved.stopped.map(Calendar::load) };
        self.flags = saved.flags & FLAGS;
        self.watched = saved.watched;
        self.plan_alarm();
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, access: Access, now: Ns) -> u64 {
        self.advance(now);
        read_byte_lanes(access, |offset| if offset == 1 { self.read_data(now) } else { 0xff })
    }

    fn write(&mut self, access: Access, value: u64, now: Ns) {
        self.advance(now);
        write_byte_lanes(access, value, |offset, byte| match offset {
            // Bit 7 masks NMI on a PC.
            0 => self.index = byte & 0x7f,
            1 => self.write_data(byte, now),
            _ => {}
        });
    }

    /// IRQ 8, until register C is read.
    fn irq(&self) -> bool {
        self.flags & self.b() & FLAGS != 0
    }

    fn deadline(&self) -> Option<Ns> {
        let wanted = self.b() & !self.flags & FLAGS;
        if self.irq() || wanted == 0 {
            return None;
        }
        let ns_of_second = |second: i64| i128::from(second) * i128::from(NS_PER_S) - self.start;
        let periodic = self.period_ticks().filter(|_| wanted & b::PERIODIC != 0).map(|ticks| {
            let next = self.periods(self.watched, ticks) + 1;
            let unix_ns = -(-next * i128::from(NS_PER_S) * i128::from(ticks)).div_euclid(32_768);
            unix_ns - self.start
        });
        let updating = self.updates();
        let update =
            (updating && wanted & b::UPDATE != 0).then(|| ns_of_second(self.unix_s(self.watched) + 1));
        let alarm = self.alarm.filter(|_| updating && wanted & b::ALARM != 0).map(ns_of_second);
        [periodic, update, alarm].into_iter().flatten().min().and_then(|due| Ns::try_from(due).ok())
    }

    fn tick(&mut self, now: Ns) {
        self.advance(now);
    }

    /// RESET stops the interrupts; time and memory have a battery (MC146818A "RESET").
    fn reset(&mut self) {
        self.cmos[usize::from(reg::B)] &= !(FLAGS | b::SQUARE_WAVE);
        self.flags = 0;
        self.index = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// 2026-11-21 08:36:07 UTC, a Saturday.
    const THEN: i64 = 1_795_250_167;

    fn port(offset: u64) -> Access {
        Access { window: 0, offset, size: 1 }
    }
    fn get(rtc: &mut Rtc, index: u8, now: Ns) -> u8 {
        rtc.write(port(0), index.into(), now);
        rtc.read(port(1), now) as u8
    }
    fn set(rtc: &mut Rtc, index: u8, value: u8, now: Ns) {
        rtc.write(port(0), index.into(), now);
        rtc.write(port(1), value.into(), now);
    }
    fn time(rtc: &mut Rtc, now: Ns) -> [u8; 8] {
        [0x32, 9, 8, 7, 6, 4, 2, 0].map(|index| get(rtc, index, now))
    }

    #[test]
    fn the_time_is_shown_in_bcd_and_goes_on() {
        let mut rtc = Rtc::new(THEN);
        assert_eq!(time(&mut rtc, 0), [0x20, 0x26, 0x11, 0x21, 7, 0x08, 0x36, 0x07]);
        assert_eq!(time(&mut rtc, 60 * NS_PER_S), [0x20, 0x26, 0x11, 0x21, 7, 0x08, 0x37, 0x07]);
        assert_eq!(get(&mut rtc, reg::D, 0), 0x80);
    }

    #[test]
    fn binary_and_twelve_hours_are_modes_of_register_b() {
        let mut rtc = Rtc::new(THEN + 12 * 3600);
        set(&mut rtc, reg::B, b::BINARY, 0);
        assert_eq!(time(&mut rtc, 0), [20, 26, 11, 21, 7, 0x80 | 8, 36, 7]);
        set(&mut rtc, reg::B, 0, 0);
        assert_eq!(get(&mut rtc, reg::HOURS, 4 * 3600 * NS_PER_S), 0x12, "midnight is 12 AM");
    }

    #[test]
    fn any_hour_of_a_saved_state_is_shown() {
        let mut rtc = Rtc::new(THEN);
        let stopped = Calendar { hour: 255, ..rtc.calendar(0) };
        (rtc.stopped, rtc.cmos[usize::from(reg::B)]) = (Some(stopped), b::SET | b::BINARY);
        assert_eq!(get(&mut rtc, reg::HOURS, 0), 3 | PM);
    }

    #[test]
    fn setting_the_time_moves_the_clock() {
        let mut rtc = Rtc::new(THEN);
        set(&mut rtc, reg::B, b::SET | b::HOURS_24, 0);
        for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)]
        {
            set(&mut rtc, index, value, NS_PER_S);
        }
        assert_eq!(get(&mut rtc, 0, 5 * NS_PER_S), 0x58, "SET stops the updates");
        set(&mut rtc, reg::B, b::HOURS_24, 5 * NS_PER_S);
        assert_eq!(time(&mut rtc, 7 * NS_PER_S), [0x20, 0x00, 0x01, 0x01, 7, 0, 0, 0]);
    }

    #[test]
    fn update_in_progress_warns_before_the_time_changes() {
        let mut rtc = Rtc::new(THEN);
        assert_eq!(get(&mut rtc, reg::A, 0) & 0x80, 0);
        assert_eq!(get(&mut rtc, reg::A, NS_PER_S - UPDATE_NS - 1) & 0x80, 0);
        assert_eq!(get(&mut rtc, reg::A, NS_PER_S - 1) & 0x80, 0x80);
        assert_eq!(get(&mut rtc, reg::A, NS_PER_S) & 0x80, 0);
    }

    #[test]
    fn the_three_interrupts_come_in_time() {
        let mut rtc = Rtc::new(THEN);
        assert_eq!(rtc.deadline(), None);
        set(&mut rtc, reg::B, b::HOURS_24 | b::UPDATE, 0);
        assert_eq!(rtc.deadline(), Some(NS_PER_S));
        rtc.tick(NS_PER_S);
        assert!(rtc.irq());
        assert_eq!(get(&mut rtc, reg::C, NS_PER_S) & (C_INTERRUPT | b::UPDATE), C_INTERRUPT | b::UPDATE);
        assert!(!rtc.irq());

        let now = NS_PER_S;
        set(&mut rtc, reg::B, b::HOURS_24 | b::ALARM, now);
        set(&mut rtc, reg::SECONDS_ALARM, 0x30, now);
        set(&mut rtc, reg::MINUTES_ALARM, 0xff, now);
        set(&mut rtc, reg::HOURS_ALARM, 0x09, now);
        let due = (53 + 23 * 60 + 30) * NS_PER_S;
        assert_eq!(rtc.deadline(), Some(due), "09:00:30");
        rtc.tick(due);
        assert!(rtc.irq());

        set(&mut rtc, reg::B, b::HOURS_24 | b::PERIODIC, due);
        get(&mut rtc, reg::C, due);
        assert_eq!(rtc.deadline().map(|next| (next - due).div_ceil(1000)), Some(977), "1024 Hz");
    }

    #[test]
    fn memory_sizes_are_where_firmware_looks() {
        let mut rtc = Rtc::new(0);
        rtc.set_memory_size(512 << 20, 1 << 30);
        assert_eq!([0x15, 0x16].map(|index| get(&mut rtc, index, 0)), [0x80, 0x02]);
        assert_eq!([0x34, 0x35].map(|index| get(&mut rtc, index, 0)), [0x00, 0x1f]);
        assert_eq!([0x5b, 0x5c, 0x5d].map(|index| get(&mut rtc, index, 0)), [0x00, 0x40, 0x00]);
        set(&mut rtc, 0x8f, 0x0a, 0);
        assert_eq!(rtc.shutdown_code(), 0x0a);
    }

    proptest! {
        /// Whatever is written: IRQF is the OR of enabled flags (MC146818A "Register C"), deadlines lie ahead
        /// and bring an interrupt.
        #[test]
        fn interrupts_follow_their_enables(
            start in any::<i64>(), ops in vec((any::<u8>(), any::<u8>(), 0u64..5_000_000_000, 0u8..3), 0..200),
        ) {
            let mut rtc = Rtc::new(start);
            let mut now = 0;
            for (index, value, step, op) in ops {
                now += step;
                let index = if op == 2 { index } else { index % 14 };
                if value & 1 == 0 { get(&mut rtc, index, now); } else { set(&mut rtc, index, value, now) }
                if rtc.b() & FLAGS == 0 {
                    prop_assert!(!rtc.irq());
                }
                if let Some(due) = rtc.deadline() {
                    prop_assert!(due > now, "due {} at {}", due, now);
                    let mut later = rtc.clone();
                    later.tick(due - 1);
                    prop_assert!(!later.irq());
                    later.tick(due);
                    prop_assert!(later.irq());
                }
            }
        }
    }
}
