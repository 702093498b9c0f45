//! What the kernel is told: Linux's zero page (Documentation/arch/x86/zero-page.rst) and PVH's
//! hvm_start_info (Xen's public/arch-x86/hvm/start_info.h).
use super::bzimage::SETUP_HEADER;
use crate::layout::{COMMAND_LINE, E820, PVH_INFO, ZERO_PAGE};
use viv_mem::{Gpa, GuestMemory, MemError};

/// Entries that the zero page has room for.
const E820_MAX: usize = 128;
/// Boot loader type "undefined".
const LOADER_TYPE: u8 = 0xff;

/// Where command line, initrd and ACPI tables are in guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// Bytes of the command line at [`COMMAND_LINE`], without its zero.
    pub(super) cmdline_len: usize,
    /// The initrd: address and bytes.
    pub(super) initrd: Option<(Gpa, u64)>,
    /// The RSDP.
    pub(super) rsdp: Gpa,
}

/// Writes the zero page; `header` is a bzImage's setup header from 0x1f1 on, if there is one.
pub(super) fn zero_page(
    memory: &GuestMemory,
    header: Option<&[u8]>,
    places: &Places,
    map: &[E820],
) -> Result<(), MemError> {
    let mut page = [0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(slot) = page.get_mut(at..at + bytes.len()) {
            slot.copy_from_slice(bytes);
        }
    };
    match header {
        Some(header) => {
            put(SETUP_HEADER, header.get(..header.len().min(0x290 - SETUP_HEADER)).unwrap_or(header))
        }
        None => {
            put(0x1fe, &0xaa55u16.to_le_bytes());
            put(0x202, b"HdrS");
            put(0x206, &0x20fu16.to_le_bytes());
            put(0x211, &[1]);
            put(0x22c, &0x7fff_ffffu32.to_le_bytes());
            put(0x230, &0x100_0000u32.to_le_bytes());
            put(0x236, &1u16.to_le_bytes());
            put(0x238, &2047u32.to_le_bytes());
        }
    }
    put(0x210, &[LOADER_TYPE]);
    put(0x070, &places.rsdp.0.to_le_bytes());
    put(0x228, &(COMMAND_LINE.0 as u32).to_le_bytes());
    if let Some((gpa, len)) = places.initrd {
        put(0x218, &(gpa.0 as u32).to_le_bytes());
        put(0x21c, &(len as u32).to_le_bytes());
        put(0x0c0, &((gpa.0 >> 32) as u32).to_le_bytes());
        put(0x0c4, &((len >> 32) as u32).to_le_bytes());
    }
    let map = map.get(..map.len().min(E820_MAX)).unwrap_or(map);
    put(0x1e8, &[map.len() as u8]);
    for (index, entry) in map.iter().enumerate() {
        let at = 0x2d0 + index * 20;
        put(at, &entry.start.to_le_bytes());
        put(at + 8, &entry.len.to_le_bytes());
        put(at + 16, &entry.kind.to_le_bytes());
    }
    memory.write(ZERO_PAGE, &page)
}

/// Writes hvm_start_info version 1, its module list and its memory map.
pub(super) fn pvh_info(memory: &GuestMemory, places: &Places, map: &[E820]) -> Result<(), MemError> {
    const MAGIC: u32 = 0x336e_c578;
    let module_list = PVH_INFO.0 + 0x40;
    let memory_map = PVH_INFO.0 + 0x80;
    let modules = u32::from(places.initrd.is_some());
    let mut info = Vec::with_capacity(56);
    for word in [MAGIC, 1, 0, modules] {
        info.extend(word.to_le_bytes());
    }
    for word in [if modules > 0 { module_list } else { 0 }, COMMAND_LINE.0, places.rsdp.0, memory_map] {
        info.extend(word.to_le_bytes());
    }
    info.extend((map.len() as u32).to_le_bytes());
    info.extend(0u32.to_le_bytes());
    memory.write(PVH_INFO, &info)?;
    if let Some((gpa, len)) = places.initrd {
        let module: Vec<u8> = [gpa.0, len, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
        memory.write(Gpa(module_list), &module)?;
    }
    let mut entries = Vec::new();
    for entry in map {
        entries.extend(entry.start.to_le_bytes());
        entries.extend(entry.len.to_le_bytes());
        entries.extend(entry.kind.to_le_bytes());
        entries.extend(0u32.to_le_bytes());
    }
    memory.write(Gpa(memory_map), &entries)
}
