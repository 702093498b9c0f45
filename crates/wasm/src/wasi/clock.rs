//! The clocks of a program.
use super::errno::Errno;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// `realtime`, `monotonic`, `process_cputime_id` and `thread_cputime_id` of `clockid`.
pub(crate) const REALTIME: u32 = 0;
pub(crate) const MONOTONIC: u32 = 1;
const PROCESS: u32 = 2;
const THREAD: u32 = 3;

/// When a counted clock begins: 2000-01-01, nanoseconds since 1970.
pub(crate) const COUNTED_BEGIN: u64 = 946_684_800_000_000_000;
/// How far each question moves it, nanoseconds.
pub(crate) const COUNTED_STEP: u64 = 1000;

/// Where time comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Clock {
    /// The host.
    Real {
        /// How far `monotonic`, `process_cputime_id` and `thread_cputime_id` are ahead of the host's, nanoseconds (modulo 2^64): they go
        /// on where they were when the program was saved.
        ahead: [u64; 3],
    },
    /// The program itself: each question, and each wait, moves it by so many nanoseconds.
    Counted {
        /// Nanoseconds since the program began.
        now: u64,
    },
}

/// What a clock showed when its program was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SavedClock {
    /// `monotonic`, `process_cputime_id` and `thread_cputime_id`. The time of day is the host's.
    Real([u64; 3]),
    /// Nanoseconds since the program began.
    Counted(u64),
}

/// The clocks of the host that go on where they were.
const HOSTS: [ClockId; 3] = [ClockId::Monotonic, ClockId::ProcessCPUTime, ClockId::ThreadCPUTime];

fn host(id: ClockId) -> u64 {
    let time = clock_gettime(id);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

impl Clock {
    /// The host's.
    pub(crate) fn real() -> Clock {
        Clock::Real { ahead: [0; 3] }
    }

    /// One that is the same in each run.
    pub(crate) fn counted() -> Clock {
        Clock::Counted { now: 0 }
    }

    /// The time, nanoseconds.
    pub(crate) fn now(&mut self, id: u32) -> Result<u64, Errno> {
        if id > THREAD {
            return Err(Errno::Invalid);
        }
        Ok(match self {
            Clock::Counted { now } => {
                *now = now.saturating_add(COUNTED_STEP);
                if id == REALTIME { COUNTED_BEGIN.saturating_add(*now) } else { *now }
            }
            Clock::Real { ahead: [monotonic, process, thread] } => match id {
                REALTIME => host(ClockId::Realtime),
                MONOTONIC => host(ClockId::Monotonic).wrapping_add(*monotonic),
                PROCESS => host(ClockId::ProcessCPUTime).wrapping_add(*process),
                _ => host(ClockId::ThreadCPUTime).wrapping_add(*thread),
            },
        })
    }

    /// What it shows, to go on from there.
    pub(crate) fn saved(&self) -> SavedClock {
        match self {
            Clock::Counted { now } => SavedClock::Counted(*now),
            Clock::Real { ahead } => {
                let now = HOSTS.map(host);
                SavedClock::Real(std::array::from_fn(|id| {
                    let ahead = ahead.get(id).copied().unwrap_or_default();
                    now.get(id).copied().unwrap_or_default().wrapping_add(ahead)
                }))
            }
        }
    }

    /// Goes on from there; one of another kind stays as it is.
    pub(crate) fn put_back(&mut self, saved: &SavedClock) {
        match (self, saved) {
            (Clock::Counted { now }, SavedClock::Counted(then)) => *now = *then,
            (Clock::Real { ahead }, SavedClock::Real(then)) => {
                for ((ahead, then), now) in ahead.iter_mut().zip(then).zip(HOSTS.map(host)) {
                    *ahead = then.wrapping_sub(now);
                }
            }
            _ => {}
        }
    }

    /// How exact it is, nanoseconds.
    pub(crate) fn resolution(&self, id: u32) -> Result<u64, Errno> {
        match (id, self) {
            (0..=THREAD, Clock::Real { .. }) => Ok(1),
            (0..=THREAD, Clock::Counted { .. }) => Ok(COUNTED_STEP),
            _ => Err(Errno::Invalid),
        }
    }

    /// Lets time pass for a program that waits so long. Gives how long its host waits.
    pub(crate) fn sleep(&mut self, time: Duration) -> Duration {
        match self {
            Clock::Real { .. } => time,
            Clock::Counted { now } => {
                *now = now.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
                Duration::ZERO
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counted_clock_is_moved_by_questions_and_waits_alone() {
        let mut clock = Clock::counted();
        assert_eq!(clock.now(MONOTONIC), Ok(COUNTED_STEP));
        assert_eq!(clock.sleep(Duration::from_secs(1)), Duration::ZERO);
        assert_eq!(clock.now(REALTIME), Ok(COUNTED_BEGIN + 2 * COUNTED_STEP + 1_000_000_000));
        assert_eq!(clock.now(9), Err(Errno::Invalid));
    }

    #[test]
    fn a_clock_goes_on_where_it_was_saved() {
        let mut counted = Clock::counted();
        counted.now(REALTIME).unwrap();
        let mut other = Clock::counted();
        other.put_back(&counted.saved());
        assert_eq!(other.now(MONOTONIC), counted.now(MONOTONIC));
        // Another host, which has just been switched on.
        let mut real = Clock::real();
        real.put_back(&SavedClock::Real([u64::MAX >> 1, 7, 8]));
        let SavedClock::Real([monotonic, process, _]) = real.saved() else { panic!() };
        assert!(monotonic >= u64::MAX >> 1 && monotonic - (u64::MAX >> 1) < 1_000_000_000);
        assert!((7..1_000_000_000).contains(&process));
    }

    #[test]
    fn the_hosts_clock_goes_on() {
        let mut clock = Clock::real();
        let before = clock.now(MONOTONIC).unwrap();
        assert!(clock.now(MONOTONIC).unwrap() >= before);
        assert!(clock.now(REALTIME).unwrap() > COUNTED_BEGIN);
    }
}
