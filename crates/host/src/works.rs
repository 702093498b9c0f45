//! Long works: their progress as lines, and an end that is told.
use crate::http::{self, Body};
use crate::images::{Stopped, Watcher};
use crate::service::{Busy, Service};
use crate::vms::{Vms, absolute};
use hyper::Response;
use hyper::body::Bytes;
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::mpsc;
use viv_api::image::{DiskExport, Exported, Image, ImageCommit, Progress, WorkLine};
use viv_model::{DiskFormat, DiskSpec, Fault, Kind};

/// Most lines that wait for a slow reader.
const LINES_MAX: usize = 64;

/// Sends a work's progress to whoever asked for it; gives up when nobody listens.
pub(crate) struct Reporter {
    lines: mpsc::Sender<Bytes>,
    cancelled: Arc<AtomicBool>,
}

impl Reporter {
    fn send<T: Serialize>(&self, line: &WorkLine<T>) {
        let mut bytes = serde_json::to_vec(line).unwrap_or_default();
        bytes.push(b'\n');
        let _ = self.lines.blocking_send(bytes.into());
    }
}

impl Watcher for Reporter {
    fn progress(&self, progress: Progress) {
        self.send(&WorkLine::<()>::Progress(progress));
    }

    fn said(&self, line: &str) {
        self.send(&WorkLine::<()>::Said(line.to_string()));
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed) || self.lines.is_closed()
    }
}

/// Does a work beside the requests of others; `job` names it to those who want it given up.
pub(crate) fn work<T: Serialize + 'static>(
    service: Arc<Service>,
    job: String,
    act: impl FnOnce(&Service, &Reporter) -> Result<T, Fault> + Send + 'static,
) -> Response<Body> {
    let cancelled = Arc::new(AtomicBool::new(false));
    if !job.is_empty() {
        service.jobs().insert(job.clone(), cancelled.clone());
    }
    let (lines, receiver) = mpsc::channel(LINES_MAX);
    let busy = Busy::new(&service.work);
    tokio::task::spawn_blocking(move || {
        let reporter = Reporter { lines, cancelled };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| act(&service, &reporter)));
        service.jobs().remove(&job);
        reporter.send(&match outcome.unwrap_or_else(|_| Err(defect("the work panicked"))) {
            Ok(done) => WorkLine::Done(done),
            Err(fault) => WorkLine::Failed(fault),
        });
        drop(busy);
    });
    http::pieces(receiver, "application/x-ndjson")
}

/// The service has broken off.
pub(crate) fn defect(why: &str) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the service broke off: {why}"),
        "this is a defect of ours: please report it",
    )
}

/// Makes an image of a VM that does not run, which cannot be started until it is made; of one that runs, as it is at a moment; or of a
/// snapshot, by its own name or as `VM@SNAPSHOT`.
pub(crate) fn commit(
    service: &Service,
    name: &str,
    ask: &ImageCommit,
    watcher: &dyn Watcher,
    shown: impl Fn(&crate::images::Image) -> Image,
) -> Result<Image, Fault> {
    let act = |vm: &Stopped<'_>| service.images.commit(vm, ask, watcher);
    let snapshots = &service.snapshots;
    let image = match name.split_once('@') {
        Some((vm, snapshot)) => snapshots.of_snapshot(Some(vm), snapshot, act),
        None => match service.vms.get(name) {
            Ok(vm) if vm.state.is_live() => snapshots.of_live(name, act),
            Ok(_) => still(&service.vms, name, act),
            Err(fault) if fault.kind == Kind::NotFound && snapshots.get(name).is_ok() => {
                snapshots.of_snapshot(None, name, act)
            }
            Err(fault) => Err(fault),
        },
    };
    image.map(|image| shown(&image))
}

/// Writes a disk of a VM that does not run to a new file.
pub(crate) fn export_disk(
    service: &Service,
    name: &str,
    ask: &DiskExport,
    watcher: &dyn Watcher,
) -> Result<Exported, Fault> {
    absolute(&ask.path)?;
    if ask.ova {
        return still(&service.vms, name, |vm| service.images.export_vm(vm, &ask.path, watcher));
    }
    let format = ask.format.unwrap_or(DiskFormat::Raw);
    if !matches!(format, DiskFormat::Raw | DiskFormat::Qcow2) {
        return Err(Fault::new(
            Kind::Usage,
            format!("{format} images can be read, but not made"),
            "use --format raw or qcow2; other programs read both",
        ));
    }
    still(&service.vms, name, |vm| {
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
fn still<T>(vms: &Vms, name: &str, act: impl FnOnce(&Stopped<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
    vms.change(name, |record, runner| {
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
