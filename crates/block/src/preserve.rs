//! A disk that can be preserved as it is at one moment, while it goes on: what the guest is about to change is copied first. From then on
//! it is known what has changed, by the piece.

use crate::Disk;
use crate::watched::{Watch, Watched};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// Bytes of a piece: what is copied, and read, at once.
const PIECE: u64 = 64 << 10;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk of which [`Preserving::preserve`] makes a [`Preserved`].
pub type Preserving = Watched<Preservation>;

/// What is preserved and known of one disk. Set only while nobody changes the disk.
#[derive(Default)]
pub struct Preservation(RwLock<State>);

#[derive(Default)]
struct State {
    kept: Option<Weak<Kept>>,
    /// What has changed since that is known.
    changed: Option<Pieces>,
}

/// What a disk held at one moment: the pieces that have changed since are in a file, the others still on the disk.
pub struct Preserved {
    disk: Weak<dyn Disk>,
    kept: Arc<Kept>,
    /// What had changed until then.
    changed: Option<Pieces>,
}

struct Kept {
    size: u64,
    /// The pieces that are in the file. Added to with `file` locked.
    copied: Pieces,
    file: Mutex<KeptFile>,
}

struct KeptFile {
    file: File,
    /// Why something is missing in the file.
    failed: Option<io::Error>,
}

impl KeptFile {
    /// Fails if something is missing in it.
    fn whole(&self) -> io::Result<()> {
        let failed = self.failed.as_ref().map(|error| io::Error::new(error.kind(), error.to_string()));
        failed.map_or(Ok(()), Err)
    }
}

/// Pieces of a disk, by a bit for each.
struct Pieces {
    words: Box<[AtomicU64]>,
    count: u64,
}

impl Pieces {
    /// None of a disk of so many bytes.
    fn none(size: u64) -> Pieces {
        let count = size.div_ceil(PIECE);
        Pieces { words: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(), count }
    }

    fn word(&self, piece: u64) -> (Option<&AtomicU64>, u64) {
        let index = usize::try_from(piece / 64).ok().filter(|_| piece < self.count);
        (index.and_then(|index| self.words.get(index)), 1 << (piece % 64))
    }

    /// What is beyond the end is always there.
    fn has(&self, piece: u64) -> bool {
        let (word, bit) = self.word(piece);
        word.is_none_or(|word| word.load(Ordering::Acquire) & bit != 0)
    }

    fn add(&self, piece: u64) {
        let (word, bit) = self.word(piece);
        // Most are there already: their line of the cache stays shared.
        if let Some(word) = word.filter(|word| word.load(Ordering::Acquire) & bit == 0) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    fn all(&self) -> impl Iterator<Item = u64> {
        let words =
            (0..).step_by(64).zip(&self.words).map(|(first, word)| (first, word.load(Ordering::Acquire)));
        let words = words.filter(|(_, word)| *word != 0);
        words.flat_map(|(first, word)| {
            (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| first + bit)
        })
    }

    /// Adds those of a range of bytes.
    fn add_range(&self, range: &Range<u64>) {
        (range.start / PIECE..range.end.div_ceil(PIECE).min(self.count)).for_each(|piece| self.add(piece));
    }
}

impl Kept {
    /// Copies what is on the disk in this range, before it changes.
    fn keep(&self, disk: &dyn Disk, range: Range<u64>) {
        for piece in range.start / PIECE..range.end.min(self.size).div_ceil(PIECE) {
            if self.copied.has(piece) {
                continue;
            }
            let mut state = locked(&self.file);
            if state.failed.is_none() && !self.copied.has(piece) {
                match copy(disk, &state.file, piece, self.size) {
                    Ok(()) => self.copied.add(piece),
                    Err(error) => state.failed = Some(error),
                }
            }
            if state.failed.is_some() {
                return;
            }
        }
    }
}

fn copy(disk: &dyn Disk, file: &File, piece: u64, size: u64) -> io::Result<()> {
    let (at, len) = (piece * PIECE, PIECE.min(size - piece * PIECE));
    let mut data = vec![0; len as usize];
    if read_used(disk, at, &mut data)? {
        file.write_all_at(&data, at)?;
    }
    Ok(())
}

/// Reads, unless the disk says that all of it is zero.
fn read_used(disk: &dyn Disk, offset: u64, data: &mut [u8]) -> io::Result<bool> {
    let len = data.len() as u64;
    let extent = disk.extent(offset, len)?;
    if extent.zero && extent.len >= len {
        return Ok(false);
    }
    disk.read(offset, data)?;
    Ok(true)
}

impl Preserving {
    /// The disk, of which nothing is preserved yet.
    pub fn new(disk: Arc<dyn Disk>) -> Preserving {
        Watched::over(disk, Preservation::default())
    }

    /// What the disk holds now, for as long as somebody wants to read it. What changes is kept in `file`, which is empty, at its
    /// own offset. Nobody may be changing the disk at this moment. There is one at a time: an earlier one ends.
    pub fn preserve(&self, file: File) -> Preserved {
        let size = self.size();
        let file = Mutex::new(KeptFile { file, failed: None });
        let kept = Arc::new(Kept { size, copied: Pieces::none(size), file });
        let mut state = self.watch().0.write().unwrap_or_else(PoisonError::into_inner);
        state.kept = Some(Arc::downgrade(&kept));
        let changed = state.changed.replace(Pieces::none(size));
        Preserved { disk: Arc::downgrade(self.disk()), kept, changed }
    }

    /// From now on it is known what changes.
    pub fn follow(&self) {
        let mut state = self.watch().0.write().unwrap_or_else(PoisonError::into_inner);
        state.changed = Some(Pieces::none(self.size()));
    }
}

impl Watch for Preservation {
    fn change(&self, disk: &dyn Disk, range: Range<u64>, act: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        if !range.is_empty() {
            let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(changed) = &state.changed {
                changed.add_range(&range);
            }
            if let Some(kept) = state.kept.as_ref().and_then(Weak::upgrade) {
                kept.keep(disk, range);
            }
        }
        act()
    }

    fn resize(&self, disk: &dyn Disk, size: u64, act: &dyn Fn() -> io::Result<()>) -> io::Result<()> {
        // What is cut off changes.
        self.change(disk, size..u64::MAX, act)
    }
}

impl Preserved {
    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.kept.size
    }

    fn disk(&self) -> io::Result<Arc<dyn Disk>> {
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the disk has gone meanwhile");
        self.disk.upgrade().ok_or_else(gone)
    }

    /// Where it may have something else than zeroes: offsets and bytes, ascending. A large disk has little on it.
    pub fn ranges(&self) -> io::Result<Vec<(u64, u64)>> {
        let disk = self.disk()?;
        let (mut ranges, mut at) = (Vec::new(), 0);
        let end = self.size().min(disk.size());
        while at < end {
            let extent = disk.extent(at, end - at)?;
            if !extent.zero {
                ranges.push((at, extent.len));
            }
            at += extent.len.max(1);
        }
        locked(&self.kept.file).whole()?;
        // What has gone from the disk since then, or just now, is in the file.
        ranges.extend(self.kept.copied.all().map(|piece| (piece * PIECE, PIECE)));
        ranges.sort_unstable();
        Ok(ranges)
    }

    /// Whether the piece at `offset` is known to be as it was when the disk was preserved before, or followed. It need not be
    /// read then.
    pub fn is_unchanged(&self, offset: u64) -> bool {
        let unchanged = self.changed.as_ref().is_some_and(|changed| !changed.has(offset / PIECE));
        if unchanged {
            // Nobody will read it: the disk goes on without keeping it.
            let _file = locked(&self.kept.file);
            self.kept.copied.add(offset / PIECE);
        }
        unchanged
    }

    /// Bytes that are read at once.
    pub const PIECE: u64 = PIECE;

    /// Reads the piece at `offset`, a multiple of [`Preserved::PIECE`], of which the last may be shorter. False: all of it is
    /// zero, and `data` is as it was. Each piece can be read once: the disk goes on without keeping it then.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<bool> {
        let piece = offset / PIECE;
        let whole = self.kept.size.checked_sub(offset).map(|left| left.min(PIECE));
        if !offset.is_multiple_of(PIECE) || whole != Some(data.len() as u64) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Whoever wants to change it waits until it has been read.
        let state = locked(&self.kept.file);
        state.whole()?;
        if self.kept.copied.has(piece) {
            return state.file.read_exact_at(data, offset).map(|()| true);
        }
        let used = read_used(&*self.disk()?, offset, data)?;
        self.kept.copied.add(piece);
        Ok(used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryDisk, RawDisk};
    use proptest::prelude::*;
    use std::sync::atomic::AtomicBool;

    fn unnamed() -> File {
        let path = std::env::temp_dir().join(format!(
            "viv-preserved-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }

    fn preserve(disk: &Preserving) -> (Preserved, File) {
        let file = unnamed();
        file.set_len(disk.size()).unwrap();
        (disk.preserve(file.try_clone().unwrap()), file)
    }

    /// All of it, as whoever writes a snapshot reads it.
    fn content(preserved: &Preserved) -> Vec<u8> {
        let mut all = vec![0; preserved.size() as usize];
        for (piece, part) in all.chunks_mut(PIECE as usize).enumerate() {
            preserved.read(piece as u64 * PIECE, part).unwrap();
        }
        all
    }

    /// What is in none of these ranges is zero.
    fn read_if_in(preserved: &Preserved, ranges: &[(u64, u64)], piece: usize, part: &mut [u8]) {
        let at = piece as u64 * PIECE;
        if ranges.iter().any(|(start, len)| *start < at + PIECE && at < start + len) {
            preserved.read(at, part).unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever changes before, while and after it is read, it is what was there.
        #[test]
        fn it_stays_as_it_was(
            before in prop::collection::vec((0u64..700, 1u64..300, any::<u8>()), 0..4),
            changes in prop::collection::vec((0u64..700, 1u64..300, 0u8..4), 0..30),
        ) {
            // In a file, which knows where it has nothing.
            let path = std::env::temp_dir().join(format!("viv-stays-{}", std::process::id()));
            File::create(&path).and_then(|file| file.set_len(1000 * 512)).unwrap();
            let inner = Arc::new(RawDisk::open(&path, false).unwrap());
            std::fs::remove_file(&path).unwrap();
            let disk = Preserving::new(inner.clone());
            let all = || {
                let mut all = vec![0; 1000 * 512];
                inner.read(0, &mut all).map(|()| all)
            };
            for (at, len, byte) in before {
                disk.write(at * 512, &vec![byte; len as usize * 512]).unwrap();
            }
            let was = all().unwrap();
            let (preserved, _file) = preserve(&disk);
            prop_assert!(!preserved.is_unchanged(0));
            let mut read = vec![0; was.len()];
            let mut pieces = read.chunks_mut(PIECE as usize).enumerate();
            let mut ranges = None;
            for (index, (at, len, kind)) in changes.into_iter().enumerate() {
                match kind {
                    0 => disk.discard(at * 512, len * 512).unwrap(),
                    1 => disk.write_zeroes(at * 512, len * 512, true).unwrap(),
                    _ => disk.write(at * 512 + 7, &vec![0xaa; len as usize * 512 - 7]).unwrap(),
                }
                if index % 4 == 3 && let Some((piece, part)) = pieces.next() {
                    let ranges = ranges.get_or_insert_with(|| preserved.ranges().unwrap());
                    read_if_in(&preserved, ranges, piece, part);
                }
            }
            let ranges = ranges.unwrap_or_else(|| preserved.ranges().unwrap());
            for (piece, part) in pieces {
                read_if_in(&preserved, &ranges, piece, part);
            }
            prop_assert!(read == was);
            // What has changed since is known.
            let (now, known) = (all().unwrap(), preserve(&disk).0);
            for (piece, (old, new)) in was.chunks(PIECE as usize).zip(now.chunks(PIECE as usize)).enumerate() {
                prop_assert!(old == new || !known.is_unchanged(piece as u64 * PIECE));
            }
        }
    }

    #[test]
    fn what_changes_is_known_by_the_piece() {
        let disk = Preserving::new(Arc::new(MemoryDisk::zeroed(1024)));
        disk.write(0, &[1; 512]).unwrap();
        disk.follow();
        disk.write(3 * PIECE - 1, &[2; 2]).unwrap();
        let known = preserve(&disk).0;
        let unchanged: Vec<u64> = (0..10).filter(|piece| known.is_unchanged(piece * PIECE)).collect();
        assert_eq!(unchanged, [0, 1, 4, 5, 6, 7]);
    }

    #[test]
    fn writers_and_the_reader_race() {
        let inner = Arc::new(MemoryDisk::zeroed(16 << 11));
        let disk = Preserving::new(inner.clone());
        disk.write(0, &vec![1; 16 << 20]).unwrap();
        for round in 1..=20u8 {
            let was = inner.content();
            let (preserved, _file) = preserve(&disk);
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for thread in 0..3u64 {
                    let (disk, done) = (&disk, &done);
                    scope.spawn(move || {
                        let mut at = thread * 7919;
                        while !done.load(Ordering::Relaxed) {
                            at = (at * 31 + 4099) % (16 << 11);
                            disk.write(at * 512, &[round + thread as u8; 512]).unwrap();
                        }
                    });
                }
                let got = content(&preserved);
                done.store(true, Ordering::Relaxed);
                assert!(got == was);
            });
        }
    }

    #[test]
    fn the_guest_goes_on_when_there_is_no_room_for_the_old() {
        let disk = Preserving::new(Arc::new(MemoryDisk::zeroed(1000)));
        disk.write(0, &[1; 512]).unwrap();
        let full = File::open("/dev/null").unwrap();
        let preserved = disk.preserve(full);
        disk.write(0, &[2; 512]).unwrap();
        let mut data = vec![0; PIECE as usize];
        assert!(preserved.read(0, &mut data).is_err() && preserved.ranges().is_err());
        let mut data = [0; 512];
        disk.read(0, &mut data).unwrap();
        assert_eq!(data, [2; 512]);
    }

    #[test]
    fn it_does_not_hold_the_disk() {
        let disk = Preserving::new(Arc::new(MemoryDisk::zeroed(8)));
        let (preserved, _file) = preserve(&disk);
        drop(disk);
        assert!(preserved.read(0, &mut [0; 4096]).is_err());
    }
}
