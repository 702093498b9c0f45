//! A VM's own copy of an image: links where nobody writes, shared or sparse copies where the guest does.
use super::fault::io_fault;
use super::store::Store;
use super::{Image, Instance, Part};
use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use viv_model::{DiskFormat, DiskSpec, Fault};

pub(super) fn instantiate(store: &Store, image: &Image, vm_dir: &Path) -> Result<Instance, Fault> {
    let link = |part: &Part, name: &str| -> Result<PathBuf, Fault> {
        let blob = store.part(image, part)?;
        let path = vm_dir.join(name);
        let _ = fs::remove_file(&path);
        // A link lives on when the image is removed. Another file system cannot have one.
        fs::hard_link(&blob, &path)
            .or_else(|_| fs::copy(&blob, &path).map(drop))
            .map_err(io_fault("make", &path))?;
        Ok(path)
    };
    let kernel = link(&image.manifest.kernel, "kernel")?;
    let initrd = image.manifest.initrd.as_ref().map(|part| link(part, "initrd")).transpose()?;
    let mut disks = Vec::new();
    for (number, part) in image.manifest.disks.iter().enumerate() {
        let blob = store.part(image, part)?;
        let path = vm_dir.join(format!("disk{number}.raw"));
        copy(&blob, &path).map_err(|error| {
            let _ = fs::remove_file(&path);
            io_fault("copy the image's disk to", &path)(error)
        })?;
        disks.push(DiskSpec { path, format: Some(DiskFormat::Raw), ..DiskSpec::default() });
    }
    Ok(Instance { kernel, initrd, append: image.manifest.append.clone(), disks })
}

/// Copies a file, as shared blocks if the file system can, else without its holes.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let target = File::create(to)?;
    if ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    let length = source.metadata()?.len();
    ftruncate(&target, length)?;
    let mut at = 0;
    while at < length {
        let start = match seek(&source, SeekFrom::Data(at)) {
            Ok(start) => start,
            // Nothing but a hole to the end (lseek(2)).
            Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let end = seek(&source, SeekFrom::Hole(start))?;
        copy_range(&source, &target, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut from, mut to) = (start, start);
    let mut in_kernel = true;
    let mut piece = Vec::new();
    while from < end {
        let wanted = usize::try_from(end - from).unwrap_or(usize::MAX).min(8 << 20);
        if in_kernel {
            match copy_file_range(source, Some(&mut from), target, Some(&mut to), wanted) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => continue,
                Err(rustix::io::Errno::XDEV | rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                    in_kernel = false;
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
        }
        piece.resize(wanted.min(1 << 20), 0);
        source.read_exact_at(&mut piece, from)?;
        target.write_all_at(&piece, from)?;
        from += piece.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_copy_is_equal_and_keeps_its_holes() {
        let dir = std::env::temp_dir().join(format!("viv-copy-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (from, to) = (dir.join("from"), dir.join("to"));
        let mut file = File::create(&from).unwrap();
        file.write_all(b"begin").unwrap();
        file.seek(io::SeekFrom::Start(40 << 20)).unwrap();
        file.write_all(b"middle").unwrap();
        file.set_len(64 << 20).unwrap();
        drop(file);
        copy(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(fs::metadata(&to).unwrap().blocks() * 512 < 4 << 20, "the holes were filled");
        fs::write(&from, "").unwrap();
        copy(&from, &to).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().len(), 0);
        fs::remove_dir_all(dir).unwrap();
    }
}
