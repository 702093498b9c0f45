//! A layer's entries as a file, so that its archive is read only once.
//!
//! ```text
//!  8 bytes   "VIVLAYER"
//!  u32       version of the format: 1
//!  u64       blocks of the data blob
//!  u64       entries; then each:
//!     bytes     path
//!     u8        kind: 0 file, 1 directory, 2 symbolic link, 3 hard link, 4 character device, 5 block device, 6 pipe,
//!               7 whiteout, 8 opaque whiteout
//!     file:     u64 size, u32 extents; each: u64 from, u64 at, u64 blocks
//!     links:    bytes target
//!     devices:  u32 major, u32 minor
//!     0, 1, 2, 4, 5, 6: u16 mode, u32 uid, u32 gid, i64 mtime, u32 its nanoseconds, u32 attributes; each: bytes name, bytes value
//!  32 bytes  BLAKE3 of all before
//! ```
//! Numbers are little-endian; "bytes" is a u32 length and as many bytes. Attributes stand in the order of their names.
use crate::BLOCK;
use crate::blob::{BLOCKS_MAX, granule};
use crate::fault::damaged;
use crate::layer::{Attributes, Entry, Extent, Kind, Layer};
use crate::tar::Mtime;
use std::collections::BTreeMap;
use viv_model::Fault;

const MAGIC: &[u8; 8] = b"VIVLAYER";
const VERSION: u32 = 1;
/// Bytes of the checksum.
const SUM: usize = 32;
/// Bytes of the shortest entry: an opaque whiteout of the root.
const ENTRY_MIN: usize = 5;

impl Layer {
    /// The layer as a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(64 * self.entries.len());
        out.extend_from_slice(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(self.data_blocks.to_le_bytes());
        out.extend((self.entries.len() as u64).to_le_bytes());
        for entry in &self.entries {
            put(&mut out, &entry.path);
            put_entry(&mut out, entry);
        }
        let sum = blake3::hash(&out);
        out.extend_from_slice(sum.as_bytes());
        out
    }

    /// The layer of a file that [`Layer::to_bytes`] made.
    pub fn from_bytes(bytes: &[u8]) -> Result<Layer, Fault> {
        let (content, sum) = bytes
            .split_last_chunk::<SUM>()
            .filter(|(content, _)| content.starts_with(MAGIC))
            .ok_or_else(|| damaged("its index is none"))?;
        if blake3::hash(content).as_bytes() != sum {
            return Err(damaged("its index has a wrong checksum"));
        }
        let mut input = Input(content.get(MAGIC.len()..).unwrap_or_default());
        let version = input.u32()?;
        if version != VERSION {
            return Err(damaged(format!(
                "its index is of version {version}, and this release knows {VERSION}"
            )));
        }
        let data_blocks = input.u64()?;
        if data_blocks > BLOCKS_MAX {
            return Err(damaged("its data blob is larger than one can be"));
        }
        let count = input.u64()?;
        if count > (input.0.len() / ENTRY_MIN) as u64 {
            return Err(damaged("its index has fewer entries than it says"));
        }
        let mut entries = Vec::new();
        for _ in 0..count {
            let entry = input.entry()?;
            entry.check()?;
            check_extents(&entry, data_blocks)?;
            entries.push(entry);
        }
        if !input.0.is_empty() {
            return Err(damaged("its index has more than its entries"));
        }
        Ok(Layer { entries, data_blocks })
    }
}

fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    // No path, target, name or value is that long.
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    match &entry.kind {
        Kind::File { size, extents } => {
            out.push(0);
            out.extend(size.to_le_bytes());
            out.extend((extents.len() as u32).to_le_bytes());
            for extent in extents {
                out.extend([extent.from, extent.at, extent.blocks].into_iter().flat_map(u64::to_le_bytes));
            }
        }
        Kind::Directory => out.push(1),
        Kind::Symlink(target) => {
            out.push(2);
            put(out, target);
        }
        Kind::Hardlink(target) => {
            out.push(3);
            return put(out, target);
        }
        Kind::Device { block, major, minor } => {
            out.push(4 + u8::from(*block));
            out.extend([*major, *minor].into_iter().flat_map(u32::to_le_bytes));
        }
        Kind::Fifo => out.push(6),
        Kind::Whiteout => return out.push(7),
        Kind::Opaque => return out.push(8),
    }
    let Attributes { mode, uid, gid, mtime, xattrs } = &entry.attributes;
    out.extend(mode.to_le_bytes());
    out.extend([*uid, *gid].into_iter().flat_map(u32::to_le_bytes));
    out.extend(mtime.seconds.to_le_bytes());
    out.extend(mtime.nanoseconds.to_le_bytes());
    out.extend((xattrs.len() as u32).to_le_bytes());
    for (name, value) in xattrs {
        put(out, name);
        put(out, value);
    }
}

/// Extents stand in order, inside their file and inside the blob, and are as large pieces as those of a file that was unpacked: else
/// the map of a file would have no bound.
fn check_extents(entry: &Entry, data_blocks: u64) -> Result<(), Fault> {
    let Kind::File { size, extents } = &entry.kind else { return Ok(()) };
    let file_blocks = size.div_ceil(BLOCK as u64);
    let granule = granule(file_blocks);
    if file_blocks > BLOCKS_MAX {
        return Err(damaged("its index has a file that is larger than one can be"));
    }
    let mut end = 0;
    for extent in extents {
        let next = extent.from.checked_add(extent.blocks).filter(|end| *end <= file_blocks);
        let next =
            next.filter(|end| extent.from % granule == 0 && (end % granule == 0 || *end == file_blocks));
        let inside = extent.at.checked_add(extent.blocks).is_some_and(|end| end <= data_blocks);
        end = next
            .filter(|_| inside && extent.from >= end && extent.blocks > 0)
            .ok_or_else(|| damaged("its index has a file outside its data blob"))?;
    }
    Ok(())
}

/// What is left to be read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (first, rest) =
            self.0.split_first_chunk().ok_or_else(|| damaged("its index ends in an entry"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn u16(&mut self) -> Result<u16, Fault> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Fault> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<Vec<u8>, Fault> {
        let length = self.u32()? as usize;
        let (bytes, rest) =
            self.0.split_at_checked(length).ok_or_else(|| damaged("its index ends in an entry"))?;
        self.0 = rest;
        Ok(bytes.to_vec())
    }

    fn entry(&mut self) -> Result<Entry, Fault> {
        let path = self.bytes()?;
        let [kind] = self.array()?;
        let kind = match kind {
            0 => {
                let size = self.u64()?;
                let mut extents = Vec::new();
                for _ in 0..self.u32()? {
                    extents.push(Extent { from: self.u64()?, at: self.u64()?, blocks: self.u64()? });
                }
                Kind::File { size, extents }
            }
            1 => Kind::Directory,
            2 => Kind::Symlink(self.bytes()?),
            3 => Kind::Hardlink(self.bytes()?),
            4 | 5 => Kind::Device { block: kind == 5, major: self.u32()?, minor: self.u32()? },
            6 => Kind::Fifo,
            7 => Kind::Whiteout,
            8 => Kind::Opaque,
            other => return Err(damaged(format!("its index has an entry of the unknown kind {other}"))),
        };
        let attributes = if matches!(kind, Kind::Hardlink(_) | Kind::Whiteout | Kind::Opaque) {
            Attributes::default()
        } else {
            self.attributes()?
        };
        Ok(Entry { path, attributes, kind })
    }

    fn attributes(&mut self) -> Result<Attributes, Fault> {
        let (mode, uid, gid) = (self.u16()?, self.u32()?, self.u32()?);
        let mtime = Mtime { seconds: self.array().map(i64::from_le_bytes)?, nanoseconds: self.u32()? };
        let mut xattrs = BTreeMap::new();
        for _ in 0..self.u32()? {
            let (name, value) = (self.bytes()?, self.bytes()?);
            if xattrs.last_key_value().is_some_and(|(last, _)| *last >= name) {
                return Err(damaged("its index has extended attributes out of order"));
            }
            xattrs.insert(name, value);
        }
        Ok(Attributes { mode, uid, gid, mtime, xattrs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layer() -> Layer {
        let xattrs = BTreeMap::from([(b"user.a".to_vec(), vec![1, 2, 3]), (b"trusted.b".to_vec(), vec![])]);
        let attributes = Attributes {
            mode: 0o4755,
            uid: 7,
            gid: u32::MAX,
            mtime: Mtime { seconds: -1, nanoseconds: 999_999_999 },
            xattrs,
        };
        let extents = vec![Extent { from: 0, at: 3, blocks: 1 }, Extent { from: 2, at: 4, blocks: 2 }];
        let kinds = [
            Kind::File { size: 4 * 4096 - 1, extents },
            Kind::Directory,
            Kind::Symlink(b"\xff/..".to_vec()),
            Kind::Device { block: true, major: 4095, minor: 1_048_575 },
            Kind::Device { block: false, major: 0, minor: 0 },
            Kind::Fifo,
        ];
        let mut entries: Vec<Entry> = kinds
            .into_iter()
            .enumerate()
            .map(|(at, kind)| Entry { path: format!("a/{at}").into(), attributes: attributes.clone(), kind })
            .collect();
        for kind in [Kind::Hardlink(b"a/0".to_vec()), Kind::Whiteout, Kind::Opaque] {
            entries.push(Entry { path: b"b".to_vec(), attributes: Attributes::default(), kind });
        }
        Layer { entries, data_blocks: 6 }
    }

    fn with_sum(content: &[u8]) -> Vec<u8> {
        [content, blake3::hash(content).as_bytes()].concat()
    }

    #[test]
    fn an_index_gives_back_what_it_was_made_of() {
        for layer in [layer(), Layer::default()] {
            let bytes = layer.to_bytes();
            assert_eq!(Layer::from_bytes(&bytes).unwrap(), layer);
            for cut in 0..bytes.len() {
                Layer::from_bytes(&bytes[..cut]).unwrap_err();
            }
            for at in 0..bytes.len() {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1;
                Layer::from_bytes(&flipped).unwrap_err();
            }
        }
    }

    #[test]
    fn a_newer_index_is_named_as_such() {
        let bytes = layer().to_bytes();
        let mut content = bytes[..bytes.len() - SUM].to_vec();
        content[8] = 2;
        let fault = Layer::from_bytes(&with_sum(&content)).unwrap_err();
        assert!(fault.message.contains("version 2"), "{fault}");
    }

    #[test]
    fn what_no_archive_gives_is_refused() {
        let refused = |change: &dyn Fn(&mut Layer)| {
            let mut layer = layer();
            change(&mut layer);
            Layer::from_bytes(&layer.to_bytes()).unwrap_err();
        };
        let extents = |extents: Vec<Extent>| {
            move |layer: &mut Layer| {
                layer.entries[0].kind = Kind::File { size: 4 * 4096, extents: extents.clone() };
            }
        };
        let extent = |from, at, blocks| Extent { from, at, blocks };
        for bad in [
            vec![extent(0, 6, 1)],
            vec![extent(4, 0, 1)],
            vec![extent(0, 0, 0)],
            vec![extent(1, 0, 1), extent(0, 1, 1)],
            vec![extent(0, 0, 2), extent(1, 2, 1)],
            vec![extent(u64::MAX, 0, 1)],
            vec![extent(0, u64::MAX, 2)],
        ] {
            refused(&extents(bad));
        }
        for path in ["/a", "a/", "a//b", "a/../b", "./a", "..", "a\0"] {
            refused(&|layer| layer.entries[0].path = path.into());
            refused(&|layer| layer.entries[6].kind = Kind::Hardlink(path.into()));
        }
        refused(&|layer| layer.entries[0].path = vec![b'a'; 256]);
        let huge = |size| Kind::File { size, extents: vec![extent(3, 0, 1)] };
        refused(&|layer| layer.entries[0].kind = huge(1 << 40));
        refused(&|layer| layer.entries[0].kind = huge(u64::MAX));
        refused(&|layer| layer.data_blocks = u64::MAX);
        refused(&|layer| layer.entries[1].attributes.mode = 0o10_000);
        refused(&|layer| layer.entries[1].attributes.mtime.nanoseconds = 1_000_000_000);
        refused(&|layer| drop(layer.entries[1].attributes.xattrs.insert(b"user".to_vec(), vec![])));
    }

    proptest! {
        #[test]
        fn noise_never_panics(
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            at in 0usize..400,
            length in 0usize..5,
        ) {
            let bytes = layer().to_bytes();
            let mut content = bytes[..bytes.len() - SUM].to_vec();
            let at = at.min(content.len());
            let end = (at + length).min(content.len());
            content.splice(at..end, noise);
            if let Ok(layer) = Layer::from_bytes(&with_sum(&content))
                && let Ok(tree) = crate::Tree::merge(std::slice::from_ref(&layer))
            {
                let _ = tree.write_erofs(&mut Vec::new(), &[layer.data_blocks]);
            }
        }
    }
}
