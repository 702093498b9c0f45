//! The processor's state at a kernel's first instruction, with the tables that it needs in memory.
use crate::layout::{BOOT_GDT, BOOT_TABLES, PVH_INFO, ZERO_PAGE};
use viv_arch::x86::{CpuState, Segment, TableRegister, cr0, cr4, efer, gpr, rflags};
use viv_mem::{GuestMemory, MemError};

/// Selector of the code segment: __BOOT_CS of the Linux boot protocol.
const CODE: u16 = 0x10;
/// Selector of the data segment: __BOOT_DS.
const DATA: u16 = 0x18;
/// Selector of a task state segment, which KVM wants to be there.
const TASK: u16 = 0x20;
/// Page-table entry: present, writable.
const TABLE: u64 = 0x3;
/// Page-directory entry: present, writable, 2 MiB page.
const LARGE: u64 = 0x83;

fn flat(selector: u16, rights: u16) -> Segment {
    Segment { selector, base: 0, limit: 0xffff_ffff, rights }
}

fn common(memory: &GuestMemory, code_descriptor: u64, code_rights: u16) -> Result<CpuState, MemError> {
    let gdt = [0, 0, code_descriptor, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067];
    let bytes: Vec<u8> = gdt.iter().flat_map(|entry: &u64| entry.to_le_bytes()).collect();
    memory.write(BOOT_GDT, &bytes)?;
    let data = flat(DATA, 0xc093);
    Ok(CpuState {
        segments: [data, flat(CODE, code_rights), data, data, data, data],
        tr: Segment { selector: TASK, base: 0, limit: 0x67, rights: 0x8b },
        gdtr: TableRegister { base: BOOT_GDT.0, limit: bytes.len() as u16 - 1 },
        idtr: TableRegister::default(),
        rflags: rflags::FIXED,
        gprs: [0; 16],
        ..CpuState::default()
    })
}

/// Long mode with the first 4 GiB mapped to themselves: the 64-bit Linux boot protocol.
pub(super) fn long_mode(memory: &GuestMemory, entry: u64) -> Result<CpuState, MemError> {
    let page = |index: u64| viv_mem::Gpa(BOOT_TABLES.0 + index * 0x1000);
    memory.fill(BOOT_TABLES, 6 * 0x1000, 0)?;
    memory.write(page(0), &(page(1).0 | TABLE).to_le_bytes())?;
    for directory in 0..4u64 {
        let table = page(2 + directory);
        memory.write(viv_mem::Gpa(page(1).0 + directory * 8), &(table.0 | TABLE).to_le_bytes())?;
        let entries: Vec<u8> =
            (0..512u64).flat_map(|n| ((directory << 30) | (n << 21) | LARGE).to_le_bytes()).collect();
        memory.write(table, &entries)?;
    }
    let mut state = common(memory, 0x00af_9b00_0000_ffff, 0xa09b)?;
    state.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
    state.cr3 = page(0).0;
    state.cr4 = cr4::PAE;
    state.efer = efer::LME | efer::LMA;
    state.rip = entry;
    state.gprs[gpr::RSI] = ZERO_PAGE.0;
    Ok(state)
}

/// The same for multiboot (Multiboot Specification §3.2).
pub(super) fn multiboot(memory: &GuestMemory, entry: u64, info: u64) -> Result<CpuState, MemError> {
    let mut state = pvh(memory, entry)?;
    state.gprs[gpr::RAX] = super::multiboot::LOADED.into();
    state.gprs[gpr::RBX] = info;
    Ok(state)
}

/// Protected mode without paging: PVH (Xen docs/misc/pvh.pandoc).
pub(super) fn pvh(memory: &GuestMemory, entry: u64) -> Result<CpuState, MemError> {
    let mut state = common(memory, 0x00cf_9b00_0000_ffff, 0xc09b)?;
    state.cr0 = cr0::PE | cr0::ET;
    state.rip = entry;
    state.gprs[gpr::RBX] = PVH_INFO.0;
    Ok(state)
}
