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
                for table in &mut self.tables {
                    for (at, target) in table.iter_mut().enumerate() {
                        if (target.linear ^ linear) & !(PAGE_SIZE - 1) == 0 {
                            *target = empty(at);
                        }
                    }
                }
            }
            JumpFlush::All => self.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A jump finds a slot by its target: no target may find what a free slot holds.
    #[test]
    fn no_address_finds_a_free_slot() {
        for at in 0..ENTRIES {
            assert_ne!(slot(empty(at).linear) >> 4, at);
        }
    }
}
