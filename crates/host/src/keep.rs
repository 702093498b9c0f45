//! VMs that are to run: started again when they have ended, by their restart policies.
//!
//! That its user wants a VM to run is in its record ([`VmRecord::wanted`]), so that it outlives this service and the host.
use crate::events::tell;
use crate::store::VmRecord;
use crate::vms::{Vms, lock};
use std::collections::HashMap;
use std::fs;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use viv_api::event::{Event, What};
use viv_api::vm::VmStart;
use viv_model::{End, Fault, Restart};

/// How long after its first end a VM is started again; twice as long after each further one.
const DELAY: Duration = Duration::from_millis(100);
/// The longest that it waits.
const DELAY_MAX: Duration = Duration::from_secs(60);
/// A VM that has run so long has not failed at its start.
const WELL: Duration = Duration::from_secs(10);
/// The fact that names the boot of the host in which the store was last used.
const BOOT: &str = "boot";

/// How often VMs have been started again, one after the other, and when.
#[derive(Default)]
pub(crate) struct Restarts {
    of: Mutex<HashMap<String, (u32, Instant)>>,
}

impl Restarts {
    /// How often it was started again without having run well since.
    fn times(&self, id: &str) -> u32 {
        let mut of = lock(&self.of);
        let entry = of.entry(id.to_string()).or_insert((0, Instant::now()));
        if entry.1.elapsed() >= WELL {
            entry.0 = 0;
        }
        entry.0
    }

    fn count(&self, id: &str) {
        if let Some(entry) = lock(&self.of).get_mut(id) {
            entry.0 = entry.0.saturating_add(1);
        }
    }

    fn begun(&self, id: &str) {
        if let Some(entry) = lock(&self.of).get_mut(id) {
            entry.1 = Instant::now();
        }
    }

    pub(crate) fn forget(&self, id: &str) {
        lock(&self.of).remove(id);
    }
}

fn delay(times: u32) -> Duration {
    DELAY.saturating_mul(1u32.checked_shl(times).unwrap_or(u32::MAX)).min(DELAY_MAX)
}

/// Whether the host has booted since the store was last used, and that this is remembered.
fn has_booted(vms: &Vms) -> Result<bool, Fault> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = boot.trim();
    let before = vms.store.fact(BOOT)?;
    if before.as_deref() == Some(boot) {
        return Ok(false);
    }
    vms.store.set_fact(BOOT, boot)?;
    Ok(before.is_some())
}

impl Vms {
    /// Remembers whether its user wants it to run, if that matters.
    pub(crate) fn set_wanted(&self, record: &mut VmRecord, wanted: bool) -> Result<(), Fault> {
        if record.restart.is_never() || record.wanted == wanted {
            return Ok(());
        }
        record.wanted = wanted;
        self.restarts.forget(&record.id);
        Ok(self.store.update(record)?)
    }

    /// Starts those that are to run after the host has booted.
    pub(crate) fn after_boot(&self) -> Result<(), Fault> {
        if !has_booted(self)? {
            return Ok(());
        }
        for mut record in self.store.all()? {
            if record.restart == Restart::Always && record.started_at.is_some() {
                self.set_wanted(&mut record, true)?;
            }
        }
        Ok(())
    }

    /// What its policy says to this end of a VM's process.
    pub(crate) fn keep(&self, record: &VmRecord, end: &End) {
        if !record.wanted || record.restart.is_never() {
            return;
        }
        let times = self.restarts.times(&record.id);
        if !record.restart.wants(end, times) {
            let mut record = record.clone();
            if let Err(fault) = self.set_wanted(&mut record, false) {
                viv_api::complain!(
                    "viv serve: cannot remember that {} is not started again: {fault}",
                    record.name
                );
            }
            return;
        }
        self.restarts.count(&record.id);
        let delay = delay(times);
        let message = format!("in {:.1} s, by its restart policy {}", delay.as_secs_f64(), record.restart);
        let event = Event::new(What::VmRestarting, Some(&record.id), &record.name);
        tell(&*self.store, Event { message: Some(message), ..event });
        self.later(record.id.clone(), delay);
    }

    /// Starts it again, unless its user does not want that any more.
    pub(crate) fn start_again(&self, id: &str) {
        let Ok(Some(record)) = self.store.by_id(id) else { return };
        if !record.wanted || self.is_live(&record) {
            return;
        }
        self.restarts.begun(id);
        if let Err(fault) = self.start(id, &VmStart::default()) {
            viv_api::complain!("viv serve: cannot start {} again: {fault}", record.name);
            if let Ok(Some(record)) = self.store.by_id(id)
                && !self.is_live(&record)
            {
                self.keep(&record, &End::Failed { message: fault.message });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_longer_each_time_up_to_a_minute() {
        assert_eq!([0, 1, 2].map(delay), [100, 200, 400].map(Duration::from_millis));
        assert!((0..u32::MAX).step_by(1 << 26).all(|times| delay(times) <= DELAY_MAX));
        assert_eq!(delay(31), DELAY_MAX);
        assert_eq!(delay(u32::MAX), DELAY_MAX);
    }

    #[test]
    fn counts_are_of_those_that_did_not_run_well() {
        let restarts = Restarts::default();
        assert_eq!(restarts.times("a"), 0);
        restarts.count("a");
        restarts.count("a");
        restarts.begun("a");
        assert_eq!((restarts.times("a"), restarts.times("b")), (2, 0));
        lock(&restarts.of).insert("a".into(), (2, Instant::now().checked_sub(WELL).unwrap()));
        assert_eq!(restarts.times("a"), 0);
        restarts.forget("a");
        assert_eq!(restarts.times("a"), 0);
    }
}
