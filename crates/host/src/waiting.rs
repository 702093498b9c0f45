//! Waiting for a VM to become something: on events and on its process, without looking again and again.
use crate::blocking::{blocking, defect};
use crate::events::PIECE;
use crate::runners::Runner;
use crate::service::ended;
use crate::vms::Vms;
use std::sync::Arc;
use std::time::{Duration, Instant};
use viv_api::endpoint::query_value;
use viv_api::goal::Goal;
use viv_api::vm::Vm;
use viv_model::{Fault, Kind, State};

/// After how long a VM that is between two processes is looked at again.
const LOOK: Duration = Duration::from_millis(20);

/// Answers when the VM is what the query says.
pub(crate) async fn answer(vms: Arc<Vms>, name: &str, query: &str) -> Result<Vm, Fault> {
    let usage = |text| Fault::new(Kind::Usage, text, "see: viv wait --help");
    let state = query_value(query, "state").filter(|state| !state.is_empty());
    let goal = state.map_or(Ok(Goal::default()), |state| state.parse()).map_err(usage)?;
    let limit = query_value(query, "timeout").and_then(|limit| limit.parse().ok()).map(Duration::from_secs);
    let named = name.to_string();
    let found = vms.clone();
    // Before one looks: nothing that happens from now on is missed.
    let after = *vms.store.newest().borrow();
    let first = blocking(move || found.get(&named)).await?;
    let begin = Instant::now();
    let mut wait = Wait { vms, goal, after, was_live: false, last: first };
    let reached = match limit {
        None => return wait.reached().await,
        Some(limit) => tokio::time::timeout(limit, wait.reached()).await,
    };
    reached.unwrap_or_else(|_| {
        let Vm { name, state, .. } = &wait.last;
        Err(Fault::new(
            Kind::StillGoingOn,
            format!("VM {name:?} is {state} and not {goal} after {} s", begin.elapsed().as_secs()),
            format!("see how it is: viv inspect {name}; or wait longer: viv wait {name} --state {goal}"),
        ))
    })
}

/// Somebody who waits.
struct Wait {
    vms: Arc<Vms>,
    goal: Goal,
    /// The last event that was looked at.
    after: u64,
    /// It has run meanwhile.
    was_live: bool,
    /// As it was seen last.
    last: Vm,
}

impl Wait {
    async fn reached(&mut self) -> Result<Vm, Fault> {
        loop {
            self.was_live |= self.last.state.is_live();
            if self.goal.is_reached(&self.last) {
                return Ok(self.last.clone());
            }
            self.may_still_be()?;
            // The end of a process is seen before it is told.
            let told = match self.goal == Goal::Ended {
                true => self.process_ended().await?,
                false => self.event().await?,
            };
            let (vms, id) = (self.vms.clone(), self.last.id.clone());
            match blocking(move || vms.get(&id)).await {
                Ok(vm) => self.last = vm,
                // One that is forgotten when it ends may be gone by now.
                Err(fault) if fault.kind == Kind::NotFound && !self.goal.needs_life() => {
                    let state = if self.last.state.is_live() { State::Stopped } else { self.last.state };
                    return Ok(Vm { pid: None, state, ..self.last.clone() });
                }
                Err(fault) => return Err(fault),
            }
            // It was that, whatever it is by now.
            if told {
                return Ok(self.last.clone());
            }
        }
    }

    /// Waits for its process; whether it has ended for sure.
    async fn process_ended(&self) -> Result<bool, Fault> {
        let (_, runner) = self.vms.find(&self.last.id)?;
        match runner.beside(Runner::process).await {
            Some(process) => ended(&process).await,
            // It is about to have one, or has just lost it.
            None => tokio::time::sleep(LOOK).await,
        }
        Ok(false)
    }

    /// Waits for the next event of the VM; whether that tells what is waited for.
    async fn event(&mut self) -> Result<bool, Fault> {
        let mut newest = self.vms.store.newest();
        loop {
            let (vms, from) = (self.vms.clone(), self.after);
            let past = blocking(move || Ok(vms.store.events(from, PIECE)?)).await?;
            self.after = past.events.last().map_or(from, |event| event.revision);
            let mut own = past.events.clone();
            own.retain(|event| event.id.as_ref() == Some(&self.last.id));
            if !own.is_empty() || past.has_gap {
                self.was_live |= own.iter().any(|event| event.state.is_some_and(State::is_live));
                return Ok(own.iter().any(|event| self.goal.is_told(event)));
            }
            if past.events.is_empty() {
                newest.changed().await.map_err(|_| defect("no events come any more"))?;
            }
        }
    }

    /// Refuses to wait for what does not come by itself any more.
    fn may_still_be(&self) -> Result<(), Fault> {
        let Vm { name, state, health, .. } = &self.last;
        if matches!(self.goal, Goal::Health(_)) && *state == State::Running && health.is_none() {
            return Err(Fault::new(
                Kind::Conflict,
                format!("VM {name:?} has no health check: nobody knows whether it is {}", self.goal),
                "give it one when it is made: viv run --health-cmd 'COMMAND'",
            ));
        }
        let wanted = self.vms.store.by_id(&self.last.id)?.is_some_and(|record| record.wanted);
        if !self.goal.needs_life() || state.is_live() || !self.was_live || wanted {
            return Ok(());
        }
        Err(Fault::new(
            Kind::Conflict,
            format!("VM {name:?} has ended before it was {}: it is {state}", self.goal),
            format!("see why: viv logs {name}"),
        ))
    }
}
