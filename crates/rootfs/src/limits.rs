//! How much of a layer we take.

/// Bounds of one layer, against archives that are made to fill a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the archive, decompressed.
    pub bytes: u64,
    /// Entries of the archive.
    pub entries: usize,
    /// Bytes of a path or of a link's target.
    pub path_len: usize,
    /// Bytes of all extended attributes of an entry, names and values.
    pub xattr_bytes: usize,
}

impl Default for Limits {
    /// More than any image that people run: 256 GiB in 2 million entries, and Linux' own bounds of paths (PATH_MAX, limits.h).
    fn default() -> Limits {
        Limits { bytes: 256 << 30, entries: 2_000_000, path_len: 4095, xattr_bytes: 128 << 10 }
    }
}
