//! How little memory the VM's process keeps for itself: what only its start, or a change of its devices, needed is given back.
#![allow(unsafe_code)]

use libc::{MADV_DONTNEED, PF_W, PT_LOAD, c_int, c_void, dl_phdr_info, size_t};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How long after a start or a change nothing is given back yet.
const AT_WORK: Duration = Duration::from_secs(1);

/// Lets the threads share heaps: one for each vCPU, which may decode and translate, and one for all others, of which each would
/// else take four pages of its own. To be called before there are threads.
#[cfg_attr(not(target_env = "gnu"), allow(unused_variables))]
pub(crate) fn share_heaps(cpus: u32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number of the C library (mallopt(3)).
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, c_int::try_from(cpus).unwrap_or(c_int::MAX).saturating_add(1))
    };
}

/// Gives back in a moment what is not used by then: a guest that has just begun, or goes on, needs the processor and most of the
/// program at once.
pub(crate) fn give_back_soon() {
    static IS_TO_COME: AtomicBool = AtomicBool::new(false);
    if IS_TO_COME.swap(true, Ordering::Relaxed) {
        return;
    }
    let later = || {
        thread::sleep(AT_WORK);
        IS_TO_COME.store(false, Ordering::Relaxed);
        give_back();
    };
    if thread::Builder::new().name("give-back".into()).spawn(later).is_err() {
        IS_TO_COME.store(false, Ordering::Relaxed);
    }
}

/// Gives back the heap's free pages, and the mapped pages of programs and libraries that are as their files have them: what
/// the running VM needs of them comes again at its next use, from the host's page cache.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it gives free memory of the heap back and has no conditions.
    unsafe {
        libc::malloc_trim(0)
    };
    // SAFETY: `unmap` has the signature that is asked for and keeps nothing.
    unsafe { libc::dl_iterate_phdr(Some(unmap), std::ptr::null_mut()) };
}

/// Forgets the whole pages of the segments that are not writable. Those that are, relocated constants among them (RELRO), differ
/// from the file.
unsafe extern "C" fn unmap(info: *mut dl_phdr_info, _: size_t, _: *mut c_void) -> c_int {
    // SAFETY: dl_iterate_phdr(3) gives a description that is valid for this call, with so many headers.
    let (base, headers) = unsafe {
        let info = &*info;
        (info.dlpi_addr, std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()))
    };
    let page = rustix::param::page_size() as u64;
    for header in headers.iter().filter(|header| header.p_type == PT_LOAD && header.p_flags & PF_W == 0) {
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        let len = end.saturating_sub(start) as usize;
        // SAFETY: private pages of a file that nobody has written to (proc(5): they are mapped without the right to): the next
        // access finds the same bytes. A refusal leaves them as they are.
        unsafe { libc::madvise(start as *mut c_void, len, MADV_DONTNEED) };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    static CONSTANT: [u64; 2048] = [0x1234_5678_9abc_def0; 2048];

    fn resident() -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (mut program, mut kib) = (false, 0);
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Rss:"), Some(number)) if program => kib += number.parse::<u64>().unwrap(),
                (Some(range), Some(rights)) if range.contains('-') && rights.len() == 4 => {
                    program = line.contains('/') && !rights.contains('w');
                }
                _ => {}
            }
        }
        kib
    }

    /// It goes on with the same bytes, and with fewer pages.
    #[test]
    fn text_and_constants_come_back_when_they_are_used() {
        let sum = |values: &[u64]| values.iter().fold(0u64, |sum, value| sum.wrapping_add(*value));
        let (words, before) = (sum(std::hint::black_box(&CONSTANT)), resident());
        give_back();
        let after = resident();
        assert!(after < before, "{after} KiB of {before} KiB");
        assert_eq!(sum(std::hint::black_box(&CONSTANT)), words);
    }
}
