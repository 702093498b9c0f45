//! Set-up without waiting for the kernel's read-copy-update.
//!
//! Who closes a packet socket (a DHCP client does so for each packet), removes a mount or a network card, or has a file
//! system stand still, waits for all processors to pass
//! through a quiet state, several ticks of the clock each time, which are most of the time of a guest's set-up with a network. While this
//! lives the kernel asks the processors instead of waiting (`/sys/kernel/rcu_expedited`, Linux Documentation/ABI/testing/sysfs-kernel-rcu).
use std::fs;
use std::sync::{Mutex, PoisonError};

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// The kernel hurries until this goes, and all others that there are.
pub(crate) struct Hurry(());

/// How many there are, and what the kernel did before.
static ALL: Mutex<(usize, Option<String>)> = Mutex::new((0, None));

impl Hurry {
    pub(crate) fn begin() -> Hurry {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if all.0 == 0 {
            // A kernel without it is as it was: slower.
            all.1 = fs::read_to_string(EXPEDITED).ok();
            let _ = fs::write(EXPEDITED, "1");
        }
        all.0 += 1;
        Hurry(())
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        all.0 -= 1;
        if let (0, Some(before)) = (all.0, &all.1) {
            let _ = fs::write(EXPEDITED, before.trim());
        }
    }
}
