//! A large sparse file with a checksum of each of its chunks, or what of it differs from another one.

use crate::SnapshotError;
use crate::files::{map_file, names};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use viv_block::{ContentLayer, Disk, Layers, MemoryDisk, PieceMap, RawDisk};
use viv_model::{Content, Layer};

/// Bytes of a chunk. The last one of a content may be shorter.
pub const CHUNK: u64 = 64 << 10;
/// Bytes of a checksum (BLAKE3). That of a chunk of zeroes is zero, and the chunk a hole.
pub const SUM_LEN: usize = 32;
/// Zeroes, and what has not changed, are left out in pieces of this size.
pub(crate) const PIECE: usize = PieceMap::PIECE as usize;

/// Bytes of checksums that are written, or left out, at once.
const SUMS_AT_ONCE: usize = 16 << 10;

/// Bytes after which whoever has a content compared hears how far that is.
const SLICE: u64 = 64 << 20;

/// Hears that so many more bytes are done, and says whether to go on.
pub type GoOn<'a> = &'a mut dyn FnMut(u64) -> bool;

/// Where a content may have something else than zeroes: offsets and bytes, ascending.
pub type Ranges = [(u64, u64)];

/// A checksum.
pub(crate) type Sum = [u8; SUM_LEN];
/// That of zeroes.
pub(crate) const ZERO: Sum = [0; SUM_LEN];

/// Whether all of `data` is zero.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

/// The checksum of a chunk.
pub(crate) fn sum_of(chunk: &[u8]) -> Sum {
    if is_zero(chunk) { ZERO } else { blake3::hash(chunk).into() }
}

/// Reads the chunk at an offset, unless it is known to be zero: then it answers false.
pub type ReadChunk<'a> = &'a mut dyn FnMut(u64, &mut [u8]) -> io::Result<bool>;

/// Writes a content of `bytes` to `file` and its checksums to `sums`; both are empty, but for what `read` may have left in `file` of a
/// chunk that it gives. It is asked only for chunks of which a part lies in `ranges`.
pub fn write(
    file: &File,
    sums: &File,
    bytes: u64,
    ranges: &Ranges,
    read: ReadChunk<'_>,
) -> io::Result<Content> {
    file.set_len(bytes)?;
    let mut sums = SumsWriter::new(sums);
    let mut buffer = vec![0; CHUNK as usize];
    let (mut data_bytes, mut touched, mut at) = (0, Touched::new(ranges), 0);
    while at < bytes {
        let len = CHUNK.min(bytes - at);
        let chunk = buffer.get_mut(..len as usize).unwrap_or_default();
        let mut sum = ZERO;
        if touched.any(at, len) && read(at, chunk)? {
            let written = write_pieces(file, at, chunk, |_, piece| !is_zero(piece))?;
            data_bytes += written;
            if written != 0 {
                sum = blake3::hash(chunk).into();
            }
        }
        sums.add(&sum)?;
        at += len;
    }
    Ok(Content { bytes, data_bytes, checksum: sums.finish()?, map: None, below: Vec::new() })
}

/// Writes a content of `bytes` to `file`, which is empty, without checksums: for who reads it now, and for nobody afterwards.
pub fn write_passing(file: &File, bytes: u64, read: ReadChunk<'_>) -> io::Result<Content> {
    file.set_len(bytes)?;
    let mut buffer = vec![0; CHUNK as usize];
    let (mut data_bytes, mut at) = (0, 0);
    while at < bytes {
        let len = CHUNK.min(bytes - at);
        let chunk = buffer.get_mut(..len as usize).unwrap_or_default();
        if read(at, chunk)? {
            data_bytes += write_pieces(file, at, chunk, |_, piece| !is_zero(piece))?;
        }
        at += len;
    }
    Ok(Content { bytes, data_bytes, checksum: String::new(), map: None, below: Vec::new() })
}

/// Walks along ranges.
pub(crate) struct Touched<'a>(std::iter::Peekable<std::slice::Iter<'a, (u64, u64)>>);

impl<'a> Touched<'a> {
    pub(crate) fn new(ranges: &'a Ranges) -> Touched<'a> {
        Touched(ranges.iter().peekable())
    }

    /// Whether one lies in here. To be asked with ascending offsets.
    pub(crate) fn any(&mut self, at: u64, len: u64) -> bool {
        while self.0.peek().is_some_and(|(start, length)| start.saturating_add(*length) <= at) {
            self.0.next();
        }
        self.0.peek().is_some_and(|(start, _)| *start < at + len)
    }
}

/// Writes the pieces of a chunk that are wanted by their number in it, neighbours together; how many bytes that were.
pub(crate) fn write_pieces(
    file: &File,
    offset: u64,
    chunk: &[u8],
    wanted: impl Fn(usize, &[u8]) -> bool,
) -> io::Result<u64> {
    let (mut written, mut start, mut at) = (0, None, 0);
    for (index, piece) in chunk.chunks(PIECE).enumerate() {
        match (start, wanted(index, piece)) {
            (None, true) => start = Some(at),
            (Some(from), false) => {
                written += write_run(file, offset, chunk, from..at)?;
                start = None;
            }
            _ => {}
        }
        at += piece.len();
    }
    if let Some(from) = start {
        written += write_run(file, offset, chunk, from..at)?;
    }
    Ok(written)
}

fn write_run(file: &File, offset: u64, chunk: &[u8], range: std::ops::Range<usize>) -> io::Result<u64> {
    let (from, len) = (range.start as u64, range.len() as u64);
    file.write_all_at(chunk.get(range).unwrap_or_default(), offset + from)?;
    Ok(len)
}

/// Writes checksums, and knows theirs.
pub(crate) struct SumsWriter<'a> {
    file: &'a File,
    /// What is to be written at `at`.
    buffer: Vec<u8>,
    at: u64,
    hasher: blake3::Hasher,
}

impl SumsWriter<'_> {
    pub(crate) fn new(file: &File) -> SumsWriter<'_> {
        SumsWriter { file, buffer: Vec::with_capacity(SUMS_AT_ONCE), at: 0, hasher: blake3::Hasher::new() }
    }

    pub(crate) fn add(&mut self, sum: &Sum) -> io::Result<()> {
        self.buffer.extend_from_slice(sum);
        if self.buffer.len() < SUMS_AT_ONCE { Ok(()) } else { self.write() }
    }

    /// Where all is zero there is a hole: a large disk has little on it.
    fn write(&mut self) -> io::Result<()> {
        self.hasher.update(&self.buffer);
        let end = self.at + self.buffer.len() as u64;
        match is_zero(&self.buffer) {
            // Its length says how far it is.
            true => self.file.set_len(end)?,
            false => self.file.write_all_at(&self.buffer, self.at)?,
        }
        self.at = end;
        self.buffer.clear();
        Ok(())
    }

    pub(crate) fn finish(mut self) -> io::Result<String> {
        self.write()?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

/// A content that is compared with what was written, piece by piece or whole. Holes cost nothing.
pub struct Checked {
    path: PathBuf,
    lowest: File,
    /// The ranges that are not in the lowest file.
    above: Vec<(u64, u64)>,
    disk: Arc<dyn Disk>,
    sums: Vec<u8>,
    bytes: u64,
}

/// A file of layers that has the size that it must have, as a disk.
fn layer(path: &Path, bytes: u64) -> Result<Arc<dyn Disk>, SnapshotError> {
    let length = std::fs::metadata(path).map_err(SnapshotError::io("look at", path))?.len();
    if length != bytes {
        return Err(SnapshotError::damaged(path, format!("it has {length} bytes instead of {bytes}")));
    }
    // A program may have no memory, and no file is a disk of nothing.
    if bytes == 0 {
        return Ok(Arc::new(MemoryDisk::zeroed(0).into_read_only()));
    }
    let disk = RawDisk::open(path, true).map_err(|error| SnapshotError::Disk(Box::new(error)))?;
    Ok(Arc::new(disk))
}

fn map(path: &Path, bytes: u64, checksum: &str) -> Result<PieceMap, SnapshotError> {
    let raw = std::fs::read(path).map_err(SnapshotError::io("read", path))?;
    if blake3::hash(&raw).to_hex().as_str() != checksum {
        return Err(SnapshotError::damaged(path, "it is not the map that was written"));
    }
    PieceMap::of(bytes, &raw).ok_or_else(|| SnapshotError::damaged(path, "it has another length"))
}

impl Checked {
    /// The file at `path` with all below it, whose maps and checksums are whole.
    pub(crate) fn open(path: &Path, content: &Content) -> Result<Checked, SnapshotError> {
        let beside = |name: &str| path.with_file_name(name);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let sums_path = beside(&crate::sums_file(&name));
        let sums = std::fs::read(&sums_path).map_err(SnapshotError::io("read", &sums_path))?;
        let chunks = content.bytes.div_ceil(CHUNK);
        if sums.len() as u64 != chunks.saturating_mul(SUM_LEN as u64) {
            let text = format!("it has {} bytes, which are not {chunks} checksums", sums.len());
            return Err(SnapshotError::damaged(&sums_path, text));
        }
        if blake3::hash(&sums).to_hex().as_str() != content.checksum {
            return Err(SnapshotError::damaged(&sums_path, "the checksums are not those of the manifest"));
        }
        let top = Layer { bytes: content.bytes, map: content.map.clone() };
        let (mut layers, mut lowest) = (Vec::new(), None);
        for (name, Layer { bytes, map: checksum }) in
            names(&name, content).into_iter().zip(std::iter::once(&top).chain(&content.below))
        {
            if lowest.is_some() {
                return Err(SnapshotError::damaged(path, "something is below its lowest layer"));
            }
            let disk = layer(&beside(&name), *bytes)?;
            match checksum {
                Some(checksum) => {
                    let map = map(&beside(&map_file(&name)), *bytes, checksum)?;
                    layers.push(ContentLayer { disk, map });
                }
                None => lowest = Some((beside(&name), disk)),
            }
        }
        let missing = || SnapshotError::damaged(path, "its lowest layer is missing");
        let (lowest_path, lowest) = lowest.ok_or_else(missing)?;
        let file = File::open(&lowest_path).map_err(SnapshotError::io("open", &lowest_path))?;
        let (above, disk): (_, Arc<dyn Disk>) = if layers.is_empty() {
            (Vec::new(), lowest)
        } else {
            let layers = Layers::new(content.bytes, layers, lowest);
            (layers.above_lowest(), Arc::new(layers))
        };
        Ok(Checked { path: path.to_owned(), lowest: file, above, disk, sums, bytes: content.bytes })
    }

    /// The lowest file, which has all but [`Checked::above`].
    pub fn lowest(&self) -> &File {
        &self.lowest
    }

    /// The ranges that layers above the lowest have: offset and bytes, ascending.
    pub fn above(&self) -> &Ranges {
        &self.above
    }

    /// The ranges of which the checksums say that they are zeroes: offset and bytes, ascending.
    pub fn zeroes(&self) -> Vec<(u64, u64)> {
        let mut zeroes: Vec<(u64, u64)> = Vec::new();
        let sums = self.sums.as_chunks::<SUM_LEN>().0;
        for (index, _) in (0u64..).zip(sums).filter(|(_, sum)| **sum == [0; SUM_LEN]) {
            let at = index * CHUNK;
            let len = CHUNK.min(self.bytes.saturating_sub(at));
            match zeroes.last_mut() {
                Some((start, before)) if *start + *before == at => *before += len,
                _ => zeroes.push((at, len)),
            }
        }
        zeroes
    }

    /// Reads what is at an offset, unchecked.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, data)
    }

    /// Reads what is at an offset over what is there, unchecked: zeroes that are there already are left alone.
    pub fn read_over(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut at = 0;
        while at < data.len() {
            let place = offset + at as u64;
            let extent = self.disk.extent(place, (data.len() - at) as u64)?;
            let length = usize::try_from(extent.len).unwrap_or(usize::MAX).clamp(1, data.len() - at);
            let piece = data.get_mut(at..at + length).unwrap_or_default();
            if extent.zero {
                piece.chunks_mut(PIECE).filter(|piece| !is_zero(piece)).for_each(|piece| piece.fill(0));
            } else {
                self.disk.read(place, piece)?;
            }
            at += length;
        }
        Ok(())
    }

    /// Reads all of it and says where it is not what was written.
    pub fn verify(&self, go_on: GoOn<'_>) -> Result<(), SnapshotError> {
        let mut at = 0;
        while at < self.bytes {
            let len = SLICE.min(self.bytes - at);
            self.verify_range(at, len)?;
            if !go_on(len) {
                return Err(SnapshotError::GivenUp);
            }
            at += len;
        }
        Ok(())
    }

    /// The same with the chunks of a range.
    pub fn verify_range(&self, offset: u64, len: u64) -> Result<(), SnapshotError> {
        let io = |what| SnapshotError::io(what, &self.path);
        let end = offset.saturating_add(len).min(self.bytes);
        let mut buffer = vec![0; CHUNK as usize];
        // Up to where it is known what there is, and up to where that is zero.
        let (mut known, mut hole) = (0, 0);
        for index in offset / CHUNK..end.div_ceil(CHUNK) {
            let at = index * CHUNK;
            let len = CHUNK.min(self.bytes - at);
            let wrong = || {
                let text = format!("the {len} bytes at offset {at} are not what was written");
                SnapshotError::damaged(&self.path, text)
            };
            let sum = self.sums.as_chunks::<SUM_LEN>().0.get(index as usize).ok_or_else(wrong)?;
            // Not each time: some file systems go over all of it.
            if known <= at {
                let extent = self.disk.extent(at, end.max(at + len) - at).map_err(io("look at"))?;
                known = at + extent.len;
                if extent.zero {
                    hole = known;
                }
            }
            if at + len <= hole {
                if *sum == [0; SUM_LEN] { continue } else { return Err(wrong()) }
            }
            let chunk = buffer.get_mut(..len as usize).unwrap_or_default();
            self.disk.read(at, chunk).map_err(io("read"))?;
            if sum_of(chunk) != *sum {
                return Err(wrong());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Scratch {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("viv-content-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let dir = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&dir).unwrap();
            Scratch(dir)
        }

        fn write(&self, bytes: &[u8], ranges: &Ranges) -> Content {
            let create = |name| File::create(self.0.join(name)).unwrap();
            let read = &mut |at: u64, data: &mut [u8]| {
                data.copy_from_slice(&bytes[at as usize..at as usize + data.len()]);
                Ok(true)
            };
            write(&create("c"), &create("c.sums"), bytes.len() as u64, ranges, read).unwrap()
        }

        fn verify(&self, content: &Content) -> Result<(), SnapshotError> {
            Checked::open(&self.0.join("c"), content)?.verify(&mut |_| true)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn who_has_a_content_compared_hears_how_far_that_is_and_may_give_up() {
        let scratch = Scratch::new();
        let bytes = 2 * SLICE + 4096;
        let file = |name| File::create(scratch.0.join(name)).unwrap();
        let read = &mut |_, _: &mut [u8]| Ok(false);
        let content = write(&file("c"), &file("c.sums"), bytes, &[], read).unwrap();
        let checked = || Checked::open(&scratch.0.join("c"), &content).unwrap();
        let mut heard = Vec::new();
        let mut all = |bytes| {
            heard.push(bytes);
            true
        };
        checked().verify(&mut all).unwrap();
        assert_eq!(heard, [SLICE, SLICE, 4096]);
        let mut calls = 0;
        let given_up = checked().verify(&mut |_| {
            calls += 1;
            calls < 2
        });
        assert!(matches!(given_up, Err(SnapshotError::GivenUp)));
        assert_eq!(calls, 2);
    }

    #[test]
    fn zeroes_are_told_by_the_checksums() {
        let scratch = Scratch::new();
        let mut bytes = vec![0; 5 * CHUNK as usize + 4096];
        bytes[2 * CHUNK as usize + 7] = 1;
        let content = scratch.write(&bytes, &[(0, bytes.len() as u64)]);
        let checked = Checked::open(&scratch.0.join("c"), &content).unwrap();
        assert_eq!(checked.zeroes(), [(0, 2 * CHUNK), (3 * CHUNK, 2 * CHUNK + 4096)]);
    }

    #[test]
    fn what_is_zero_takes_no_space_and_is_verified() {
        use std::os::unix::fs::MetadataExt;
        let scratch = Scratch::new();
        let mut bytes = vec![0; 8 << 20];
        bytes[5 << 20] = 1;
        let content = scratch.write(&bytes, &[(0, 8 << 20)]);
        assert_eq!(content.data_bytes, PIECE as u64);
        assert!(std::fs::metadata(scratch.0.join("c")).unwrap().blocks() * 512 < 256 << 10);
        assert_eq!(std::fs::read(scratch.0.join("c")).unwrap(), bytes);
        scratch.verify(&content).unwrap();
    }

    #[test]
    fn nothing_is_a_content_too() {
        let scratch = Scratch::new();
        let content = scratch.write(&[], &[]);
        scratch.verify(&content).unwrap();
        std::fs::write(scratch.0.join("c"), b"x").unwrap();
        assert!(scratch.verify(&content).is_err());
    }

    #[test]
    fn chunks_outside_the_ranges_are_not_read() {
        let scratch = Scratch::new();
        let mut asked = Vec::new();
        let create = |name| File::create(scratch.0.join(name)).unwrap();
        let ranges = [(CHUNK + 5, 10), (3 * CHUNK - 1, 2)];
        write(&create("c"), &create("c.sums"), 5 * CHUNK + 7, &ranges, &mut |at, data| {
            asked.push((at / CHUNK, data.len()));
            Ok(false)
        })
        .unwrap();
        assert_eq!(asked, [(1, CHUNK as usize), (2, CHUNK as usize), (3, CHUNK as usize)]);
    }

    /// As many as one likes: `VIV_FLIPS=10000 cargo test --release -p viv-snapshot`.
    fn flips() -> u32 {
        std::env::var("VIV_FLIPS").ok().and_then(|number| number.parse().ok()).unwrap_or(64)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(flips()))]

        /// Whatever bit flips, and wherever it is cut: it is found, and where.
        #[test]
        fn every_change_is_found(
            pieces in prop::collection::vec((0usize..299_008, any::<u8>()), 1..20),
            bit in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let scratch = Scratch::new();
            let mut bytes = vec![0; 299_008];
            for (at, byte) in pieces {
                bytes[at] = byte;
            }
            let content = scratch.write(&bytes, &[(0, bytes.len() as u64)]);
            scratch.verify(&content).unwrap();
            for name in ["c", "c.sums"] {
                let path = scratch.0.join(name);
                let good = std::fs::read(&path).unwrap();
                let mut bad = good.clone();
                let at = bit.index(bad.len() * 8);
                bad[at / 8] ^= 1 << (at % 8);
                std::fs::write(&path, &bad).unwrap();
                let error = scratch.verify(&content).unwrap_err().to_string();
                prop_assert!(error.contains("damaged"), "{error}");
                if name == "c" {
                    let chunk = at as u64 / 8 / CHUNK * CHUNK;
                    prop_assert!(error.contains(&format!("offset {chunk} ")), "{error}");
                }
                std::fs::write(&path, &good[..cut.index(good.len())]).unwrap();
                prop_assert!(scratch.verify(&content).is_err());
                std::fs::write(&path, &good).unwrap();
            }
        }
    }
}
