//! The VM that a snapshot is of goes on from it.
//!
//! It is decided when [`GOING_BACK`] is in the VM's directory, and nothing has been done to the VM by then. From there on whoever dies in
//! between is no matter: the next service begins anew, and comes to the same.
use super::go_on::lay_out;
use super::{Snapshots, io_fault, new_id};
use crate::apart;
use crate::places::is_gone;
use crate::store::{VmRecord, write_whole};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use viv_api::runner::RESUME;
use viv_api::snapshot::VmRollback;
use viv_api::vm::{Vm, VmStart};
use viv_model::{DiskSpec, Fault, Kind, MachineSpec, Manifest, NetKind};
use viv_snapshot::{IMAGE, IMAGE_PART};

/// What the directories begin with that hold a VM's disks after it was rolled back.
const BACK: &str = "back-";
/// In the directory of a VM from when it is decided that it goes back until it runs again, or whoever asked has been told why it does not.
const GOING_BACK: &str = "going-back";

/// What is in [`GOING_BACK`].
#[derive(Serialize, Deserialize)]
struct GoingBack {
    /// To which snapshot.
    snapshot: String,
    /// The disks that the VM has had, which go away then.
    disks: Vec<DiskSpec>,
}

impl GoingBack {
    fn read(vm: &Path) -> Option<GoingBack> {
        serde_json::from_slice(&fs::read(vm.join(GOING_BACK)).ok()?).ok()
    }
}

impl Snapshots {
    /// The VM goes on from a snapshot of it; what it has become since is lost.
    pub(crate) fn roll_back(&self, vm: &str, ask: &VmRollback) -> Result<Vm, Fault> {
        let (record, _) = self.vms.find(vm)?;
        let name = ask.snapshot.clone().or(record.snapshot.clone()).ok_or_else(|| {
            let text = format!("there is no snapshot of VM {:?}", record.name);
            Fault::new(
                Kind::NotFound,
                text,
                format!("make one next time: viv snapshot create {}", record.name),
            )
        })?;
        let (from, manifest) = self.find(&record.project, &name).map_err(|fault| match ask.snapshot {
            Some(_) => fault,
            None => {
                let text = format!("there is no snapshot of VM {:?} any more", record.name);
                Fault::new(Kind::NotFound, text, "see what there is: viv snapshot ls")
            }
        })?;
        if manifest.vm.0 != record.id {
            return Err(Fault::new(
                Kind::Conflict,
                format!(
                    "snapshot {:?} is of VM {:?}, not of {:?}",
                    manifest.name, manifest.vm.1, record.name
                ),
                format!("let a new VM go on from it: viv restore {}", manifest.name),
            ));
        }
        self.go_back(&record.id, &from, &manifest)
    }

    fn go_back(&self, id: &str, from: &Path, manifest: &Manifest) -> Result<Vm, Fault> {
        self.verify_disks(from, manifest)?;
        let gone_back = self.vms.change(id, |record, runner| {
            let vm = runner.dir();
            let place = new_id()?;
            let place = vm.join(format!("{BACK}{place}"));
            // As before, if it has not been decided.
            let undecided = |_: &Fault| drop(fs::remove_dir_all(&place));
            let before = GoingBack::read(vm);
            let machine = lay_out(from, manifest, &place).inspect_err(undecided)?;
            let machine = as_plugged_in(machine, &record.machine);
            let had = before.as_ref().map(|going| going.disks.as_slice()).unwrap_or_default();
            let disks = [had, &record.machine.disks].concat();
            let going = GoingBack { snapshot: manifest.id.clone(), disks };
            let path = vm.join(GOING_BACK);
            write_whole(&path, &going).map_err(io_fault("write", &path)).inspect_err(undecided)?;
            // From here on its disks are the snapshot's; memory only follows: it never goes with other disks. Nothing but we start it again.
            let snapshot = Some(manifest.id.clone());
            let now = VmRecord { machine, snapshot, wanted: false, ..record.clone() };
            self.vms.store.update(&now).map_err(Fault::from).inspect_err(undecided)?;
            self.vms.restarts.forget(id);
            runner.kill(None);
            let resume = vm.join(RESUME);
            if resume.exists() {
                fs::remove_dir_all(&resume).map_err(io_fault("remove", &resume))?;
            }
            fs::rename(place.join(RESUME), &resume).map_err(io_fault("make", &resume))?;
            forget_disks(vm, &going.disks, &place);
            Ok(())
        });
        let started = gone_back.and_then(|()| self.vms.start(id, &VmStart::default()));
        // Done, or told as not done: whoever starts it then must not lose later what it has become since.
        if let Ok((_, runner)) = self.vms.find(id) {
            let _ = fs::remove_file(runner.dir().join(GOING_BACK));
        }
        started
    }

    /// What a service has begun that was killed: VMs that were going back do so, and what never came to be goes.
    pub(crate) fn finish_going_back(&self) {
        for record in self.vms.records().unwrap_or_default() {
            let runner = self.vms.runner(&record);
            let Some(going) = GoingBack::read(runner.dir()) else { continue };
            let done = self
                .by_id(&going.snapshot)
                .and_then(|(from, manifest)| self.go_back(&record.id, &from, &manifest));
            if let Err(fault) = done {
                let _ = fs::remove_file(runner.dir().join(GOING_BACK));
                viv_api::complain!(
                    "viv serve: {} was to go back to a snapshot, and does not: {fault}",
                    record.name
                );
            }
        }
    }

    /// Removes what was laid out for VMs that did not go back, and images for disks of VMs that were not forked.
    pub(super) fn forget_undecided(&self) -> Result<(), Fault> {
        for record in self.vms.records()? {
            let runner = self.vms.runner(&record);
            let vm = runner.dir();
            apart::forget_unnamed(&record.machine.disks, vm);
            if is_gone(&vm.join(GOING_BACK)) {
                // What it goes on with is there only until it is decided.
                let unused = places(vm).filter(|place| place.join(RESUME).exists() && !has(&record, place));
                unused.for_each(|place| drop(fs::remove_dir_all(place)));
            }
        }
        Ok(())
    }
}

/// Whether something of a VM is in this directory.
fn has(record: &VmRecord, place: &Path) -> bool {
    let MachineSpec { kernel, initrd, disks, .. } = &record.machine;
    let files = disks.iter().map(|disk| &disk.path).chain([kernel]).chain(initrd);
    files.into_iter().any(|file| file.starts_with(place))
}

/// The directories that hold disks of a VM that was rolled back, or is to be.
fn places(vm: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(vm).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(BACK)).map(|entry| entry.path())
}

/// It is the same VM, on the same ports.
fn as_plugged_in(mut machine: MachineSpec, now: &MachineSpec) -> MachineSpec {
    machine.ports.clone_from(&now.ports);
    for nic in &mut machine.nics {
        match now.nics.iter().find(|now| now.id == nic.id) {
            Some(now) => {
                let saved = std::mem::replace(nic, now.clone());
                nic.remember(&saved);
            }
            // It has been taken away since, and its place may be another VM's.
            None => (nic.net, nic.address, nic.ports) = (NetKind::None, None, Vec::new()),
        }
    }
    machine
}

/// Removes what the VM had before it was rolled back, of its own.
fn forget_disks(vm: &Path, before: &[DiskSpec], now: &Path) {
    apart::forget(before, vm);
    if before.iter().any(|disk| disk.path == vm.join(IMAGE)) {
        forget_image(vm);
    }
    places(vm).filter(|place| place != now).for_each(|place| drop(fs::remove_dir_all(place)));
}

/// Removes the files of an image of containers, which the VM has elsewhere now.
fn forget_image(vm: &Path) {
    for entry in fs::read_dir(vm).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(IMAGE_PART) {
            let _ = fs::remove_file(entry.path());
        }
    }
}
