//! Set-up without waiting for the kernel's read-copy-update.
//!
//! Who closes a packet socket (a DHCP client does so for each packet), removes a mount or a network card waits for all processors to pass
//! through a quiet state, several ticks of the clock each time, which are most of the time of a guest's set-up with a network. While this
//! lives the kernel asks the processors instead of waiting (`/sys/kernel/rcu_expedited`, Linux Documentation/ABI/testing/sysfs-kernel-rcu).
use std::fs;

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";

/// The kernel hurries until this goes.
pub(crate) struct Hurry {
    before: Option<String>,
}

impl Hurry {
    pub(crate) fn begin() -> Hurry {
        // A kernel without it is as it was: slower.
        let before = fs::read_to_string(EXPEDITED).ok();
        let _ = fs::write(EXPEDITED, "1");
        Hurry { before }
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(EXPEDITED, before.trim());
        }
    }
}
