//! Memory of a snapshot in the place of a program's own: its file, mapped privately, so that what is not used is not read.
#![allow(unsafe_code)]

use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::io;
use std::num::NonZeroUsize;
use std::thread;
use viv_snapshot::{CHUNK, Checked, SnapshotError};

/// Bytes from which on a memory is compared by more than one thread.
const MUCH: u64 = 4 << 20;

/// Compares a memory of so many bytes with its checksums, on all processors that there are.
pub(crate) fn verify(memory: &Checked, bytes: u64) -> Result<(), SnapshotError> {
    let threads = if bytes < MUCH { 1 } else { thread::available_parallelism().map_or(1, NonZeroUsize::get) };
    let part = bytes.div_ceil(threads as u64).next_multiple_of(CHUNK);
    thread::scope(|scope| {
        let parts = (0..threads as u64).map(|part_number| part_number * part);
        let all: Vec<_> = parts.map(|at| scope.spawn(move || memory.verify_range(at, part))).collect();
        all.into_iter().try_for_each(|one| match one.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// Puts what is at an offset into a program's memory, all of it.
pub(crate) fn put(memory: &Checked, offset: u64, data: &mut [u8]) -> io::Result<()> {
    let page = rustix::param::page_size();
    let is_whole = data.as_ptr().addr().is_multiple_of(page)
        && data.len().is_multiple_of(page)
        && offset.is_multiple_of(page as u64);
    if data.is_empty() || !is_whole || !memory.above().is_empty() {
        return memory.read_over(offset, data);
    }
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
    // SAFETY: these pages are this memory's alone, and writable; wasmtime has mapped them for it and unmaps all of its mapping at the end
    // (its allocator on demand, which is what we use). The file has as many bytes, is open here, and nobody writes to it.
    unsafe { mmap(data.as_mut_ptr().cast(), data.len(), access, flags, memory.lowest(), offset) }?;
    Ok(())
}
