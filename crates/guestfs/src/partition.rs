//! Partition tables: MBR with its logical partitions, and GPT (UEFI 2.10 §5).
use crate::Error;
use viv_block::{Disk, SECTOR};

/// Most partitions that are looked at.
const PARTITIONS_MAX: usize = 256;
/// Most entries of a GPT, and most bytes of one; the usual are 128 of 128.
const ENTRIES_MAX: u32 = 1024;
const ENTRY_MAX: u32 = 4096;
/// Where an MBR has its disk signature and its table (UEFI 2.10 §5.2.1).
const SIGNATURE: usize = 440;
const TABLE: usize = 446;
/// Types of partitions: nothing, a GPT's guard, and those that have further ones in them.
const EMPTY: u8 = 0;
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

/// A part of a disk, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Its number as Linux counts; none: the whole disk.
    pub(crate) number: Option<u32>,
    /// Where it begins and how long it is, in bytes.
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// By which Linux finds it: `PARTUUID=`.
    pub(crate) uuid: Option<String>,
}

fn field<const N: usize>(data: &[u8], at: usize) -> [u8; N] {
    data.get(at..at.saturating_add(N)).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
}

pub(crate) fn le32(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(field(data, at))
}

pub(crate) fn le64(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(field(data, at))
}

/// The partitions of a disk, or the disk itself if it has none.
pub(crate) fn all(disk: &dyn Disk) -> Result<Vec<Partition>, Error> {
    let whole = Partition { number: None, start: 0, len: disk.size(), uuid: None };
    if disk.size() < 2 * SECTOR || crate::volume::is_known(disk, 0) {
        return Ok(vec![whole]);
    }
    let mut first = [0; SECTOR as usize];
    disk.read(0, &mut first)?;
    if field::<2>(&first, 510) != [0x55, 0xaa] {
        return Ok(vec![whole]);
    }
    let entries: Vec<Entry> = (0..4).map(|index| Entry::parse(&first, TABLE + 16 * index)).collect();
    let mut found = match entries.iter().any(|entry| entry.kind == PROTECTIVE) {
        true => gpt(disk)?,
        false => mbr(disk, le32(&first, SIGNATURE), &entries)?,
    };
    found.retain(|partition| {
        partition.len > 0 && partition.start.checked_add(partition.len).is_some_and(|end| end <= disk.size())
    });
    found.truncate(PARTITIONS_MAX);
    Ok(if found.is_empty() { vec![whole] } else { found })
}

/// An entry of an MBR's table.
struct Entry {
    kind: u8,
    start: u64,
    count: u64,
}

impl Entry {
    fn parse(sector: &[u8], at: usize) -> Entry {
        let [kind] = field(sector, at + 4);
        Entry { kind, start: le32(sector, at + 8).into(), count: le32(sector, at + 12).into() }
    }

    fn partition(&self, number: u32, base: u64, signature: u32) -> Partition {
        Partition {
            number: Some(number),
            start: base.saturating_add(self.start).saturating_mul(SECTOR),
            len: self.count.saturating_mul(SECTOR),
            uuid: Some(format!("{signature:08x}-{number:02x}")),
        }
    }
}

fn mbr(disk: &dyn Disk, signature: u32, entries: &[Entry]) -> Result<Vec<Partition>, Error> {
    let mut found = Vec::new();
    let mut logical = 5;
    for (number, entry) in (1..).zip(entries) {
        if EXTENDED.contains(&entry.kind) {
            let (base, mut next) = (entry.start, entry.start);
            // A chain of tables with one partition and the way to the next each, which may lead anywhere.
            while found.len() < PARTITIONS_MAX {
                let mut sector = [0; SECTOR as usize];
                let at = next.saturating_mul(SECTOR);
                if at > disk.size().saturating_sub(SECTOR) {
                    break;
                }
                disk.read(at, &mut sector)?;
                let (own, link) = (Entry::parse(&sector, TABLE), Entry::parse(&sector, TABLE + 16));
                if field::<2>(&sector, 510) != [0x55, 0xaa] || own.kind == EMPTY {
                    break;
                }
                found.push(own.partition(logical, next, signature));
                logical += 1;
                if !EXTENDED.contains(&link.kind) {
                    break;
                }
                next = base.saturating_add(link.start);
            }
        } else if entry.kind != EMPTY {
            found.push(entry.partition(number, 0, signature));
        }
    }
    Ok(found)
}

/// The GPT at the disk's begin, or the copy at its end.
fn gpt(disk: &dyn Disk) -> Result<Vec<Partition>, Error> {
    let last = (disk.size() / SECTOR).saturating_sub(1);
    match gpt_at(disk, 1)? {
        Some(found) => Ok(found),
        None => gpt_at(disk, last)?.ok_or_else(|| Error::Damaged {
            what: "the partition table (GPT)".into(),
            why: "neither it nor its copy at the disk's end has its checksum".into(),
        }),
    }
}

/// None if the header is none (UEFI 2.10 §5.3.2).
fn gpt_at(disk: &dyn Disk, lba: u64) -> Result<Option<Vec<Partition>>, Error> {
    let mut header = [0; SECTOR as usize];
    disk.read(lba.saturating_mul(SECTOR), &mut header)?;
    let size = le32(&header, 12) as usize;
    if !header.starts_with(b"EFI PART") || !(92..=header.len()).contains(&size) {
        return Ok(None);
    }
    let checksum = le32(&header, 16);
    header.get_mut(16..20).unwrap_or_default().fill(0);
    if crc32(header.get(..size).unwrap_or_default()) != checksum {
        return Ok(None);
    }
    let (table, count, size) = (le64(&header, 72), le32(&header, 80), le32(&header, 84));
    if count > ENTRIES_MAX || !(128..=ENTRY_MAX).contains(&size) {
        return Ok(None);
    }
    let mut entries = vec![0; (count * size) as usize];
    let at = table.saturating_mul(SECTOR);
    if at.checked_add(entries.len() as u64).is_none_or(|end| end > disk.size()) {
        return Ok(None);
    }
    disk.read(at, &mut entries)?;
    if crc32(&entries) != le32(&header, 88) {
        return Ok(None);
    }
    let used = (1..).zip(entries.chunks_exact(size as usize));
    let used = used.filter(|(_, entry)| field::<16>(entry, 0) != [0; 16]);
    Ok(Some(used.map(|(number, entry)| gpt_entry(number, entry)).collect()))
}

/// An entry (UEFI 2.10 §5.3.3): its last sector belongs to it.
fn gpt_entry(number: u32, entry: &[u8]) -> Partition {
    let (first, last) = (le64(entry, 32), le64(entry, 40));
    let sectors = last.saturating_add(1).saturating_sub(first);
    Partition {
        number: Some(number),
        start: first.saturating_mul(SECTOR),
        len: sectors.saturating_mul(SECTOR),
        uuid: Some(guid(&field(entry, 16))),
    }
}

/// As text; the first three parts are little-endian (UEFI 2.10 appendix A).
fn guid(bytes: &[u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let [i, j, tail @ ..] = rest;
    let parts = [hex(&[*d, *c, *b, *a]), hex(&[*f, *e]), hex(&[*h, *g]), hex(&[*i, *j]), hex(tail)];
    parts.join("-")
}

/// The checksum of GPT (UEFI 2.10 §5.3.2): CRC-32 of IEEE 802.3.
pub(crate) fn crc32(data: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ 0xedb8_8320 & (crc & 1).wrapping_neg())
    };
    !data.iter().fold(u32::MAX, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{gpt_disk, mbr_disk};
    use viv_block::MemoryDisk;

    #[test]
    fn crc_is_the_one_of_the_standard() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn a_gpt_is_read_and_its_copy_where_it_is_broken() {
        let mut bytes = gpt_disk(&[(1, vec![1; 4096]), (3, vec![3; 8192])]);
        let found = all(&MemoryDisk::new(bytes.clone())).unwrap();
        assert_eq!(found.iter().map(|part| part.number).collect::<Vec<_>>(), [Some(1), Some(3)]);
        assert_eq!(found[1].len, 8192);
        assert_eq!(found[0].uuid.as_deref(), Some("04030201-0605-0807-090a-0b0c0d0e0f01"));
        bytes[512 + 80] ^= 1;
        assert_eq!(all(&MemoryDisk::new(bytes.clone())).unwrap(), found);
        let end = bytes.len();
        bytes[end - 512 + 80] ^= 1;
        assert!(matches!(all(&MemoryDisk::new(bytes)), Err(Error::Damaged { .. })));
    }

    #[test]
    fn an_mbr_has_primary_and_logical_partitions() {
        let found = all(&MemoryDisk::new(mbr_disk())).unwrap();
        let plain: Vec<_> = found.iter().map(|part| (part.number, part.start, part.len)).collect();
        assert_eq!(plain, [(Some(1), 1024, 1024), (Some(5), 5 * 512, 512), (Some(6), 7 * 512, 512)]);
        assert_eq!(found[1].uuid.as_deref(), Some("12345678-05"));
    }

    #[test]
    fn what_has_no_table_is_one_piece() {
        for bytes in [vec![0; 4096], vec![0; 512], Vec::new()] {
            let size = bytes.len() as u64;
            let whole = Partition { number: None, start: 0, len: size, uuid: None };
            assert_eq!(all(&MemoryDisk::new(bytes)).unwrap(), [whole]);
        }
    }
}
