//! ELF64 kernels (System V ABI, chapters 4 and 5; the PVH note from Xen's public/elfnote.h).
use super::BootError;
use super::bytes::{array, range, u16_at, u32_at, u64_at};

const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// The 32-bit physical entry point of PVH.
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

const SHORT_SEGMENT: &str = "an ELF segment is shorter in memory than in the file";

/// A piece of the file with its place in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// The bytes to load.
    pub data: &'a [u8],
    /// Guest-physical address.
    pub paddr: u64,
    /// The address that it is linked to.
    pub vaddr: u64,
    /// Bytes in memory; what the file lacks is zero.
    pub mem_len: u64,
}

/// An ELF kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf<'a> {
    /// Its loadable segments.
    pub segments: Vec<Segment<'a>>,
    /// The ELF entry point as a physical address, if it lies in a segment.
    pub entry: Option<u64>,
    /// The PVH entry point.
    pub pvh_entry: Option<u64>,
    /// It looks like Linux: entry linked into the upper half and meant physically.
    pub is_linux: bool,
}

/// Whether the file claims to be ELF.
pub fn looks_like(data: &[u8]) -> bool {
    data.starts_with(b"\x7fELF")
}

/// Names of processors by e_machine, those that run a Linux.
fn machine_name(machine: u16) -> String {
    let name = match machine {
        2 | 43 => "SPARC",
        4 => "Motorola 68000",
        8 => "MIPS",
        15 => "HP PA-RISC",
        20 => "PowerPC",
        21 => "64-bit PowerPC",
        22 => "IBM Z (s390)",
        40 => "32-bit Arm",
        42 => "SuperH",
        50 => "Itanium",
        183 => "64-bit Arm (aarch64)",
        243 => "RISC-V",
        247 => "BPF",
        258 => "LoongArch",
        other => return format!("ELF machine number {other}"),
    };
    name.to_string()
}

/// Reads headers, segments and notes.
pub fn parse(data: &[u8]) -> Result<Elf<'_>, BootError> {
    let have = data.len() as u64;
    let short = |need: u64| BootError::Truncated { need, have };
    if !looks_like(data) {
        return Err(BootError::NotKernel);
    }
    let [class, order] = array::<2>(data, 4).ok_or(short(64))?;
    let machine = array::<2>(data, 18).ok_or(short(64))?;
    let machine = if order == 2 { u16::from_be_bytes(machine) } else { u16::from_le_bytes(machine) };
    match (class, machine) {
        (2, EM_X86_64) if order == 1 => {}
        (_, EM_386) | (1, EM_X86_64) => return Err(BootError::Only32Bit),
        (2, EM_X86_64) => return Err(BootError::Damaged { what: "its ELF header is big-endian x86" }),
        (1 | 2, other) => return Err(BootError::Foreign { arch: machine_name(other) }),
        _ => return Err(BootError::Damaged { what: "its ELF class is neither 32 nor 64 bits" }),
    }
    let kind = u16_at(data, 16).ok_or(short(64))?;
    if kind != 2 && kind != 3 {
        return Err(BootError::Damaged { what: "it is an ELF object or core file, not an executable" });
    }
    let entry = u64_at(data, 24).ok_or(short(64))?;
    let table = u64_at(data, 32).ok_or(short(64))?;
    let entry_len = u64::from(u16_at(data, 54).ok_or(short(64))?);
    let entries = u64::from(u16_at(data, 56).ok_or(short(64))?);
    if entry_len < 56 {
        return Err(BootError::Damaged { what: "its ELF program headers are too small" });
    }
    let table_len = entry_len * entries;
    let headers = range(data, table, table_len).ok_or(short(table.saturating_add(table_len)))?;
    let mut elf = Elf { segments: Vec::new(), entry: None, pvh_entry: None, is_linux: false };
    for header in headers.chunks_exact(entry_len as usize) {
        let field = |at| u64_at(header, at).ok_or(short(have));
        let (offset, vaddr, paddr) = (field(8)?, field(16)?, field(24)?);
        let (file_len, mem_len) = (field(32)?, field(40)?);
        let kind = u32_at(header, 0).ok_or(short(have))?;
        if kind != PT_LOAD && kind != PT_NOTE {
            continue;
        }
        let bytes = range(data, offset, file_len).ok_or(short(offset.saturating_add(file_len)))?;
        if kind == PT_NOTE {
            elf.pvh_entry = elf.pvh_entry.or(pvh_note(bytes));
        } else if mem_len > 0 {
            if mem_len < file_len || paddr.checked_add(mem_len).is_none() {
                return Err(BootError::Damaged { what: SHORT_SEGMENT });
            }
            elf.segments.push(Segment { data: bytes, paddr, vaddr, mem_len });
        }
    }
    let holds = |start: u64, len: u64| entry.checked_sub(start).filter(|offset| *offset < len);
    elf.entry = elf.segments.iter().find_map(|s| holds(s.paddr, s.mem_len).map(|_| entry)).or_else(|| {
        elf.segments.iter().find_map(|s| holds(s.vaddr, s.mem_len).map(|offset| s.paddr + offset))
    });
    elf.is_linux = elf.entry == Some(entry) && elf.segments.iter().any(|s| s.vaddr >> 47 == 0x1_ffff);
    Ok(elf)
}

/// Segments and physical entry point of an executable of either class.
pub fn parse_any(data: &[u8]) -> Result<(Vec<Segment<'_>>, u64), BootError> {
    if data.get(4) != Some(&1) {
        let elf = parse(data)?;
        return Ok((elf.segments, elf.entry.ok_or(BootError::NoEntry)?));
    }
    let have = data.len() as u64;
    let short = |need: u64| BootError::Truncated { need, have };
    let half = |at| u16_at(data, at).ok_or(short(52));
    let word = |at| u32_at(data, at).map(u64::from).ok_or(short(52));
    match (looks_like(data), data.get(5), half(18)?) {
        (true, Some(1), EM_386 | EM_X86_64) => {}
        (true, _, other) => return Err(BootError::Foreign { arch: machine_name(other) }),
        (false, ..) => return Err(BootError::NotKernel),
    }
    let (entry, table) = (word(24)?, word(28)?);
    let (entry_len, entries) = (u64::from(half(42)?), u64::from(half(44)?));
    if entry_len < 32 {
        return Err(BootError::Damaged { what: "its ELF program headers are too small" });
    }
    let table_len = entry_len * entries;
    let headers = range(data, table, table_len).ok_or(short(table.saturating_add(table_len)))?;
    let mut segments = Vec::new();
    for header in headers.chunks_exact(entry_len as usize) {
        let field = |at| u32_at(header, at).map(u64::from).ok_or(short(have));
        let (offset, vaddr, paddr, file_len, mem_len) =
            (field(4)?, field(8)?, field(12)?, field(16)?, field(20)?);
        if field(0)? != u64::from(PT_LOAD) || mem_len == 0 {
            continue;
        }
        if mem_len < file_len {
            return Err(BootError::Damaged { what: SHORT_SEGMENT });
        }
        let bytes = range(data, offset, file_len).ok_or(short(offset.saturating_add(file_len)))?;
        segments.push(Segment { data: bytes, paddr, vaddr, mem_len });
    }
    let physical = segments.iter().find(|s: &&Segment<'_>| (s.paddr..s.paddr + s.mem_len).contains(&entry));
    let linked = segments.iter().find(|s| (s.vaddr..s.vaddr + s.mem_len).contains(&entry));
    let entry = match (physical, linked) {
        (Some(_), _) => entry,
        (None, Some(segment)) => entry - segment.vaddr + segment.paddr,
        (None, None) => return Err(BootError::NoEntry),
    };
    Ok((segments, entry))
}

/// Walks a note segment: name length, description length, type, then both padded to four bytes.
fn pvh_note(mut notes: &[u8]) -> Option<u64> {
    loop {
        let name_len = u32_at(notes, 0)? as usize;
        let desc_len = u32_at(notes, 4)? as usize;
        let kind = u32_at(notes, 8)?;
        let desc_at = 12usize.checked_add(name_len.checked_next_multiple_of(4)?)?;
        let next = desc_at.checked_add(desc_len.checked_next_multiple_of(4)?)?;
        let name = notes.get(12..12usize.checked_add(name_len)?)?;
        let desc = notes.get(desc_at..desc_at.checked_add(desc_len)?)?;
        if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            return match desc_len {
                4 => u32_at(desc, 0).map(u64::from),
                8 => u64_at(desc, 0),
                _ => None,
            };
        }
        notes = notes.get(next..)?;
    }
}
