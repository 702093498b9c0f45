//! A large sparse file with a checksum of each of its chunks.

use crate::SnapshotError;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use viv_model::Content;

/// Bytes of a chunk. The last one of a content may be shorter.
pub const CHUNK: u64 = 64 << 10;
/// Bytes of a checksum (BLAKE3). That of a chunk of zeroes is zero, and the chunk a hole.
pub const SUM_LEN: usize = 32;
/// Zeroes are left out in pieces of this size.
const PIECE: usize = 4 << 10;

/// Where a content may have something else than zeroes: offsets and bytes, ascending.
pub type Ranges = [(u64, u64)];

/// Whether all of `data` is zero.
fn is_zero(data: &[u8]) -> bool {
    let (words, rest) = data.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
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
    let mut sums = HashingWriter { file: io::BufWriter::new(sums), hasher: blake3::Hasher::new() };
    let mut buffer = vec![0; CHUNK as usize];
    let (mut data_bytes, mut ranges, mut at) = (0, ranges.iter().peekable(), 0);
    while at < bytes {
        let len = CHUNK.min(bytes - at);
        while ranges.peek().is_some_and(|(start, length)| start.saturating_add(*length) <= at) {
            ranges.next();
        }
        let touched = ranges.peek().is_some_and(|(start, _)| *start < at + len);
        let chunk = buffer.get_mut(..len as usize).unwrap_or_default();
        let mut sum = [0; SUM_LEN];
        if touched && read(at, chunk)? {
            let written = write_pieces(file, at, chunk)?;
            data_bytes += written;
            if written != 0 {
                sum = blake3::hash(chunk).into();
            }
        }
        sums.add(&sum)?;
        at += len;
    }
    Ok(Content { bytes, data_bytes, checksum: sums.finish()? })
}

/// Writes what is not zero, neighbours together; how many bytes that were.
fn write_pieces(file: &File, offset: u64, chunk: &[u8]) -> io::Result<u64> {
    let (mut written, mut start, mut at) = (0, None, 0);
    for piece in chunk.chunks(PIECE) {
        match (start, is_zero(piece)) {
            (None, false) => start = Some(at),
            (Some(from), true) => {
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

struct HashingWriter<'a> {
    file: io::BufWriter<&'a File>,
    hasher: blake3::Hasher,
}

impl HashingWriter<'_> {
    fn add(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }
    fn finish(mut self) -> io::Result<String> {
        self.file.flush()?;
        Ok(self.hasher.finalize().to_hex().to_string())
    }
}

/// A content that is compared with what was written, piece by piece or whole. Holes cost nothing.
pub struct Checked {
    path: PathBuf,
    file: File,
    sums: Vec<u8>,
    bytes: u64,
}

impl Checked {
    /// The file, whose checksums are whole.
    pub(crate) fn open(path: &Path, content: &Content) -> Result<Checked, SnapshotError> {
        let file = File::open(path).map_err(SnapshotError::io("open", path))?;
        let sums_path =
            path.with_file_name(crate::sums_file(&path.file_name().unwrap_or_default().to_string_lossy()));
        let sums = std::fs::read(&sums_path).map_err(SnapshotError::io("read", &sums_path))?;
        let chunks = content.bytes.div_ceil(CHUNK);
        if sums.len() as u64 != chunks.saturating_mul(SUM_LEN as u64) {
            let text = format!("it has {} bytes, which are not {chunks} checksums", sums.len());
            return Err(SnapshotError::damaged(&sums_path, text));
        }
        if blake3::hash(&sums).to_hex().as_str() != content.checksum {
            return Err(SnapshotError::damaged(&sums_path, "the checksums are not those of the manifest"));
        }
        let length = file.metadata().map_err(SnapshotError::io("look at", path))?.len();
        if length != content.bytes {
            let text = format!("it has {length} bytes instead of {}", content.bytes);
            return Err(SnapshotError::damaged(path, text));
        }
        Ok(Checked { path: path.to_owned(), file, sums, bytes: content.bytes })
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads all of it and says where it is not what was written.
    pub fn verify(&self) -> Result<(), SnapshotError> {
        self.verify_range(0, self.bytes)
    }

    /// The same with the chunks of a range.
    pub fn verify_range(&self, offset: u64, len: u64) -> Result<(), SnapshotError> {
        let io = |what| SnapshotError::io(what, &self.path);
        let end = offset.saturating_add(len).min(self.bytes);
        let mut buffer = vec![0; CHUNK as usize];
        let mut data = Data::new(&self.file, self.bytes);
        for index in offset / CHUNK..end.div_ceil(CHUNK) {
            let at = index * CHUNK;
            let len = CHUNK.min(self.bytes - at);
            let wrong = || {
                let text = format!("the {len} bytes at offset {at} are not what was written");
                SnapshotError::damaged(&self.path, text)
            };
            let sum = self.sums.as_chunks::<SUM_LEN>().0.get(index as usize).ok_or_else(wrong)?;
            let zero = *sum == [0; SUM_LEN];
            if !data.touches(at, len).map_err(io("look at"))? {
                if zero { continue } else { return Err(wrong()) }
            }
            let chunk = buffer.get_mut(..len as usize).unwrap_or_default();
            self.file.read_exact_at(chunk, at).map_err(io("read"))?;
            let good = if zero { is_zero(chunk) } else { <[u8; SUM_LEN]>::from(blake3::hash(chunk)) == *sum };
            if !good {
                return Err(wrong());
            }
        }
        Ok(())
    }
}

/// Walks along the parts of a file that are no holes.
struct Data<'a> {
    file: &'a File,
    length: u64,
    /// The next part: start and end.
    next: (u64, u64),
}

impl<'a> Data<'a> {
    fn new(file: &'a File, length: u64) -> Data<'a> {
        Data { file, length, next: (0, 0) }
    }

    /// Whether a part lies in this range. Ranges must ascend.
    fn touches(&mut self, at: u64, len: u64) -> io::Result<bool> {
        use rustix::fs::{SeekFrom, seek};
        while self.next.1 <= at && self.next.0 < self.length {
            self.next = match seek(self.file, SeekFrom::Data(at)) {
                Ok(start) => (start, seek(self.file, SeekFrom::Hole(start))?),
                // Nothing but a hole to the end (lseek(2)).
                Err(rustix::io::Errno::NXIO) => (u64::MAX, u64::MAX),
                // The file system knows no holes.
                Err(rustix::io::Errno::INVAL) => (at, self.length),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(self.next.0 < at.saturating_add(len) && self.next.1 > at)
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
            Checked::open(&self.0.join("c"), content)?.verify()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever bit flips, and wherever it is cut: it is found, and where.
        #[test]
        fn every_change_is_found(
            pieces in prop::collection::vec((0usize..300_000, any::<u8>()), 1..20),
            bit in any::<prop::sample::Index>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let scratch = Scratch::new();
            let mut bytes = vec![0; 300_000];
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
