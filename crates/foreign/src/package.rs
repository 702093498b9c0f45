//! OVF packages: in one archive (OVA), or a description with its files beside it; with a manifest, whose digests are compared.
use crate::archive::{Archive, spill};
use crate::checksums::{self, Checksum, Sum};
use crate::fault::{damaged, failed};
use crate::machine::{Machine, shown};
use crate::ovf::{self, DISK_MAX, Reference};
use crate::source::{Targets, Watcher, copy_file, one_of};
use crate::xml::TEXT_MAX;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use viv_block::Source;
use viv_model::{Fault, Kind};
use viv_rootfs::Decompress;

/// What a compressed disk may have beside its contents: the tables of its format.
const TABLES: u64 = 64 << 20;

/// Where a package's files are.
pub(crate) enum Place {
    /// In an archive.
    Archive(Archive),
    /// In a directory.
    Directory(PathBuf),
}

/// A package.
pub(crate) struct Package {
    place: Place,
    references: Vec<Reference>,
    checksums: Vec<Checksum>,
}

/// The package whose description is in an archive.
pub(crate) fn of_archive(archive: Archive, what: &str) -> Result<(Machine, Package), Fault> {
    let end = |name: &str, end: &str| name.to_ascii_lowercase().ends_with(end);
    let all: Vec<String> = archive.names().filter(|name| end(name, ".ovf")).map(str::to_string).collect();
    let name = match &all[..] {
        [name] => name.clone(),
        [] => {
            let why =
                "it is an archive without a machine's description: no .ovf, and no metadata.json of Vagrant";
            return Err(damaged(what, why));
        }
        _ => return Err(damaged(what, "it has more than one description (.ovf)")),
    };
    let manifest = archive.names().find(|name| end(name, ".mf")).map(str::to_string);
    let certificate = archive.names().any(|name| end(name, ".cert"));
    let text = archive.bytes(&name).ok_or_else(|| damaged(what, "its description is too long"))?;
    let sums = match manifest {
        Some(name) => {
            let text = archive.bytes(&name).ok_or_else(|| damaged(&name, "it is too long"))?;
            checksums::parse(&String::from_utf8_lossy(text), &name)?
        }
        None => Vec::new(),
    };
    let (mut machine, references) = described(text, &name, &sums, what)?;
    if certificate {
        machine.leave("the package's signature (.cert): its digests are compared, the certificate is not");
    }
    if let Some(missing) = references.iter().find(|reference| !archive.has(&reference.file)) {
        return Err(damaged(what, format!("its file {:?} is not in it", shown(&missing.file))));
    }
    Ok((machine, Package { place: Place::Archive(archive), references, checksums: sums }))
}

/// The package whose description is the file at `path`, and `text`.
pub(crate) fn beside(path: &Path, text: &[u8]) -> Result<(Machine, Package), Fault> {
    let what = path.display().to_string();
    let directory = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let manifest = path.with_extension("mf");
    let sums = match File::open(&manifest) {
        Ok(file) => {
            let mut text = String::new();
            file.take(TEXT_MAX).read_to_string(&mut text).map_err(failed("read", &manifest))?;
            checksums::parse(&text, &manifest.display().to_string())?
        }
        Err(_) => Vec::new(),
    };
    let (mut machine, references) = described(text, &name, &sums, &what)?;
    if path.with_extension("cert").exists() {
        machine.leave("the package's signature (.cert): its digests are compared, the certificate is not");
    }
    for reference in &references {
        within(directory, &reference.file, &what)?;
    }
    Ok((machine, Package { place: Place::Directory(directory.to_owned()), references, checksums: sums }))
}

fn described(
    text: &[u8],
    name: &str,
    sums: &[Checksum],
    what: &str,
) -> Result<(Machine, Vec<Reference>), Fault> {
    if let Some(checksum) = sums.iter().find(|sum| sum.file == name) {
        let mut sum = Sum::new(checksum);
        sum.update(text);
        sum.check(checksum)?;
    }
    let text = std::str::from_utf8(text).map_err(|_| damaged(what, "its description is not in UTF-8"))?;
    let found = ovf::parse(text, &shown(name))?;
    let mut machine = found.machine;
    if sums.is_empty() {
        machine.leave("checksums: the package has no manifest (.mf) to compare its files with");
    }
    Ok((machine, found.references))
}

/// A file of the package's directory, which it does not lead out of by a link.
fn within(directory: &Path, name: &str, what: &str) -> Result<PathBuf, Fault> {
    let path = directory.join(name);
    let real = path.canonicalize().map_err(|error| {
        Fault::new(
            Kind::NotFound,
            format!("{what} names the file {}: {error}", shown(&path.display().to_string())),
            "put its disks beside the description",
        )
    })?;
    let root = directory.canonicalize().map_err(failed("find", directory))?;
    match real.starts_with(root) {
        true => Ok(real),
        false => Err(damaged(what, format!("its file {:?} is outside the package", shown(name)))),
    }
}

impl Package {
    /// Writes its disks.
    pub(crate) fn write(
        &self,
        machine: &Machine,
        scratch: &Path,
        targets: Targets<'_>,
        watcher: Watcher<'_>,
    ) -> Result<(), Fault> {
        match &self.place {
            Place::Archive(archive) => archive.each(&mut |name, size, content| {
                let Some(first) = self.references.iter().position(|reference| reference.file == name) else {
                    return Ok(());
                };
                check_size(self.references.get(first), size)?;
                let packed = scratch.join(format!("packed{first}"));
                spill(content, (name, Some(size), size), &packed, self.checksum(name), watcher)?;
                self.disks(machine, name, &packed, scratch, targets, watcher)?;
                std::fs::remove_file(&packed).map_err(failed("remove", &packed))
            }),
            Place::Directory(directory) => {
                let mut done: Vec<&str> = Vec::new();
                for reference in &self.references {
                    if done.contains(&reference.file.as_str()) {
                        continue;
                    }
                    done.push(&reference.file);
                    let what = directory.display().to_string();
                    let path = within(directory, &reference.file, &what)?;
                    let size = std::fs::metadata(&path).map_err(failed("read", &path))?.len();
                    check_size(Some(reference), size)?;
                    if let Some(checksum) = self.checksum(&reference.file) {
                        compare(&path, checksum, watcher)?;
                    }
                    self.disks(machine, &reference.file, &path, scratch, targets, watcher)?;
                }
                Ok(())
            }
        }
    }

    fn checksum(&self, name: &str) -> Option<&Checksum> {
        self.checksums.iter().find(|sum| sum.file == name)
    }

    /// Writes the disks that are in the file `name`, which is at `path`.
    fn disks(
        &self,
        machine: &Machine,
        name: &str,
        path: &Path,
        scratch: &Path,
        targets: Targets<'_>,
        watcher: Watcher<'_>,
    ) -> Result<(), Fault> {
        for (number, reference) in self.references.iter().enumerate().filter(|(_, it)| it.file == name) {
            let size = machine.disks.get(number).and_then(|disk| disk.size);
            if !reference.gzip {
                copy_file(&Source::new(path, true), (number, name, size), targets, watcher)?;
                continue;
            }
            let limit = size.map_or(DISK_MAX, |size| size.saturating_add(size / 64).saturating_add(TABLES));
            let plain = scratch.join(format!("plain{number}"));
            let mut content = Decompress::new(File::open(path).map_err(failed("read", path))?)?;
            spill(&mut content, (name, None, limit), &plain, None, watcher)?;
            copy_file(&Source::new(&plain, true), (number, name, size), targets, watcher)?;
            std::fs::remove_file(&plain).map_err(failed("remove", &plain))?;
        }
        Ok(())
    }
}

/// Compares a file's size with what its description says. Of one that is compressed it says one or the other.
fn check_size(reference: Option<&Reference>, size: u64) -> Result<(), Fault> {
    match reference.and_then(|reference| Some((reference, reference.bytes?))) {
        Some((reference, bytes)) if bytes != size && !reference.gzip => {
            let why = format!("it has {size} bytes, and its description says {bytes}");
            Err(damaged(shown(&reference.file), why))
        }
        _ => Ok(()),
    }
}

/// Compares a file with its checksum.
fn compare(path: &Path, checksum: &Checksum, watcher: Watcher<'_>) -> Result<(), Fault> {
    let mut file = File::open(path).map_err(failed("read", path))?;
    let total = file.metadata().map_err(failed("read", path))?.len();
    let step = format!("comparing {} with its digest", one_of(path));
    let (mut sum, mut piece, mut done) = (Sum::new(checksum), vec![0; 1 << 20], 0u64);
    loop {
        let read = file.read(&mut piece).map_err(failed("read", path))?;
        if read == 0 {
            return sum.check(checksum);
        }
        sum.update(piece.get(..read).unwrap_or_default());
        done = done.saturating_add(read as u64);
        watcher(&step, done, Some(total))?;
    }
}
