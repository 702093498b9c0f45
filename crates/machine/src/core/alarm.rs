//! When the timekeeper must look next. Devices and local APICs tell it their deadlines as they change; it
//! sleeps until the earliest.
use super::lock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// See the module.
pub(crate) struct Alarm {
    /// The guest time that the timekeeper sleeps towards.
    next: AtomicU64,
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Alarm {
    pub(crate) fn new() -> Alarm {
        Alarm { next: AtomicU64::new(0), woken: Mutex::new(true), changed: Condvar::new() }
    }

    /// Something is due at `deadline`.
    pub(crate) fn consider(&self, deadline: u64) {
        if deadline < self.next.fetch_min(deadline, Ordering::SeqCst) {
            self.wake();
        }
    }

    /// The timekeeper has found this deadline itself.
    pub(crate) fn aim(&self, deadline: u64) {
        self.next.fetch_min(deadline, Ordering::SeqCst);
    }

    /// Makes the timekeeper look now.
    pub(crate) fn wake(&self) {
        *lock(&self.woken) = true;
        self.changed.notify_one();
    }

    /// The timekeeper begins to look: from here on every earlier deadline wakes it.
    pub(crate) fn begin(&self) {
        self.next.store(u64::MAX, Ordering::SeqCst);
    }

    /// The timekeeper sleeps, for `timeout` if there is one, unless it was woken meanwhile.
    pub(crate) fn sleep(&self, timeout: Option<Duration>) {
        let mut woken = lock(&self.woken);
        if !*woken {
            woken = match timeout {
                Some(timeout) => {
                    self.changed.wait_timeout(woken, timeout).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(woken).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *woken = false;
    }
}
