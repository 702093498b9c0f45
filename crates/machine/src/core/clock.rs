//! The guest's clock: nanoseconds since the first power-on, standing still in a pause.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// "Not frozen".
const RUNS: u64 = u64::MAX;

/// See the module.
pub(crate) struct Clock {
    origin: Instant,
    /// Host nanoseconds since `origin` at which the guest's clock was, or would have been, 0; modulo 2^64, for a restored
    /// machine is older than its process.
    zero: AtomicU64,
    /// The time at which it stands still, or [`RUNS`].
    frozen: AtomicU64,
}

impl Clock {
    /// A clock that stands at 0.
    pub(crate) fn new() -> Clock {
        Clock { origin: Instant::now(), zero: AtomicU64::new(0), frozen: AtomicU64::new(0) }
    }

    fn host_ns(&self) -> u64 {
        self.origin.elapsed().as_nanos() as u64
    }

    /// Lets it stand at `ns`: it must not have run.
    pub(crate) fn set(&self, ns: u64) {
        self.frozen.store(ns.min(RUNS - 1), Ordering::Release);
    }

    /// The guest's time.
    pub(crate) fn now(&self) -> u64 {
        match self.frozen.load(Ordering::Acquire) {
            RUNS => self.host_ns().wrapping_sub(self.zero.load(Ordering::Relaxed)),
            time => time,
        }
    }

    /// Whether it stands still.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire) != RUNS
    }

    /// Stops it. Callers (start, pause, resume) exclude each other.
    pub(crate) fn freeze(&self) {
        self.frozen.store(self.now(), Ordering::Release);
    }

    /// Lets it go on from where it stands.
    pub(crate) fn thaw(&self) {
        if self.is_frozen() {
            let time = self.frozen.load(Ordering::Acquire);
            self.zero.store(self.host_ns().wrapping_sub(time), Ordering::Relaxed);
            self.frozen.store(RUNS, Ordering::Release);
        }
    }

    /// Host time until the guest's clock shows `deadline`; `None` while it stands still.
    pub(crate) fn until(&self, deadline: u64) -> Option<Duration> {
        (!self.is_frozen()).then(|| Duration::from_nanos(deadline.saturating_sub(self.now())))
    }
}

/// Nanoseconds since 1970.
pub(crate) fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_may_be_older_than_its_process() {
        let clock = Clock::new();
        clock.set(1 << 50);
        clock.thaw();
        assert!(clock.now() >= 1 << 50);
    }

    #[test]
    fn a_frozen_clock_stands_still_and_goes_on_without_a_jump() {
        let clock = Clock::new();
        assert_eq!(clock.now(), 0);
        clock.thaw();
        std::thread::sleep(Duration::from_millis(2));
        clock.freeze();
        let stopped = clock.now();
        assert!(stopped >= 2_000_000);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(clock.now(), stopped);
        clock.thaw();
        assert!(clock.now() - stopped < 15_000_000);
    }
}
