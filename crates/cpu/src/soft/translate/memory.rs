//! Memory for translated code: the same pages mapped twice, writable here and executable there, never both (W^X).

use std::ops::Range;

/// The code memory of one vCPU: filled from front to back, emptied as a whole.
pub(super) struct CodeMemory {
    writable: *mut u8,
    executable: *const u8,
    len: usize,
    used: usize,
}

impl CodeMemory {
    /// `len` bytes, of which the host gives pages as they are used. `None` where the host maps no executable memory.
    ///
    /// Anonymous memory, so that `perf` asks its map for names (Linux tools/perf/util/map.c, `is_anon_memory`): the second
    /// view of it is what mremap(2) makes of an old size of 0.
    pub(super) fn new(len: usize) -> Option<CodeMemory> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of our own; the result is checked.
        let writable = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        if writable == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: of the shared mapping just made a second one, at a place that is free; the result is checked.
        let second = unsafe { libc::mremap(writable, 0, len, libc::MREMAP_MAYMOVE) };
        // SAFETY: the second mapping, through which nobody has written.
        let executable = second != libc::MAP_FAILED
            && unsafe { libc::mprotect(second, len, libc::PROT_READ | libc::PROT_EXEC) } == 0;
        if !executable {
            // SAFETY: the mappings made above, which nobody uses.
            unsafe {
                libc::munmap(writable, len);
                if second != libc::MAP_FAILED {
                    libc::munmap(second, len);
                }
            }
            return None;
        }
        Some(CodeMemory { writable: writable.cast(), executable: second.cast::<u8>(), len, used: 0 })
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

    /// Lets the 32-bit distance at byte `offset` lead to `target`.
    pub(super) fn patch(&mut self, offset: u64, target: u64) {
        let offset = offset as usize;
        if offset.checked_add(4).is_none_or(|end| end > self.used) {
            return;
        }
        let distance = target.wrapping_sub(self.start() + offset as u64 + 4) as u32;
        // SAFETY: inside the used part. Only this vCPU's thread executes the code, and it is not in there now.
        unsafe { self.writable.add(offset).cast::<u32>().write_unaligned(distance) };
    }

    /// Forgets everything behind the first `keep` bytes.
    pub(super) fn truncate(&mut self, keep: usize) {
        self.used = self.used.min(keep);
    }

    /// Where its first byte is executed.
    pub(super) fn start(&self) -> u64 {
        self.executable as u64
    }

    /// What stands there.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        // SAFETY: the used part of the mapping, which only `&mut self` changes.
        let used = unsafe { std::slice::from_raw_parts(self.writable, self.used) };
        used.get(range).unwrap_or_default()
    }

    /// Leaves room for code up to `end`, to be filled in later. False: there is less.
    pub(super) fn reserve(&mut self, end: usize) -> bool {
        let fits = (self.used..=self.len).contains(&end);
        if fits {
            self.used = end.next_multiple_of(16).min(self.len);
        }
        fits
    }

    /// Fills in code at a place that was reserved. False: it was not.
    pub(super) fn fill(&mut self, place: usize, code: &[u8]) -> bool {
        let fits = place.checked_add(code.len()).is_some_and(|end| end <= self.used);
        if fits {
            // SAFETY: inside the used part, which nobody else writes; nobody executes what was not filled in yet.
            unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(place), code.len()) };
        }
        fits
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel says of the mapping at `start`.
    fn mapping(start: u64) -> String {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut lines = maps.lines();
        lines.find(|line| line.starts_with(&format!("{start:x}-"))).unwrap().to_string()
    }

    #[test]
    fn no_view_is_writable_and_executable_and_perf_takes_them_for_anonymous() {
        let mut memory = CodeMemory::new(1 << 20).unwrap();
        let (write, execute) = (mapping(memory.writable as u64), mapping(memory.executable as u64));
        assert!(write.contains(" rw-s ") && execute.contains(" r-xs "), "{write}\n{execute}");
        assert!(write.contains("/dev/zero") && execute.contains("/dev/zero"), "{write}\n{execute}");
        assert!(memory.append(&[0xc3, 0x90]));
        // SAFETY: inside the mapping.
        assert_eq!(unsafe { memory.executable.cast::<[u8; 2]>().read() }, [0xc3, 0x90]);
    }
}
