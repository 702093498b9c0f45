//! The header of a qcow2 image (QEMU docs/interop/qcow2.txt, "Header" and "Header extensions"). Nothing in it is
//! believed before it has been checked against the bounds below and the file's size.

use crate::fields::{be32, be64};
use crate::host_file::HostFile;
use crate::{OpenError, SECTOR};

/// "QFI\xfb".
pub(crate) const MAGIC: u32 = 0x5146_49fb;
/// Length of a version 2 header; version 3 adds fields up to at least 104.
const V2_LEN: u32 = 72;
const V3_LEN: u32 = 104;
/// What we write: with the compression type and padding.
const OUR_LEN: u32 = 112;
/// Cluster sizes that the format allows: 512 bytes to 2 MiB.
pub(crate) const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// Most bytes of an L1 table, of a refcount table, and of the snapshot table; QEMU's bounds too.
pub(crate) const L1_MAX: u64 = 32 << 20;
pub(crate) const REFTABLE_MAX: u64 = 8 << 20;
/// Most internal snapshots.
const SNAPSHOTS_MAX: u32 = 65536;
/// Longest name of a backing file.
const NAME_MAX: u32 = 1023;
/// Where a file offset ends in table entries: bits 9 to 55.
pub(crate) const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

/// Incompatible features.
pub(crate) const DIRTY: u64 = 1 << 0;
pub(crate) const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Header extensions.
const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;

/// Offsets of fields that change in place.
pub(crate) const AT_SIZE: u64 = 24;
pub(crate) const AT_L1: u64 = 36;
pub(crate) const AT_REFTABLE: u64 = 48;
pub(crate) const AT_INCOMPATIBLE: u64 = 72;
const AT_AUTOCLEAR: u64 = 88;

/// How compressed clusters are packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    Deflate,
    Zstd,
}

#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u32,
    pub(crate) reftable_offset: u64,
    pub(crate) reftable_clusters: u32,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    compatible: u64,
    pub(crate) refcount_order: u32,
    pub(crate) compression: Compression,
    /// Name and format of the backing file, as the image says it.
    pub(crate) backing: Option<String>,
    pub(crate) backing_format: Option<String>,
    /// Extensions that we keep as they are.
    extensions: Vec<(u32, Vec<u8>)>,
}

impl Header {
    /// Of a new image.
    pub(crate) fn new(size: u64, cluster_bits: u32, l1_entries: u32) -> Header {
        Header {
            version: 3,
            cluster_bits,
            size,
            l1_offset: 1 << cluster_bits,
            l1_entries,
            reftable_offset: 0,
            reftable_clusters: 0,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: 0,
            compatible: 0,
            refcount_order: 4,
            compression: Compression::Deflate,
            backing: None,
            backing_format: None,
            extensions: Vec::new(),
        }
    }

    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of the disk that one L2 table maps.
    pub(crate) fn table_span(&self) -> u64 {
        self.cluster() * (self.cluster() / 8)
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.incompatible & DIRTY != 0
    }

    pub(crate) fn is_corrupt(&self) -> bool {
        self.incompatible & CORRUPT != 0
    }

    /// Reads and checks it.
    pub(crate) fn read(file: &HostFile) -> Result<Header, OpenError> {
        let fixed = file.read_vec(0, OUR_LEN as usize).map_err(|source| file.failed("read", source))?;
        let damaged = |what: String| file.damaged("qcow2", what);
        if be32(&fixed, 0) != MAGIC {
            return Err(damaged("it does not begin like one".into()));
        }
        let size = file.size().map_err(|source| file.failed("measure", source))?;
        if size < V2_LEN.into() {
            return Err(damaged(format!("it ends after {size} bytes, in its header")));
        }
        let version = be32(&fixed, 4);
        if !(2..=3).contains(&version) {
            return Err(file.unsupported("qcow2", format!("it has version {version}")));
        }
        let v3 = version == 3;
        let length = if v3 { be32(&fixed, 100) } else { V2_LEN };
        let cluster_bits = be32(&fixed, 20);
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(damaged(format!("its clusters have 2^{cluster_bits} bytes")));
        }
        let cluster = 1u64 << cluster_bits;
        if v3 && (length < V3_LEN || u64::from(length) > cluster) {
            return Err(damaged(format!("its header has {length} bytes")));
        }
        let incompatible = if v3 { be64(&fixed, 72) } else { 0 };
        let unsupported = |what: &str| file.unsupported("qcow2", what.into());
        match be32(&fixed, 32) {
            0 => {}
            1 | 2 => return Err(unsupported("it is encrypted")),
            other => return Err(damaged(format!("it has encryption method {other}"))),
        }
        if incompatible & EXTENDED_L2 != 0 {
            return Err(unsupported("it has subclusters (extended L2 entries)"));
        }
        if incompatible & DATA_FILE != 0 {
            return Err(unsupported("its data is in a file of its own"));
        }
        let unknown = incompatible & !(DIRTY | CORRUPT | COMPRESSION);
        if unknown != 0 {
            return Err(unsupported(&format!("it has features of a later version ({unknown:#x})")));
        }
        let compression = match if length > V3_LEN { fixed.get(104) } else { None } {
            None | Some(0) => Compression::Deflate,
            Some(1) => Compression::Zstd,
            Some(other) => return Err(unsupported(&format!("it has compression method {other}"))),
        };
        let refcount_order = if v3 { be32(&fixed, 96) } else { 4 };
        if refcount_order > 6 {
            return Err(damaged(format!("its reference counts have 2^{refcount_order} bits")));
        }
        let mut header = Header {
            version,
            cluster_bits,
            size: be64(&fixed, 24),
            l1_offset: be64(&fixed, 40),
            l1_entries: be32(&fixed, 36),
            reftable_offset: be64(&fixed, 48),
            reftable_clusters: be32(&fixed, 56),
            snapshots: be32(&fixed, 60),
            snapshots_offset: be64(&fixed, 64),
            incompatible,
            compatible: if v3 { be64(&fixed, 80) } else { 0 },
            refcount_order,
            compression,
            backing: None,
            backing_format: None,
            extensions: Vec::new(),
        };
        header.check_bounds(file)?;
        header.read_extensions(file, length, cluster)?;
        header.backing = header.read_backing(file, be64(&fixed, 8), be32(&fixed, 16), cluster)?;
        Ok(header)
    }

    fn check_bounds(&self, file: &HostFile) -> Result<(), OpenError> {
        let damaged = |what: String| Err(file.damaged("qcow2", what));
        let end = file.measure()?;
        if self.size == 0 || !self.size.is_multiple_of(SECTOR) {
            return damaged(format!("its disk has {} bytes", self.size));
        }
        let inside = |offset: u64, len: u64| {
            offset.is_multiple_of(self.cluster())
                && offset != 0
                && offset.checked_add(len).is_some_and(|last| last <= end.next_multiple_of(self.cluster()))
        };
        let l1_len = u64::from(self.l1_entries) * 8;
        if l1_len > L1_MAX || !inside(self.l1_offset, l1_len) {
            return damaged(format!(
                "its L1 table of {l1_len} bytes at {:#x} is not in the file",
                self.l1_offset
            ));
        }
        if self.size.div_ceil(self.table_span()) > u64::from(self.l1_entries) {
            return damaged(format!("its L1 table is too small for a disk of {} bytes", self.size));
        }
        let refs_len = u64::from(self.reftable_clusters) << self.cluster_bits;
        if refs_len > REFTABLE_MAX.max(self.cluster()) || !inside(self.reftable_offset, refs_len) {
            return damaged(format!(
                "its refcount table of {refs_len} bytes at {:#x} is not in the file",
                self.reftable_offset
            ));
        }
        if self.snapshots > SNAPSHOTS_MAX || self.snapshots > 0 && !inside(self.snapshots_offset, 1) {
            return damaged(format!("its {} snapshots are not in the file", self.snapshots));
        }
        Ok(())
    }

    fn read_extensions(&mut self, file: &HostFile, start: u32, cluster: u64) -> Result<(), OpenError> {
        let mut at = u64::from(start);
        while at + 8 <= cluster {
            let head = file.read_vec(at, 8).map_err(|source| file.failed("read", source))?;
            let (kind, len) = (be32(&head, 0), u64::from(be32(&head, 4)));
            if kind == EXT_END {
                break;
            }
            if at + 8 + len > cluster {
                return Err(
                    file.damaged("qcow2", format!("header extension {kind:#x} is longer than the header"))
                );
            }
            let data = file.read_vec(at + 8, len as usize).map_err(|source| file.failed("read", source))?;
            if kind == EXT_BACKING_FORMAT {
                self.backing_format = Some(String::from_utf8_lossy(&data).into_owned());
            } else {
                self.extensions.push((kind, data));
            }
            at += 8 + len.next_multiple_of(8);
        }
        Ok(())
    }

    fn read_backing(
        &self,
        file: &HostFile,
        at: u64,
        len: u32,
        cluster: u64,
    ) -> Result<Option<String>, OpenError> {
        if at == 0 || len == 0 {
            return Ok(None);
        }
        if len > NAME_MAX || at.checked_add(u64::from(len)).is_none_or(|end| end > cluster) {
            return Err(file.damaged("qcow2", "the name of its backing file is not in its header".into()));
        }
        let name = file.read_vec(at, len as usize).map_err(|source| file.failed("read", source))?;
        match String::from_utf8(name) {
            Ok(name) if !name.contains('\0') => Ok(Some(name)),
            _ => Err(file.damaged("qcow2", "the name of its backing file is no text".into())),
        }
    }

    /// All of the header as it is written. Features that clear by themselves are left out: we know none.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, String> {
        let v3 = self.version == 3;
        let length = if v3 { OUR_LEN } else { V2_LEN };
        let mut extensions = Vec::new();
        let named = self.backing_format.as_ref().map(|format| (EXT_BACKING_FORMAT, format.as_bytes()));
        let kept = self.extensions.iter().map(|(kind, data)| (*kind, data.as_slice()));
        for (kind, data) in named.into_iter().chain(kept) {
            extensions.extend(kind.to_be_bytes());
            extensions.extend((data.len() as u32).to_be_bytes());
            extensions.extend(data);
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        }
        extensions.extend([0; 8]);
        let backing = self.backing.as_deref().unwrap_or_default();
        if backing.len() as u64 > u64::from(NAME_MAX) {
            return Err(format!("the name of the backing file has {} bytes", backing.len()));
        }
        let backing_at = u64::from(length) + extensions.len() as u64;
        let mut out = Vec::new();
        out.extend(MAGIC.to_be_bytes());
        out.extend(self.version.to_be_bytes());
        out.extend(if backing.is_empty() { 0 } else { backing_at }.to_be_bytes());
        out.extend((backing.len() as u32).to_be_bytes());
        out.extend(self.cluster_bits.to_be_bytes());
        out.extend(self.size.to_be_bytes());
        out.extend(0u32.to_be_bytes()); // no encryption
        out.extend(self.l1_entries.to_be_bytes());
        out.extend(self.l1_offset.to_be_bytes());
        out.extend(self.reftable_offset.to_be_bytes());
        out.extend(self.reftable_clusters.to_be_bytes());
        out.extend(self.snapshots.to_be_bytes());
        out.extend(self.snapshots_offset.to_be_bytes());
        if v3 {
            out.extend(self.incompatible.to_be_bytes());
            out.extend(self.compatible.to_be_bytes());
            out.extend(0u64.to_be_bytes());
            out.extend(self.refcount_order.to_be_bytes());
            out.extend(length.to_be_bytes());
            out.extend([u8::from(self.compression == Compression::Zstd), 0, 0, 0, 0, 0, 0, 0]);
        }
        out.extend(extensions);
        out.extend(backing.as_bytes());
        if out.len() as u64 > self.cluster() {
            return Err("the name of the backing file does not fit into the header".into());
        }
        Ok(out)
    }

    /// Writes bits that say how the image is, at once.
    pub(crate) fn write_incompatible(&mut self, file: &HostFile, bits: u64) -> std::io::Result<()> {
        if self.version == 3 && self.incompatible != bits {
            file.write(AT_INCOMPATIBLE, &bits.to_be_bytes())?;
            self.incompatible = bits;
        }
        Ok(())
    }

    /// Says that what we do not know (bitmaps) is no longer in step with the data.
    pub(crate) fn clear_autoclear(&self, file: &HostFile) -> std::io::Result<()> {
        if self.version == 3 && be64(&file.read_vec(AT_AUTOCLEAR, 8)?, 0) != 0 {
            file.write(AT_AUTOCLEAR, &[0; 8])?;
        }
        Ok(())
    }
}
