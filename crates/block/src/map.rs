//! A disk whose blocks lie in a file as a map says: what VDI, VHD and VHDX have in common. For reading only.

use crate::host_file::HostFile;
use crate::{Disk, Extent, check_range};
use std::io;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: it reads as zero.
    Zero,
    /// At this offset of the file.
    At(u64),
}

/// Most blocks that a map may have: it is kept in memory, whatever an image says.
pub(crate) const BLOCKS_MAX: u64 = 1 << 22;

/// The disk.
pub(crate) struct BlockMap {
    file: HostFile,
    size: u64,
    block: u64,
    places: Vec<Place>,
}

impl BlockMap {
    /// A disk of `size` bytes in blocks of `block` bytes; what the map lacks is zero.
    pub(crate) fn new(file: HostFile, size: u64, block: u64, places: Vec<Place>) -> BlockMap {
        BlockMap { file, size, block, places }
    }

    /// Where `offset` is, and for how many bytes that goes on.
    fn place(&self, offset: u64) -> (Place, u64) {
        let index = usize::try_from(offset / self.block).unwrap_or(usize::MAX);
        let within = offset % self.block;
        let place = match self.places.get(index) {
            Some(Place::At(at)) => Place::At(at.saturating_add(within)),
            Some(Place::Zero) | None => Place::Zero,
        };
        (place, self.block - within)
    }
}

impl Disk for BlockMap {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, mut offset: u64, mut data: &mut [u8]) -> io::Result<()> {
        check_range(self.size, offset, data.len() as u64)?;
        while !data.is_empty() {
            let (place, len) = self.place(offset);
            let (now, later) = data.split_at_mut(len.min(data.len() as u64) as usize);
            match place {
                Place::Zero => now.fill(0),
                Place::At(at) => self.file.read_padded(at, now)?,
            }
            offset += now.len() as u64;
            data = later;
        }
        Ok(())
    }

    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        check_range(self.size, offset, len)?;
        let (place, run) = self.place(offset);
        Ok(Extent { len: run.min(len), zero: place == Place::Zero })
    }
}
