//! Works on what is on a VM's disks.
use crate::images::{Stopped, Watcher};
use crate::service::Service;
use crate::vms::{Vms, absolute};
use viv_api::image::{DiskExport, Exported, Image, ImageCommit};
use viv_model::{DiskFormat, DiskSpec, Fault, Kind, ProjectName};

/// Makes an image of a VM that does not run, which cannot be started until it is made; of one that runs, as it is at a moment; or of a
/// snapshot, by its own name or as `VM@SNAPSHOT`.
pub(super) fn commit(
    service: &Service,
    project: &ProjectName,
    name: &str,
    ask: &ImageCommit,
    watcher: &dyn Watcher,
    shown: impl Fn(&crate::images::Image) -> Image,
) -> Result<Image, Fault> {
    let act = |vm: &Stopped<'_>| service.images.commit(vm, ask, watcher);
    let snapshots = &service.snapshots;
    let image = match name.split_once('@') {
        Some((vm, snapshot)) => snapshots.of_snapshot(project, Some(vm), snapshot, act),
        None => match service.vms.named(project, name).and_then(|record| service.vms.get(&record.id)) {
            Ok(vm) if vm.state.is_live() => snapshots.of_live(&vm.id, watcher, act),
            Ok(vm) => still(&service.vms, &vm.id, act),
            Err(fault) if fault.kind == Kind::NotFound && snapshots.get(project, name).is_ok() => {
                snapshots.of_snapshot(project, None, name, act)
            }
            Err(fault) => Err(fault),
        },
    };
    image.map(|image| shown(&image))
}

/// Writes a disk of a VM that does not run to a new file.
pub(super) fn export_disk(
    service: &Service,
    project: &ProjectName,
    name: &str,
    ask: &DiskExport,
    watcher: &dyn Watcher,
) -> Result<Exported, Fault> {
    absolute(&ask.path)?;
    let id = service.vms.named(project, name)?.id;
    if ask.ova {
        return still(&service.vms, &id, |vm| service.images.export_vm(vm, &ask.path, watcher));
    }
    let format = ask.format.unwrap_or(DiskFormat::Raw);
    if !matches!(format, DiskFormat::Raw | DiskFormat::Qcow2) {
        return Err(Fault::new(
            Kind::Usage,
            format!("{format} images can be read, but not made"),
            "use --format raw or qcow2; other programs read both",
        ));
    }
    still(&service.vms, &id, |vm| {
        let disk = disk_of(vm, ask.disk)?;
        crate::images::export_disk(disk, &ask.path, format, watcher)
    })
}

/// The disk that is meant.
fn disk_of<'a>(vm: &Stopped<'a>, number: Option<usize>) -> Result<&'a DiskSpec, Fault> {
    let disks = &vm.machine.disks;
    let writable: Vec<&DiskSpec> = disks.iter().filter(|disk| !disk.read_only).collect();
    match (number, &writable[..]) {
        (Some(number), _) => disks.get(number).ok_or_else(|| {
            Fault::new(
                Kind::NotFound,
                format!("VM {:?} has no disk {number}: it has {}", vm.name, disks.len()),
                format!("disks count from 0: viv inspect {}", vm.name),
            )
        }),
        (None, [one]) => Ok(one),
        (None, []) => Err(Fault::new(
            Kind::NotFound,
            format!("VM {:?} has no disk to which it writes", vm.name),
            format!("see what it has: viv inspect {}", vm.name),
        )),
        (None, several) => Err(Fault::new(
            Kind::Usage,
            format!("VM {:?} has {} disks to which it writes", vm.name, several.len()),
            format!("say which, counted from 0: viv export {} FILE --disk N", vm.name),
        )),
    }
}

/// Does something with a VM that does not run, and is not started meanwhile.
fn still<T>(vms: &Vms, id: &str, act: impl FnOnce(&Stopped<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
    vms.change(id, |record, runner| {
        let state = vms.view(record.clone(), &runner).state;
        if state.is_live() {
            return Err(Fault::new(
                Kind::Conflict,
                format!(
                    "VM {:?} is {state}: what is on its disk is not all that it has written",
                    record.name
                ),
                format!("stop it first: viv stop {}", record.name),
            ));
        }
        act(&Stopped {
            name: &record.name,
            dir: runner.dir(),
            image: record.image.as_deref(),
            machine: &record.machine,
            append: crate::creation::append_of(&record.machine, record.append.as_deref()),
            boots_itself: crate::disk_image::boots_itself(&record, runner.dir()),
        })
    })
}
