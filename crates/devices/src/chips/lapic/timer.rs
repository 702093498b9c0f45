//! The local APIC's timer (SDM vol. 3 §11.5.4): one-shot, periodic and TSC-deadline, in nanoseconds.

use super::Lapic;
use super::spec::*;
use crate::Ns;

impl Lapic {
    pub(super) fn timer_mode(&self) -> TimerMode {
        match self.lvt[TIMER] >> 17 & 3 {
            0 => TimerMode::OneShot,
            1 => TimerMode::Periodic,
            2 => TimerMode::TscDeadline,
            _ => TimerMode::Reserved,
        }
    }

    /// Nanoseconds per count (SDM figure 11-10).
    pub(super) fn divisor(&self) -> u64 {
        let code = self.divide & 3 | (self.divide & 8) >> 1;
        if code == 7 { 1 } else { 2 << code }
    }

    pub(super) fn period(&self) -> Ns {
        u64::from(self.initial) * self.divisor()
    }

    /// Lets the timer fire as often as it should have until `now`; several firings are one interrupt.
    pub(super) fn advance(&mut self, now: Ns) {
        let Some(due) = self.due else { return };
        if now < due {
            return;
        }
        self.due = None;
        if self.timer_mode() == TimerMode::Periodic && self.initial != 0 {
            let period = self.period();
            let late = (now - due) / period;
            self.coalesced = self.coalesced.saturating_add(late);
            self.due = due.checked_add(period.saturating_mul(late + 1));
        }
        let entry = self.lvt[TIMER];
        if entry & LVT_MASKED == 0 && self.hardware_enabled() {
            if (entry as u8) < VECTOR_MIN {
                self.error(esr::RECEIVED_ILLEGAL_VECTOR);
            } else {
                self.request(entry as u8, false);
            }
        }
    }

    pub(super) fn start_timer(&mut self, now: Ns) {
        self.due = match self.timer_mode() {
            TimerMode::OneShot | TimerMode::Periodic if self.initial != 0 => now.checked_add(self.period()),
            _ => None,
        };
    }

    pub(super) fn current_count(&self, now: Ns) -> u32 {
        if !matches!(self.timer_mode(), TimerMode::OneShot | TimerMode::Periodic) {
            return 0;
        }
        let left = self.due.map_or(0, |due| due.saturating_sub(now));
        u32::try_from(left.div_ceil(self.divisor())).unwrap_or(u32::MAX).min(self.initial)
    }

    pub(super) fn tsc_deadline(&self) -> u64 {
        if self.timer_mode() == TimerMode::TscDeadline { self.due.unwrap_or(0) } else { 0 }
    }

    /// Arms the TSC deadline (SDM §11.5.4.1); the TSC counts the guest's nanoseconds.
    pub(super) fn set_tsc_deadline(&mut self, value: u64, now: Ns) {
        if self.timer_mode() == TimerMode::TscDeadline {
            self.due = (value != 0).then_some(value);
            self.advance(now);
        }
    }
}
