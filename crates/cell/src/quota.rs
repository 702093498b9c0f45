//! How much processor time a VM may have: its process measures itself, and holds its guest whenever that is ahead of its limit.
//!
//! It needs no rights and no control group, and is the same for every guest. What was used beyond the limit before anybody saw is
//! owed: over a second the limit holds, whatever happens within ten milliseconds.
use crate::{cpu_ns, spawn};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use viv_model::{CPU_LIMIT_MIN, Fault};

/// How long a guest that used little may use more than its limit, at once.
const AHEAD: Duration = Duration::from_millis(10);
/// How often is looked: at a guest that works, at most and at least, and at one that does nothing.
const LOOKS: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(5));
const IDLE_LOOK: Duration = Duration::from_millis(20);
/// What a guest that does nothing uses in between, at most, with what the looks themselves take.
const IDLE_NS: i64 = 1_000_000;

/// The limit of one VM, which may change at any time.
#[derive(Clone, Default)]
pub struct Quota(Arc<(Mutex<Wish>, Condvar)>);

/// What its owner wants.
#[derive(Clone, Copy, Default)]
struct Wish {
    milli: Option<u32>,
    /// The guest stands still anyway.
    rests: bool,
}

impl Wish {
    /// The limit that has to be kept now.
    fn milli(self) -> Option<u32> {
        self.milli.filter(|_| !self.rests)
    }
}

/// What a guest may still use.
#[derive(Clone, Copy, Debug)]
struct Account {
    /// Nanoseconds; below zero it is held.
    credit: i64,
    /// Most that it can have.
    most: i64,
    milli: i64,
}

impl Account {
    fn new(milli: u32) -> Account {
        let milli = i64::from(milli.max(CPU_LIMIT_MIN));
        let most = AHEAD.as_nanos() as i64 * milli / 1000;
        Account { credit: most, most, milli }
    }

    /// So much time has passed, and it has used so much.
    fn pass(&mut self, passed: Duration, used_ns: i64) {
        let passed = i64::try_from(passed.as_nanos()).unwrap_or(i64::MAX);
        let earned = passed.saturating_mul(self.milli) / 1000;
        self.credit = self.credit.saturating_add(earned).saturating_sub(used_ns).min(self.most);
    }

    /// How long it takes until it owes nothing.
    fn hold(&self) -> Option<Duration> {
        let owed = u64::try_from(self.credit.saturating_neg()).ok().filter(|owed| *owed > 0)?;
        Some(Duration::from_nanos(owed.saturating_mul(1000) / u64::try_from(self.milli).unwrap_or(1).max(1)))
    }
}

impl Quota {
    /// With this limit, thousandths of a processor; none: as much as it can get.
    pub fn new(milli: Option<u32>) -> Quota {
        let quota = Quota::default();
        quota.set(milli);
        quota
    }

    fn lock(&self) -> MutexGuard<'_, Wish> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another limit from now on.
    pub fn set(&self, milli: Option<u32>) {
        self.lock().milli = milli;
        self.0.1.notify_all();
    }

    /// The guest stands still from now on, or goes on: nobody has to look in between.
    pub fn rest(&self, rests: bool) {
        self.lock().rests = rests;
        self.0.1.notify_all();
    }

    /// The limit.
    pub fn get(&self) -> Option<u32> {
        self.lock().milli
    }

    /// Waits for that long, or until another limit has to be kept.
    fn wait(&self, milli: Option<u32>, limit: Option<Duration>) {
        let limit_at = limit.map(|limit| Instant::now() + limit);
        let mut now = self.lock();
        while now.milli() == milli {
            let left = limit_at.map(|at| at.saturating_duration_since(Instant::now()));
            now = match left {
                Some(left) if left.is_zero() => return,
                Some(left) => self.0.1.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.0.1.wait(now).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Starts to hold the guest (`true`) and let it go, by a thread that lives as long as the process. `more` is processor time that
    /// is used for the guest elsewhere, nanoseconds.
    pub fn govern(
        &self,
        more: impl Fn() -> u64 + Send + 'static,
        hold: impl Fn(bool) + Send + 'static,
    ) -> Result<(), Fault> {
        let quota = self.clone();
        spawn("quota", move || quota.run(|| cpu_ns().saturating_add(more()), hold))
    }

    fn run(&self, used: impl Fn() -> u64, hold: impl Fn(bool)) {
        loop {
            let Some(milli) = self.lock().milli() else {
                self.wait(None, None);
                continue;
            };
            let mut account = Account::new(milli);
            let (mut then, mut before) = (Instant::now(), used());
            let mut idle = false;
            while self.lock().milli() == Some(milli) {
                let look = if idle { IDLE_LOOK } else { LOOKS.1 };
                let soon = Duration::from_nanos(u64::try_from(account.credit).unwrap_or(0));
                self.wait(Some(milli), Some(soon.clamp(LOOKS.0, look)));
                let (now, use_now) = (Instant::now(), used());
                let spent = i64::try_from(use_now.saturating_sub(before)).unwrap_or(i64::MAX);
                account.pass(now - then, spent);
                idle = spent < IDLE_NS;
                (then, before) = (now, use_now);
                if let Some(time) = account.hold() {
                    hold(true);
                    self.wait(Some(milli), Some(time));
                    hold(false);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    #[test]
    fn what_is_owed_is_waited_for() {
        let mut account = Account::new(250);
        let ms = 1_000_000;
        assert_eq!((account.credit, account.hold()), (2_500_000, None));
        account.pass(Duration::from_millis(10), 10 * ms);
        assert_eq!(account.credit, -5 * ms);
        assert_eq!(account.hold(), Some(Duration::from_millis(20)));
        account.pass(Duration::from_millis(20), 0);
        assert_eq!((account.credit, account.hold()), (0, None));
        account.pass(Duration::MAX, 0);
        assert_eq!(account.credit, 2_500_000, "rest is not saved up");
        account.pass(Duration::ZERO, i64::MAX);
        assert!(account.hold().unwrap() > Duration::from_secs(24 * 3600));
        assert_eq!(Account::new(0).milli, 10);
        let mut account = Account::new(u32::MAX);
        account.pass(Duration::from_secs(24 * 3600), 1);
        assert_eq!(account.credit, account.most, "a day asleep, with the greatest limit");
    }

    /// A guest that works whenever it is let, by the clock of the wall.
    #[test]
    fn over_a_second_the_limit_holds_and_changes_at_once() {
        let (quota, held) = (Quota::new(Some(300)), Arc::new(AtomicBool::new(false)));
        let used = Arc::new(AtomicU64::new(0));
        let end = Arc::new(AtomicBool::new(false));
        let (working, counted, over) = (held.clone(), used.clone(), end.clone());
        let guest = thread::spawn(move || {
            let mut then = Instant::now();
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_micros(200));
                let now = Instant::now();
                if !working.load(Ordering::Relaxed) {
                    counted.fetch_add((now - then).as_nanos() as u64, Ordering::Relaxed);
                }
                then = now;
            }
        });
        let (governor, seen, holding) = (quota.clone(), used.clone(), held.clone());
        let looks = Arc::new(AtomicU64::new(0));
        let looked = looks.clone();
        thread::spawn(move || {
            let used = move || {
                looked.fetch_add(1, Ordering::Relaxed);
                seen.load(Ordering::Relaxed)
            };
            governor.run(used, |hold| holding.store(hold, Ordering::Relaxed));
        });
        let share = || {
            let (then, before) = (Instant::now(), used.load(Ordering::Relaxed));
            thread::sleep(Duration::from_secs(1));
            (used.load(Ordering::Relaxed) - before) as f64 / then.elapsed().as_nanos() as f64
        };
        // The machine that tests this may be busy: the limit must hold, and is nearly reached.
        let low = share();
        assert!((0.2..0.32).contains(&low), "{low}");
        quota.set(Some(600));
        let high = share();
        assert!((0.4..0.63).contains(&high), "{high}");
        quota.rest(true);
        thread::sleep(Duration::from_millis(50));
        let before = looks.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(100));
        assert_eq!(looks.load(Ordering::Relaxed), before, "nobody looks at a guest that stands still");
        quota.rest(false);
        let again = share();
        assert!((0.4..0.63).contains(&again), "{again}");
        quota.set(None);
        thread::sleep(Duration::from_millis(50));
        assert!(!held.load(Ordering::Relaxed));
        let all = share();
        assert!(all > 0.7, "{all}");
        end.store(true, Ordering::Relaxed);
        guest.join().unwrap();
    }
}
