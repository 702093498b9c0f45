//! Which bytes of RAM somebody has decoded as instructions: whoever writes there tells, and cached code dies.
#![allow(unsafe_code)]

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Bytes of one bit in a page's code bitmap.
const CHUNK: u64 = 64;

/// Per page of RAM (counted through all regions): a bitmap of 64-byte chunks that hold decoded code, and a
/// version that grows with each write into such a chunk. Cached code is valid while its page's version stands.
pub struct CodeMap {
    pages: Box<[Page]>,
    watchers: Mutex<Vec<Watcher>>,
}

/// Told whenever cached code becomes stale.
type Watcher = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
#[repr(C)]
struct Page {
    chunks: AtomicU64,
    /// Which vCPUs may write to the page without telling (a bit each, from their software TLBs).
    writers: AtomicU64,
    version: AtomicU32,
    /// Writes since code was last marked that had to tell although there is no code now.
    told: AtomicU32,
}

/// Rewritten so often (two steps of the version each), a page is taken for one whose code will be rewritten again: permission to write unseen would
/// only be taken back at once, at a price.
const OFTEN: u32 = 2 * 4;
/// So many writes without new code in between make it data again.
const DATA: u32 = 64;

fn bits(offset: u64, len: u64) -> u64 {
    let first = (offset / CHUNK) as u32;
    let last = ((offset + len.max(1) - 1) / CHUNK).min(63) as u32;
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

impl CodeMap {
    pub(crate) fn new(pages: u64) -> CodeMap {
        // Zeroed by the host as pages are touched: a guest of many gigabytes costs nothing before it runs code.
        let zeroed = Box::<[Page]>::new_zeroed_slice(usize::try_from(pages).unwrap_or(0));
        // SAFETY: a Page is atomic integers, for which all zeroes are a value.
        CodeMap { pages: unsafe { zeroed.assume_init() }, watchers: Mutex::default() }
    }

    /// The version of page `page`, an even number. Read it before the bytes are decoded.
    pub fn version(&self, page: u32) -> u32 {
        loop {
            let version = self.pages[page as usize].version.load(Ordering::SeqCst);
            if version.is_multiple_of(2) {
                return version;
            }
            // Somebody is about to make it the next one.
            std::thread::yield_now();
        }
    }

    /// Where the versions live, for a cheap check before each run of cached code: that of a page is
    /// [`CodeMap::version_at`] bytes from here.
    pub fn versions(&self) -> *const u8 {
        self.pages.as_ptr().cast()
    }

    /// Where the version of a page lives, in bytes from [`CodeMap::versions`].
    pub const fn version_at(page: u32) -> u64 {
        page as u64 * size_of::<Page>() as u64 + offset_of!(Page, version) as u64
    }

    /// The pieces of the page that hold decoded code: a bit for each 64 bytes.
    pub fn pieces(&self, page: u32) -> u64 {
        self.pages[page as usize].chunks.load(Ordering::SeqCst)
    }

    /// Gives the page, if it has been written to less often, a later version: everything cached of it becomes stale. Whether
    /// it has that version now.
    pub fn raise(&self, page: u32, version: u32) -> bool {
        let of_page = &self.pages[page as usize];
        if version.is_multiple_of(2) && self.version(page) < version {
            self.renew(of_page, |now| if now < version { version } else { now.wrapping_add(2) });
        }
        self.version(page) == version
    }

    /// Marks `len` bytes at `offset` of the page as decoded. Returns the vCPUs that may write there unseen: their
    /// software TLBs must forget the page's write permission before the bytes are decoded.
    pub fn mark(&self, page: u32, offset: u64, len: u64) -> u64 {
        self.mark_pieces(page, bits(offset, len))
    }

    /// As [`CodeMap::mark`] for [`CodeMap::pieces`].
    pub fn mark_pieces(&self, page: u32, pieces: u64) -> u64 {
        let page = &self.pages[page as usize];
        page.chunks.fetch_or(pieces, Ordering::SeqCst);
        page.told.store(0, Ordering::Relaxed);
        page.writers.swap(0, Ordering::SeqCst)
    }

    /// vCPU `cpu` wants to write to the page without telling. False: the page holds code, it must tell each time.
    pub fn may_write_unseen(&self, page: u32, cpu: u32) -> bool {
        let page = &self.pages[page as usize];
        if page.version.load(Ordering::Relaxed) >= OFTEN && page.told.fetch_add(1, Ordering::Relaxed) < DATA {
            return false;
        }
        let writer = 1 << (cpu & 63);
        // Whoever marks code takes the bit away after that: where it still stands, this vCPU will be told.
        if page.writers.load(Ordering::SeqCst) & writer == 0 {
            page.writers.fetch_or(writer, Ordering::SeqCst);
        }
        page.chunks.load(Ordering::SeqCst) == 0
    }

    /// Whether the range, inside one page, touches decoded code.
    pub fn touches(&self, page: u32, offset: u64, len: u64) -> bool {
        self.pages[page as usize].chunks.load(Ordering::Relaxed) & bits(offset, len) != 0
    }

    /// Every cached piece of code from this page is stale.
    pub fn invalidate(&self, page: u32) {
        self.renew(&self.pages[page as usize], |now| now.wrapping_add(2));
    }

    fn renew(&self, page: &Page, next: impl Fn(u32) -> u32) {
        let watchers = self.watchers.lock().unwrap_or_else(PoisonError::into_inner);
        // Odd in between: nobody decodes for such a version, so the marks of a version stand as long as it does.
        let now = page.version.fetch_add(1, Ordering::SeqCst);
        page.chunks.store(0, Ordering::SeqCst);
        page.version.store(next(now), Ordering::SeqCst);
        for watcher in watchers.iter() {
            watcher();
        }
    }

    /// Tells `watcher` from now on whenever cached code becomes stale.
    pub fn watch(&self, watcher: impl Fn() + Send + Sync + 'static) {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(watcher));
    }

    /// `len` bytes from byte `start` of RAM (counted through all regions) were written.
    pub fn written(&self, start: u64, len: u64) {
        let (mut at, end) = (start, start + len);
        while at < end {
            let page = (at / 4096) as u32;
            let offset = at % 4096;
            let part = (4096 - offset).min(end - at);
            if self.touches(page, offset, part) {
                self.invalidate(page);
            }
            at += part;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writes_into_decoded_chunks_count() {
        let map = CodeMap::new(3);
        assert_eq!(map.mark(1, 100, 60), 0);
        map.written(4096, 64);
        assert_eq!(map.version(1), 0);
        map.written(4096 + 159, 1);
        assert_eq!(map.version(1), 2);
        map.written(4096 + 100, 1);
        assert_eq!(map.version(1), 2, "forgotten after the first write");
    }

    /// Or a write to that code would not be noticed.
    #[test]
    fn a_mark_stays_as_long_as_the_version_stands() {
        let map = CodeMap::new(1);
        let (mut stood, end) = (0u32, std::sync::atomic::AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    map.invalidate(0);
                }
            });
            let start = std::time::Instant::now();
            while start.elapsed().as_millis() < 500 {
                let version = map.version(0);
                map.mark(0, 64, 8);
                for _ in 0..10 {
                    let touched = map.touches(0, 64, 8);
                    if map.version(0) != version {
                        break;
                    }
                    if !touched {
                        end.store(true, Ordering::Relaxed);
                    }
                    assert!(touched, "marked for version {version}, and forgotten");
                    stood += 1;
                }
            }
            end.store(true, Ordering::Relaxed);
        });
        assert!(stood > 0);
    }

    #[test]
    fn writers_are_named_once() {
        let map = CodeMap::new(1);
        assert!(map.may_write_unseen(0, 3));
        assert_eq!(map.mark(0, 0, 16), 1 << 3);
        assert_eq!(map.mark(0, 16, 16), 0);
        assert!(!map.may_write_unseen(0, 3));
    }
}
