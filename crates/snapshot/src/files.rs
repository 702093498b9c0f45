//! How the files of a snapshot are called.
use std::iter;
use viv_model::Content;

/// The file of the sections.
pub const STATE: &str = "state";
/// The file of the memory.
pub const MEMORY: &str = "memory";
/// The kernel.
pub const KERNEL: &str = "kernel";
/// The disk of an image of containers, and how the files begin that it joins (docs/snapshot-format.md).
pub const IMAGE: &str = "image.vmdk";
/// See [`IMAGE`].
pub const IMAGE_PART: &str = "image.";
/// The file of a program that is no whole computer.
pub const PROGRAM: &str = "program";
/// The initial RAM disk.
pub const INITRD: &str = "initrd";
/// The disk by which cloud-init in the guest learns who it is, and what was asked of it, in snapshots as in VMs' directories.
pub const SEED: &str = "seed.iso";
/// See [`SEED`].
pub const SEED_SETTINGS: &str = "cloud-init.json";

/// The file of disk `index`.
pub fn disk_file(index: usize) -> String {
    format!("disk{index}")
}

/// The file of the checksums of a content.
pub fn sums_file(content: &str) -> String {
    format!("{content}.sums")
}

/// The file of the map of a content, or of a layer below it.
pub fn map_file(layer: &str) -> String {
    format!("{layer}.map")
}

/// The file of a layer below a content, from 1.
pub fn layer_file(content: &str, depth: usize) -> String {
    format!("{content}.{depth}")
}

/// The files of a content and of the layers below it, from the top.
pub(crate) fn names(name: &str, content: &Content) -> Vec<String> {
    let below = (1..=content.below.len()).map(|depth| layer_file(name, depth));
    iter::once(name.to_string()).chain(below).collect()
}

/// All files of a content, with their sizes: checksums, layers, maps.
pub fn content_files(name: &str, content: &Content) -> Vec<(String, u64)> {
    let bytes = iter::once((content.bytes, &content.map));
    let bytes = bytes.chain(content.below.iter().map(|layer| (layer.bytes, &layer.map)));
    let mut files =
        vec![(sums_file(name), content.bytes.div_ceil(crate::CHUNK).saturating_mul(crate::SUM_LEN as u64))];
    for (layer, (bytes, map)) in names(name, content).into_iter().zip(bytes) {
        files.extend(map.as_ref().map(|_| (map_file(&layer), viv_block::PieceMap::len_for(bytes))));
        files.push((layer, bytes));
    }
    files
}
