//! The machine's disks, from their opening to the moment when another machine may open them.
use crate::files::disk_source;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use viv_block::{Disk, Gate, Throttled};
use viv_model::{DiskLimits, DiskSpec, Fault, Kind};

/// How long the end waits for disks: one may hang.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks whether the disks' threads have let go.
const LOOK: Duration = Duration::from_millis(1);

struct Drive {
    disk: Arc<dyn Disk>,
    gate: Arc<Gate>,
}

/// The disks, and how fast each may be.
pub(crate) struct Drives(Vec<Drive>);

impl Drives {
    pub(crate) fn open(specs: &[DiskSpec]) -> Result<Drives, Fault> {
        let open = |spec: &DiskSpec| {
            let gate = Arc::new(Gate::new(&spec.limits));
            let disk = viv_block::open(&disk_source(spec))?;
            Ok(Drive { disk: Arc::new(Throttled::new(disk, gate.clone())), gate })
        };
        Ok(Drives(specs.iter().map(open).collect::<Result<_, Fault>>()?))
    }

    pub(crate) fn disks(&self) -> Vec<Arc<dyn Disk>> {
        self.0.iter().map(|drive| drive.disk.clone()).collect()
    }

    pub(crate) fn limit(&self, index: usize, limits: &DiskLimits) -> Result<(), Fault> {
        limits.check()?;
        let drive = self.0.get(index).ok_or_else(|| {
            let text = format!("the machine has no disk {index}: it has {}", self.0.len());
            Fault::new(Kind::NotFound, text, "count from 0; see the disks with: viv inspect")
        })?;
        drive.gate.set(limits);
        Ok(())
    }

    /// Lets all that waits go on, and makes what the guest has written durable.
    pub(crate) fn settle(&self) {
        self.0.iter().for_each(|drive| drive.gate.open());
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
        let begin = Instant::now();
        let held = |drive: &Drive| Arc::strong_count(&drive.disk) > 1;
        while self.0.iter().any(held) && begin.elapsed() < PATIENCE {
            std::thread::sleep(LOOK);
        }
    }
}
