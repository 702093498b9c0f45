//! VDI, VirtualBox's image: fixed and dynamic ones for reading, new fixed ones to copy a disk into (VirtualBox
//! src/VBox/Storage/VDICore.h). A map says for each block where in the file it is.

use crate::fields::{le32, le64};
use crate::host_file::HostFile;
use crate::map::{BLOCKS_MAX, BlockMap, Place};
use crate::raw::check_size;
use crate::{Disk, OpenError, SECTOR, check_range};
use std::io::{self, Read};
use std::path::Path;

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

/// Length of the part of the header whose length is told (from byte 72), and bytes of a block as VirtualBox makes them.
const TOLD: u32 = 400;
const BLOCK: u64 = 1 << 20;
/// Fixed: each block has its place from the beginning.
const FIXED: u32 = 2;

/// A new image, for a disk to be copied into.
///
/// It is a fixed one, the only kind whose map never changes; the file is sparse all the same.
pub struct NewVdi {
    file: HostFile,
    size: u64,
    data_at: u64,
}

impl NewVdi {
    /// Makes a new image for a disk of this size, all zero.
    pub fn create(path: &Path, size: u64) -> Result<NewVdi, OpenError> {
        let blocks = size.div_ceil(BLOCK);
        if let Err(error) = check_size(size) {
            return Err(OpenError::BadSize { path: path.to_owned(), text: error.to_string() });
        }
        if blocks > BLOCKS_MAX {
            let text = format!("a VDI image has at most {BLOCKS_MAX} blocks of {BLOCK} bytes");
            return Err(OpenError::BadSize { path: path.to_owned(), text });
        }
        let file = HostFile::create(path)?;
        let map_at = HEADER as u64;
        let data_at = (map_at + blocks * 4).next_multiple_of(BLOCK);
        let write = || -> io::Result<()> {
            file.set_size(data_at + blocks * BLOCK)?;
            let map: Vec<u8> = (0..blocks as u32).flat_map(u32::to_le_bytes).collect();
            file.write(map_at, &map)?;
            file.write(0, &header(size, blocks as u32, map_at as u32, data_at as u32, &identities()?))
        };
        write().map_err(|source| file.failed("write", source))?;
        Ok(NewVdi { file, size, data_at })
    }
}

/// Two numbers that no other image has: of the image, and of its last change.
fn identities() -> io::Result<[u8; 32]> {
    let mut random = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    Ok(random)
}

fn header(size: u64, blocks: u32, map_at: u32, data_at: u32, identities: &[u8; 32]) -> Vec<u8> {
    let mut header = vec![0; HEADER];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in header.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0, b"<<< Oracle VM VirtualBox Disk Image >>>\n");
    let numbers = [
        (64, 0xbeda_107f),
        (68, 0x0001_0001), // the version
        (72, TOLD),
        (76, FIXED),
        (340, map_at),
        (344, data_at),
        (360, SECTOR as u32),
        (376, BLOCK as u32),
        (384, blocks),
        (388, blocks), // all of them have their place
    ];
    for (at, number) in numbers {
        put(at, &u32::to_le_bytes(number));
    }
    put(368, &size.to_le_bytes());
    put(392, identities);
    header
}

impl Disk for NewVdi {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len() as u64)?;
        self.file.read_padded(self.data_at + offset, data)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len() as u64)?;
        self.file.write(self.data_at + offset, data)
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(self.size, offset, len)?;
        self.file.punch(self.data_at + offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        check_range(self.size, offset, len)?;
        self.file.zero(self.data_at + offset, len, unmap)
    }
}
