//! What somebody waits for a VM to become.
use crate::event::{Event, What};
use crate::vm::Vm;
use std::fmt;
use std::str::FromStr;
use viv_model::{HealthState, State};

/// What a VM is waited for to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// It does not run: it has ended, or was never started.
    #[default]
    Ended,
    /// It is forgotten.
    Removed,
    /// It is in this state.
    State(State),
    /// Its guest is so, by its health check.
    Health(HealthState),
}

impl Goal {
    /// Every goal, for texts and tests.
    pub const ALL: [Goal; 10] = [
        Goal::State(State::Running),
        Goal::State(State::Paused),
        Goal::Health(HealthState::Healthy),
        Goal::Health(HealthState::Unhealthy),
        Goal::Ended,
        Goal::State(State::Stopped),
        Goal::State(State::Failed),
        Goal::Removed,
        Goal::State(State::Starting),
        Goal::State(State::Defined),
    ];

    /// Whether a VM is that.
    pub fn is_reached(self, vm: &Vm) -> bool {
        match self {
            Goal::Ended => !vm.state.is_live(),
            Goal::Removed => false,
            Goal::State(state) => vm.state == state,
            Goal::Health(state) => vm.health.as_ref().is_some_and(|health| health.state == state),
        }
    }

    /// Whether this is told by an event: it may be over when one looks.
    pub fn is_told(self, event: &Event) -> bool {
        match self {
            Goal::Ended => event.state.is_some_and(|state| !state.is_live()),
            Goal::Removed => event.event == What::VmRemoved,
            Goal::State(state) => event.state == Some(state),
            Goal::Health(state) => event.event == What::VmHealth && event.message == Some(state.to_string()),
        }
    }

    /// Whether a VM that has ended, and is not started again, cannot come to it by itself.
    pub fn needs_life(self) -> bool {
        !matches!(self, Goal::Ended | Goal::Removed)
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::Ended => f.write_str("ended"),
            Goal::Removed => f.write_str("removed"),
            Goal::State(state) => state.fmt(f),
            Goal::Health(state) => state.fmt(f),
        }
    }
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Goal, String> {
        Goal::ALL.into_iter().find(|goal| goal.to_string() == text).ok_or_else(|| {
            let names = Goal::ALL.map(|goal| goal.to_string()).join(", ");
            format!("no VM becomes {text:?}; wait for one of: {names}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read_as_they_are_shown() {
        assert!(Goal::ALL.into_iter().all(|goal| goal.to_string().parse() == Ok(goal)));
        assert!("dead".parse::<Goal>().unwrap_err().contains("healthy"));
    }

    #[test]
    fn a_state_that_is_over_was_told() {
        let event = |what| Event::new(what, Some("a1"), "web");
        let stopped = Event { state: Some(State::Stopped), ..event(What::VmState) };
        assert!(Goal::Ended.is_told(&stopped) && Goal::State(State::Stopped).is_told(&stopped));
        assert!(
            !Goal::State(State::Running).is_told(&stopped) && !Goal::Ended.is_told(&event(What::VmChanged))
        );
        let well = Event { message: Some("healthy".into()), ..event(What::VmHealth) };
        assert!(Goal::Health(HealthState::Healthy).is_told(&well));
        assert!(!Goal::Health(HealthState::Unhealthy).is_told(&well));
        assert!(Goal::Removed.is_told(&event(What::VmRemoved)));
    }
}
