//! The page walker: linear addresses to guest-physical ones (SDM vol. 3 ch. 4).

use super::cpu::{Cpu, R};
use super::mmu::{NOT_CANONICAL, PAGE_MASK, PHYSICAL_BITS, Tlb, Want};
use viv_arch::x86::{cr0, cr4, efer};
use viv_mem::Gpa;

/// Page-table entry bits (SDM vol. 3 §4.5).
mod pte {
    pub(super) const P: u64 = 1;
    pub(super) const W: u64 = 1 << 1;
    pub(super) const U: u64 = 1 << 2;
    pub(super) const A: u64 = 1 << 5;
    pub(super) const D: u64 = 1 << 6;
    pub(super) const PS: u64 = 1 << 7;
    pub(super) const G: u64 = 1 << 8;
    pub(super) const NX: u64 = 1 << 63;
}

/// Page-fault error code bits (SDM vol. 3 §4.7).
mod code {
    pub(super) const P: u32 = 1;
    pub(super) const W: u32 = 2;
    pub(super) const U: u32 = 4;
    pub(super) const RSVD: u32 = 8;
    pub(super) const I: u32 = 16;
}

pub(super) struct Translation {
    pub(super) gpa: u64,
    pub(super) user: bool,
    /// Both W bits of the walk and, for supervisors, CR0.WP.
    pub(super) writable: bool,
    pub(super) executable: bool,
    pub(super) global: bool,
    pub(super) dirty: bool,
    /// Binary logarithm of the page's size.
    pub(super) shift: u8,
}

impl Cpu {
    pub(super) fn translate(&mut self, mmu: usize, linear: u64, want: Want) -> R<Translation> {
        if self.cr0 & cr0::PG == 0 {
            let gpa = linear & 0xffff_ffff & PAGE_MASK;
            return Ok(Translation {
                gpa,
                user: false,
                writable: true,
                executable: true,
                global: false,
                dirty: true,
                shift: 12,
            });
        }
        if self.long_mode() && !self.canonical(linear) {
            let fault = self.gp(0);
            self.fault.address = NOT_CANONICAL;
            return fault;
        }
        let user = mmu == Tlb::USER;
        let mut error = if want == Want::Write { code::W } else { 0 };
        if user {
            error |= code::U;
        }
        let nx = self.cr4 & cr4::PAE != 0 && self.efer & efer::NXE != 0;
        if want == Want::Execute && (nx || self.cr4 & cr4::SMEP != 0) {
            error |= code::I;
        }
        let found = if self.long_mode() {
            self.walk(linear, self.cr3 & 0x000f_ffff_ffff_f000, 4, want, user, mmu)
        } else if self.cr4 & cr4::PAE != 0 {
            self.walk_pae(linear, want, user, mmu)
        } else {
            self.walk32(linear, want, user, mmu)
        };
        match found {
            Ok(translation) => Ok(translation),
            Err(bits) => self.page_fault(linear, error | bits),
        }
    }

    /// Whether the rights of a finished walk allow the access; the error code's P bit is the answer if not.
    fn allowed(&self, t: &Translation, want: Want, user: bool, mmu: usize) -> bool {
        if user {
            return t.user && (want != Want::Write || t.writable) && (want != Want::Execute || t.executable);
        }
        match want {
            Want::Execute => t.executable && !(t.user && self.cr4 & cr4::SMEP != 0),
            _ if t.user && mmu == Tlb::SUPERVISOR && self.cr4 & cr4::SMAP != 0 => false,
            Want::Write => t.writable,
            Want::Read => true,
        }
    }

    /// Walks 8-byte tables from `level` down (4-level paging, or the last two levels of PAE).
    fn walk(
        &self,
        linear: u64,
        root: u64,
        levels: u32,
        want: Want,
        user: bool,
        mmu: usize,
    ) -> Result<Translation, u32> {
        let memory = &self.shared.memory;
        'again: loop {
            let (mut table, mut rights, mut nx) = (root, pte::W | pte::U, false);
            let mut level = levels;
            loop {
                let shift = 12 + 9 * (level - 1);
                let address = table + (linear >> shift & 0x1ff) * 8;
                // Tables outside RAM read as absent.
                let Ok(cell) = memory.atomic_u64(Gpa(address)) else { return Err(0) };
                let entry = cell.load(std::sync::atomic::Ordering::Acquire);
                if entry & pte::P == 0 {
                    return Err(0);
                }
                let leaf = level == 1 || (level <= 3 && entry & pte::PS != 0);
                if self.reserved(entry, level, leaf, levels) {
                    return Err(code::P | code::RSVD);
                }
                rights &= entry;
                nx |= entry & pte::NX != 0;
                if !leaf {
                    if entry & pte::A == 0 && !swap(cell, entry, entry | pte::A) {
                        continue 'again;
                    }
                    table = entry & 0x000f_ffff_ffff_f000;
                    level -= 1;
                    continue;
                }
                let size = 1u64 << shift;
                let frame = entry & 0x000f_ffff_ffff_f000 & !(size - 1);
                let supervisor_writes = !user && self.cr0 & cr0::WP == 0;
                let translation = Translation {
                    gpa: frame | linear & (size - 1) & PAGE_MASK,
                    user: rights & pte::U != 0,
                    writable: rights & pte::W != 0 || supervisor_writes,
                    executable: !nx || self.efer & efer::NXE == 0,
                    global: entry & pte::G != 0 && self.cr4 & cr4::PGE != 0,
                    dirty: entry & pte::D != 0 || want == Want::Write,
                    shift: shift as u8,
                };
                if !self.allowed(&translation, want, user, mmu) {
                    return Err(code::P);
                }
                let marked = entry | pte::A | if want == Want::Write { pte::D } else { 0 };
                if marked != entry && !swap(cell, entry, marked) {
                    continue 'again;
                }
                return Ok(Translation {
                    executable: translation.executable
                        && self.allowed(&translation, Want::Execute, user, mmu),
                    ..translation
                });
            }
        }
    }

    /// Reserved bits (SDM vol. 3 §4.5.4, tables 4-14 to 4-20).
    fn reserved(&self, entry: u64, level: u32, leaf: bool, levels: u32) -> bool {
        let high = !((1u64 << PHYSICAL_BITS) - 1) & 0x000f_ffff_ffff_ffff;
        let mut reserved = high;
        if levels < 4 {
            // PAE has no ignored bits above the physical address.
            reserved |= 0x7ff0_0000_0000_0000;
        }
        if self.efer & efer::NXE == 0 {
            reserved |= pte::NX;
        }
        if level == 4 {
            reserved |= pte::PS;
        }
        if leaf && level > 1 {
            reserved |= ((1u64 << (12 + 9 * (level - 1))) - 1) & !0x1fff;
        }
        entry & reserved != 0
    }

    fn walk_pae(&self, linear: u64, want: Want, user: bool, mmu: usize) -> Result<Translation, u32> {
        let address = (self.cr3 & 0xffff_ffe0) + (linear >> 30 & 3) * 8;
        let Ok(cell) = self.shared.memory.atomic_u64(Gpa(address)) else { return Err(0) };
        let entry = cell.load(std::sync::atomic::Ordering::Acquire);
        if entry & pte::P == 0 {
            return Err(0);
        }
        self.walk(linear, entry & 0x000f_ffff_ffff_f000, 2, want, user, mmu)
    }

    fn walk32(&self, linear: u64, want: Want, user: bool, mmu: usize) -> Result<Translation, u32> {
        let memory = &self.shared.memory;
        let directory = (self.cr3 & 0xffff_f000) + (linear >> 22 & 0x3ff) * 4;
        let Ok(pde) = memory.load_u32(Gpa(directory)) else { return Err(0) };
        if u64::from(pde) & pte::P == 0 {
            return Err(0);
        }
        let large = u64::from(pde) & pte::PS != 0 && self.cr4 & cr4::PSE != 0;
        let (address, entry, frame, rights) = if large {
            let high = u64::from(pde) >> 13 & 0xff;
            let frame = u64::from(pde) & 0xffc0_0000 | high << 32 | linear & 0x3f_f000;
            if pde & 1 << 21 != 0 {
                return Err(code::P | code::RSVD);
            }
            (directory, pde, frame, u64::from(pde))
        } else {
            let address = u64::from(pde & 0xffff_f000) + (linear >> 12 & 0x3ff) * 4;
            let Ok(pte) = memory.load_u32(Gpa(address)) else { return Err(0) };
            if u64::from(pte) & pte::P == 0 {
                return Err(0);
            }
            if u64::from(pde) & pte::A == 0 {
                let _ = memory.store_u32(Gpa(directory), pde | pte::A as u32);
            }
            (address, pte, u64::from(pte & 0xffff_f000), u64::from(pte & pde))
        };
        let supervisor_writes = !user && self.cr0 & cr0::WP == 0;
        let translation = Translation {
            gpa: frame,
            user: rights & pte::U != 0,
            writable: rights & pte::W != 0 || supervisor_writes,
            executable: true,
            global: u64::from(entry) & pte::G != 0 && self.cr4 & cr4::PGE != 0,
            dirty: u64::from(entry) & pte::D != 0 || want == Want::Write,
            shift: if large { 22 } else { 12 },
        };
        if !self.allowed(&translation, want, user, mmu) {
            return Err(code::P);
        }
        let marked = entry | pte::A as u32 | if want == Want::Write { pte::D as u32 } else { 0 };
        if marked != entry {
            let _ = memory.store_u32(Gpa(address), marked);
        }
        Ok(Translation { executable: self.allowed(&translation, Want::Execute, user, mmu), ..translation })
    }
}

fn swap(cell: &std::sync::atomic::AtomicU64, old: u64, new: u64) -> bool {
    use std::sync::atomic::Ordering::{AcqRel, Acquire};
    cell.compare_exchange(old, new, AcqRel, Acquire).is_ok()
}
