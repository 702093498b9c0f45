//! What there is to do in a long work: plain data, so that another service can take it up.
use super::{build, of_vm};
use crate::events::{self, telling};
use crate::images::{self, Watcher};
use crate::service::Service;
use crate::vms::absolute;
use crate::warm;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::UNIX_EPOCH;
use viv_api::event::{Event, What};
use viv_api::image::{DiskExport, Image, ImageBuild, ImageCommit, ImageExport, ImageImport, ImagePush};
use viv_api::operation::OperationKind;
use viv_api::snapshot::{SnapshotCreate, SnapshotFile};
use viv_api::timestamp::Timestamp;
use viv_model::{Fault, GuestKind, ProjectName};
use viv_oci::Logins;

/// A long work's name and its request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    /// Build an image, or get it.
    ImageBuild {
        image: String,
        ask: ImageBuild,
        /// Who to be to its registry. No store has secrets: whoever takes the work up later is who it is itself.
        #[serde(skip)]
        logins: Logins,
    },
    /// Send one to a registry.
    ImagePush {
        image: String,
        ask: ImagePush,
        #[serde(skip)]
        logins: Logins,
    },
    /// Write one to a file.
    ImageExport { image: String, ask: ImageExport },
    /// Make one of another program's machine.
    ImageImport { ask: ImageImport },
    /// Make one of a VM, or of a snapshot.
    VmCommit {
        #[serde(default)]
        project: ProjectName,
        vm: String,
        ask: ImageCommit,
    },
    /// Write a VM or its disk to a file.
    VmExport {
        #[serde(default)]
        project: ProjectName,
        vm: String,
        ask: DiskExport,
    },
    /// Save a VM that lives.
    SnapshotCreate {
        project: ProjectName,
        /// Its identity, and its name when it was asked for.
        vm: (String, String),
        /// The snapshot's identity: done again, it is there once.
        id: String,
        ask: SnapshotCreate,
    },
    /// Compare a snapshot with its checksums.
    SnapshotVerify { project: ProjectName, snapshot: String },
    /// Write a snapshot to a file.
    SnapshotExport {
        #[serde(default)]
        project: ProjectName,
        snapshot: String,
        ask: SnapshotFile,
    },
    /// Take one from a file.
    SnapshotImport {
        #[serde(default)]
        project: ProjectName,
        ask: SnapshotFile,
    },
}

impl Task {
    pub(crate) fn kind(&self) -> OperationKind {
        match self {
            Task::ImageBuild { .. } => OperationKind::ImageBuild,
            Task::ImagePush { .. } => OperationKind::ImagePush,
            Task::ImageExport { .. } => OperationKind::ImageExport,
            Task::ImageImport { .. } => OperationKind::ImageImport,
            Task::VmCommit { .. } => OperationKind::VmCommit,
            Task::VmExport { .. } => OperationKind::VmExport,
            Task::SnapshotCreate { .. } => OperationKind::SnapshotCreate,
            Task::SnapshotVerify { .. } => OperationKind::SnapshotVerify,
            Task::SnapshotExport { .. } => OperationKind::SnapshotExport,
            Task::SnapshotImport { .. } => OperationKind::SnapshotImport,
        }
    }

    /// What it does it with.
    pub(crate) fn subject(&self) -> String {
        match self {
            Task::ImageBuild { image, .. }
            | Task::ImagePush { image, .. }
            | Task::ImageExport { image, .. } => image.clone(),
            Task::VmCommit { vm, .. } | Task::VmExport { vm, .. } => vm.clone(),
            Task::SnapshotCreate { vm: (_, name), .. } => name.clone(),
            Task::SnapshotVerify { snapshot, .. } | Task::SnapshotExport { snapshot, .. } => snapshot.clone(),
            Task::ImageImport { ask: ImageImport { path, .. } }
            | Task::SnapshotImport { ask: SnapshotFile { path, .. }, .. } => path.display().to_string(),
        }
    }

    /// Whether it is done with snapshots, on this host's disks.
    pub(super) fn is_of_snapshots(&self) -> bool {
        matches!(self, Task::SnapshotCreate { .. } | Task::SnapshotVerify { .. })
    }

    /// Refuses at once what cannot be done.
    pub(super) fn check(&self) -> Result<(), Fault> {
        match self {
            Task::ImageExport { ask, .. } => absolute(&ask.path),
            Task::ImageImport { ask } => absolute(&ask.path),
            Task::VmExport { ask, .. } => absolute(&ask.path),
            Task::SnapshotExport { ask, .. } | Task::SnapshotImport { ask, .. } => absolute(&ask.path),
            Task::SnapshotCreate { ask, .. } => warm::check_name(ask.name.as_deref()),
            Task::ImageBuild { .. }
            | Task::ImagePush { .. }
            | Task::VmCommit { .. }
            | Task::SnapshotVerify { .. } => Ok(()),
        }
    }

    /// What it would make, if that is there and nothing is to be done.
    pub(super) fn there(&self, service: &Service) -> Option<Value> {
        let Task::ImageBuild { image, ask, .. } = self else { return None };
        // What is wrong is told by the work.
        let image = build::there(service, image, ask).ok().flatten()?;
        value(&shown(&image)).ok()
    }

    /// Does it; gives what it has made.
    pub(super) fn run(&self, service: &Service, watcher: &dyn Watcher) -> Result<Value, Fault> {
        let store = &*service.vms.store;
        match self {
            Task::ImageBuild { image, ask, logins } => {
                let known: Vec<_> =
                    service.images.list()?.into_iter().map(|image| (image.name, image.digest)).collect();
                let built = build::build(service, image, ask, logins, watcher)?;
                if !known.contains(&(built.name.clone(), built.digest.clone())) {
                    events::tell(store, Event::new(What::ImageChanged, None, &built.name));
                }
                value(&shown(&built))
            }
            Task::ImagePush { image, ask, logins } => {
                value(&service.images.push(image, ask, logins, watcher)?)
            }
            Task::ImageExport { image, ask } => value(&service.images.export(image, ask, watcher)?),
            Task::ImageImport { ask } => {
                let imported = service.images.import(ask, watcher, &shown)?;
                if imported.image.is_some() {
                    events::tell(store, Event::new(What::ImageChanged, None, &imported.name));
                }
                value(&imported)
            }
            Task::VmCommit { project, vm, ask } => {
                let commit = || of_vm::commit(service, project, vm, ask, watcher, shown);
                value(&telling(store, What::ImageChanged, None, commit, |image| image.name.clone())?)
            }
            Task::VmExport { project, vm, ask } => {
                value(&of_vm::export_disk(service, project, vm, ask, watcher)?)
            }
            Task::SnapshotCreate { project, vm: (vm, _), id, ask } => {
                let create = || service.snapshots.create(vm, ask, id, watcher);
                value(&telling(store, What::SnapshotCreated, Some(project), create, |it| it.name.clone())?)
            }
            Task::SnapshotVerify { project, snapshot } => {
                value(&service.snapshots.verify(project, snapshot, watcher)?)
            }
            Task::SnapshotExport { project, snapshot, ask } => {
                value(&service.snapshots.export(project, snapshot, ask, watcher)?)
            }
            Task::SnapshotImport { project, ask } => {
                let import = || service.snapshots.import(project, ask, watcher);
                value(&telling(store, What::SnapshotCreated, Some(project), import, |snapshot| {
                    snapshot.name.clone()
                })?)
            }
        }
    }
}

fn value(made: &impl Serialize) -> Result<Value, Fault> {
    serde_json::to_value(made).map_err(|error| crate::blocking::defect(&error.to_string()))
}

/// An image of the store as the API shows it.
pub(crate) fn shown(image: &images::Image) -> Image {
    let unix_s = image.created_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    Image {
        name: image.name.clone(),
        digest: image.digest.clone(),
        size_bytes: image.size_bytes,
        created_at: Timestamp { unix_s },
        summary: image.summary.clone(),
        process: image.manifest.process().cloned(),
        program: image.manifest.program.as_ref().map(|_| GuestKind::Wasm),
        cpus: image.manifest.usual.cpus,
        memory_mib: image.manifest.usual.memory_mib,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_store_has_what_is_secret() {
        // {"a.io": {"username": "ann", "password": "s3cret"}}
        let logins =
            Logins::decode("eyJhLmlvIjp7InVzZXJuYW1lIjoiYW5uIiwicGFzc3dvcmQiOiJzM2NyZXQifX0").unwrap();
        let task = Task::ImageBuild { image: "a.io/b".into(), ask: ImageBuild::default(), logins };
        let text = format!("{} {task:?}", serde_json::to_string(&task).unwrap());
        assert!(text.contains("a.io/b") && !text.contains("s3cret") && !text.contains("ann"), "{text}");
        let known: Task = serde_json::from_str(&serde_json::to_string(&task).unwrap()).unwrap();
        assert!(matches!(known, Task::ImageBuild { logins, .. } if logins.is_empty()));
    }
}
