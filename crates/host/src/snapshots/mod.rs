//! Snapshots of VMs, and VMs from snapshots. A snapshot is a directory with a manifest (`viv-snapshot`); one without is
//! half-made, and swept away when the service starts.
//!
//! A VM that goes on from a snapshot has links to its files, and disks above them: so either may be removed at any time,
//! and neither changes what the other has.
//!
//! ```text
//!  make      a VM that lives ──► a snapshot
//!  at_rest   what one, or such a VM, has on its disks, for what reads them
//!  targets   its files, above those of an earlier one
//!  go_on     a snapshot ──► a new VM, or forks
//!  back      a snapshot ──► the VM that it is of
//!  template  snapshots by whose name VMs are made
//!  compare   what differs between two
//!  carry     a snapshot ◄──► a tar file
//!  known     what has been compared with its checksum already
//! ```
mod at_rest;
mod back;
mod carry;
mod compare;
mod go_on;
mod known;
mod make;
mod targets;
mod template;

pub(crate) use template::of_one_vm;

use crate::images::{Told, Watcher, cancelled};
use crate::names;
use crate::places::{Places, is_gone};
use crate::prune::Gone;
use crate::store::{Request, StoreError};
use crate::vms::{Held, Vms, lock};
use known::Known;
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use viv_api::snapshot::Snapshot;
use viv_api::timestamp::Timestamp;
use viv_model::{Fault, Kind, Manifest, ProjectName};
use viv_snapshot::{MANIFEST, SnapshotError, read_manifest, verify, verify_disk};

/// The extension of a directory that is being removed.
const REMOVED: &str = "gone";
/// That of one that is only there for what comes from it now.
const PASSING: &str = "passing";
/// A snapshot's directory, and what its manifest says, or why nothing.
type Found = (PathBuf, Result<Manifest, Fault>);

/// All snapshots of this host.
pub(crate) struct Snapshots {
    places: Places,
    vms: Arc<Vms>,
    /// Held while a name is chosen and its snapshot appears.
    naming: Mutex<HashSet<(ProjectName, String)>>,
    known: Known,
    /// Keys of requests that make several VMs just now.
    repeating: Mutex<HashSet<String>>,
    /// Templates for warm starts that are there but for the host's disk, by project and name.
    fresh: Mutex<HashMap<(ProjectName, String), (PathBuf, Manifest)>>,
    /// Identities of those that are being made, used while they pass, or removed.
    in_work: Mutex<HashSet<OsString>>,
}

/// What a new one is called by nobody but us.
pub(crate) fn new_id() -> Result<String, Fault> {
    names::identity().map_err(io_fault("read", Path::new("/dev/urandom")))
}

pub(crate) fn io_fault(what: &'static str, path: &Path) -> impl Fn(io::Error) -> Fault {
    move |source| StoreError::Io { what, path: path.to_owned(), source }.into()
}

/// A link to a file; a copy where there can be none.
pub(crate) fn link(from: &Path, to: &Path) -> Result<(), Fault> {
    fs::hard_link(from, to).or_else(|_| crate::images::copy(from, to)).map_err(io_fault("make", to))
}

/// A name of a project that is taken as long as this lives.
type Named<'a> = Held<'a, (ProjectName, String)>;

impl Snapshots {
    /// Those that there are; what was left half-made or half-removed goes.
    pub(crate) fn open(places: &Places, vms: Arc<Vms>) -> Result<Snapshots, Fault> {
        let all = places.snapshots();
        DirBuilder::new().recursive(true).mode(0o700).create(&all).map_err(io_fault("make", &all))?;
        let snapshots = Snapshots {
            places: places.clone(),
            vms,
            naming: Mutex::default(),
            known: Known::default(),
            repeating: Mutex::default(),
            fresh: Mutex::default(),
            in_work: Mutex::default(),
        };
        snapshots.forget_unfinished(&mut Gone::default())?;
        snapshots.forget_undecided()?;
        Ok(snapshots)
    }

    /// Removes what was left half-made or half-removed, and is not in work.
    pub(crate) fn forget_unfinished(&self, gone: &mut Gone) -> Result<(), Fault> {
        let all = self.places.snapshots();
        // Held, so that none is begun meanwhile.
        let in_work = lock(&self.in_work);
        for entry in fs::read_dir(&all).map_err(io_fault("read", &all))?.flatten() {
            let path = entry.path();
            let is_left =
                path.extension().is_some_and(|extension| extension == REMOVED || extension == PASSING);
            let is_known = path.file_stem().is_some_and(|id| in_work.contains(id));
            if !is_known && (is_left || is_gone(&path.join(MANIFEST))) {
                gone.remove(&path);
            }
        }
        Ok(())
    }

    /// The snapshot in a directory is being made or removed as long as this lives.
    fn work_in(&self, dir: &Path) -> Held<'_, OsString> {
        let id = dir.file_stem().unwrap_or_default().to_os_string();
        lock(&self.in_work).insert(id.clone());
        Held { all: &self.in_work, what: id }
    }

    /// All with their directories, oldest first.
    fn all(&self) -> Result<Vec<Found>, Fault> {
        let all = self.places.snapshots();
        let entries = fs::read_dir(&all).map_err(io_fault("read", &all))?;
        let entries = entries.collect::<io::Result<Vec<_>>>().map_err(io_fault("read", &all))?;
        let dirs = entries.iter().map(|entry| entry.path()).filter(|path| path.join(MANIFEST).exists());
        let mut found: Vec<_> = dirs
            .filter(|path| path.extension().is_none())
            .map(|path| (path.clone(), read_manifest(&path).map_err(Fault::from)))
            .collect();
        found.sort_by_key(|(path, manifest)| {
            let second = manifest.as_ref().map_or(0, |manifest| manifest.created_unix_s);
            // Within a second, by when they were finished.
            let finished = fs::metadata(path.join(MANIFEST)).and_then(|data| data.modified());
            (second, finished.ok(), path.clone())
        });
        Ok(found)
    }

    /// The one with this identity.
    fn by_id(&self, id: &str) -> Result<(PathBuf, Manifest), Fault> {
        let path = self.places.snapshots().join(id);
        // One that is made or removed just now is none, nor is what lies elsewhere.
        let is_one = path.file_name() == Some(id.as_ref()) && path.extension().is_none();
        if !is_one || !path.join(MANIFEST).exists() {
            return Err(unknown(id));
        }
        let manifest = read_manifest(&path)?;
        Ok((path, manifest))
    }

    /// The one of a project with this name, identity or beginning of its identity. One that is damaged is of whoever runs the host.
    fn find(&self, project: &ProjectName, name: &str) -> Result<(PathBuf, Manifest), Fault> {
        let id = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().to_string();
        let mut begins = Vec::new();
        for (path, manifest) in self.all()?.into_iter().filter(|found| project_of(found) == *project) {
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
            None => Err(unknown(name)),
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
            differential: manifest.is_differential(),
            id: manifest.id,
            name: manifest.name,
            project: manifest.project,
            comment: manifest.comment,
            created_at: Timestamp { unix_s: manifest.created_unix_s },
            vm: manifest.vm.1,
            image: manifest.image,
            accel: manifest.machine.accel,
            paused_ns: manifest.paused_ns,
            frozen_file_systems: manifest.frozen_file_systems,
            template: manifest.template,
            machine: Some(manifest.machine),
            dir: dir.to_owned(),
            damaged: None,
        }
    }

    /// Those of some projects, oldest first.
    pub(crate) fn list(&self, is_shown: impl Fn(&ProjectName) -> bool) -> Result<Vec<Snapshot>, Fault> {
        let mut all = self.all()?;
        all.retain(|found| is_shown(&project_of(found)));
        let each = |(dir, manifest): &Found| match manifest {
            Ok(manifest) => self.view(dir, manifest, &all),
            Err(fault) => damaged(dir, fault),
        };
        Ok(all.iter().map(each).collect())
    }

    pub(crate) fn get(&self, project: &ProjectName, name: &str) -> Result<Snapshot, Fault> {
        let (dir, manifest) = self.find(project, name)?;
        self.shown(&dir, &manifest)
    }

    fn shown(&self, dir: &Path, manifest: &Manifest) -> Result<Snapshot, Fault> {
        Ok(self.view(dir, manifest, &self.all()?))
    }

    /// Reads all of it, and says whether it is what was written.
    pub(crate) fn verify(
        &self,
        project: &ProjectName,
        name: &str,
        watcher: &dyn Watcher,
    ) -> Result<Snapshot, Fault> {
        let (dir, manifest) = self.find(project, name)?;
        compare(&manifest, &dir, watcher)?;
        self.shown(&dir, &manifest)
    }

    /// Compares its disks and files with their checksums; those of memory and state are looked at by the VM's own process.
    fn verify_disks(&self, dir: &Path, manifest: &Manifest) -> Result<(), Fault> {
        for file in &manifest.files {
            let path = dir.join(&file.name);
            if self.known.checksum(&path)? != file.checksum {
                let what = "it is not what was written".to_string();
                return Err(SnapshotError::Damaged { path, what }.into());
            }
        }
        self.verify_contents(dir, manifest)
    }

    /// Compares its disks alone.
    fn verify_contents(&self, dir: &Path, manifest: &Manifest) -> Result<(), Fault> {
        let verify = |disk| self.known.good(dir, disk, || verify_disk(dir, disk, &mut |_| true));
        manifest.disks.iter().try_for_each(verify)
    }

    /// Also one whose manifest cannot be read any more, by its identity.
    pub(crate) fn remove(&self, project: &ProjectName, name: &str) -> Result<Snapshot, Fault> {
        let snapshot = match self.get(project, name) {
            Ok(snapshot) => snapshot,
            Err(fault) => {
                let mut all = self.list(|of| of == project)?.into_iter();
                all.find(|snapshot| snapshot.id == name && snapshot.damaged.is_some()).ok_or(fault)?
            }
        };
        self.discard(&snapshot.dir)?;
        Ok(snapshot)
    }

    fn discard(&self, dir: &Path) -> Result<(), Fault> {
        let _work = self.work_in(dir);
        let gone = dir.with_extension(REMOVED);
        fs::rename(dir, &gone).map_err(io_fault("remove", dir))?;
        fs::remove_dir_all(&gone).map_err(io_fault("remove", &gone))
    }

    /// Begins what is asked for with a key; once at a time.
    fn begin(&self, request: &Request) -> Result<Held<'_, String>, Fault> {
        let key = request.key.clone();
        if !lock(&self.repeating).insert(key.clone()) {
            let text = "the request with this Idempotency-Key is being done";
            return Err(Fault::new(Kind::StillGoingOn, text, "ask again in a moment"));
        }
        Ok(Held { all: &self.repeating, what: key })
    }

    /// Takes the name that was asked for, or `base` with the first number that is free in the project.
    fn name(&self, project: &ProjectName, asked: Option<&str>, base: &str) -> Result<Named<'_>, Fault> {
        let mut taken = lock(&self.naming);
        let known: HashSet<String> = self
            .all()?
            .into_iter()
            .filter_map(|(_, manifest)| manifest.ok())
            .filter(|manifest| manifest.project == *project)
            .map(|manifest| manifest.name)
            .collect();
        let key = |name: &String| (project.clone(), name.clone());
        let free = |name: &String| !known.contains(name) && !taken.contains(&key(name));
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
        taken.insert(key(&name));
        Ok(Held { all: &self.naming, what: (project.clone(), name) })
    }
}

/// Compares a snapshot with its checksums.
fn compare(manifest: &Manifest, dir: &Path, watcher: &dyn Watcher) -> Result<(), Fault> {
    let mut told = Told::new(watcher, "comparing it with its checksums".to_string());
    let contents = manifest.disks.iter().map(|disk| &disk.content).chain([&manifest.memory]);
    told.total = Some(contents.fold(0, |sum, content| sum.saturating_add(content.bytes)));
    let mut done = 0u64;
    let mut go_on = |bytes| {
        done = done.saturating_add(bytes);
        told.bytes(done).is_ok()
    };
    verify(manifest, dir, &mut go_on).map_err(|error| match error {
        SnapshotError::GivenUp => cancelled(),
        error => error.into(),
    })
}

fn unknown(name: &str) -> Fault {
    let text = format!("no snapshot is called {name:?}");
    Fault::new(Kind::NotFound, text, "see what there is: viv snapshot ls")
}

/// The project of one; of one whose manifest cannot be read nobody knows it: it is for whoever runs the host.
fn project_of((_, manifest): &Found) -> ProjectName {
    manifest.as_ref().map(|manifest| manifest.project.clone()).unwrap_or_default()
}

/// A snapshot whose manifest cannot be read.
fn damaged(dir: &Path, fault: &Fault) -> Snapshot {
    let id = dir.file_name().unwrap_or_default().to_string_lossy().to_string();
    Snapshot {
        name: id.clone(),
        project: Default::default(),
        id,
        comment: String::new(),
        created_at: Timestamp { unix_s: 0 },
        vm: String::new(),
        image: None,
        parent: None,
        accel: Default::default(),
        data_bytes: 0,
        differential: false,
        paused_ns: 0,
        frozen_file_systems: None,
        template: false,
        machine: None,
        dir: dir.to_owned(),
        damaged: Some(fault.message.clone()),
    }
}
