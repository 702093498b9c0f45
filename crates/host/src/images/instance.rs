//! A VM's own copy of an image: links where nobody writes, shared or sparse copies where the guest does.
use super::fault::{broken, io_fault};
use super::layers::Unpacked;
use super::store::Store;
use super::{Container, DISK_QCOW2, Image, Instance, files, kernel};
use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use viv_api::image::DEFAULT;
use viv_block::{CreateOptions, Qcow2, Source};
use viv_model::{DiskFormat, DiskSpec, Fault, FileSpec, Kind};

/// Bytes of the disk above an image of containers: as large as people expect of a container's, and nothing before it is used.
const OWN_DISK: u64 = 64 << 30;

pub(super) fn instantiate(
    store: &Store,
    image: &Image,
    files: &[FileSpec],
    vm_dir: &Path,
) -> Result<Instance, Fault> {
    if let Some(container) = &image.manifest.container {
        return containers(store, image, container, files, vm_dir);
    }
    if image.manifest.program.is_some() {
        return Err(Fault::new(
            Kind::Usage,
            format!("the image {:?} is a WebAssembly program, and no computer", image.name),
            format!("run it as one: viv run {}", image.name),
        ));
    }
    if image.manifest.initrd.is_none() && image.manifest.disks.is_empty() {
        return Err(kernel::alone(&image.name));
    }
    let kernel = match &image.manifest.kernel {
        Some(kernel) => link(&store.part(image, kernel)?, &vm_dir.join("kernel"))?,
        None if image.manifest.boots_itself() => PathBuf::new(),
        None => return Err(broken(&image.name, "it has no kernel")),
    };
    let initrd = image.manifest.initrd.as_ref();
    let initrd = initrd.map(|part| link(&store.part(image, part)?, &vm_dir.join("initrd"))).transpose()?;
    let mut disks = Vec::new();
    for (number, part) in image.manifest.disks.iter().enumerate() {
        let blob = store.part(image, part)?;
        let (path, format) = match part.media_type.as_str() {
            DISK_QCOW2 => (layer(&blob, number, vm_dir)?, DiskFormat::Qcow2),
            _ => (private(&blob, number, vm_dir)?, DiskFormat::Raw),
        };
        disks.push(DiskSpec { path, format: Some(format), ..DiskSpec::default() });
    }
    Ok(Instance { kernel, initrd, append: image.manifest.append.clone(), disks })
}

/// A copy of an image's disk that the guest writes to.
fn private(blob: &Path, number: usize, vm_dir: &Path) -> Result<PathBuf, Fault> {
    let path = vm_dir.join(format!("disk{number}.raw"));
    copy(blob, &path).map_err(|error| {
        let _ = fs::remove_file(&path);
        io_fault("copy the image's disk to", &path)(error)
    })?;
    Ok(path)
}

/// An empty layer over an image's disk, which stays in the VM's directory when the image is removed.
fn layer(blob: &Path, number: usize, vm_dir: &Path) -> Result<PathBuf, Fault> {
    let below = format!("disk{number}.image");
    let base = link(blob, &vm_dir.join(&below))?;
    let source = Source { format: Some(DiskFormat::Qcow2), ..Source::new(&base, true) };
    let size = viv_block::open(&source)?.size();
    let path = vm_dir.join(format!("disk{number}.qcow2"));
    let backing = Some((below, DiskFormat::Qcow2.name().to_string()));
    Qcow2::create(&path, &CreateOptions { backing, ..CreateOptions::new(size) })?;
    Ok(path)
}

/// Has `blob` at `path`, too. The link lives on when the image is removed. Another file system cannot have one.
fn link(blob: &Path, path: &Path) -> Result<PathBuf, Fault> {
    let _ = fs::remove_file(path);
    fs::hard_link(blob, path).or_else(|_| fs::copy(blob, path).map(drop)).map_err(io_fault("make", path))?;
    Ok(path.to_path_buf())
}

/// An image of containers: the default guest's kernel, a disk that joins the file system with the contents of its layers, and an
/// empty one above it (decision 070).
fn containers(
    store: &Store,
    image: &Image,
    container: &Container,
    files: &[FileSpec],
    vm_dir: &Path,
) -> Result<Instance, Fault> {
    let host = store.get(DEFAULT)?.filter(|host| host.manifest.container.is_none()).ok_or_else(|| {
        Fault::new(
            Kind::NotFound,
            format!(
                "the image {} has no kernel, and the default guest, whose it would be, is not built",
                image.name
            ),
            format!("build that: viv build {DEFAULT}"),
        )
    })?;
    let base = instantiate(store, &host, &[], vm_dir)?;
    let mut layers = Vec::new();
    for digest in &container.layers {
        layers.push(store.layers().get(digest)?.ok_or_else(|| {
            Fault::new(
                Kind::Error,
                format!("the image {} is damaged: layer {digest} is not there", image.name),
                format!("get it again: viv pull {}", image.name),
            )
        })?);
    }
    let disks = match files {
        [] => disks_over(&store.part(image, &container.tree)?, &layers, vm_dir)?,
        files => {
            let (tree, content) = files::with_files(&layers, files, vm_dir)?;
            disks_of(tree, &layers, Some(content), vm_dir)?
        }
    };
    let stop = container.process.stop_signal.map(|signal| format!(" viv.stop={signal}")).unwrap_or_default();
    Ok(Instance { append: format!("{BOOT}{stop}"), disks, ..base })
}

/// The file system of a VM's image, in its directory.
pub(super) const TREE: &str = "image.tree";

/// The words that have the agent start an image of containers from the disks of [`disks_over`].
pub(super) const BOOT: &str = "viv.lower=/dev/vda viv.upper=/dev/vdb";

/// The disks of a VM with an image of containers: its file system `tree` with the contents of its layers, and an empty one above.
pub(super) fn disks_over(tree: &Path, layers: &[Unpacked], vm_dir: &Path) -> Result<Vec<DiskSpec>, Fault> {
    disks_of(link(tree, &vm_dir.join(TREE))?, layers, None, vm_dir)
}

/// The same for an image with a `/file` and nothing else.
pub(crate) fn sample_disks(vm_dir: &Path) -> Result<Vec<DiskSpec>, Fault> {
    let path = vm_dir.join("file");
    fs::write(&path, "a file\n").map_err(io_fault("write", &path))?;
    let (tree, content) = files::with_files(&[], &[FileSpec { path, target: "/file".into() }], vm_dir)?;
    disks_of(tree, &[], Some(content), vm_dir)
}

/// The same for a file system that is in the directory, with more contents behind those of the layers.
fn disks_of(
    tree: PathBuf,
    layers: &[Unpacked],
    more: Option<(PathBuf, u64)>,
    vm_dir: &Path,
) -> Result<Vec<DiskSpec>, Fault> {
    let size = fs::metadata(&tree).map_err(io_fault("read", &tree))?.len();
    let mut extents = vec![(tree, size)];
    for (number, layer) in layers.iter().enumerate().filter(|(_, layer)| layer.facts.data_bytes > 0) {
        let path = vm_dir.join(format!("image.layer{number}"));
        extents.push((link(&layer.data(), &path)?, layer.facts.data_bytes));
    }
    extents.extend(more.filter(|(_, bytes)| *bytes > 0));
    let own = vm_dir.join("disk1.raw");
    let file =
        File::options().read(true).write(true).create_new(true).open(&own).map_err(io_fault("make", &own))?;
    viv_rootfs::ext4::empty(OWN_DISK, crate::names::random().map_err(io_fault("make", &own))?, "viv", &file)?;
    Ok(vec![
        joined(&vm_dir.join("image.vmdk"), &extents)?,
        DiskSpec { path: own, format: Some(DiskFormat::Raw), ..DiskSpec::default() },
    ])
}

/// A disk to be read that has these files beside it one after the other; the lengths are bytes.
pub(super) fn joined(path: &Path, extents: &[(PathBuf, u64)]) -> Result<DiskSpec, Fault> {
    fs::write(path, descriptor(extents)).map_err(io_fault("write", path))?;
    let path = path.to_path_buf();
    Ok(DiskSpec { path, format: Some(DiskFormat::Vmdk), read_only: true, ..DiskSpec::default() })
}

/// The text of a disk that has files one after the other (VMware, "Virtual Disk Format 5.0", "The Descriptor File").
fn descriptor(extents: &[(PathBuf, u64)]) -> String {
    let mut text =
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"custom\"\n\n"
            .to_string();
    for (path, bytes) in extents {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        text.push_str(&format!("RDONLY {} FLAT \"{name}\" 0\n", bytes / 512));
    }
    text
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
