//! Memory of a snapshot in the place of a program's own: its file, mapped privately, so that what is not used is not read.
#![allow(unsafe_code)]

use rustix::mm::{MapFlags, ProtFlags, mmap};
use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use viv_model::Manifest;
use viv_snapshot::{CHUNK, Checked, MEMORY, SnapshotError, open_memory};

/// Bytes from which on a memory is compared by more than one thread.
const MUCH: u64 = 4 << 20;

/// Compares a memory of so many bytes with its checksums, on all processors that there are.
fn verify(memory: &Checked, bytes: u64) -> Result<(), SnapshotError> {
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

/// The memory of a snapshot.
pub(crate) enum Memory {
    /// Of one that is kept: it is what was written.
    Kept(Checked),
    /// Of a fork: its source wrote it a moment ago, on this host, and nobody keeps it. It is not compared with anything.
    Passing(File),
}

impl Memory {
    /// That of the snapshot in this directory, compared with its checksums if it has any.
    pub(crate) fn open(manifest: &Manifest, dir: &Path) -> Result<Memory, SnapshotError> {
        let bytes = manifest.memory.bytes;
        if !manifest.memory_arrives() {
            let memory = open_memory(manifest, dir)?;
            verify(&memory, bytes)?;
            return Ok(Memory::Kept(memory));
        }
        let path = dir.join(MEMORY);
        let file = File::open(&path).map_err(SnapshotError::io("open", &path))?;
        let length = file.metadata().map_err(SnapshotError::io("look at", &path))?.len();
        if length != bytes {
            let what = format!("it has {length} bytes instead of {bytes}");
            return Err(SnapshotError::Damaged { path, what });
        }
        Ok(Memory::Passing(file))
    }

    /// Puts what is at an offset into a program's memory, all of it.
    pub(crate) fn put(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let file = match self {
            Memory::Kept(memory) if memory.above().is_empty() => memory.lowest(),
            Memory::Kept(memory) => return memory.read_over(offset, data),
            Memory::Passing(file) => file,
        };
        let page = rustix::param::page_size();
        let is_whole = data.as_ptr().addr().is_multiple_of(page)
            && data.len().is_multiple_of(page)
            && offset.is_multiple_of(page as u64);
        if data.is_empty() || !is_whole {
            return match self {
                Memory::Kept(memory) => memory.read_over(offset, data),
                Memory::Passing(file) => file.read_exact_at(data, offset),
            };
        }
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED);
        // SAFETY: these pages are this memory's alone, and writable; wasmtime has mapped them for it and unmaps all of its mapping at
        // the end (its allocator on demand, which is what we use). The file has as many bytes, is open here, and nobody writes to it:
        // who made it is done, and its permission to be written is gone.
        unsafe { mmap(data.as_mut_ptr().cast(), data.len(), access, flags, file, offset) }?;
        Ok(())
    }
}
