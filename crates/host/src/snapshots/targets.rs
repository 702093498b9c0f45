//! The files of a new snapshot, and what lies below them if it has only what differs from an earlier one.
use super::make::Purpose;
use super::{Snapshots, io_fault, link};
use crate::apart::Apart;
use crate::store::VmRecord;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use viv_api::runner::{MEMORY_BOARD, MEMORY_WANTED, SnapshotAsk};
use viv_model::{Content, Fault, Kind, Layer, Manifest, SavedParts};
use viv_snapshot::{LAYERS_MAX, MEMORY, STATE, disk_file, layer_file, map_file, sums_file};

/// Most files that go to a VM's process at once (SCM_MAX_FD of unix(7)).
const FILES_MAX: usize = 253;

/// Where a VM is saved to.
pub(super) struct Targets {
    /// What its process is asked for.
    pub(super) ask: SnapshotAsk,
    /// All files that its process takes, in order.
    pub(super) files: Vec<File>,
    /// Those of them that are new.
    pub(super) new: Vec<File>,
    /// The layers below the memory and each disk that can be written.
    below: Vec<Vec<Layer>>,
}

impl Snapshots {
    /// The snapshot that a new one of the VM can be the difference from.
    pub(super) fn base_of(
        &self,
        record: &VmRecord,
        purpose: Purpose,
        full: bool,
    ) -> Option<(PathBuf, Manifest)> {
        // What many come from is whole: they need not put it together each time.
        // What a program has in memory is small, and of another size each time.
        if full || purpose != Purpose::Keep || record.program.is_some() {
            return None;
        }
        let (dir, manifest) = self.by_id(record.snapshot.as_deref()?).ok()?;
        let (was, is) = (&manifest.machine, &record.machine);
        let same_memory = (was.memory_mib, was.memory_max_mib) == (is.memory_mib, is.memory_max_mib);
        let contents =
            || std::iter::once(&manifest.memory).chain(manifest.disks.iter().map(|disk| &disk.content));
        let low = contents().all(|content| content.below.len() + 1 < LAYERS_MAX);
        let files = contents().map(|content| 2 * content.below.len() + 5).sum::<usize>();
        let few = 1 + files + 2 * record.machine.disks.len() <= FILES_MAX;
        (same_memory && low && few).then_some((dir, manifest))
    }
}

impl Targets {
    /// Makes them in a new directory, empty, above those of a snapshot in its own.
    pub(super) fn make(
        dir: &Path,
        id: &str,
        record: &VmRecord,
        base: Option<(PathBuf, Manifest)>,
        purpose: Purpose,
        apart: &[Apart],
    ) -> Result<Targets, Fault> {
        if let Some(base) = base {
            if let Ok(targets) = Targets::above(dir, id, record, Some(&base), purpose, apart) {
                return Ok(targets);
            }
            // If it was removed meanwhile, this one stands alone; if not, it says better what is the matter.
            let _ = fs::remove_dir_all(dir);
        }
        Targets::above(dir, id, record, None, purpose, apart)
    }

    fn above(
        dir: &Path,
        id: &str,
        record: &VmRecord,
        base: Option<&(PathBuf, Manifest)>,
        purpose: Purpose,
        apart: &[Apart],
    ) -> Result<Targets, Fault> {
        DirBuilder::new().mode(0o700).create(dir).map_err(io_fault("make", dir))?;
        let ask = SnapshotAsk {
            id: id.to_string(),
            since: base.map(|(_, manifest)| manifest.id.clone()),
            below: Vec::new(),
            arrives: purpose.passes(),
            apart: apart.iter().map(Apart::ask).collect(),
            drop_sockets: false,
        };
        let mut targets = Targets { ask, files: Vec::new(), new: Vec::new(), below: Vec::new() };
        targets.create(&dir.join(STATE))?;
        targets.content(dir, MEMORY, base.map(|(from, manifest)| (from.as_path(), &manifest.memory)))?;
        for (index, disk) in record.machine.disks.iter().enumerate() {
            let is_apart = targets.ask.apart.iter().any(|apart| apart.index == index);
            if !disk.read_only && !is_apart {
                let below = base.and_then(|(from, manifest)| {
                    let disk = manifest.disks.iter().find(|disk| disk.index == index);
                    disk.map(|disk| (from.as_path(), &disk.content))
                });
                targets.content(dir, &disk_file(index), below)?;
            }
        }
        if targets.ask.arrives {
            targets.create(&dir.join(MEMORY_BOARD))?;
            targets.listen(&dir.join(MEMORY_WANTED))?;
        }
        Ok(targets)
    }

    /// A pipe by which the VM's process is told something.
    fn listen(&mut self, path: &Path) -> Result<(), Fault> {
        let mode = Mode::RUSR | Mode::WUSR;
        let made = mknodat(CWD, path, FileType::Fifo, mode, 0);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe = made.and_then(|()| open(path, flags, Mode::empty()));
        self.files.push(pipe.map_err(|error| io_fault("make", path)(error.into()))?.into());
        Ok(())
    }

    fn create(&mut self, path: &Path) -> Result<(), Fault> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(io_fault("make", path))?;
        self.new.push(file.try_clone().map_err(io_fault("open", path))?);
        self.files.push(file);
        Ok(())
    }

    fn pass(&mut self, path: &Path) -> Result<(), Fault> {
        self.files.push(File::open(path).map_err(io_fault("open", path))?);
        Ok(())
    }

    /// The files of a content, with links to the layers below.
    fn content(&mut self, dir: &Path, name: &str, base: Option<(&Path, &Content)>) -> Result<(), Fault> {
        self.create(&dir.join(name))?;
        self.create(&dir.join(sums_file(name)))?;
        let mut below = Vec::new();
        if let Some((from, content)) = base {
            self.create(&dir.join(map_file(name)))?;
            self.pass(&from.join(sums_file(name)))?;
            below.push(Layer { bytes: content.bytes, map: content.map.clone() });
            below.extend(content.below.iter().cloned());
            for (depth, layer) in below.iter().enumerate() {
                let was = if depth == 0 { name.to_string() } else { layer_file(name, depth) };
                let is = layer_file(name, depth + 1);
                link(&from.join(&was), &dir.join(&is))?;
                self.pass(&dir.join(&is))?;
                if layer.map.is_some() {
                    link(&from.join(map_file(&was)), &dir.join(map_file(&is)))?;
                    self.pass(&dir.join(map_file(&is)))?;
                }
            }
        }
        self.ask.below.push(below.len());
        self.below.push(below);
        Ok(())
    }

    /// Says of what was written what lies below it.
    pub(super) fn complete(&self, parts: SavedParts) -> Result<SavedParts, Fault> {
        let SavedParts { mut memory, mut disks, .. } = parts;
        let contents = std::iter::once(&mut memory).chain(disks.iter_mut().map(|disk| &mut disk.content));
        for (content, below) in contents.zip(&self.below) {
            content.below = below.clone();
        }
        if memory.below.last().is_some_and(|lowest| lowest.bytes != memory.bytes) {
            let text = "the VM has not as much memory as at its last snapshot";
            return Err(Fault::new(Kind::Conflict, text, "make a full one: viv snapshot create --full"));
        }
        Ok(SavedParts { memory, disks, ..parts })
    }
}
