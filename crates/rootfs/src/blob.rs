//! Data blobs: contents of files one after the other, each from a block's beginning. What is zero is not written.
use crate::BLOCK;
use crate::fault::{excessive, writing};
use crate::layer::Extent;
use crate::tar::Segment;
use std::io::{Seek, SeekFrom, Write};
use viv_model::Fault;

const ZEROS: [u8; BLOCK] = [0; BLOCK];
/// Bytes of a file that are looked at at once.
const CHUNK: u64 = 256 << 10;
/// Bytes that are written at once.
const WRITE: usize = 1 << 20;
/// Granules of a file at most: this bounds the map of a file with holes to 256 KiB.
const GRANULES_MAX: u64 = 1 << 16;
/// Blocks of a blob at most: EROFS counts a whole device's blocks in 32 bits (erofs_fs.h, blocks_lo).
pub(crate) const BLOCKS_MAX: u64 = 0xffff_0000;

/// Writes a data blob.
pub(crate) struct Blob<'a, W> {
    sink: &'a mut W,
    /// What is to be written at block `start`; whole blocks.
    buffer: Vec<u8>,
    start: u64,
    /// Blocks that files have.
    blocks: u64,
    /// Where the sink is, bytes.
    at: u64,
    /// Room for a file's content.
    chunk: Vec<u8>,
}

impl<'a, W: Write + Seek> Blob<'a, W> {
    pub(crate) fn new(sink: &'a mut W) -> Blob<'a, W> {
        Blob {
            sink,
            buffer: Vec::with_capacity(WRITE + CHUNK as usize),
            start: 0,
            blocks: 0,
            at: 0,
            chunk: Vec::new(),
        }
    }

    /// Writes a file of `size` bytes, whose content `read` gives segment by segment; tells where it is.
    ///
    /// A file is cut into granules of a power of two of blocks. A granule that is all zero gets no place in the blob; the others
    /// get one as a whole, in which single blocks of zeros are not written either. A granule is one block, but for files that
    /// would then have more than [`GRANULES_MAX`].
    pub(crate) fn file(
        &mut self,
        size: u64,
        segments: &[Segment],
        mut read: impl FnMut(&mut [u8]) -> Result<(), Fault>,
    ) -> Result<Vec<Extent>, Fault> {
        let mut file = Cut::new(size)?;
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.clear();
        let mut chunk_at = 0;
        for segment in segments {
            let end = segment.offset.saturating_add(segment.length).min(size);
            let mut offset = segment.offset;
            while offset < end {
                let here = offset - offset % CHUNK;
                if here != chunk_at {
                    self.chunk(&mut file, chunk_at, &mut chunk)?;
                    chunk_at = here;
                }
                let (from, to) = ((offset - here) as usize, (end - here).min(CHUNK) as usize);
                chunk.resize(to, 0);
                read(chunk.get_mut(from..).unwrap_or_default())?;
                offset = here + to as u64;
            }
        }
        self.chunk(&mut file, chunk_at, &mut chunk)?;
        self.chunk = chunk;
        Ok(file.extents)
    }

    /// Takes a file's content from byte `chunk_at` on.
    fn chunk(&mut self, file: &mut Cut, chunk_at: u64, chunk: &mut Vec<u8>) -> Result<(), Fault> {
        let first = chunk_at / BLOCK as u64;
        for (block, content) in (first..).zip(chunk.chunks(BLOCK)) {
            if ZEROS.starts_with(content) {
                continue;
            }
            let at = file.place(block, &mut self.blocks);
            if self.blocks > BLOCKS_MAX {
                return Err(excessive(
                    "its files are larger than the 16 TiB that a root file system may have",
                ));
            }
            self.put(at, content)?;
        }
        chunk.clear();
        Ok(())
    }

    /// Puts content, at most a block, at `block`.
    fn put(&mut self, block: u64, bytes: &[u8]) -> Result<(), Fault> {
        let end = self.start.saturating_add((self.buffer.len() / BLOCK) as u64);
        if block != end || self.buffer.len() >= WRITE {
            self.flush()?;
            self.start = block;
        }
        self.buffer.extend_from_slice(bytes);
        self.buffer.resize(self.buffer.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let start = self.start.saturating_mul(BLOCK as u64);
        let written = if start == self.at { Ok(start) } else { self.sink.seek(SeekFrom::Start(start)) };
        written
            .and_then(|_| self.sink.write_all(&self.buffer))
            .map_err(|error| writing("the layer's data", &error))?;
        self.at = start.saturating_add(self.buffer.len() as u64);
        self.buffer.clear();
        Ok(())
    }

    /// Writes what is left, and gives the blob its length.
    pub(crate) fn finish(mut self) -> Result<u64, Fault> {
        self.flush()?;
        let end = self.blocks.saturating_mul(BLOCK as u64);
        if self.at < end {
            // A hole at the end: its last byte makes the length.
            self.sink
                .seek(SeekFrom::Start(end - 1))
                .and_then(|_| self.sink.write_all(&[0]))
                .map_err(|error| writing("the layer's data", &error))?;
        }
        self.sink.flush().map_err(|error| writing("the layer's data", &error))?;
        Ok(self.blocks)
    }
}

/// Blocks of a granule of a file of `blocks`: an extent begins and ends at a granule's edge, or ends with the file.
pub(crate) fn granule(blocks: u64) -> u64 {
    blocks.div_ceil(GRANULES_MAX).max(1).checked_next_power_of_two().unwrap_or(1 << 63)
}

/// One file, cut into granules.
struct Cut {
    /// Of the file, and of a granule of it.
    blocks: u64,
    granule: u64,
    extents: Vec<Extent>,
}

impl Cut {
    fn new(size: u64) -> Result<Cut, Fault> {
        let blocks = size.div_ceil(BLOCK as u64);
        if blocks > BLOCKS_MAX {
            return Err(excessive(format!(
                "a file says that it has {size} bytes, more than the 16 TiB that a root file system may have"
            )));
        }
        Ok(Cut { blocks, granule: granule(blocks), extents: Vec::new() })
    }

    /// Where the file's `block` is in the blob; a granule that comes for the first time is put at `end`.
    fn place(&mut self, block: u64, end: &mut u64) -> u64 {
        if let Some(last) = self.extents.last()
            && block - last.from < last.blocks
        {
            return last.at + (block - last.from);
        }
        let from = block - block % self.granule;
        let blocks = self.granule.min(self.blocks - from);
        let at = *end;
        *end += blocks;
        match self.extents.last_mut() {
            Some(last) if last.from + last.blocks == from && last.at + last.blocks == at => {
                last.blocks += blocks
            }
            _ => self.extents.push(Extent { from, at, blocks }),
        }
        at + (block - from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// Writes files, each given as the blocks that are not zero.
    fn write(files: &[(u64, Vec<u64>)]) -> (Vec<Vec<Extent>>, u64, Vec<u8>) {
        let mut sink = Cursor::new(Vec::new());
        let mut blob = Blob::new(&mut sink);
        let mut extents = Vec::new();
        for (size, blocks) in files {
            let mut segments = Vec::new();
            for block in blocks {
                let offset = block * BLOCK as u64;
                segments.push(Segment { offset, length: (size - offset).min(BLOCK as u64) });
            }
            let file = blob.file(*size, &segments, |bytes| {
                bytes.fill(7);
                Ok(())
            });
            extents.push(file.unwrap());
        }
        let blocks = blob.finish().unwrap();
        (extents, blocks, sink.into_inner())
    }

    #[test]
    fn zeros_take_no_room() {
        let (extents, blocks, data) = write(&[(8 << 30, vec![]), (3 * 4096, vec![0, 2]), (5, vec![0])]);
        assert_eq!(extents[0], []);
        assert_eq!(extents[1], [Extent { from: 0, at: 0, blocks: 1 }, Extent { from: 2, at: 1, blocks: 1 }]);
        assert_eq!(extents[2], [Extent { from: 0, at: 2, blocks: 1 }]);
        assert_eq!((blocks, data.len()), (3, 3 * 4096));
        assert_eq!(data[2 * 4096..2 * 4096 + 6], [7, 7, 7, 7, 7, 0]);
    }

    #[test]
    fn a_huge_file_is_cut_into_larger_granules() {
        // 1 GiB has 4 times as many blocks as it may have granules.
        let (extents, blocks, data) = write(&[(1 << 30, vec![5, 1000])]);
        assert_eq!(
            extents[0],
            [Extent { from: 4, at: 0, blocks: 4 }, Extent { from: 1000, at: 4, blocks: 4 }]
        );
        assert_eq!((blocks, data.len()), (8, 8 * 4096));
        assert_eq!((data[0], data[4096], data[4 * 4096]), (0, 7, 7));
    }

    proptest! {
        /// Whatever a file's content, reading it by its extents gives it back.
        #[test]
        fn what_is_written_is_found(
            pieces in proptest::collection::vec((0u64..2_000_000, 1usize..300_000, 0u8..3), 0..5),
            tail in 0u64..10_000,
        ) {
            let (mut content, mut segments, mut size) = (Vec::new(), Vec::new(), 0);
            for (gap, length, byte) in pieces {
                content.resize(content.len() + gap as usize, 0);
                content.resize(content.len() + length, byte);
                segments.push(Segment { offset: size + gap, length: length as u64 });
                size += gap + length as u64;
            }
            size += tail;
            content.resize(size as usize, 0);
            let mut sink = Cursor::new(Vec::new());
            let mut blob = Blob::new(&mut sink);
            let mut stream = segments.iter().flat_map(|segment| {
                &content[segment.offset as usize..(segment.offset + segment.length) as usize]
            });
            let extents = blob.file(size, &segments, |bytes| {
                bytes.fill_with(|| *stream.next().unwrap());
                Ok(())
            }).unwrap();
            let blocks = blob.finish().unwrap();
            let data = sink.into_inner();
            prop_assert_eq!(data.len() as u64, blocks * BLOCK as u64);
            let mut found = vec![0; (size as usize).next_multiple_of(BLOCK)];
            for extent in extents {
                let (from, at, length) = (extent.from as usize, extent.at as usize, extent.blocks as usize);
                found[from * BLOCK..(from + length) * BLOCK].copy_from_slice(&data[at * BLOCK..(at + length) * BLOCK]);
            }
            found.truncate(size as usize);
            prop_assert!(found == content);
        }
    }
}
