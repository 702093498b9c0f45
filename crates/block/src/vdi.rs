//! VDI, VirtualBox's image, for reading: fixed and dynamic ones (VirtualBox src/VBox/Storage/VDICore.h). A map says
//! for each block where in the file it is.

use crate::fields::{le32, le64};
use crate::host_file::HostFile;
use crate::map::{BLOCKS_MAX, BlockMap, Place};
use crate::{OpenError, SECTOR};

/// Length of the header that we read.
const HEADER: usize = 512;
/// Entries of the map that are no place: never written; and discarded, which reads as zero.
const FREE: u32 = 0xffff_ffff;
const ZERO: u32 = 0xffff_fffe;

pub(crate) fn open(file: HostFile) -> Result<BlockMap, OpenError> {
    let header = file.read_vec(0, HEADER).map_err(|source| file.failed("read", source))?;
    let damaged = |what: String| file.damaged("VDI", what);
    if le32(&header, 64) != 0xbeda_107f {
        return Err(damaged("it does not begin like one".into()));
    }
    let version = le32(&header, 68);
    if version >> 16 != 1 {
        return Err(file.unsupported("VDI", format!("it has version {}.{}", version >> 16, version & 0xffff)));
    }
    // 1: dynamic, 2: fixed, 3: undo, 4: difference.
    match le32(&header, 76) {
        1 | 2 => {}
        3 | 4 => return Err(file.unsupported("VDI", "it has only what differs from another image".into())),
        other => return Err(damaged(format!("it has type {other}"))),
    }
    let (map_at, data_at) = (u64::from(le32(&header, 340)), u64::from(le32(&header, 344)));
    let (size, block) = (le64(&header, 368), u64::from(le32(&header, 376)));
    let (extra, blocks) = (le32(&header, 380), le32(&header, 384));
    if !block.is_power_of_two() || !(4096..=64 << 20).contains(&block) || extra != 0 {
        return Err(damaged(format!("its blocks have {block} bytes, and {extra} before them")));
    }
    if size == 0 || size.div_ceil(block) > u64::from(blocks) || u64::from(blocks) > BLOCKS_MAX {
        return Err(damaged(format!("its disk of {size} bytes does not fit into {blocks} blocks")));
    }
    let end = file.measure()?;
    if map_at + u64::from(blocks) * 4 > end {
        return Err(damaged("its map is not in the file".into()));
    }
    let map = file.read_vec(map_at, blocks as usize * 4).map_err(|source| file.failed("read", source))?;
    let places = map.chunks(4).map(|entry| match le32(entry, 0) {
        FREE | ZERO => Ok(Place::Zero),
        index => {
            let place = data_at + u64::from(index) * block;
            if place < end { Ok(Place::At(place)) } else { Err(damaged("a block is not in the file".into())) }
        }
    });
    let places = places.collect::<Result<Vec<_>, _>>()?;
    // A size that is no multiple of a sector is made one: the last block has room.
    Ok(BlockMap::new(file, size.next_multiple_of(SECTOR), block, places))
}
