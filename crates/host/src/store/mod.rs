//! What the host service remembers of its VMs.
//!
//! A record says what was asked for; what *is*, is found out from the VM's process. One service writes at a
//! time (it holds a lock), so that a transaction is one record.
mod directory;
mod memory;

pub use directory::DirectoryStore;
pub(crate) use directory::write_whole;
pub use memory::MemoryStore;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use viv_api::agent::Exec;
use viv_api::image::ImageProcess;
use viv_api::timestamp::Timestamp;
use viv_api::vm::{OnReboot, Process};
use viv_model::{Fault, HealthAsk, Kind, Label, MachineSpec};

/// One VM, as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its identity.
    pub id: String,
    /// Its name; unique.
    pub name: String,
    /// When it was described.
    pub created_at: Timestamp,
    /// The image that it was made from.
    pub image: Option<String>,
    /// Words that its user has added to the image's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Its machine.
    pub machine: MachineSpec,
    /// The security groups that it is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Its labels.
    #[serde(default)]
    pub labels: Vec<Label>,
    /// What a reset does.
    pub on_reboot: OnReboot,
    /// It is forgotten when it ends.
    pub remove: bool,
    /// The command for which it exists.
    pub command: Option<Exec>,
    /// What runs in the place of its image's entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<String>,
    /// Volumes that it has besides its image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
    /// How to see whether its guest is well, besides what its image says.
    #[serde(default, skip_serializing_if = "HealthAsk::is_usual")]
    pub health: HealthAsk,
    /// How its image has programs started, if that is one of containers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<ImageProcess>,
    /// When it was last started.
    pub started_at: Option<Timestamp>,
    /// The process whose end is its end.
    pub attended_by: Option<Process>,
    /// It boots the kernel that is on its image's disks, which its guest may change; so does a VM of a disk's file.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub boots_itself: bool,
    /// The snapshot that it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

impl VmRecord {
    /// A VM with this machine, described now, and nothing else.
    pub(crate) fn new(id: &str, name: &str, machine: MachineSpec) -> VmRecord {
        VmRecord {
            id: id.to_string(),
            name: name.to_string(),
            created_at: Timestamp::now(),
            image: None,
            append: None,
            machine,
            groups: Vec::new(),
            labels: Vec::new(),
            on_reboot: OnReboot::default(),
            remove: false,
            command: None,
            entrypoint: None,
            volumes: Vec::new(),
            health: HealthAsk::default(),
            process: None,
            started_at: None,
            attended_by: None,
            boots_itself: false,
            snapshot: None,
        }
    }
}

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

/// Keeps records. Every call is whole or not at all, also when the host's power fails.
pub trait Store: Send + Sync {
    /// All records, oldest first.
    fn all(&self) -> Result<Vec<VmRecord>, StoreError>;
    /// Adds a record with a new identity and a name that no other has.
    fn insert(&self, record: &VmRecord) -> Result<(), StoreError>;
    /// Replaces the record with the same identity, and name.
    fn update(&self, record: &VmRecord) -> Result<(), StoreError>;
    /// Removes a record and everything that is kept for its VM.
    fn remove(&self, id: &str) -> Result<(), StoreError>;
}

/// The order of [`Store::all`].
fn sort(records: &mut [VmRecord]) {
    records.sort_by(|a, b| (a.created_at, &a.name).cmp(&(b.created_at, &b.name)));
}

#[cfg(test)]
pub(crate) mod conformance {
    //! What every store must do.
    use super::*;
    use viv_model::Accel;

    pub(crate) fn record(id: &str, name: &str, unix_s: u64) -> VmRecord {
        let machine = MachineSpec {
            cpus: 1,
            memory_mib: 64,
            memory_max_mib: None,
            accel: Accel::Auto,
            soft: Default::default(),
            kernel: "/boot/vmlinuz".into(),
            initrd: None,
            append: String::new(),
            disks: Vec::new(),
            shares: Vec::new(),
            nics: Vec::new(),
            console_ports: Vec::new(),
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
    }
}
