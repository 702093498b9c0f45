//! VHD, Virtual PC's and Azure's image, for reading: fixed and dynamic ones (Microsoft, "Virtual Hard Disk Image Format
//! Specification", 1.0). All numbers are big-endian.

use crate::fields::{be32, be64};
use crate::host_file::HostFile;
use crate::map::{BLOCKS_MAX, BlockMap, Place};
use crate::{OpenError, SECTOR};

/// Length of the footer, of which a dynamic image has a copy at its beginning.
const FOOTER: usize = 512;
const FOOTER_COOKIE: &[u8] = b"conectix";
const HEADER_COOKIE: &[u8] = b"cxsparse";
/// The specification's bound: 2040 GiB.
const SIZE_MAX: u64 = 2040 << 30;
/// A block that was never written.
const FREE: u32 = 0xffff_ffff;
/// Types of disks.
const FIXED: u32 = 2;
const DYNAMIC: u32 = 3;
const DIFFERENCE: u32 = 4;

pub(crate) fn open(file: HostFile) -> Result<BlockMap, OpenError> {
    let damaged = |what: &str| file.damaged("VHD", what.into());
    let read = |at, len| file.read_vec(at, len).map_err(|source| file.failed("read", source));
    let end = file.measure()?;
    let last = end.checked_sub(FOOTER as u64).ok_or_else(|| damaged("it is too short"))?;
    let sound =
        |footer: &Vec<u8>| footer.starts_with(FOOTER_COOKIE) && checksum(footer, 64) == be32(footer, 64);
    // The one at the beginning is for when the end was lost.
    let footer = [read(last, FOOTER)?, read(0, FOOTER)?].into_iter().find(sound);
    let footer = footer.ok_or_else(|| damaged("neither its footer nor the footer's copy is right"))?;
    let size = be64(&footer, 48);
    if size == 0 || size > SIZE_MAX || !size.is_multiple_of(SECTOR) {
        return Err(damaged(&format!("its disk has {size} bytes")));
    }
    match be32(&footer, 60) {
        FIXED if size <= last => return Ok(BlockMap::new(file, size, size, vec![Place::At(0)])),
        FIXED => return Err(damaged("its disk is longer than the file")),
        DYNAMIC => {}
        DIFFERENCE => {
            return Err(file.unsupported("VHD", "it has only what differs from another image".into()));
        }
        other => return Err(damaged(&format!("it has type {other}"))),
    }
    let header_at = be64(&footer, 16);
    if header_at.checked_add(1024).is_none_or(|header_end| header_end > end) {
        return Err(damaged("its header is not in the file"));
    }
    let header = read(header_at, 1024)?;
    if !header.starts_with(HEADER_COOKIE) || checksum(&header, 36) != be32(&header, 36) {
        return Err(damaged("its header is not right"));
    }
    let (map_at, blocks) = (be64(&header, 16), u64::from(be32(&header, 28)));
    let block = u64::from(be32(&header, 32));
    if !block.is_power_of_two() || !(SECTOR..=256 << 20).contains(&block) {
        return Err(damaged(&format!("its blocks have {block} bytes")));
    }
    if size.div_ceil(block) > blocks || map_at.checked_add(blocks * 4).is_none_or(|map_end| map_end > end) {
        return Err(damaged("its map is too short, or not in the file"));
    }
    if size.div_ceil(block) > BLOCKS_MAX {
        return Err(file.unsupported("VHD", format!("it has {} blocks", size.div_ceil(block))));
    }
    let map = read(map_at, size.div_ceil(block) as usize * 4)?;
    // Each block has its own map of the sectors that were written, before them; the others are zero anyway.
    let bitmap = (block / SECTOR / 8).next_multiple_of(SECTOR);
    let places = map.chunks(4).map(|entry| match be32(entry, 0) {
        FREE => Ok(Place::Zero),
        sector => {
            let at = u64::from(sector) * SECTOR + bitmap;
            if at < end { Ok(Place::At(at)) } else { Err(damaged("a block is not in the file")) }
        }
    });
    let places = places.collect::<Result<Vec<_>, _>>()?;
    Ok(BlockMap::new(file, size, block, places))
}

/// The complement of the sum of all bytes but the checksum's own.
pub(crate) fn checksum(data: &[u8], at: usize) -> u32 {
    let own = at..at + 4;
    let others = data.iter().enumerate().filter(|(index, _)| !own.contains(index));
    !others.fold(0u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}
