//! Translated code that outlives its process: a VM that goes on from a snapshot need not translate again what was translated
//! there.
//!
//! Code does not know where it is, nor at which address it runs, and names what the interpreter executes by number: its bytes
//! are good at the same place behind the same stubs, that is in the same build on the same processor. What of the guest's
//! it was made from stands beside it, page by page. A page is taken when the guest gets there, as soon as it holds
//! those bytes; whoever writes there afterwards makes it stale like all code.
//!
//! ```text
//! records:    version  pieces: u64  bytes of the pieces          (integers of 32 bits, a number before each list)
//!             entries, each:                key: u64  guarded  linked  forward
//!             instructions given, each:     number  offset: u16  bytes: u8  bytes
//!             code, each:                   place  bytes  bytes
//! index:      for each page:  page  where its record begins  bytes of it  CRC-32C of it
//! at the end: pages  end of the code  numbers given  identity: 32 bytes  "vivcode\0"  CRC-32C of this and the index
//! ```

use super::super::cpu::Cpu;
use super::ops::{Given, Ops};
use super::{Entry, Translator, page_of};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};
use viv_mem::{GuestMemory, PAGE_SIZE};

const MAGIC: &[u8; 8] = b"vivcode\0";
/// Bytes of a piece of a page: as [`viv_mem::CodeMap`] has them.
const PIECE: usize = 64;
/// Bytes of a page in the index, and of what stands at the end.
const INDEX: usize = 4 * 4;
const END: usize = 3 * 4 + 32 + MAGIC.len() + 4;
/// Where more code memory is used than this nothing is kept: what goes on from there would soon have to drop all.
const END_MAX: usize = super::CODE_BYTES / 3 * 2;

/// How often a page is compared, each time when its code has changed.
const TRIES_MAX: u8 = 16;

/// What part of what is kept may be missing before it is worth while to write all of it again.
const LITTLE: usize = 16;

/// A file of translated code: what nobody needs of it is not read.
pub struct KeptCode {
    file: File,
    len: usize,
}

impl KeptCode {
    /// Of a file into which [`crate::Vcpu::translated`] was written. Nobody writes to it any more.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(file: File) -> io::Result<KeptCode> {
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        Ok(KeptCode { file, len })
    }

    /// Some of its bytes. `None` if it has none there, or the host does not give them.
    fn bytes(&self, range: Range<usize>) -> Option<Vec<u8>> {
        if range.end > self.len {
            return None;
        }
        let mut bytes = vec![0; range.len()];
        self.file.read_exact_at(&mut bytes, range.start as u64).ok()?;
        Some(bytes)
    }
}

/// How much of a processor's code is in a file, and of which processor's: what is in it need not be written again soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptMark {
    end: usize,
    identity: [u8; 32],
}

impl KeptMark {
    /// Of a file into which [`crate::Vcpu::translated`] was written; none if it is another one.
    pub fn of(file: &File) -> Option<KeptMark> {
        let mut bytes = [0; END];
        let ends = file.metadata().ok()?.len().checked_sub(END as u64)?;
        file.read_exact_at(&mut bytes, ends).ok()?;
        let mut from = Bytes(&bytes);
        let [_, end, _] = [from.u32()?, from.u32()?, from.u32()?];
        let identity = from.array()?;
        (from.array()? == *MAGIC).then_some(KeptMark { end: end as usize, identity })
    }
}

/// What was translated in another process, and the pages of it that the guest has not come to yet.
#[derive(Default)]
pub(super) struct Kept {
    code: Option<Arc<KeptCode>>,
    pages: HashMap<u32, Place>,
}

/// Where the record of a page is, and its checksum; the version that the page had when it was compared last, and how often it was.
#[derive(Clone)]
struct Place {
    record: Range<usize>,
    sum: u32,
    tried: Option<u32>,
    tries: u8,
}

impl Kept {
    /// Whether there was anything.
    #[inline(always)]
    pub(super) fn is_some(&self) -> bool {
        self.code.is_some()
    }

    /// Whether no page is left.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

/// Code that was made of a page.
pub(super) struct Made {
    pub(super) page: u32,
    pub(super) version: u32,
    /// Where it is in the code memory.
    pub(super) code: Range<usize>,
}

/// What a record says.
struct Record<'a> {
    version: u32,
    pieces: u64,
    content: &'a [u8],
    /// With places in the code memory instead of addresses.
    entries: Vec<(u64, [u32; 3])>,
    given: Vec<(u32, Given)>,
    code: Vec<(usize, &'a [u8])>,
}

impl<'a> Record<'a> {
    fn read(bytes: &'a [u8], page: u32) -> Option<Record<'a>> {
        let mut from = Bytes(bytes);
        let (version, pieces) = (from.u32()?, from.u64()?);
        let content = from.take(pieces.count_ones() as usize * PIECE)?;
        let (mut entries, mut given, mut code) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..from.u32()? {
            entries.push((from.u64()?, [from.u32()?, from.u32()?, from.u32()?]));
        }
        for _ in 0..from.u32()? {
            let (number, offset, [len]) = (from.u32()?, from.u16()?, from.array()?);
            given.push((number, Given::of_bytes(page, offset, from.take(len.into())?)?));
        }
        for _ in 0..from.u32()? {
            let (place, len) = (from.u32()? as usize, from.u32()? as usize);
            code.push((place, from.take(len)?));
        }
        Some(Record { version, pieces, content, entries, given, code })
    }
}

/// Reads one thing after another.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }
    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Appends integers.
fn put<const N: usize>(to: &mut Vec<u8>, values: [u32; N]) {
    to.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

/// The bytes of a page's pieces. They may change meanwhile.
fn content(memory: &GuestMemory, page: u32, pieces: u64) -> Option<Vec<u8>> {
    let host = memory.ram_host(u64::from(page) * PAGE_SIZE)?;
    let mut bytes = vec![0; pieces.count_ones() as usize * PIECE];
    let pieces = (0..64usize).filter(|piece| pieces >> piece & 1 != 0);
    for (piece, copy) in pieces.zip(bytes.chunks_exact_mut(PIECE)) {
        // SAFETY: a piece of a page of guest RAM, which stays mapped; a racing guest changes values only.
        unsafe { std::ptr::copy_nonoverlapping(host.add(piece * PIECE), copy.as_mut_ptr(), PIECE) };
    }
    Some(bytes)
}

/// All that belongs to a page.
#[derive(Default)]
struct OfPage<'a> {
    entries: Vec<(u64, Entry)>,
    given: Vec<(u32, &'a Given)>,
    code: Vec<Range<usize>>,
}

impl Translator {
    /// Whether there is little that is not in a file of mine from before.
    pub(crate) fn is_about(&self, known: &KeptMark) -> bool {
        let more = self.memory.used().checked_sub(known.end);
        self.identity() == Some(known.identity) && more.is_some_and(|more| more <= known.end / LITTLE)
    }

    /// All code that is not stale, for [`Translator::take`] in another process. `None` if there is none, or too much of it.
    pub(crate) fn kept(&self, memory: &GuestMemory) -> Option<Vec<u8>> {
        if self.memory.used() > END_MAX {
            return None;
        }
        let mut pages: BTreeMap<u32, (u32, OfPage)> = BTreeMap::new();
        for (key, entry) in &self.entries {
            let page = page_of(*key);
            let (version, of_page) =
                pages.entry(page).or_insert_with(|| (memory.code().version(page), OfPage::default()));
            if entry.version == *version {
                of_page.entries.push((*key, *entry));
            }
        }
        for (number, given) in self.ops.iter() {
            if let Some((_, of_page)) = pages.get_mut(&given.page) {
                of_page.given.push((number, given));
            }
        }
        for made in &self.made {
            if let Some((version, of_page)) = pages.get_mut(&made.page)
                && made.version == *version
            {
                of_page.code.push(made.code.clone());
            }
        }
        let mut bytes = Vec::with_capacity(self.memory.used() + self.memory.used() / 2);
        let mut index = Vec::with_capacity(INDEX * (pages.len() + self.kept.pages.len()));
        for (page, (version, of_page)) in pages {
            let start = bytes.len();
            if self.record(&mut bytes, memory, page, version, &of_page).is_none() {
                bytes.truncate(start);
                continue;
            }
            let record = bytes.get(start..)?;
            put(&mut index, [page, start as u32, record.len() as u32, crc32c::crc32c(record)]);
        }
        // What nobody has come to here may be needed there.
        for (page, Place { record, sum, .. }) in &self.kept.pages {
            put(&mut index, [*page, bytes.len() as u32, record.len() as u32, *sum]);
            bytes.extend(self.kept.code.as_ref()?.bytes(record.clone())?);
        }
        if index.is_empty() {
            return None;
        }
        let pages = (index.len() / INDEX) as u32;
        put(&mut index, [pages, self.memory.used() as u32, self.ops.next()]);
        index.extend(self.identity()?);
        index.extend(MAGIC);
        let sum = crc32c::crc32c(&index);
        put(&mut index, [sum]);
        bytes.extend(index);
        Some(bytes)
    }

    /// Appends what there is to say of a page. `None`: it has changed, and what was appended is nothing.
    fn record(
        &self,
        bytes: &mut Vec<u8>,
        memory: &GuestMemory,
        page: u32,
        version: u32,
        of_page: &OfPage,
    ) -> Option<()> {
        let pieces = memory.code().pieces(page);
        let content = content(memory, page, pieces)?;
        // Another vCPU may write to it.
        if of_page.entries.is_empty() || memory.code().version(page) != version {
            return None;
        }
        put(bytes, [version]);
        bytes.extend(pieces.to_le_bytes());
        bytes.extend(content);
        put(bytes, [of_page.entries.len() as u32]);
        for (key, entry) in &of_page.entries {
            let place = |address: u64| match address {
                0 => 0,
                address => address.wrapping_sub(self.memory.start()) as u32,
            };
            bytes.extend(key.to_le_bytes());
            put(bytes, [place(entry.guarded), place(entry.linked), place(entry.forward)]);
        }
        put(bytes, [of_page.given.len() as u32]);
        for (number, given) in &of_page.given {
            put(bytes, [*number]);
            bytes.extend(given.offset.to_le_bytes());
            bytes.push(given.bytes().len() as u8);
            bytes.extend(given.bytes());
        }
        put(bytes, [of_page.code.len() as u32]);
        for code in &of_page.code {
            put(bytes, [code.start as u32, code.len() as u32]);
            bytes.extend_from_slice(self.memory.bytes(code.clone()));
        }
        Some(())
    }

    /// Takes code that [`Translator::kept`] gave in a process of the same build, whose guest had the same memory. False: it is
    /// another's. The bytes themselves are trusted: they are executed.
    pub(crate) fn take(&mut self, code: &Arc<KeptCode>) -> bool {
        let fresh = self.memory.used() == self.stubs.len;
        let Some((end, next, pages)) = fresh.then(|| self.read_index(code)).flatten() else { return false };
        if !self.memory.reserve(end) {
            return false;
        }
        self.ops = Ops::from(next);
        self.kept = Kept { code: Some(code.clone()), pages };
        true
    }

    fn read_index(&self, code: &KeptCode) -> Option<(usize, u32, HashMap<u32, Place>)> {
        let ends = code.len.checked_sub(END)?;
        let end = code.bytes(ends..code.len)?;
        let mut from = Bytes(&end);
        let [pages, end, next] = [from.u32()?, from.u32()?, from.u32()?];
        let same = from.array()? == self.identity()? && from.array()? == *MAGIC;
        let index = code.bytes(ends.checked_sub((pages as usize).checked_mul(INDEX)?)?..code.len)?;
        let sound = crc32c::crc32c(index.get(..index.len() - 4)?) == from.u32()?;
        if !same || !sound || end as usize > END_MAX {
            return None;
        }
        let (mut from, mut places) = (Bytes(&index), HashMap::with_capacity(pages as usize));
        for _ in 0..pages {
            let [page, start, len, sum] = [from.u32()?, from.u32()?, from.u32()?, from.u32()?];
            let start = start as usize;
            places.insert(
                page,
                Place { record: start..start.checked_add(len as usize)?, sum, tried: None, tries: 0 },
            );
        }
        Some((end as usize, next, places))
    }

    /// The guest got to a page: what was kept for it is known from now on, if the page is as it was.
    pub(super) fn adopt(&mut self, cpu: &mut Cpu, page: u32) {
        let Some(place) = self.kept.pages.get_mut(&page) else { return };
        let now = cpu.shared.memory.code().version(page);
        if place.tried == Some(now) {
            return;
        }
        place.tried = Some(now);
        place.tries += 1;
        let (place, is_last) = (place.clone(), place.tries >= TRIES_MAX);
        let Some(code) = self.kept.code.clone() else { return };
        let bytes = code.bytes(place.record).filter(|bytes| crc32c::crc32c(bytes) == place.sum);
        let record = bytes.as_deref().and_then(|bytes| Record::read(bytes, page));
        let record = record.filter(|record| record.version >= now);
        let Some(record) = record else {
            self.kept.pages.remove(&page);
            return;
        };
        let (version, pieces) = (record.version, record.pieces);
        let memory = cpu.shared.memory.clone();
        if content(&memory, page, pieces).as_deref() != Some(record.content) {
            // A kernel that boots changes its code here and there: it may become that yet.
            if is_last {
                self.kept.pages.remove(&page);
            }
            return;
        }
        self.kept.pages.remove(&page);
        if !memory.code().raise(page, version) {
            return;
        }
        // As when it is decoded: marked first, then read.
        let writers = memory.code().mark_pieces(page, pieces);
        if writers != 0 {
            cpu.forbid_writes(page, writers);
        }
        let is = content(&memory, page, pieces);
        if is.as_deref() != Some(record.content) || memory.code().version(page) != version {
            return;
        }
        for (start, bytes) in record.code {
            if self.memory.fill(start, bytes) {
                self.made.push(Made { page, version, code: start..start + bytes.len() });
            }
        }
        record.given.into_iter().for_each(|(number, given)| self.ops.take(number, given));
        for (key, places) in record.entries {
            let address = |place: u32| if place == 0 { 0 } else { self.memory.start() + u64::from(place) };
            let [guarded, linked, forward] = places.map(address);
            self.entries.insert(key, Entry { guarded, linked, forward, version });
        }
        self.stats.taken += 1;
    }

    /// What must be the same where its code is used: the build, and what the host's processor can.
    fn identity(&self) -> Option<[u8; 32]> {
        static BUILD: OnceLock<Option<[u8; 20]>> = OnceLock::new();
        let build = (*BUILD.get_or_init(build))?;
        let mut identity = build.to_vec();
        // CPUID leaves 1 and 7 (SDM vol. 2, CPUID): features.
        let features = [std::arch::x86_64::__cpuid(1).ecx, std::arch::x86_64::__cpuid_count(7, 0).ebx];
        put(&mut identity, [features[0], features[1], u32::from(self.counting)]);
        identity.try_into().ok()
    }
}

/// The build's identity: the SHA-1 that linkers put into a note of the program (ELF note type `NT_GNU_BUILD_ID`).
fn build() -> Option<[u8; 20]> {
    unsafe extern "C" fn first(
        info: *mut libc::dl_phdr_info,
        _: libc::size_t,
        found: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the C library describes a loaded object, the program itself first; `found` is what `build` gave.
        unsafe {
            let info = &*info;
            let headers = std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into());
            let found = &mut *found.cast::<Option<[u8; 20]>>();
            *found = headers.iter().filter(|header| header.p_type == libc::PT_NOTE).find_map(|header| {
                let start = (info.dlpi_addr + header.p_vaddr) as *const u8;
                note(std::slice::from_raw_parts(start, header.p_memsz as usize))
            });
        }
        1
    }
    let mut found = None;
    // SAFETY: `first` has the right type, and what it writes to outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut found).cast()) };
    found
}

/// The identity among notes (System V gABI, "Note Section").
fn note(notes: &[u8]) -> Option<[u8; 20]> {
    /// `NT_GNU_BUILD_ID` (glibc elf/elf.h).
    const BUILD_ID: u32 = 3;
    let mut from = Bytes(notes);
    loop {
        let (name, text, kind) = (from.u32()? as usize, from.u32()? as usize, from.u32()?);
        let name = from.take(name.checked_next_multiple_of(4)?)?.get(..name)?;
        let text = from.take(text.checked_next_multiple_of(4)?)?.get(..text)?;
        if name == b"GNU\0" && kind == BUILD_ID {
            return text.try_into().ok();
        }
    }
}
