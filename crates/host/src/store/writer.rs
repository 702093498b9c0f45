//! The thread that writes: it takes all changes that wait, and commits them together, so that many clients share one sync
//! of the disk.
use super::sqlite::unique_name;
use super::{OPERATIONS_KEPT, OperationRecord, StoreError, VmRecord};
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use viv_api::event::{Event, What};
use viv_api::timestamp::Timestamp;

/// Most changes of one commit.
const TOGETHER: usize = 512;
/// For how long events are kept, seconds.
const KEPT_S: u64 = 24 * 3600;
/// Most events that are kept.
const KEPT: u64 = 1_000_000;
/// After how many events old ones are looked for.
const TIDY: u64 = 1024;

/// What is to be written.
pub(super) enum Change {
    /// A new VM.
    Insert(Box<VmRecord>),
    /// A VM that is known.
    Update(Box<VmRecord>),
    /// A VM that is forgotten.
    Remove(Box<VmRecord>),
    /// Something that has happened.
    Tell(Event),
    /// A long work, as it is now.
    Operation(Box<OperationRecord>),
    /// Something to remember.
    Fact(String, String),
}

/// What was committed of a change.
pub(super) struct Committed {
    pub(super) change: Change,
    pub(super) event: Option<Arc<Event>>,
}

struct Job {
    change: Change,
    outcome: SyncSender<Result<(), StoreError>>,
}

type Read = Box<dyn FnOnce(&Connection) + Send>;

enum Work {
    Write(Job),
    Read(Read),
}

/// Passes work to the thread, which ends with this.
pub(super) struct Writer {
    work: Mutex<Option<Sender<Work>>>,
    thread: Option<JoinHandle<()>>,
    path: PathBuf,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.work.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Writer {
    /// Starts the thread on an open database. `committed` is told what was committed, in order, before whoever asked for it.
    pub(super) fn start(
        database: Connection,
        path: &Path,
        committed: impl Fn(Vec<Committed>) + Send + 'static,
    ) -> Result<Writer, StoreError> {
        let (work, waiting) = channel();
        let file = path.to_path_buf();
        let thread = thread::Builder::new()
            .name("store".into())
            .spawn(move || run(database, &file, &waiting, &committed))
            .map_err(|source| StoreError::Io {
                what: "make a thread for",
                path: path.to_path_buf(),
                source,
            })?;
        Ok(Writer { work: Mutex::new(Some(work)), thread: Some(thread), path: path.to_path_buf() })
    }

    fn send(&self, work: Work) {
        if let Some(sender) = &*self.work.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = sender.send(work);
        }
    }

    fn gone(&self) -> StoreError {
        let why = "the thread that writes it has ended".to_string();
        StoreError::Database { what: "write", path: self.path.clone(), why, full: false }
    }

    /// Returns when it is on the disk.
    pub(super) fn write(&self, change: Change) -> Result<(), StoreError> {
        let (outcome, answer) = sync_channel(1);
        self.send(Work::Write(Job { change, outcome }));
        answer.recv().unwrap_or_else(|_| Err(self.gone()))
    }

    /// Reads.
    pub(super) fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (outcome, answer) = sync_channel(1);
        self.send(Work::Read(Box::new(move |database| {
            let _ = outcome.send(look(database));
        })));
        let read = answer.recv().map_err(|_| self.gone())?;
        read.map_err(|error| refused("read", &self.path, &error))
    }
}

/// Why the database did not do it.
pub(super) fn refused(what: &'static str, path: &Path, error: &rusqlite::Error) -> StoreError {
    let full = error.sqlite_error_code() == Some(ErrorCode::DiskFull);
    StoreError::Database { what, path: path.to_path_buf(), why: error.to_string(), full }
}

fn run(database: Connection, path: &Path, waiting: &Receiver<Work>, committed: &dyn Fn(Vec<Committed>)) {
    let mut since_tidy = TIDY;
    while let Ok(first) = waiting.recv() {
        let (mut jobs, mut reads) = (Vec::new(), Vec::new());
        for work in std::iter::once(first).chain(waiting.try_iter()).take(TOGETHER) {
            match work {
                Work::Write(job) => jobs.push(job),
                Work::Read(read) => reads.push(read),
            }
        }
        if !jobs.is_empty() {
            since_tidy += jobs.len() as u64;
            let tidy = since_tidy >= TIDY;
            if tidy {
                since_tidy = 0;
            }
            commit(&database, path, jobs, tidy, committed);
        }
        for read in reads {
            read(&database);
        }
    }
}

/// Writes all of them, or those that can be, in one transaction.
fn commit(
    database: &Connection,
    path: &Path,
    jobs: Vec<Job>,
    tidy: bool,
    committed: &dyn Fn(Vec<Committed>),
) {
    let mut done = Vec::with_capacity(jobs.len());
    let write = || -> rusqlite::Result<()> {
        database.execute_batch("BEGIN IMMEDIATE")?;
        for Job { change, outcome } in jobs {
            database.execute_batch("SAVEPOINT change")?;
            let written = apply(database, path, &change);
            let end = if written.is_ok() { "RELEASE change" } else { "ROLLBACK TO change; RELEASE change" };
            done.push((change, outcome, written));
            database.execute_batch(end)?;
        }
        if tidy {
            forget(database)?;
        }
        database.execute_batch("COMMIT")
    };
    let outcome = write();
    if outcome.is_err() {
        let _ = database.execute_batch("ROLLBACK");
    }
    let (mut changes, mut answers) = (Vec::new(), Vec::new());
    for (change, sender, written) in done {
        let answer = match (&outcome, written) {
            (_, Err(error)) => Err(error),
            (Err(error), _) => Err(refused("write", path, error)),
            (Ok(()), Ok(event)) => {
                changes.push(Committed { change, event });
                Ok(())
            }
        };
        answers.push((sender, answer));
    }
    committed(changes);
    for (sender, answer) in answers {
        let _ = sender.send(answer);
    }
}

fn apply(database: &Connection, path: &Path, change: &Change) -> Result<Option<Arc<Event>>, StoreError> {
    let failed = |error: rusqlite::Error| refused("write", path, &error);
    let event = match change {
        Change::Insert(record) => {
            insert(database, record, &failed)?;
            record.event(What::VmCreated)
        }
        Change::Update(record) => {
            let mut statement =
                database.prepare_cached("UPDATE vms SET record = ?2 WHERE id = ?1").map_err(failed)?;
            if statement.execute(params![record.id, text_of(record)]).map_err(failed)? == 0 {
                return Err(StoreError::Missing { id: record.id.clone() });
            }
            record.event(What::VmChanged)
        }
        Change::Remove(record) => {
            let mut statement = database.prepare_cached("DELETE FROM vms WHERE id = ?1").map_err(failed)?;
            if statement.execute([&record.id]).map_err(failed)? == 0 {
                return Err(StoreError::Missing { id: record.id.clone() });
            }
            record.event(What::VmRemoved)
        }
        Change::Tell(event) if !is_news(database, event).map_err(failed)? => return Ok(None),
        Change::Tell(event) => event.clone(),
        Change::Operation(record) => {
            put(database, record).map_err(failed)?;
            record.event()
        }
        Change::Fact(key, value) => {
            let sql =
                "INSERT INTO facts (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
            database.prepare_cached(sql).and_then(|mut sql| sql.execute([key, value])).map_err(failed)?;
            return Ok(None);
        }
    };
    tell(database, event).map(|event| Some(Arc::new(event))).map_err(failed)
}

fn text_of(record: &VmRecord) -> String {
    serde_json::to_string(record).unwrap_or_default()
}

fn insert(
    database: &Connection,
    record: &VmRecord,
    failed: &dyn Fn(rusqlite::Error) -> StoreError,
) -> Result<(), StoreError> {
    let key = record.request.as_ref().map(|request| &request.key);
    let taken = |sql: &str, value: &str| -> Result<bool, StoreError> {
        let found =
            database.prepare_cached(sql).and_then(|mut sql| sql.query_row([value], |_| Ok(())).optional());
        Ok(found.map_err(failed)?.is_some())
    };
    let unique = unique_name(&record.project, &record.name);
    if taken("SELECT 1 FROM vms WHERE name = ?1", &unique)? {
        return Err(StoreError::NameTaken { name: record.name.clone() });
    }
    if let Some(key) = key
        && taken("SELECT 1 FROM vms WHERE key = ?1", key)?
    {
        return Err(StoreError::KeyTaken { key: key.clone() });
    }
    let sql = "INSERT INTO vms (id, name, key, record) VALUES (?1, ?2, ?3, ?4)";
    let row = params![record.id, unique, key, text_of(record)];
    database.prepare_cached(sql).and_then(|mut sql| sql.execute(row)).map(drop).map_err(failed)
}

fn put(database: &Connection, record: &OperationRecord) -> rusqlite::Result<()> {
    let text = serde_json::to_string(record).unwrap_or_default();
    let id = i64::try_from(record.operation.id).unwrap_or(i64::MAX);
    let sql = "INSERT INTO operations (id, over, record) VALUES (?1, ?2, ?3)
        ON CONFLICT (id) DO UPDATE SET over = ?2, record = ?3";
    database.prepare_cached(sql)?.execute(params![id, record.operation.state.is_over(), text])?;
    let oldest = id.saturating_sub(OPERATIONS_KEPT as i64);
    database.prepare_cached("DELETE FROM operations WHERE over AND id < ?1")?.execute([oldest]).map(drop)
}

/// Whether an event tells of something: not of a VM that has just been forgotten, nor once more of the state that it is in.
fn is_news(database: &Connection, event: &Event) -> rusqlite::Result<bool> {
    let Some(id) = event.id.as_ref().filter(|_| event.event.noun() == What::VmState.noun()) else {
        return Ok(true);
    };
    let mut known = database.prepare_cached("SELECT state FROM vms WHERE id = ?1")?;
    let told: Option<Option<String>> = known.query_row([id], |row| row.get(0)).optional()?;
    let state = event.state.filter(|_| event.event == What::VmState).map(|state| state.name());
    Ok(told.is_some_and(|told| state.is_none() || told.as_deref() != state))
}

/// Gives an event its place.
fn tell(database: &Connection, event: Event) -> rusqlite::Result<Event> {
    let text = serde_json::to_string(&event).unwrap_or_default();
    let at = i64::try_from(event.at.unix_s).unwrap_or(i64::MAX);
    database.prepare_cached("INSERT INTO events (at, event) VALUES (?1, ?2)")?.execute(params![at, text])?;
    let revision = database.last_insert_rowid();
    if let Some(id) = &event.id {
        let state = event.state.map(|state| state.name());
        database
            .prepare_cached("UPDATE vms SET revision = ?2, state = coalesce(?3, state) WHERE id = ?1")?
            .execute(params![id, revision, state])?;
    }
    Ok(Event { revision: u64::try_from(revision).unwrap_or_default(), ..event })
}

/// Removes events that need not be kept.
fn forget(database: &Connection) -> rusqlite::Result<()> {
    let limit = i64::try_from(Timestamp::now().unix_s.saturating_sub(KEPT_S)).unwrap_or(i64::MAX);
    let most = KEPT as i64;
    // The newest stays: it says where the numbers go on. What follows a kept one is kept, also if a clock was turned back.
    let sql = "DELETE FROM events WHERE revision < (SELECT max(revision) FROM events) AND (
        revision < (SELECT coalesce(min(revision), 0) FROM events WHERE at >= ?1)
        OR NOT EXISTS (SELECT 1 FROM events WHERE at >= ?1)
        OR revision <= (SELECT max(revision) FROM events) - ?2)";
    database.prepare_cached(sql)?.execute([limit, most]).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let database = Connection::open_in_memory().unwrap();
        database.execute_batch(super::super::sqlite::SCHEMA).unwrap();
        database
    }

    #[test]
    fn old_events_are_forgotten_and_numbers_go_on() {
        let database = database();
        let at = |ago: u64| Event {
            at: Timestamp { unix_s: Timestamp::now().unix_s - ago },
            ..Event::new(What::VmCreated, None, "x")
        };
        let numbers = || -> Vec<u64> {
            let mut sql = database.prepare("SELECT revision FROM events ORDER BY revision").unwrap();
            sql.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
        };
        for ago in [KEPT_S + 100, KEPT_S + 50, 10, KEPT_S + 20, 5] {
            tell(&database, at(ago)).unwrap();
        }
        forget(&database).unwrap();
        assert_eq!(numbers(), [3, 4, 5], "one that a clock has dated back is among the kept");
        let database = super::tests::database();
        for _ in 0..3 {
            tell(&database, at(KEPT_S + 9)).unwrap();
        }
        forget(&database).unwrap();
        assert_eq!(tell(&database, at(0)).unwrap().revision, 4);
        forget(&database).unwrap();
        let mut sql = database.prepare("SELECT count(*) FROM events").unwrap();
        assert_eq!(sql.query_row([], |row| row.get::<_, u64>(0)).unwrap(), 1);
    }
}
