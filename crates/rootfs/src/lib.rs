//! Root file systems out of the layers of container images, without root, mounts or loop devices.
//!
//! ```text
//!  layer (gzip, zstd, tar) ─ Decompress ─ unpack ─► data blob: contents of files, each at a block      ┐ kept once, shared
//!                                              └──► Layer: entries, attributes, where contents are     ┘ between images
//!  Layer 1 … n ─ Tree::merge ─► Tree ─ write_erofs ─► metadata of one EROFS, for this image
//!
//!  the guest's disk = [metadata][data blob 1][data blob 2]…      ext4::empty ─► the disk for what the guest changes
//! ```
//! What a layer names is only ever put into the tree in memory: nothing here opens a path that an archive chose. Start reading
//! at [`unpack`], then `merge.rs`, then `erofs/mod.rs`.
#![forbid(unsafe_code)]

mod blob;
mod decompress;
mod erofs;
pub mod ext4;
mod fault;
mod index;
mod layer;
mod limits;
mod merge;
mod pack;
mod path;
mod tar;
mod tree;
mod upper;

pub use decompress::Decompress;
pub use layer::{Attributes, Entry, Extent, Kind, Layer, unpack};
pub use limits::Limits;
pub use pack::{pack, pack_gzip};
pub use tar::{Mtime, Watcher};
pub use tree::{Content, Dentry, Inode, ROOT, Tree};
pub use upper::upper;

/// Bytes of a block: of the file systems, and what contents in data blobs are aligned to.
pub const BLOCK: usize = 4096;
