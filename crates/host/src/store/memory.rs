//! Records that end with the process: for tests.
use super::{Store, StoreError, VmRecord, sort};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    records: Mutex<BTreeMap<String, VmRecord>>,
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, VmRecord>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store for MemoryStore {
    fn all(&self) -> Result<Vec<VmRecord>, StoreError> {
        let mut records: Vec<_> = self.lock().values().cloned().collect();
        sort(&mut records);
        Ok(records)
    }

    fn insert(&self, record: &VmRecord) -> Result<(), StoreError> {
        let mut records = self.lock();
        if records.values().any(|other| other.name == record.name) {
            return Err(StoreError::NameTaken { name: record.name.clone() });
        }
        records.insert(record.id.clone(), record.clone());
        Ok(())
    }

    fn update(&self, record: &VmRecord) -> Result<(), StoreError> {
        match self.lock().get_mut(&record.id) {
            Some(old) => {
                old.clone_from(record);
                Ok(())
            }
            None => Err(StoreError::Missing { id: record.id.clone() }),
        }
    }

    fn remove(&self, id: &str) -> Result<(), StoreError> {
        match self.lock().remove(id) {
            Some(_) => Ok(()),
            None => Err(StoreError::Missing { id: id.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    impl Store for Arc<MemoryStore> {
        fn all(&self) -> Result<Vec<VmRecord>, StoreError> {
            (**self).all()
        }
        fn insert(&self, record: &VmRecord) -> Result<(), StoreError> {
            (**self).insert(record)
        }
        fn update(&self, record: &VmRecord) -> Result<(), StoreError> {
            (**self).update(record)
        }
        fn remove(&self, id: &str) -> Result<(), StoreError> {
            (**self).remove(id)
        }
    }

    #[test]
    fn conforms() {
        let store = Arc::new(MemoryStore::default());
        super::super::conformance::suite(&|| Box::new(store.clone()));
    }
}
