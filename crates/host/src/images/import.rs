//! A machine of another program becomes an image: its disks are copied without their zeroes, and its VMs boot the kernel that is on them.
use super::commit::new_name;
use super::fault::cancelled;
use super::pull::PAUSE;
use super::store::Store;
use super::{DISK_QCOW2, Image, Manifest, Usual, Watcher, step};
use crate::disk_image;
use std::path::{Path, PathBuf};
use std::time::Instant;
use viv_api::image::{ImageImport, Imported, ImportedDisk};
use viv_api::operation::Progress;
use viv_block::{CreateOptions, Disk, Qcow2};
use viv_foreign::{Machine, Source};
use viv_model::{CPUS_MAX, DiskFormat, DiskSpec, Fault, Kind, MEMORY_MIB_MIN, MEMORY_STEP_MIB};

/// The label that says where an image's machine comes from.
const FROM_LABEL: &str = "vivarium.import.from";
/// Most characters of a name that is made of another.
const NAME_MAX: usize = 63;

pub(super) fn import(
    store: &Store,
    ask: &ImageImport,
    watcher: &dyn Watcher,
    shown: &dyn Fn(&Image) -> viv_api::image::Image,
) -> Result<Imported, Fault> {
    let mut last = None::<(String, Instant)>;
    let mut told = |what: &str, done: u64, total: Option<u64>| {
        let is_new = last.as_ref().is_none_or(|(step, when)| step != what || when.elapsed() >= PAUSE);
        if is_new {
            last = Some((what.to_string(), Instant::now()));
            watcher.progress(Progress { step: what.to_string(), done, total, bytes: true });
        }
        if watcher.cancelled() { Err(cancelled()) } else { Ok(()) }
    };
    step(watcher, &format!("looking at {}", ask.path.display()));
    let source = Source::open(&ask.path, &mut told)?;
    let machine = source.machine();
    let name = match &ask.name {
        Some(name) => new_name(name)?,
        None => new_name(&made_up(machine, &ask.path))?,
    };
    if store.get(&name)?.is_some() {
        return Err(Fault::new(
            Kind::Conflict,
            format!("an image is called {name:?} already"),
            format!("give this one another name: --name NAME; or remove that one: viv image rm {name}"),
        ));
    }
    let mut imported = Imported {
        name: name.clone(),
        from: machine.origin.to_string(),
        image: None,
        cpus: machine.cpus,
        memory_mib: machine.memory_mib,
        disks: machine
            .disks
            .iter()
            .map(|disk| ImportedDisk { name: disk.name.clone(), size_bytes: disk.size })
            .collect(),
        boots: None,
        left: machine.left.clone(),
    };
    let usual = usual(machine, &mut imported.left);
    if ask.dry_run {
        return Ok(imported);
    }
    let scratch = store.pull_scratch()?;
    let file = |number: usize| scratch.path().join(format!("disk{number}.qcow2"));
    let mut sizes = vec![None; machine.disks.len()];
    let mut make = |number: usize, size: u64| -> Result<Box<dyn Disk>, Fault> {
        if let Some(slot) = sizes.get_mut(number) {
            *slot = Some(size);
        }
        Ok(Box::new(Qcow2::create(&file(number), &CreateOptions::new(size))?))
    };
    source.write(scratch.path(), &mut make, &mut told)?;
    if let Some(missing) = sizes.iter().position(Option::is_none) {
        let what = machine.disks.get(missing).map(|disk| disk.name.as_str()).unwrap_or_default();
        return Err(super::fault::broken(&format!("the disk {what}"), "it has not come"));
    }
    for (disk, size) in imported.disks.iter_mut().zip(&sizes) {
        disk.size_bytes = *size;
    }
    step(watcher, "looking for a kernel");
    let specs: Vec<DiskSpec> = (0..sizes.len())
        .map(|number| DiskSpec {
            path: file(number),
            format: Some(DiskFormat::Qcow2),
            read_only: true,
            ..DiskSpec::default()
        })
        .collect();
    match disk_image::find(specs.iter().map(disk_image::open), &|_, boot| {
        Ok(format!("{} ({})", boot.title, boot.kernel))
    }) {
        Ok(boots) => imported.boots = Some(boots),
        Err(fault) => imported.left.push(format!(
            "booting: {}; it can be run with a kernel of yours: viv run --kernel FILE {name}",
            fault.message
        )),
    }
    step(watcher, "storing the image");
    let files: Vec<PathBuf> = (0..sizes.len()).map(file).collect();
    let image = publish(store, &name, machine, usual, &files, watcher)?;
    imported.image = Some(shown(&image));
    Ok(imported)
}

/// What a VM of it gets if nothing is said, as far as we can have it; notes what we cannot.
fn usual(machine: &Machine, left: &mut Vec<String>) -> Usual {
    let cpus = machine.cpus.map(|cpus| cpus.min(CPUS_MAX));
    if cpus != machine.cpus {
        left.push(format!(
            "processors: {} there, and {CPUS_MAX} is the most here",
            machine.cpus.unwrap_or_default()
        ));
    }
    let memory_mib = machine
        .memory_mib
        .and_then(|mib| mib.checked_next_multiple_of(MEMORY_STEP_MIB))
        .filter(|mib| *mib >= MEMORY_MIB_MIN);
    Usual { cpus, memory_mib }
}

/// The last step: before it, nobody sees anything.
fn publish(
    store: &Store,
    name: &str,
    machine: &Machine,
    usual: Usual,
    files: &[PathBuf],
    watcher: &dyn Watcher,
) -> Result<Image, Fault> {
    let index = store.index_lock()?;
    let mut manifest =
        Manifest { usual, created: viv_api::timestamp::Timestamp::now().unix_s, ..Manifest::bare() };
    for file in files {
        if watcher.cancelled() {
            return Err(cancelled());
        }
        manifest.disks.push(store.add_file(file, DISK_QCOW2, &index)?);
    }
    let called = machine.name.as_ref().map_or_else(String::new, |name| format!(" {name:?}"));
    manifest.summary = format!("from {}{called}", machine.origin);
    manifest.labels.insert(FROM_LABEL.to_string(), format!("{}{called}", machine.origin));
    store.publish_in(name, &manifest, &index)
}

/// A name for an image, of its machine's or its file's: with what a name may have.
fn made_up(machine: &Machine, path: &Path) -> String {
    let of_file = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let name = machine.name.clone().unwrap_or_else(of_file).to_ascii_lowercase();
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' })
        .skip_while(|c| !c.is_ascii_alphanumeric())
        .take(NAME_MAX)
        .collect();
    match plain.trim_end_matches(['-', '.']) {
        "" => "imported".to_string(),
        plain => plain.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::{Images, Unwatched};
    use std::fs;

    fn shown(image: &Image) -> viv_api::image::Image {
        viv_api::image::Image {
            name: image.name.clone(),
            digest: image.digest.clone(),
            size_bytes: image.size_bytes,
            created_at: viv_api::timestamp::Timestamp { unix_s: 0 },
            summary: image.summary.clone(),
            process: None,
            program: None,
            cpus: image.manifest.usual.cpus,
            memory_mib: image.manifest.usual.memory_mib,
        }
    }

    #[test]
    fn a_disk_becomes_an_image_once_and_nothing_is_left_of_one_that_is_refused() {
        let dir = std::env::temp_dir().join(format!("viv-import-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("My Disk (2).raw");
        let disk = viv_block::RawDisk::create(&path, 64 << 20).unwrap();
        disk.write(5 << 20, b"content").unwrap();
        drop(disk);
        let images = Images::open(dir.join("images")).unwrap();
        let ask = ImageImport { path, ..ImageImport::default() };
        let dry = ImageImport { dry_run: true, ..ask.clone() };
        let seen = images.import(&dry, &Unwatched, &shown).unwrap();
        assert_eq!((seen.name.as_str(), seen.image), ("my-disk--2", None));
        assert!(images.list().unwrap().is_empty());
        let done = images.import(&ask, &Unwatched, &shown).unwrap();
        let image = done.image.unwrap();
        assert!(image.size_bytes < 4 << 20, "{}", image.size_bytes);
        assert_eq!(done.disks[0].size_bytes, Some(64 << 20));
        assert!(
            done.boots.is_none() && done.left.iter().any(|item| item.contains("--kernel")),
            "{:?}",
            done.left
        );
        let vm = dir.join("vm");
        fs::create_dir_all(&vm).unwrap();
        let instance = images.instantiate(&images.get("my-disk--2").unwrap(), &[], &vm).unwrap();
        assert_eq!(instance.disks[0].format, Some(DiskFormat::Qcow2));
        let back = viv_block::open(&viv_block::Source::of(&instance.disks[0])).unwrap();
        let mut found = [0; 7];
        back.read(5 << 20, &mut found).unwrap();
        assert_eq!((&found, back.size()), (b"content", 64 << 20));
        let again = images.import(&ask, &Unwatched, &shown).unwrap_err();
        assert_eq!(again.kind, Kind::Conflict);
        let odd = dir.join("odd.raw");
        fs::write(&odd, "no disk").unwrap();
        let bad = ImageImport { path: odd, ..ImageImport::default() };
        images.import(&bad, &Unwatched, &shown).unwrap_err();
        assert_eq!(images.list().unwrap().len(), 1);
        assert_eq!(fs::read_dir(dir.join("images/pulls")).unwrap().count(), 0);
        fs::remove_dir_all(dir).unwrap();
    }
}
