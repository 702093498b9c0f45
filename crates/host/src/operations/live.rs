//! A long work that goes on.
use crate::blocking::defect;
use crate::images::{Watcher, cancelled};
use crate::service::Service;
use crate::store::OperationRecord;
use hyper::body::Bytes;
use serde_json::Value;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, mpsc};
use viv_api::operation::{Operation, OperationState, Progress, WorkLine};
use viv_api::timestamp::Timestamp;
use viv_model::Fault;

/// Lines that wait for a slow follower, who misses the first of more.
const FOLLOWED_MAX: usize = 256;
/// How often one that waits looks whether it is given up.
const LOOK: Duration = Duration::from_millis(100);

/// It.
pub(super) struct Live {
    record: Mutex<OperationRecord>,
    given_up: AtomicBool,
    /// Whoever began it and stays.
    asker: Option<mpsc::Sender<Bytes>>,
    followers: broadcast::Sender<Bytes>,
}

/// A line for who reads them.
pub(super) fn line(line: &WorkLine<Value>) -> Bytes {
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

/// The last line of one that has ended.
pub(super) fn last_line(ended: &Operation) -> Bytes {
    line(&match (&ended.fault, &ended.result) {
        (Some(fault), _) => WorkLine::Failed(fault.clone()),
        (None, Some(result)) => WorkLine::Done(result.clone()),
        (None, None) => WorkLine::Failed(defect("what became of the work is not written down")),
    })
}

impl Live {
    pub(super) fn new(record: OperationRecord, asker: Option<mpsc::Sender<Bytes>>) -> Live {
        let followers = broadcast::Sender::new(FOLLOWED_MAX);
        Live { record: Mutex::new(record), given_up: AtomicBool::new(false), asker, followers }
    }

    fn lock(&self) -> MutexGuard<'_, OperationRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As it is now.
    pub(super) fn shown(&self) -> Operation {
        self.lock().operation.clone()
    }

    /// Its lines from now on, but the last.
    pub(super) fn follow(&self) -> broadcast::Receiver<Bytes> {
        self.followers.subscribe()
    }

    /// Has it give up.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// On a thread that may wait for a slow asker.
    fn say(&self, told: &WorkLine<Value>) {
        let bytes = line(told);
        if let Some(asker) = &self.asker {
            let _ = asker.blocking_send(bytes.clone());
        }
        let _ = self.followers.send(bytes); // nobody follows it
    }

    /// Tells whoever began it how it ended.
    pub(super) fn say_last(&self, ended: &Operation) {
        if let Some(asker) = &self.asker {
            let _ = asker.blocking_send(last_line(ended));
        }
    }

    /// Waits for its turn; nothing if it is given up before.
    pub(super) async fn slot(&self, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = slots.clone().try_acquire_owned() {
            return Some(slot);
        }
        let waits = {
            let mut record = self.lock();
            let why = format!("{} others go on; it begins when one of them ends", super::AT_A_TIME);
            record.operation.waits_for = Some(why);
            line(&WorkLine::Operation(Box::new(record.operation.clone())))
        };
        if let Some(asker) = &self.asker {
            let _ = asker.try_send(waits.clone()); // it is the first line: there is room for it
        }
        let _ = self.followers.send(waits);
        let mut slot = pin!(slots.clone().acquire_owned());
        loop {
            match tokio::time::timeout(LOOK, &mut slot).await {
                Ok(slot) => return slot.ok(),
                Err(_) if self.cancelled() => return None,
                Err(_) => {}
            }
        }
    }

    /// Does it, and writes down how it ended.
    pub(super) fn work(&self, service: &Service, has_slot: bool) -> Operation {
        let outcome = match has_slot {
            true => self.run(service),
            false => Err(cancelled()),
        };
        let record = {
            let mut record = self.lock();
            let operation = &mut record.operation;
            operation.state = match &outcome {
                Ok(_) => OperationState::Done,
                Err(_) if self.cancelled() => OperationState::Cancelled,
                Err(_) => OperationState::Failed,
            };
            operation.ended_at = Some(Timestamp::now());
            (operation.progress, operation.waits_for) = (None, None);
            match outcome {
                Ok(result) => operation.result = Some(result),
                Err(fault) => operation.fault = Some(fault),
            }
            record.clone()
        };
        if let Err(error) = service.vms.store.put_operation(&record) {
            viv_api::complain!(
                "viv serve: cannot write down the end of operation {}: {error}",
                record.operation.id
            );
        }
        record.operation
    }

    fn run(&self, service: &Service) -> Result<Value, Fault> {
        let (task, begun) = {
            let mut record = self.lock();
            record.operation.state = OperationState::Running;
            record.operation.waits_for = None;
            (record.task.clone(), record.operation.clone())
        };
        self.say(&WorkLine::Operation(Box::new(begun)));
        let done = catch_unwind(AssertUnwindSafe(|| task.run(service, self)));
        done.unwrap_or_else(|_| Err(defect("the work panicked")))
    }
}

impl Watcher for Live {
    fn progress(&self, progress: Progress) {
        self.lock().operation.progress = Some(progress.clone());
        self.say(&WorkLine::Progress(progress));
    }

    fn said(&self, line: &str) {
        self.say(&WorkLine::Said(line.to_string()));
    }

    fn cancelled(&self) -> bool {
        self.given_up.load(Ordering::Relaxed) || self.asker.as_ref().is_some_and(mpsc::Sender::is_closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operations::Task;

    fn live(asker: Option<mpsc::Sender<Bytes>>) -> Live {
        Live::new(
            OperationRecord::new(7, Task::ImageImport { ask: Default::default() }, asker.is_none(), None),
            asker,
        )
    }

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    #[test]
    fn one_without_a_slot_says_why_it_waits_and_can_be_given_up() {
        let slots = Arc::new(Semaphore::new(1));
        let held = run(live(None).slot(&slots));
        assert!(held.is_some());
        let (asker, mut lines) = mpsc::channel(4);
        let waits = Arc::new(live(Some(asker)));
        let waiting = waits.clone();
        let (taken, slot) = run(async move {
            let other = slots.clone();
            let waiting = tokio::spawn(async move { waiting.slot(&other).await });
            let first = lines.recv().await.unwrap();
            drop(lines); // whoever began it goes
            (first, waiting.await.unwrap())
        });
        let WorkLine::Operation(told) = serde_json::from_slice::<WorkLine<Value>>(&taken).unwrap() else {
            panic!("{taken:?}")
        };
        assert!(told.state == OperationState::Waiting && told.waits_for.unwrap().contains("others"));
        assert!(slot.is_none());
    }

    #[test]
    fn one_that_waits_begins_when_another_has_ended() {
        let slots = Arc::new(Semaphore::new(1));
        let waits = live(None);
        let slot = run(async {
            let held = slots.clone().try_acquire_owned().unwrap();
            let freed = async {
                tokio::time::sleep(LOOK * 2).await;
                drop(held);
            };
            let task = tokio::spawn(freed);
            let slot = waits.slot(&slots).await;
            task.await.unwrap();
            slot
        });
        assert!(slot.is_some());
        assert!(!waits.cancelled());
        waits.give_up();
        assert!(waits.cancelled());
    }

    #[test]
    fn the_last_line_says_how_it_ended() {
        let mut operation = live(None).shown();
        operation.result = Some(Value::from(5));
        assert_eq!(last_line(&operation), "{\"done\":5}\n");
        operation.fault = Some(cancelled());
        assert!(last_line(&operation).starts_with(b"{\"failed\":{"));
    }
}
