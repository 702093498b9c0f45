//! PCI: configuration space as the documents lay it out.
//!
//! Sources: PCI Local Bus Specification 3.0 ("PCI"), PCI Express Base Specification 4.0 ("PCIe"),
//! PCI Firmware Specification 3.2 ("FW").

/// CONFIG_ADDRESS: selects bus, device, function and register (PCI §3.2.2.3.2). 4 bytes.
pub const CONFIG_ADDRESS_PORT: u16 = 0xcf8;
/// CONFIG_DATA: the selected register (PCI §3.2.2.3.2). 4 bytes, also accessed by byte and word.
pub const CONFIG_DATA_PORT: u16 = 0xcfc;
/// CONFIG_ADDRESS bit 31: accesses to CONFIG_DATA are configuration accesses (PCI §3.2.2.3.2).
pub const CONFIG_ADDRESS_ENABLE: u32 = 1 << 31;

/// Bytes of configuration space of a function by CONFIG_ADDRESS (PCI §6.1).
pub const CONFIG_SPACE_LEN: usize = 256;
/// Bytes of configuration space of a function in the ECAM window (PCIe §7.2.2).
pub const ECAM_FUNCTION_LEN: u64 = 4096;
/// Bytes of the ECAM window for one bus: 32 devices of 8 functions (PCIe §7.2.2).
pub const ECAM_BUS_LEN: u64 = 1 << 20;
/// Devices on a bus (PCI §3.2.2.3.2).
pub const DEVICES_PER_BUS: u8 = 32;

/// Vendor ID, 2 bytes (PCI §6.2.1).
pub const VENDOR_ID: u16 = 0x00;
/// Device ID, 2 bytes (PCI §6.2.1).
pub const DEVICE_ID: u16 = 0x02;
/// Command register, 2 bytes (PCI §6.2.2).
pub const COMMAND: u16 = 0x04;
/// Status register, 2 bytes (PCI §6.2.3).
pub const STATUS: u16 = 0x06;
/// Revision ID, 1 byte (PCI §6.2.1).
pub const REVISION_ID: u16 = 0x08;
/// Class code, 3 bytes: interface, sub-class, base class (PCI §6.2.1).
pub const CLASS_CODE: u16 = 0x09;
/// Cache line size, 1 byte (PCI §6.2.4).
pub const CACHE_LINE_SIZE: u16 = 0x0c;
/// Latency timer, 1 byte (PCI §6.2.4).
pub const LATENCY_TIMER: u16 = 0x0d;
/// Header type, 1 byte (PCI §6.2.1).
pub const HEADER_TYPE: u16 = 0x0e;
/// First of six base address registers, 4 bytes each (PCI §6.2.5).
pub const BAR0: u16 = 0x10;
/// Number of base address registers in a type 0 header (PCI §6.2.5).
pub const BAR_COUNT: usize = 6;
/// Subsystem vendor ID, 2 bytes (PCI §6.2.4).
pub const SUBSYSTEM_VENDOR_ID: u16 = 0x2c;
/// Subsystem ID, 2 bytes (PCI §6.2.4).
pub const SUBSYSTEM_ID: u16 = 0x2e;
/// Offset of the first capability, 1 byte (PCI §6.7).
pub const CAPABILITIES_POINTER: u16 = 0x34;
/// Interrupt line, 1 byte: written by software for software (PCI §6.2.4).
pub const INTERRUPT_LINE: u16 = 0x3c;
/// Interrupt pin, 1 byte: 1 is INTA (PCI §6.2.4).
pub const INTERRUPT_PIN: u16 = 0x3d;
/// First byte after the header (PCI §6.1).
pub const HEADER_LEN: u16 = 0x40;

/// Command: answers I/O accesses (PCI §6.2.2).
pub const COMMAND_IO: u16 = 1 << 0;
/// Command: answers memory accesses (PCI §6.2.2).
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: may master the bus: DMA and MSI (PCI §6.2.2).
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: reports parity errors (PCI §6.2.2).
pub const COMMAND_PARITY: u16 = 1 << 6;
/// Command: drives SERR# (PCI §6.2.2).
pub const COMMAND_SERR: u16 = 1 << 8;
/// Command: may not assert INTx (PCI §6.2.2).
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// Status: an INTx interrupt is pending (PCI §6.2.3).
pub const STATUS_INTERRUPT: u16 = 1 << 3;
/// Status: there is a capability list (PCI §6.2.3).
pub const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Memory BAR bits 2:1: may be anywhere in 64-bit space, takes two registers (PCI §6.2.5.1).
pub const BAR_MEMORY_64: u32 = 0b100;
/// Memory BAR bit 3: prefetchable (PCI §6.2.5.1).
pub const BAR_PREFETCHABLE: u32 = 1 << 3;
/// The bits of a memory BAR that are not address (PCI §6.2.5.1).
pub const BAR_MEMORY_FLAGS: u32 = 0xf;

/// Capability ID: MSI-X (PCI appendix H).
pub const CAPABILITY_MSIX: u8 = 0x11;
/// Capability ID: vendor specific (PCI appendix H).
pub const CAPABILITY_VENDOR: u8 = 0x09;

/// Bytes of the MSI-X capability (PCI §6.8.2).
pub const MSIX_CAPABILITY_LEN: u8 = 12;
/// MSI-X message control: enabled (PCI §6.8.2.3).
pub const MSIX_ENABLE: u16 = 1 << 15;
/// MSI-X message control: all vectors are masked (PCI §6.8.2.3).
pub const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of an entry of the MSI-X table: address, upper address, data, vector control (PCI §6.8.2.6).
pub const MSIX_ENTRY_LEN: u64 = 16;
/// Vector control: this vector is masked (PCI §6.8.2.9).
pub const MSIX_ENTRY_MASKED: u32 = 1 << 0;

/// Class code of a host bridge: base class 06, sub-class 00 (PCI appendix D).
pub const CLASS_HOST_BRIDGE: u32 = 0x06_00_00;
/// Class code of other mass storage (PCI appendix D): SCSI is 01 00, other is 01 80.
pub const CLASS_STORAGE: u32 = 0x01_80_00;
/// Class code of an Ethernet controller (PCI appendix D).
pub const CLASS_ETHERNET: u32 = 0x02_00_00;
/// Class code of another communication controller (PCI appendix D).
pub const CLASS_COMMUNICATION: u32 = 0x07_80_00;
/// Class code of a device that fits no other (PCI appendix D).
pub const CLASS_OTHER: u32 = 0xff_00_00;

/// Where a function is: bus, device and function, as in the upper bits of CONFIG_ADDRESS and ECAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// Bus, 0 to 255.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl Bdf {
    /// Function 0 of `device` on bus 0.
    pub const fn root(device: u8) -> Bdf {
        Bdf { bus: 0, device, function: 0 }
    }
}
