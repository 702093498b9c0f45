//! Snapshots of VMs that live.
use super::{Snapshots, io_fault, link};
use crate::names;
use crate::store::VmRecord;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use viv_api::snapshot::{Snapshot, SnapshotCreate};
use viv_api::timestamp::Timestamp;
use viv_model::{Fault, Kind, MachineSpec, Manifest, Plain, SavedParts, State};
use viv_snapshot::{FORMAT, INITRD, KERNEL, MEMORY, STATE, disk_file, sums_file, write_manifest};

/// What for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be kept.
    Keep,
    /// To be kept, and VMs are made by its name.
    Template,
    /// For what comes from it now.
    Fork,
}

impl Snapshots {
    /// Makes a snapshot of a VM that lives.
    pub(crate) fn create(&self, vm: &str, ask: &SnapshotCreate) -> Result<Snapshot, Fault> {
        let purpose = if ask.template { Purpose::Template } else { Purpose::Keep };
        let (_, manifest) = self.make(vm, ask, purpose)?;
        if purpose == Purpose::Keep {
            // What the VM becomes comes from it. It may be gone by now.
            let _ = self.vms.came_from(&manifest.vm.0, &manifest.id);
        }
        self.get(&manifest.id)
    }

    pub(super) fn make(
        &self,
        vm: &str,
        ask: &SnapshotCreate,
        purpose: Purpose,
    ) -> Result<(PathBuf, Manifest), Fault> {
        let (record, runner) = self.vms.find(vm)?;
        let name = self.name(ask.name.as_deref(), &record.name)?;
        let id = names::identity().map_err(io_fault("read", Path::new("/dev/urandom")))?;
        let dir = self.places.snapshots().join(&id);
        let state = self.vms.get(&record.id)?.state;
        if !matches!(state, State::Running | State::Paused) {
            return Err(Fault::new(
                Kind::Conflict,
                format!("cannot make a snapshot of VM {:?}: it is {state}", record.name),
                format!("start it first: viv start {}", record.name),
            ));
        }
        DirBuilder::new().mode(0o700).create(&dir).map_err(io_fault("make", &dir))?;
        let made = files_for(&dir, &record).and_then(|files| {
            // The VM may be stopped or removed meanwhile: then there is no snapshot.
            let parts = runner.snapshot(&files)?;
            self.keep_files(&dir, &parts, &files, purpose)?;
            let kept = self.boot_files(&dir, &parts)?;
            let manifest = Manifest {
                format: FORMAT,
                release: env!("CARGO_PKG_VERSION").to_string(),
                id: id.clone(),
                name: name.name.clone(),
                comment: ask.comment.clone(),
                created_unix_s: Timestamp::now().unix_s,
                vm: (record.id.clone(), record.name.clone()),
                image: record.image.clone(),
                parent: record.snapshot.clone(),
                template: purpose == Purpose::Template,
                groups: record.groups.clone(),
                labels: record.labels.clone(),
                // Where its cards are plugged in may have changed since its process was started.
                machine: MachineSpec { nics: record.machine.nics.clone(), ..parts.machine },
                paused_ns: parts.paused_ns,
                sections: parts.sections,
                memory: parts.memory,
                disks: parts.disks,
                files: kept,
            };
            write_manifest(&manifest, &dir)?;
            if purpose != Purpose::Fork {
                let all = self.places.snapshots();
                File::open(&all).and_then(|all| all.sync_all()).map_err(io_fault("write", &all))?;
            }
            Ok(manifest)
        });
        let manifest = made.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        Ok((dir, manifest))
    }

    /// Nobody writes to them any more.
    fn keep_files(
        &self,
        dir: &Path,
        parts: &SavedParts,
        files: &[File],
        purpose: Purpose,
    ) -> Result<(), Fault> {
        for file in files {
            // What is gone in a moment need not outlive the host.
            if purpose != Purpose::Fork {
                file.sync_all().map_err(io_fault("write", dir))?;
            }
            // What VMs have below their disks is never written again.
            file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(io_fault("protect", dir))?;
        }
        // Just written, and not read to see whether that is so.
        parts.disks.iter().try_for_each(|disk| self.known.good(dir, disk, || Ok(())))
    }

    /// What the machine boots with.
    fn boot_files(&self, dir: &Path, parts: &SavedParts) -> Result<Vec<Plain>, Fault> {
        let machine = &parts.machine;
        let mut kept = Vec::new();
        for (name, path) in [(KERNEL, Some(&machine.kernel)), (INITRD, machine.initrd.as_ref())] {
            if let Some(path) = path {
                link(path, &dir.join(name))?;
                kept.push(Plain { name: name.to_string(), checksum: self.known.checksum(&dir.join(name))? });
            }
        }
        Ok(kept)
    }
}

/// The empty files of a new snapshot, in the order in which the VM's process takes them.
fn files_for(dir: &Path, record: &VmRecord) -> Result<Vec<File>, Fault> {
    let mut names = vec![STATE.to_string(), MEMORY.to_string(), sums_file(MEMORY)];
    for (index, disk) in record.machine.disks.iter().enumerate() {
        if !disk.read_only {
            names.extend([disk_file(index), sums_file(&disk_file(index))]);
        }
    }
    let open = |name: &String| {
        let path = dir.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        file.map_err(io_fault("make", &path))
    };
    names.iter().map(open).collect()
}
