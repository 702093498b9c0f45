//! The newest events, kept in memory for those who follow them.
use std::collections::VecDeque;
use std::sync::Arc;
use viv_api::event::Event;

/// How many are kept.
const KEPT: usize = 4096;

/// Events in order, without a gap up to the newest.
#[derive(Debug, Default)]
pub(super) struct Recent {
    events: VecDeque<Arc<Event>>,
}

impl Recent {
    pub(super) fn push(&mut self, event: Arc<Event>) {
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Those after a revision, up to so many, if all of them are here.
    pub(super) fn after(&self, revision: u64, most: usize) -> Option<Vec<Arc<Event>>> {
        let first = self.events.front()?;
        if revision.saturating_add(1) < first.revision {
            return None;
        }
        let start = self.events.partition_point(|event| event.revision <= revision);
        Some(self.events.range(start..).take(most).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_api::event::What;

    #[test]
    fn gives_what_it_has_without_gaps() {
        let mut recent = Recent::default();
        assert_eq!(recent.after(0, 9), None, "whether there were any, it does not know");
        for revision in 5..5 + KEPT as u64 + 10 {
            recent.push(Arc::new(Event { revision, ..Event::new(What::VmCreated, None, "x") }));
        }
        let last = 5 + KEPT as u64 + 9;
        let numbers = |after, most| {
            recent
                .after(after, most)
                .map(|events| events.iter().map(|event| event.revision).collect::<Vec<_>>())
        };
        assert_eq!(numbers(13, 9), None);
        assert_eq!(numbers(14, 2), Some(vec![15, 16]));
        assert_eq!(numbers(last - 1, 9), Some(vec![last]));
        assert_eq!(numbers(last, 9), Some(vec![]));
        assert_eq!(numbers(u64::MAX, 9), Some(vec![]));
    }
}
