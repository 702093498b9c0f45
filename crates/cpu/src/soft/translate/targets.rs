//! Where jumps whose target is only known when they are taken find translated code: a table by linear address, which
//! translated code reads itself.

use super::super::block::JumpFlush;
use super::super::slots::UsedSlots;
use std::mem::offset_of;
use std::ptr::NonNull;
use viv_mem::PAGE_SIZE;

/// Binary logarithm of the entries of a table: many, so that hot targets seldom meet.
const BITS: u8 = 14;
const ENTRIES: usize = 1 << BITS;
/// Non-canonical: no jump leads there.
const NOWHERE: u64 = 1 << 63 | 1;

/// Multiplier of the hash of linear addresses.
pub(super) const HASH: u32 = 0x9e37_79b1;
/// Shift of the product to an entry's byte offset, and its mask.
pub(super) const HASH_SHIFT: u8 = 32 - BITS - 4;
pub(super) const HASH_MASK: i32 = ((ENTRIES - 1) << 4) as i32;

#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Target {
    pub(super) linear: u64,
    pub(super) code: u64,
}
const _: () = assert!(size_of::<Target>() == 16);

/// What a free slot holds: an address that is looked up elsewhere, so that a jump even to a non-canonical address never
/// finds a free slot.
const fn empty(at: usize) -> Target {
    let linear = if at == slot(NOWHERE) >> 4 { NOWHERE + 1 } else { NOWHERE };
    Target { linear, code: 0 }
}
const _: () = assert!(slot(NOWHERE) != slot(NOWHERE + 1));

/// Translated code by linear address, for each of the three privileges that have a software TLB of their own.
#[repr(C)]
pub(crate) struct Targets {
    tables: [[Target; ENTRIES]; 3],
    used: UsedSlots<ENTRIES>,
    pages: PageSlots,
}

/// The slots of a page's addresses, so that forgetting a page does not mean to look at all of them.
struct PageSlots {
    /// (table, slot) by a hash of the page. Some have got another address since, some are listed twice.
    buckets: Vec<Vec<(u8, u16)>>,
}

/// Buckets, a power of two, and slots in one before it is tidied up.
const BUCKETS: usize = 256;
const BUCKET_MAX: usize = 512;

fn bucket(linear: u64) -> usize {
    ((linear / PAGE_SIZE) as u32).wrapping_mul(HASH) as usize >> 16 & (BUCKETS - 1)
}

impl PageSlots {
    fn note(&mut self, tables: &[[Target; ENTRIES]; 3], linear: u64, table: u8, slot: u16) {
        let at = bucket(linear);
        let slots = &mut self.buckets[at];
        if slots.len() >= BUCKET_MAX {
            slots.sort_unstable();
            slots.dedup();
            slots
                .retain(|(table, slot)| bucket(tables[usize::from(*table)][usize::from(*slot)].linear) == at);
        }
        slots.push((table, slot));
    }

    fn clear(&mut self) {
        self.buckets.iter_mut().for_each(Vec::clear);
    }
}

const fn slot(linear: u64) -> usize {
    ((linear as u32).wrapping_mul(HASH) >> HASH_SHIFT) as usize & HASH_MASK as usize
}

impl Targets {
    /// Makes the empty tables in place: they are too large for a thread's stack.
    ///
    /// # Safety
    /// `place` is zeroed memory for them, on their boundary, that nobody else uses.
    pub(super) unsafe fn place(place: NonNull<Targets>) -> NonNull<Targets> {
        // SAFETY: the caller's promise; a zeroed vector is none, so it is written first, and zeroes are values of the rest.
        unsafe {
            UsedSlots::place(&raw mut (*place.as_ptr()).used);
            (&raw mut (*place.as_ptr()).pages).write(PageSlots { buckets: vec![Vec::new(); BUCKETS] });
            for table in &mut (*place.as_ptr()).tables {
                for (at, target) in table.iter_mut().enumerate() {
                    *target = empty(at);
                }
            }
        }
        place
    }

    pub(super) const fn table_offset(mmu: u8) -> usize {
        offset_of!(Targets, tables) + mmu as usize * ENTRIES * size_of::<Target>()
    }

    #[inline(always)]
    pub(super) fn find(&self, mmu: u8, linear: u64) -> Option<u64> {
        let target = &self.tables[usize::from(mmu)][slot(linear) >> 4];
        (target.linear == linear).then_some(target.code)
    }

    pub(super) fn enter(&mut self, mmu: u8, linear: u64, code: u64, global: bool) {
        let slot = slot(linear) >> 4;
        self.tables[usize::from(mmu)][slot] = Target { linear, code };
        self.used.note(usize::from(mmu), slot, global);
        self.pages.note(&self.tables, linear, mmu, slot as u16);
    }

    /// Forgets the code for an address.
    pub(crate) fn remove(&mut self, mmu: usize, linear: u64) {
        if let Some(table) = self.tables.get_mut(mmu) {
            let at = slot(linear) >> 4;
            table[at] = empty(at);
        }
    }

    pub(crate) fn flush(&mut self) {
        for global in [false, true] {
            while let Some((table, slot)) = self.used.pop(global) {
                self.tables[table][slot] = empty(slot);
            }
        }
        self.pages.clear();
    }

    /// Translations of addresses changed.
    pub(crate) fn forget(&mut self, what: JumpFlush) {
        match what {
            JumpFlush::Nothing => {}
            JumpFlush::Local => {
                while let Some((table, slot)) = self.used.pop(false) {
                    self.tables[table][slot] = empty(slot);
                }
            }
            JumpFlush::Page(linear) => {
                let slots = &mut self.pages.buckets[bucket(linear)];
                slots.retain(|(table, slot)| {
                    let slot = usize::from(*slot);
                    let target = &mut self.tables[usize::from(*table)][slot];
                    let of_page = (target.linear ^ linear) & !(PAGE_SIZE - 1) == 0;
                    if of_page {
                        *target = empty(slot);
                    }
                    !of_page
                });
            }
            JumpFlush::All => self.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page's addresses go with it, wherever they are and however often they were entered, and no others do.
    #[test]
    fn a_page_is_forgotten_alone() {
        let mut place = vec![0u64; size_of::<Targets>().div_ceil(8)];
        // SAFETY: zeroed memory on a boundary of 8 bytes, which outlives its use here; the lists in it are dropped below.
        let targets = unsafe { Targets::place(NonNull::new(place.as_mut_ptr().cast()).unwrap()).as_mut() };
        let address = |page: u64, n: u64| 0xffff_8000_0000_0000 + page * PAGE_SIZE + n * 8;
        for _ in 0..3 {
            for page in 0..600 {
                for n in 0..4 {
                    targets.enter((page % 3) as u8, address(page, n), page + 1, false);
                }
            }
        }
        let have = |targets: &Targets, page: u64| {
            (0..4).filter(|n| targets.find((page % 3) as u8, address(page, *n)).is_some()).count()
        };
        let before: Vec<_> = (0..600).map(|page| have(targets, page)).collect();
        assert!(before.iter().sum::<usize>() > 2000, "few meet");
        targets.forget(JumpFlush::Page(address(77, 3)));
        for page in 0..600 {
            assert_eq!(have(targets, page), if page == 77 { 0 } else { before[page as usize] }, "{page}");
        }
        targets.forget(JumpFlush::Local);
        assert!((0..600).all(|page| have(targets, page) == 0));
        // SAFETY: made above, dropped once.
        unsafe { std::ptr::drop_in_place(targets) };
    }

    /// A jump finds a slot by its target: no target may find what a free slot holds.
    #[test]
    fn no_address_finds_a_free_slot() {
        for at in 0..ENTRIES {
            assert_ne!(slot(empty(at).linear) >> 4, at);
        }
    }
}
