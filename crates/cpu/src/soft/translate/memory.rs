//! Memory for translated code: one file mapped twice, writable here and executable there, never both (W^X).

use std::os::fd::{AsRawFd, FromRawFd};

/// The code memory of one vCPU: filled from front to back, emptied as a whole.
pub(super) struct CodeMemory {
    writable: *mut u8,
    executable: *const u8,
    len: usize,
    used: usize,
}

impl CodeMemory {
    /// `len` bytes, of which the host gives pages as they are used. `None` where the host maps no executable memory.
    pub(super) fn new(len: usize) -> Option<CodeMemory> {
        // SAFETY: the name is a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"viv-code".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return None;
        }
        // SAFETY: just opened, owned by nobody else.
        let file = unsafe { std::fs::File::from_raw_fd(fd) };
        file.set_len(len as u64).ok()?;
        let map = |access| {
            // SAFETY: a new shared mapping of our own file; the result is checked.
            let at = unsafe {
                libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
            };
            (at != libc::MAP_FAILED).then_some(at.cast::<u8>())
        };
        let writable = map(libc::PROT_READ | libc::PROT_WRITE)?;
        let Some(executable) = map(libc::PROT_READ | libc::PROT_EXEC) else {
            // SAFETY: the mapping made above, which nobody uses.
            unsafe { libc::munmap(writable.cast(), len) };
            return None;
        };
        Some(CodeMemory { writable, executable, len, used: 0 })
    }

    /// Where the next code will be executed.
    pub(super) fn next(&self) -> u64 {
        self.executable as u64 + self.used as u64
    }

    /// Appends code made for [`CodeMemory::next`]. False: no room.
    pub(super) fn append(&mut self, code: &[u8]) -> bool {
        let Some(end) = self.used.checked_add(code.len()).filter(|end| *end <= self.len) else {
            return false;
        };
        // SAFETY: `used..end` lies in the mapping, which nobody else writes.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(self.used), code.len()) };
        // Entries on a boundary fetch best.
        self.used = end.next_multiple_of(16).min(self.len);
        true
    }

    /// Lets the 32-bit distance at executable address `at` lead to `target`.
    pub(super) fn patch(&mut self, at: u64, target: u64) {
        let offset = at.wrapping_sub(self.executable as u64) as usize;
        if offset.checked_add(4).is_none_or(|end| end > self.used) {
            return;
        }
        let distance = target.wrapping_sub(at + 4) as u32;
        // SAFETY: inside the used part. Only this vCPU's thread executes the code, and it is not in there now.
        unsafe { self.writable.add(offset).cast::<u32>().write_unaligned(distance) };
    }

    /// Forgets everything behind the first `keep` bytes.
    pub(super) fn truncate(&mut self, keep: usize) {
        self.used = self.used.min(keep);
    }

    pub(super) fn used(&self) -> usize {
        self.used
    }

    pub(super) fn room(&self) -> usize {
        self.len - self.used
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both mappings are ours, and nobody executes them any more.
        unsafe {
            libc::munmap(self.writable.cast(), self.len);
            libc::munmap(self.executable.cast_mut().cast(), self.len);
        }
    }
}
