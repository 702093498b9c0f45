//! What memory that comes from a file must pass before somebody sees it: each piece is checked when it is first reached.

use crate::Arrival;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes that are checked at once.
pub(crate) const PIECE: u64 = 64 << 10;

/// What these pieces, ascending, of a memory of `size` bytes are together: offsets and bytes.
pub(crate) fn ranges_of(pieces: impl Iterator<Item = u64>, size: u64) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for piece in pieces {
        let at = piece * PIECE;
        let len = PIECE.min(size - at);
        match ranges.last_mut() {
            Some((first, bytes)) if *first + *bytes == at => *bytes += len,
            _ => ranges.push((at, len)),
        }
    }
    ranges
}

/// What a piece must pass.
pub enum Check {
    /// This looks at a range of the file, of whole pieces but at the end, and says what is wrong with it.
    Content(Box<dyn Fn(u64, u64) -> Result<(), String> + Send + Sync>),
    /// It must be there.
    Arrival(Arrival),
}

/// Told what is wrong, once.
type Watcher = Box<dyn FnOnce(&str) + Send>;

/// The checks of one memory.
pub(crate) struct Origin {
    check: Check,
    size: u64,
    /// A bit for each piece that has passed.
    passed: Box<[AtomicU64]>,
    /// What is not of the file at all, and so needs to pass nothing: offsets and bytes, ascending, whole pieces.
    fresh: Vec<(u64, u64)>,
    damage: Mutex<Damage>,
}

#[derive(Default)]
struct Damage {
    what: Option<String>,
    watcher: Option<Watcher>,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Origin {
    pub(crate) fn new(check: Check, size: u64, fresh: &[(u64, u64)]) -> Origin {
        let words = size.div_ceil(PIECE).div_ceil(64);
        let passed = (0..words).map(|_| AtomicU64::new(0)).collect();
        let origin = Origin { check, size, passed, fresh: fresh.to_vec(), damage: Mutex::default() };
        for (offset, len) in fresh {
            (offset / PIECE..(offset + len) / PIECE).for_each(|piece| origin.note(piece));
        }
        origin
    }

    fn note(&self, piece: u64) {
        if let Some(word) = self.passed.get((piece / 64) as usize) {
            word.fetch_or(1 << (piece % 64), Ordering::Relaxed);
        }
    }

    fn damage(&self) -> MutexGuard<'_, Damage> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pieces of a range.
    fn pieces(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset.saturating_add(len).min(self.size);
        offset / PIECE..end.div_ceil(PIECE)
    }

    fn has_passed(&self, piece: u64) -> bool {
        let word = self.passed.get((piece / 64) as usize);
        word.is_some_and(|word| word.load(Ordering::Relaxed) & 1 << (piece % 64) != 0)
    }

    /// Has a piece pass, if it has not: what is wrong with it.
    fn pass(&self, piece: u64) -> Result<(), String> {
        if self.has_passed(piece) {
            return Ok(());
        }
        let at = piece * PIECE;
        let len = PIECE.min(self.size - at);
        match &self.check {
            Check::Content(look) => look(at, len),
            Check::Arrival(arrival) => arrival.wait(at, len),
        }?;
        self.note(piece);
        Ok(())
    }

    fn is_fresh(&self, piece: u64) -> bool {
        let at = piece * PIECE;
        let before = self.fresh.partition_point(|(offset, _)| *offset <= at);
        let range = before.checked_sub(1).and_then(|index| self.fresh.get(index));
        range.is_some_and(|(offset, len)| at - offset < *len)
    }

    /// Whether the range, which is not empty, may be seen.
    pub(crate) fn passes(&self, offset: u64, len: u64) -> bool {
        self.pieces(offset, len).all(|piece| self.pass(piece).map_err(|what| self.report(what)).is_ok())
    }

    /// Has a range of a file pass before somebody reaches it. What is wrong with it is left to whoever does.
    pub(crate) fn fetch(&self, offset: u64, len: u64) {
        if let Check::Content(_) = self.check {
            self.pieces(offset, len).for_each(|piece| drop(self.pass(piece)));
        }
    }

    /// What of the file has passed so far: offsets and bytes, in order.
    pub(crate) fn reached(&self) -> Vec<(u64, u64)> {
        let reached = |piece: &u64| self.has_passed(*piece) && !self.is_fresh(*piece);
        ranges_of(self.pieces(0, self.size).filter(reached), self.size)
    }

    /// Whether all of it is there, which is waited for.
    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.check, Check::Content(_)) || self.passes(0, self.size)
    }

    fn report(&self, what: String) {
        let mut damage = self.damage();
        let watcher = damage.watcher.take();
        if let Some(watcher) = watcher {
            watcher(&what);
        }
        damage.what.get_or_insert(what);
    }

    /// What was wrong with it so far.
    pub(crate) fn found(&self) -> Option<String> {
        self.damage().what.clone()
    }

    /// Tells `watcher` of the first damage, also if it was found before.
    pub(crate) fn watch(&self, watcher: impl FnOnce(&str) + Send + 'static) {
        let mut damage = self.damage();
        match &damage.what {
            Some(what) => watcher(what),
            None => damage.watcher = Some(Box::new(watcher)),
        }
    }
}
