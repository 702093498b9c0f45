//! Records and events in SQLite. All records are in memory too: the disk is only written.
use super::directories::Directories;
use super::recent::Recent;
use super::writer::{Change, Committed, Writer, refused};
use super::{OperationRecord, Past, Store, StoreError, VmRecord, sort};
use rusqlite::{Connection, ErrorCode, OpenFlags, params};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::sync::watch;
use viv_api::event::Event;
use viv_api::timestamp::Timestamp;
use viv_model::{ProjectName, State};

/// The layout that this release writes (`PRAGMA user_version`).
const LAYOUT: u32 = 3;
/// Says that it is ours (`PRAGMA application_id`): "vivS".
const OURS: u32 = 0x7669_7653;
/// How often a copy of the whole is made, at most.
const COPY: Duration = Duration::from_secs(24 * 3600);

/// The tables of layout 1.
pub(super) const SCHEMA: &str = "
CREATE TABLE vms (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    key TEXT UNIQUE,
    record TEXT NOT NULL,
    revision INTEGER NOT NULL DEFAULT 0,
    state TEXT
) STRICT;
CREATE TABLE events (revision INTEGER PRIMARY KEY AUTOINCREMENT, at INTEGER NOT NULL, event TEXT NOT NULL) STRICT;
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
";
/// What layout 2 has besides layout 1. Layout 3 has the same tables, with projects in them: a release that does not know these would let
/// those who are bound to one see all.
const SINCE_2: &str = "
CREATE TABLE operations (id INTEGER PRIMARY KEY, over INTEGER NOT NULL, record TEXT NOT NULL) STRICT;
";

/// A store in a file.
pub struct SqliteStore {
    writer: Writer,
    kept: Arc<RwLock<Kept>>,
    newest: watch::Sender<u64>,
    directories: Directories,
}

#[derive(Clone, Debug)]
struct Entry {
    record: Arc<VmRecord>,
    /// Of the last event that tells of it.
    revision: u64,
    /// That was last told.
    state: Option<State>,
}

/// What is on the disk, to be read without it.
#[derive(Debug, Default)]
struct Kept {
    entries: HashMap<String, Entry>,
    /// By [`unique_name`].
    names: HashMap<String, String>,
    keys: HashMap<String, String>,
    facts: HashMap<String, String>,
    operations: BTreeMap<u64, Arc<OperationRecord>>,
    recent: Recent,
}

impl Kept {
    fn apply(&mut self, Committed { change, event }: Committed) {
        match change {
            Change::Insert(record) => self.insert(*record, 0, None),
            Change::Update(record) => {
                if let Some(entry) = self.entries.get_mut(&record.id) {
                    entry.record = Arc::new(*record);
                }
            }
            Change::Remove(record) => {
                self.entries.remove(&record.id);
                self.names.remove(&unique_name(&record.project, &record.name));
                if let Some(request) = &record.request {
                    self.keys.remove(&request.key);
                }
            }
            Change::Tell(_) => {}
            Change::Operation(record) => {
                let id = record.operation.id;
                self.operations.insert(id, Arc::new(*record));
                self.operations.retain(|_, other| !other.is_old_beside(id));
            }
            Change::Fact(key, value) => drop(self.facts.insert(key, value)),
        }
        let Some(event) = event else { return };
        if let Some(entry) = event.id.as_ref().and_then(|id| self.entries.get_mut(id)) {
            entry.revision = event.revision;
            entry.state = event.state.or(entry.state);
        }
        self.recent.push(event);
    }

    fn insert(&mut self, record: VmRecord, revision: u64, state: Option<State>) {
        self.names.insert(unique_name(&record.project, &record.name), record.id.clone());
        if let Some(request) = &record.request {
            self.keys.insert(request.key.clone(), record.id.clone());
        }
        self.entries.insert(record.id.clone(), Entry { record: Arc::new(record), revision, state });
    }

    fn named(&self, id: Option<&String>) -> Option<VmRecord> {
        self.entries.get(id?).map(|entry| VmRecord::clone(&entry.record))
    }
}

impl SqliteStore {
    /// Opens the store in the file `path`, whose VMs have their directories in `vms`; a new one takes over what releases
    /// before it have left there. Finishes what a crash left half done. Gives the directories that belong to no VM.
    pub fn open(path: &Path, vms: &Path) -> Result<(SqliteStore, Vec<PathBuf>), StoreError> {
        let directories = Directories::open(vms)?;
        let fresh = !path.exists();
        let database = connect(path)?;
        let found = layout(&database, path)?;
        if found == 0 {
            let records = directories.records()?;
            let used = directories.used()?;
            let known: HashSet<&str> = records.iter().map(|record| record.id.as_str()).collect();
            let is_known = |path: &PathBuf| {
                path.file_name().and_then(|name| name.to_str()).is_some_and(|name| known.contains(name))
            };
            if let Some(lost) = used.iter().find(|path| !is_known(path)) {
                drop(database);
                if fresh {
                    let _ = fs::remove_file(path);
                }
                return Err(lost_store(path, lost));
            }
            create(&database, &records).map_err(|error| refused("make", path, &error))?;
        }
        let kept = load(&database, path, found != 1)?;
        // Only what can be read is changed.
        if (1..LAYOUT).contains(&found) {
            let since = if found == 1 { SINCE_2 } else { "" };
            let rise = format!("BEGIN IMMEDIATE; {since} PRAGMA user_version = {LAYOUT}; COMMIT");
            database.execute_batch(&rise).map_err(|error| refused("change", path, &error))?;
        }
        let known = kept.entries.keys().cloned().collect();
        let left = directories.tidy(&known)?;
        let newest: u64 = database
            .query_row("SELECT coalesce(max(revision), 0) FROM events", [], |row| row.get(0))
            .map_err(|error| unusable(path, &error))?;
        let copy = beside(path, "copy");
        if is_old(&copy) {
            // Without one there is only less to go back to.
            if let Err(error) = copy_whole(&database, &copy) {
                viv_api::complain!("viv serve: cannot copy the store to {}: {error}", copy.display());
            }
        }
        let (kept, newest) = (Arc::new(RwLock::new(kept)), watch::Sender::new(newest));
        let (seen, told) = (kept.clone(), newest.clone());
        let committed = move |changes: Vec<Committed>| {
            let last =
                changes.iter().rev().find_map(|change| change.event.as_ref()).map(|event| event.revision);
            let mut kept = seen.write().unwrap_or_else(PoisonError::into_inner);
            changes.into_iter().for_each(|change| kept.apply(change));
            drop(kept);
            if let Some(last) = last {
                told.send_replace(last);
            }
        };
        let writer = Writer::start(database, path, committed)?;
        Ok((SqliteStore { writer, kept, newest, directories }, left))
    }

    fn kept(&self) -> RwLockReadGuard<'_, Kept> {
        self.kept.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What no other VM of this host has: the name, before it the project and a slash, which is in no name, unless that is `default`. So the
/// names of releases before projects are what they were.
pub(super) fn unique_name(project: &ProjectName, name: &str) -> String {
    match project.is_default() {
        true => name.to_string(),
        false => format!("{project}/{name}"),
    }
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    path.with_extension(format!("db.{ending}"))
}

fn is_old(copy: &Path) -> bool {
    let age = fs::metadata(copy).and_then(|data| data.modified()).ok().and_then(|when| when.elapsed().ok());
    age.is_none_or(|age| age > COPY)
}

/// Copies the database, if all of it can be read.
fn copy_whole(database: &Connection, copy: &Path) -> Result<(), String> {
    let text = |error: rusqlite::Error| error.to_string();
    let sound: String = database.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(text)?;
    if sound != "ok" {
        return Err(sound);
    }
    let new = copy.with_extension("new");
    let _ = fs::remove_file(&new);
    database.execute("VACUUM INTO ?1", [new.to_string_lossy()]).map_err(text)?;
    fs::File::open(&new).and_then(|file| file.sync_all()).map_err(|error| error.to_string())?;
    fs::rename(&new, copy).map_err(|error| error.to_string())
}

fn lost_store(path: &Path, directory: &Path) -> StoreError {
    let copy = beside(path, "copy");
    let why = format!("it is gone, and there are VMs: {}", directory.display());
    let fix = match copy.exists() {
        true => format!("put it back, or a copy of it: cp {} {}", copy.display(), path.display()),
        false => format!(
            "put it back from a backup; to begin without these VMs, move their directories away from {}",
            directory.parent().unwrap_or(directory).display()
        ),
    };
    StoreError::Unusable { path: path.to_path_buf(), why, fix }
}

/// What the database itself says against being used.
fn unusable(path: &Path, error: &rusqlite::Error) -> StoreError {
    let broken =
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
            || matches!(error, rusqlite::Error::FromSqlConversionFailure(..));
    if !broken {
        return refused("open", path, error);
    }
    let copy = beside(path, "copy");
    let aside = beside(path, "broken");
    let fix = match copy.exists() {
        true => format!(
            "nothing was written to it; to go back to the last copy: mv {} {} && cp {} {}",
            path.display(),
            aside.display(),
            copy.display(),
            path.display()
        ),
        false => "nothing was written to it; put it back from a backup".to_string(),
    };
    StoreError::Unusable { path: path.to_path_buf(), why: format!("it is damaged: {error}"), fix }
}

fn connect(path: &Path) -> Result<Connection, StoreError> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(path, flags).map_err(|error| refused("open", path, &error))?;
    database.busy_timeout(Duration::from_secs(5)).map_err(|error| refused("open", path, &error))?;
    database.set_prepared_statement_cache_capacity(32);
    Ok(database)
}

/// The layout of the database; 0 if there is nothing in it. Nothing is written to one that we do not know.
fn layout(database: &Connection, path: &Path) -> Result<u32, StoreError> {
    let number = |sql: &str| {
        let read = database.query_row(sql, [], |row| row.get::<_, u32>(0));
        read.map_err(|error| unusable(path, &error))
    };
    let (ours, layout) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    let tables = number("SELECT count(*) FROM sqlite_master")?;
    let refused = |why: String, fix: &str| {
        Err(StoreError::Unusable { path: path.to_path_buf(), why, fix: fix.to_string() })
    };
    if tables == 0 && layout == 0 {
        return Ok(0);
    }
    if ours != OURS {
        return refused(
            "it is a database of another program".into(),
            "move it away, or use another directory: VIV_HOME=/path viv …",
        );
    }
    if layout > LAYOUT {
        return refused(
            format!("it was written by a newer release (layout {layout}, and this one knows up to {LAYOUT})"),
            "use that release, or another directory for this one: VIV_HOME=/path viv …",
        );
    }
    Ok(layout)
}

/// Makes the tables, with the records of releases before.
fn create(database: &Connection, records: &[VmRecord]) -> rusqlite::Result<()> {
    database.pragma_update(None, "journal_mode", "WAL")?;
    database.execute_batch("BEGIN IMMEDIATE")?;
    database.execute_batch(SCHEMA)?;
    database.execute_batch(SINCE_2)?;
    for record in records {
        let text = serde_json::to_string(record).unwrap_or_default();
        database.execute(
            "INSERT INTO vms (id, name, record) VALUES (?1, ?2, ?3)",
            params![record.id, unique_name(&record.project, &record.name), text],
        )?;
    }
    database.execute_batch(&format!("PRAGMA application_id = {OURS}; PRAGMA user_version = {LAYOUT}; COMMIT"))
}

/// Reads all that is kept in memory.
fn load(database: &Connection, path: &Path, has_operations: bool) -> Result<Kept, StoreError> {
    let failed = |error: rusqlite::Error| unusable(path, &error);
    database.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    let mut kept = Kept::default();
    let mut all = database.prepare("SELECT id, record, revision, state FROM vms").map_err(failed)?;
    let mut rows = all.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let (id, text): (String, String) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
        let record: VmRecord = serde_json::from_str(&text).map_err(|error| StoreError::Unusable {
            path: path.to_path_buf(),
            why: format!("the record of the VM {id} is not understood: {error}"),
            fix: "nothing was written to it; use the release that wrote it".into(),
        })?;
        let state: Option<String> = row.get(3).map_err(failed)?;
        let state = State::ALL.into_iter().find(|known| state.as_deref() == Some(known.name()));
        kept.insert(record, row.get(2).map_err(failed)?, state);
    }
    let mut all = database.prepare("SELECT key, value FROM facts").map_err(failed)?;
    let facts = all.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
    kept.facts = facts.collect::<rusqlite::Result<_>>().map_err(failed)?;
    if !has_operations {
        return Ok(kept);
    }
    let mut all = database.prepare("SELECT id, record FROM operations").map_err(failed)?;
    let mut rows = all.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let (id, text): (u64, String) = (row.get(0).map_err(failed)?, row.get(1).map_err(failed)?);
        let record = serde_json::from_str(&text).map_err(|error| StoreError::Unusable {
            path: path.to_path_buf(),
            why: format!("the record of the operation {id} is not understood: {error}"),
            fix: "nothing was written to it; use the release that wrote it".into(),
        })?;
        kept.operations.insert(id, Arc::new(record));
    }
    Ok(kept)
}

impl Store for SqliteStore {
    fn all(&self) -> Result<Vec<VmRecord>, StoreError> {
        let mut records: Vec<_> =
            self.kept().entries.values().map(|entry| VmRecord::clone(&entry.record)).collect();
        sort(&mut records);
        Ok(records)
    }

    fn by_id(&self, id: &str) -> Result<Option<VmRecord>, StoreError> {
        Ok(self.kept().entries.get(id).map(|entry| VmRecord::clone(&entry.record)))
    }

    fn by_name(&self, project: &ProjectName, name: &str) -> Result<Option<VmRecord>, StoreError> {
        let kept = self.kept();
        Ok(kept.named(kept.names.get(&unique_name(project, name))))
    }

    fn by_key(&self, key: &str) -> Result<Option<VmRecord>, StoreError> {
        let kept = self.kept();
        Ok(kept.named(kept.keys.get(key)))
    }

    fn count(&self) -> Result<usize, StoreError> {
        Ok(self.kept().entries.len())
    }

    fn revision_of(&self, id: &str) -> u64 {
        self.kept().entries.get(id).map_or(0, |entry| entry.revision)
    }

    fn insert(&self, record: &VmRecord) -> Result<(), StoreError> {
        // Before the record: without one it is cleared away.
        self.directories.make(&record.id)?;
        self.writer.write(Change::Insert(Box::new(record.clone()))).inspect_err(|_| {
            if let Ok(removal) = self.directories.remove(&record.id) {
                let _ = removal.finish();
            }
        })
    }

    fn update(&self, record: &VmRecord) -> Result<(), StoreError> {
        self.writer.write(Change::Update(Box::new(record.clone())))
    }

    fn remove(&self, id: &str) -> Result<(), StoreError> {
        let record = self.by_id(id)?.ok_or_else(|| StoreError::Missing { id: id.to_string() })?;
        let removal = self.directories.remove(id)?;
        match self.writer.write(Change::Remove(Box::new(record))) {
            Ok(()) => removal.finish(),
            Err(error) => {
                removal.undo();
                Err(error)
            }
        }
    }

    fn operations(&self) -> Result<Vec<OperationRecord>, StoreError> {
        Ok(self.kept().operations.values().map(|record| OperationRecord::clone(record)).collect())
    }

    fn put_operation(&self, record: &OperationRecord) -> Result<(), StoreError> {
        self.writer.write(Change::Operation(Box::new(record.clone())))
    }

    fn told(&self, id: &str) -> Option<State> {
        self.kept().entries.get(id).and_then(|entry| entry.state)
    }

    fn tell(&self, event: Event) -> Result<(), StoreError> {
        let of_vm =
            event.id.as_ref().and_then(|id| Some(self.kept().entries.get(id)?.record.project.clone()));
        self.writer.write(Change::Tell(Event { project: event.project.or(of_vm), ..event }))
    }

    fn events(&self, after: u64, most: usize) -> Result<Past, StoreError> {
        if after >= *self.newest.borrow() {
            return Ok(Past::default());
        }
        if let Some(events) = self.kept().recent.after(after, most) {
            return Ok(Past { events, has_gap: false });
        }
        self.writer.read(move |database| past(database, after, most))
    }

    fn revision_at(&self, moment: Timestamp) -> Result<u64, StoreError> {
        let at = i64::try_from(moment.unix_s).unwrap_or(i64::MAX);
        self.writer.read(move |database| {
            database.query_row("SELECT coalesce(max(revision), 0) FROM events WHERE at < ?1", [at], |row| {
                row.get(0)
            })
        })
    }

    fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn fact(&self, key: &str) -> Result<Option<String>, StoreError> {
        Ok(self.kept().facts.get(key).cloned())
    }

    fn set_fact(&self, key: &str, value: &str) -> Result<(), StoreError> {
        self.writer.write(Change::Fact(key.to_string(), value.to_string()))
    }
}

fn past(database: &Connection, after: u64, most: usize) -> rusqlite::Result<Past> {
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let most = i64::try_from(most).unwrap_or(i64::MAX);
    let mut events = Vec::new();
    let sql = "SELECT revision, event FROM events WHERE revision > ?1 ORDER BY revision LIMIT ?2";
    let mut sql = database.prepare_cached(sql)?;
    let mut rows = sql.query([after, most])?;
    while let Some(row) = rows.next()? {
        let (revision, text): (u64, String) = (row.get(0)?, row.get(1)?);
        let event: Event = serde_json::from_str(&text).map_err(|error| {
            rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(error))
        })?;
        events.push(Arc::new(Event { revision, ..event }));
    }
    let first = events.first().map(|event: &Arc<Event>| event.revision);
    let has_gap = first.is_some_and(|first| first > u64::try_from(after).unwrap_or_default() + 1);
    Ok(Past { events, has_gap })
}

#[cfg(test)]
mod tests;
