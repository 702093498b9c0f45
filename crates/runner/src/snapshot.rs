//! Snapshots from inside the VM's process: into files that the host service has opened, and back from the VM's own directory.
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use viv_api::runner::RESUME;
use viv_machine::{Disk, GuestMemory, Machine, MachineIo, MachineSaved};
use viv_model::{Accel, DiskContent, DiskSpec, Fault, Kind, MachineSpec, SavedParts, Section};
use viv_snapshot::{
    MEMORY, SnapshotError, read_manifest, read_section, verify_machine, write_content, write_section,
};

/// The section with the machine's state, and the version of its form.
const SECTION: (&str, u32) = ("machine", 1);
/// How much of a disk is looked at at once for what is not zero.
const EXTENT: u64 = 1 << 30;

/// Where a machine that stands still is saved to.
pub struct Files {
    state: File,
    memory: [File; 2],
    /// With their numbers.
    disks: Vec<(usize, [File; 2])>,
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> Fault {
    move |error| {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull => Kind::NoCapacity,
            _ => Kind::Error,
        };
        let text = format!("cannot save the VM's {what}: {error}");
        Fault::new(kind, text, "see that there is space for it, for example: viv snapshot rm")
    }
}

impl Files {
    /// From the files that came with the request; each disk that may be written to has two.
    pub(crate) fn new(files: Vec<File>, disks: &[DiskSpec]) -> Result<Files, Fault> {
        let mut files = files.into_iter();
        let mut next = || {
            let missing = "a snapshot needs files for state, memory and each disk";
            files.next().ok_or_else(|| Fault::new(Kind::Usage, missing, "send them along"))
        };
        let (state, memory) = (next()?, [next()?, next()?]);
        let written = disks.iter().enumerate().filter(|(_, disk)| !disk.read_only);
        let disks =
            written.map(|(index, _)| Ok((index, [next()?, next()?]))).collect::<Result<_, Fault>>()?;
        Ok(Files { state, memory, disks })
    }

    /// Writes everything.
    pub(crate) fn write(
        &self,
        state: &MachineSaved,
        memory: &GuestMemory,
        disks: &[Arc<dyn Disk>],
    ) -> Result<(Vec<Section>, viv_model::Content, Vec<DiskContent>), Fault> {
        let bytes = serde_json::to_vec(state).map_err(|error| failed("state")(error.into()))?;
        let section = write_section(&self.state, SECTION.0, SECTION.1, 0, &bytes).map_err(failed("state"))?;
        let ranges = memory.touched().map_err(failed("memory"))?;
        let [file, sums] = &self.memory;
        let content = write_content(file, sums, memory.size(), &ranges, &mut |offset, data| {
            memory.read_offset(offset, data).map_err(std::io::Error::other)
        });
        let content = content.map_err(failed("memory"))?;
        let each = |(index, [file, sums]): &(usize, [File; 2])| {
            let gone = || Fault::new(Kind::Conflict, "a disk went while the VM was saved", "try again");
            let disk = disks.get(*index).ok_or_else(gone)?;
            let ranges = data_of(&**disk).map_err(failed("disk"))?;
            let content =
                write_content(file, sums, disk.size(), &ranges, &mut |at, data| disk.read(at, data));
            Ok(DiskContent { index: *index, content: content.map_err(failed("disk"))? })
        };
        let disks = self.disks.iter().map(each).collect::<Result<_, Fault>>()?;
        Ok((vec![section], content, disks))
    }
}

/// Where a disk may have something else than zeroes.
fn data_of(disk: &dyn Disk) -> std::io::Result<Vec<(u64, u64)>> {
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < disk.size() {
        let extent = disk.extent(at, EXTENT.min(disk.size() - at))?;
        let len = extent.len.max(1);
        if !extent.zero {
            ranges.push((at, len));
        }
        at += len;
    }
    Ok(ranges)
}

/// Saves a machine that stands still since `since`.
pub(crate) fn save(
    machine: &Machine,
    spec: &MachineSpec,
    files: &Files,
    since: Instant,
) -> Result<SavedParts, Fault> {
    machine.save(|state, memory, disks| {
        let (sections, memory, disks) = files.write(state, memory, disks)?;
        let machine = MachineSpec { accel: machine.accel(), ..spec.clone() };
        let paused_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(SavedParts { machine, paused_ns, sections, memory, disks })
    })
}

/// The machine of the snapshot in [`RESUME`]. When it is there, the snapshot is gone from the VM's directory: whatever comes
/// then, the VM never goes back to it behind its disks' back.
pub(crate) fn resume(spec: &MachineSpec, io: MachineIo) -> Result<Machine, Fault> {
    let dir = Path::new(RESUME);
    let manifest = read_manifest(dir)?;
    if spec.accel != Accel::Auto && spec.accel != manifest.machine.accel {
        let text =
            format!("the snapshot was made on {} and cannot go on on {}", manifest.machine.accel, spec.accel);
        return Err(Fault::new(Kind::Conflict, text, "restore it on the same kind of processor (viv info)"));
    }
    verify_machine(&manifest, dir)?;
    let state = read_section(dir, &manifest, SECTION.0, SECTION.1)?;
    let saved: MachineSaved = serde_json::from_slice(&state).map_err(|error| {
        let text = format!("the state of the snapshot is not understood: {error}");
        Fault::new(Kind::Error, text, "restore it with the release that made it")
    })?;
    let path = dir.join(MEMORY);
    let memory = File::open(&path).map_err(|error| Fault::from(SnapshotError::io("open", &path)(error)))?;
    let machine =
        Machine::restore(&MachineSpec { accel: manifest.machine.accel, ..spec.clone() }, io, &saved, memory)?;
    std::fs::remove_dir_all(dir).map_err(failed("directory"))?;
    Ok(machine)
}
