//! What the host service remembers: its VMs, its long works, and what has happened.
//!
//! A record says what was asked for; what *is*, is found out from the VM's process. One service writes at a
//! time (it holds a lock). Each change is one transaction, with the event that tells of it.
mod directories;
mod memory;
mod recent;
mod record;
mod sqlite;
mod writer;

pub(crate) use directories::{leftovers, write_whole};
pub use memory::MemoryStore;
pub(crate) use record::Asked;
pub use record::{OperationRecord, Request, VmRecord};
pub use sqlite::SqliteStore;

use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;
use viv_api::event::Event;
use viv_api::timestamp::Timestamp;
use viv_model::{Fault, Kind, ProjectName, State};

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another VM has this name.
    #[error("a VM called {name:?} exists already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// No VM has this identity.
    #[error("no VM has the id {id}")]
    Missing {
        /// The identity.
        id: String,
    },
    /// A request with this key has described a VM already.
    #[error("a request with the key {key:?} has described a VM already")]
    KeyTaken {
        /// The key.
        key: String,
    },
    /// The database refused.
    #[error("cannot {what} the store {}: {why}", path.display())]
    Database {
        /// What was tried.
        what: &'static str,
        /// The database's file.
        path: PathBuf,
        /// Why not.
        why: String,
        /// It is for want of space.
        full: bool,
    },
    /// The database is not what we wrote.
    #[error("the store {} cannot be used: {why}", path.display())]
    Unusable {
        /// The database's file.
        path: PathBuf,
        /// Why not.
        why: String,
        /// What to do.
        fix: String,
    },
    /// The file system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Fault {
        let message = error.to_string();
        match error {
            StoreError::NameTaken { name } => Fault::new(
                Kind::Conflict,
                message,
                format!("choose another name, or remove that one first: viv rm -f {name}"),
            ),
            StoreError::Missing { .. } => Fault::new(Kind::NotFound, message, "see what there is: viv ps -a"),
            StoreError::KeyTaken { .. } => Fault::new(
                Kind::Conflict,
                message,
                "use another key for another VM; the same request is answered with the VM that it has described",
            ),
            StoreError::Unusable { fix, .. } => Fault::new(Kind::Error, message, fix),
            StoreError::Database { full: true, .. } => Fault::new(
                Kind::NoCapacity,
                message,
                "free space on that disk, for example: viv rm, viv image rm",
            ),
            StoreError::Database { .. } => Fault::new(
                Kind::Error,
                message,
                "see that the file and its directory are yours and writable; nothing was changed",
            ),
            StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Fault::new(
                Kind::NoCapacity,
                message,
                "free space on that disk, for example: viv rm, viv image rm",
            ),
            StoreError::Io { .. } => Fault::new(
                Kind::Error,
                message,
                "see that the directory is yours and writable (it is shown by: viv info)",
            ),
        }
    }
}

/// Events of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Past {
    /// In order, up to as many as were asked for.
    pub events: Vec<Arc<Event>>,
    /// Some that would be among them are not kept any more.
    pub has_gap: bool,
}

/// How many long works are kept behind the newest, unless they still go on.
pub(crate) const OPERATIONS_KEPT: u64 = 1000;

/// Keeps records and events. Every call is whole or not at all, also when the host's power fails. Each change of a
/// record is an event, in the same transaction.
pub trait Store: Send + Sync {
    /// All records, oldest first.
    fn all(&self) -> Result<Vec<VmRecord>, StoreError>;
    /// The record with this identity.
    fn by_id(&self, id: &str) -> Result<Option<VmRecord>, StoreError>;
    /// The record with this name in a project.
    fn by_name(&self, project: &ProjectName, name: &str) -> Result<Option<VmRecord>, StoreError>;
    /// The record that was described by the request with this key.
    fn by_key(&self, key: &str) -> Result<Option<VmRecord>, StoreError>;
    /// How many records there are.
    fn count(&self) -> Result<usize, StoreError>;
    /// The number of the last change of the record with this identity, or of its VM's state; 0 if there is none.
    fn revision_of(&self, id: &str) -> u64;
    /// Adds a record with a new identity, a name that no other of its project has, and a key that no other has.
    fn insert(&self, record: &VmRecord) -> Result<(), StoreError>;
    /// Replaces the record with the same identity, name and project.
    fn update(&self, record: &VmRecord) -> Result<(), StoreError>;
    /// Removes a record and everything that is kept for its VM.
    fn remove(&self, id: &str) -> Result<(), StoreError>;
    /// The long works that are kept, oldest first.
    fn operations(&self) -> Result<Vec<OperationRecord>, StoreError>;
    /// Writes down a long work, in the place of what was written of it. Those that have ended are forgotten when
    /// [`OPERATIONS_KEPT`] newer ones are known.
    fn put_operation(&self, record: &OperationRecord) -> Result<(), StoreError>;
    /// The state that was last told of a VM.
    fn told(&self, id: &str) -> Option<State>;
    /// Tells of something that has happened; what happened to a VM has happened in its project. If it has a VM's state, that is what was last told of it; the same state is not told
    /// twice in a row, and nothing of a VM that is not there any more.
    fn tell(&self, event: Event) -> Result<(), StoreError>;
    /// What has happened after a revision, up to so many.
    fn events(&self, after: u64, most: usize) -> Result<Past, StoreError>;
    /// The revision after which everything is at or after that moment.
    fn revision_at(&self, moment: Timestamp) -> Result<u64, StoreError>;
    /// The newest revision, and a way to wait for the next.
    fn newest(&self) -> watch::Receiver<u64>;
    /// Something that is remembered beside the records.
    fn fact(&self, key: &str) -> Result<Option<String>, StoreError>;
    /// Remembers something in the place of what was remembered so.
    fn set_fact(&self, key: &str, value: &str) -> Result<(), StoreError>;
}

/// The order of [`Store::all`].
fn sort(records: &mut [VmRecord]) {
    records.sort_by(|a, b| (a.created_at, &a.name).cmp(&(b.created_at, &b.name)));
}

#[cfg(test)]
pub(crate) mod conformance {
    //! What every store must do.
    use super::*;
    use crate::operations::Task;
    use viv_api::event::What;
    use viv_api::operation::OperationState;
    use viv_api::vm::OnReboot;
    use viv_model::{Accel, End, MachineSpec};

    pub(crate) fn record(id: &str, name: &str, unix_s: u64) -> VmRecord {
        let machine = MachineSpec {
            cpus: 1,
            memory_mib: 64,
            memory_max_mib: None,
            cpu_limit_milli: None,
            cpu_weight: None,
            accel: Accel::Auto,
            soft: Default::default(),
            kernel: "/boot/vmlinuz".into(),
            initrd: None,
            append: String::new(),
            disks: Vec::new(),
            shares: Vec::new(),
            nics: Vec::new(),
            console_ports: Vec::new(),
            ports: Vec::new(),
        };
        VmRecord {
            created_at: Timestamp { unix_s },
            image: Some("default".into()),
            append: Some("quiet".into()),
            on_reboot: OnReboot::Restart,
            ..VmRecord::new(id, name, machine)
        }
    }

    /// Runs the suite on stores that `open` gives: each call opens the same store anew.
    pub(crate) fn suite(open: &dyn Fn() -> Box<dyn Store>) {
        let store = open();
        assert_eq!(store.all().unwrap(), []);
        let (web, db) = (record("b2", "web", 20), record("a1", "db", 10));
        store.insert(&web).unwrap();
        store.insert(&db).unwrap();
        assert_eq!(store.all().unwrap(), [db.clone(), web.clone()], "oldest first");

        let taken = store.insert(&record("c3", "web", 30)).unwrap_err();
        assert!(matches!(&taken, StoreError::NameTaken { name } if name == "web"));
        assert_eq!(Fault::from(taken).kind, Kind::Conflict);
        assert_eq!(open().all().unwrap().len(), 2, "what was refused leaves nothing");

        let changed = VmRecord { remove: true, started_at: Some(Timestamp { unix_s: 40 }), ..web.clone() };
        store.update(&changed).unwrap();
        assert_eq!(open().all().unwrap(), [db.clone(), changed]);
        assert!(matches!(store.update(&record("c3", "x", 1)), Err(StoreError::Missing { .. })));

        store.remove("b2").unwrap();
        assert!(matches!(store.remove("b2"), Err(StoreError::Missing { .. })));
        assert_eq!(open().all().unwrap(), [db]);
        store.insert(&record("d4", "web", 50)).unwrap();
        assert_eq!(open().all().unwrap().len(), 2, "the name is free again");
        assert_eq!(open().count().unwrap(), 2);
        finds(&*open());
        projects(open);
        events(open);
        facts(open);
        operations(open);
    }

    fn operations(open: &dyn Fn() -> Box<dyn Store>) {
        let store = open();
        let operation =
            |id| OperationRecord::new(id, Task::ImageImport { ask: Default::default() }, true, None);
        let before = *store.newest().borrow();
        let (first, mut second) = (operation(1), operation(2));
        store.put_operation(&first).unwrap();
        store.put_operation(&second).unwrap();
        second.operation.state = OperationState::Failed;
        second.operation.fault = Some(Fault::new(Kind::Error, "no", "none"));
        store.put_operation(&second).unwrap();
        assert_eq!(open().operations().unwrap(), [first, second]);
        let told = store.events(before, 9).unwrap().events;
        let told: Vec<_> = told.iter().map(|event| (event.event, event.name.as_str())).collect();
        let started = What::OperationStarted;
        assert_eq!(told, [(started, "1"), (started, "2"), (What::OperationEnded, "2")]);
        store.put_operation(&operation(2 + OPERATIONS_KEPT)).unwrap();
        let ids =
            || open().operations().unwrap().iter().map(|record| record.operation.id).collect::<Vec<_>>();
        assert_eq!(ids(), [1, 2, 2 + OPERATIONS_KEPT]);
        store.put_operation(&operation(3 + OPERATIONS_KEPT)).unwrap();
        assert_eq!(ids(), [1, 2 + OPERATIONS_KEPT, 3 + OPERATIONS_KEPT], "one that goes on is kept");
    }

    /// A name is one project's; what is told of a VM is told in its own.
    fn projects(open: &dyn Fn() -> Box<dyn Store>) {
        let store = open();
        let (default, acme): (ProjectName, ProjectName) = (Default::default(), "acme".parse().unwrap());
        let before = *store.newest().borrow();
        let theirs = VmRecord { project: acme.clone(), ..record("97", "web", 70) };
        store.insert(&theirs).unwrap();
        let again = VmRecord { project: acme.clone(), ..record("98", "web", 71) };
        assert!(matches!(store.insert(&again), Err(StoreError::NameTaken { name }) if name == "web"));
        let name = |project| open().by_name(project, "web").unwrap().map(|record| record.id);
        assert_eq!((name(&default), name(&acme)), (Some("d4".into()), Some("97".into())));
        assert_eq!(open().by_id("97").unwrap(), Some(theirs.clone()));
        store.tell(Event::new(What::VmRebooted, Some("97"), "web")).unwrap();
        store.update(&theirs).unwrap();
        store.remove("97").unwrap();
        assert_eq!((name(&default), name(&acme)), (Some("d4".into()), None));
        let told = open().events(before, 9).unwrap().events;
        assert_eq!(told.len(), 4);
        assert!(told.iter().all(|event| event.project.as_ref() == Some(&acme)), "{told:?}");
    }

    fn finds(store: &dyn Store) {
        let keyed = VmRecord {
            request: Some(Request { key: "once".into(), digest: "d".into() }),
            ..record("e5", "keyed", 60)
        };
        store.insert(&keyed).unwrap();
        let again = VmRecord { request: keyed.request.clone(), ..record("f6", "other", 60) };
        assert!(matches!(store.insert(&again), Err(StoreError::KeyTaken { key }) if key == "once"));
        assert_eq!(store.by_key("once").unwrap(), Some(keyed.clone()));
        assert_eq!(store.by_name(&Default::default(), "keyed").unwrap(), Some(keyed.clone()));
        assert_eq!(store.by_id("e5").unwrap(), Some(keyed));
        store.remove("e5").unwrap();
        assert_eq!(store.by_key("once").unwrap(), None);
        assert_eq!(store.by_name(&Default::default(), "keyed").unwrap(), None);
        assert_eq!(store.by_id("e5").unwrap(), None);
        store.insert(&again).unwrap();
        store.remove("f6").unwrap();
    }

    fn events(open: &dyn Fn() -> Box<dyn Store>) {
        let store = open();
        let seen = |after, most| store.events(after, most).unwrap();
        let start = *store.newest().borrow();
        let kinds: Vec<_> = seen(0, 4).events.iter().map(|event| (event.event, event.name.clone())).collect();
        let expected = [
            (What::VmCreated, "web"),
            (What::VmCreated, "db"),
            (What::VmChanged, "web"),
            (What::VmRemoved, "web"),
        ];
        assert_eq!(
            kinds,
            expected.map(|(what, name)| (what, name.to_string())),
            "one for each change, in order"
        );

        let newest = store.newest();
        let state = Event {
            state: Some(State::Stopped),
            end: Some(End::PowerOff),
            ..Event::new(What::VmState, Some("d4"), "web")
        };
        assert_eq!(store.told("d4"), None);
        store.tell(state.clone()).unwrap();
        assert!(newest.has_changed().unwrap() && *newest.borrow() == start + 1);
        let told = Event { revision: start + 1, project: Some(ProjectName::default()), ..state };
        assert_eq!(seen(start, 10).events, [Arc::new(told.clone())]);
        assert_eq!(store.revision_of("d4"), start + 1);
        assert_eq!(store.told("d4"), Some(State::Stopped));
        let again = open();
        assert_eq!(again.told("d4"), Some(State::Stopped), "it is remembered");
        assert_eq!(again.revision_of("d4"), start + 1);
        assert_eq!(*again.newest().borrow(), start + 1);
        assert_eq!(again.events(start, 10).unwrap().events, [Arc::new(told)]);
        assert_eq!(again.revision_at(Timestamp { unix_s: 0 }).unwrap(), 0);
        assert_eq!(again.revision_at(Timestamp { unix_s: u64::MAX / 2 }).unwrap(), start + 1);
        assert!(!again.events(0, 1).unwrap().has_gap && !again.events(start + 9, 1).unwrap().has_gap);
        let newest = || *store.newest().borrow();
        let before = newest();
        store
            .tell(Event { state: Some(State::Stopped), ..Event::new(What::VmState, Some("d4"), "web") })
            .unwrap();
        assert_eq!(newest(), before, "it was told already");
        store
            .tell(Event { state: Some(State::Running), ..Event::new(What::VmState, Some("d4"), "web") })
            .unwrap();
        store.tell(Event::new(What::VmRebooted, Some("d4"), "web")).unwrap();
        assert_eq!(newest(), before + 2);
        store.remove("d4").unwrap();
        assert_eq!((store.told("d4"), store.revision_of("d4")), (None, 0));
        store
            .tell(Event { state: Some(State::Failed), ..Event::new(What::VmState, Some("d4"), "web") })
            .unwrap();
        assert_eq!(newest(), before + 3, "of one that is gone nothing is told");
    }

    fn facts(open: &dyn Fn() -> Box<dyn Store>) {
        let store = open();
        assert_eq!(store.fact("boot").unwrap(), None);
        store.set_fact("boot", "one").unwrap();
        store.set_fact("boot", "two").unwrap();
        assert_eq!(open().fact("boot").unwrap().as_deref(), Some("two"));
    }
}
