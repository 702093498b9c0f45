//! How much memory a program may have.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use viv_api::stats::ProgramStats;
use wasmtime::ResourceLimiter;

/// Bytes that an element of a table takes.
const ELEMENT: usize = 8;
/// Most memories, tables and instances: a program has one of each, or a few.
const THINGS_MAX: usize = 64;

/// What a program has used, for whoever asks from another thread.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    /// Bytes of memory and tables.
    pub(crate) memory: AtomicU64,
    /// Times that it was refused more.
    pub(crate) refused: AtomicU64,
    /// Fuel used, as of when its machine last looked up.
    pub(crate) fuel: AtomicU64,
}

impl Usage {
    /// The same, told; fuel if it is counted.
    pub(crate) fn stats(&self, counts: bool) -> ProgramStats {
        ProgramStats {
            steps: counts.then(|| self.fuel.load(Ordering::Relaxed)),
            memory_bytes: self.memory.load(Ordering::Relaxed),
            memory_refused: self.refused.load(Ordering::Relaxed),
            ..ProgramStats::default()
        }
    }
}

/// All memories and tables of a program together, or of one of its instances that share what it may have.
#[derive(Debug)]
pub(crate) struct Limits {
    max: u64,
    usage: Arc<Usage>,
    /// Bytes that were taken by way of this, of those in use.
    taken: u64,
    /// Something was refused here.
    refused: bool,
    /// What is taken is not the program's.
    lifted: bool,
}

impl Limits {
    /// At most so many bytes.
    pub(crate) fn new(max: u64, usage: Arc<Usage>) -> Limits {
        Limits { max, usage, taken: 0, refused: false, lifted: false }
    }

    /// What it has used.
    pub(crate) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// What is taken from now on is not the program's, or is again.
    pub(crate) fn lift(&mut self, lifted: bool) {
        self.lifted = lifted;
    }

    /// Whether it may have `more` bytes than now; then it has them.
    fn take(&mut self, more: usize) -> bool {
        if self.lifted {
            return true;
        }
        let now = self.usage.memory.load(Ordering::Relaxed);
        let then = now.saturating_add(more as u64);
        let fits = then <= self.max;
        if fits {
            self.usage.memory.store(then, Ordering::Relaxed);
            self.taken = self.taken.saturating_add(more as u64);
        } else {
            self.usage.refused.fetch_add(1, Ordering::Relaxed);
            self.refused = true;
        }
        fits
    }

    /// Whether something was refused here.
    pub(crate) fn has_refused(&self) -> bool {
        self.refused
    }

    /// What was taken here is not used any more.
    pub(crate) fn give_back(&mut self) {
        let now = self.usage.memory.load(Ordering::Relaxed);
        self.usage.memory.store(now.saturating_sub(self.taken), Ordering::Relaxed);
        self.taken = 0;
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // More than its own maximum is refused anyway, and is no matter of ours.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.take(desired.saturating_sub(current)))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        Ok(self.take(desired.saturating_sub(current).saturating_mul(ELEMENT)))
    }

    fn instances(&self) -> usize {
        THINGS_MAX
    }

    fn tables(&self) -> usize {
        THINGS_MAX
    }

    fn memories(&self) -> usize {
        THINGS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_share_one_limit() {
        let usage = Arc::new(Usage::default());
        let mut limits = Limits::new(100, usage.clone());
        assert!(limits.memory_growing(0, 60, None).unwrap());
        assert!(limits.table_growing(0, 4, None).unwrap());
        assert!(!limits.memory_growing(60, 69, None).unwrap());
        assert!(!limits.memory_growing(60, 61, Some(60)).unwrap());
        assert!(limits.memory_growing(60, 68, None).unwrap());
        assert!(!limits.table_growing(4, usize::MAX, None).unwrap());
        assert_eq!(usage.memory.load(Ordering::Relaxed), 100);
        assert_eq!(usage.refused.load(Ordering::Relaxed), 2, "its own maximum is not our limit");
        // Another instance gets what is left, and what the first gives back.
        let mut other = Limits::new(100, usage.clone());
        assert!(!other.memory_growing(0, 1, None).unwrap());
        limits.give_back();
        assert!(other.memory_growing(0, 100, None).unwrap());
        limits.give_back();
        assert_eq!(usage.memory.load(Ordering::Relaxed), 100, "nothing is given back twice");
        assert!(limits.has_refused() && other.has_refused());
    }
}
