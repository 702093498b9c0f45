//! VHDX, Hyper-V's image, for reading: fixed and dynamic ones that were closed properly ([MS-VHDX]). All numbers are
//! little-endian.

use crate::fields::{le32, le64};
use crate::host_file::HostFile;
use crate::map::{BLOCKS_MAX, BlockMap, Place};
use crate::{OpenError, SECTOR};

/// Where the two headers and the two region tables are (§2.2).
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE: usize = 64 << 10;
const HEADER: usize = 4096;
/// Most entries of the region table and of the metadata table (§2.2.3.1, §2.6.1.1).
const ENTRIES_MAX: u32 = 2047;
/// Bytes of the metadata table.
const METADATA_TABLE: usize = 64 << 10;
/// Most bytes of a disk: 64 TiB (§1).
const SIZE_MAX: u64 = 64 << 40;
const MIB: u64 = 1 << 20;

/// GUIDs as they lie in the file.
pub(crate) const BAT: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
pub(crate) const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
pub(crate) const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
pub(crate) const DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
pub(crate) const LOGICAL_SECTOR: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);

const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let number = ((d.swap_bytes() as u128) << 64) | ((c as u128) << 48) | ((b as u128) << 32) | a as u128;
    number.to_le_bytes()
}

/// A part of the file.
struct Part {
    at: u64,
    len: u64,
}

pub(crate) fn open(file: HostFile) -> Result<BlockMap, OpenError> {
    let damaged = |what: &str| file.damaged("VHDX", what.into());
    let unsupported = |what: &str| file.unsupported("VHDX", what.into());
    let read = |at, len| file.read_vec(at, len).map_err(|source| file.failed("read", source));
    let end = file.measure()?;
    let sound = |data: &Vec<u8>, cookie: &[u8]| data.starts_with(cookie) && crc32c(data) == le32(data, 4);
    let headers = [read(HEADERS[0], HEADER)?, read(HEADERS[1], HEADER)?];
    let header = headers.into_iter().filter(|data| sound(data, b"head")).max_by_key(|data| le64(data, 8));
    let header = header.ok_or_else(|| damaged("neither of its headers is right"))?;
    // §2.2.2: a log GUID that is not zero says that the log has what the rest lacks.
    if header.get(48..64).is_some_and(|log| log.iter().any(|byte| *byte != 0)) {
        return Err(unsupported("it was not closed properly: its log must be replayed"));
    }
    let tables = [read(REGIONS[0], REGION_TABLE)?, read(REGIONS[1], REGION_TABLE)?];
    let table = tables.into_iter().find(|data| sound(data, b"regi"));
    let table = table.ok_or_else(|| damaged("neither of its region tables is right"))?;
    let region = |wanted: [u8; 16], what: &str| {
        let entries =
            table.get(16..).unwrap_or_default().chunks(32).take(le32(&table, 8).min(ENTRIES_MAX) as usize);
        let mut found = entries.filter(|entry| entry.starts_with(&wanted));
        let entry = found.next().ok_or_else(|| damaged(&format!("it has no {what}")))?;
        let part = Part { at: le64(entry, 16), len: u64::from(le32(entry, 24)) };
        match part.at.checked_add(part.len) {
            Some(part_end) if part_end <= end => Ok(part),
            _ => Err(damaged(&format!("its {what} is not in the file"))),
        }
    };
    let (bat, metadata) = (region(BAT, "map")?, region(METADATA, "metadata")?);
    let table = read(metadata.at, METADATA_TABLE)?;
    if !table.starts_with(b"metadata") {
        return Err(damaged("its metadata does not begin like it"));
    }
    let entries =
        u32::from(table.get(10).copied().unwrap_or(0)) | u32::from(table.get(11).copied().unwrap_or(0)) << 8;
    let item = |wanted: [u8; 16], what: &str| {
        let entries = table.get(32..).unwrap_or_default().chunks(32).take(entries.min(ENTRIES_MAX) as usize);
        let mut found = entries.filter(|entry| entry.starts_with(&wanted));
        let at = found.next().map(|entry| u64::from(le32(entry, 16)));
        let at = at.filter(|at| at + 8 <= metadata.len);
        read(metadata.at + at.ok_or_else(|| damaged(&format!("it does not say {what}")))?, 8)
    };
    let parameters = item(FILE_PARAMETERS, "how large its blocks are")?;
    let (block, flags) = (u64::from(le32(&parameters, 0)), le32(&parameters, 4));
    if flags & 2 != 0 {
        return Err(unsupported("it has only what differs from another image"));
    }
    let size = le64(&item(DISK_SIZE, "how large its disk is")?, 0);
    let sector = u64::from(le32(&item(LOGICAL_SECTOR, "how large its sectors are")?, 0));
    if !block.is_power_of_two() || !(MIB..=256 * MIB).contains(&block) || ![512, 4096].contains(&sector) {
        return Err(damaged(&format!("it has blocks of {block} and sectors of {sector} bytes")));
    }
    if size == 0 || size > SIZE_MAX || !size.is_multiple_of(SECTOR) {
        return Err(damaged(&format!("its disk has {size} bytes")));
    }
    // §2.5.1: after each chunk of blocks, an entry for the bitmap of their sectors, which only differences have.
    let chunk = (1u64 << 23) * sector / block;
    let blocks = size.div_ceil(block);
    let entries = blocks + (blocks - 1) / chunk;
    if entries * 8 > bat.len {
        return Err(damaged("its map is too short"));
    }
    if blocks > BLOCKS_MAX {
        return Err(unsupported(&format!("it has {blocks} blocks")));
    }
    let map = read(bat.at, (entries * 8) as usize)?;
    let places = (0..blocks).map(|index| {
        let entry = le64(&map, ((index + index / chunk) * 8) as usize);
        // §2.5.1.1: 6 is there; the others (not present, undefined, zero, unmapped) read as zero.
        match entry & 7 {
            6 if entry >> 20 << 20 < end => Ok(Place::At(entry >> 20 << 20)),
            0..=3 => Ok(Place::Zero),
            _ => Err(damaged("a block is not in the file")),
        }
    });
    let places = places.collect::<Result<Vec<_>, _>>()?;
    Ok(BlockMap::new(file, size, block, places))
}

/// CRC-32C of each byte: the polynomial is 0x1edc6f41, the lowest bit comes first (RFC 3720 appendix B.4).
const CRC32C: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// CRC-32C of data whose own checksum, at 4, counts as zero (§2.2.2).
pub(crate) fn crc32c(data: &[u8]) -> u32 {
    let (head, rest) = data.split_at(data.len().min(4));
    let rest = rest.get(4..).unwrap_or_default();
    let add = |crc: u32, byte: &u8| crc >> 8 ^ CRC32C[(crc as u8 ^ byte) as usize];
    let crc = head.iter().fold(u32::MAX, add);
    !rest.iter().fold([0; 4].iter().fold(crc, add), add)
}
