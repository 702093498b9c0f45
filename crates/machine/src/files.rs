//! What the machine reads from the host before it starts: kernel, initrd, and how much memory there is.
use crate::layout::MIB;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use viv_block::Source;
use viv_model::{DiskSpec, Fault, Kind, Room};

/// Largest file that is taken as a kernel or an initrd.
const FILE_MAX: u64 = 4 << 30;

/// The files of the disks below a disk, which are only read.
pub fn files_below(disk: &DiskSpec) -> Result<Vec<PathBuf>, Fault> {
    Ok(viv_block::files(&Source::of(disk))?.into_iter().skip(1).collect())
}

/// Reads the file that the user named as the machine's `what`.
pub(crate) fn read(path: &Path, what: &str) -> Result<Vec<u8>, Fault> {
    let failed = |error: io::Error| {
        let name = path.display();
        match error.kind() {
            io::ErrorKind::NotFound => Fault::new(
                Kind::NotFound,
                format!("the {what} {name} does not exist"),
                format!("check the path given with --{what}"),
            ),
            io::ErrorKind::PermissionDenied => Fault::new(
                Kind::Denied,
                format!("the {what} {name} may not be read by this user"),
                format!("make it readable: sudo chmod a+r {name}"),
            ),
            _ => Fault::new(
                Kind::Error,
                format!("cannot read the {what} {name}: {error}"),
                format!("use --{what} with a readable file"),
            ),
        }
    };
    let meta = std::fs::metadata(path).map_err(failed)?;
    if !meta.is_file() {
        let is = if meta.is_dir() { "a directory" } else { "not a regular file" };
        return Err(Fault::new(
            Kind::Usage,
            format!("the {what} {} is {is}", path.display()),
            format!("use --{what} with a file"),
        ));
    }
    if meta.len() > FILE_MAX {
        return Err(Fault::new(
            Kind::Usage,
            format!("the {what} {} has {} MiB, more than any", path.display(), meta.len() / MIB),
            format!("use --{what} with the right file"),
        ));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes)).map_err(failed)?;
    Ok(bytes)
}

/// Refuses a machine with more memory than there is.
pub(crate) fn check_memory(mib: u64) -> Result<(), Fault> {
    match Room::of(|path| std::fs::read_to_string(path).ok()) {
        Some(room) if mib > room.available_mib => Err(Fault::new(
            Kind::NoCapacity,
            format!(
                "the machine wants {mib} MiB of memory and {} has {} MiB free",
                room.owner(),
                room.available_mib
            ),
            format!("use --memory with at most {}M, or end other programs", room.available_mib / 16 * 15),
        )),
        _ => Ok(()),
    }
}
