//! What was done to the host's files, in order, so that a test can cut the power anywhere.

use std::cell::RefCell;

/// Bytes that a device writes whole or not at all.
const SECTOR: usize = 512;

/// A change to a file.
#[derive(Clone, Debug)]
pub enum Event {
    /// Bytes were written.
    Write {
        /// Where.
        at: u64,
        /// What.
        data: Vec<u8>,
    },
    /// A range was made zero, or its space given back.
    Zero {
        /// Where.
        at: u64,
        /// How much.
        len: u64,
    },
    /// The file got another size.
    Size(u64),
    /// All before is durable.
    Sync,
}

thread_local! {
    static EVENTS: RefCell<Option<Vec<Event>>> = const { RefCell::new(None) };
}

/// Notes from now on what this thread does to files.
pub fn begin() {
    EVENTS.with_borrow_mut(|events| *events = Some(Vec::new()));
}

/// How much was noted so far.
pub fn len() -> usize {
    EVENTS.with_borrow(|events| events.as_ref().map_or(0, Vec::len))
}

/// What was noted.
pub fn end() -> Vec<Event> {
    EVENTS.with_borrow_mut(Option::take).unwrap_or_default()
}

pub(crate) fn note(event: impl FnOnce() -> Event) {
    EVENTS.with_borrow_mut(|events| {
        if let Some(events) = events {
            events.push(event());
        }
    });
}

/// The file that had `image` and to which `events` happened, after a power cut: what came before the last sync, and of the
/// rest the sectors and changes for which `survived` says so.
pub fn after_power_cut(mut image: Vec<u8>, events: &[Event], mut survived: impl FnMut() -> bool) -> Vec<u8> {
    let durable = events.iter().rposition(|event| matches!(event, Event::Sync)).unwrap_or(0);
    for (index, event) in events.iter().enumerate() {
        let mut stays = || index < durable || survived();
        match event {
            Event::Write { at, data } => {
                let mut at = *at as usize;
                // Pieces end where sectors do.
                let (first, rest) = data.split_at(data.len().min(SECTOR - at % SECTOR));
                for piece in std::iter::once(first).chain(rest.chunks(SECTOR)) {
                    if stays() {
                        let len = image.len().max(at + piece.len());
                        image.resize(len, 0);
                        if let Some(place) = image.get_mut(at..at + piece.len()) {
                            place.copy_from_slice(piece);
                        }
                    }
                    at += piece.len();
                }
            }
            Event::Zero { at, len } if stays() => {
                let end = image.len().min((at + len) as usize);
                if let Some(range) = image.get_mut(*at as usize..end) {
                    range.fill(0);
                }
            }
            Event::Size(size) if stays() => image.resize(*size as usize, 0),
            _ => {}
        }
    }
    image
}
