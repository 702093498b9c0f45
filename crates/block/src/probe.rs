//! What format an image has, from how it begins. Never asked about a disk that is known to be raw: a guest writes
//! what it likes into its first sector (docs/decisions/032).

use crate::fields::{be32, be64, le32};
use crate::host_file::HostFile;
use crate::{OpenError, qcow2};
use std::io;
use std::path::Path;
use viv_model::DiskFormat;

/// Extended attribute of a file that is a raw disk, whatever is in it.
const ATTRIBUTE: &str = "user.viv.format";
/// "KDMV" begins a sparse extent of VMDK; a descriptor is text.
const VMDK_SPARSE: u32 = 0x4b44_4d56;
const VMDK_DESCRIPTOR: &[u8] = b"# Disk DescriptorFile";
/// At 64 of a VDI.
const VDI: u32 = 0xbeda_107f;
const VHDX: &[u8] = b"vhdxfile";
/// In the last sector of a VHD, and in the first unless its size is fixed.
const VHD: u64 = 0x636f_6e65_6374_6978; // "conectix"

/// The format of the file at `path`. A raw disk that a VM has written to was marked by [`mark_raw`], and stays raw.
pub fn probe(path: &Path) -> Result<DiskFormat, OpenError> {
    probe_file(&HostFile::look(path)?)
}

pub(crate) fn probe_file(file: &HostFile) -> Result<DiskFormat, OpenError> {
    if is_marked_raw(file.path()) {
        return Ok(DiskFormat::Raw);
    }
    let failed = |source| file.failed("read", source);
    let head = file.read_vec(0, 512).map_err(failed)?;
    let magic = be32(&head, 0);
    Ok(match () {
        () if magic == qcow2::MAGIC => DiskFormat::Qcow2,
        () if magic == VMDK_SPARSE || head.starts_with(VMDK_DESCRIPTOR) => DiskFormat::Vmdk,
        () if le32(&head, 64) == VDI && head.starts_with(b"<<<") => DiskFormat::Vdi,
        () if head.starts_with(VHDX) => DiskFormat::Vhdx,
        () if be64(&head, 0) == VHD => DiskFormat::Vhd,
        () => {
            let size = file.measure()?;
            let tail = file.read_vec(size.saturating_sub(512), 512).map_err(failed)?;
            if be64(&tail, 0) == VHD { DiskFormat::Vhd } else { DiskFormat::Raw }
        }
    })
}

/// Marks a file as raw for good, where its file system can: a guest is about to write to it.
pub fn mark_raw(path: &Path) -> io::Result<()> {
    let flags = rustix::fs::XattrFlags::empty();
    Ok(rustix::fs::setxattr(path, ATTRIBUTE, b"raw", flags)?)
}

fn is_marked_raw(path: &Path) -> bool {
    let mut value = [0u8; 8];
    rustix::fs::getxattr(path, ATTRIBUTE, &mut value).is_ok_and(|len| value.get(..len) == Some(b"raw"))
}
