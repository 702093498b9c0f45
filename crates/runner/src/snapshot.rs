//! Snapshots from inside the VM's process: into files that the host service has opened, and back from the VM's own directory.
use crate::guest::Moment;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use viv_api::runner::{FIRST, MEMORY_BOARD, MEMORY_WANTED, RESUME, SnapshotAsk, TRANSLATED};
use viv_cell::Asker;
use viv_machine::{
    Arrival, Check, Frozen, KeepDisks, Machine, MachineIo, MachineSaved, Preserved, SavedMemory,
};
use viv_model::{Content, DiskContent, DiskSpec, Fault, Kind, MachineSpec, Manifest, SavedParts, ShareSpec};
use viv_share::link::Caller;
use viv_snapshot::{
    Base, MANIFEST, MEMORY, Ranges, Since, SnapshotError, open_memory, read_manifest, read_sections,
    write_content, write_section,
};

/// The section with the machine's state, and the version of its form.
const SECTION: (&str, u32) = ("machine", 1);
/// The version of the form of what a guest knows of a shared directory: [`share_section`].
const SHARE_VERSION: u32 = 1;

/// The section with what the guest knows of the shared directory with this tag.
fn share_section(tag: &str) -> String {
    format!("share {tag}")
}

/// Most bytes of [`FIRST`].
const FIRST_MAX: u64 = 1 << 20;

/// Where a machine that stands still is saved to.
pub struct Files {
    /// The new snapshot, and the one below it.
    ask: SnapshotAsk,
    state: File,
    memory: Target,
    /// With their numbers.
    disks: Vec<(usize, Target)>,
    /// If the memory may arrive later: its board, and the pipe with what is needed next.
    arrival: Option<(File, File)>,
    /// Who wants it.
    asker: Asker,
}

/// Chunks (64 KiB) after which it is looked whether somebody wants them still.
const ASK_EACH: u64 = 32;

/// Where a memory or a disk is saved to.
struct Target {
    file: File,
    sums: File,
    /// If only what differs from something earlier is written: the map for it, and that.
    since: Option<(File, Base)>,
}

impl Target {
    /// Writes it for as long as somebody wants it; chunks that are `known` not to have changed since are not read.
    fn write(
        &self,
        asker: &Asker,
        (bytes, ranges): (u64, &Ranges),
        known: impl Fn(u64) -> bool,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<bool>,
    ) -> io::Result<Content> {
        let Target { file, sums, since } = self;
        let mut chunks = 0_u64;
        let read = &mut |at, chunk: &mut [u8]| {
            if chunks.is_multiple_of(ASK_EACH) {
                asker.is_there()?;
            }
            chunks += 1;
            read(at, chunk)
        };
        match since {
            Some((map, base)) => Since { file, sums, map, base }.write(bytes, ranges, known, read),
            None => write_content(file, sums, bytes, ranges, read),
        }
    }
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
    /// From the files that came with the request, for the memory and each disk that may be written to.
    pub(crate) fn new(
        ask: &SnapshotAsk,
        files: Vec<File>,
        disks: &[DiskSpec],
        asker: &Asker,
    ) -> Result<Files, Fault> {
        let mut files = files.into_iter();
        let mut next = || {
            let missing = "a snapshot needs files for state, memory and each disk";
            files.next().ok_or_else(|| Fault::new(Kind::Usage, missing, "send them along"))
        };
        let state = next()?;
        let mut below = ask.below.iter().copied();
        let mut target = || {
            let (file, sums) = (next()?, next()?);
            let since = match below.next().unwrap_or(0) {
                0 => None,
                layers => {
                    let (map, sums) = (next()?, next()?);
                    let above = (1..layers).map(|_| Ok((next()?, next()?)));
                    let above = above.collect::<Result<Vec<_>, Fault>>()?;
                    Some((map, Base::new(&sums, &above, &next()?)?))
                }
            };
            Ok::<_, Fault>(Target { file, sums, since })
        };
        let memory = target()?;
        let apart = |index: &usize| ask.apart.iter().any(|apart| apart.index == *index);
        let written = disks.iter().enumerate().filter(|(index, disk)| !disk.read_only && !apart(index));
        let disks = written.map(|(index, _)| Ok((index, target()?))).collect::<Result<_, Fault>>()?;
        let arrival = if ask.arrives { Some((next()?, next()?)) } else { None };
        Ok(Files { ask: ask.clone(), state, memory, disks, arrival, asker: asker.clone() })
    }

    /// How the disks are kept.
    fn for_disks(&self) -> io::Result<KeepDisks> {
        let files = self.disks.iter().map(|(index, target)| Ok((*index, target.file.try_clone()?)));
        let images = self.ask.apart.iter().map(|apart| (apart.index, apart.above.clone()));
        Ok(KeepDisks { files: files.collect::<io::Result<_>>()?, images: images.collect() })
    }
}

/// The machine as it is now.
pub(crate) fn freeze(machine: &Machine, files: &Files) -> Result<Box<dyn Moment>, Fault> {
    let disks = files.for_disks().map_err(failed("disks"))?;
    Ok(Box::new(machine.freeze(disks, &files.ask.id)?))
}

impl Moment for Frozen {
    fn write(self: Box<Self>, spec: &MachineSpec, files: &Files) -> Result<SavedParts, Fault> {
        let Frozen { state, shares, mut memory, disks, below, disks_since } = *self;
        below.iter().try_for_each(|disk| disk.seal()).map_err(failed("disk"))?;
        let bytes = serde_json::to_vec(&state).map_err(|error| failed("state")(error.into()))?;
        let mut at = 0;
        let mut section = |name: &str, version, bytes: &[u8]| {
            let section = write_section(&files.state, name, version, at, bytes).map_err(failed("state"));
            at += bytes.len() as u64;
            section
        };
        let mut sections = vec![section(SECTION.0, SECTION.1, &bytes)?];
        for share in shares {
            let name = share_section(share.tag());
            sections.push(section(&name, SHARE_VERSION, &share.take()?)?);
        }
        let size = memory.size();
        let content = match &files.arrival {
            None => {
                let ranges = memory.in_use().map_err(failed("memory"))?;
                let read = |offset, data: &mut [u8]| memory.read(offset, data).map(|()| true);
                let content = files.memory.write(&files.asker, (size, &ranges), |_| false, read);
                // Whose pages need not be kept any longer.
                drop(memory);
                content.map_err(failed("memory"))?
            }
            Some((board, wanted)) => Content {
                bytes: size,
                data_bytes: memory.pour(&files.memory.file, board, wanted).map_err(failed("memory"))?,
                checksum: String::new(),
                map: None,
                below: Vec::new(),
            },
        };
        let followed = disks_since.is_some() && disks_since == files.ask.since;
        let each = |((index, disk), (_, target)): (&(usize, Preserved), &(usize, Target))| {
            let known = |at| followed && disk.is_unchanged(at);
            let read = |at, data: &mut [u8]| disk.read(at, data);
            let ranges = disk.ranges().map_err(failed("disk"))?;
            let content = target.write(&files.asker, (disk.size(), &ranges), known, read);
            Ok(DiskContent { index: *index, content: content.map_err(failed("disk"))? })
        };
        let disks = disks.iter().zip(&files.disks).map(each).collect::<Result<_, Fault>>()?;
        Ok(SavedParts {
            machine: spec.clone(),
            paused_ns: 0,
            frozen_file_systems: None,
            sections,
            memory: content,
            disks,
        })
    }
}

/// The machine of the snapshot in [`RESUME`]. When it is there, the snapshot is gone from the VM's directory: whatever comes
/// then, the VM never goes back to it behind its disks' back.
pub(crate) fn resume(spec: &MachineSpec, mut io: MachineIo) -> Result<Machine, Fault> {
    let dir = Path::new(RESUME);
    let manifest = read_manifest(dir)?;
    let tags: Vec<String> =
        spec.shares.iter().enumerate().map(|(index, share)| share_section(&share.tag_of(index))).collect();
    let mut known = vec![SECTION];
    known.extend(tags.iter().map(|name| (name.as_str(), SHARE_VERSION)));
    let mut sections = read_sections(dir, &manifest, &known)?.into_iter();
    let state = sections.next().unwrap_or_default();
    let saved: MachineSaved = serde_json::from_slice(&state).map_err(|error| {
        let text = format!("the state of the snapshot is not understood: {error}");
        Fault::new(Kind::Error, text, "restore it with the release that made it")
    })?;
    for ((share, state), server) in spec.shares.iter().zip(sections).zip(&mut io.shares) {
        tell(share, &state, server)?;
    }
    let arrives = manifest.memory_arrives();
    let memory = if arrives { arriving(&manifest, dir) } else { checked(&manifest, dir) }?;
    // Without its manifest it is none any more: nobody finds half of it.
    let gone = || {
        std::fs::remove_file(dir.join(MANIFEST))
            .and_then(|()| std::fs::remove_dir_all(dir))
            .map_err(failed("directory"))
    };
    if arrives {
        // What never comes is not waited for again.
        gone()?;
    }
    let machine = Machine::restore(spec, io, &saved, memory)?;
    machine.follow_disks(&manifest.id);
    if !arrives {
        gone()?;
    }
    Ok(machine)
}

/// Tells the server of a directory what the guest knows of it.
fn tell(share: &ShareSpec, state: &[u8], server: &mut UnixStream) -> Result<(), Fault> {
    let failed = |why: String| {
        let text = format!("cannot go on with the shared directory {}: {why}", share.path.display());
        Fault::new(Kind::Error, text, "restore it where the snapshot was made, or from another snapshot")
    };
    let mut caller = Caller::new(server.try_clone().map_err(|error| failed(error.to_string()))?);
    caller.load(state).map_err(|error| failed(error.to_string()))?.map_err(failed)
}

/// Where that is which was made of its code where the machine of the snapshot in [`RESUME`] comes from, if it is there.
pub(crate) fn translated() -> PathBuf {
    Path::new(RESUME).join(TRANSLATED)
}

/// The memory of a snapshot, which is compared with what was written as it is used.
fn checked(manifest: &Manifest, dir: &Path) -> Result<SavedMemory, Fault> {
    let memory = Arc::new(open_memory(manifest, dir)?);
    let file = memory.lowest().try_clone().map_err(failed("memory"))?;
    let (zeroes, above, layers) = (memory.zeroes(), memory.above().to_vec(), memory.clone());
    let read = Box::new(move |at, data: &mut [u8]| layers.read(at, data));
    let look = move |at, len| memory.verify_range(at, len).map_err(|error| error.to_string());
    Ok(SavedMemory {
        file,
        check: Some(Check::Content(Box::new(look))),
        zeroes,
        above,
        read,
        first: first(dir).unwrap_or_default(),
    })
}

/// What of it an earlier guest reached first, if that is known.
fn first(dir: &Path) -> Option<Vec<(u64, u64)>> {
    let mut bytes = Vec::new();
    File::open(dir.join(FIRST)).ok()?.take(FIRST_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The memory of a fork, which comes from the VM that it is a fork of.
fn arriving(manifest: &Manifest, dir: &Path) -> Result<SavedMemory, Fault> {
    let open = |name: &str| {
        let path = dir.join(name);
        File::open(&path).map_err(SnapshotError::io("open", &path))
    };
    let (file, board) = (open(MEMORY)?, open(MEMORY_BOARD)?);
    let path = dir.join(MEMORY_WANTED);
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let wanted = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(pipe) => Some(File::from(pipe)),
        // Nobody reads it any more: all of the memory is there, or never will be.
        Err(Errno::NXIO) => None,
        Err(error) => return Err(SnapshotError::io("open", &path)(error.into()).into()),
    };
    let arrival = Arrival::new(&board, wanted, manifest.memory.bytes)
        .map_err(SnapshotError::io("use", &dir.join(MEMORY_BOARD)))?;
    let read = Box::new(|_, _: &mut [u8]| Err(std::io::ErrorKind::Unsupported.into()));
    let zeroes = arrival.zeroes().to_vec();
    let check = Some(Check::Arrival(arrival));
    Ok(SavedMemory { file, check, zeroes, above: Vec::new(), read, first: Vec::new() })
}
