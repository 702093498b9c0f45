//! Long works: begun by a request, done beside those of others, written down so that nothing of them is lost.
//!
//! ```text
//!  request ─► Task ─► store ─► Live: waits for a slot ─► runs ─► store
//!                               │ progress, as lines, to whoever began it and to whoever follows it
//! ```
//!
//! Whoever begins a work and stays is told all of it, and has it given up by going away. One that is detached goes on by itself, and is
//! taken up by the next service if this one ends: every task can be done again from what is left of it.
mod build;
mod live;
mod of_vm;
mod task;

pub(crate) use task::{Task, shown};

use crate::blocking::{blocking, defect};
use crate::http::{self, Body};
use crate::projects::Scope;
use crate::service::{Busy, Service};
use crate::store::{OperationRecord, Store, StoreError};
use hyper::Response;
use hyper::body::Bytes;
use live::Live;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, mpsc};
use viv_api::endpoint::Route;
use viv_api::operation::{Operation, OperationState, WorkLine};
use viv_api::timestamp::Timestamp;
use viv_model::{Fault, Kind, ProjectName};

/// The media type of lines.
pub(crate) const MEDIA: &str = "application/x-ndjson";
/// How many go on at a time; others wait. Most of them wait for a network or a disk. Those that only this host has to do with do not wait
/// for what may wait for another one.
const AT_A_TIME: usize = 8;
/// How many may wait and go on together: whoever asks for more comes again.
const LIVE_MAX: usize = 256;
/// How often one begins that the service does not outlive.
const RUNS_MAX: u32 = 3;
/// Most lines that wait for a slow reader.
const LINES_MAX: usize = 64;

/// Those that go on.
pub(crate) struct Operations {
    live: Mutex<HashMap<u64, Arc<Live>>>,
    next: AtomicU64,
    slots: Arc<Semaphore>,
    /// Those for snapshots.
    snapshot_slots: Arc<Semaphore>,
}

/// How who asks for a work hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// By lines, as it goes on.
    Lines,
    /// By its outcome.
    Outcome,
    /// Not at all: it goes on by itself.
    Detached,
}

impl Operations {
    /// None goes on yet; numbers go on behind those that are kept.
    pub(crate) fn open(store: &dyn Store) -> Result<Operations, StoreError> {
        let last = store.operations()?.last().map_or(0, |record| record.operation.id);
        let next = AtomicU64::new(last.saturating_add(1));
        let slots = || Arc::new(Semaphore::new(AT_A_TIME));
        Ok(Operations { live: Mutex::default(), next, slots: slots(), snapshot_slots: slots() })
    }

    fn live(&self) -> MutexGuard<'_, HashMap<u64, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self) -> Result<(), Fault> {
        if self.live().len() < LIVE_MAX {
            return Ok(());
        }
        let text = format!("{LIVE_MAX} operations go on or wait already");
        Err(Fault::new(
            Kind::NoCapacity,
            text,
            "wait until some have ended, or have some give up: viv operation ls --live",
        ))
    }

    /// How many wait, and how many run.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let live = self.live();
        let waiting = live.values().filter(|live| live.shown().state == OperationState::Waiting).count();
        (waiting, live.len() - waiting)
    }
}

/// Begins one: answers with its lines or its outcome, or, if it is detached, with what it is. Who only wants something to be there that is
/// has it at once.
pub(crate) async fn begin(
    service: Arc<Service>,
    task: Task,
    report: Report,
    project: Option<ProjectName>,
) -> Result<Response<Body>, Fault> {
    task.check()?;
    let detached = report == Report::Detached;
    let (kept, asked) = (service.clone(), task.clone());
    if !detached && let Some(made) = blocking(move || Ok(asked.there(&kept))).await? {
        let (lines, receiver) = mpsc::channel(1);
        let _ = lines.try_send(live::line(&WorkLine::Done(made)));
        return Ok(http::pieces(receiver, MEDIA));
    }
    service.operations.has_room()?;
    let kept = service.clone();
    let record = blocking(move || {
        let id = kept.operations.next.fetch_add(1, Ordering::Relaxed);
        let record = OperationRecord::new(id, task, detached, project);
        kept.vms.store.put_operation(&record)?;
        Ok(record)
    })
    .await?;
    if detached {
        let place = Route::OperationGet.path(&[&record.operation.id.to_string()]);
        let answer = http::begun(&record.operation, &place);
        start(&service, record, None);
        return Ok(answer);
    }
    let (lines, mut receiver) = mpsc::channel(LINES_MAX);
    start(&service, record, Some(lines));
    if report == Report::Lines {
        return Ok(http::pieces(receiver, MEDIA));
    }
    while let Some(line) = receiver.recv().await {
        match serde_json::from_slice::<WorkLine<Value>>(&line) {
            Ok(WorkLine::Done(made)) => return Ok(http::json(&made)),
            Ok(WorkLine::Failed(fault)) => return Err(fault),
            _ => {}
        }
    }
    Err(defect("nobody says what became of the work"))
}

/// What the last service has left: what is detached goes on, and of the rest is told that it was interrupted.
pub(crate) fn take_up(service: &Arc<Service>) -> Result<(), Fault> {
    for mut record in service.vms.store.operations()? {
        let operation = &mut record.operation;
        if operation.state.is_over() {
            continue;
        }
        let goes_on = operation.detached && operation.runs < RUNS_MAX;
        if goes_on {
            operation.runs += 1;
        } else {
            let again = "nothing half-made of it is used; do it again";
            let text = match operation.detached {
                true => format!("the service ended {} times in the middle of it", operation.runs),
                false => "the service ended in the middle of it".to_string(),
            };
            operation.state = OperationState::Interrupted;
            operation.ended_at = Some(Timestamp::now());
            operation.fault = Some(Fault::new(Kind::Error, text, again));
        }
        service.vms.store.put_operation(&record)?;
        if goes_on {
            start(service, record, None);
        }
    }
    Ok(())
}

/// Has it done, in its turn.
fn start(service: &Arc<Service>, record: OperationRecord, asker: Option<mpsc::Sender<Bytes>>) {
    let (id, is_of_snapshots) = (record.operation.id, record.task.is_of_snapshots());
    let live = Arc::new(Live::new(record, asker));
    service.operations.live().insert(id, live.clone());
    let (service, busy) = (service.clone(), Busy::new(&service.work));
    tokio::spawn(async move {
        let Operations { slots, snapshot_slots, .. } = &service.operations;
        let slot = live.slot(if is_of_snapshots { snapshot_slots } else { slots }).await;
        let worked = tokio::task::spawn_blocking(move || {
            let ended = live.work(&service, slot.is_some());
            service.operations.live().remove(&id);
            live.say_last(&ended);
            drop(slot);
        });
        let _ = worked.await;
        drop(busy);
    });
}

/// All that are kept, as they are now, oldest first.
pub(crate) fn list(service: &Service) -> Result<Vec<Operation>, Fault> {
    let live: HashMap<u64, Operation> =
        service.operations.live().iter().map(|(id, live)| (*id, live.shown())).collect();
    let mut all: Vec<_> =
        service.vms.store.operations()?.into_iter().map(|record| record.operation).collect();
    for operation in all.iter_mut().filter(|operation| !operation.state.is_over()) {
        if let Some(now) = live.get(&operation.id) {
            operation.clone_from(now);
        }
    }
    Ok(all)
}

/// One that the scope sees, as it is now.
pub(crate) fn get(service: &Service, scope: &Scope, number: &str) -> Result<Operation, Fault> {
    let unknown = || {
        let text = format!("no operation has the number {number:?}");
        Fault::new(Kind::NotFound, text, "see which there are: viv operation ls")
    };
    let id: u64 = number.parse().map_err(|_| unknown())?;
    let seen = |operation: &Operation| operation.id == id && scope.sees(operation);
    list(service)?.into_iter().find(seen).ok_or_else(unknown)
}

/// Has one give up.
pub(crate) fn cancel(service: &Service, scope: &Scope, number: &str) -> Result<Operation, Fault> {
    let operation = get(service, scope, number)?;
    let live = service.operations.live().get(&operation.id).cloned();
    match live {
        Some(live) => {
            live.give_up();
            Ok(live.shown())
        }
        None => {
            let operation = get(service, scope, number)?;
            let text = format!("operation {number} has ended already: it is {}", operation.state);
            Err(Fault::new(
                Kind::Conflict,
                text,
                format!("see what became of it: viv operation show {number}"),
            ))
        }
    }
}

/// The lines of one from now on, the last one with its end.
pub(crate) fn follow(
    service: &Arc<Service>,
    scope: Scope,
    number: &str,
) -> Result<mpsc::Receiver<Bytes>, Fault> {
    let operation = get(service, &scope, number)?;
    let live = service.operations.live().get(&operation.id).cloned();
    let (lines, receiver) = mpsc::channel(LINES_MAX);
    let (now, mut passing) = match live {
        Some(live) => (live.shown(), Some(live.follow())),
        None => (operation, None),
    };
    let (service, number) = (service.clone(), number.to_string());
    tokio::spawn(async move {
        let _ = lines.send(live::line(&WorkLine::Operation(Box::new(now)))).await;
        while let Some(passing) = &mut passing {
            match passing.recv().await {
                Ok(line) => {
                    if lines.send(line).await.is_err() {
                        return;
                    }
                }
                Err(RecvError::Lagged(_)) => {} // a slow reader misses some
                Err(RecvError::Closed) => break,
            }
        }
        if let Ok(ended) = blocking(move || get(&service, &scope, &number)).await {
            let _ = lines.send(live::last_line(&ended)).await;
        }
    });
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;

    fn record(id: u64) -> OperationRecord {
        OperationRecord::new(id, Task::ImageImport { ask: Default::default() }, true, None)
    }

    #[test]
    fn numbers_go_on_behind_those_that_are_kept() {
        let store = MemoryStore::default();
        let next = |store: &MemoryStore| Operations::open(store).unwrap().next.into_inner();
        assert_eq!(next(&store), 1);
        store.put_operation(&record(7)).unwrap();
        assert_eq!(next(&store), 8);
    }

    #[test]
    fn there_is_no_room_for_any_number() {
        let operations = Operations::open(&MemoryStore::default()).unwrap();
        for id in 0..LIVE_MAX as u64 {
            operations.has_room().unwrap();
            operations.live().insert(id, Arc::new(Live::new(record(id), None)));
        }
        assert_eq!(operations.has_room().unwrap_err().kind, Kind::NoCapacity);
        assert_eq!(operations.counts(), (LIVE_MAX, 0));
    }
}
