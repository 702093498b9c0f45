//! The clocks of a program.
use super::errno::Errno;
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// `realtime`, `monotonic`, `process_cputime_id` and `thread_cputime_id` of `clockid`.
pub(crate) const REALTIME: u32 = 0;
pub(crate) const MONOTONIC: u32 = 1;
const PROCESS: u32 = 2;
const THREAD: u32 = 3;

/// When a counted clock begins: 2000-01-01, nanoseconds since 1970.
const COUNTED_BEGIN: u64 = 946_684_800_000_000_000;
/// How far each question moves it, nanoseconds.
const COUNTED_STEP: u64 = 1000;

/// Where time comes from.
#[derive(Debug)]
pub(crate) enum Clock {
    /// The host.
    Real,
    /// The program itself: each question, and each wait, moves it by so many nanoseconds.
    Counted {
        /// Nanoseconds since the program began.
        now: u64,
    },
}

fn host(id: ClockId) -> u64 {
    let time = clock_gettime(id);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

impl Clock {
    /// The host's.
    pub(crate) fn real() -> Clock {
        Clock::Real
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
            Clock::Real => host(match id {
                REALTIME => ClockId::Realtime,
                MONOTONIC => ClockId::Monotonic,
                PROCESS => ClockId::ProcessCPUTime,
                _ => ClockId::ThreadCPUTime,
            }),
        })
    }

    /// How exact it is, nanoseconds.
    pub(crate) fn resolution(&self, id: u32) -> Result<u64, Errno> {
        match (id, self) {
            (0..=THREAD, Clock::Real) => Ok(1),
            (0..=THREAD, Clock::Counted { .. }) => Ok(COUNTED_STEP),
            _ => Err(Errno::Invalid),
        }
    }

    /// Lets time pass for a program that waits so long. Gives how long its host waits.
    pub(crate) fn sleep(&mut self, time: Duration) -> Duration {
        match self {
            Clock::Real => time,
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
    fn the_hosts_clock_goes_on() {
        let mut clock = Clock::real();
        let before = clock.now(MONOTONIC).unwrap();
        assert!(clock.now(MONOTONIC).unwrap() >= before);
        assert!(clock.now(REALTIME).unwrap() > COUNTED_BEGIN);
    }
}
