//! What makes instances that compute give way to one another.
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use wasmtime::Engine;

/// How long one computes before the others have their turn.
const SLICE: Duration = Duration::from_millis(5);

/// Raises the epoch after each slice of time, while anything runs.
#[derive(Default)]
pub(super) struct Ticker {
    running: Mutex<usize>,
    more: Condvar,
}

/// Something that runs, until this is dropped.
pub(super) struct Turn(Arc<Ticker>);

impl Ticker {
    fn lock(&self) -> MutexGuard<'_, usize> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something runs.
    pub(super) fn turn(self: &Arc<Ticker>) -> Turn {
        *self.lock() += 1;
        self.more.notify_one();
        Turn(self.clone())
    }

    /// Begins, for as long as the process lives.
    pub(super) fn start(self: &Arc<Ticker>, engine: Engine) -> io::Result<()> {
        let ticker = self.clone();
        let tick = move || {
            loop {
                drop(ticker.more.wait_while(ticker.lock(), |running| *running == 0));
                thread::sleep(SLICE);
                engine.increment_epoch();
            }
        };
        thread::Builder::new().name("ticker".into()).spawn(tick).map(drop)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut running = self.0.lock();
        *running = running.saturating_sub(1);
    }
}
