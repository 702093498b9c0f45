//! Volumes with names: each a disk with a file system, in a directory for its project. VMs of images of containers name them; which VM has
//! which is in the VMs' records alone.
use crate::creation::no_random;
use crate::events::tell;
use crate::names;
use crate::places::Places;
use crate::projects::Scope;
use crate::prune::{Gone, is_older, on_disk};
use crate::snapshots::io_fault;
use crate::vms::Vms;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLockReadGuard};
use std::time::Duration;
use viv_api::event::{Event, What};
use viv_api::timestamp::Timestamp;
use viv_api::volume::{Volume, VolumeCreate};
use viv_model::{DiskFormat, DiskSpec, Fault, Kind, ProjectName, VolumeMount, check_volume_name};

/// How much one can hold if nobody says it, MiB.
const SIZE_MIB: u64 = 64 << 10;
/// The least and the most, MiB.
const SIZES_MIB: std::ops::RangeInclusive<u64> = 16..=16 << 20;
/// What its file is called behind its name.
const EXTENSION: &str = "ext4";
/// What begins the name of one that is just being made.
const UNFINISHED: char = '.';

fn path_of(places: &Places, project: &ProjectName, name: &str) -> PathBuf {
    places.volumes().join(project.as_str()).join(format!("{name}.{EXTENSION}"))
}

/// The serial number by which a guest finds volume `index` of its VM.
fn serial(index: usize) -> String {
    format!("volume{index}")
}

/// Whether a disk of the VM in `dir` is a volume.
pub(crate) fn is_one(disk: &DiskSpec, dir: &Path) -> bool {
    // Beside the directory of all VMs.
    dir.ancestors().nth(2).is_some_and(|state| disk.path.starts_with(Places::volumes_in(state)))
}

/// Those with names among what is asked for.
fn named(asked: &[String]) -> Result<Vec<VolumeMount>, Fault> {
    let mut mounts = asked.iter().map(|text| text.parse()).collect::<Result<Vec<VolumeMount>, Fault>>()?;
    mounts.retain(|mount| mount.name.is_some());
    for (index, mount) in mounts.iter().enumerate() {
        let same = |other: &VolumeMount| other.name == mount.name || other.path == mount.path;
        if mounts.iter().skip(index + 1).any(same) {
            let name = mount.name.as_deref().unwrap_or_default();
            let text = format!("the volume {name}, or its place {}, is named twice", mount.path);
            return Err(Fault::new(Kind::Usage, text, "name each once"));
        }
    }
    Ok(mounts)
}

/// Makes those that are asked for and not there; the names of those made.
fn make_missing(places: &Places, project: &ProjectName, asked: &[String]) -> Result<Vec<String>, Fault> {
    let mut names: Vec<String> = named(asked)?.into_iter().filter_map(|mount| mount.name).collect();
    names.retain(|name| !path_of(places, project, name).exists());
    for name in &names {
        make(places, project, name, SIZE_MIB)?;
    }
    Ok(names)
}

/// The disks of those that are asked for, and the words of the kernel's command line by which the agent finds them. One that is not there yet
/// is left out, as in a trial.
pub(crate) fn disks(
    places: &Places,
    project: &ProjectName,
    asked: &[String],
) -> Result<(Vec<DiskSpec>, Vec<String>), Fault> {
    let (mut disks, mut words) = (Vec::new(), Vec::new());
    for (index, mount) in named(asked)?.into_iter().enumerate() {
        let path = path_of(places, project, mount.name.as_deref().unwrap_or_default());
        words.push(mount.disk_word(&serial(index)));
        if path.exists() {
            disks.push(DiskSpec {
                path,
                format: Some(DiskFormat::Raw),
                read_only: mount.read_only,
                serial: Some(serial(index)),
                ..DiskSpec::default()
            });
        }
    }
    Ok((disks, words))
}

/// Makes one, whole or not at all; false: it is there already.
fn make(places: &Places, project: &ProjectName, name: &str, size_mib: u64) -> Result<bool, Fault> {
    let path = path_of(places, project, name);
    let dir = path.parent().unwrap_or(&path);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_fault("make", dir))?;
    let new = dir.join(format!("{UNFINISHED}{}", names::identity().map_err(no_random)?));
    let begun = || {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let file = options.open(&new).map_err(io_fault("make", &new))?;
        viv_rootfs::ext4::empty(size_mib << 20, names::random().map_err(no_random)?, "viv", &file)?;
        file.sync_all().map_err(io_fault("write", &new))?;
        // Unlike a rename, it takes no place of another one.
        let made = match fs::hard_link(&new, &path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            linked => linked.map_err(io_fault("make", &path)).map(|()| true)?,
        };
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_fault("write", dir))?;
        Ok(made)
    };
    let made = begun();
    let _ = fs::remove_file(&new);
    made
}

/// Removes what is left of those whose making was cut off, if it is that old.
pub(crate) fn forget_unfinished(places: &Places, age: Duration, gone: &mut Gone) {
    for dir in fs::read_dir(places.volumes()).into_iter().flatten().flatten() {
        for file in fs::read_dir(dir.path()).into_iter().flatten().flatten() {
            let is_unfinished = file.file_name().to_string_lossy().starts_with(UNFINISHED);
            if is_unfinished && file.metadata().is_ok_and(|data| is_older(&data, age)) {
                gone.remove(&file.path());
            }
        }
    }
}

fn unknown(name: &str) -> Fault {
    Fault::new(Kind::NotFound, format!("no volume is called {name:?}"), "see what there is: viv volume ls")
}

impl Vms {
    /// As long as it is held none is removed.
    pub(crate) fn keep_volumes(&self) -> RwLockReadGuard<'_, ()> {
        self.volumes_kept.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes those that are asked for and not there.
    pub(crate) fn make_missing_volumes(&self, project: &ProjectName, asked: &[String]) -> Result<(), Fault> {
        let made = make_missing(&self.places, project, asked)?;
        made.iter().for_each(|name| self.tell_volume(What::VolumeCreated, project, name));
        Ok(())
    }

    fn tell_volume(&self, what: What, project: &ProjectName, name: &str) {
        tell(&*self.store, Event::new(what, None, name).within(project));
    }

    fn volume(&self, project: &ProjectName, name: &str) -> Result<Volume, Fault> {
        check_volume_name(name).map_err(|_| unknown(name))?;
        let path = path_of(&self.places, project, name);
        let data = match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(unknown(name)),
            found => found.map_err(io_fault("look at", &path))?,
        };
        let has = |disks: &[DiskSpec]| disks.iter().any(|disk| disk.path == path);
        let users = self.records()?.into_iter().filter(|record| has(&record.machine.disks));
        let created = data.created().or_else(|_| data.modified()).ok();
        let unix_s = created.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        Ok(Volume {
            name: name.to_string(),
            project: project.clone(),
            size_bytes: data.len(),
            used_bytes: on_disk(&data),
            created_at: Timestamp { unix_s: unix_s.unwrap_or_default().as_secs() },
            vms: users.map(|record| record.name).collect(),
            path,
        })
    }

    /// Those that a scope sees, by project and name.
    pub(crate) fn volumes(&self, shows: impl Fn(&ProjectName) -> bool) -> Result<Vec<Volume>, Fault> {
        let mut all = Vec::new();
        let root = self.places.volumes();
        for entry in fs::read_dir(&root).map_err(io_fault("read", &root))?.flatten() {
            let Some(project) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            if !shows(&project) {
                continue;
            }
            let dir = entry.path();
            for file in fs::read_dir(&dir).map_err(io_fault("read", &dir))?.flatten() {
                let file = file.file_name();
                let name = file.to_str().and_then(|file| file.strip_suffix(&format!(".{EXTENSION}")));
                if let Some(name) = name.filter(|name| check_volume_name(name).is_ok()) {
                    // It may just have been removed.
                    all.extend(self.volume(&project, name).ok());
                }
            }
        }
        all.sort_by(|a, b| (&a.project, &a.name).cmp(&(&b.project, &b.name)));
        Ok(all)
    }

    /// One of a project.
    pub(crate) fn volume_of(&self, scope: &Scope, name: &str) -> Result<Volume, Fault> {
        self.volume(&scope.project, name)
    }

    /// Makes one.
    pub(crate) fn create_volume(&self, project: &ProjectName, ask: &VolumeCreate) -> Result<Volume, Fault> {
        check_volume_name(&ask.name)?;
        let size = ask.size_mib.unwrap_or(SIZE_MIB);
        if !SIZES_MIB.contains(&size) {
            let text = format!("a volume cannot hold {size} MiB");
            let fix = format!("use {} to {} MiB", SIZES_MIB.start(), SIZES_MIB.end());
            return Err(Fault::new(Kind::Usage, text, fix));
        }
        if !make(&self.places, project, &ask.name, size)? {
            let text = format!("a volume called {:?} exists already", ask.name);
            let fix = format!("choose another name, or remove that one: viv volume rm {}", ask.name);
            return Err(Fault::new(Kind::Conflict, text, fix));
        }
        self.tell_volume(What::VolumeCreated, project, &ask.name);
        self.volume(project, &ask.name)
    }

    /// Removes one that no VM is described with.
    pub(crate) fn remove_volume(&self, project: &ProjectName, name: &str) -> Result<Volume, Fault> {
        let _turn = self.volumes_kept.write().unwrap_or_else(PoisonError::into_inner);
        let volume = self.volume(project, name)?;
        if let Some(vm) = volume.vms.first() {
            let text = format!("the volume {name} belongs to VM {vm:?}");
            return Err(Fault::new(Kind::Conflict, text, format!("remove the VM first: viv rm {vm}")));
        }
        fs::remove_file(&volume.path).map_err(io_fault("remove", &volume.path))?;
        self.tell_volume(What::VolumeRemoved, project, name);
        Ok(volume)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn places(test: &str) -> Places {
        let dir = std::env::temp_dir().join(format!("viv-host-{test}-{}", std::process::id()));
        let (state, data, runtime) = (dir.join("state"), dir.join("data"), dir.join("run"));
        Places { state, data, runtime }
    }

    #[test]
    fn volumes_are_made_once_and_found_by_their_vms() {
        let (places, project) = (places("volumes"), ProjectName::default());
        let asked = ["/plain", "data:/var/lib/x", "more:/y:ro"].map(String::from);
        let (found, words) = disks(&places, &project, &asked).unwrap();
        assert_eq!((found.len(), words.len()), (0, 2), "in a trial none is made");
        assert_eq!(make_missing(&places, &project, &asked).unwrap(), ["data", "more"]);
        let path = path_of(&places, &project, "data");
        let inode = fs::metadata(&path).unwrap().ino();
        assert!(make_missing(&places, &project, &asked).unwrap().is_empty());
        assert!(!make(&places, &project, "data", SIZE_MIB).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        let (found, words) = disks(&places, &project, &asked).unwrap();
        assert_eq!(words, ["viv.volume-disk=volume0:rw:/var/lib/x", "viv.volume-disk=volume1:ro:/y"]);
        assert!(found[1].read_only && found[0].path == path && found[0].serial.as_deref() == Some("volume0"));
        assert!(is_one(&found[0], &places.vms().join("0123")));
        assert!(!is_one(&DiskSpec { path: "/x".into(), ..DiskSpec::default() }, &places.vms().join("0123")));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 2, "nothing half-made");
        fs::write(path.with_file_name(".cut-off"), [0]).unwrap();
        let mut gone = Gone::default();
        forget_unfinished(&places, Duration::from_secs(600), &mut gone);
        assert!(path.with_file_name(".cut-off").exists(), "it may be just in the making");
        forget_unfinished(&places, Duration::ZERO, &mut gone);
        assert!(!path.with_file_name(".cut-off").exists() && path.exists());
        for wrong in [["a:/x", "a:/y"], ["a:/x", "b:/x"]] {
            assert!(named(&wrong.map(String::from)).is_err());
        }
        fs::remove_dir_all(places.state.parent().unwrap()).unwrap();
    }
}
