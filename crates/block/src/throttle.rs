//! How fast a disk may be: a pure state machine. Time comes in, a delay goes out; it neither sleeps nor looks at a clock.
//!
//! Two buckets, one of requests and one of bytes, fill at the rate and hold at most the burst. A request takes what it
//! costs at once, so a bucket may owe: then the next request waits until the debt is paid. So the average is exact
//! at any request size, also at one that is larger than the bucket.

use crate::Disk;
use crate::watched::{Watch, Watched};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use viv_model::DiskLimits;

/// Without a burst of its own, a bucket holds what flows in within this time: a timer's unevenness is made up for.
const LEEWAY: Duration = Duration::from_millis(20);
/// Nanoseconds in a second.
const SECOND: u128 = 1_000_000_000;

/// A bucket that counts in units of 1/1,000,000,000 of what it holds, so that nothing is lost to rounding.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// What flows in each second; none: no limit.
    rate: Option<u64>,
    /// What it holds at most, in its units.
    holds: u128,
    /// What it has, or owes.
    level: i128,
}

impl Bucket {
    fn new(rate: Option<u64>, burst: Option<u64>) -> Bucket {
        let rate = rate.map(|rate| rate.max(1));
        let leeway = u128::from(rate.unwrap_or(0)) * LEEWAY.as_nanos();
        let holds = burst.map_or(leeway.max(SECOND), |burst| u128::from(burst.max(1)) * SECOND);
        Bucket { rate, holds, level: holds as i128 }
    }

    /// Takes over what another bucket had.
    fn with_level_of(self, old: &Bucket) -> Bucket {
        let level = if old.rate.is_some() { old.level.min(self.holds as i128) } else { self.level };
        Bucket { level, ..self }
    }

    fn fill(&mut self, passed: Duration) {
        let Some(rate) = self.rate else { return };
        let inflow = u128::from(rate).saturating_mul(passed.as_nanos()).min(i128::MAX as u128 / 2);
        self.level = self.level.saturating_add(inflow as i128).min(self.holds as i128);
    }

    fn take(&mut self, amount: u64) {
        if self.rate.is_some() {
            self.level = self.level.saturating_sub((u128::from(amount) * SECOND) as i128);
        }
    }

    /// How long until nothing is owed.
    fn debt(&self) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let nanoseconds = u128::try_from(-self.level).unwrap_or(0).div_ceil(u128::from(rate));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// The two buckets of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Throttle {
    requests: Bucket,
    bytes: Bucket,
    filled_at: Duration,
}

impl Throttle {
    /// Full buckets, at time `now`; times count from any moment, always the same.
    pub fn new(limits: &DiskLimits, now: Duration) -> Throttle {
        Throttle {
            requests: Bucket::new(limits.iops, limits.iops_burst),
            bytes: Bucket::new(limits.bps, limits.bps_burst),
            filled_at: now,
        }
    }

    /// Other limits from now on. What was owed is still owed, at the new rate.
    pub fn change(&mut self, limits: &DiskLimits, now: Duration) {
        self.fill(now);
        let new = Throttle::new(limits, now);
        self.requests = new.requests.with_level_of(&self.requests);
        self.bytes = new.bytes.with_level_of(&self.bytes);
    }

    /// Whether a request may begin at `now`: it may, and its cost is taken; or it must wait for the time given, and
    /// ask again.
    pub fn admit(&mut self, bytes: u64, now: Duration) -> Result<(), Duration> {
        self.fill(now);
        let wait = self.requests.debt().max(self.bytes.debt());
        if !wait.is_zero() {
            return Err(wait);
        }
        self.requests.take(1);
        self.bytes.take(bytes);
        Ok(())
    }

    fn fill(&mut self, now: Duration) {
        // A clock that goes back adds nothing.
        let passed = now.saturating_sub(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        self.requests.fill(passed);
        self.bytes.fill(passed);
    }
}

/// A throttle that threads wait at, and that changes while they do.
#[derive(Debug)]
pub struct Gate {
    inside: Mutex<Inside>,
    changed: Condvar,
    begin: Instant,
}

#[derive(Debug)]
struct Inside {
    /// None: no limits.
    throttle: Option<Throttle>,
    open: bool,
}

impl Gate {
    /// A gate with these limits.
    pub fn new(limits: &DiskLimits) -> Gate {
        let throttle = (!limits.is_unlimited()).then(|| Throttle::new(limits, Duration::ZERO));
        Gate {
            inside: Mutex::new(Inside { throttle, open: false }),
            changed: Condvar::new(),
            begin: Instant::now(),
        }
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        // Plain numbers: a panic elsewhere leaves nothing half done.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other limits, for those who wait too.
    pub fn set(&self, limits: &DiskLimits) {
        let now = self.begin.elapsed();
        let mut inside = self.inside();
        inside.throttle = match inside.throttle.take() {
            _ if limits.is_unlimited() => None,
            Some(mut throttle) => {
                throttle.change(limits, now);
                Some(throttle)
            }
            None => Some(Throttle::new(limits, now)),
        };
        self.changed.notify_all();
    }

    /// Lets all pass from now on: the VM ends.
    pub fn open(&self) {
        self.inside().open = true;
        self.changed.notify_all();
    }

    /// Waits until a request of so many bytes may begin.
    pub fn pass(&self, bytes: u64) {
        let mut inside = self.inside();
        loop {
            let Inside { throttle: Some(throttle), open: false } = &mut *inside else { return };
            let Err(wait) = throttle.admit(bytes, self.begin.elapsed()) else { return };
            inside = self.changed.wait_timeout(inside, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A disk, as fast as its gate lets it be.
pub type Throttled = Watched<Arc<Gate>>;

impl Throttled {
    /// The disk behind the gate.
    pub fn new(disk: Arc<dyn Disk>, gate: Arc<Gate>) -> Throttled {
        Watched::over(disk, gate)
    }
}

impl Watch for Arc<Gate> {
    fn admit(&self, _disk: &dyn Disk, bytes: u64) {
        self.pass(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits(iops: Option<u64>, bps: Option<u64>) -> DiskLimits {
        DiskLimits { iops, bps, ..DiskLimits::default() }
    }

    /// Requests of `size` bytes as fast as they may from time `begin`, one second long; gives their number.
    fn second(throttle: &mut Throttle, size: u64, begin: Duration) -> u64 {
        let (mut now, mut done) = (begin, 0);
        while now < begin + Duration::from_secs(1) {
            match throttle.admit(size, now) {
                Ok(()) => done += 1,
                Err(wait) => now += wait,
            }
        }
        done
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Over any second with requests all the time, what passes is the limit, to 3 % or one request.
        #[test]
        fn the_rate_is_exact_at_any_size(iops in 10u64..100_000, size in 512u64..16_000_000, bps in 100_000u64..10_000_000_000) {
            let mut throttle = Throttle::new(&limits(Some(iops), None), Duration::ZERO);
            for at in 0..3 {
                let done = second(&mut throttle, size, Duration::from_secs(at));
                prop_assert!(done.abs_diff(iops) <= iops * 3 / 100 + 1, "{done} of {iops} requests");
            }
            let mut throttle = Throttle::new(&limits(None, Some(bps)), Duration::ZERO);
            for at in 0..3 {
                let done = second(&mut throttle, size, Duration::from_secs(at)) * size;
                prop_assert!(done.abs_diff(bps) <= bps * 3 / 100 + size, "{done} of {bps} bytes");
            }
        }

        /// However requests come, no more passes than the burst and what flows in.
        #[test]
        fn never_more_than_burst_and_inflow(
            steps in proptest::collection::vec((0u64..50_000_000, 1u64..2_000_000), 1..400),
            bps in 1u64..1_000_000_000, burst in 1u64..10_000_000,
        ) {
            let limits = DiskLimits { bps: Some(bps), bps_burst: Some(burst), ..DiskLimits::default() };
            let mut throttle = Throttle::new(&limits, Duration::ZERO);
            let (mut now, mut passed, mut largest) = (Duration::ZERO, 0u128, 0);
            for (step, size) in steps {
                now += Duration::from_nanos(step);
                if throttle.admit(size, now).is_ok() {
                    passed += u128::from(size);
                    largest = largest.max(size);
                    let inflow = u128::from(bps) * now.as_nanos() / SECOND;
                    prop_assert!(passed <= u128::from(burst) + inflow + u128::from(largest));
                }
            }
        }

        /// The wait that is asked for is enough, and a nanosecond less is not.
        #[test]
        fn the_wait_is_the_shortest(iops in 1u64..1_000_000, bps in 1u64..1_000_000_000, size in 1u64..10_000_000) {
            let mut throttle = Throttle::new(&limits(Some(iops), Some(bps)), Duration::ZERO);
            let wait = loop {
                if let Err(wait) = throttle.admit(size, Duration::ZERO) {
                    break wait;
                }
            };
            let mut early = throttle;
            prop_assert!(early.admit(size, wait - Duration::from_nanos(1)).is_err());
            prop_assert!(throttle.admit(size, wait).is_ok());
        }
    }

    #[test]
    fn a_burst_passes_at_once_and_comes_back() {
        let limits = DiskLimits { iops: Some(100), iops_burst: Some(500), ..DiskLimits::default() };
        let mut throttle = Throttle::new(&limits, Duration::ZERO);
        let at_once = (0..).take_while(|_| throttle.admit(1, Duration::ZERO).is_ok()).count();
        assert_eq!(at_once, 501, "the last one owes");
        let later = Duration::from_secs(60);
        assert_eq!((0..).take_while(|_| throttle.admit(1, later).is_ok()).count(), 501);
    }

    #[test]
    fn limits_change_while_requests_wait() {
        let mut throttle = Throttle::new(&limits(None, Some(1000)), Duration::ZERO);
        throttle.admit(100_000, Duration::ZERO).unwrap();
        let slow = throttle.admit(1, Duration::ZERO).unwrap_err();
        throttle.change(&limits(None, Some(1_000_000)), Duration::ZERO);
        let fast = throttle.admit(1, Duration::ZERO).unwrap_err();
        assert!(fast < slow / 900, "{slow:?} {fast:?}");
        throttle.change(&DiskLimits::default(), Duration::ZERO);
        throttle.admit(1 << 40, Duration::ZERO).unwrap();
        throttle.admit(1 << 40, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_gate_holds_back_changes_and_opens() {
        let gate = Gate::new(&limits(Some(1000), None));
        let begin = Instant::now();
        (0..120).for_each(|_| gate.pass(4096));
        // 20 pass at once, 100 take a tenth of a second.
        assert!(begin.elapsed() >= Duration::from_millis(90), "{:?}", begin.elapsed());
        gate.set(&limits(None, Some(1)));
        gate.pass(1 << 30);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| gate.pass(1));
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            gate.set(&DiskLimits::default());
            waiting.join().unwrap();
        });
        gate.set(&limits(Some(1), None));
        gate.open();
        (0..1000).for_each(|_| gate.pass(1));
    }
}
