//! The RAM of one machine.
#![allow(unsafe_code)]

use crate::mapping::Mapping;
use crate::origin::{Check, Origin};
use crate::{CodeMap, FrozenMemory, Gpa, PAGE_SIZE};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

/// Why guest memory could not be made or reached.
#[derive(Debug, thiserror::Error)]
pub enum MemError {
    /// The range is not (wholly) RAM.
    #[error("guest address {gpa} with {len} bytes is not memory")]
    NotMemory {
        /// First byte.
        gpa: Gpa,
        /// Length in bytes.
        len: u64,
    },
    /// Regions overlap, are empty or are not whole pages.
    #[error("the memory map is malformed at {gpa}")]
    BadLayout {
        /// The offending region.
        gpa: Gpa,
    },
    /// The host would not give the memory.
    #[error("the host gives no {bytes} bytes of memory: {source}")]
    Host {
        /// How much was asked for.
        bytes: u64,
        /// The system's answer.
        source: io::Error,
    },
}

/// One contiguous piece of RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// Where the guest finds it.
    pub gpa: Gpa,
    /// Bytes.
    pub len: u64,
    /// Its first byte, counted through all regions.
    pub offset: u64,
}

/// A piece of host memory that backs guest RAM: for `readv`, `writev` and KVM's memory slots.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    /// First byte in this process.
    pub ptr: *mut u8,
    /// Bytes.
    pub len: usize,
}

// SAFETY: the range is plain memory that stays mapped as long as the GuestMemory that gave it; whoever
// dereferences it must uphold that, which is why doing so is unsafe.
unsafe impl Send for HostRange {}

/// RAM that was saved.
pub struct SavedMemory {
    /// The regions one after the other.
    pub file: File,
    /// What this does not let pass is no memory.
    pub check: Option<Check>,
    /// Ranges that are zeroes, whatever the file has there, offset and bytes: where they are large enough they are not mapped from it.
    pub zeroes: Vec<(u64, u64)>,
    /// The ranges that are not as in the file, offset and bytes: they are read at once.
    pub above: Vec<(u64, u64)>,
    /// Reads them.
    pub read: Box<ReadSaved>,
    /// The ranges that are reached first, as far as that is known ([`GuestMemory::reached`]): for [`GuestMemory::fetch`].
    pub first: Vec<(u64, u64)>,
}

/// Reads what was saved at an offset.
pub type ReadSaved = dyn Fn(u64, &mut [u8]) -> io::Result<()>;

struct Inner {
    regions: Vec<Region>,
    mapping: Mapping,
    /// What must be checked before it is seen.
    origin: Option<Origin>,
    code: CodeMap,
    /// Writes by anybody but a vCPU; shared by all views.
    host_writes: Arc<AtomicU64>,
}

/// The regions of a layout, and their bytes.
fn regions(layout: &[(Gpa, u64)]) -> Result<(Vec<Region>, u64), MemError> {
    let mut regions = Vec::new();
    let (mut total, mut end) = (0u64, 0u64);
    for &(gpa, len) in layout {
        let bad = MemError::BadLayout { gpa };
        if len == 0 || len % PAGE_SIZE != 0 || gpa.0 % PAGE_SIZE != 0 || gpa.0 < end {
            return Err(bad);
        }
        let Some(next) = gpa.0.checked_add(len) else { return Err(bad) };
        let Some(sum) = total.checked_add(len) else { return Err(bad) };
        regions.push(Region { gpa, len, offset: total });
        end = next;
        total = sum;
    }
    if total == 0 {
        return Err(MemError::BadLayout { gpa: Gpa(0) });
    }
    Ok((regions, total))
}

/// The RAM of one machine. Cloning it is cheap and shares the memory.
#[derive(Clone)]
pub struct GuestMemory(Arc<Inner>);

impl GuestMemory {
    /// Makes zeroed RAM. `layout` lists regions as (address, bytes): whole pages, ascending, disjoint.
    /// The host gives pages as the guest touches them, and large ones where it can.
    pub fn new(layout: &[(Gpa, u64)]) -> Result<GuestMemory, MemError> {
        let (regions, mapping) = GuestMemory::over(layout, Mapping::own)?;
        Ok(GuestMemory::with(regions, mapping, None, Arc::default()))
    }

    /// The same, of which there can be views ([`GuestMemory::private_view`]) but no frozen copies.
    pub fn viewable(layout: &[(Gpa, u64)]) -> Result<GuestMemory, MemError> {
        let (regions, mapping) = GuestMemory::over(layout, Mapping::shared)?;
        Ok(GuestMemory::with(regions, mapping, None, Arc::default()))
    }

    /// RAM with the content of a file. Pages are read as they are touched, and are the machine's own once it writes to them; the file
    /// is never written, and must not be by anybody.
    pub fn of_saved(layout: &[(Gpa, u64)], saved: SavedMemory) -> Result<GuestMemory, MemError> {
        let SavedMemory { file, check, zeroes, above, read, first: _ } = saved;
        let mut fresh = Vec::new();
        let map = |len| {
            let mapping = Mapping::of_file(file, len)?;
            for (offset, len) in &zeroes {
                fresh.extend(mapping.refresh(*offset, *len)?);
            }
            above.iter().try_for_each(|(offset, len)| mapping.lay(*offset, *len, &*read))?;
            Ok(mapping)
        };
        let (regions, mapping) = GuestMemory::over(layout, map)?;
        let origin = check.map(|check| Origin::new(check, mapping.len() as u64, &fresh));
        Ok(GuestMemory::with(regions, mapping, origin, Arc::default()))
    }

    fn over(
        layout: &[(Gpa, u64)],
        map: impl FnOnce(usize) -> io::Result<Mapping>,
    ) -> Result<(Vec<Region>, Mapping), MemError> {
        let (regions, total) = regions(layout)?;
        let mapping = usize::try_from(total).map_err(|_| io::ErrorKind::OutOfMemory.into()).and_then(map);
        let mapping = mapping.map_err(|source| MemError::Host { bytes: total, source })?;
        Ok((regions, mapping))
    }

    fn with(
        regions: Vec<Region>,
        mapping: Mapping,
        origin: Option<Origin>,
        host_writes: Arc<AtomicU64>,
    ) -> GuestMemory {
        let code = CodeMap::new(mapping.len() as u64 / PAGE_SIZE);
        GuestMemory(Arc::new(Inner { regions, mapping, origin, code, host_writes }))
    }

    /// Whether a range, counted through all regions, is what it must be.
    pub(crate) fn passes(&self, offset: u64, len: u64) -> bool {
        self.0.origin.as_ref().is_none_or(|origin| origin.passes(offset, len))
    }

    /// Whether all of it is there, which is waited for.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.origin.as_ref().is_none_or(Origin::is_whole)
    }

    /// What of the file of [`GuestMemory::of_saved`] has been reached, and so checked, so far: offsets and bytes, in order.
    pub fn reached(&self) -> Vec<(u64, u64)> {
        self.0.origin.as_ref().map(Origin::reached).unwrap_or_default()
    }

    /// Reads and checks ranges of that file before somebody reaches them. What is wrong there is told to whoever does.
    pub fn fetch(&self, ranges: &[(u64, u64)]) {
        if let Some(origin) = &self.0.origin {
            ranges.iter().for_each(|(offset, len)| origin.fetch(*offset, *len));
        }
    }

    /// What the check of [`GuestMemory::of_saved`] has found wrong so far.
    pub fn damage(&self) -> Option<String> {
        self.0.origin.as_ref().and_then(Origin::found)
    }

    /// Tells `watcher` what the check of [`GuestMemory::of_saved`] finds wrong first, from whatever thread meets it.
    pub fn on_damage(&self, watcher: impl FnOnce(&str) + Send + 'static) {
        if let Some(origin) = &self.0.origin {
            origin.watch(watcher);
        }
    }

    /// The RAM as it is now, for as long as somebody wants to read it; this RAM goes on. Whoever asks sees to it that nobody
    /// writes before the answer. It takes microseconds for each MiB in use, and memory only
    /// for what is written later on.
    pub fn freeze(&self) -> io::Result<FrozenMemory> {
        FrozenMemory::new(self.clone())
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.0.mapping
    }

    /// The same RAM with pages of its own for all that is written through this view, until [`GuestMemory::discard`]. What
    /// others write shows in pages that it has not written to.
    pub fn private_view(&self) -> Result<GuestMemory, MemError> {
        let view = self.0.mapping.private_view();
        let view = view.map_err(|source| MemError::Host { bytes: self.size(), source })?;
        Ok(GuestMemory::with(self.0.regions.clone(), view, None, self.0.host_writes.clone()))
    }

    /// Forgets all that was written through this private view.
    pub fn discard(&self) {
        self.0.mapping.discard();
    }

    /// Grows with each write by anybody but a vCPU.
    pub fn host_writes(&self) -> u64 {
        self.0.host_writes.load(Ordering::SeqCst)
    }

    /// The regions, ascending.
    pub fn regions(&self) -> &[Region] {
        &self.0.regions
    }

    /// Bytes of RAM in all regions.
    pub fn size(&self) -> u64 {
        self.0.mapping.len() as u64
    }

    /// What of this RAM has been decoded as instructions.
    pub fn code(&self) -> &CodeMap {
        &self.0.code
    }

    /// Says that `len` bytes at `gpa` were written through a [`HostRange`]: code cached from them is stale. The
    /// writing methods of this object say so by themselves.
    pub fn written(&self, gpa: Gpa, len: u64) {
        if let Ok(range) = self.host_range(gpa, len) {
            self.wrote(range);
        }
    }

    fn wrote(&self, range: HostRange) {
        self.0.host_writes.fetch_add(1, Ordering::SeqCst);
        let start = range.ptr as usize - self.0.mapping.base() as usize;
        self.0.code.written(start as u64, range.len as u64);
    }

    /// Where a byte of RAM lies: its host address and its number counted through all regions.
    pub fn locate(&self, gpa: Gpa) -> Option<(*mut u8, u64)> {
        let range = self.host_range(gpa, 1).ok()?;
        Some((range.ptr, (range.ptr as usize - self.0.mapping.base() as usize) as u64))
    }

    /// The number of the byte at `host`, counted through all regions. `host` must point into this RAM.
    pub fn ram_offset(&self, host: *const u8) -> u64 {
        (host as usize).wrapping_sub(self.0.mapping.base() as usize) as u64
    }

    /// The host address of byte `offset`, counted through all regions, and of the rest of its page.
    pub fn ram_host(&self, offset: u64) -> Option<*mut u8> {
        // SAFETY: inside the mapping.
        (offset < self.size() && self.passes(offset, 1))
            .then(|| unsafe { self.0.mapping.base().add(offset as usize) })
    }

    /// The host memory behind `len` bytes at `gpa`, which must lie in one region.
    ///
    /// The pointer is valid as long as any clone of this object lives. The guest may write to it at any
    /// time: never make a Rust reference of it.
    pub fn host_range(&self, gpa: Gpa, len: u64) -> Result<HostRange, MemError> {
        let fail = MemError::NotMemory { gpa, len };
        for region in &self.0.regions {
            if let Some(offset) = gpa.0.checked_sub(region.gpa.0)
                && offset < region.len
            {
                if len > region.len - offset {
                    return Err(fail);
                }
                // In range: offset + region.offset + len <= mapping.len(), so the casts cannot truncate.
                let start = (region.offset + offset) as usize;
                if !self.passes(start as u64, len) {
                    return Err(fail);
                }
                // SAFETY: start lies inside the mapping.
                let ptr = unsafe { self.0.mapping.base().add(start) };
                return Ok(HostRange { ptr, len: len as usize });
            }
        }
        Err(fail)
    }

    /// The host address of the page that holds `gpa`, if the page is RAM.
    pub fn host_page(&self, gpa: Gpa) -> Option<*mut u8> {
        self.host_range(Gpa(gpa.0 & !(PAGE_SIZE - 1)), PAGE_SIZE).ok().map(|range| range.ptr)
    }

    /// Copies guest memory out.
    pub fn read(&self, gpa: Gpa, data: &mut [u8]) -> Result<(), MemError> {
        let range = self.host_range(gpa, data.len() as u64)?;
        // SAFETY: the range is mapped and as long as `data`; they cannot overlap, since `data` is an exclusive
        // borrow of Rust memory. A racing guest changes values only.
        unsafe { std::ptr::copy_nonoverlapping(range.ptr, data.as_mut_ptr(), data.len()) };
        Ok(())
    }

    /// Copies into guest memory.
    pub fn write(&self, gpa: Gpa, data: &[u8]) -> Result<(), MemError> {
        let range = self.host_range(gpa, data.len() as u64)?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), range.ptr, data.len()) };
        self.wrote(range);
        Ok(())
    }

    /// Fills guest memory with one byte.
    pub fn fill(&self, gpa: Gpa, len: u64, byte: u8) -> Result<(), MemError> {
        let range = self.host_range(gpa, len)?;
        // SAFETY: the range is mapped.
        unsafe { std::ptr::write_bytes(range.ptr, byte, range.len) };
        self.wrote(range);
        Ok(())
    }

    /// Gives whole pages back to the host: they are zero when they are touched again.
    pub fn give_back(&self, gpa: Gpa, len: u64) -> Result<(), MemError> {
        let range = self.host_range(gpa, len)?;
        if !gpa.0.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return Err(MemError::BadLayout { gpa });
        }
        let given = self.0.mapping.give_back(self.ram_offset(range.ptr), range.len);
        given.map_err(|source| MemError::Host { bytes: len, source })?;
        self.wrote(range);
        Ok(())
    }

    /// Reads a fixed-size array, for little-endian structures.
    pub fn read_array<const N: usize>(&self, gpa: Gpa) -> Result<[u8; N], MemError> {
        let mut data = [0; N];
        self.read(gpa, &mut data)?;
        Ok(data)
    }

    /// Loads an aligned `u16` with acquire order: an index that the guest published.
    pub fn load_u16(&self, gpa: Gpa) -> Result<u16, MemError> {
        Ok(u16::from_le(self.atomic::<AtomicU16>(gpa)?.load(Ordering::Acquire)))
    }

    /// Stores an aligned `u16` with release order: an index published to the guest.
    pub fn store_u16(&self, gpa: Gpa, value: u16) -> Result<(), MemError> {
        self.atomic::<AtomicU16>(gpa)?.store(value.to_le(), Ordering::Release);
        self.0.host_writes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Loads an aligned `u32` with acquire order.
    pub fn load_u32(&self, gpa: Gpa) -> Result<u32, MemError> {
        Ok(u32::from_le(self.atomic::<AtomicU32>(gpa)?.load(Ordering::Acquire)))
    }

    /// Stores an aligned `u32` with release order.
    pub fn store_u32(&self, gpa: Gpa, value: u32) -> Result<(), MemError> {
        self.atomic::<AtomicU32>(gpa)?.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    /// An aligned `u64` as an atomic, for page-table entries and the like.
    pub fn atomic_u64(&self, gpa: Gpa) -> Result<&AtomicU64, MemError> {
        self.atomic(gpa)
    }

    fn atomic<T>(&self, gpa: Gpa) -> Result<&T, MemError> {
        let len = size_of::<T>() as u64;
        let range = self.host_range(gpa, len)?;
        if !gpa.0.is_multiple_of(len) {
            return Err(MemError::NotMemory { gpa, len });
        }
        // SAFETY: T is an atomic integer (the callers above); the address is mapped, aligned (regions start on
        // pages) and lives as long as self. Shared memory is only touched through atomics or raw copies.
        Ok(unsafe { &*range.ptr.cast::<T>() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn two_regions() -> GuestMemory {
        GuestMemory::new(&[(Gpa(0), 0x2000), (Gpa(0x10_0000), 0x3000)]).unwrap()
    }

    #[test]
    fn what_is_written_is_read_in_each_region() {
        let memory = two_regions();
        memory.write(Gpa(0x1ffc), b"tail").unwrap();
        memory.write(Gpa(0x10_0000), b"head").unwrap();
        assert_eq!(&memory.read_array::<4>(Gpa(0x1ffc)).unwrap(), b"tail");
        assert_eq!(&memory.read_array::<4>(Gpa(0x10_0000)).unwrap(), b"head");
        assert_eq!(memory.size(), 0x5000);
    }

    #[test]
    fn a_private_view_shows_what_others_write_until_it_writes_itself() {
        let memory = GuestMemory::viewable(&[(Gpa(0), 0x2000)]).unwrap();
        memory.write(Gpa(0), b"old").unwrap();
        let view = memory.private_view().unwrap();
        let first = |memory: &GuestMemory| memory.read_array::<3>(Gpa(0)).unwrap();
        memory.write(Gpa(0), b"new").unwrap();
        assert_eq!(&first(&view), b"new");
        let before = memory.host_writes();
        view.write(Gpa(0), b"own").unwrap();
        assert_eq!((&first(&view), &first(&memory)), (b"own", b"new"));
        assert!(memory.host_writes() > before);
        view.discard();
        assert_eq!(&first(&view), b"new");
    }

    #[test]
    fn memory_of_a_file_leaves_the_file_alone_and_knows_what_it_wrote() {
        let layout = [(Gpa(0), 0x8000), (Gpa(0x10_0000), 0x8000)];
        let path = std::env::temp_dir().join(format!("viv-memory-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(0x10000).unwrap();
        file.write_all_at(&[7; 0x1000], 0x3000).unwrap();
        // Two ranges are in another file.
        let saved = |file: &File, above| SavedMemory {
            file: file.try_clone().unwrap(),
            check: None,
            zeroes: Vec::new(),
            above,
            read: Box::new(|at, data| {
                data.fill((at >> 12) as u8);
                Ok(())
            }),
            first: Vec::new(),
        };
        let memory =
            GuestMemory::of_saved(&layout, saved(&file, vec![(0x6000, 0x1000), (0x9000, 0x2000)])).unwrap();
        assert_eq!(memory.read_array::<1>(Gpa(0x6fff)).unwrap(), [6]);
        assert_eq!(memory.read_array::<1>(Gpa(0x10_2fff)).unwrap(), [9]);
        assert!(GuestMemory::of_saved(&layout, saved(&file, vec![(0xf000, 0x2000)])).is_err());
        assert_eq!(memory.read_array::<2>(Gpa(0x3ffe)).unwrap(), [7, 7]);
        memory.write(Gpa(0x5000), &[1]).unwrap();
        memory.write(Gpa(0x10_0000), &[2]).unwrap();
        memory.give_back(Gpa(0x3000), 0x1000).unwrap();
        assert_eq!(memory.read_array::<1>(Gpa(0x3000)).unwrap(), [0]);
        let mut frozen = memory.freeze().unwrap();
        let touched = frozen.in_use().unwrap();
        for offset in [0x3000, 0x5000, 0x6000, 0x8000, 0xa000] {
            assert!(touched.iter().any(|(at, len)| (*at..at + len).contains(&offset)), "{touched:x?}");
        }
        let mut byte = [0];
        frozen.read(0x8000, &mut byte).unwrap();
        assert_eq!(byte, [2]);
        let mut whole = vec![0; 0x10000];
        file.read_exact_at(&mut whole, 0).unwrap();
        assert!(whole.iter().enumerate().all(|(at, byte)| (*byte == 7) == (at / 0x1000 == 3)));
        assert!(GuestMemory::of_saved(&layout[..1], saved(&file, Vec::new())).is_err());
    }

    /// Large zeroes are not the file's: neither read nor checked. What does not fill large pages is.
    #[test]
    fn zeroes_are_fresh_memory() {
        let path = std::env::temp_dir().join(format!("viv-zeroes-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        const SIZE: u64 = 16 << 20;
        file.write_all_at(&vec![7; SIZE as usize], 0).unwrap();
        let asked = Arc::<std::sync::Mutex<Vec<u64>>>::default();
        let seen = asked.clone();
        let check = move |at, _| {
            seen.lock().unwrap().push(at);
            Ok(())
        };
        let saved = |zeroes| SavedMemory {
            file: file.try_clone().unwrap(),
            check: Some(Check::Content(Box::new(check.clone()))),
            zeroes,
            // Something in the midst of zeroes is as it was read.
            above: vec![(0x90_0000, 0x1000)],
            read: Box::new(|_, data| {
                data.fill(9);
                Ok(())
            }),
            first: Vec::new(),
        };
        let memory = saved(vec![(0x1f_0000, 0x41_0000), (0x70_0000, 0x1_0000), (0x80_0000, 0x80_0000)]);
        let memory = GuestMemory::of_saved(&[(Gpa(0), SIZE)], memory).unwrap();
        let first = |gpa| memory.read_array::<1>(Gpa(gpa)).unwrap()[0];
        assert_eq!([0x1f_0000, 0x20_0000, 0x5f_ffff, 0x60_0000, 0x70_0000].map(first), [7, 0, 0, 7, 7]);
        assert_eq!([0x90_0000, 0x90_1000, 0xff_ffff].map(first), [9, 0, 0]);
        assert_eq!(*asked.lock().unwrap(), [0x1f_0000, 0x60_0000, 0x70_0000]);
        assert_eq!(memory.reached(), [(0x1f_0000, 0x1_0000), (0x60_0000, 0x1_0000), (0x70_0000, 0x1_0000)]);
        memory.write(Gpa(0x40_0000), &[5]).unwrap();
        let mut frozen = memory.freeze().unwrap();
        let in_use = frozen.in_use().unwrap();
        assert!(in_use.iter().any(|(at, len)| (*at..at + len).contains(&0x40_0000)), "{in_use:x?}");
        let mut bytes = [0; 2];
        frozen.read(0x40_0000, &mut bytes).unwrap();
        assert_eq!(bytes, [5, 0]);
        assert!(GuestMemory::of_saved(&[(Gpa(0), SIZE)], saved(vec![(SIZE - 1, 2)])).is_err());
        assert!(GuestMemory::of_saved(&[(Gpa(0), SIZE)], saved(vec![(u64::MAX, 2)])).is_err());
    }

    #[test]
    fn what_does_not_pass_is_no_memory() {
        let path = std::env::temp_dir().join(format!("viv-checked-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(0x10_0000).unwrap();
        let asked = Arc::<std::sync::Mutex<Vec<u64>>>::default();
        let seen = asked.clone();
        let check = move |at, len| {
            assert_eq!(len, 0x1_0000);
            seen.lock().unwrap().push(at);
            if at == 0x3_0000 { Err("a bit flipped".to_string()) } else { Ok(()) }
        };
        let read = Box::new(|_: u64, _: &mut [u8]| Ok(()));
        let saved = SavedMemory {
            file,
            check: Some(Check::Content(Box::new(check))),
            zeroes: Vec::new(),
            above: Vec::new(),
            read,
            first: Vec::new(),
        };
        let memory = GuestMemory::of_saved(&[(Gpa(0), 0x10_0000)], saved).unwrap();
        for gpa in [0x1_0008, 0x1_fff0, 0x2_0000, 0x4_0000] {
            memory.read_array::<8>(Gpa(gpa)).unwrap();
        }
        assert!(memory.freeze().unwrap().read(0x5_0000, &mut [0; 8]).is_ok());
        let reached = [(0x1_0000, 0x2_0000), (0x4_0000, 0x2_0000)];
        assert_eq!(memory.reached(), reached);
        assert_eq!(
            *asked.lock().unwrap(),
            [0x1_0000, 0x2_0000, 0x4_0000, 0x5_0000],
            "each once, none for nothing"
        );
        // Beside the guest, what it will reach; what is wrong there is told when it does.
        asked.lock().unwrap().clear();
        memory.fetch(&[(0x2_0000, 0x2_8000), (0x6_fff0, 0x20), (0xf_0000, u64::MAX), (u64::MAX, 1)]);
        assert_eq!(*asked.lock().unwrap(), [0x3_0000, 0x6_0000, 0x7_0000, 0xf_0000]);
        assert_eq!(memory.reached(), [reached[0], (0x4_0000, 0x4_0000), (0xf_0000, 0x1_0000)]);
        assert_eq!(memory.damage(), None);
        let told = Arc::<std::sync::Mutex<String>>::default();
        let heard = told.clone();
        memory.on_damage(move |what| *heard.lock().unwrap() = what.to_string());
        assert!(memory.read(Gpa(0x2_fffc), &mut [0; 8]).is_err());
        assert!(memory.write(Gpa(0x3_1000), &[1]).is_err());
        assert_eq!(memory.locate(Gpa(0x3_1000)), None);
        assert!(memory.freeze().unwrap().read(0x3_0000, &mut [0; 8]).is_err());
        assert_eq!(*told.lock().unwrap(), "a bit flipped");
        assert_eq!(memory.damage().as_deref(), Some("a bit flipped"));
    }

    #[test]
    fn no_range_leaves_its_region() {
        let memory = two_regions();
        for (gpa, len) in
            [(0x1fff, 2), (0x2000, 1), (0xf_ffff, 2), (0x10_2fff, 2), (u64::MAX, 1), (0, u64::MAX)]
        {
            assert!(memory.host_range(Gpa(gpa), len).is_err(), "{gpa:#x}+{len:#x}");
        }
    }

    #[test]
    fn unaligned_atomics_are_refused() {
        assert!(two_regions().load_u16(Gpa(1)).is_err());
    }

    #[test]
    fn malformed_layouts_are_refused() {
        for layout in [&[][..], &[(Gpa(0), 0)], &[(Gpa(1), 4096)], &[(Gpa(0), 8192), (Gpa(4096), 4096)]] {
            assert!(GuestMemory::new(layout).is_err(), "{layout:?}");
        }
    }
}
