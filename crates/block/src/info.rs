//! What is to be known about a disk without opening it for use.

use crate::chain::{Link, Source, links};
use crate::host_file::HostFile;
use crate::{OpenError, open};
use serde::Serialize;
use std::path::PathBuf;
use viv_model::DiskFormat;

/// What a disk image says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiskInfo {
    /// The image.
    pub path: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Bytes of the disk.
    pub size: u64,
    /// Bytes that the file takes on the host.
    pub used: u64,
    /// What only a qcow2 image has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qcow2: Option<Qcow2Info>,
    /// The disks below it, the next first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub below: Vec<DiskInfo>,
}

/// What a qcow2 image says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Qcow2Info {
    /// Version of the format.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// How compressed clusters are packed.
    pub compression: &'static str,
    /// Snapshots inside the image.
    pub snapshots: u32,
    /// It was not closed properly: its counts are not right.
    pub dirty: bool,
    /// Somebody has found it damaged.
    pub corrupt: bool,
    /// The name of the disk below, as the image has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing: Option<String>,
    /// Its format, as the image has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_format: Option<String>,
}

/// What the image and those below it say about themselves. A VM may be using it.
pub fn info(source: &Source) -> Result<DiskInfo, OpenError> {
    let mut infos = links(source)?
        .into_iter()
        .filter(|link| !link.is_part)
        .map(|link| one(link, &source.allowed))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter();
    let top = infos.next().ok_or_else(|| OpenError::Missing { path: source.path.clone() })?;
    Ok(DiskInfo { below: infos.collect(), ..top })
}

fn one(link: Link, allowed: &[PathBuf]) -> Result<DiskInfo, OpenError> {
    let Link { path, format, facts, .. } = link;
    let file = HostFile::look(&path)?;
    let used = file.allocated().map_err(|source| file.failed("measure", source))?;
    let size = match &facts {
        Some(facts) => facts.size,
        None if format == DiskFormat::Raw => file.measure()?,
        None => {
            let source =
                Source { format: Some(format), allowed: allowed.to_vec(), ..Source::new(&path, true) };
            open(&source)?.size()
        }
    };
    let qcow2 = facts.map(|facts| Qcow2Info {
        version: facts.version,
        cluster: facts.cluster,
        compression: facts.compression,
        snapshots: facts.snapshots,
        dirty: facts.dirty,
        corrupt: facts.corrupt,
        backing: facts.backing,
        backing_format: facts.backing_format,
    });
    Ok(DiskInfo { path, format, size, used, qcow2, below: Vec::new() })
}
