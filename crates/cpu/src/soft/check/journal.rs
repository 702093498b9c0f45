//! What a vCPU writes, and what it is given by chance.
#![allow(unsafe_code)]

use super::super::mmu::Tlb;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use viv_mem::PAGE_SIZE;

/// What one vCPU does to the outside while it is watched.
#[derive(Default)]
pub(crate) struct Journal {
    /// Translated code runs, or the shadow.
    pub(super) on: bool,
    /// Pages written since then, as they were, by their first byte counted through all regions.
    pub(super) pages: BTreeMap<u64, Box<[u8; PAGE_SIZE as usize]>>,
    /// Slots of the TLB that allow writes: taken back at the next begin, so that each page's first write shows.
    granted: Vec<(usize, u64)>,
    /// Random numbers that the guest was given, or will be given again.
    pub(super) randoms: VecDeque<Option<u64>>,
    /// Elements of each repeated string instruction, likewise.
    pub(super) batches: VecDeque<u64>,
    /// Pages written since the shadow last looked, in translated code or not.
    pub(super) changed: BTreeSet<u64>,
    replays: bool,
}

impl Journal {
    /// For a vCPU that does again what another one did.
    pub(super) fn of_shadow() -> Journal {
        Journal { replays: true, ..Journal::default() }
    }

    pub(super) fn begin(&mut self, tlb: &mut Tlb) {
        for (mmu, linear) in self.granted.drain(..) {
            tlb.forbid_write(mmu, linear);
        }
        self.pages.clear();
        self.randoms.clear();
        self.batches.clear();
        self.on = true;
    }

    /// The page of RAM byte `ram`, at `host`, is about to be written.
    pub(crate) fn writes(&mut self, ram: u64, host: *const u8) {
        self.changed.insert(ram & !(PAGE_SIZE - 1));
        if !self.on {
            return;
        }
        self.pages.entry(ram & !(PAGE_SIZE - 1)).or_insert_with(|| {
            // SAFETY: `host` lies in a mapped page of guest RAM.
            unsafe { page_at(host) }
        });
    }

    /// The TLB allows writes to the page of `linear` from now on.
    pub(crate) fn granted(&mut self, mmu: usize, linear: u64) {
        self.granted.push((mmu, linear));
    }

    /// How many elements a repeated string instruction does at once: `most`, or as many as it did the first time.
    pub(crate) fn batch(&mut self, most: u64) -> u64 {
        let first_time = if self.replays { self.batches.pop_front() } else { None };
        first_time.map_or(most, |elements| elements.max(1))
    }

    /// It has done so many.
    pub(crate) fn repeated(&mut self, elements: u64) {
        if self.on && !self.replays {
            self.batches.push_back(elements);
        }
    }

    /// A random number for the guest, if the host has one.
    pub(crate) fn random(&mut self, fresh: Option<u64>) -> Option<u64> {
        if !self.on {
            return fresh;
        }
        if self.replays {
            return self.randoms.pop_front().flatten();
        }
        self.randoms.push_back(fresh);
        fresh
    }
}

/// A copy of the page in which `host` lies.
///
/// # Safety
/// It is a mapped page.
pub(super) unsafe fn page_at(host: *const u8) -> Box<[u8; PAGE_SIZE as usize]> {
    let mut copy = Box::new([0; PAGE_SIZE as usize]);
    let start = host.wrapping_sub(host as usize % PAGE_SIZE as usize);
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(start, copy.as_mut_ptr(), copy.len()) };
    copy
}
