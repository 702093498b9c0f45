//! Requests that somebody outside works on, by tags that are never used twice.

use std::collections::{BTreeMap, BTreeSet};

/// What a device remembers of each request until it is answered.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    here: BTreeMap<u64, T>,
    /// From before a reset, and still worked on outside: their memory is not the driver's yet (§2.4.2).
    orphans: BTreeSet<u64>,
    next_tag: u64,
}

impl<T> Default for InFlight<T> {
    fn default() -> InFlight<T> {
        InFlight { here: BTreeMap::new(), orphans: BTreeSet::new(), next_tag: 0 }
    }
}

impl<T> InFlight<T> {
    /// Remembers a request under a new tag.
    pub(super) fn add(&mut self, request: T) -> u64 {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.here.insert(tag, request);
        tag
    }

    /// The work outside is done. The request, unless a reset came between.
    pub(super) fn finish(&mut self, tag: u64) -> Option<T> {
        self.orphans.remove(&tag);
        self.here.remove(&tag)
    }

    /// Requests without an answer.
    pub(super) fn len(&self) -> usize {
        self.here.len()
    }

    /// Whether resets follow one another without waiting for their end; `most` requests can be under way at a time.
    pub(super) fn piled_up(&self, most: usize) -> bool {
        self.orphans.len() > 4 * most
    }

    /// The driver resets the device: nobody waits for the answers any more.
    pub(super) fn abandon(&mut self) {
        self.orphans.extend(std::mem::take(&mut self.here).into_keys());
    }

    /// Whether work from before a reset is still under way.
    pub(super) fn busy(&self) -> bool {
        !self.orphans.is_empty()
    }
}
