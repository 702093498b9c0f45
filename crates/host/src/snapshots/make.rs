//! Snapshots of VMs that live.
use super::targets::Targets;
use super::{PASSING, Snapshots, io_fault, link, new_id};
use crate::images::{Unwatched, Watcher, cancelled, step};
use crate::programs;
use crate::runners::Runner;
use crate::seed::{self, SEED, SETTINGS};
use crate::vms::{Held, lock};
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::iter;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use viv_api::operation::Progress;
use viv_api::runner::{SnapshotAsk, TRANSLATED};
use viv_api::snapshot::{Snapshot, SnapshotCreate};
use viv_api::timestamp::Timestamp;
use viv_model::{DiskSpec, Fault, GuestKind, Kind, MachineSpec, Manifest, Plain, SavedParts, State};
use viv_snapshot::{
    CHUNK, DRAFT, FORMAT_ASKED, FORMAT_LAYERS, FORMAT_PROGRAM, FORMAT_WHOLE, IMAGE, IMAGE_PART, INITRD,
    KERNEL, MEMORY, PROGRAM, SUM_LEN, disk_file, draft_manifest, sums_file, write_manifest,
};

/// What for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To be kept.
    Keep,
    /// To be kept, and VMs are made by its name.
    Template,
    /// The same, and VMs come from it before the host's disk has it.
    Warm,
    /// For what comes from it now.
    Fork,
    /// For what reads its disks now.
    Read,
}

/// What takes no longer needs no words.
const GRACE: Duration = Duration::from_millis(300);

/// One that was just made: nobody else removes it for as long as this lives.
pub(super) struct Made<'a> {
    pub(super) dir: PathBuf,
    pub(super) manifest: Manifest,
    _work: Held<'a, OsString>,
}

impl Purpose {
    /// Whether it is gone in a moment: then it need not outlive the host.
    pub(super) fn passes(self) -> bool {
        matches!(self, Purpose::Fork | Purpose::Read)
    }

    /// Whether the host's disk must have it before it is there.
    fn outlives_host(self) -> bool {
        matches!(self, Purpose::Keep | Purpose::Template)
    }
}

impl Snapshots {
    /// Makes a snapshot of a VM that lives, with a [new identity](super::new_id); the one that has it, if there is one.
    pub(crate) fn create(
        &self,
        vm: &str,
        ask: &SnapshotCreate,
        id: &str,
        watcher: &dyn Watcher,
    ) -> Result<Snapshot, Fault> {
        if let Ok((dir, manifest)) = self.by_id(id) {
            return self.shown(&dir, &manifest);
        }
        let purpose = if ask.template { Purpose::Template } else { Purpose::Keep };
        let Made { dir, manifest, .. } = self.make(vm, ask, purpose, id.to_string(), watcher)?;
        if purpose == Purpose::Keep {
            // What the VM becomes comes from it. It may be gone by now.
            let _ = self.vms.came_from(&manifest.vm.0, &manifest.id);
        }
        // It is there by now, whether or not the others can be read.
        Ok(self.view(&dir, &manifest, &self.all().unwrap_or_default()))
    }

    pub(super) fn make(
        &self,
        vm: &str,
        ask: &SnapshotCreate,
        purpose: Purpose,
        id: String,
        watcher: &dyn Watcher,
    ) -> Result<Made<'_>, Fault> {
        let (record, runner) = self.vms.find(vm)?;
        programs::refuse_to_save(&record)?;
        if ask.drop_sockets && record.kind() != GuestKind::Wasm {
            let text =
                format!("VM {:?} is {}: its connections are its own", record.name, record.kind().called());
            return Err(Fault::new(Kind::Usage, text, "leave out --drop-sockets"));
        }
        // Who comes to be once only needs no name.
        let named =
            (!purpose.passes()).then(|| self.name(&record.project, ask.name.as_deref(), &record.name));
        let named = named.transpose()?;
        let mut dir = self.places.snapshots().join(&id);
        if purpose.passes() {
            dir.set_extension(PASSING);
        }
        let work = self.work_in(&dir);
        let state = self.vms.get(&record.id)?.state;
        if !matches!(state, State::Running | State::Paused) {
            return Err(Fault::new(
                Kind::Conflict,
                format!("cannot make a snapshot of VM {:?}: it is {state}", record.name),
                format!("start it first: viv start {}", record.name),
            ));
        }
        let base = self.base_of(&record, purpose, ask.full);
        let turn = (purpose == Purpose::Fork).then(|| self.vms.disks_turn(&record.id));
        let turn = turn.as_deref().map(lock);
        let apart = if turn.is_some() { self.vms.set_apart(&record.id, &id)? } else { Vec::new() };
        let made = Targets::make(&dir, &id, &record, base, purpose, &apart).and_then(|targets| {
            // The VM may be stopped or removed meanwhile: then there is no snapshot.
            let told = SnapshotAsk { drop_sockets: ask.drop_sockets, ..targets.ask.clone() };
            let saving = Saving::new(&dir, &record.machine, watcher);
            let parts = runner.snapshot(&told, &targets.files, || saving.tell())?;
            let mut parts = targets.complete(parts)?;
            if purpose.outlives_host() {
                saving.tell_last();
            }
            if record.program.is_none() && state == State::Running {
                self.keep_translated(&dir, &record.id, &runner);
            }
            apart.iter().try_for_each(|disk| disk.keep(&dir, &mut parts.machine))?;
            self.keep_files(&dir, &parts, &targets.new, purpose)?;
            let kept = match &record.program {
                Some(_) => vec![program_file(&dir, runner.dir())?],
                None => boot_files(&dir, &parts.machine)?,
            };
            let files = match purpose {
                // To read them all takes longer than all else, the first time.
                Purpose::Warm => {
                    kept.into_iter().map(|name| Plain { name, checksum: String::new() }).collect()
                }
                _ => self.plain(&dir, kept)?,
            };
            let asked = match &record.program {
                Some(_) => None,
                None => record.asked().to_value(),
            };
            let manifest = Manifest {
                format: match (&record.program, &asked, &targets.ask.since) {
                    (Some(_), ..) => FORMAT_PROGRAM,
                    (None, Some(_), _) => FORMAT_ASKED,
                    (None, None, Some(_)) => FORMAT_LAYERS,
                    (None, None, None) => FORMAT_WHOLE,
                },
                release: env!("CARGO_PKG_VERSION").to_string(),
                id: id.clone(),
                name: named.as_ref().map_or(&record.name, |named| &named.what.1).clone(),
                project: record.project.clone(),
                comment: ask.comment.clone(),
                created_unix_s: Timestamp::now().unix_s,
                vm: (record.id.clone(), record.name.clone()),
                image: record.image.clone(),
                parent: record.snapshot.clone(),
                template: matches!(purpose, Purpose::Template | Purpose::Warm),
                groups: record.groups.clone(),
                labels: record.labels.clone(),
                // Where its cards are plugged in may have changed since its process was started.
                machine: MachineSpec { nics: record.machine.nics.clone(), ..parts.machine },
                program: record.program.clone(),
                asked,
                paused_ns: parts.paused_ns,
                frozen_file_systems: parts.frozen_file_systems,
                sections: parts.sections,
                memory: parts.memory,
                disks: parts.disks,
                files,
            };
            match purpose {
                Purpose::Warm => draft_manifest(&manifest, &dir)?,
                _ => write_manifest(&manifest, &dir, purpose.outlives_host())?,
            }
            if purpose.outlives_host() {
                self.sync_all_names()?;
            }
            Ok(manifest)
        });
        let manifest = made.inspect_err(|_| {
            let _ = fs::remove_dir_all(&dir);
            if !apart.is_empty() {
                let back = |mut record, runner: Runner| self.vms.take_back_images(&mut record, runner.dir());
                let _ = self.vms.change(&record.id, back);
            }
        })?;
        drop(turn);
        Ok(Made { dir, manifest, _work: work })
    }

    /// Makes a template for warm starts of a VM that lives; VMs can come from it as soon as `is_there` hears of it, while the host's
    /// disk gets it.
    pub(crate) fn keep_warm(
        &self,
        vm: &str,
        ask: &SnapshotCreate,
        is_there: impl FnOnce(),
    ) -> Result<(), Fault> {
        let made = self.make(vm, ask, Purpose::Warm, new_id()?, &Unwatched)?;
        let Made { dir, manifest, .. } = &made;
        let name = (manifest.project.clone(), manifest.name.clone());
        lock(&self.fresh).insert(name.clone(), (dir.clone(), manifest.clone()));
        is_there();
        let settled = self.settle(dir, manifest);
        lock(&self.fresh).remove(&name);
        settled.inspect_err(|_| drop(fs::remove_dir_all(dir)))
    }

    /// Has the host's disk take one that is there but for that, and its manifest last.
    fn settle(&self, dir: &Path, manifest: &Manifest) -> Result<(), Fault> {
        let files = self.plain(dir, manifest.files.iter().map(|file| file.name.clone()).collect())?;
        for entry in fs::read_dir(dir).map_err(io_fault("read", dir))? {
            let path = entry.map_err(io_fault("read", dir))?.path();
            // That only saves time.
            if !path.ends_with(TRANSLATED) {
                File::open(&path).and_then(|file| file.sync_all()).map_err(io_fault("write", &path))?;
            }
        }
        write_manifest(&Manifest { files, ..manifest.clone() }, dir, true)?;
        // Nobody looks for it any more.
        let _ = fs::remove_file(dir.join(DRAFT));
        self.sync_all_names()
    }

    fn sync_all_names(&self) -> Result<(), Fault> {
        let all = self.places.snapshots();
        File::open(&all).and_then(|all| all.sync_all()).map_err(io_fault("write", &all))
    }

    /// What the VM's processor has made of its code comes beside the snapshot, if there is any: that only saves time. What it had made
    /// when it was last asked does as well, if that is about all.
    fn keep_translated(&self, dir: &Path, vm: &str, runner: &Runner) {
        let (path, last) = (dir.join(TRANSLATED), self.places.translated().join(vm));
        let known = File::open(&last).ok();
        let had = known.is_some();
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o400).open(&path);
        if matches!(file.and_then(|file| runner.translated(&file, known)), Ok(true)) {
            let _ = fs::remove_file(&last);
            let _ = fs::hard_link(&path, &last);
            return;
        }
        let _ = fs::remove_file(&path);
        if had {
            let _ = fs::hard_link(&last, &path);
        }
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
            if purpose.outlives_host() {
                file.sync_all().map_err(io_fault("write", dir))?;
            }
            // What VMs have below their disks is never written again.
            file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(io_fault("protect", dir))?;
        }
        // Just written, and not read to see whether that is so.
        parts.disks.iter().try_for_each(|disk| self.known.good(dir, disk, || Ok(())))
    }

    /// These files with their checksums.
    fn plain(&self, dir: &Path, names: Vec<String>) -> Result<Vec<Plain>, Fault> {
        let plain = |name: String| Ok(Plain { checksum: self.known.checksum(&dir.join(&name))?, name });
        names.into_iter().map(plain).collect()
    }
}

/// Places what a program is; gives its name.
fn program_file(dir: &Path, vm: &Path) -> Result<String, Fault> {
    link(&vm.join(programs::COPY), &dir.join(PROGRAM))?;
    Ok(PROGRAM.to_string())
}

/// Places what the machine boots with; gives the names.
fn boot_files(dir: &Path, machine: &MachineSpec) -> Result<Vec<String>, Fault> {
    let mut kept = Vec::new();
    let mut keep = |path: &Path, name: &str| {
        kept.push(name.to_string());
        link(path, &dir.join(name))
    };
    keep(&machine.kernel, KERNEL)?;
    machine.initrd.iter().try_for_each(|path| keep(path, INITRD))?;
    for path in image_files(machine)? {
        keep(&path, &path.file_name().unwrap_or_default().to_string_lossy())?;
    }
    // What cloud-init was told goes with the VM.
    if let Some(disk) = machine.disks.iter().find(|disk| seed::is_seed(disk)) {
        [SEED, SETTINGS].iter().try_for_each(|name| keep(&disk.path.with_file_name(name), name))?;
    }
    Ok(kept)
}

/// How far a VM's process is with what it saves.
struct Saving<'a> {
    dir: &'a Path,
    /// The files of what it saves, in this order, and what they are.
    contents: Vec<(String, String)>,
    watcher: &'a dyn Watcher,
    begin: Instant,
}

impl<'a> Saving<'a> {
    fn new(dir: &'a Path, machine: &MachineSpec, watcher: &'a dyn Watcher) -> Saving<'a> {
        let disks = machine.disks.iter().enumerate().filter(|(_, disk)| !disk.read_only);
        let disks = disks.map(|(index, _)| (disk_file(index), format!("saving disk {index}")));
        let memory = (MEMORY.to_string(), "saving the memory".to_string());
        let contents = iter::once(memory).chain(disks).collect();
        Saving { dir, contents, watcher, begin: Instant::now() }
    }

    /// Tells it by the checksums, of which there is one for each chunk, unless nobody wants it any more.
    fn tell(&self) -> Result<(), Fault> {
        if self.watcher.cancelled() {
            return Err(cancelled());
        }
        if self.begin.elapsed() < GRACE {
            return Ok(());
        }
        let bytes = |name: &str| fs::metadata(self.dir.join(name)).map_or(0, |file| file.len());
        let is_begun = |(name, _): &&(String, String)| bytes(name) > 0;
        if let Some((name, step)) = self.contents.iter().rev().find(is_begun) {
            let (total, sums) = (bytes(name), bytes(&sums_file(name)) / SUM_LEN as u64);
            let done = sums.saturating_mul(CHUNK).min(total);
            self.watcher.progress(Progress { step: step.clone(), done, total: Some(total), bytes: true });
        }
        Ok(())
    }

    /// What comes last may take a while, too.
    fn tell_last(&self) {
        if self.begin.elapsed() >= GRACE {
            step(self.watcher, "waiting until the host's disk has it");
        }
    }
}

/// The files of the disk of an image of containers, if the machine has one: nobody writes to them.
fn image_files(machine: &MachineSpec) -> Result<Vec<PathBuf>, Fault> {
    let is_image = |disk: &&DiskSpec| disk.read_only && disk.path.file_name() == Some(IMAGE.as_ref());
    let Some(dir) = machine.disks.iter().find(is_image).and_then(|disk| disk.path.parent()) else {
        return Ok(Vec::new());
    };
    let entries = fs::read_dir(dir).map_err(io_fault("read", dir))?;
    let mut files: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(IMAGE_PART))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::sync::Mutex;

    /// What was told.
    #[derive(Default)]
    struct Heard(Mutex<Vec<Progress>>);

    impl Watcher for Heard {
        fn progress(&self, progress: Progress) {
            self.0.lock().unwrap().push(progress);
        }
    }

    #[test]
    fn how_far_it_is_is_told_by_the_checksums_of_what_is_written() {
        let dir = std::env::temp_dir().join(format!("viv-saving-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let heard = Heard::default();
        let contents = [("memory", "saving the memory"), ("disk2", "saving disk 2")];
        let contents = contents.map(|(name, step)| (name.to_string(), step.to_string())).to_vec();
        let begin = Instant::now().checked_sub(GRACE).unwrap();
        let saving = Saving { dir: &dir, contents, watcher: &heard, begin };
        let told = RefCell::new(Vec::new());
        let tell = || {
            saving.tell().unwrap();
            let last = heard.0.lock().unwrap().pop();
            told.borrow_mut().push(last.map(|last| (last.step, last.done, last.total)));
        };
        let set = |name: &str, len: u64| {
            OpenOptions::new().create(true).append(true).open(dir.join(name)).unwrap().set_len(len).unwrap();
        };
        tell();
        set("memory", 10 * CHUNK);
        set("memory.sums", 4 * SUM_LEN as u64);
        tell();
        set("memory.sums", 10 * SUM_LEN as u64);
        set("disk2", CHUNK + 1);
        tell();
        set("disk2.sums", 2 * SUM_LEN as u64);
        tell();
        let step = |step: &str, done, total| Some((step.to_string(), done, Some(total)));
        let expected = [
            None,
            step("saving the memory", 4 * CHUNK, 10 * CHUNK),
            step("saving disk 2", 0, CHUNK + 1),
            step("saving disk 2", CHUNK + 1, CHUNK + 1),
        ];
        assert_eq!(*told.borrow(), expected);
        fs::remove_dir_all(&dir).unwrap();
    }
}
