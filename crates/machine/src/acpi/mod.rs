//! The ACPI tables, which tell the guest what is on the board (ACPI 6.5).
//!
//! Everything here is a function of an [`AcpiSpec`]; the bytes go to [`ACPI_TABLES`](crate::layout::ACPI_TABLES).

mod aml;

use crate::layout::{ACPI_TABLES, ECAM, ECAM_SIZE, GENERATION, IOAPIC, LAPIC};
use aml::Space;
use std::ops::Range;
use viv_devices::chips::{pm, pvpanic, slots};
use viv_mem::Gpa;

/// A virtio-mmio device as the DSDT names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// Its window.
    pub gpa: Gpa,
    /// Bytes of the window.
    pub len: u32,
    /// Its interrupt line.
    pub gsi: u32,
}

/// What the tables describe.
#[derive(Clone, Debug)]
pub struct AcpiSpec {
    /// Number of vCPUs; their APIC IDs count from 0.
    pub cpus: u32,
    /// First port of the ACPI fixed hardware.
    pub pm_base: u16,
    /// Its interrupt.
    pub sci: u8,
    /// 32-bit PCI memory window.
    pub pci_window: Range<u64>,
    /// 64-bit PCI memory window.
    pub pci_window64: Range<u64>,
    /// Virtio devices without PCI.
    pub virtio_mmio: Vec<MmioDevice>,
    /// First port of the registers of PCI's slots.
    pub slots_base: u16,
    /// Slots that may get a device, or lose theirs, while the machine runs.
    pub hot_plug: Range<u8>,
}

/// The general-purpose event of hot plug.
pub const HOT_PLUG_GPE: u8 = 1;
/// The general-purpose event of another generation of the machine.
pub const GENERATION_GPE: u8 = 2;

/// Global system interrupts of PCI's INTx lines: [`intx_gsi`] spreads them.
const INTX_FIRST: u32 = 16;
const INTX_COUNT: u32 = 8;

/// The interrupt line of a PCI device's pin (0 is INTA).
pub fn intx_gsi(device: u8, pin: u8) -> u32 {
    INTX_FIRST + (u32::from(device) + u32::from(pin)) % INTX_COUNT
}

/// A table with header (§5.2.6) around `body`, checksum included.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(36 + body.len());
    bytes.extend(signature);
    bytes.extend(((36 + body.len()) as u32).to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(b"VIVIUM");
    bytes.extend(b"VIVARIUM");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(b"VIV ");
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(body);
    set_checksum(&mut bytes, 9);
    bytes
}

fn set_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(slot) = bytes.get_mut(at) {
        *slot = slot.wrapping_sub(sum);
    }
}

/// All tables as one block for [`ACPI_TABLES`]; the RSDP is at its start.
pub fn tables(spec: &AcpiSpec) -> Vec<u8> {
    let mut block = vec![0u8; 64];
    let mut place = |bytes: &[u8]| {
        // FACS wants 64 bytes of alignment (§5.2.10); the others do not mind.
        block.resize(block.len().next_multiple_of(64), 0);
        let gpa = ACPI_TABLES.0 + block.len() as u64;
        block.extend(bytes);
        gpa
    };
    let facs_gpa = place(&facs());
    let dsdt_gpa = place(&table(b"DSDT", 2, &dsdt(spec)));
    let listed = [
        place(&table(b"FACP", 6, &fadt(spec, facs_gpa, dsdt_gpa))),
        place(&table(b"APIC", 5, &madt(spec))),
        place(&table(b"MCFG", 1, &mcfg())),
    ];
    let entries: Vec<u8> = listed.iter().flat_map(|gpa| gpa.to_le_bytes()).collect();
    let xsdt_gpa = place(&table(b"XSDT", 1, &entries));
    let rsdp = rsdp(xsdt_gpa);
    if let Some(slot) = block.get_mut(..rsdp.len()) {
        slot.copy_from_slice(&rsdp);
    }
    block
}

/// Root system description pointer, revision 2 (§5.2.5.3).
fn rsdp(xsdt: u64) -> Vec<u8> {
    let mut bytes = b"RSD PTR \0VIVIUM\x02".to_vec();
    bytes.extend([0; 4]);
    bytes.extend(36u32.to_le_bytes());
    bytes.extend(xsdt.to_le_bytes());
    bytes.extend([0; 4]);
    let sum = bytes.iter().take(20).fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(slot) = bytes.get_mut(8) {
        *slot = 0u8.wrapping_sub(sum);
    }
    set_checksum(&mut bytes, 32);
    bytes
}

/// Firmware ACPI control structure (§5.2.10).
fn facs() -> Vec<u8> {
    let mut bytes = b"FACS".to_vec();
    bytes.extend(64u32.to_le_bytes());
    bytes.resize(64, 0);
    bytes[32] = 2;
    bytes
}

/// Generic address structure (§5.2.3.2) of a port.
fn port_address(port: u16, bits: u8) -> Vec<u8> {
    const SYSTEM_IO: u8 = 1;
    let access = match bits {
        8 => 1,
        16 => 2,
        _ => 3,
    };
    [vec![SYSTEM_IO, bits, 0, access], u64::from(port).to_le_bytes().to_vec()].concat()
}

/// Fixed ACPI description table (§5.2.9), without its header.
fn fadt(spec: &AcpiSpec, facs: u64, dsdt: u64) -> Vec<u8> {
    /// WBINVD works, C1 works everywhere, no fixed sleep button, no fixed RTC wake, 32-bit timer, reset register.
    const FLAGS: u32 = 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10;
    /// Legacy devices, no VGA, and no i8042 worth a probe: ours only resets, and Linux would wait 2.7 seconds for a
    /// keyboard to answer.
    const BOOT_ARCH: u16 = 1 | 1 << 2;
    let port = |offset: u16| spec.pm_base + offset;
    let mut bytes = vec![0u8; 276 - 36];
    // Offsets as in the table of §5.2.9, which counts the header.
    let mut put = |at: usize, data: &[u8]| {
        if let Some(slot) = bytes.get_mut(at - 36..at - 36 + data.len()) {
            slot.copy_from_slice(data);
        }
    };
    put(36, &(facs as u32).to_le_bytes());
    put(40, &(dsdt as u32).to_le_bytes());
    put(46, &u16::from(spec.sci).to_le_bytes());
    put(56, &u32::from(port(pm::PM1A_EVENT_OFFSET)).to_le_bytes());
    put(64, &u32::from(port(pm::PM1A_CONTROL_OFFSET)).to_le_bytes());
    put(76, &u32::from(port(pm::TIMER_OFFSET)).to_le_bytes());
    put(80, &u32::from(port(pm::GPE0_OFFSET)).to_le_bytes());
    // Lengths of the four blocks, in the order PM1_EVT, PM1_CNT, PM2_CNT, PM_TMR, GPE0.
    put(88, &[4, 2, 0, 4, 4]);
    // C2 and C3 do not exist.
    put(96, &101u16.to_le_bytes());
    put(98, &1001u16.to_le_bytes());
    // Where the RTC keeps the century.
    put(108, &[0x32]);
    put(109, &BOOT_ARCH.to_le_bytes());
    put(112, &FLAGS.to_le_bytes());
    put(116, &port_address(port(pm::RESET_OFFSET), 8));
    put(128, &[pm::RESET_VALUE]);
    put(131, &[5]);
    put(140, &dsdt.to_le_bytes());
    put(148, &port_address(port(pm::PM1A_EVENT_OFFSET), 32));
    put(172, &port_address(port(pm::PM1A_CONTROL_OFFSET), 16));
    put(208, &port_address(port(pm::TIMER_OFFSET), 32));
    put(220, &port_address(port(pm::GPE0_OFFSET), 32));
    put(268, b"VIVARIUM");
    bytes
}

/// Multiple APIC description table (§5.2.12), without its header.
fn madt(spec: &AcpiSpec) -> Vec<u8> {
    /// Level-triggered, active high (§5.2.12.5).
    const LEVEL_HIGH: u16 = 0x000d;
    let mut bytes = (LAPIC as u32).to_le_bytes().to_vec();
    // PCAT_COMPAT: there are 8259s too.
    bytes.extend(1u32.to_le_bytes());
    for cpu in 0..spec.cpus {
        bytes.extend([0, 8, cpu as u8, cpu as u8]);
        bytes.extend(1u32.to_le_bytes());
    }
    bytes.extend([1, 12, 0, 0]);
    bytes.extend((IOAPIC as u32).to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    let mut source_override = |irq: u8, gsi: u32, flags: u16| {
        bytes.extend([2, 10, 0, irq]);
        bytes.extend(gsi.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    };
    // The PIT comes to pin 2, as on every PC.
    source_override(0, 2, 0);
    source_override(spec.sci, u32::from(spec.sci), LEVEL_HIGH);
    // NMI at LINT1 of every processor.
    bytes.extend([4, 6, 0xff, 0, 0, 1]);
    bytes
}

/// The last bus: all our functions are on the first. Linux looks for further roots on each bus that it is told of, by 32 reads of I/O
/// ports (`pcibios_fixup_peer_bridges`): 8,192 of them for 256 buses.
const LAST_BUS: u8 = 0;

/// PCI Express memory-mapped configuration (PCI Firmware 3.3 §4.1.2), without its header.
fn mcfg() -> Vec<u8> {
    let mut bytes = vec![0; 8];
    bytes.extend(ECAM.to_le_bytes());
    bytes.extend([0, 0, 0, LAST_BUS]);
    bytes.extend([0; 4]);
    bytes
}

/// The DSDT's definition block.
fn dsdt(spec: &AcpiSpec) -> Vec<u8> {
    let mut devices = vec![pci_root(spec)];
    devices.push(aml::device(
        "MBRD",
        vec![
            aml::name("_HID", aml::eisa_id("PNP0C02")),
            aml::name("_UID", aml::integer(0)),
            aml::name(
                "_CRS",
                aml::resources(vec![
                    aml::memory32(ECAM as u32, ECAM_SIZE as u32),
                    aml::io(spec.pm_base, pm::WINDOW_LEN as u8),
                    aml::io(spec.slots_base, slots::WINDOW_LEN as u8),
                    aml::io(0x4d0, 2),
                ]),
            ),
        ],
    ));
    devices.push(port_device("COM1", "PNP0501", 0x3f8, 8, Some(4)));
    devices.push(port_device("RTC_", "PNP0B00", 0x70, 2, Some(8)));
    devices.push(aml::device(
        "PEVT",
        vec![
            aml::name("_HID", aml::string("QEMU0001")),
            aml::name("_CRS", aml::resources(vec![aml::io(pvpanic::PORT, 1)])),
        ],
    ));
    for (index, device) in spec.virtio_mmio.iter().enumerate() {
        devices.push(aml::device(
            &format!("VR{index:02}"),
            vec![
                aml::name("_HID", aml::string("LNRO0005")),
                aml::name("_UID", aml::integer(index as u64)),
                aml::name(
                    "_CRS",
                    aml::resources(vec![
                        aml::memory32(device.gpa.0 as u32, device.len),
                        aml::level_interrupt(device.gsi),
                    ]),
                ),
            ],
        ));
    }
    devices.push(generation());
    let s5 = aml::integer(u64::from(pm::SLEEP_TYPE_S5));
    let zero = aml::integer(0);
    let sleep = aml::name("_S5_", aml::package(vec![s5.clone(), s5, zero.clone(), zero]));
    let slots_changed = aml::method("_E01", 0, vec![aml::path(&["_SB_", "PCI0", "PCNT"])]);
    let generation_changed = aml::method("_E02", 0, vec![aml::notify(aml::path(&["_SB_", "VGEN"]), 0x80)]);
    [aml::scope("_SB_", devices), aml::scope("_GPE", vec![slots_changed, generation_changed]), sleep].concat()
}

/// Where [`GENERATION`] lies, under the name by which guests look for it (Virtual Machine Generation ID §2).
fn generation() -> Vec<u8> {
    let address = vec![aml::integer(GENERATION.0), aml::integer(0)];
    aml::device(
        "VGEN",
        vec![
            aml::name("_HID", aml::string("VIVM0001")),
            aml::name("_CID", aml::string("VM_Gen_Counter")),
            aml::name("_DDN", aml::string("VM_Gen_Counter")),
            aml::name("ADDR", aml::package(address)),
        ],
    )
}

fn port_device(name: &str, id: &str, port: u16, len: u8, irq: Option<u8>) -> Vec<u8> {
    let mut resources = vec![aml::io(port, len)];
    resources.extend(irq.map(aml::irq));
    aml::device(
        name,
        vec![
            aml::name("_HID", aml::eisa_id(id)),
            aml::name("_UID", aml::integer(0)),
            aml::name("_CRS", aml::resources(resources)),
        ],
    )
}

fn pci_root(spec: &AcpiSpec) -> Vec<u8> {
    let mut routes = Vec::new();
    for device in 0..32u8 {
        for pin in 0..4u8 {
            routes.push(aml::package(vec![
                aml::integer(u64::from(device) << 16 | 0xffff),
                aml::integer(u64::from(pin)),
                aml::integer(0),
                aml::integer(u64::from(intx_gsi(device, pin))),
            ]));
        }
    }
    aml::device(
        "PCI0",
        vec![
            aml::name("_HID", aml::eisa_id("PNP0A08")),
            aml::name("_CID", aml::eisa_id("PNP0A03")),
            aml::name("_UID", aml::integer(0)),
            aml::name("_SEG", aml::integer(0)),
            aml::name("_BBN", aml::integer(0)),
            aml::name(
                "_CRS",
                aml::resources(vec![
                    aml::window(Space::Bus, 0..u64::from(LAST_BUS) + 1),
                    aml::io(0xcf8, 8),
                    aml::window(Space::Io, 0..0xcf8),
                    aml::window(Space::Io, 0xd00..0x1_0000),
                    aml::window(Space::Memory, spec.pci_window.clone()),
                    aml::window(Space::Prefetchable, spec.pci_window64.clone()),
                ]),
            ),
            aml::name("_PRT", aml::package(routes)),
            hot_plug(spec),
        ],
    )
}

/// Slots that may change: each a device that can be ejected, and the method that tells the guest what came and what shall
/// go (§5.6.6: 1 is a device check, 3 an eject request).
fn hot_plug(spec: &AcpiSpec) -> Vec<u8> {
    let mut all = vec![aml::port_fields("SLTS", spec.slots_base, &["CAME", "GO", "EJCT"])];
    let mut tell = vec![
        aml::store(aml::segment("CAME").to_vec(), aml::local(0)),
        aml::store(aml::segment("GO").to_vec(), aml::local(1)),
    ];
    for slot in spec.hot_plug.clone() {
        let (name, bit) = (format!("S{slot:03}"), aml::integer(1 << slot));
        all.push(aml::device(
            &name,
            vec![
                aml::name("_ADR", aml::integer(u64::from(slot) << 16)),
                aml::name("_SUN", aml::integer(slot.into())),
                aml::method("_EJ0", 1, vec![aml::store(bit.clone(), aml::segment("EJCT").to_vec())]),
            ],
        ));
        tell.push(aml::if_and(aml::local(0), bit.clone(), aml::notify(aml::segment(&name).to_vec(), 1)));
        tell.push(aml::if_and(aml::local(1), bit, aml::notify(aml::segment(&name).to_vec(), 3)));
    }
    all.push(aml::method("PCNT", 0, tell));
    all.concat()
}

#[cfg(test)]
mod tests;
