//! RAM that arrives in a file while it is used already: which pieces are there, and how one that is missed is asked for.
//!
//! One process pours ([`crate::FrozenMemory::pour`]), any number wait ([`Arrival`]). Between them are a board that says what is there,
//! a file of which those who wait have a view to read alone, and a pipe on which they say what they need next:
//! the byte's offset as 8 bytes in the host's order.
//!
//! ```text
//!  0   u32   grows whenever something has arrived: whoever waits sleeps on it (futex(2))
//!  4   u32   why nothing more comes: an errno, or 0
//!  8   u64…  a bit for each piece that is there
//!     u64…  a bit for each that is nothing but zeroes; boards of earlier releases end before
//! ```
#![allow(unsafe_code)]

use crate::origin::{PIECE, ranges_of};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long somebody sleeps until it looks whether there still is who pours.
const LOOK: Duration = Duration::from_millis(100);
/// How long nothing at all may arrive until it is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of the board before its bits.
const HEAD: usize = 8;

/// The board, mapped.
pub(crate) struct Board {
    base: NonNull<u8>,
    pieces: u64,
}

// SAFETY: the mapping lives until drop, and is reached through atomics alone.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Board {
    /// Bytes of the board of a RAM of so many bytes.
    pub(crate) fn len_for(bytes: u64) -> u64 {
        HEAD as u64 + bytes.div_ceil(PIECE).div_ceil(64) * 8
    }

    /// Bytes of it with what is said of zeroes.
    fn len_with_zeroes(bytes: u64) -> u64 {
        2 * Board::len_for(bytes) - HEAD as u64
    }

    /// Makes an empty file one for a RAM of so many bytes; `is_zero` says which pieces are nothing but zeroes: they are there.
    pub(crate) fn make(file: &File, bytes: u64, is_zero: impl Fn(u64) -> bool) -> io::Result<()> {
        let pieces = bytes.div_ceil(PIECE);
        let mut words = vec![0u64; pieces.div_ceil(64) as usize];
        for piece in (0..pieces).filter(|piece| is_zero(*piece)) {
            if let Some(word) = words.get_mut((piece / 64) as usize) {
                *word |= 1 << (piece % 64);
            }
        }
        let words: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        file.write_all_at(&[[0; HEAD].as_slice(), &words, &words].concat(), 0)
    }

    /// The ranges of which it is said that they are zeroes: offsets and bytes, ascending.
    fn zeroes(file: &File, bytes: u64) -> io::Result<Vec<(u64, u64)>> {
        if file.metadata()?.len() < Board::len_with_zeroes(bytes) {
            return Ok(Vec::new());
        }
        let start = Board::len_for(bytes);
        let mut words = vec![0; start as usize - HEAD];
        file.read_exact_at(&mut words, start)?;
        let is_set = |piece: &u64| {
            let byte = words.get((piece / 8) as usize).copied().unwrap_or(0);
            byte >> (piece % 8) & 1 != 0
        };
        Ok(ranges_of((0..bytes.div_ceil(PIECE)).filter(is_set), bytes))
    }

    /// Maps it. It takes nothing from the heap, for copies of a process may not.
    pub(crate) fn map(file: libc::c_int, bytes: u64, write: bool) -> Result<Board, libc::c_int> {
        let access = if write { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let len = Board::len_for(bytes) as usize;
        // SAFETY: a fresh mapping; the result is checked.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file, 0) };
        match NonNull::new(base.cast()) {
            Some(place) if base != libc::MAP_FAILED => {
                Ok(Board { base: place, pieces: bytes.div_ceil(PIECE) })
            }
            _ => Err(last_errno()),
        }
    }

    fn number(&self, index: usize) -> &AtomicU32 {
        // SAFETY: both numbers lie in the head, which is mapped and aligned.
        unsafe { &*self.base.as_ptr().cast::<AtomicU32>().add(index) }
    }

    fn round(&self) -> &AtomicU32 {
        self.number(0)
    }

    fn bits(&self, piece: u64) -> Option<(&AtomicU64, u64)> {
        // SAFETY: below `pieces`, so the word lies in the mapping, which is aligned to 8 behind its head.
        (piece < self.pieces).then(|| unsafe {
            let words = self.base.as_ptr().add(HEAD).cast::<AtomicU64>();
            (&*words.add((piece / 64) as usize), 1 << (piece % 64))
        })
    }

    /// Whether a piece is there.
    pub(crate) fn has(&self, piece: u64) -> bool {
        self.bits(piece).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// A piece is there. The board must be mapped to be written, as for what follows.
    pub(crate) fn set(&self, piece: u64) {
        if let Some((word, bit)) = self.bits(piece) {
            word.fetch_or(bit, Ordering::Release);
        }
    }

    /// Nothing more comes.
    pub(crate) fn fail(&self, errno: libc::c_int) {
        self.number(1).store(errno.unsigned_abs(), Ordering::Release);
        self.wake();
    }

    /// Whoever waits looks again.
    pub(crate) fn wake(&self) {
        self.round().fetch_add(1, Ordering::Release);
        // SAFETY: the word is mapped; the call reads nothing else of ours.
        unsafe { libc::syscall(libc::SYS_futex, self.round(), libc::FUTEX_WAKE, libc::c_int::MAX) };
    }

    /// Sleeps for a while, unless something has arrived since `round`.
    fn sleep(&self, round: u32) {
        let limit = libc::timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
        // SAFETY: the word is mapped and the time lives as long as the call.
        unsafe { libc::syscall(libc::SYS_futex, self.round(), libc::FUTEX_WAIT, round, &limit) };
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let len = Board::len_for(self.pieces * PIECE) as usize;
        // SAFETY: the whole mapping, of which no reference outlives this.
        unsafe { libc::munmap(self.base.as_ptr().cast(), len) };
    }
}

pub(crate) fn last_errno() -> libc::c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Waits for pieces of a RAM that another process pours into a file.
pub struct Arrival {
    board: Board,
    /// None: nobody pours any more.
    wanted: Option<File>,
    zeroes: Vec<(u64, u64)>,
}

impl Arrival {
    /// `board` is the file of what is there of a RAM of `bytes`, `wanted` the end of the pipe for writing, which must not block; none
    /// if nobody reads it any more.
    pub fn new(board: &File, wanted: Option<File>, bytes: u64) -> io::Result<Arrival> {
        if board.metadata()?.len() < Board::len_for(bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let zeroes = Board::zeroes(board, bytes)?;
        let board = Board::map(board.as_raw_fd(), bytes, false).map_err(io::Error::from_raw_os_error)?;
        Ok(Arrival { board, wanted, zeroes })
    }

    /// The ranges that are zeroes, for [`SavedMemory::zeroes`](crate::SavedMemory).
    pub fn zeroes(&self) -> &[(u64, u64)] {
        &self.zeroes
    }

    /// Until the range is there. The error says why it never will be.
    pub(crate) fn wait(&self, offset: u64, len: u64) -> Result<(), String> {
        let end = offset.saturating_add(len);
        (offset / PIECE..end.div_ceil(PIECE)).try_for_each(|piece| self.wait_for(piece))
    }

    fn wait_for(&self, piece: u64) -> Result<(), String> {
        let (mut seen, mut since) = (None, Instant::now());
        loop {
            let round = self.board.round().load(Ordering::Acquire);
            if self.board.has(piece) {
                return Ok(());
            }
            let errno = self.board.number(1).load(Ordering::Acquire);
            if errno != 0 {
                let error = io::Error::from_raw_os_error(errno.cast_signed());
                return Err(format!(
                    "the VM's memory cannot be copied from the VM that it comes from: {error}"
                ));
            }
            if seen != Some(round) {
                (seen, since) = (Some(round), Instant::now());
            }
            // Who pours sets the last bit before it ends.
            if !self.ask_for(piece) && !self.board.has(piece) {
                return Err(
                    "the VM's memory never came whole: the process that it comes from was killed".into()
                );
            }
            if since.elapsed() > PATIENCE {
                return Err("the VM's memory does not come: the process that it comes from hangs".into());
            }
            self.board.sleep(round);
        }
    }

    /// Says what is needed next; false if nobody hears it. A full pipe is as good as asked: all comes in the end.
    fn ask_for(&self, piece: u64) -> bool {
        let Some(mut wanted) = self.wanted.as_ref() else { return false };
        // So few bytes go at once or not at all (pipe(7)).
        let asked = wanted.write_all(&(piece * PIECE).to_ne_bytes());
        asked.err().is_none_or(|error| error.kind() != io::ErrorKind::BrokenPipe)
    }
}
