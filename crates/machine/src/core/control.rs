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
    /// They wait there for a moment, though it runs.
    held: bool,
}

/// See the module.
pub(crate) struct Control {
    state: Mutex<State>,
    changed: Condvar,
}

impl Control {
    pub(crate) fn new() -> Control {
        let state = State { phase: Phase::Ready, end: None, standing: 0, held: false };
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

    /// vCPUs of a running machine wait at the gate, or go on.
    pub(crate) fn hold(&self, hold: bool) {
        lock(&self.state).held = hold;
        self.changed.notify_all();
    }

    /// A vCPU passes here between two runs. Returns whether it had to stand, or `None` at the end.
    pub(crate) fn gate(&self, mut before_standing: impl FnMut()) -> Option<bool> {
        let mut state = lock(&self.state);
        let mut stood = false;
        loop {
            match state.phase {
                Phase::Ended => return None,
                Phase::Running if !state.held => return Some(stood),
                Phase::Running => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Phase::Paused | Phase::Ready => {
                    stood = true;
                    before_standing();
                    state.standing += 1;
                    self.changed.notify_all();
                    while matches!(state.phase, Phase::Paused | Phase::Ready) {
                        state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                    state.standing -= 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, channel};
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A vCPU that goes through the gate once, and says how.
    fn through(control: &Arc<Control>) -> Receiver<Option<bool>> {
        let (sender, passed) = channel();
        let control = control.clone();
        thread::spawn(move || sender.send(control.gate(|| ())));
        passed
    }

    #[test]
    fn a_held_vcpu_waits_and_can_be_paused_meanwhile() {
        let control = Arc::new(Control::new());
        control.go(&[Phase::Ready], Phase::Running).unwrap();
        assert_eq!(through(&control).recv_timeout(LIMIT), Ok(Some(false)));
        control.hold(true);
        let passed = through(&control);
        assert!(passed.recv_timeout(Duration::from_millis(50)).is_err(), "it is held");
        control.go(&[Phase::Running], Phase::Paused).unwrap();
        assert!(control.wait_standing(1, LIMIT), "whoever pauses finds it");
        control.go(&[Phase::Paused], Phase::Running).unwrap();
        assert!(passed.recv_timeout(Duration::from_millis(50)).is_err(), "it is still held");
        control.hold(false);
        assert_eq!(passed.recv_timeout(LIMIT), Ok(Some(true)), "it had to stand");
        control.hold(true);
        let passed = through(&control);
        control.end(End::Killed);
        assert_eq!(passed.recv_timeout(LIMIT), Ok(None), "an end waits for nobody");
    }
}
