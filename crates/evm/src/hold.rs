//! Lets a chain stand still: while it is held nobody gets an answer and no block is made, and nothing is lost.
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

/// The chain is to end: what was going on is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chain is stopping")]
pub struct Ended;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Held,
    Ended,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    /// The same, for those who wait without a thread.
    told: watch::Sender<State>,
}

/// What requests and blocks pass. A clone is the same one.
#[derive(Clone, Debug)]
pub struct Hold(Arc<Inner>);

impl Default for Hold {
    fn default() -> Hold {
        let told = watch::channel(State::Open).0;
        Hold(Arc::new(Inner { state: Mutex::new(State::Open), changed: Condvar::new(), told }))
    }
}

impl Hold {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An end is for good.
    fn turn(&self, wanted: State) {
        let mut state = self.lock();
        if *state != State::Ended {
            *state = wanted;
            self.0.told.send_replace(wanted);
        }
        drop(state);
        self.0.changed.notify_all();
    }

    /// Holds whoever comes.
    pub fn close(&self) {
        self.turn(State::Held);
    }

    /// Lets them go on.
    pub fn open(&self) {
        self.turn(State::Open);
    }

    /// Has them give up, now and from now on.
    pub fn end(&self) {
        self.turn(State::Ended);
    }

    /// Whether it holds.
    pub fn is_closed(&self) -> bool {
        *self.lock() == State::Held
    }

    /// Passes, once it is open. Whether that took a wait.
    pub fn pass(&self) -> Result<bool, Ended> {
        let mut state = self.lock();
        let waits = *state == State::Held;
        while *state == State::Held {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if *state == State::Ended { Err(Ended) } else { Ok(waits) }
    }

    /// The same without a thread; comes back at an end, too.
    pub async fn passed(&self) {
        // The sender lives as long as this.
        let _ = self.0.told.subscribe().wait_for(|state| *state != State::Held).await;
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn who_comes_waits_until_it_is_open_or_ended() {
        let hold = Hold::default();
        assert_eq!(hold.pass(), Ok(false));
        hold.close();
        let waits = |hold: &Hold| {
            let hold = hold.clone();
            thread::spawn(move || hold.pass())
        };
        let (first, second) = (waits(&hold), waits(&hold));
        thread::sleep(std::time::Duration::from_millis(20));
        assert!(!first.is_finished() && !second.is_finished());
        hold.open();
        assert!(first.join().expect("no panic").is_ok() && second.join().expect("no panic").is_ok());
        hold.close();
        let third = waits(&hold);
        hold.end();
        hold.open();
        assert_eq!(
            (third.join().expect("no panic"), hold.pass()),
            (Err(Ended), Err(Ended)),
            "an end is for good"
        );
    }
}
