//! Snapshots of VMs, and VMs from snapshots. A snapshot is a directory with a manifest (`viv-snapshot`); one without is
//! half-made, and swept away when the service starts.
//!
//! A VM that goes on from a snapshot has links to its files, and disks above them: so either may be removed at any time,
//! and neither changes what the other has.
use crate::names;
use crate::places::Places;
use crate::store::{StoreError, VmRecord};
use crate::vms::{Vms, lock};
use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use viv_api::runner::RESUME;
use viv_api::snapshot::{Snapshot, SnapshotCreate, SnapshotRestore, VmFork};
use viv_api::timestamp::Timestamp;
use viv_api::vm::{Vm, VmStart};
use viv_block::{CreateOptions, Qcow2};
use viv_model::{DiskFormat, DiskSpec, Fault, Kind, Manifest, NetKind, SavedParts, State};
use viv_snapshot::{
    FORMAT, INITRD, KERNEL, MANIFEST, MEMORY, STATE, disk_file, plain, read_manifest, sums_file, verify,
    verify_disks, write_manifest,
};

/// The extension of a directory that is being removed.
const GONE: &str = "gone";
/// Most forks at a time.
const FORKS_MAX: u32 = 1000;

/// A snapshot's directory, and what its manifest says, or why nothing.
type Found = (PathBuf, Result<Manifest, Fault>);

/// All snapshots of this host.
pub(crate) struct Snapshots {
    places: Places,
    vms: Arc<Vms>,
    /// Held while a name is chosen and its snapshot appears.
    naming: Mutex<HashSet<String>>,
}

fn io_fault(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Fault {
    move |source| StoreError::Io { what, path: path.to_owned(), source }.into()
}

/// A link to a file; a copy where there can be none.
fn link(from: &Path, to: &Path) -> Result<(), Fault> {
    fs::hard_link(from, to).or_else(|_| crate::images::copy(from, to)).map_err(io_fault("make", to))
}

/// A name that is taken as long as this lives.
struct Named<'a> {
    taken: &'a Mutex<HashSet<String>>,
    name: String,
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        lock(self.taken).remove(&self.name);
    }
}

impl Snapshots {
    /// Those that there are; what was left half-made or half-removed goes.
    pub(crate) fn open(places: &Places, vms: Arc<Vms>) -> Result<Snapshots, Fault> {
        let all = places.snapshots();
        DirBuilder::new().recursive(true).mode(0o700).create(&all).map_err(io_fault("make", &all))?;
        for entry in fs::read_dir(&all).map_err(io_fault("read", &all))?.flatten() {
            let path = entry.path();
            let gone = path.extension().is_some_and(|extension| extension == GONE);
            if gone || !path.join(MANIFEST).exists() {
                let _ = fs::remove_dir_all(&path);
            }
        }
        Ok(Snapshots { places: places.clone(), vms, naming: Mutex::default() })
    }

    /// All with their directories, oldest first.
    fn all(&self) -> Result<Vec<Found>, Fault> {
        let all = self.places.snapshots();
        let entries = fs::read_dir(&all).map_err(io_fault("read", &all))?;
        let dirs = entries.flatten().map(|entry| entry.path()).filter(|path| path.join(MANIFEST).exists());
        let mut found: Vec<_> = dirs
            .filter(|path| path.extension().is_none())
            .map(|path| (path.clone(), read_manifest(&path).map_err(Fault::from)))
            .collect();
        found.sort_by_key(|(path, manifest)| {
            (manifest.as_ref().map_or(0, |manifest| manifest.created_unix_s), path.clone())
        });
        Ok(found)
    }

    /// The one with this name, identity or beginning of its identity.
    fn find(&self, name: &str) -> Result<(PathBuf, Manifest), Fault> {
        let id = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().to_string();
        let mut begins = Vec::new();
        for (path, manifest) in self.all()? {
            let exact = id(&path) == name || manifest.as_ref().is_ok_and(|manifest| manifest.name == name);
            if exact {
                return Ok((path, manifest?));
            }
            if name.len() >= 4 && id(&path).starts_with(name) {
                begins.push((path, manifest));
            }
        }
        match begins.pop() {
            Some((path, manifest)) if begins.is_empty() => Ok((path, manifest?)),
            Some(_) => Err(Fault::new(
                Kind::Usage,
                format!("the ids of several snapshots begin with {name:?}"),
                "write more digits, or the name: viv snapshot ls",
            )),
            None => Err(Fault::new(
                Kind::NotFound,
                format!("no snapshot is called {name:?}"),
                "see what there is: viv snapshot ls",
            )),
        }
    }

    fn view(&self, dir: &Path, manifest: &Manifest, all: &[Found]) -> Snapshot {
        let name_of = |id: &String| {
            let known = all.iter().filter_map(|(_, manifest)| manifest.as_ref().ok());
            let mut same = known.filter(|manifest| manifest.id == *id);
            same.next().map_or_else(|| id.clone(), |manifest| manifest.name.clone())
        };
        let manifest = manifest.clone();
        Snapshot {
            parent: manifest.parent.as_ref().map(name_of),
            data_bytes: manifest.data_bytes(),
            id: manifest.id,
            name: manifest.name,
            comment: manifest.comment,
            created_at: Timestamp { unix_s: manifest.created_unix_s },
            vm: manifest.vm.1,
            image: manifest.image,
            accel: manifest.machine.accel,
            paused_ns: manifest.paused_ns,
            machine: Some(manifest.machine),
            dir: dir.to_owned(),
            damaged: None,
        }
    }

    /// All, oldest first.
    pub(crate) fn list(&self) -> Result<Vec<Snapshot>, Fault> {
        let all = self.all()?;
        let each = |(dir, manifest): &Found| match manifest {
            Ok(manifest) => self.view(dir, manifest, &all),
            Err(fault) => damaged(dir, fault),
        };
        Ok(all.iter().map(each).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Result<Snapshot, Fault> {
        let (dir, manifest) = self.find(name)?;
        Ok(self.view(&dir, &manifest, &self.all()?))
    }

    /// Reads all of it, and says whether it is what was written.
    pub(crate) fn verify(&self, name: &str) -> Result<Snapshot, Fault> {
        let (dir, manifest) = self.find(name)?;
        verify(&manifest, &dir)?;
        self.get(&manifest.id)
    }

    /// Also one whose manifest cannot be read any more, by its identity.
    pub(crate) fn remove(&self, name: &str) -> Result<Snapshot, Fault> {
        let snapshot = match self.get(name) {
            Ok(snapshot) => snapshot,
            Err(fault) => {
                let mut all = self.list()?.into_iter();
                all.find(|snapshot| snapshot.id == name && snapshot.damaged.is_some()).ok_or(fault)?
            }
        };
        self.discard(&snapshot.dir)?;
        Ok(snapshot)
    }

    fn discard(&self, dir: &Path) -> Result<(), Fault> {
        let gone = dir.with_extension(GONE);
        fs::rename(dir, &gone).map_err(io_fault("remove", dir))?;
        fs::remove_dir_all(&gone).map_err(io_fault("remove", &gone))
    }

    /// Takes the name that was asked for, or `base` with the first number that is free.
    fn name(&self, asked: Option<&str>, base: &str) -> Result<Named<'_>, Fault> {
        let mut taken = lock(&self.naming);
        let known: HashSet<String> = self
            .all()?
            .into_iter()
            .filter_map(|(_, manifest)| manifest.ok())
            .map(|manifest| manifest.name)
            .collect();
        let free = |name: &String| !known.contains(name) && !taken.contains(name);
        let name = match asked {
            Some(name) => {
                names::check(name)?;
                let name = name.to_string();
                if !free(&name) {
                    return Err(Fault::new(
                        Kind::Conflict,
                        format!("a snapshot called {name:?} exists already"),
                        format!("choose another name, or remove that one: viv snapshot rm {name}"),
                    ));
                }
                name
            }
            None => (1..).map(|number| format!("{base}-{number}")).find(free).unwrap_or_default(),
        };
        taken.insert(name.clone());
        Ok(Named { taken: &self.naming, name })
    }

    /// Makes a snapshot of a VM that lives.
    pub(crate) fn create(&self, vm: &str, ask: &SnapshotCreate) -> Result<Snapshot, Fault> {
        let (record, _) = self.vms.find(vm)?;
        let name = self.name(ask.name.as_deref(), &record.name)?;
        let id = names::identity().map_err(io_fault("read", Path::new("/dev/urandom")))?;
        let dir = self.places.snapshots().join(&id);
        let made = self.vms.change(&record.id, |record, runner| {
            let view = self.vms.get(&record.id)?;
            if !matches!(view.state, State::Running | State::Paused) {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("cannot make a snapshot of VM {:?}: it is {}", record.name, view.state),
                    format!("start it first: viv start {}", record.name),
                ));
            }
            DirBuilder::new().mode(0o700).create(&dir).map_err(io_fault("make", &dir))?;
            let files = files_for(&dir, &record)?;
            let parts = runner.snapshot(&files)?;
            self.finish(&dir, &id, &name.name, ask, &record, parts, &files)
        });
        made.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        self.get(&id)
    }

    #[allow(clippy::too_many_arguments, reason = "each is a part of the manifest")]
    fn finish(
        &self,
        dir: &Path,
        id: &str,
        name: &str,
        ask: &SnapshotCreate,
        record: &VmRecord,
        parts: SavedParts,
        files: &[File],
    ) -> Result<(), Fault> {
        let machine = parts.machine.clone();
        let mut kept = Vec::new();
        for (file, path) in [(KERNEL, Some(&machine.kernel)), (INITRD, machine.initrd.as_ref())] {
            if let Some(path) = path {
                link(path, &dir.join(file))?;
                kept.push(plain(dir, file)?);
            }
        }
        for file in files {
            file.sync_all().map_err(io_fault("write", dir))?;
            // What VMs have below their disks is never written again.
            file.set_permissions(fs::Permissions::from_mode(0o400)).map_err(io_fault("protect", dir))?;
        }
        let manifest = Manifest {
            format: FORMAT,
            release: env!("CARGO_PKG_VERSION").to_string(),
            id: id.to_string(),
            name: name.to_string(),
            comment: ask.comment.clone(),
            created_unix_s: Timestamp::now().unix_s,
            vm: (record.id.clone(), record.name.clone()),
            image: record.image.clone(),
            parent: record.snapshot.clone(),
            machine,
            paused_ns: parts.paused_ns,
            sections: parts.sections,
            memory: parts.memory,
            disks: parts.disks,
            files: kept,
        };
        write_manifest(&manifest, dir)?;
        let all = self.places.snapshots();
        File::open(&all).and_then(|all| all.sync_all()).map_err(io_fault("write", &all))
    }

    /// A new VM that goes on from a snapshot, and runs.
    pub(crate) fn restore(&self, name: &str, ask: &SnapshotRestore) -> Result<Vm, Fault> {
        let (dir, manifest) = self.find(name)?;
        // Its memory and state are looked at by the VM's own process.
        verify_disks(&manifest, &dir)?;
        self.restore_from(&dir, &manifest, ask)
    }

    fn restore_from(&self, from: &Path, manifest: &Manifest, ask: &SnapshotRestore) -> Result<Vm, Fault> {
        let name = self.vms.name(ask.name.as_deref())?;
        let id = names::identity().map_err(io_fault("read", Path::new("/dev/urandom")))?;
        let dir = self.places.vms().join(&id);
        let made = lay_out(from, manifest, &dir, ask).and_then(|machine| {
            self.vms.insert(&VmRecord {
                id: id.clone(),
                name,
                created_at: Timestamp::now(),
                image: manifest.image.clone(),
                machine,
                on_reboot: Default::default(),
                remove: ask.remove,
                command: None,
                started_at: None,
                attended_by: None,
                snapshot: Some(manifest.id.clone()),
                append: None,
                groups: Vec::new(),
                labels: Vec::new(),
            })
        });
        made.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        self.vms.start(&id, &VmStart::default()).inspect_err(|_| {
            let _ = self.vms.remove(&id, true);
        })
    }

    /// VMs that go on from where a running one is, beside it.
    pub(crate) fn fork(&self, vm: &str, ask: &VmFork) -> Result<Vec<Vm>, Fault> {
        if !(1..=FORKS_MAX).contains(&ask.count) {
            return Err(Fault::new(
                Kind::Usage,
                format!("cannot make {} forks", ask.count),
                format!("use --count with 1 to {FORKS_MAX}"),
            ));
        }
        let (record, _) = self.vms.find(vm)?;
        let base = ask.name.clone().unwrap_or_else(|| format!("{}-fork", record.name));
        let comment = format!("of a fork of {}", record.name);
        let between = self.create(vm, &SnapshotCreate { name: None, comment })?;
        let mut made = Vec::new();
        let outcome = (|| {
            let (dir, manifest) = self.find(&between.id)?;
            for number in 1..=ask.count {
                let name = if ask.count == 1 && ask.name.is_some() {
                    base.clone()
                } else {
                    format!("{base}-{number}")
                };
                let ask = SnapshotRestore { name: Some(name), remove: ask.remove, ..Default::default() };
                made.push(self.restore_from(&dir, &manifest, &ask)?);
            }
            Ok(())
        })();
        // The forks have links to what they need of it.
        let _ = self.discard(&between.dir);
        if let Err(fault) = outcome {
            for vm in &made {
                let _ = self.vms.remove(&vm.id, true);
            }
            return Err(fault);
        }
        Ok(made)
    }
}

/// A snapshot whose manifest cannot be read.
fn damaged(dir: &Path, fault: &Fault) -> Snapshot {
    let id = dir.file_name().unwrap_or_default().to_string_lossy().to_string();
    Snapshot {
        name: id.clone(),
        id,
        comment: String::new(),
        created_at: Timestamp { unix_s: 0 },
        vm: String::new(),
        image: None,
        parent: None,
        accel: Default::default(),
        data_bytes: 0,
        paused_ns: 0,
        machine: None,
        dir: dir.to_owned(),
        damaged: Some(fault.message.clone()),
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

/// Makes the directory of a VM that goes on from a snapshot; gives its machine.
fn lay_out(
    from: &Path,
    manifest: &Manifest,
    dir: &Path,
    ask: &SnapshotRestore,
) -> Result<viv_model::MachineSpec, Fault> {
    let resume = dir.join(RESUME);
    DirBuilder::new().recursive(true).mode(0o700).create(&resume).map_err(io_fault("make", &resume))?;
    for name in [MANIFEST, STATE, MEMORY, &sums_file(MEMORY)] {
        link(&from.join(name), &resume.join(name))?;
    }
    let mut machine = manifest.machine.clone();
    for file in &manifest.files {
        link(&from.join(&file.name), &dir.join(&file.name))?;
        match file.name.as_str() {
            KERNEL => machine.kernel = dir.join(KERNEL),
            INITRD => machine.initrd = Some(dir.join(INITRD)),
            _ => {}
        }
    }
    for disk in &manifest.disks {
        let spec = machine.disks.get_mut(disk.index).ok_or_else(|| {
            let text = format!("the snapshot has a disk {} that its machine has not", disk.index);
            Fault::new(Kind::Error, text, "use another snapshot")
        })?;
        let base = format!("{}.base", disk_file(disk.index));
        link(&from.join(disk_file(disk.index)), &dir.join(&base))?;
        let path = dir.join(format!("{}.qcow2", disk_file(disk.index)));
        let backing = Some((base, DiskFormat::Raw.name().to_string()));
        Qcow2::create(&path, &CreateOptions { backing, ..CreateOptions::new(disk.content.bytes) })?;
        *spec = DiskSpec { path, format: Some(DiskFormat::Qcow2), allow: Vec::new(), ..spec.clone() };
    }
    // The VM that was saved may have its sockets still.
    machine.console_ports.iter_mut().for_each(|port| port.path = None);
    match &mut machine.nic {
        Some(nic) => {
            nic.ports.clone_from(&ask.ports);
            // In a network that VMs share, its card's and its guest's addresses are still those of the VM that was saved.
            if matches!(nic.net, NetKind::Named(_)) {
                (nic.net, nic.address) = (NetKind::None, None);
            }
        }
        None if ask.ports.is_empty() => {}
        None => {
            return Err(Fault::new(
                Kind::Usage,
                "the snapshot's VM has no network card: it cannot publish ports",
                "leave out -p, or start a new VM with it",
            ));
        }
    }
    Ok(machine)
}
