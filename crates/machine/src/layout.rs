//! Where things are in the guest's physical address space, and what its firmware map (E820) says.
//!
//! ```text
//! 0         0x500 .. boot structures .. 0x9fc00 | EBDA, VGA, ROM | 0xe0000 ACPI | 1 MiB  RAM …  3 GiB
//! 3 GiB     PCI window 0xc000_0000 .. 0xdfff_ffff (its upper part, 0xd000_0000 and up: virtio-mmio)
//! 3.5 GiB   ECAM 0xe000_0000 .. 0xefff_ffff, IOAPIC 0xfec0_0000, local APIC 0xfee0_0000
//! 4 GiB     the rest of RAM, then the 64-bit PCI window
//! ```
use viv_mem::Gpa;

/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// End of the RAM below 4 GiB, if the machine has that much.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// RAM above the devices starts here.
pub const HIGH_RAM_START: u64 = 1 << 32;
/// 32-bit PCI memory window.
pub const PCI_WINDOW: std::ops::Range<u64> = 0xc000_0000..0xd000_0000;
/// First virtio-mmio device; each has [`VIRTIO_MMIO_SIZE`] bytes.
pub const VIRTIO_MMIO: u64 = 0xd000_0000;
/// Bytes of a virtio-mmio window.
pub const VIRTIO_MMIO_SIZE: u64 = 0x1000;
/// PCI Express configuration space, 1 MiB for each of 256 buses.
pub const ECAM: u64 = 0xe000_0000;
/// Bytes of [`ECAM`].
pub const ECAM_SIZE: u64 = 256 * MIB;
/// I/O APIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC registers, and the window of MSI addresses (SDM vol. 3 §11.11.1).
pub const LAPIC: u64 = 0xfee0_0000;
/// Bytes of the MSI window.
pub const MSI_WINDOW_SIZE: u64 = MIB;
/// Three pages that KVM on Intel needs for real mode, and the page-table page beside them.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// Identity map page of KVM on Intel.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// GDT of the boot state.
pub const BOOT_GDT: Gpa = Gpa(0x500);
/// Linux's zero page.
pub const ZERO_PAGE: Gpa = Gpa(0x7000);
/// PVH's hvm_start_info with its lists.
pub const PVH_INFO: Gpa = Gpa(0x8000);
/// Identity page tables of the boot state: PML4, PDPT and four page directories.
pub const BOOT_TABLES: Gpa = Gpa(0x9000);
/// The kernel's command line.
pub const COMMAND_LINE: Gpa = Gpa(0x2_0000);
/// Room for the command line with its final zero byte.
pub const COMMAND_LINE_ROOM: u64 = 0x1_0000;
/// End of conventional memory.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// ACPI tables; the RSDP comes first, so that a search of the ROM area finds it (ACPI 6.5 §5.2.5.1).
pub const ACPI_TABLES: Gpa = Gpa(0xe_0000);
/// Room for the ACPI tables, and the page behind them.
pub const ACPI_ROOM: u64 = 0x2_0000;
/// The generation of the machine: 16 random bytes that are others each time it goes on from a saved state (Virtual Machine
/// Generation ID, Microsoft, 2012). In a page of its own at the end of the tables' room.
pub const GENERATION: Gpa = Gpa(0xf_f000);
/// Where RAM for kernels starts.
pub const KERNEL_MIN: u64 = MIB;

/// The RAM of a machine with `mib` MiB as (address, bytes).
pub fn ram(mib: u64) -> Vec<(Gpa, u64)> {
    let bytes = mib.saturating_mul(MIB);
    let low = bytes.min(LOW_RAM_END);
    let mut regions = vec![(Gpa(0), low)];
    if bytes > low {
        regions.push((Gpa(HIGH_RAM_START), bytes - low));
    }
    regions
}

/// Where a machine that starts with `mib` MiB may get more, up to `most` MiB: above all other RAM.
pub fn hot_memory(mib: u64, most: Option<u64>) -> Option<(Gpa, u64)> {
    /// Linux adds memory in pieces of 128 MiB, or of 2 GiB in large machines.
    const ALIGN: u64 = 2 << 30;
    let more = most?.saturating_sub(mib).saturating_mul(MIB);
    let end = ram(mib).last().map_or(0, |(gpa, len)| gpa.0 + len).max(HIGH_RAM_START);
    (more != 0).then_some((Gpa(end.next_multiple_of(ALIGN)), more))
}

/// The 64-bit PCI window of a machine whose RAM ends at `ram_end`: 64 GiB at the next multiple of 64 GiB.
pub fn pci_window64(ram_end: u64) -> std::ops::Range<u64> {
    const SIZE: u64 = 64 << 30;
    let start = ram_end.max(HIGH_RAM_START).div_ceil(SIZE).saturating_mul(SIZE);
    start..start.saturating_add(SIZE)
}

/// An entry of the firmware's memory map (ACPI 6.5 §15, table 15.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820 {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What it is.
    pub kind: u32,
}

/// [`E820::kind`]: RAM.
pub const E820_RAM: u32 = 1;
/// [`E820::kind`]: not for the system to use.
pub const E820_RESERVED: u32 = 2;

/// The firmware's memory map for `mib` MiB of RAM.
pub fn e820(mib: u64) -> Vec<E820> {
    let mut map = vec![
        E820 { start: 0, len: CONVENTIONAL_END, kind: E820_RAM },
        E820 { start: CONVENTIONAL_END, len: 0xa_0000 - CONVENTIONAL_END, kind: E820_RESERVED },
        E820 { start: ACPI_TABLES.0, len: ACPI_ROOM, kind: E820_RESERVED },
    ];
    for (gpa, len) in ram(mib) {
        let start = gpa.0.max(MIB);
        map.push(E820 { start, len: (gpa.0 + len).saturating_sub(start), kind: E820_RAM });
    }
    map.push(E820 { start: ECAM, len: ECAM_SIZE, kind: E820_RESERVED });
    map.push(E820 { start: KVM_IDENTITY_MAP, len: 0x4000, kind: E820_RESERVED });
    map.sort_by_key(|entry| entry.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_is_disjoint_and_has_all_ram() {
        for mib in [16, 512, 3071, 3072, 3073, 4096, 65536] {
            let map = e820(mib);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].len <= pair[1].start, "{mib}: {pair:x?}");
            }
            let usable: u64 = map.iter().filter(|entry| entry.kind == E820_RAM).map(|entry| entry.len).sum();
            assert_eq!(usable, mib * MIB - (MIB - CONVENTIONAL_END), "{mib}");
        }
    }
}
