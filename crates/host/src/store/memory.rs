//! Records that end with the process: for tests.
use super::{OperationRecord, Past, Store, StoreError, VmRecord, sort};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;
use viv_api::event::{Event, What};
use viv_api::timestamp::Timestamp;
use viv_model::{ProjectName, State};

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    kept: Mutex<Kept>,
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    records: BTreeMap<String, VmRecord>,
    /// The revision and the state that were last told of a VM.
    told: HashMap<String, (u64, Option<State>)>,
    events: Vec<Arc<Event>>,
    facts: HashMap<String, String>,
    operations: BTreeMap<u64, OperationRecord>,
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore { kept: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_in(&self, kept: &mut Kept, event: Event) {
        let revision = kept.events.len() as u64 + 1;
        let of_vm =
            event.id.as_ref().and_then(|id| kept.records.get(id)).map(|record| record.project.clone());
        let event = Arc::new(Event { revision, project: event.project.or(of_vm), ..event });
        if let Some(id) = event.id.as_ref().filter(|id| kept.records.contains_key(*id)) {
            let told = kept.told.entry(id.clone()).or_default();
            *told = (revision, event.state.or(told.1));
        }
        kept.events.push(event);
        self.newest.send_replace(revision);
    }

    fn find(&self, fits: impl Fn(&VmRecord) -> bool) -> Option<VmRecord> {
        self.lock().records.values().find(|record| fits(record)).cloned()
    }
}

impl Store for MemoryStore {
    fn all(&self) -> Result<Vec<VmRecord>, StoreError> {
        let mut records: Vec<_> = self.lock().records.values().cloned().collect();
        sort(&mut records);
        Ok(records)
    }

    fn by_id(&self, id: &str) -> Result<Option<VmRecord>, StoreError> {
        Ok(self.lock().records.get(id).cloned())
    }

    fn by_name(&self, project: &ProjectName, name: &str) -> Result<Option<VmRecord>, StoreError> {
        Ok(self.find(|record| record.name == name && record.project == *project))
    }

    fn by_key(&self, key: &str) -> Result<Option<VmRecord>, StoreError> {
        Ok(self.find(|record| record.request.as_ref().is_some_and(|request| request.key == key)))
    }

    fn count(&self) -> Result<usize, StoreError> {
        Ok(self.lock().records.len())
    }

    fn revision_of(&self, id: &str) -> u64 {
        self.lock().told.get(id).map_or(0, |told| told.0)
    }

    fn insert(&self, record: &VmRecord) -> Result<(), StoreError> {
        let mut kept = self.lock();
        if kept.records.values().any(|other| other.name == record.name && other.project == record.project) {
            return Err(StoreError::NameTaken { name: record.name.clone() });
        }
        if let Some(request) = &record.request {
            let is_same =
                |other: &VmRecord| other.request.as_ref().is_some_and(|other| other.key == request.key);
            if kept.records.values().any(is_same) {
                return Err(StoreError::KeyTaken { key: request.key.clone() });
            }
        }
        kept.records.insert(record.id.clone(), record.clone());
        self.tell_in(&mut kept, record.event(What::VmCreated));
        Ok(())
    }

    fn update(&self, record: &VmRecord) -> Result<(), StoreError> {
        let mut kept = self.lock();
        match kept.records.get_mut(&record.id) {
            Some(old) => old.clone_from(record),
            None => return Err(StoreError::Missing { id: record.id.clone() }),
        }
        self.tell_in(&mut kept, record.event(What::VmChanged));
        Ok(())
    }

    fn remove(&self, id: &str) -> Result<(), StoreError> {
        let mut kept = self.lock();
        match kept.records.remove(id) {
            Some(record) => {
                kept.told.remove(id);
                self.tell_in(&mut kept, record.event(What::VmRemoved));
                Ok(())
            }
            None => Err(StoreError::Missing { id: id.to_string() }),
        }
    }

    fn operations(&self) -> Result<Vec<OperationRecord>, StoreError> {
        Ok(self.lock().operations.values().cloned().collect())
    }

    fn put_operation(&self, record: &OperationRecord) -> Result<(), StoreError> {
        let mut kept = self.lock();
        let id = record.operation.id;
        kept.operations.insert(id, record.clone());
        kept.operations.retain(|_, other| !other.is_old_beside(id));
        self.tell_in(&mut kept, record.event());
        Ok(())
    }

    fn told(&self, id: &str) -> Option<State> {
        self.lock().told.get(id).and_then(|told| told.1)
    }

    fn tell(&self, event: Event) -> Result<(), StoreError> {
        let mut kept = self.lock();
        let of_vm = event.id.as_ref().filter(|_| event.event.noun() == What::VmState.noun());
        let is_news = of_vm.is_none_or(|id| {
            let told = kept.told.get(id).and_then(|told| told.1);
            let again = event.event == What::VmState && event.state.is_some() && told == event.state;
            kept.records.contains_key(id) && !again
        });
        if is_news {
            self.tell_in(&mut kept, event);
        }
        Ok(())
    }

    fn events(&self, after: u64, most: usize) -> Result<Past, StoreError> {
        let kept = self.lock();
        let later = kept.events.iter().filter(|event| event.revision > after);
        Ok(Past { events: later.take(most).cloned().collect(), has_gap: false })
    }

    fn revision_at(&self, moment: Timestamp) -> Result<u64, StoreError> {
        let kept = self.lock();
        let before = kept.events.iter().rev().find(|event| event.at < moment);
        Ok(before.map_or(0, |event| event.revision))
    }

    fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn fact(&self, key: &str) -> Result<Option<String>, StoreError> {
        Ok(self.lock().facts.get(key).cloned())
    }

    fn set_fact(&self, key: &str, value: &str) -> Result<(), StoreError> {
        self.lock().facts.insert(key.to_string(), value.to_string());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The store as somebody else sees it who opens it.
    struct Seen(Arc<MemoryStore>);

    macro_rules! pass_on {
        ($($name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
            impl Store for Seen {
                $(fn $name(&self, $($argument: $type),*) -> $answer { self.0.$name($($argument),*) })*
            }
        };
    }

    pass_on! {
        all() -> Result<Vec<VmRecord>, StoreError>;
        by_id(id: &str) -> Result<Option<VmRecord>, StoreError>;
        by_name(project: &ProjectName, name: &str) -> Result<Option<VmRecord>, StoreError>;
        by_key(key: &str) -> Result<Option<VmRecord>, StoreError>;
        count() -> Result<usize, StoreError>;
        revision_of(id: &str) -> u64;
        insert(record: &VmRecord) -> Result<(), StoreError>;
        update(record: &VmRecord) -> Result<(), StoreError>;
        remove(id: &str) -> Result<(), StoreError>;
        operations() -> Result<Vec<OperationRecord>, StoreError>;
        put_operation(record: &OperationRecord) -> Result<(), StoreError>;
        told(id: &str) -> Option<State>;
        tell(event: Event) -> Result<(), StoreError>;
        events(after: u64, most: usize) -> Result<Past, StoreError>;
        revision_at(moment: Timestamp) -> Result<u64, StoreError>;
        newest() -> watch::Receiver<u64>;
        fact(key: &str) -> Result<Option<String>, StoreError>;
        set_fact(key: &str, value: &str) -> Result<(), StoreError>;
    }

    #[test]
    fn conforms() {
        let store = Arc::new(MemoryStore::default());
        super::super::conformance::suite(&|| Box::new(Seen(store.clone())));
    }
}
