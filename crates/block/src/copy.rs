//! Copies a disk into another, without its zeroes.

use crate::Disk;
use std::io;

/// Bytes that are read at once.
const PIECE: u64 = 2 << 20;
/// Zeroes are left out in blocks of this size.
const BLOCK: usize = 64 << 10;

/// Called with the bytes of the disk that are done; an error ends the work.
pub type Progress<'a> = &'a mut dyn FnMut(u64) -> io::Result<()>;

/// Copies all of `from` to `to`, which is new: it reads as zero, and is not smaller.
pub fn copy(from: &dyn Disk, to: &dyn Disk, progress: Progress<'_>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE as usize];
    let (mut at, end) = (0, from.size());
    while at < end {
        // Pieces begin at multiples, so that each cluster is written once.
        let len = (PIECE - at % PIECE).min(end - at);
        let extent = from.extent(at, len.max(end - at))?;
        if extent.zero && extent.len > 0 {
            at += extent.len;
        } else {
            let piece = buffer.get_mut(..len.min(extent.len.max(1)) as usize).unwrap_or_default();
            from.read(at, piece)?;
            write_blocks(to, at, piece)?;
            at += piece.len() as u64;
        }
        progress(at)?;
    }
    to.flush()
}

/// Writes what is not zero, neighbours together.
fn write_blocks(to: &dyn Disk, offset: u64, piece: &[u8]) -> io::Result<()> {
    let mut run: Option<std::ops::Range<usize>> = None;
    let mut at = 0;
    for block in piece.chunks(BLOCK) {
        let end = at + block.len();
        match (&mut run, is_zero(block)) {
            (Some(run), false) => run.end = end,
            (None, false) => run = Some(at..end),
            (_, true) => write_run(to, offset, piece, run.take())?,
        }
        at = end;
    }
    write_run(to, offset, piece, run)
}

fn write_run(
    to: &dyn Disk,
    offset: u64,
    piece: &[u8],
    run: Option<std::ops::Range<usize>>,
) -> io::Result<()> {
    match run.and_then(|run| Some((run.start, piece.get(run)?))) {
        Some((start, data)) => to.write(offset + start as u64, data),
        None => Ok(()),
    }
}

fn is_zero(data: &[u8]) -> bool {
    // 16 bytes at a time, which compilers make wide loads of.
    let (words, rest) = data.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
