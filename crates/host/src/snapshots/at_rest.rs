//! What a VM that runs, or a snapshot, has on its disks, as if it were a VM that does not run: for what reads them.
use super::go_on::lay_out;
use super::make::Purpose;
use super::{Snapshots, new_id};
use crate::creation::append_of;
use crate::disk_image::is_file;
use crate::images::{Stopped, Watcher};
use std::fs;
use std::path::Path;
use viv_api::snapshot::SnapshotCreate;
use viv_model::{Fault, Kind, Manifest, ProjectName};

impl Snapshots {
    /// Does something with what a VM that lives is at this moment. It goes on meanwhile.
    pub(crate) fn of_live<T>(
        &self,
        vm: &str,
        watcher: &dyn Watcher,
        act: impl FnOnce(&Stopped<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (record, _) = self.vms.find(vm)?;
        let made = self.make(vm, &SnapshotCreate::default(), Purpose::Read, new_id()?, watcher)?;
        let unquiet = || {
            let text = format!(
                "the file systems of VM {:?} did not stand still: it is paused, or its agent does not answer",
                record.name
            );
            let fix = format!("let it go on: viv resume {0}; or stop it first: viv stop {0}", record.name);
            Fault::new(Kind::Conflict, text, fix)
        };
        let done = self.with(&made.dir, &made.manifest, record.append.as_deref(), unquiet, act);
        let _ = self.discard(&made.dir);
        done
    }

    /// Does something with a snapshot of a project; of this VM, if one is named.
    pub(crate) fn of_snapshot<T>(
        &self,
        project: &ProjectName,
        vm: Option<&str>,
        name: &str,
        act: impl FnOnce(&Stopped<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let (dir, manifest) = self.find(project, name)?;
        if let Some(vm) = vm.filter(|vm| ![&manifest.vm.0, &manifest.vm.1].iter().any(|own| own == vm)) {
            return Err(Fault::new(
                Kind::NotFound,
                format!("snapshot {:?} is of VM {:?}, not of {vm:?}", manifest.name, manifest.vm.1),
                "see which there are: viv snapshot ls",
            ));
        }
        self.verify_disks(&dir, &manifest)?;
        let unquiet = || {
            let text = format!(
                "the file systems in snapshot {:?} did not stand still when it was made: its VM was paused, or had no agent",
                manifest.name
            );
            Fault::new(
                Kind::Conflict,
                text,
                "make one while the VM runs: viv resume VM; viv snapshot create VM",
            )
        };
        self.with(&dir, &manifest, None, unquiet, act)
    }

    fn with<T>(
        &self,
        from: &Path,
        manifest: &Manifest,
        append: Option<&str>,
        unquiet: impl FnOnce() -> Fault,
        act: impl FnOnce(&Stopped<'_>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let id = new_id()?;
        // Without a manifest: should we be killed, it is swept away as what is half-made.
        let place = self.places.snapshots().join(id);
        let done = lay_out(from, manifest, &place).and_then(|machine| {
            let vm = Stopped {
                name: &manifest.vm.1,
                dir: &place,
                image: manifest.image.as_deref(),
                machine: &machine,
                append: append_of(&machine, append),
                boots_itself: manifest.image.as_deref().is_some_and(|image| {
                    is_file(image) || self.vms.image(image).is_some_and(|image| image.manifest.boots_itself())
                }),
            };
            match manifest.frozen_file_systems {
                // Their journals are read by nobody but the guest.
                None | Some(0) if vm.is_container() => Err(unquiet()),
                _ => act(&vm),
            }
        });
        let _ = fs::remove_dir_all(&place);
        done
    }
}
