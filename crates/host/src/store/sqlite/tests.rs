use super::super::conformance::{record, suite};
use super::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};
use viv_model::Fault;

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Scratch {
        // Two tests may do the same, each in a directory of its own.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let root = std::env::temp_dir().join(format!("viv-store-{name}-{}-{number}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir(&root).unwrap();
        Scratch(root)
    }

    fn file(&self) -> PathBuf {
        self.0.join("state.db")
    }

    fn vm(&self, id: &str) -> PathBuf {
        self.0.join("vms").join(id)
    }

    fn open(&self) -> Result<(SqliteStore, Vec<PathBuf>), StoreError> {
        SqliteStore::open(&self.file(), &self.0.join("vms"))
    }

    fn store(&self) -> SqliteStore {
        self.open().unwrap().0
    }

    fn refused(&self) -> Fault {
        match self.open() {
            Ok(_) => panic!("it was opened"),
            Err(error) => error.into(),
        }
    }

    fn with(&self, sql: &str) {
        Connection::open(self.file()).unwrap().execute_batch(sql).unwrap();
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn conforms() {
    let scratch = Scratch::new("suite");
    suite(&|| Box::new(scratch.store()));
}

#[test]
fn what_a_crash_left_is_cleared_away() {
    let scratch = Scratch::new("crash");
    let store = scratch.store();
    for (id, name) in [("a1", "web"), ("e5", "kept")] {
        store.insert(&record(id, name, 1)).unwrap();
    }
    drop(store);
    fs::create_dir(scratch.vm("b2")).unwrap(); // made, and no record yet
    fs::write(scratch.vm("b2").join("disk.raw"), "half").unwrap();
    fs::create_dir(scratch.vm(".removed-c3")).unwrap(); // forgotten, with files
    fs::write(scratch.vm(".removed-c3").join("disk.raw"), "old").unwrap();
    fs::write(scratch.vm("e5").join("disk.raw"), "good").unwrap();
    fs::rename(scratch.vm("e5"), scratch.vm(".removed-e5")).unwrap(); // just before it was forgotten
    fs::create_dir(scratch.vm("d4")).unwrap(); // of a VM that ran, and whose record is lost
    fs::write(scratch.vm("d4").join("runner.lock"), "").unwrap();
    let (store, left) = scratch.open().unwrap();
    assert_eq!(left, [scratch.vm("d4")]);
    assert_eq!(store.count().unwrap(), 2);
    assert!(!scratch.vm("b2").exists() && !scratch.vm(".removed-c3").exists());
    assert_eq!(fs::read(scratch.vm("e5").join("disk.raw")).unwrap(), b"good");
}

#[test]
fn records_of_earlier_releases_are_taken_over() {
    let scratch = Scratch::new("earlier");
    for (id, name) in [("a1", "web"), ("b2", "db")] {
        fs::create_dir_all(scratch.vm(id)).unwrap();
        fs::write(scratch.vm(id).join("record.json"), serde_json::to_vec(&record(id, name, 7)).unwrap())
            .unwrap();
        fs::write(scratch.vm(id).join("runner.lock"), "").unwrap();
    }
    let (store, left) = scratch.open().unwrap();
    assert_eq!(left, [] as [PathBuf; 0]);
    assert_eq!(store.all().unwrap(), [record("b2", "db", 7), record("a1", "web", 7)]);
    assert!(!scratch.vm("a1").join("record.json").exists() && scratch.vm("a1").join("runner.lock").exists());
    assert_eq!(scratch.store().count().unwrap(), 2);
}

#[test]
fn a_store_of_layout_1_gets_what_is_new() {
    let scratch = Scratch::new("layout1");
    let store = scratch.store();
    store.insert(&record("a1", "web", 10)).unwrap();
    drop(store);
    scratch.with("DROP TABLE operations; PRAGMA user_version = 1;");
    let store = scratch.store();
    assert_eq!(store.all().unwrap(), [record("a1", "web", 10)]);
    assert_eq!(store.operations().unwrap(), []);
    drop(store);
    assert_eq!(layout(&connect(&scratch.file()).unwrap(), &scratch.file()).unwrap(), LAYOUT);
}

#[test]
fn vms_of_releases_before_projects_are_in_the_default_one() {
    let scratch = Scratch::new("layout2");
    let store = scratch.store();
    store.insert(&record("a1", "web", 10)).unwrap();
    drop(store);
    scratch.with("PRAGMA user_version = 2;");
    let rows = Connection::open(scratch.file()).unwrap();
    let row = |sql: &str| rows.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(row("SELECT name FROM vms"), "web");
    assert!(!row("SELECT record FROM vms").contains("project"), "as releases before wrote it");
    drop(rows);
    let store = scratch.store();
    let web = store.by_name(&ProjectName::default(), "web").unwrap().unwrap();
    assert!(web.project.is_default());
    let acme: ProjectName = "acme".parse().unwrap();
    assert_eq!(store.by_name(&acme, "web").unwrap(), None);
    store.insert(&VmRecord { project: acme.clone(), ..record("b2", "web", 20) }).unwrap();
    drop(store);
    let store = scratch.store();
    assert_eq!(store.by_name(&acme, "web").unwrap().map(|record| record.id), Some("b2".into()));
    drop(store);
    let found = layout(&connect(&scratch.file()).unwrap(), &scratch.file()).unwrap();
    assert_eq!(found, LAYOUT, "a release that knows of no projects does not open it");
}

#[test]
fn a_store_that_is_not_ours_is_refused_and_not_touched() {
    let scratch = Scratch::new("refused");
    let same = |why: &str, what: &str| {
        let before = fs::read(scratch.file()).unwrap();
        let fault = scratch.refused();
        assert!(fault.message.contains(why), "{what}: {}", fault.message);
        assert_eq!(fs::read(scratch.file()).unwrap(), before, "{what}");
        fault
    };
    fs::write(scratch.file(), "this is a letter, and no database at all").unwrap();
    same("damaged", "a text");
    fs::remove_file(scratch.file()).unwrap();
    scratch.with("CREATE TABLE songs (title TEXT)");
    same("another program", "of others");
    fs::remove_file(scratch.file()).unwrap();
    scratch.store().insert(&record("a1", "web", 1)).unwrap();
    scratch.with("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA user_version = 99");
    same("newer release", "of a later release");
    scratch.with("PRAGMA user_version = 1; UPDATE vms SET record = '{}'; PRAGMA wal_checkpoint(TRUNCATE)");
    same("not understood", "a strange record");
}

#[test]
fn a_damaged_store_names_the_copy_to_go_back_to() {
    let scratch = Scratch::new("damaged");
    let store = scratch.store();
    for number in 0..200 {
        store.insert(&record(&format!("id{number}"), &format!("vm{number}"), 1)).unwrap();
    }
    drop(store);
    fs::remove_file(scratch.file().with_extension("db.copy")).unwrap();
    drop(scratch.store()); // makes one of all
    let mut bytes = fs::read(scratch.file()).unwrap();
    let middle = bytes.len() / 2;
    bytes[4096..middle].fill(0x5a);
    fs::write(scratch.file(), bytes).unwrap();
    let fault = scratch.refused();
    assert!(fault.message.contains("damaged") && fault.fix.contains("state.db.copy"), "{fault:?}");
    fs::copy(scratch.file().with_extension("db.copy"), scratch.file()).unwrap();
    assert_eq!(scratch.store().count().unwrap(), 200, "and that works");
}

#[test]
fn a_store_that_is_gone_is_not_begun_anew_over_its_vms() {
    let scratch = Scratch::new("gone");
    scratch.store().insert(&record("a1", "web", 1)).unwrap();
    fs::write(scratch.vm("a1").join("runner.lock"), "").unwrap();
    for ending in ["db", "db-wal", "db-shm"] {
        let _ = fs::rename(scratch.file().with_extension(ending), scratch.0.join(format!("away-{ending}")));
    }
    let fault = scratch.refused();
    assert!(fault.message.contains("it is gone") && fault.fix.contains("cp "), "{fault:?}");
    assert!(scratch.vm("a1").exists());
    fs::rename(scratch.0.join("away-db"), scratch.file()).unwrap();
    assert_eq!(scratch.store().count().unwrap(), 1);
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error() {
    if rustix::process::getuid().is_root() {
        return a_full_database_refuses_and_goes_on(); // nothing is forbidden to root
    }
    let scratch = Scratch::new("read-only");
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o500)).unwrap();
    assert!(!scratch.refused().fix.is_empty());
    fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_full_database_refuses_and_goes_on() {
    let scratch = Scratch::new("full");
    let store = scratch.store();
    store.insert(&record("a1", "web", 1)).unwrap();
    let limit = |pages: u32| {
        store.writer.read(move |database| database.pragma_update(None, "max_page_count", pages)).unwrap();
    };
    limit(1); // as many as there are
    let mut inserted = 1;
    let full = loop {
        match store.insert(&record(&format!("n{inserted}"), &format!("vm{inserted}"), 2)) {
            Ok(()) => inserted += 1,
            Err(error) => break Fault::from(error),
        }
        assert!(inserted < 1000);
    };
    assert_eq!(full.kind, viv_model::Kind::NoCapacity, "{full:?}");
    assert_eq!(store.count().unwrap(), inserted);
    assert!(!scratch.vm(&format!("n{inserted}")).exists(), "nothing is left of it");
    assert!(store.remove("a1").is_ok() || store.count().unwrap() == inserted);
    limit(1 << 30);
    store.insert(&record("last", "last", 3)).unwrap();
    let count = store.count().unwrap();
    drop(store);
    assert_eq!(scratch.store().count().unwrap(), count, "what was said is on the disk");
}

#[test]
fn many_at_once_are_all_there_or_refused() {
    let scratch = Scratch::new("many");
    let store = scratch.store();
    let (clients, each) = (16, 25);
    std::thread::scope(|scope| {
        for client in 0..clients {
            let store = &store;
            scope.spawn(move || {
                for number in 0..each {
                    let (id, name) = (format!("c{client}n{number}"), format!("vm{client}-{number}"));
                    store.insert(&record(&id, &name, 5)).unwrap();
                    // One name that everybody wants.
                    let wanted = store.insert(&record(&format!("{id}x"), "wanted", 5));
                    assert!(matches!(wanted, Ok(()) | Err(StoreError::NameTaken { .. })));
                }
            });
        }
    });
    let all = store.all().unwrap();
    assert_eq!(all.len(), clients * each + 1);
    let newest = *store.newest().borrow();
    assert_eq!(newest as usize, all.len(), "an event for each, and none for what was refused");
    let events = store.events(0, 10_000).unwrap().events;
    assert!(events.iter().enumerate().all(|(index, event)| event.revision == index as u64 + 1));
    drop(store);
    let again = scratch.store();
    assert_eq!(again.all().unwrap(), all);
    assert_eq!(again.events(0, 10_000).unwrap().events, events, "the same from the disk");
}
