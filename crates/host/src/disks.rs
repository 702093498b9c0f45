//! The disks of VMs that are there already: attached, taken away, limited, enlarged.
use crate::runners::Runner;
use crate::store::VmRecord;
use crate::vms::{Vms, absolute, lock};
use viv_api::runner::Ask as RunnerAsk;
use viv_api::vm::{DiskSize, Vm};
use viv_block::Source;
use viv_model::{DiskFormat, DiskLimits, DiskSpec, Fault, Kind};

impl Vms {
    /// Gives it one more disk: at once if it runs, and whenever it starts.
    pub(crate) fn attach_disk(&self, id: &str, disk: &DiskSpec) -> Result<Vm, Fault> {
        disk.check()?;
        absolute(&disk.path)?;
        let mut disk = resolve_disk(disk)?;
        self.change(id, |mut record, runner| {
            keep_serials(&mut record.machine.disks);
            disk.serial = Some(free_serial(&record.machine.disks, disk.serial.as_ref())?);
            if record.machine.disks.iter().any(|other| other.path == disk.path) {
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("{} has the disk {} already", record.name, disk.path.display()),
                    "see its disks with: viv inspect",
                ));
            }
            let lives = self.view(record.clone(), &runner).state.is_live();
            record.machine.disks.push(disk.clone());
            record.disk_mib = fill_mib(&record.machine.disks);
            self.update_grown(&record, || if lives { runner.attach_disk(&disk).map(drop) } else { Ok(()) })?;
            Ok(self.view(record, &runner))
        })
    }

    /// The serial number of a disk.
    pub(crate) fn disk_serial(&self, id: &str, disk: &str) -> Result<(String, Runner), Fault> {
        let (record, runner) = self.find(id)?;
        let index = disk_index(&record, disk)?;
        let serial = record.machine.disks.get(index).map(|disk| disk.serial_of(index));
        Ok((serial.unwrap_or_default(), runner))
    }

    /// Takes a disk from it; if it runs, when its guest has let it go.
    pub(crate) fn detach_disk(&self, id: &str, disk: &str) -> Result<Vm, Fault> {
        self.change(id, |mut record, runner| {
            let index = disk_index(&record, disk)?;
            if self.view(record.clone(), &runner).state.is_live() {
                runner.ask(&RunnerAsk::DetachDisk { disk: index })?;
            }
            keep_serials(&mut record.machine.disks);
            record.machine.disks.remove(index);
            record.disk_mib = fill_mib(&record.machine.disks);
            self.update_shrunk(&record)?;
            Ok(self.view(record, &runner))
        })
    }

    /// Lets a disk be as fast as this: at once if the VM runs, and whenever it starts.
    pub(crate) fn limit_disk(&self, id: &str, disk: &str, limits: DiskLimits) -> Result<Vm, Fault> {
        limits.check()?;
        self.change(id, |mut record, runner| {
            let index = disk_index(&record, disk)?;
            if let Some(disk) = record.machine.disks.get_mut(index) {
                disk.limits = limits;
            }
            let lives = self.view(record.clone(), &runner).state.is_live();
            let ask = RunnerAsk::LimitDisk { disk: index, limits };
            self.update_grown(&record, || if lives { runner.ask(&ask).map(drop) } else { Ok(()) })?;
            Ok(self.view(record, &runner))
        })
    }

    /// Lets a disk of a running VM grow.
    pub(crate) fn resize_disk(&self, name: &str, disk: &str, size: DiskSize) -> Result<Vm, Fault> {
        let turn = self.disks_turn(&self.find(name)?.0.id);
        let _turn = lock(&turn);
        self.change(name, |mut record, runner| {
            let index = disk_index(&record, disk)?;
            // One that its process does not know would keep the size that it has.
            self.take_back_images(&mut record, runner.dir())?;
            let view = self.view(record.clone(), &runner);
            if !view.state.is_live() {
                let disk = view.machine.disks.get(index).map(|disk| disk.path.display().to_string());
                return Err(Fault::new(
                    Kind::Conflict,
                    format!("VM {:?} is {}, and does not use its disk", view.name, view.state),
                    format!(
                        "give the disk itself the size: viv disk resize {} SIZE",
                        disk.unwrap_or_default()
                    ),
                ));
            }
            let before =
                record.machine.disks.get(index).and_then(|disk| size_of(disk).ok()).unwrap_or_default();
            let wanted = if size.more { before.saturating_add(size.bytes) } else { size.bytes };
            let more_mib = wanted.saturating_sub(before).div_ceil(1 << 20);
            record.disk_mib = record.disk_mib.saturating_add(more_mib);
            let share = self.describe(&record)?;
            runner.ask(&RunnerAsk::ResizeDisk { disk: index, size })?;
            record.disk_mib = fill_mib(&record.machine.disks);
            self.store.update(&record)?;
            share.keep();
            self.describe_less(&record);
            Ok(view)
        })
    }
}

/// The size of a disk, bytes; the error says why it cannot be read.
pub(crate) fn size_of(disk: &DiskSpec) -> Result<u64, Fault> {
    let source = Source { format: disk.format, allowed: disk.allow.clone(), ..Source::new(&disk.path, true) };
    Ok(viv_block::info(&source)?.size)
}

/// What disks may be filled with by their guest, MiB: those that are files and may be written. One that cannot be read counts
/// nothing, as its VM does not start.
pub(crate) fn fill_mib(disks: &[DiskSpec]) -> u64 {
    let is_file = |disk: &&DiskSpec| std::fs::metadata(&disk.path).is_ok_and(|found| found.is_file());
    let written = disks.iter().filter(|disk| !disk.read_only).filter(is_file);
    let bytes = written.filter_map(|disk| size_of(disk).ok()).fold(0u64, u64::saturating_add);
    bytes.div_ceil(1 << 20)
}

/// Gives each disk the serial number that it has by its place now, so that it keeps it in another one.
fn keep_serials(disks: &mut [DiskSpec]) {
    for (index, disk) in disks.iter_mut().enumerate() {
        disk.serial = Some(disk.serial_of(index));
    }
}

/// The serial number that was wanted, or one, if no disk has it.
fn free_serial(disks: &[DiskSpec], wanted: Option<&String>) -> Result<String, Fault> {
    let free = |serial: &String| !disks.iter().any(|disk| disk.serial.as_ref() == Some(serial));
    match wanted {
        Some(serial) if free(serial) => Ok(serial.clone()),
        Some(serial) => Err(Fault::new(
            Kind::Conflict,
            format!("a disk of the VM has the serial number {serial:?} already"),
            "use another one, or none: then one is made up",
        )),
        None => Ok((0..).map(|n| format!("viv-disk-{n}")).find(free).unwrap_or_default()),
    }
}

/// The disk that is called by its number, from 0.
fn disk_index(record: &VmRecord, disk: &str) -> Result<usize, Fault> {
    let count = record.machine.disks.len();
    disk.parse::<usize>().ok().filter(|index| *index < count).ok_or_else(|| {
        let text = format!("{} has no disk {disk:?}: it has {count}", record.name);
        Fault::new(Kind::NotFound, text, "count from 0; see the disks with: viv inspect")
    })
}

/// Looks up the format of a disk whose user has not said it: now, before the guest has written to it, and never again
/// (docs/decisions/032).
pub(crate) fn resolve_disk(asked: &DiskSpec) -> Result<DiskSpec, Fault> {
    let format = asked.format.map_or_else(|| viv_block::probe(&asked.path), Ok)?;
    if format == DiskFormat::Raw && !asked.read_only {
        // File systems without extended attributes have the record alone.
        let _ = viv_block::mark_raw(&asked.path);
    }
    Ok(DiskSpec { format: Some(format), ..asked.clone() })
}
