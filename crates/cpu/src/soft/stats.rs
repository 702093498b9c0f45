//! What a software vCPU has done so far, for other threads to read while it runs.

use super::SoftCpu;
use super::check::Checked;
use super::translate::TranslatorStats;
use std::sync::{Mutex, PoisonError, TryLockError};

/// Counts of one software vCPU since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SoftStats {
    /// Instructions begun by the interpreter.
    pub interpreted: u64,
    /// Instructions that the interpreter decoded.
    pub decoded: u64,
    /// What the rest of the machine and the guest's own faults asked of it.
    pub events: Events,
    /// `None`: the interpreter does all.
    pub translator: Option<TranslatorStats>,
    /// `None`: translated code does not count.
    pub translated: Option<Translated>,
    /// `None`: nobody checks what translated code does.
    pub checked: Option<Checked>,
}

/// What translated code counts if it is asked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translated {
    /// Instructions begun.
    pub instructions: u64,
    /// Blocks entered.
    pub blocks: u64,
}

impl Translated {
    /// An instruction was counted that somebody else executes and counts.
    #[inline(always)]
    pub(super) fn take_back(&mut self) {
        self.instructions = self.instructions.wrapping_sub(1);
    }
}

/// What interrupts the flow of instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events {
    /// Interrupts delivered.
    pub interrupts: u64,
    /// Exceptions delivered: faults, traps, NMIs.
    pub exceptions: u64,
    /// Accesses to I/O ports.
    pub ports: u64,
    /// Accesses to memory of devices.
    pub device_memory: u64,
    /// Waits for an interrupt.
    pub halts: u64,
}

/// The last [`SoftStats`] that a vCPU has shown. It shows them whenever it looks up from the guest's code: at interrupts
/// and when it stops or waits.
#[derive(Default)]
pub struct ShownStats(Mutex<SoftStats>);

impl ShownStats {
    /// As of when the vCPU last looked up.
    pub fn get(&self) -> SoftStats {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows them unless somebody just reads: the next time is soon.
    pub(super) fn try_set(&self, stats: SoftStats) {
        match self.0.try_lock() {
            Ok(mut shown) => *shown = stats,
            Err(TryLockError::Poisoned(poisoned)) => *poisoned.into_inner() = stats,
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// Shows them in any case: the next time may never come.
    pub(super) fn set(&self, stats: SoftStats) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stats;
    }
}

impl SoftCpu {
    /// What it has done so far.
    pub fn stats(&self) -> SoftStats {
        let (interpreted, decoded) = self.counts();
        SoftStats {
            interpreted,
            decoded,
            events: self.cpu.events,
            translator: self.translator_stats(),
            translated: self.counted(),
            checked: self.checked(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_never_holds_up_the_vcpu_but_the_last_word_counts() {
        let shown = ShownStats::default();
        let of = |interpreted| SoftStats { interpreted, ..SoftStats::default() };
        shown.try_set(of(1));
        let reader = shown.0.lock().unwrap();
        shown.try_set(of(2));
        drop(reader);
        assert_eq!(shown.get(), of(1));
        shown.set(of(3));
        assert_eq!(shown.get(), of(3));
    }
}
