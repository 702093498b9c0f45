//! The one lifecycle table, for whole computers and for single programs.
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a VM is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Described, never started.
    Defined,
    /// Its process is being set up.
    Starting,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still; its memory and devices are kept.
    Paused,
    /// It ended in an orderly way.
    Stopped,
    /// It ended by a fault of its own or of ours.
    Failed,
}

/// What a user can ask of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Ask {
    /// Begin to run.
    Start,
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// Press the power button: the guest shuts itself down.
    Stop,
    /// End now.
    Kill,
    /// Forget it.
    Remove,
}

impl State {
    /// Every state, for tables and tests.
    pub const ALL: [State; 6] =
        [State::Defined, State::Starting, State::Running, State::Paused, State::Stopped, State::Failed];

    /// Whether a process exists for the VM in this state.
    pub fn is_live(self) -> bool {
        matches!(self, State::Starting | State::Running | State::Paused)
    }

    /// The state's name as users read it.
    pub fn name(self) -> &'static str {
        match self {
            State::Defined => "defined",
            State::Starting => "starting",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "stopped",
            State::Failed => "failed",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Ask {
    /// Every request, for tables and tests.
    pub const ALL: [Ask; 6] = [Ask::Start, Ask::Pause, Ask::Resume, Ask::Stop, Ask::Kill, Ask::Remove];

    /// The verb of the command line.
    pub fn verb(self) -> &'static str {
        match self {
            Ask::Start => "start",
            Ask::Pause => "pause",
            Ask::Resume => "resume",
            Ask::Stop => "stop",
            Ask::Kill => "kill",
            Ask::Remove => "rm",
        }
    }
}

/// A request that the present state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The state that the VM is in.
    pub from: State,
    /// What was asked.
    pub ask: Ask,
}

impl Refused {
    /// What the user can do about it, for the VM called `name`.
    pub fn fix(self, name: &str) -> String {
        match (self.ask, self.from) {
            (Ask::Start, State::Paused) => format!("resume it instead: viv resume {name}"),
            (Ask::Start, _) => {
                format!("it needs no start; see it with: viv ps, or end it first: viv stop {name}")
            }
            (Ask::Pause | Ask::Resume, State::Running | State::Paused) => {
                "nothing needs to be done".to_string()
            }
            (Ask::Pause | Ask::Resume, State::Starting) => "wait until it runs: viv ps".to_string(),
            (Ask::Pause | Ask::Resume, _) => format!("start it first: viv start {name}"),
            (Ask::Stop | Ask::Kill, _) => {
                format!("nothing needs to be done; to forget it: viv rm {name}")
            }
            (Ask::Remove, _) => {
                format!("stop it first: viv stop {name}, or remove it by force: viv rm -f {name}")
            }
        }
    }
}

/// The state after `ask`, or why not. The only place that knows which step is allowed.
pub fn next(from: State, ask: Ask) -> Result<State, Refused> {
    use State::*;
    Ok(match (from, ask) {
        (Defined | Stopped | Failed, Ask::Start) => Starting,
        (Running, Ask::Pause) => Paused,
        (Paused, Ask::Resume) => Running,
        (Starting | Running | Paused, Ask::Stop | Ask::Kill) => Stopped,
        (Defined | Stopped | Failed, Ask::Remove) => from,
        _ => return Err(Refused { from, ask }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let mut refusals = 0;
        for from in State::ALL {
            for ask in Ask::ALL {
                if let Err(refused) = next(from, ask) {
                    assert!(!refused.fix("web").is_empty(), "{refused:?}");
                    refusals += 1;
                }
            }
        }
        assert_eq!(refusals, 22);
    }

    #[test]
    fn only_a_live_vm_can_be_stopped() {
        for from in State::ALL {
            assert_eq!(next(from, Ask::Stop).is_ok(), from.is_live(), "{from}");
        }
    }
}
