//! One snapshot of a VM at a time.
use std::sync::{Mutex, MutexGuard};
use viv_model::{Fault, Kind};

/// Held while a snapshot is written.
#[derive(Debug, Default)]
pub struct Saving(Mutex<()>);

impl Saving {
    /// Until what it gives is dropped, no other one is begun.
    pub fn begin(&self) -> Result<MutexGuard<'_, ()>, Fault> {
        self.0.try_lock().map_err(|_| {
            let message = "another snapshot of the VM is just being written";
            Fault::new(Kind::Conflict, message, "wait until it is there: viv snapshot ls")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_at_a_time() {
        let saving = Saving::default();
        let one = saving.begin().unwrap();
        assert!(saving.begin().unwrap_err().message.contains("just being written"));
        drop(one);
        assert!(saving.begin().is_ok());
    }
}
