//! Where the bytes of guest RAM are: one mapping of this process between guards, and what is behind it.
#![allow(unsafe_code)]

use crate::PAGE_SIZE;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bytes without access before and behind the RAM: whoever errs over its border is stopped there, and does not
/// change the process's own memory.
const GUARD: usize = 1 << 20;
/// Bytes of a large page, to which the RAM is aligned so that the host can use them.
const LARGE_PAGE: usize = 2 << 20;

/// What is behind the pages.
pub(crate) enum Backing {
    /// Nothing, or a file that is only read: what is written is this process's own.
    Own {
        under: Option<File>,
        /// Tells which pages those are (Linux Documentation/admin-guide/mm/pagemap.rst). It can be opened only before the
        /// process may not be looked into any more.
        pagemap: Option<File>,
        /// What was given back since somebody began to look for pages in use.
        given: Mutex<Option<Vec<(u64, u64)>>>,
    },
    /// A file of ours, which others may map too.
    Shared(File),
}

pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    /// The reservation with its guards: start and bytes.
    reserved: (NonNull<u8>, usize),
    backing: Backing,
}

// SAFETY: `base` points to a mapping that lives until drop; all access goes through volatile or atomic
// operations or raw copies, as memory demands that guests write to.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        let (start, len) = self.reserved;
        // SAFETY: the RAM and its guards are one reservation that nobody else knows of.
        unsafe { libc::munmap(start.as_ptr().cast(), len) };
    }
}

fn checked(pointer: *mut libc::c_void) -> io::Result<NonNull<u8>> {
    if pointer == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(pointer.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

fn own(under: Option<File>) -> Backing {
    Backing::Own { under, pagemap: File::open("/proc/self/pagemap").ok(), given: Mutex::new(None) }
}

impl Mapping {
    /// Zeroes.
    pub(crate) fn own(len: usize) -> io::Result<Mapping> {
        let mapping = Mapping::map(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, own(None))?;
        // A host without large pages has small ones.
        // SAFETY: advice on our own mapping.
        unsafe { libc::madvise(mapping.base.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        Ok(mapping)
    }

    /// Zeroes, in a file that has no name.
    pub(crate) fn shared(len: usize) -> io::Result<Mapping> {
        // SAFETY: the name is a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"viv-guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fd was just opened and is owned by nobody else.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64)?;
        Mapping::map(len, libc::MAP_SHARED, Backing::Shared(file))
    }

    /// The content of a file of `len` bytes.
    pub(crate) fn of_file(file: File, len: usize) -> io::Result<Mapping> {
        if file.metadata()?.len() != len as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mapping = Mapping::map(len, libc::MAP_PRIVATE, own(Some(file)))?;
        // What has been written there, or was compared with its checksum, is in the host's memory when it is touched here. What is not is
        // a hole, and around it the host would make and clear many pages of nothing.
        // SAFETY: advice on our own mapping.
        unsafe { libc::madvise(mapping.base.as_ptr().cast(), len, libc::MADV_RANDOM) };
        Ok(mapping)
    }

    /// See [`crate::GuestMemory::private_view`].
    pub(crate) fn private_view(&self) -> io::Result<Mapping> {
        match &self.backing {
            Backing::Shared(file) => Mapping::map(self.len, libc::MAP_PRIVATE, own(Some(file.try_clone()?))),
            // It would not show what is this process's own.
            Backing::Own { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn map(len: usize, kind: libc::c_int, backing: Backing) -> io::Result<Mapping> {
        let more = 2 * GUARD + LARGE_PAGE;
        let reserved = len.checked_add(more).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a fresh reservation without access; the result is checked.
        let start = checked(unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), reserved, libc::PROT_NONE, flags, -1, 0)
        })?;
        let skipped =
            (start.as_ptr() as usize + GUARD).next_multiple_of(LARGE_PAGE) - start.as_ptr() as usize;
        let file = match &backing {
            Backing::Own { under, .. } => under.as_ref(),
            Backing::Shared(file) => Some(file),
        };
        // SAFETY: skipped < GUARD + LARGE_PAGE, so this lies inside the reservation and leaves a guard on either side: a mapping of
        // ours takes the place of its middle.
        let base = checked(unsafe {
            let (access, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, kind | libc::MAP_NORESERVE | libc::MAP_FIXED);
            let fd = file.map_or(-1, |file| file.as_raw_fd());
            libc::mmap(start.as_ptr().add(skipped).cast(), len, access, flags, fd, 0)
        });
        match base {
            Ok(base) => Ok(Mapping { base, len, reserved: (start, reserved), backing }),
            Err(error) => {
                // SAFETY: the reservation, which nobody knows of.
                unsafe { libc::munmap(start.as_ptr().cast(), reserved) };
                Err(error)
            }
        }
    }

    /// Has fresh pages, large ones where the host has them, in the place of those of a file that are zeroes; gives the range of which
    /// that is so, if there is room for a large page in it. Nobody else knows of the mapping yet.
    pub(crate) fn refresh(&self, offset: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
        let large = LARGE_PAGE as u64;
        let end = offset.checked_add(len).filter(|end| *end <= self.len as u64);
        let end = end.ok_or(io::ErrorKind::InvalidData)?;
        let (start, end) = (offset.next_multiple_of(large), end / large * large);
        if start >= end {
            return Ok(None);
        }
        let bytes = (end - start) as usize;
        // SAFETY: it lies inside the mapping, of which nobody has a reference; a host without large pages has small ones.
        unsafe {
            let at: *mut libc::c_void = self.base.as_ptr().add(start as usize).cast();
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            checked(libc::mmap(at, bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0))?;
            libc::madvise(at, bytes, libc::MADV_HUGEPAGE);
        }
        Ok(Some((start, end - start)))
    }

    /// Reads a range that lies inside. Nobody else knows of the mapping yet.
    pub(crate) fn lay(
        &self,
        offset: u64,
        len: u64,
        read: &dyn Fn(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len as u64) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // SAFETY: it lies inside the mapping, and the caller is the only one who reaches it.
        let place = unsafe { std::slice::from_raw_parts_mut(self.base().add(offset as usize), len as usize) };
        read(offset, place)
    }

    /// The first byte.
    pub(crate) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets all that is this process's own.
    pub(crate) fn discard(&self) {
        // SAFETY: our own mapping of a file: its pages come back from there.
        unsafe { libc::madvise(self.base.as_ptr().cast(), self.len, libc::MADV_DONTNEED) };
    }

    /// Gives whole pages back to the host, which lie inside.
    pub(crate) fn give_back(&self, offset: u64, len: usize) -> io::Result<()> {
        // SAFETY: inside the mapping, as the caller says.
        let at: *mut libc::c_void = unsafe { self.base.as_ptr().add(offset as usize) }.cast();
        let given = match &self.backing {
            // SAFETY: whole pages of our own mapping; for the guest it is a write of zeroes.
            Backing::Shared(_) => unsafe { libc::madvise(at, len, libc::MADV_REMOVE) == 0 },
            Backing::Own { under, given, .. } => {
                let mut noted = locked(given);
                if let Some(noted) = &mut *noted {
                    noted.push((offset, len as u64));
                }
                match under {
                    // SAFETY: as above.
                    None => unsafe { libc::madvise(at, len, libc::MADV_DONTNEED) == 0 },
                    // The file would show through pages that are merely dropped.
                    Some(_) => {
                        let access = libc::PROT_READ | libc::PROT_WRITE;
                        let flags =
                            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
                        // SAFETY: fresh pages take the place of whole pages of our own mapping.
                        checked(unsafe { libc::mmap(at, len, access, flags, -1, 0) }).is_ok()
                    }
                }
            }
        };
        if given { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// From now on, until [`Mapping::in_use`], what is given back counts as in use.
    pub(crate) fn note_given(&self) -> io::Result<()> {
        match &self.backing {
            Backing::Own { pagemap: Some(_), given, .. } => {
                locked(given).get_or_insert_default();
                Ok(())
            }
            Backing::Own { pagemap: None, .. } => {
                Err(io::Error::new(io::ErrorKind::NotFound, "the host shows no /proc/self/pagemap"))
            }
            Backing::Shared(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "its memory is shared (soft.check)"))
            }
        }
    }

    /// Ends what [`Mapping::note_given`] began.
    pub(crate) fn forget_given(&self) {
        if let Backing::Own { given, .. } = &self.backing {
            *locked(given) = None;
        }
    }

    /// The ranges that may hold, or may have held since [`Mapping::note_given`], something else than zeroes: offset and bytes,
    /// in order.
    pub(crate) fn in_use(&self) -> io::Result<Vec<(u64, u64)>> {
        let Backing::Own { under, pagemap: Some(pagemap), given } = &self.backing else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        let mut ranges = own_pages(pagemap, self.base.as_ptr() as u64, self.len as u64)?;
        if let Some(file) = under {
            ranges.extend(data_ranges(file, self.len as u64)?);
        }
        ranges.extend(locked(given).take().unwrap_or_default());
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, len) in ranges {
            match merged.last_mut() {
                Some((at, before)) if *at + *before >= start => *before = (*before).max(start + len - *at),
                _ => merged.push((start, len)),
            }
        }
        Ok(merged)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The parts of a file that are no holes (lseek(2)).
fn data_ranges(file: &File, len: u64) -> io::Result<Vec<(u64, u64)>> {
    let seek = |offset: u64, whence| {
        // SAFETY: our own file; the offset is below 2^63, for memory is.
        match unsafe { libc::lseek(file.as_raw_fd(), offset as i64, whence) } {
            -1 => Err(io::Error::last_os_error()),
            at => Ok(at as u64),
        }
    };
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < len {
        let start = match seek(at, libc::SEEK_DATA) {
            Ok(start) => start,
            // Nothing but a hole comes.
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => break,
            Err(error) => return Err(error),
        };
        let start = start.min(len);
        let end = seek(start, libc::SEEK_HOLE)?.min(len);
        if start < end {
            ranges.push((start, end - start));
        }
        at = end.max(start + 1);
    }
    Ok(ranges)
}

/// The pages that are this process's own.
fn own_pages(pagemap: &File, base: u64, len: u64) -> io::Result<Vec<(u64, u64)>> {
    /// Bits of an entry.
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    /// Pages that are looked at with one call.
    const BATCH: u64 = 8 << 10;
    let (mut ranges, mut at) = (Vec::<(u64, u64)>::new(), 0);
    while at < len {
        let pages = BATCH.min((len - at) / PAGE_SIZE);
        let mut entries = vec![0; pages as usize * 8];
        pagemap.read_exact_at(&mut entries, (base + at) / PAGE_SIZE * 8)?;
        for entry in entries.as_chunks::<8>().0 {
            let entry = u64::from_le_bytes(*entry);
            if entry & (PRESENT | SWAPPED) != 0 && entry & OF_FILE == 0 {
                match ranges.last_mut() {
                    Some((start, len)) if *start + *len == at => *len += PAGE_SIZE,
                    _ => ranges.push((at, PAGE_SIZE)),
                }
            }
            at += PAGE_SIZE;
        }
    }
    Ok(ranges)
}
