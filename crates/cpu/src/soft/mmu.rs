//! Linear addresses to memory: the software TLB and every access of the guest's instructions. The page walker is in
//! [`super::walk`].
//!
//! There are three TLBs: for user accesses, for supervisor accesses under SMAP, and for supervisor accesses
//! that may touch user pages. An entry's tag says what may go the fast way, straight to host memory: never
//! MMIO, never writes into pages with decoded code, never pages under a data breakpoint.
#![allow(unsafe_code)]

use super::block::JumpFlush;
use super::cpu::{CodeWrite, Cpu, R};
use super::native::Width;
use super::slots::UsedSlots;
use std::ptr::NonNull;
use viv_arch::x86::{cr0, cr4, rflags, seg, vector};
use viv_mem::{Gpa, PAGE_SIZE};

/// Of a TLB: 16 MiB of the guest's memory. What does not fit costs a walk each time.
pub(crate) const ENTRIES: usize = 4096;
pub(crate) const PAGE_MASK: u64 = !(PAGE_SIZE - 1);
/// `Exception::address` of a #GP for a non-canonical address.
pub(crate) const NOT_CANONICAL: u64 = 1;
/// This bit makes a tag that no address has. Tags of translations have none below bit 12.
const NO: u64 = 1;

/// A tag that no address of this slot has, whatever lies below bit 12: translated code looks at the difference of both.
fn no(slot: usize) -> u64 {
    NO | (!slot as u64 & 1) << 12
}

/// Physical address bits that CPUID reports.
pub(crate) const PHYSICAL_BITS: u32 = 46;

/// What an entry of the software TLB maps. Translated code reads it.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Entry {
    pub(crate) read: u64,
    pub(crate) write: u64,
    /// Host address of the page.
    pub(crate) host: u64,
    /// Host address minus linear address.
    pub(crate) addend: u64,
}

fn empty(slot: usize) -> Entry {
    Entry { read: no(slot), write: no(slot), host: 0, addend: 0 }
}

/// The software TLBs of one vCPU.
#[repr(C)]
pub(crate) struct Tlb {
    pub(crate) entries: [[Entry; ENTRIES]; 3],
    execute: [[u64; ENTRIES]; 3],
    global: [[bool; ENTRIES]; 3],
    used: UsedSlots<ENTRIES>,
    /// Binary logarithm of the page size behind each entry.
    shift: [[u8; ENTRIES]; 3],
    /// Binary logarithm of the largest page that was entered in the lower and in the upper half of the address space; 0: none
    /// larger than 4 KiB.
    large: [u8; 2],
}

impl Tlb {
    /// Supervisor accesses under SMAP.
    pub(crate) const SUPERVISOR: usize = 0;
    /// User accesses.
    pub(crate) const USER: usize = 1;
    /// Supervisor accesses that may touch user pages (SMAP off, or EFLAGS.AC set).
    pub(crate) const SUPERVISOR_ANY: usize = 2;

    /// Makes the empty TLBs in place: they are too large for a thread's stack.
    ///
    /// # Safety
    /// `place` is zeroed memory for them, on their boundary, that nobody else uses.
    pub(crate) unsafe fn place(place: NonNull<Tlb>) -> NonNull<Tlb> {
        // SAFETY: the caller's promise; a zeroed vector is none, so it is written first, and zeroes are values of the rest.
        unsafe {
            UsedSlots::place(&raw mut (*place.as_ptr()).used);
            for entries in &mut (*place.as_ptr()).entries {
                entries.iter_mut().enumerate().for_each(|(slot, entry)| *entry = empty(slot));
            }
            (*place.as_ptr()).execute.as_flattened_mut().fill(NO);
        }
        place
    }

    pub(crate) fn flush(&mut self, globals_too: bool) {
        while let Some((mmu, slot)) = self.used.pop(false) {
            if globals_too || !self.global[mmu][slot] {
                self.forget(mmu, slot);
            }
        }
        if globals_too {
            while let Some((mmu, slot)) = self.used.pop(true) {
                self.forget(mmu, slot);
            }
            self.large = [0; 2];
        }
    }

    fn forget(&mut self, mmu: usize, slot: usize) {
        self.entries[mmu][slot] = empty(slot);
        self.execute[mmu][slot] = NO;
    }

    fn enter(&mut self, mmu: usize, linear: u64, entry: Entry, execute: u64, global: bool) {
        let slot = slot(linear);
        self.entries[mmu][slot] = entry;
        self.execute[mmu][slot] = execute;
        self.global[mmu][slot] = global;
        self.used.note(mmu, slot, global);
    }

    pub(crate) fn flush_page(&mut self, linear: u64) {
        for mmu in 0..self.entries.len() {
            self.forget(mmu, slot(linear));
        }
        let large = self.large[usize::from(linear >> 63 != 0)];
        if large == 0 {
            return;
        }
        // A large page has an entry for each 4 KiB of it that was used: INVLPG forgets all of them (SDM vol. 3 §4.10.4.1).
        let slots = ENTRIES.min(1 << (large - 12));
        let first = slot(linear) & !(slots - 1);
        for mmu in 0..self.entries.len() {
            for slot in first..first + slots {
                let (entry, shift) = (&self.entries[mmu][slot], self.shift[mmu][slot]);
                let tag =
                    [entry.read, entry.write, self.execute[mmu][slot]].into_iter().find(|tag| tag & NO == 0);
                if shift > 12 && tag.is_some_and(|tag| (tag ^ linear) >> shift == 0) {
                    self.forget(mmu, slot);
                }
            }
        }
    }

    fn has_large(&self, linear: u64) -> bool {
        self.large[usize::from(linear >> 63 != 0)] != 0
    }

    /// Whether an entry says that user code cannot execute the page, nor therefore anybody with SMEP: only sure for
    /// the lower half, where user code lives.
    fn not_executable(&self, linear: u64) -> bool {
        let (page, entry) = (linear & PAGE_MASK, &self.entries[Tlb::USER][slot(linear)]);
        linear >> 63 == 0
            && (entry.read == page || entry.write == page)
            && self.execute[Tlb::USER][slot(linear)] & NO != 0
    }

    fn note_size(&mut self, mmu: usize, linear: u64, shift: u8) {
        self.shift[mmu][slot(linear)] = shift;
        if shift > 12 {
            let large = &mut self.large[usize::from(linear >> 63 != 0)];
            *large = (*large).max(shift);
        }
    }

    /// Forgets write permission for the page of `linear`.
    pub(crate) fn forbid_write(&mut self, mmu: usize, linear: u64) {
        let slot = slot(linear);
        self.entries[mmu][slot].write = no(slot);
    }

    /// Forgets all write permission for the host page `page` (or for every page).
    pub(crate) fn forbid_writes(&mut self, page: Option<u64>) {
        for (mmu, slot) in self.used.all() {
            let entry = &mut self.entries[mmu][slot];
            if page.is_none_or(|host| entry.host == host) {
                entry.write = no(slot);
            }
        }
    }
}

fn slot(linear: u64) -> usize {
    (linear >> 12) as usize % ENTRIES
}

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    Read,
    Write,
    Execute,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// RAM at this host address; code in it may have been decoded if so marked.
    Ram(*mut u8),
    /// No RAM there: a device, or nothing.
    Device(u64),
}

impl Cpu {
    pub(crate) fn canonical(&self, linear: u64) -> bool {
        ((linear as i64) << 16 >> 16) as u64 == linear
    }

    // ---- the fast way ---------------------------------------------------------------------------

    /// Loads from a linear address with the current privilege.
    #[inline(always)]
    pub(crate) fn load<W: Width>(&mut self, linear: u64) -> R<W> {
        self.load_as(self.mmu, linear)
    }

    #[inline(always)]
    pub(crate) fn load_as<W: Width>(&mut self, mmu: usize, linear: u64) -> R<W> {
        let entry = &self.tlb.entries[mmu][slot(linear)];
        if entry.read == linear & PAGE_MASK && linear & 0xfff <= PAGE_SIZE - W::BYTES {
            let host = linear.wrapping_add(entry.addend) as *const W;
            // SAFETY: the entry maps this page to guest RAM, which stays mapped; the access stays in the page.
            return Ok(unsafe { host.read_unaligned() });
        }
        self.load_slow(mmu, linear)
    }

    /// Stores to a linear address with the current privilege.
    #[inline(always)]
    pub(crate) fn store<W: Width>(&mut self, linear: u64, value: W) -> R<()> {
        self.store_as(self.mmu, linear, value)
    }

    #[inline(always)]
    pub(crate) fn store_as<W: Width>(&mut self, mmu: usize, linear: u64, value: W) -> R<()> {
        let entry = &self.tlb.entries[mmu][slot(linear)];
        if entry.write == linear & PAGE_MASK && linear & 0xfff <= PAGE_SIZE - W::BYTES {
            let host = linear.wrapping_add(entry.addend) as *mut W;
            // SAFETY: as in `load_as`.
            unsafe { host.write_unaligned(value) };
            return Ok(());
        }
        self.store_slow(mmu, linear, value)
    }

    /// The host address for a read-modify-write of `W`, if it is RAM and lies in one page; else `None` after
    /// the write permission was checked for all of it.
    #[inline(always)]
    pub(crate) fn modify<W: Width>(&mut self, linear: u64) -> R<Option<*mut W>> {
        let entry = &self.tlb.entries[self.mmu][slot(linear)];
        if entry.write == linear & PAGE_MASK && linear & 0xfff <= PAGE_SIZE - W::BYTES {
            return Ok(Some(linear.wrapping_add(entry.addend) as *mut W));
        }
        self.modify_slow(linear, W::BYTES).map(|host| host.map(<*mut u8>::cast))
    }

    /// `load` with the alignment check of CPL 3.
    #[inline(always)]
    pub(crate) fn load_checked<W: Width>(&mut self, linear: u64) -> R<W> {
        self.check_aligned::<W>(linear)?;
        self.load(linear)
    }

    /// `store` with the alignment check of CPL 3.
    #[inline(always)]
    pub(crate) fn store_checked<W: Width>(&mut self, linear: u64, value: W) -> R<()> {
        self.check_aligned::<W>(linear)?;
        self.store(linear, value)
    }

    #[inline(always)]
    pub(crate) fn check_aligned<W: Width>(&mut self, linear: u64) -> R<()> {
        if W::BYTES > 1 && linear & (W::BYTES - 1) != 0 && self.rflags & rflags::AC != 0 {
            return self.check_alignment(linear, W::BYTES);
        }
        Ok(())
    }

    // ---- the slow way ---------------------------------------------------------------------------

    #[cold]
    #[inline(never)]
    fn load_slow<W: Width>(&mut self, mmu: usize, linear: u64) -> R<W> {
        let mut bytes = [0; 8];
        self.read_bytes(mmu, linear, &mut bytes[..W::BYTES as usize])?;
        Ok(W::of(u64::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    fn store_slow<W: Width>(&mut self, mmu: usize, linear: u64, value: W) -> R<()> {
        self.write_bytes(mmu, linear, &value.wide().to_le_bytes()[..W::BYTES as usize])
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn modify_slow(&mut self, linear: u64, len: u64) -> R<Option<*mut u8>> {
        let first = self.place(self.mmu, linear, Want::Write, len)?;
        if linear & 0xfff > PAGE_SIZE - len {
            let next = self.wrap_linear((linear & PAGE_MASK).wrapping_add(PAGE_SIZE));
            self.place(self.mmu, next, Want::Write, 1)?;
            return Ok(None);
        }
        match first {
            Place::Ram(host) => Ok(Some(host)),
            Place::Device(_) => Ok(None),
        }
    }

    /// Reads any number of bytes, page by page; nothing is read before all of it is known to be readable.
    pub(crate) fn read_bytes(&mut self, mmu: usize, linear: u64, data: &mut [u8]) -> R<()> {
        let first = self.place(mmu, linear, Want::Read, data.len() as u64)?;
        let in_page = ((PAGE_SIZE - (linear & 0xfff)) as usize).min(data.len());
        let (head, tail) = data.split_at_mut(in_page);
        let second = if tail.is_empty() {
            None
        } else {
            let next = self.wrap_linear(linear.wrapping_add(in_page as u64));
            Some(self.place(mmu, next, Want::Read, tail.len() as u64)?)
        };
        self.copy_out(first, head);
        if let Some(second) = second {
            self.copy_out(second, tail);
        }
        Ok(())
    }

    /// Writes any number of bytes up to a page; nothing is written before all of it is known to be writable.
    pub(crate) fn write_bytes(&mut self, mmu: usize, linear: u64, data: &[u8]) -> R<()> {
        let first = self.place(mmu, linear, Want::Write, data.len() as u64)?;
        let in_page = ((PAGE_SIZE - (linear & 0xfff)) as usize).min(data.len());
        let (head, tail) = data.split_at(in_page);
        let second = if tail.is_empty() {
            None
        } else {
            let next = self.wrap_linear(linear.wrapping_add(in_page as u64));
            Some(self.place(mmu, next, Want::Write, tail.len() as u64)?)
        };
        self.copy_in(first, head);
        if let Some(second) = second {
            self.copy_in(second, tail);
        }
        Ok(())
    }

    /// Checks that all of a range may be written, without writing.
    pub(crate) fn probe_write(&mut self, mmu: usize, linear: u64, len: u64) -> R<()> {
        self.place(mmu, linear, Want::Write, len)?;
        if linear & 0xfff > PAGE_SIZE - len {
            let next = self.wrap_linear((linear & PAGE_MASK).wrapping_add(PAGE_SIZE));
            self.place(mmu, next, Want::Write, 1)?;
        }
        Ok(())
    }

    /// Linear addresses have 32 bits outside 64-bit mode.
    pub(crate) fn wrap_linear(&self, linear: u64) -> u64 {
        if self.code64() { linear } else { linear & 0xffff_ffff }
    }

    fn copy_out(&mut self, place: Place, data: &mut [u8]) {
        match place {
            // SAFETY: `place` checked the page; the callers stay inside it.
            Place::Ram(host) => unsafe { copy(host, data.as_mut_ptr(), data.len()) },
            Place::Device(gpa) => {
                let mut gpa = gpa;
                for part in parts(data.len(), gpa) {
                    self.events.device_memory += 1;
                    let value = self.bus().mmio_read(Gpa(gpa), part as u8);
                    let offset = data.len().min((gpa - place_gpa(place)) as usize);
                    data[offset..offset + part].copy_from_slice(&value.to_le_bytes()[..part]);
                    gpa += part as u64;
                }
                self.look_again();
            }
        }
    }

    fn copy_in(&mut self, place: Place, data: &[u8]) {
        match place {
            // SAFETY: as above.
            Place::Ram(host) => unsafe { copy(data.as_ptr(), host, data.len()) },
            Place::Device(gpa) => {
                let mut offset = 0;
                for part in parts(data.len(), gpa) {
                    let mut bytes = [0; 8];
                    bytes[..part].copy_from_slice(&data[offset..offset + part]);
                    self.events.device_memory += 1;
                    self.bus().mmio_write(Gpa(gpa + offset as u64), part as u8, u64::from_le_bytes(bytes));
                    offset += part;
                }
                self.look_again();
            }
        }
    }

    /// Translates one address for an access of `len` bytes (that may go on in the next page), fills the TLB,
    /// and checks permission. A write into decoded code makes that code stale here.
    pub(crate) fn place(&mut self, mmu: usize, linear: u64, want: Want, len: u64) -> R<Place> {
        let len = len.min(PAGE_SIZE - (linear & 0xfff)).max(1);
        if self.dr[5] & 0xff != 0 && want != Want::Execute {
            self.check_breakpoints(linear, len, want);
        }
        let hit = self.tlb.entries[mmu][slot(linear)];
        let tag = match want {
            Want::Read => hit.read,
            Want::Write => hit.write,
            Want::Execute => self.tlb.execute[mmu][slot(linear)],
        };
        if tag == linear & PAGE_MASK {
            return Ok(Place::Ram(linear.wrapping_add(hit.addend) as *mut u8));
        }
        self.enter_page(mmu, linear, want, len, false)
    }

    /// Brings the page of `linear` into the TLB, for translated code that missed it there. Whether an access of `len`
    /// bytes can now go the fast way, and a write behind it if one comes soon; if not, the interpreter finds out why.
    pub(crate) fn fill(&mut self, linear: u64, want: Want, len: u64, writes_soon: bool) -> bool {
        let in_page = linear & 0xfff <= PAGE_SIZE - len;
        if !in_page || self.enter_page(self.mmu, linear, want, 0, writes_soon).is_err() {
            return false;
        }
        let entry = &self.tlb.entries[self.mmu][slot(linear)];
        let tag = if want == Want::Write || writes_soon { entry.write } else { entry.read };
        tag == linear & PAGE_MASK
    }

    /// Translates and fills the TLB. `len` is 0 where nothing is about to be written. A write that comes soon leaves the
    /// dirty bit to itself.
    fn enter_page(&mut self, mmu: usize, linear: u64, want: Want, len: u64, writes_soon: bool) -> R<Place> {
        let translation = self.translate(mmu, linear, want)?;
        let gpa = translation.gpa | linear & 0xfff;
        let Some((host, ram)) = self.shared.memory.locate(Gpa(gpa)) else { return Ok(Place::Device(gpa)) };
        let page = (ram / PAGE_SIZE) as u32;
        let code = self.shared.memory.code();
        let writes_code = want == Want::Write && len != 0 && code.touches(page, linear & 0xfff, len);
        if writes_code {
            code.invalidate(page);
        }
        let watched = self.watched(linear);
        // Under SMAP a page may be executed that data accesses must not touch.
        let smap = mmu == Tlb::SUPERVISOR && translation.user && self.cr4 & cr4::SMAP != 0;
        let data = !watched && !smap;
        let tag = linear & PAGE_MASK;
        let pick = |yes: bool| if yes { tag } else { no(slot(linear)) };
        // Write permission is cached with the first write only, so that the dirty bit is set by then.
        let wanted = self.journal.is_none() || want == Want::Write || writes_soon;
        let unseen = wanted
            && translation.writable
            && translation.dirty
            && data
            && code.may_write_unseen(page, self.index);
        if let Some(journal) = &mut self.journal {
            if want == Want::Write || unseen {
                journal.writes(ram, host);
            }
            if unseen {
                journal.granted(mmu, linear);
            }
        }
        let entry = Entry {
            read: pick(data),
            write: pick(unseen),
            host: host as u64 & PAGE_MASK,
            addend: (host as u64 & PAGE_MASK).wrapping_sub(tag),
        };
        // Others may decode these bytes between the question above and the write itself: it is asked again behind the write,
        // unless they must wait for us.
        let unsure = want == Want::Write && len != 0 && !unseen && self.shared.cpus() > 1;
        if writes_code || unsure {
            self.wrote_code.push(CodeWrite { page, offset: linear & 0xfff, len });
            self.stop = true;
        }
        self.tlb.enter(mmu, linear, entry, pick(translation.executable), translation.global);
        self.tlb.note_size(mmu, linear, translation.shift);
        Ok(Place::Ram(host))
    }

    /// The RAM page (counted through all regions) and host address of the code at `linear`.
    pub(crate) fn fetch_place(&mut self, linear: u64) -> R<Place> {
        let mmu = if self.cpl == 3 { Tlb::USER } else { self.mmu };
        self.place(mmu, linear, Want::Execute, 1)
    }

    // ---- alignment and descriptors --------------------------------------------------------------------

    /// #AC where CR0.AM and EFLAGS.AC ask for it at CPL 3.
    pub(crate) fn check_alignment(&mut self, linear: u64, bytes: u64) -> R<()> {
        if self.cpl == 3
            && linear & (bytes - 1) != 0
            && self.cr0 & cr0::AM != 0
            && self.rflags & rflags::AC != 0
            && (!self.long_mode() || self.canonical(linear))
        {
            return self.raise(vector::AC, Some(0));
        }
        Ok(())
    }

    /// Reads of descriptor tables and task states: supervisor accesses whatever the CPL.
    pub(crate) fn load_system<W: Width>(&mut self, linear: u64) -> R<W> {
        self.load_as(Tlb::SUPERVISOR, linear)
    }
    pub(crate) fn store_system<W: Width>(&mut self, linear: u64, value: W) -> R<()> {
        self.store_as(Tlb::SUPERVISOR, linear, value)
    }

    /// The linear address of `offset` in a segment, with the checks of the mode (SDM vol. 3 §5.3, §5.5).
    pub(crate) fn segment_address(&mut self, segment: usize, offset: u64, len: u64, want: Want) -> R<u64> {
        if self.code64() {
            let base = if segment >= seg::FS { self.segs[segment].base } else { 0 };
            let linear = base.wrapping_add(offset);
            if !self.canonical(linear) {
                return if segment == seg::SS { self.raise(vector::SS, Some(0)) } else { self.gp(0) };
            }
            return Ok(linear);
        }
        let s = self.segs[segment];
        let bad = if self.real_like() {
            false
        } else {
            // Code segments are never writable, and readable only with bit 1; data are writable with bit 1.
            s.rights & 0x80 == 0
                || match want {
                    Want::Read => s.rights & 0xa == 0x8,
                    Want::Write => s.rights & 0xa != 0x2,
                    Want::Execute => false,
                }
        };
        let last = offset.wrapping_add(len - 1);
        let inside = if s.rights & 0xc == 0x4 && !self.real_like() {
            // Expand-down: valid offsets lie above the limit.
            let top = if s.big() { 0xffff_ffff } else { 0xffff };
            offset > u64::from(s.limit) && last <= top
        } else {
            last <= u64::from(s.limit)
        };
        if bad || !inside {
            return if segment == seg::SS { self.raise(vector::SS, Some(0)) } else { self.gp(0) };
        }
        Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// Empties the TLBs after a change of the translation.
    pub(crate) fn flush_tlb(&mut self, globals_too: bool) {
        self.tlb.flush(globals_too);
        self.forget_jumps(if globals_too { JumpFlush::All } else { JumpFlush::Local });
    }

    /// INVLPG: forgets one page.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        // A page that is known not to be executable has no entry in the jump cache.
        let jumps = if self.tlb.has_large(linear) || !self.long_mode() {
            JumpFlush::All
        } else if self.tlb.not_executable(linear) {
            JumpFlush::Nothing
        } else {
            JumpFlush::Page(linear)
        };
        self.tlb.flush_page(linear);
        self.forget_jumps(jumps);
    }

    fn forget_jumps(&mut self, what: JumpFlush) {
        if what != JumpFlush::Nothing {
            self.targets.forget(what);
            self.flush_jumps = self.flush_jumps.and(what);
        }
        self.stop = true;
    }

    /// Whether the translation of the code at `linear`, just fetched, is global.
    pub(crate) fn fetch_is_global(&self, linear: u64) -> bool {
        let mmu = if self.cpl == 3 { Tlb::USER } else { self.mmu };
        self.tlb.execute[mmu][slot(linear)] == linear & PAGE_MASK && self.tlb.global[mmu][slot(linear)]
    }
}

fn place_gpa(place: Place) -> u64 {
    match place {
        Place::Device(gpa) => gpa,
        Place::Ram(_) => 0,
    }
}

/// Splits a device access into naturally aligned parts of 1, 2, 4 or 8 bytes.
fn parts(len: usize, gpa: u64) -> impl Iterator<Item = usize> {
    let (mut left, mut at) = (len, gpa);
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let mut part = 8;
        while part > left || (at & (part as u64 - 1) != 0) {
            part /= 2;
        }
        left -= part;
        at += part as u64;
        Some(part)
    })
}

/// Copies between guest RAM and ours: up to 8 bytes in one access if aligned so, as the hardware does.
///
/// # Safety
/// Both ranges are mapped and do not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        match len {
            8 => to.cast::<u64>().write_unaligned(from.cast::<u64>().read_unaligned()),
            4 => to.cast::<u32>().write_unaligned(from.cast::<u32>().read_unaligned()),
            2 => to.cast::<u16>().write_unaligned(from.cast::<u16>().read_unaligned()),
            _ => std::ptr::copy_nonoverlapping(from, to, len),
        }
    }
}
