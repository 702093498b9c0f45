//! Snapshots as tar files, to be carried to other hosts. Holes stay holes (GNU sparse entries).
//!
//! A file from elsewhere is taken only if it is whole, and if all that its machine needs is in it: it cannot name files of this
//! host, nor reach into it.
use super::{Snapshots, compare, io_fault, new_id};
use crate::images::{Told, Watcher};
use crate::new_file::NewFile;
use crate::programs;
use crate::seed;
use crate::vms::absolute;
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use viv_api::snapshot::{Snapshot, SnapshotFile};
use viv_model::{DiskSpec, Fault, Kind, MachineSpec, Manifest, NetKind, ProjectName};
use viv_snapshot::{
    IMAGE, IMAGE_PART, INITRD, KERNEL, MANIFEST, MEMORY, PROGRAM, SEED, STATE, content_files, disk_file,
    read_manifest, write_manifest,
};

/// Most bytes of state, kernel or initial RAM disk.
const SMALL_MAX: u64 = 1 << 30;
/// Most bytes of a memory or a disk.
const CONTENT_MAX: u64 = 64 << 40;

/// The files of a snapshot behind its manifest, each with the most bytes that it may have.
fn files_of(manifest: &Manifest) -> HashMap<String, u64> {
    let mut files = HashMap::from([(STATE.to_string(), SMALL_MAX)]);
    let disks = manifest.disks.iter().map(|disk| (disk_file(disk.index), &disk.content));
    for (name, content) in std::iter::once((MEMORY.to_string(), &manifest.memory)).chain(disks) {
        let sized = content_files(&name, content).into_iter();
        files.extend(sized.map(|(name, bytes)| (name, bytes.min(CONTENT_MAX))));
    }
    files.extend(manifest.files.iter().map(|file| {
        let most = if file.name.starts_with(IMAGE_PART) { CONTENT_MAX } else { SMALL_MAX };
        (file.name.clone(), most)
    }));
    files
}

impl Snapshots {
    /// Writes a snapshot to a new tar file.
    pub(crate) fn export(
        &self,
        project: &ProjectName,
        name: &str,
        to: &SnapshotFile,
        watcher: &dyn Watcher,
    ) -> Result<Snapshot, Fault> {
        let (dir, manifest) = self.find(project, name)?;
        absolute(&to.path)?;
        let new = NewFile::begin(&to.path)?;
        let failed = |error| new.fault(error);
        let file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(new.path()).map_err(failed)?;
        let mut names: Vec<_> = files_of(&manifest).into_keys().collect();
        names.sort();
        // The manifest first: it says what comes.
        names.insert(0, MANIFEST.to_string());
        let mut told = Told::new(watcher, format!("writing {}", to.path.display()));
        let sizes =
            names.iter().map(|name| fs::metadata(dir.join(name)).map_or(0, |file| file.blocks() * 512));
        told.total = Some(sizes.sum());
        let mut passing = Passing::new(&file, told);
        let write = || {
            let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 20, &mut passing));
            tar.sparse(true);
            for name in names {
                tar.append_path_with_name(dir.join(&name), &name)?;
            }
            tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()
        };
        let written = write();
        passing.given_up()?;
        written.map_err(failed)?;
        new.finish()?;
        self.shown(&dir, &manifest)
    }

    /// Takes a snapshot from a tar file into a project.
    pub(crate) fn import(
        &self,
        project: &ProjectName,
        from: &SnapshotFile,
        watcher: &dyn Watcher,
    ) -> Result<Snapshot, Fault> {
        let path = from.path.as_path();
        absolute(path)?;
        let file = File::open(path).map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => Kind::NotFound,
                std::io::ErrorKind::PermissionDenied => Kind::Denied,
                _ => Kind::Usage,
            };
            let text = format!("cannot open {}: {error}", path.display());
            Fault::new(kind, text, "name a file that viv snapshot export has written")
        })?;
        let id = new_id()?;
        let dir = self.places.snapshots().join(&id);
        let _work = self.work_in(&dir);
        DirBuilder::new().mode(0o700).create(&dir).map_err(io_fault("make", &dir))?;
        // Without a manifest there, it is none yet.
        let beside = dir.join("import");
        let mut told = Told::new(watcher, format!("reading {}", path.display()));
        told.total = file.metadata().ok().map(|file| file.len());
        let mut passing = Passing::new(file, told);
        let unpacked = unpack(path, &mut passing, &beside);
        let taken = passing.given_up().and(unpacked).and_then(|mut manifest| {
            compare(&manifest, &beside, watcher)?;
            whole(&manifest)?;
            let name = self.name(project, from.name.as_deref().or(Some(&manifest.name)), "")?;
            (manifest.id, manifest.name) = (id, name.what.1.clone());
            manifest.project = project.clone();
            // How many a program has is kept: those who restore it say others.
            for nic in &mut manifest.machine.nics {
                nic.ports.clear();
                // Nor are its groups those of here.
                nic.groups.clear();
                match nic.net {
                    NetKind::User { .. } => nic.net = NetKind::User { host: false },
                    // What is called so here is another one.
                    NetKind::Named(_) | NetKind::Tap(_) | NetKind::Bridge(_) => {
                        (nic.net, nic.address) = (NetKind::None, None)
                    }
                    NetKind::None => {}
                }
            }
            for name in files_of(&manifest).keys() {
                fs::rename(beside.join(name), dir.join(name)).map_err(io_fault("move", &dir))?;
            }
            fs::remove_dir_all(&beside).map_err(io_fault("remove", &beside))?;
            write_manifest(&manifest, &dir, true)?;
            File::open(self.places.snapshots())
                .and_then(|all| all.sync_all())
                .map_err(io_fault("write", &dir))?;
            Ok(manifest)
        });
        let manifest = taken.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?;
        self.shown(&dir, &manifest)
    }
}

/// Unpacks what belongs to a snapshot, and nothing else.
fn unpack(path: &Path, file: impl Read, dir: &Path) -> Result<Manifest, Fault> {
    let refused = |what: String| {
        Fault::new(
            Kind::Usage,
            format!("{} is no snapshot: {what}", path.display()),
            "make one with: viv snapshot export",
        )
    };
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::StorageFull => io_fault("write", dir)(error),
        _ => refused(error.to_string()),
    };
    DirBuilder::new().mode(0o700).create(dir).map_err(io_fault("make", dir))?;
    let mut tar = tar::Archive::new(io::BufReader::new(file));
    let mut manifest = None;
    let mut expected = HashMap::from([(MANIFEST.to_string(), 1 << 20)]);
    for entry in tar.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).to_string();
        if !entry.header().entry_type().is_file() && !entry.header().entry_type().is_gnu_sparse() {
            return Err(refused(format!("{name:?} in it is no file")));
        }
        let most =
            expected.remove(&name).ok_or_else(|| refused(format!("{name:?} does not belong into it")))?;
        if entry.size() > most {
            return Err(refused(format!("{name:?} in it is too large")));
        }
        let to = dir.join(&name);
        // Zeroes become holes again.
        let mut file = Sparse::create(&to).map_err(io_fault("make", &to))?;
        io::copy(&mut entry, &mut file).map_err(broken)?;
        file.finish().map_err(io_fault("write", &to))?;
        if manifest.is_none() {
            let read = read_manifest(dir)?;
            expected = files_of(&read);
            manifest = Some(read);
        }
    }
    match (manifest, expected.keys().next()) {
        (Some(manifest), None) => Ok(manifest),
        (None, _) => Err(refused("it is empty".to_string())),
        (_, Some(missing)) => Err(refused(format!("{missing:?} is missing"))),
    }
}

/// Whether everything that the machine has is in the snapshot.
fn whole(manifest: &Manifest) -> Result<(), Fault> {
    let machine = &manifest.machine;
    let has = |name: &str| manifest.files.iter().any(|file| file.name == name);
    let missing = if let Some(program) = &manifest.program {
        let machine = MachineSpec { shares: Vec::new(), ..machine.clone() };
        programs::only_a_program(&machine, program)?;
        match has(PROGRAM) {
            true => {
                manifest.machine.shares.first().map(|share| format!("its directory {}", share.path.display()))
            }
            false => Some("its program".to_string()),
        }
    } else if !has(KERNEL) {
        Some("its kernel".to_string())
    } else if machine.initrd.is_some() && !has(INITRD) {
        Some("its initial RAM disk".to_string())
    } else {
        let kept = |index: usize| manifest.disks.iter().any(|disk| disk.index == index);
        let is_carried = |disk: &DiskSpec| seed::is_seed(disk) && has(SEED);
        let mut disks = machine.disks.iter().enumerate();
        let is_image =
            |disk: &DiskSpec| disk.read_only && disk.path.file_name() == Some(IMAGE.as_ref()) && has(IMAGE);
        let disk = disks.find(|(index, disk)| {
            !(kept(*index) || is_image(disk) || is_carried(disk)) || !disk.allow.is_empty()
        });
        disk.map(|(_, disk)| format!("its disk {}", disk.path.display()))
            .or_else(|| machine.shares.first().map(|share| format!("its directory {}", share.path.display())))
    };
    missing.map_or(Ok(()), |what| {
        Err(Fault::new(
            Kind::Usage,
            format!("the snapshot {:?} cannot go on here: {what} is not in it", manifest.name),
            "make one of a VM without read-only disks and directories of its host (-v), and export that",
        ))
    })
}

/// A file that tells how much has passed, and breaks off when that is to be given up.
struct Passing<'a, F> {
    file: F,
    told: Told<'a>,
    bytes: u64,
    given_up: Option<Fault>,
}

impl<'a, F> Passing<'a, F> {
    fn new(file: F, told: Told<'a>) -> Passing<'a, F> {
        Passing { file, told, bytes: 0, given_up: None }
    }

    fn passed(&mut self, bytes: usize) -> io::Result<usize> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.told.bytes(self.bytes).map(|()| bytes).map_err(|fault| {
            self.given_up = Some(fault);
            io::Error::other("given up")
        })
    }

    /// Why it has broken off.
    fn given_up(&mut self) -> Result<(), Fault> {
        self.given_up.take().map_or(Ok(()), Err)
    }
}

impl<F: Write> Write for Passing<'_, F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        self.passed(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl<F: Read> Read for Passing<'_, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.passed(read)
    }
}

/// A file of which zeroes are left out.
struct Sparse {
    file: File,
    length: u64,
}

impl Sparse {
    fn create(path: &Path) -> io::Result<Sparse> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Sparse { file, length: 0 })
    }

    fn finish(self) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        self.file.set_len(self.length)?;
        self.file.set_permissions(fs::Permissions::from_mode(0o400))?;
        self.file.sync_all()
    }
}

impl Write for Sparse {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        use std::os::unix::fs::FileExt;
        // Blocks of the file, not of what was written.
        let len = data.len().min(4096 - (self.length % 4096) as usize);
        let piece = data.get(..len).unwrap_or_default();
        if piece.iter().any(|byte| *byte != 0) {
            self.file.write_all_at(piece, self.length)?;
        }
        self.length += len as u64;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
