//! Multiboot kernels (Multiboot Specification 0.6.96): what GRUB and QEMU load as well, for systems that are not Linux.
//!
//! ```text
//!  header within 8 KiB ── own addresses ──► the file's bytes as one segment
//!       └─ none: the file is ELF, 32 or 64 bits ─► its segments
//!  all start in 32-bit protected mode: EAX a magic number, EBX the information below
//! ```
use super::bytes::u32_at;
use super::elf::{self, Segment};
use super::{BootError, too_large};
use crate::layout::{CONVENTIONAL_END, E820, HIGH_RAM_START, KERNEL_MIN, MIB};
use viv_mem::{Gpa, GuestMemory, PAGE_SIZE};

/// First word of the header (§3.1.1).
const MAGIC: u32 = 0x1bad_b002;
/// The header lies in the first so many bytes (§3.1).
const HEADER_WITHIN: usize = 8192;
/// Header flag: the header has the addresses (§3.1.2).
const HAS_ADDRESSES: u32 = 1 << 16;
/// Flags that a loader must understand: modules on pages, memory information; video modes are only a wish.
const UNDERSTOOD: u32 = 7;
/// EAX at the entry point (§3.2).
pub(super) const LOADED: u32 = 0x2bad_b002;
/// The lowest address for a kernel: below lie the boot state's own tables.
const LOWEST: u64 = 0x1000;
/// Where the information may go, if the kernel is not there.
const INFO_PLACES: [u64; 2] = [0x1_0000, 0x7_0000];
/// Its size is bounded: the memory map, a module and the command line.
const INFO_ROOM: u64 = 0x2_0000;
/// Most bytes of a command line.
pub(super) const CMDLINE_MAX: usize = 0xf000;

/// A kernel with a multiboot header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel<'a> {
    segments: Vec<Segment<'a>>,
    entry: u64,
}

/// The offset of a valid header, if there is one.
fn header(data: &[u8]) -> Option<usize> {
    (0..HEADER_WITHIN.min(data.len())).step_by(4).find(|at| {
        let word = |index: usize| u32_at(data, at + 4 * index);
        match (word(0), word(1), word(2)) {
            (Some(MAGIC), Some(flags), Some(sum)) => {
                MAGIC.wrapping_add(flags).wrapping_add(sum) == 0
                    && (flags & HAS_ADDRESSES == 0 || word(7).is_some())
            }
            _ => false,
        }
    })
}

/// Whether the file has a multiboot header.
pub fn looks_like(data: &[u8]) -> bool {
    header(data).is_some()
}

/// Reads header and segments.
pub fn parse(data: &[u8]) -> Result<Kernel<'_>, BootError> {
    let at = header(data).ok_or(BootError::NotKernel)?;
    let word = |index: usize| u32_at(data, at + 4 * index).map_or(0, u64::from);
    let flags = word(1) as u32;
    if flags & 0xffff & !UNDERSTOOD != 0 {
        return Err(BootError::Damaged { what: "its multiboot header asks for features that do not exist" });
    }
    if flags & HAS_ADDRESSES == 0 {
        let (segments, entry) = elf::parse_any(data)?;
        return Ok(Kernel { segments, entry });
    }
    let (header, load, load_end, bss_end, entry) = (word(3), word(4), word(5), word(6), word(7));
    const WRONG: BootError =
        BootError::Damaged { what: "the addresses in its multiboot header contradict each other" };
    let before = header.checked_sub(load).ok_or(WRONG)?;
    let start = (at as u64).checked_sub(before).ok_or(WRONG)?;
    let rest = data.len() as u64 - start.min(data.len() as u64);
    let len = if load_end == 0 { rest } else { load_end.checked_sub(load).ok_or(WRONG)? };
    let bytes = super::bytes::range(data, start, len)
        .ok_or(BootError::Truncated { need: start.saturating_add(len), have: data.len() as u64 })?;
    let mem_len = if bss_end == 0 { len } else { bss_end.checked_sub(load).ok_or(WRONG)?.max(len) };
    Ok(Kernel { segments: vec![Segment { data: bytes, paddr: load, vaddr: load, mem_len }], entry })
}

/// Where a kernel lies.
pub(super) struct Placed {
    pub(super) entry: u64,
    /// End of its highest segment.
    pub(super) end: u64,
    /// Where the information goes.
    info: Gpa,
}

/// Loads the segments: anywhere in RAM below 4 GiB but the first page and the ROM's area.
pub(super) fn place(memory: &GuestMemory, kernel: &Kernel<'_>) -> Result<Placed, BootError> {
    let ram = super::low_memory(memory);
    let ends = || kernel.segments.iter().map(|s| s.paddr.saturating_add(s.mem_len));
    let end = ends().max().ok_or(BootError::NoEntry)?;
    for (segment, end) in kernel.segments.iter().zip(ends()) {
        let conventional = segment.paddr >= LOWEST && end <= CONVENTIONAL_END;
        if !conventional && !(KERNEL_MIN..HIGH_RAM_START).contains(&segment.paddr) {
            return Err(BootError::BadAddress { gpa: segment.paddr });
        }
    }
    if end > ram {
        return Err(too_large(memory, end));
    }
    super::write_segments(memory, &kernel.segments, end)?;
    let is_free = |start: &u64| {
        kernel.segments.iter().zip(ends()).all(|(s, end)| end <= *start || s.paddr >= start + INFO_ROOM)
    };
    let above = end.max(KERNEL_MIN).next_multiple_of(PAGE_SIZE);
    let info = INFO_PLACES.into_iter().find(is_free).unwrap_or(above);
    let end = if info == above { above + INFO_ROOM } else { end };
    Ok(Placed { entry: kernel.entry, end, info: Gpa(info) })
}

/// Writes the multiboot information (§3.3) and returns where it is.
pub(super) fn write_info(
    memory: &GuestMemory,
    placed: &Placed,
    map: &[E820],
    name: &str,
    cmdline: &str,
    initrd: Option<(Gpa, u64)>,
) -> Result<u64, viv_mem::MemError> {
    // Memory, boot device, command line, modules, memory map, loader's name.
    const GIVEN: u32 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
    const LOADER: &[u8] = b"Vivarium\0";
    const INFO_LEN: u32 = 120;
    let base = placed.info.0 as u32;
    let mut tail = Vec::new();
    let mut put = |bytes: &[u8]| {
        let at = base + INFO_LEN + tail.len() as u32;
        tail.extend_from_slice(bytes);
        tail.resize(tail.len().next_multiple_of(4), 0);
        at
    };
    // As GRUB and QEMU do: the kernel's name is the first word.
    let line = put(format!("{name} {cmdline}\0").as_bytes());
    let loader = put(LOADER);
    let string = put(b"initrd\0");
    let module: Vec<u8> = initrd.map_or(Vec::new(), |(gpa, len)| {
        [gpa.0 as u32, (gpa.0 + len) as u32, string, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
    });
    let modules = put(&module);
    let mut entries = Vec::new();
    for entry in map {
        entries.extend(20u32.to_le_bytes());
        entries.extend(entry.start.to_le_bytes());
        entries.extend(entry.len.to_le_bytes());
        entries.extend(entry.kind.to_le_bytes());
    }
    let memory_map = put(&entries);
    let upper = (super::low_memory(memory).saturating_sub(MIB) / 1024) as u32;
    let mut info = [0u32; INFO_LEN as usize / 4];
    let fields = [
        (0, GIVEN),
        (1, (CONVENTIONAL_END / 1024) as u32),
        (2, upper),
        // The first hard disk, no partition.
        (3, 0x80ff_ffff),
        (4, line),
        (5, u32::from(initrd.is_some())),
        (6, modules),
        (11, entries.len() as u32),
        (12, memory_map),
        (16, loader),
    ];
    for (index, value) in fields {
        if let Some(word) = info.get_mut(index) {
            *word = value;
        }
    }
    let mut bytes: Vec<u8> = info.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.append(&mut tail);
    debug_assert!(bytes.len() as u64 <= INFO_ROOM);
    memory.write(placed.info, &bytes)?;
    Ok(placed.info.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_header(flags: u32, words: &[u32]) -> Vec<u8> {
        let mut data = vec![0u8; 64];
        let all = [MAGIC, flags, 0u32.wrapping_sub(MAGIC).wrapping_sub(flags)];
        for (index, word) in all.iter().chain(words).enumerate() {
            data[16 + 4 * index..20 + 4 * index].copy_from_slice(&word.to_le_bytes());
        }
        data
    }

    #[test]
    fn a_flat_file_is_loaded_by_the_addresses_of_its_header() {
        let data = with_header(HAS_ADDRESSES, &[0x20_0010, 0x20_0000, 0x20_0030, 0x20_1000, 0x20_0020]);
        let kernel = parse(&data).unwrap();
        assert_eq!(kernel.entry, 0x20_0020);
        let segment = kernel.segments[0];
        assert_eq!((segment.paddr, segment.data.len(), segment.mem_len), (0x20_0000, 0x30, 0x1000));
        assert_eq!(segment.data, &data[..0x30]);
    }

    #[test]
    fn headers_that_are_none_or_contradict_themselves_are_refused() {
        assert!(!looks_like(&[0; 64]));
        let mut sum = with_header(0, &[]);
        sum[24] ^= 1;
        assert!(!looks_like(&sum));
        let wrong = |words: &[u32]| parse(&with_header(HAS_ADDRESSES, words)).unwrap_err();
        assert!(matches!(wrong(&[0x20_0000, 0x20_0010, 0, 0, 0]), BootError::Damaged { .. }));
        assert!(matches!(wrong(&[0x20_0010, 0x20_0000, 0x20_1000, 0, 0]), BootError::Truncated { .. }));
        assert!(matches!(parse(&with_header(1 << 5, &[])).unwrap_err(), BootError::Damaged { .. }));
    }
}
