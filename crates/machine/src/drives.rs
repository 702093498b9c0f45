//! The machine's disks, from their opening to the moment when another machine may open them.
use crate::board::HOT_PLUG;
use crate::core::lock;
use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use viv_block::{
    Disk, DiskCounts, Gate, Measured, Patient, Preserved, Preserving, Qcow2, Shortage, Source, Throttled, Tip,
};
use viv_model::{DiskFormat, DiskLimits, DiskSpec, Fault, Kind, OnFull};

/// How long the end waits for disks: one may hang.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks whether the disks' threads have let go.
const LOOK: Duration = Duration::from_millis(1);

struct Drive {
    disk: Arc<Measured>,
    /// The same, without its limits.
    preserving: Arc<Preserving>,
    /// Where an image may be put above it.
    tip: Arc<Tip>,
    gate: Arc<Gate>,
    serial: String,
    /// Its PCI slot.
    slot: u8,
}

/// The disks, and how fast each may be. They may come and go.
pub(crate) struct Drives {
    drives: Mutex<Vec<Drive>>,
    shortage: Arc<Shortage>,
    /// Disks of the start.
    first: usize,
    /// The moment since which it is known what has changed on them.
    since: Mutex<Option<String>>,
}

/// What disks held at one moment, by their numbers.
pub(crate) type Held = Vec<(usize, Preserved)>;

/// A disk, and the image that is to come above it.
pub(crate) type Above = (Arc<Tip>, Qcow2);

/// Files that somebody has opened for us, by their paths.
pub type HandedFiles = Arc<[(PathBuf, File)]>;

/// Opens a disk, not yet in any slot.
fn open(
    spec: &DiskSpec,
    index: usize,
    handed: HandedFiles,
    shortage: &Arc<Shortage>,
) -> Result<Drive, Fault> {
    spec.check()?;
    let gate = Arc::new(Gate::new(&spec.limits));
    let tip = Arc::new(Tip::new(viv_block::open(&Source { handed, ..Source::of(spec) })?));
    let disk = tip.clone();
    let disk: Arc<dyn Disk> = match spec.on_full {
        OnFull::Pause if !disk.read_only() => Arc::new(Patient::new(disk, &spec.path, shortage.clone())),
        _ => disk,
    };
    let preserving = Arc::new(Preserving::new(disk));
    Ok(Drive {
        disk: Arc::new(Measured::new(Arc::new(Throttled::new(preserving.clone(), gate.clone())))),
        preserving,
        tip,
        gate,
        serial: spec.serial_of(index),
        slot: u8::MAX,
    })
}

impl Drives {
    /// The disks of the start: they are in the first slots that may change, in order.
    pub(crate) fn open(specs: &[DiskSpec]) -> Result<Drives, Fault> {
        let shortage = Arc::<Shortage>::default();
        let each = |(slot, (index, spec))| {
            Ok(Drive { slot, ..open(spec, index, HandedFiles::default(), &shortage)? })
        };
        let drives = HOT_PLUG.zip(specs.iter().enumerate()).map(each).collect::<Result<Vec<_>, Fault>>()?;
        Ok(Drives { drives: Mutex::new(drives), shortage, first: specs.len(), since: Mutex::default() })
    }

    /// Those that wait for room on the host.
    pub(crate) fn shortage(&self) -> &Arc<Shortage> {
        &self.shortage
    }

    /// What these disks hold now. What changes on them from then on is kept in their files. This moment is called `id`; the
    /// other answer is the one before, since which it is known what has changed.
    pub(crate) fn preserve(
        &self,
        files: Vec<(usize, File)>,
        id: &str,
    ) -> Result<(Held, Option<String>), Fault> {
        let drives = lock(&self.drives);
        if files.is_empty() {
            return Ok((Vec::new(), None));
        }
        let each = |(index, file)| {
            let drive: &Drive = drives.get(index).ok_or_else(|| missing(index, drives.len()))?;
            Ok((index, drive.preserving.preserve(file)))
        };
        let kept = files.into_iter().map(each).collect::<Result<_, Fault>>()?;
        Ok((kept, lock(&self.since).replace(id.to_string())))
    }

    /// Opens the images that are to come above disks.
    pub(crate) fn open_above(&self, images: &[(usize, PathBuf)]) -> Result<Vec<Above>, Fault> {
        let drives = lock(&self.drives);
        let each = |(index, image): &(usize, PathBuf)| {
            let drive = drives.get(*index).ok_or_else(|| missing(*index, drives.len()))?;
            let image = Source { format: Some(DiskFormat::Qcow2), ..Source::new(image, false) };
            Ok((drive.tip.clone(), drive.tip.above(&image)?))
        };
        images.iter().map(each).collect()
    }

    /// This moment is called `id`; from now on it is known what changes on the disks that can be written.
    pub(crate) fn follow(&self, id: &str) {
        let drives = lock(&self.drives);
        drives.iter().filter(|drive| !drive.disk.read_only()).for_each(|drive| drive.preserving.follow());
        *lock(&self.since) = Some(id.to_string());
    }

    /// The disks.
    fn disks(&self) -> Vec<Arc<dyn Disk>> {
        lock(&self.drives).iter().map(|drive| drive.disk.clone() as Arc<dyn Disk>).collect()
    }

    /// What has passed each disk, by its serial number.
    pub(crate) fn counts(&self) -> Vec<(String, DiskCounts)> {
        lock(&self.drives).iter().map(|drive| (drive.serial.clone(), drive.disk.counts())).collect()
    }

    /// The disks with their serial numbers.
    pub(crate) fn with_serials(&self) -> Vec<(Arc<dyn Disk>, String)> {
        lock(&self.drives).iter().map(|drive| (drive.disk.clone() as _, drive.serial.clone())).collect()
    }

    /// Adds a disk; `plug` puts it into a slot.
    pub(crate) fn add(
        &self,
        spec: &DiskSpec,
        handed: HandedFiles,
        plug: impl FnOnce(Arc<dyn Disk>, String) -> Result<u8, Fault>,
    ) -> Result<(), Fault> {
        let index = lock(&self.drives).len();
        let drive = open(spec, index, handed, &self.shortage)?;
        let slot = plug(drive.disk.clone(), drive.serial.clone())?;
        lock(&self.drives).push(Drive { slot, ..drive });
        Ok(())
    }

    /// Whether the disks are those of the start, in the slots that they have then.
    pub(crate) fn are_as_started(&self) -> bool {
        let drives = lock(&self.drives);
        drives.len() == self.first && HOT_PLUG.zip(drives.iter()).all(|(slot, drive)| slot == drive.slot)
    }

    /// The slot of a disk.
    pub(crate) fn slot(&self, index: usize) -> Result<u8, Fault> {
        let drives = lock(&self.drives);
        drives.get(index).map(|drive| drive.slot).ok_or_else(|| missing(index, drives.len()))
    }

    /// Forgets the disk of a slot that is empty now, and waits until its threads have let it go.
    pub(crate) fn remove(&self, slot: u8) {
        let mut gone = lock(&self.drives);
        let Some(index) = gone.iter().position(|drive| drive.slot == slot) else { return };
        let drive = gone.remove(index);
        drop(gone);
        drive.gate.open();
        drive.wait();
    }

    /// Gives a disk another size; gives its slot and the size.
    pub(crate) fn resize(&self, index: usize, size: impl FnOnce(u64) -> u64) -> Result<(u8, u64), Fault> {
        let (disk, slot) = {
            let drives = lock(&self.drives);
            let drive = drives.get(index).ok_or_else(|| missing(index, drives.len()))?;
            (drive.disk.clone(), drive.slot)
        };
        let old = disk.size();
        let new = size(old);
        if new < old {
            return Err(Fault::new(
                Kind::Usage,
                format!(
                    "the disk has {old} bytes: {new} would cut off its end, which the guest may be using"
                ),
                "give it more, or stop the VM and say: viv disk resize --shrink",
            ));
        }
        disk.resize(new).map_err(|error| {
            let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
            let kind = match error.kind() {
                _ if full => Kind::NoCapacity,
                ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::PermissionDenied => Kind::Usage,
                _ => Kind::Error,
            };
            let fix = if full { "make room on the host: df -h" } else { "see what it is: viv disk info" };
            Fault::new(kind, format!("cannot give the disk {new} bytes: {error}"), fix)
        })?;
        Ok((slot, new))
    }

    pub(crate) fn limit(&self, index: usize, limits: &DiskLimits) -> Result<(), Fault> {
        limits.check()?;
        let drives = lock(&self.drives);
        let drive = drives.get(index).ok_or_else(|| missing(index, drives.len()))?;
        drive.gate.set(limits);
        Ok(())
    }

    /// Lets all that waits go on, and makes what the guest has written durable.
    pub(crate) fn settle(&self) {
        self.shortage.end();
        lock(&self.drives).iter().for_each(|drive| drive.gate.open());
        let disks: Vec<_> = self.disks().into_iter().filter(|disk| !disk.read_only()).collect();
        let (done, wait) = channel();
        let flush = move || {
            // The guest has its own answer for each flush that it asked for.
            disks.iter().for_each(|disk| drop(disk.flush()));
            drop(disks);
            let _ = done.send(());
        };
        if std::thread::Builder::new().name("disks-end".into()).spawn(flush).is_ok() {
            let _ = wait.recv_timeout(PATIENCE);
        }
    }
}

impl Drop for Drives {
    /// Waits until the disks' threads have seen the end, so that a machine that is built next finds no lock.
    fn drop(&mut self) {
        self.shortage.end();
        lock(&self.drives).iter().for_each(Drive::wait);
    }
}

impl Drive {
    fn wait(&self) {
        let begin = Instant::now();
        while Arc::strong_count(&self.disk) > 1 && begin.elapsed() < PATIENCE {
            std::thread::sleep(LOOK);
        }
    }
}

fn missing(index: usize, count: usize) -> Fault {
    let text = format!("the machine has no disk {index}: it has {count}");
    Fault::new(Kind::NotFound, text, "count from 0; see the disks with: viv inspect")
}
