//! Makes new images.

use super::check::rebuild;
use super::header::{Header, L1_MAX};
use crate::OpenError;
use crate::host_file::HostFile;
use crate::raw::check_size;
use std::io;
use std::path::Path;

/// Cluster sizes that we make: 4 KiB to 2 MiB.
const CLUSTER_MIN: u64 = 4096;
const CLUSTER_MAX: u64 = 2 << 20;

/// How a new image is to be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Bytes of a cluster, a power of two from 4 KiB to 2 MiB.
    pub cluster: u64,
    /// Name (relative to the image) and format of the disk below it.
    pub backing: Option<(String, String)>,
}

impl CreateOptions {
    /// A disk of `size` bytes of zeroes, with clusters of 64 KiB.
    pub fn new(size: u64) -> CreateOptions {
        CreateOptions { size, cluster: 64 << 10, backing: None }
    }
}

/// Writes an empty image into a new file.
pub(crate) fn create(path: &Path, options: &CreateOptions) -> Result<HostFile, OpenError> {
    let refused = |text: String| OpenError::BadSize { path: path.to_owned(), text };
    check_size(options.size).map_err(|error| refused(error.to_string()))?;
    if !options.cluster.is_power_of_two() || !(CLUSTER_MIN..=CLUSTER_MAX).contains(&options.cluster) {
        return Err(refused(format!(
            "a cluster cannot have {} bytes: 4K to 2M, a power of two",
            options.cluster
        )));
    }
    let span = options.cluster * (options.cluster / 8);
    let entries = options.size.div_ceil(span);
    if entries * 8 > L1_MAX {
        let text = format!("with clusters of {} bytes a disk cannot be so large", options.cluster);
        return Err(refused(text));
    }
    let file = HostFile::create(path)?;
    write(&file, options, entries as u32).map_err(|source| {
        let _ = std::fs::remove_file(path);
        file.failed("write", source)
    })?;
    Ok(file)
}

fn write(file: &HostFile, options: &CreateOptions, entries: u32) -> io::Result<()> {
    let mut header = Header::new(options.size, options.cluster.trailing_zeros(), entries);
    if let Some((name, format)) = &options.backing {
        header.backing = Some(name.clone());
        header.backing_format = Some(format.clone());
    }
    let end = header.l1_offset + (u64::from(entries) * 8).next_multiple_of(options.cluster);
    file.set_size(end)?;
    rebuild(file, &mut header)?;
    let bytes = header.encode().map_err(|text| io::Error::new(io::ErrorKind::InvalidInput, text))?;
    file.write(0, &bytes)?;
    file.sync()
}
