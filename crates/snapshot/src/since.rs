//! What of a content differs from an earlier one, which has been written down.
//!
//! Chunks are compared by their checksums. Of one that differs, the earlier content is read, and the pieces are written in which
//! they differ: so nobody needs to have watched what was changed, and what was written twice with the same is left out.
use crate::content::{
    CHUNK, PIECE, ReadChunk, SUM_LEN, Sum, SumsWriter, Touched, ZERO, is_zero, sum_of, write_pieces,
};
use crate::{Ranges, SnapshotError};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use viv_block::{ContentLayer, Disk, Layers, PieceMap, RawDisk};
use viv_model::Content;

/// Most layers of a content: whoever reads it has all of them open.
pub const LAYERS_MAX: usize = 8;

/// An earlier content, as open files.
pub struct Base {
    disk: Layers,
    sums: Vec<u8>,
}

impl Base {
    /// From its checksums, its layers with their maps, from the top, and the lowest one. Whoever opened them knows that they belong
    /// together.
    pub fn new(sums: &File, layers: &[(File, File)], lowest: &File) -> Result<Base, SnapshotError> {
        let path = Path::new("what the snapshot is based on");
        let io = |what| SnapshotError::io(what, path);
        let whole = |file: &File| {
            let mut bytes = vec![0; file.metadata()?.len() as usize];
            file.read_exact_at(&mut bytes, 0).map(|()| bytes)
        };
        let open = |file: &File| {
            RawDisk::of(file, path).map(Arc::new).map_err(|error| SnapshotError::Disk(Box::new(error)))
        };
        let (mut above, mut size) = (Vec::new(), None);
        for (file, map) in layers {
            let disk = open(file)?;
            size.get_or_insert(disk.size());
            let map = PieceMap::of(disk.size(), &whole(map).map_err(io("read"))?)
                .ok_or_else(|| SnapshotError::damaged(path, "a map has another length"))?;
            above.push(ContentLayer { disk, map });
        }
        let lowest = open(lowest)?;
        let size = size.unwrap_or(lowest.size());
        Ok(Base { disk: Layers::new(size, above, lowest), sums: whole(sums).map_err(io("read"))? })
    }

    fn sum(&self, chunk: u64) -> Option<Sum> {
        self.sums.as_chunks::<SUM_LEN>().0.get(chunk as usize).copied()
    }

    /// The pieces of a chunk that are not as they were here, by a bit each; those beyond the end count.
    fn differing(&self, at: u64, chunk: &[u8], before: &mut [u8]) -> io::Result<u64> {
        let known = self.disk.size().saturating_sub(at).min(chunk.len() as u64) as usize;
        let before = before.get_mut(..known).unwrap_or_default();
        if known != 0 {
            self.disk.read(at, before)?;
        }
        let mut before = before.chunks(PIECE);
        let differs = chunk.chunks(PIECE).map(|piece| before.next() != Some(piece));
        Ok(differs.enumerate().fold(0, |bits, (index, differs)| bits | u64::from(differs) << index))
    }
}

/// Where a content goes of which only the difference is written; all are empty.
pub struct Since<'a> {
    /// The pieces that differ.
    pub file: &'a File,
    /// The checksums of all.
    pub sums: &'a File,
    /// Which pieces differ.
    pub map: &'a File,
    /// From what.
    pub base: &'a Base,
}

impl Since<'_> {
    /// Writes what differs of a content of `bytes`, which may have something else than zeroes in `ranges`; `read` is as in
    /// [`crate::write_content`]. Chunks that are `known` by their offset to be as they were are not read. What is below is left to
    /// the caller to say.
    pub fn write(
        &self,
        bytes: u64,
        ranges: &Ranges,
        known: impl Fn(u64) -> bool,
        read: ReadChunk<'_>,
    ) -> io::Result<Content> {
        self.file.set_len(bytes)?;
        let (mut sums, mut map) = (SumsWriter::new(self.sums), PieceMap::new(bytes));
        let (mut now, mut before) = (vec![0; CHUNK as usize], vec![0; CHUNK as usize]);
        let (mut data_bytes, mut touched, mut at) = (0, Touched::new(ranges), 0);
        while at < bytes {
            let len = CHUNK.min(bytes - at);
            // A last chunk that was shorter, or longer, had another checksum.
            let was_len = self.base.disk.size().saturating_sub(at).min(CHUNK);
            let was = self.base.sum(at / CHUNK).filter(|_| was_len == len);
            let any = touched.any(at, len);
            let sum = match was {
                Some(was) if !any && was == ZERO || known(at) => was,
                _ => {
                    let chunk = now.get_mut(..len as usize).unwrap_or_default();
                    if !any || !read(at, chunk)? {
                        chunk.fill(0);
                    }
                    let sum = sum_of(chunk);
                    if was != Some(sum) {
                        let differs = self.base.differing(at, chunk, &mut before)?;
                        let is_new = |index: usize| differs >> index & 1 != 0;
                        data_bytes += write_pieces(self.file, at, chunk, |index, piece| {
                            is_new(index) && !is_zero(piece)
                        })?;
                        let first = at / PIECE as u64;
                        (0..u64::BITS as usize)
                            .filter(|index| is_new(*index))
                            .for_each(|index| map.set(first + index as u64));
                    }
                    sum
                }
            };
            sums.add(&sum)?;
            at += len;
        }
        let map = map.to_bytes();
        self.map.write_all_at(&map, 0)?;
        Ok(Content {
            bytes,
            data_bytes,
            checksum: sums.finish()?,
            map: Some(blake3::hash(&map).to_hex().to_string()),
            below: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{Checked, write};
    use crate::files::{content_files, layer_file, map_file, sums_file};
    use proptest::prelude::*;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};
    use viv_model::Layer;

    /// Directories of contents called `c`, each above the one before.
    struct Chain(PathBuf, Vec<Content>);

    impl Chain {
        fn new() -> Chain {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("viv-since-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            Chain(std::env::temp_dir().join(name), Vec::new())
        }

        fn dir(&self, index: usize) -> PathBuf {
            self.0.join(index.to_string())
        }

        /// Writes the next one; `known` are chunks that need not be read.
        fn add(&mut self, bytes: &[u8], known: &dyn Fn(u64) -> bool) {
            let dir = self.dir(self.1.len());
            std::fs::create_dir_all(&dir).unwrap();
            let create = |name: &str| {
                File::options().read(true).write(true).create_new(true).open(dir.join(name)).unwrap()
            };
            let read = &mut |at: u64, data: &mut [u8]| {
                data.copy_from_slice(&bytes[at as usize..at as usize + data.len()]);
                Ok(true)
            };
            let (size, ranges) = (bytes.len() as u64, [(0, bytes.len() as u64)]);
            let (file, sums) = (create("c"), create(&sums_file("c")));
            let content = match self.1.last() {
                None => write(&file, &sums, size, &ranges, read).unwrap(),
                Some(before) => {
                    let from = self.dir(self.1.len() - 1);
                    let below =
                        [&[Layer { bytes: before.bytes, map: before.map.clone() }][..], &before.below]
                            .concat();
                    let open = |name: String| File::open(dir.join(name)).unwrap();
                    for depth in 1..=below.len() {
                        let (to, was) = (
                            layer_file("c", depth),
                            match depth {
                                1 => "c".to_string(),
                                _ => layer_file("c", depth - 1),
                            },
                        );
                        std::fs::hard_link(from.join(&was), dir.join(&to)).unwrap();
                        let _ = std::fs::hard_link(from.join(map_file(&was)), dir.join(map_file(&to)));
                    }
                    let layers: Vec<_> = (1..below.len())
                        .map(|depth| layer_file("c", depth))
                        .map(|name| (open(name.clone()), open(map_file(&name))))
                        .collect();
                    let lowest = open(layer_file("c", below.len()));
                    let base =
                        Base::new(&File::open(from.join("c.sums")).unwrap(), &layers, &lowest).unwrap();
                    let map = create(&map_file("c"));
                    let since = Since { file: &file, sums: &sums, map: &map, base: &base };
                    Content { below, ..since.write(size, &ranges, known, read).unwrap() }
                }
            };
            for (name, bytes) in content_files("c", &content) {
                assert_eq!(std::fs::metadata(dir.join(&name)).unwrap().len(), bytes, "{name}");
            }
            self.1.push(content);
        }

        fn open(&self, index: usize) -> Result<Checked, SnapshotError> {
            Checked::open(&self.dir(index).join("c"), &self.1[index])
        }
    }

    impl Drop for Chain {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const SIZE: usize = 5 * CHUNK as usize + 512 * 3;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Each reads as what it was, has no more than what changed, needs none of the others, and shows what flips in any layer.
        #[test]
        fn each_is_what_it_was(
            steps in prop::collection::vec(
                (prop::collection::vec((0..SIZE, 0u8..3), 0..12), -4i64..5, any::<bool>()), 1..6),
            bit in any::<prop::sample::Index>(),
        ) {
            let mut chain = Chain::new();
            let mut now = vec![0u8; SIZE];
            let mut all = Vec::new();
            for (changes, more, tell) in steps {
                let before = now.clone();
                now.resize((now.len() as i64 + more * 512) as usize, 0);
                for (at, byte) in changes {
                    let at = at.min(now.len() - 1);
                    now[at] = byte;
                }
                let same = |at: u64| {
                    let range = at as usize..(at as usize + CHUNK as usize).min(now.len());
                    before.get(range.clone()) == Some(&now[range])
                };
                chain.add(&now, &|at| tell && same(at));
                if all.len() > 1 {
                    let changed = now.chunks(PIECE).enumerate().filter(|(index, piece)| {
                        let at = index * PIECE;
                        before.get(at..(at + PIECE).min(before.len())) != Some(*piece) && !is_zero(piece)
                    });
                    let most = changed.map(|(_, piece)| piece.len() as u64).sum::<u64>();
                    prop_assert!(chain.1.last().unwrap().data_bytes <= most);
                }
                all.push(now.clone());
            }
            for (index, content) in all.iter().enumerate() {
                let checked = chain.open(index).unwrap();
                checked.verify(&mut |_| true).unwrap();
                let mut read = vec![0xee; content.len()];
                checked.read(0, &mut read).unwrap();
                prop_assert!(read == *content);
                // What is mapped and what is laid over it.
                let mut laid = vec![0; content.len()];
                let lowest = std::fs::read(chain.dir(index).join(layer_file("c", index))).or_else(|_| std::fs::read(chain.dir(index).join("c"))).unwrap();
                let len = lowest.len().min(laid.len());
                laid[..len].copy_from_slice(&lowest[..len]);
                for (at, len) in checked.above() {
                    checked.read(*at, &mut laid[*at as usize..(at + len) as usize]).unwrap();
                }
                prop_assert!(laid == *content);
            }
            let last = all.len() - 1;
            if last > 0 {
                // Nobody needs the one before.
                std::fs::remove_dir_all(chain.dir(last - 1)).unwrap();
                chain.open(last).unwrap().verify(&mut |_| true).unwrap();
                let map = chain.dir(last).join("c.map");
                let mut bytes = std::fs::read(&map).unwrap();
                let at = bit.index(bytes.len() * 8);
                bytes[at / 8] ^= 1 << (at % 8);
                std::fs::write(&map, &bytes).unwrap();
                prop_assert!(chain.open(last).is_err());
            }
        }
    }
}
