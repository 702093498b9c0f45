//! Disks of a VM that runs from which its forks go on without a copy (docs/decisions/103). The VM gets an empty image above each, and
//! writes into that from then on; what is below stays as it is, and its files have links in the forks' directories.
//!
//! The VM's record names the new image before its process uses it. Whoever dies in between does no harm: an image that has nothing
//! shows what is below, whoever still writes to that.
use crate::disks::size_of;
use crate::snapshots::{io_fault, link};
use crate::store::VmRecord;
use crate::vms::Vms;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, Permissions};
use std::mem;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use viv_api::runner::ApartDisk;
use viv_block::{CreateOptions, Layer, Qcow2, Source};
use viv_model::{DiskFormat, DiskSpec, Fault, Kind, MachineSpec};
use viv_snapshot::disk_file;

/// Most files of a disk: each costs a look at every request that the ones above know nothing of. One that has more is copied.
const FILES_MAX: usize = 16;

/// A disk that stays as it is.
pub(crate) struct Apart {
    index: usize,
    /// As the VM had it.
    was: DiskSpec,
    /// What the VM has above it.
    above: PathBuf,
    /// Its files in the VM's directory.
    files: Vec<PathBuf>,
}

impl Vms {
    /// Gives the VM images, called by `tag`, above all disks for which that can be. To be called in its [`Vms::disks_turn`].
    pub(crate) fn set_apart(&self, vm: &str, tag: &str) -> Result<Vec<Apart>, Fault> {
        self.change(vm, |record, runner| {
            let mut machine = record.machine.clone();
            let mut apart = Vec::new();
            let made = grow(&mut machine.disks, runner.dir(), tag, &mut apart).and_then(|()| {
                let changed = !apart.is_empty();
                changed.then(|| self.store.update(&VmRecord { machine, ..record })).transpose()?;
                Ok(())
            });
            made.inspect_err(|_| apart.iter().for_each(|disk| drop(fs::remove_file(&disk.above))))?;
            Ok(apart)
        })
    }

    /// The VM has no images any more that its process, which may have ended, never used. To be called in its [`Vms::disks_turn`].
    pub(crate) fn take_back_images(&self, record: &mut VmRecord, dir: &Path) -> Result<(), Fault> {
        let found =
            record.machine.disks.iter_mut().filter_map(|disk| below_unused(disk, dir).map(|it| (disk, it)));
        let mut unused = Vec::new();
        for (disk, (image, below)) in found {
            unused.push((mem::replace(disk, below).path, image));
        }
        if !unused.is_empty() {
            self.store.update(record)?;
        }
        for (path, image) in unused {
            fs::remove_file(&path).map_err(io_fault("remove", &path))?;
            // It is locked until then: nobody begins to use it meanwhile.
            drop(image);
        }
        Ok(())
    }
}

/// Removes images that were made above disks of a VM by a service which was killed before the record named them: nobody has
/// used them.
pub(crate) fn forget_unnamed(disks: &[DiskSpec], dir: &Path) {
    for image in unnamed(disks, dir).unwrap_or_default() {
        let _ = fs::remove_file(image);
    }
}

/// Those that have nothing, and are no part of any disk; none if one of those cannot be looked at.
fn unnamed(disks: &[DiskSpec], dir: &Path) -> Option<Vec<PathBuf>> {
    let own: Vec<_> = disks.iter().filter(|disk| disk.path.starts_with(dir)).collect();
    let mut named = BTreeSet::new();
    for disk in &own {
        for file in viv_block::files(&Source::of(disk)).ok()? {
            named.insert(file.canonicalize().ok()?);
        }
    }
    let places: BTreeSet<&Path> = own.iter().filter_map(|disk| disk.path.parent()).collect();
    let entries = places.into_iter().flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    let is_image = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        (0..disks.len()).any(|index| name.starts_with(&format!("{}-", disk_file(index))))
            && name.ends_with(".qcow2")
    };
    let has_nothing = |path: &PathBuf| {
        let image = DiskSpec { path: path.clone(), format: Some(DiskFormat::Qcow2), ..DiskSpec::default() };
        let layer = viv_block::open_layer(&Source::of(&image));
        layer.is_ok_and(|layer| layer.image.has_nothing().unwrap_or(false))
    };
    let images = entries.map(|entry| entry.path()).filter(is_image);
    Some(
        images
            .filter(|path| path.canonicalize().is_ok_and(|path| !named.contains(&path)) && has_nothing(path))
            .collect(),
    )
}

/// What is below a disk that has nothing, that nobody uses, and below which nobody else's disk can be yet; with the disk, locked.
fn below_unused(disk: &DiskSpec, dir: &Path) -> Option<(Layer, DiskSpec)> {
    let parent = disk.path.parent().filter(|parent| parent.starts_with(dir))?;
    if disk.read_only || disk.format != Some(DiskFormat::Qcow2) {
        return None;
    }
    let layer = viv_block::open_layer(&Source::of(disk)).ok()?;
    let below = layer.below.as_ref()?;
    let path = parent.join(below.path.file_name()?);
    let is_own = below.path.parent() == parent.canonicalize().ok().as_deref();
    let may_be_written = fs::metadata(&path).ok()?.permissions().mode() & 0o200 != 0;
    let below = DiskSpec { path, format: below.format, ..disk.clone() };
    (is_own && may_be_written && layer.image.has_nothing().ok()?).then_some((layer, below))
}

/// Puts images above the disks.
fn grow(disks: &mut [DiskSpec], dir: &Path, tag: &str, apart: &mut Vec<Apart>) -> Result<(), Fault> {
    for (index, disk) in disks.iter_mut().enumerate() {
        let Some(files) = own_files(disk, dir)? else { continue };
        let above = above(index, disk, &disk.path.with_file_name(image_name(index, tag)))?;
        let was = mem::replace(disk, above.clone());
        apart.push(Apart { index, was, above: above.path, files });
    }
    Ok(())
}

/// The files of a disk in the VM's directory; none of one that is not its own.
fn own_files(disk: &DiskSpec, dir: &Path) -> Result<Option<Vec<PathBuf>>, Fault> {
    let may_be = matches!(disk.format, None | Some(DiskFormat::Raw | DiskFormat::Qcow2));
    let Some(parent) = disk.path.parent().filter(|parent| parent.starts_with(dir)) else { return Ok(None) };
    if disk.read_only || !may_be {
        return Ok(None);
    }
    let real = parent.canonicalize().map_err(io_fault("find", parent))?;
    let mut files = viv_block::files(&Source::of(disk))?;
    files.retain(|file| [Some(parent), Some(&real)].contains(&file.parent()));
    Ok((files.len() < FILES_MAX).then_some(files))
}

fn image_name(index: usize, tag: &str) -> String {
    format!("{}-{tag}.qcow2", disk_file(index))
}

/// Makes an empty image above a disk, in the same directory.
fn above(index: usize, disk: &DiskSpec, path: &Path) -> Result<DiskSpec, Fault> {
    let size = size_of(disk)?;
    let name = disk.path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
        let text = format!("disk {index} has a name that is no text: {}", disk.path.display());
        Fault::new(Kind::Error, text, "give it another one")
    })?;
    let format = disk.format.unwrap_or(DiskFormat::Raw);
    let backing = Some((name.to_string(), format.name().to_string()));
    Qcow2::create(path, &CreateOptions { backing, ..CreateOptions::new(size) })?;
    Ok(DiskSpec { path: path.to_owned(), format: Some(DiskFormat::Qcow2), ..disk.clone() })
}

impl Apart {
    /// What the VM's process is asked for.
    pub(crate) fn ask(&self) -> ApartDisk {
        ApartDisk { index: self.index, above: self.above.clone() }
    }

    /// Has its files, which nobody writes to any more, in a directory of their own below `dir`; `machine` has it there.
    pub(crate) fn keep(&self, dir: &Path, machine: &mut MachineSpec) -> Result<(), Fault> {
        let place = dir.join(format!("{}.apart", disk_file(self.index)));
        DirBuilder::new().mode(0o700).create(&place).map_err(io_fault("make", &place))?;
        for file in &self.files {
            fs::set_permissions(file, Permissions::from_mode(0o400)).map_err(io_fault("protect", file))?;
            link(file, &place.join(file.file_name().unwrap_or_default()))?;
        }
        if let Some(disk) = machine.disks.get_mut(self.index) {
            let path = place.join(self.was.path.file_name().unwrap_or_default());
            *disk = DiskSpec { path, ..self.was.clone() };
        }
        Ok(())
    }
}

/// Lays the disks of `machine` that lie below `from` into a directory, each below an image of its own.
pub(crate) fn lay_out(from: &Path, machine: &mut MachineSpec, dir: &Path) -> Result<(), Fault> {
    let tag = dir.file_name().unwrap_or_default().to_string_lossy();
    for (index, disk) in machine.disks.iter_mut().enumerate() {
        let Some(place) = disk.path.parent().filter(|place| place.starts_with(from)) else { continue };
        for entry in fs::read_dir(place).map_err(io_fault("read", place))? {
            let entry = entry.map_err(io_fault("read", place))?;
            link(&entry.path(), &dir.join(entry.file_name()))?;
        }
        let path = dir.join(disk.path.file_name().unwrap_or_default());
        let below = DiskSpec { path, ..disk.clone() };
        *disk = above(index, &below, &dir.join(image_name(index, &tag)))?;
    }
    Ok(())
}

/// Removes the disks that a VM has no more, with what lies below them in its own directory.
pub(crate) fn forget(disks: &[DiskSpec], vm: &Path) {
    for disk in disks.iter().filter(|disk| disk.path.parent() == Some(vm)) {
        let below = viv_block::files(&Source::of(disk)).unwrap_or_default();
        let own = below.iter().filter_map(|file| Some(vm.join(file.file_name()?)));
        own.chain([disk.path.clone()]).for_each(|file| drop(fs::remove_file(file)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_block::RawDisk;

    /// A VM's directory that goes away with its test, with a disk that an image has come above.
    struct Vm(PathBuf);

    impl Drop for Vm {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    impl Vm {
        fn new(name: &str) -> Vm {
            let dir = std::env::temp_dir().join(format!("viv-apart-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Vm(dir)
        }

        fn disks(&self) -> Vec<DiskSpec> {
            let path = self.0.join("disk0.raw");
            drop(RawDisk::create(&path, 1 << 20).unwrap());
            let own = DiskSpec { path, ..DiskSpec::default() };
            let user = DiskSpec { path: "/elsewhere/disk.raw".into(), ..DiskSpec::default() };
            let read_only = DiskSpec { read_only: true, ..own.clone() };
            vec![own, user, read_only]
        }
    }

    #[test]
    fn only_what_is_the_vms_own_and_written_gets_images_above() {
        let vm = Vm::new("own");
        let (mut disks, mut apart) = (vm.disks(), Vec::new());
        let before = disks.clone();
        grow(&mut disks, &vm.0, "one", &mut apart).unwrap();
        assert_eq!(apart.iter().map(|disk| disk.index).collect::<Vec<_>>(), [0]);
        assert_eq!(disks[0].path, vm.0.join("disk0-one.qcow2"));
        assert_eq!(disks[1..], before[1..]);
        // As long as there are not too many.
        for number in 0..2 * FILES_MAX {
            grow(&mut disks, &vm.0, &number.to_string(), &mut apart).unwrap();
        }
        assert_eq!(apart.len(), FILES_MAX - 1);
    }

    #[test]
    fn images_that_no_record_names_are_removed_if_they_have_nothing() {
        let vm = Vm::new("unnamed");
        let (before, mut apart) = (vm.disks(), Vec::new());
        let mut disks = before.clone();
        grow(&mut disks, &vm.0, "one", &mut apart).unwrap();
        let named = disks.clone();
        grow(&mut disks, &vm.0, "two", &mut apart).unwrap();
        let is_there = |tag: &str| vm.0.join(image_name(0, tag)).exists();
        // A process of the VM's uses what is named.
        let used = viv_block::open(&Source::of(&named[0])).unwrap();
        forget_unnamed(&disks, &vm.0);
        assert!(is_there("one") && is_there("two"));
        forget_unnamed(&named, &vm.0);
        assert!(is_there("one") && !is_there("two"));
        used.write(0, &[1; 512]).unwrap();
        drop(used);
        forget_unnamed(&before, &vm.0);
        assert!(is_there("one"), "it has something");
        fs::remove_file(&before[0].path).unwrap();
        fs::write(vm.0.join(image_name(0, "bad")), "no image").unwrap();
        forget_unnamed(&before, &vm.0);
        assert!(is_there("one") && is_there("bad"));
    }

    #[test]
    fn an_image_is_taken_back_only_if_nobody_has_anything_of_it() {
        let vm = Vm::new("back");
        let (mut disks, mut apart) = (vm.disks(), Vec::new());
        let before = disks[0].clone();
        grow(&mut disks, &vm.0, "one", &mut apart).unwrap();
        let disk = &disks[0];
        let below = |disk: &DiskSpec| below_unused(disk, &vm.0).map(|(_, below)| below.path);
        assert_eq!(below(disk), Some(before.path.clone()));
        assert_eq!(below(&before), None, "the lowest");
        assert_eq!(below_unused(disk, Path::new("/elsewhere")).map(|(_, below)| below), None);
        let used = viv_block::open(&Source::of(disk)).unwrap();
        assert_eq!(below(disk), None, "a process uses it");
        drop(used);
        fs::set_permissions(&before.path, Permissions::from_mode(0o400)).unwrap();
        assert_eq!(below(disk), None, "others stand on what is below");
        fs::set_permissions(&before.path, Permissions::from_mode(0o600)).unwrap();
        assert!(below(disk).is_some());
        viv_block::open(&Source::of(disk)).unwrap().write(0, &[1; 512]).unwrap();
        assert_eq!(below(disk), None, "it has something");
    }
}
