//! VMDK, VMware's image, for reading: sparse extents in one file or several, compressed ones (as in an OVA), flat ones
//! (VMware, "Virtual Disk Format 5.0"). Numbers are little-endian, and count sectors.

use crate::fields::{le32, le64};
use crate::host_file::HostFile;
use crate::{Disk, Extent, OpenError, SECTOR, check_range};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_PARSE_ZLIB_HEADER;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use std::io;
use std::sync::{Mutex, PoisonError};

const HEADER: usize = 512;
const MAGIC: &[u8] = b"KDMV";
/// Largest descriptor that is read.
const DESCRIPTOR_MAX: u64 = 1 << 20;
/// Most extents of a disk.
const EXTENTS_MAX: usize = 4096;
/// Most sectors of an extent: 64 TiB.
const SECTORS_MAX: u64 = 1 << 37;
/// The grain directory is behind the data, in a footer.
const GD_AT_END: u64 = u64::MAX;
/// Flags: grains are compressed.
const COMPRESSED: u32 = 1 << 16;
/// Flag: an entry of 1 is a grain of zeroes.
const ZERO_GRAINS: u32 = 1 << 2;
/// Before a compressed grain: its first sector and its length.
const MARKER: usize = 12;

/// The disk: extents one after the other.
pub(crate) struct Vmdk {
    extents: Vec<Piece>,
    size: u64,
}

struct Piece {
    /// Where it is in the disk.
    at: u64,
    len: u64,
    kind: Kind,
}

enum Kind {
    Zero,
    Flat { file: HostFile, at: u64 },
    Sparse(Box<Sparse>),
}

/// A sparse extent.
struct Sparse {
    file: HostFile,
    /// Bytes of a grain.
    grain: u64,
    /// Grains that a table maps.
    entries: u64,
    /// Offsets of the grain tables, in sectors.
    directory: Vec<u32>,
    zero_grains: bool,
    compressed: bool,
    /// The grain that was unpacked last.
    unpacked: Mutex<Option<(u64, Vec<u8>)>>,
}

/// One line of a descriptor.
struct Line {
    sectors: u64,
    kind: String,
    name: Option<String>,
    offset: u64,
}

/// Opens the image in `file`; `beside` opens a file that it names.
pub(crate) fn open(
    file: HostFile,
    beside: &mut dyn FnMut(&str) -> Result<HostFile, OpenError>,
) -> Result<Vmdk, OpenError> {
    let head = file.read_vec(0, HEADER).map_err(|source| file.failed("read", source))?;
    if head.starts_with(MAGIC) {
        let sparse = Sparse::open(file)?;
        let len = sparse.0;
        let piece = Piece { at: 0, len, kind: Kind::Sparse(Box::new(sparse.1)) };
        return Ok(Vmdk { extents: vec![piece], size: len });
    }
    let (mut extents, mut at) = (Vec::new(), 0u64);
    for line in descriptor(&file)? {
        let len = line.sectors * SECTOR;
        let name =
            || line.name.as_deref().ok_or_else(|| file.damaged("VMDK", "an extent has no name".into()));
        let kind = match line.kind.as_str() {
            "ZERO" => Kind::Zero,
            "FLAT" | "VMFS" => {
                let (extent, start) = (beside(name()?)?, line.offset.saturating_mul(SECTOR));
                if start.checked_add(len).is_none_or(|end| extent.size().is_ok_and(|size| end > size)) {
                    return Err(file.damaged("VMDK", format!("{} is too short", extent.path().display())));
                }
                Kind::Flat { file: extent, at: start }
            }
            "SPARSE" => {
                let (there, sparse) = Sparse::open(beside(name()?)?)?;
                if there < len {
                    let text = format!("{} is too short", sparse.file.path().display());
                    return Err(file.damaged("VMDK", text));
                }
                Kind::Sparse(Box::new(sparse))
            }
            other => return Err(file.unsupported("VMDK", format!("it has an extent of type {other}"))),
        };
        extents.push(Piece { at, len, kind });
        at = at.checked_add(len).ok_or_else(|| file.damaged("VMDK", "it is too large".into()))?;
    }
    if at == 0 {
        return Err(file.damaged("VMDK", "it has no extents".into()));
    }
    Ok(Vmdk { extents, size: at })
}

/// The files that the image in `file` names.
pub(crate) fn names(file: &HostFile) -> Result<Vec<String>, OpenError> {
    let head = file.read_vec(0, MAGIC.len()).map_err(|source| file.failed("read", source))?;
    if head == MAGIC {
        return Ok(Vec::new());
    }
    let mut names: Vec<String> = descriptor(file)?.into_iter().filter_map(|line| line.name).collect();
    names.dedup();
    Ok(names)
}

/// The extents of a descriptor, which is text.
fn descriptor(file: &HostFile) -> Result<Vec<Line>, OpenError> {
    let len = file.measure()?;
    if len > DESCRIPTOR_MAX {
        return Err(file.damaged("VMDK", "its descriptor is too long".into()));
    }
    let text = file.read_vec(0, len as usize).map_err(|source| file.failed("read", source))?;
    parse(file, &String::from_utf8_lossy(&text))
}

fn parse(file: &HostFile, text: &str) -> Result<Vec<Line>, OpenError> {
    let damaged = |line: &str| file.damaged("VMDK", format!("its descriptor says {line:?}"));
    let mut lines = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(("parentCID", value)) =
            line.split_once('=').map(|(key, value)| (key.trim(), value.trim()))
            && !value.eq_ignore_ascii_case("ffffffff")
        {
            return Err(file.unsupported("VMDK", "it has only what differs from another image".into()));
        }
        let mut words = line.split_whitespace();
        let access = words.next();
        if access == Some("NOACCESS") {
            return Err(file.unsupported("VMDK", "a part of it may not be read".into()));
        }
        if !matches!(access, Some("RW" | "RDONLY")) {
            continue;
        }
        let sectors =
            words.next().and_then(|word| word.parse().ok()).filter(|sectors| *sectors <= SECTORS_MAX);
        let (sectors, kind) = sectors.zip(words.next()).ok_or_else(|| damaged(line))?;
        let mut quoted = line.splitn(3, '"').skip(1);
        let name = quoted.next().map(str::to_owned);
        let offset = quoted.next().map(str::trim).filter(|rest| !rest.is_empty());
        let offset = offset.map_or(Some(0), |rest| rest.split_whitespace().next()?.parse().ok());
        let offset = offset.ok_or_else(|| damaged(line))?;
        lines.push(Line { sectors, kind: kind.to_string(), name, offset });
        if lines.len() > EXTENTS_MAX {
            return Err(file.damaged("VMDK", "it has too many extents".into()));
        }
    }
    Ok(lines)
}

impl Sparse {
    /// Gives the bytes of the extent, and the extent.
    fn open(file: HostFile) -> Result<(u64, Sparse), OpenError> {
        let damaged = |what: String| file.damaged("VMDK", what);
        let read = |at, len| file.read_vec(at, len).map_err(|source| file.failed("read", source));
        let end = file.measure()?;
        let mut header = read(0, HEADER)?;
        if !header.starts_with(MAGIC) {
            return Err(damaged("a sparse extent does not begin like one".into()));
        }
        if le64(&header, 56) == GD_AT_END {
            header = read(end.saturating_sub(1024), HEADER)?;
            if !header.starts_with(MAGIC) {
                return Err(damaged("its footer is missing: it was cut off".into()));
            }
        }
        let (version, flags) = (le32(&header, 4), le32(&header, 8));
        if !(1..=3).contains(&version) {
            return Err(file.unsupported("VMDK", format!("it has version {version}")));
        }
        let (capacity, grain) = (le64(&header, 12), le64(&header, 20));
        let entries = u64::from(le32(&header, 44));
        let directory_at = le64(&header, 56).saturating_mul(SECTOR);
        if capacity == 0 || capacity > SECTORS_MAX {
            return Err(damaged(format!("its disk has {capacity} sectors")));
        }
        if !grain.is_power_of_two() || !(8..=4096).contains(&grain) || entries == 0 || entries > 4096 {
            return Err(damaged(format!("its grains have {grain} sectors, its tables {entries} entries")));
        }
        let grain = grain * SECTOR;
        let tables = (capacity * SECTOR).div_ceil(grain * entries);
        if directory_at.checked_add(tables * 4).is_none_or(|last| last > end) || tables > 1 << 24 {
            return Err(damaged("its grain directory is not in the file".into()));
        }
        // The descriptor in the file says whether the disk is complete.
        let (text_at, text_len) =
            (le64(&header, 28).saturating_mul(SECTOR), le64(&header, 36).saturating_mul(SECTOR));
        if text_at > 0 && text_len <= DESCRIPTOR_MAX {
            let text = read(text_at, text_len as usize)?;
            parse(&file, String::from_utf8_lossy(&text).trim_end_matches('\0'))?;
        }
        let directory = read(directory_at, tables as usize * 4)?;
        let directory: Vec<u32> = directory.chunks(4).map(|entry| le32(entry, 0)).collect();
        if directory.iter().any(|table| u64::from(*table) * SECTOR >= end) {
            return Err(damaged("a grain table is not in the file".into()));
        }
        let sparse = Sparse {
            grain,
            entries,
            directory,
            zero_grains: flags & ZERO_GRAINS != 0,
            compressed: flags & COMPRESSED != 0,
            unpacked: Mutex::new(None),
            file,
        };
        Ok((capacity * SECTOR, sparse))
    }

    /// Where the grain at `offset` is in the file, if anywhere.
    fn place(&self, offset: u64) -> io::Result<Option<u64>> {
        let index = offset / self.grain;
        let table = self.directory.get((index / self.entries) as usize).copied().unwrap_or(0);
        if table == 0 {
            return Ok(None);
        }
        let at = u64::from(table) * SECTOR + index % self.entries * 4;
        let entry = le32(&self.file.read_vec(at, 4)?, 0);
        let nowhere = entry == 0 || entry == 1 && self.zero_grains;
        Ok((!nowhere).then_some(u64::from(entry) * SECTOR))
    }

    /// Reads within one grain.
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let within = offset % self.grain;
        match self.place(offset)? {
            None => {
                data.fill(0);
                Ok(())
            }
            Some(place) if self.compressed => {
                self.read_packed((offset - within) / SECTOR, place, within, data)
            }
            // Of a grain, all that is of the disk is there.
            Some(place) => self.file.read(place + within, data),
        }
    }

    /// Reads within the compressed grain of the sectors from `sector` on.
    fn read_packed(&self, sector: u64, place: u64, within: u64, data: &mut [u8]) -> io::Result<()> {
        let mut kept = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        let content = match kept.take() {
            Some((there, content)) if there == place => content,
            _ => self.unpack(sector, place)?,
        };
        let within = within as usize;
        let part = content.get(within..within + data.len()).ok_or_else(short)?;
        data.copy_from_slice(part);
        *kept = Some((place, content));
        Ok(())
    }

    fn unpack(&self, sector: u64, place: u64) -> io::Result<Vec<u8>> {
        let marker = self.file.read_vec(place, MARKER)?;
        let len = u64::from(le32(&marker, 8));
        if len > self.grain * 2 || le64(&marker, 0) != sector {
            return Err(short());
        }
        let packed = self.file.read_vec(place + MARKER as u64, len as usize)?;
        let mut content = vec![0; self.grain as usize];
        let mut inflate = Box::new(DecompressorOxide::new());
        let (status, _, written) =
            decompress(&mut inflate, &packed, &mut content, 0, TINFL_FLAG_PARSE_ZLIB_HEADER);
        // The last grain of a disk may be shorter: the rest of it stays zero.
        if status != TINFLStatus::Done || written == 0 { Err(short()) } else { Ok(content) }
    }
}

fn short() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the VMDK image is damaged: a grain cannot be unpacked")
}

impl Vmdk {
    /// The extent at `offset`, the place in it, and how many bytes are of one piece from there.
    fn find(&self, offset: u64) -> Option<(&Piece, u64, u64)> {
        let index = self.extents.partition_point(|piece| piece.at + piece.len <= offset);
        let piece = self.extents.get(index)?;
        let within = offset - piece.at;
        let left = piece.len - within;
        let run = match &piece.kind {
            Kind::Sparse(sparse) => left.min(sparse.grain - within % sparse.grain),
            _ => left,
        };
        Some((piece, within, run))
    }
}

impl Disk for Vmdk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, mut offset: u64, mut data: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len() as u64)?;
        while !data.is_empty() {
            let (piece, within, run) = self.find(offset).ok_or(io::ErrorKind::UnexpectedEof)?;
            let (now, later) = data.split_at_mut(run.min(data.len() as u64) as usize);
            match &piece.kind {
                Kind::Zero => now.fill(0),
                Kind::Flat { file, at } => file.read(at + within, now)?,
                Kind::Sparse(sparse) => sparse.read(within, now)?,
            }
            offset += now.len() as u64;
            data = later;
        }
        Ok(())
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        check_range(self.size, offset, len)?;
        let Some((piece, within, run)) = self.find(offset) else { return Ok(Extent { len, zero: false }) };
        let zero = match &piece.kind {
            Kind::Zero => true,
            Kind::Flat { .. } => false,
            Kind::Sparse(sparse) => sparse.place(within)?.is_none(),
        };
        Ok(Extent { len: run.min(len), zero })
    }
}
