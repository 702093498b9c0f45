//! Start, pause, resume and end, as the threads see them.
use super::lock;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};
use viv_model::End;

/// Where the machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Built, never started.
    Ready,
    /// vCPUs run.
    Running,
    /// vCPUs stand still, or will in a moment.
    Paused,
    /// It is over.
    Ended,
}

struct State {
    phase: Phase,
    end: Option<End>,
    /// vCPUs that stand at the gate.
    standing: usize,
}

/// See the module.
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

impl Control {
    pub(crate) fn new() -> Control {
        let state = State { phase: Phase::Ready, end: None, standing: 0 };
        Control { state: Mutex::new(state), changed: Condvar::new() }
    }

    pub(crate) fn phase(&self) -> Phase {
        lock(&self.state).phase
    }

    pub(crate) fn ended(&self) -> bool {
        self.phase() == Phase::Ended
    }

    /// Goes from one of `from` to `to`; else says where the machine is.
    pub(crate) fn go(&self, from: &[Phase], to: Phase) -> Result<(), Phase> {
        let mut state = lock(&self.state);
        if !from.contains(&state.phase) {
            return Err(state.phase);
        }
        state.phase = to;
        self.changed.notify_all();
        Ok(())
    }

    /// The end, if it is the first.
    pub(crate) fn end(&self, end: End) {
        let mut state = lock(&self.state);
        state.end.get_or_insert(end);
        state.phase = Phase::Ended;
        self.changed.notify_all();
    }

    /// Blocks until the end.
    pub(crate) fn wait_end(&self) -> End {
        let mut state = lock(&self.state);
        loop {
            if let Some(end) = &state.end {
                return end.clone();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Blocks until `cpus` vCPUs stand still or the machine has ended; false after `timeout`.
    pub(crate) fn wait_standing(&self, cpus: usize, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut state = lock(&self.state);
        while state.standing < cpus && state.phase != Phase::Ended {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// A vCPU passes here between two runs. Returns whether it had to stand, or `None` at the end.
    pub(crate) fn gate(&self, before_standing: impl FnOnce()) -> Option<bool> {
        let mut state = lock(&self.state);
        let stands = matches!(state.phase, Phase::Paused | Phase::Ready);
        if stands {
            before_standing();
            state.standing += 1;
            self.changed.notify_all();
            while matches!(state.phase, Phase::Paused | Phase::Ready) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.standing -= 1;
        }
        (state.phase != Phase::Ended).then_some(stands)
    }
}
