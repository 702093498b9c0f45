//! A disk that can be preserved as it is at one moment, while it goes on: what the guest is about to change is copied first.

use crate::{Disk, Extent};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// Bytes of a piece: what is copied, and read, at once.
const PIECE: u64 = 64 << 10;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk of which [`Preserving::preserve`] makes a [`Preserved`].
pub struct Preserving {
    disk: Arc<dyn Disk>,
    /// Set only while nobody changes the disk.
    preserved: RwLock<Option<Weak<Kept>>>,
}

/// What a disk held at one moment: the pieces that have changed since are in a file, the others still on the disk.
pub struct Preserved {
    disk: Weak<Preserving>,
    kept: Arc<Kept>,
}

struct Kept {
    size: u64,
    /// A bit for each piece that is in the file. Set with `state` locked.
    copied: Box<[AtomicU64]>,
    state: Mutex<State>,
}

struct State {
    file: File,
    /// Why something is missing in the file.
    failed: Option<io::Error>,
}

impl Kept {
    fn word(&self, piece: u64) -> (Option<&AtomicU64>, u64) {
        (usize::try_from(piece / 64).ok().and_then(|word| self.copied.get(word)), 1 << (piece % 64))
    }

    fn has(&self, piece: u64) -> bool {
        let (word, bit) = self.word(piece);
        // What is beyond the end is nobody's to keep.
        word.is_none_or(|word| word.load(Ordering::Acquire) & bit != 0)
    }

    fn set(&self, piece: u64) {
        let (word, bit) = self.word(piece);
        if let Some(word) = word {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Copies what is on the disk in this range, before it changes.
    fn keep(&self, disk: &dyn Disk, offset: u64, len: u64) {
        let end = offset.saturating_add(len).min(self.size);
        for piece in offset / PIECE..end.div_ceil(PIECE) {
            if self.has(piece) {
                continue;
            }
            let mut state = locked(&self.state);
            if state.failed.is_none() && !self.has(piece) {
                match copy(disk, &state.file, piece, self.size) {
                    Ok(()) => self.set(piece),
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
    /// The disk, which nobody changes but through this object.
    pub fn new(disk: Arc<dyn Disk>) -> Preserving {
        Preserving { disk, preserved: RwLock::default() }
    }

    /// What the disk holds now, for as long as somebody wants to read it. What changes is kept in `file`, which is empty, at its
    /// own offset. Nobody may be changing the disk at this moment. There is one at a time: an earlier one ends.
    pub fn preserve(self: &Arc<Self>, file: File) -> Preserved {
        let size = self.disk.size();
        let words = size.div_ceil(PIECE).div_ceil(64);
        let copied = (0..words).map(|_| AtomicU64::new(0)).collect();
        let kept = Arc::new(Kept { size, copied, state: Mutex::new(State { file, failed: None }) });
        *self.preserved.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::downgrade(&kept));
        Preserved { disk: Arc::downgrade(self), kept }
    }

    fn keep(&self, offset: u64, len: u64) {
        let preserved = self.preserved.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(kept) = preserved.as_ref().and_then(Weak::upgrade) {
            kept.keep(&*self.disk, offset, len);
        }
    }
}

impl Preserved {
    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.kept.size
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
        let state = locked(&self.kept.state);
        if let Some(error) = &state.failed {
            return Err(io::Error::new(error.kind(), error.to_string()));
        }
        if self.kept.has(piece) {
            return state.file.read_exact_at(data, offset).map(|()| true);
        }
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "the disk has gone meanwhile");
        let disk = self.disk.upgrade().ok_or_else(gone)?;
        let used = read_used(&*disk.disk, offset, data)?;
        self.kept.set(piece);
        Ok(used)
    }
}

impl Disk for Preserving {
    fn admit(&self, bytes: u64) {
        self.disk.admit(bytes);
    }
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_only(&self) -> bool {
        self.disk.read_only()
    }
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.disk.read(offset, data)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.keep(offset, data.len() as u64);
        self.disk.write(offset, data)
    }
    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.keep(offset, len);
        self.disk.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.keep(offset, len);
        self.disk.write_zeroes(offset, len, unmap)
    }
    fn extent(&self, offset: u64, len: u64) -> io::Result<Extent> {
        self.disk.extent(offset, len)
    }
    fn resize(&self, size: u64) -> io::Result<()> {
        self.disk.resize(size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDisk;
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

    fn preserve(disk: &Arc<Preserving>) -> (Preserved, File) {
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever changes before, while and after it is read, it is what was there.
        #[test]
        fn it_stays_as_it_was(
            before in prop::collection::vec((0u64..700, 1u64..300, any::<u8>()), 0..10),
            changes in prop::collection::vec((0u64..700, 1u64..300, 0u8..4), 0..30),
        ) {
            let inner = Arc::new(MemoryDisk::zeroed(1000));
            let disk = Arc::new(Preserving::new(inner.clone()));
            for (at, len, byte) in before {
                disk.write(at * 512, &vec![byte; len as usize * 512]).unwrap();
            }
            let was = inner.content();
            let (preserved, _file) = preserve(&disk);
            let mut read = vec![0; was.len()];
            let mut pieces = read.chunks_mut(PIECE as usize).enumerate();
            for (index, (at, len, kind)) in changes.into_iter().enumerate() {
                match kind {
                    0 => disk.discard(at * 512, len * 512).unwrap(),
                    1 => disk.write_zeroes(at * 512, len * 512, true).unwrap(),
                    _ => disk.write(at * 512 + 7, &vec![0xaa; len as usize * 512 - 7]).unwrap(),
                }
                if index % 4 == 3 && let Some((piece, part)) = pieces.next() {
                    preserved.read(piece as u64 * PIECE, part).unwrap();
                }
            }
            for (piece, part) in pieces {
                preserved.read(piece as u64 * PIECE, part).unwrap();
            }
            prop_assert!(read == was);
        }
    }

    #[test]
    fn writers_and_the_reader_race() {
        let inner = Arc::new(MemoryDisk::zeroed(16 << 11));
        let disk = Arc::new(Preserving::new(inner.clone()));
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
        let disk = Arc::new(Preserving::new(Arc::new(MemoryDisk::zeroed(1000))));
        disk.write(0, &[1; 512]).unwrap();
        let full = File::open("/dev/null").unwrap();
        let preserved = disk.preserve(full);
        disk.write(0, &[2; 512]).unwrap();
        let mut data = vec![0; PIECE as usize];
        assert!(preserved.read(0, &mut data).is_err());
        let mut data = [0; 512];
        disk.read(0, &mut data).unwrap();
        assert_eq!(data, [2; 512]);
    }

    #[test]
    fn it_does_not_hold_the_disk() {
        let disk = Arc::new(Preserving::new(Arc::new(MemoryDisk::zeroed(8))));
        let (preserved, _file) = preserve(&disk);
        assert_eq!(Arc::strong_count(&disk), 1);
        drop(disk);
        assert!(preserved.read(0, &mut [0; 4096]).is_err());
    }
}
