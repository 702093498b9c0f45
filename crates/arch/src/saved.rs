//! The saved state of virtio devices, PCI functions and the whole machine, as plain data.
//!
//! Everything in here may come from a file that somebody has damaged or made up: whoever loads it checks it. What a device
//! has from its description (its size, its address) is not in here.
use crate::chips::{I8042Saved, IoapicSaved, PicSaved, PitSaved, PmSaved, RtcSaved, SlotsSaved, UartSaved};
use crate::processor::Processor;
use crate::x86::CpuState;
use serde::{Deserialize, Serialize};

/// A piece of guest memory: address and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentSaved {
    /// Guest-physical address of its first byte.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
}

/// A descriptor chain that a device holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainSaved {
    /// What gives it back: the index of its first descriptor, or its buffer ID.
    pub head: u16,
    /// What the device may read.
    pub readable: Vec<SegmentSaved>,
    /// What the device may write.
    pub writable: Vec<SegmentSaved>,
}

/// A place in a packed ring (virtio 1.3 §2.8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlaceSaved {
    /// Index of the descriptor.
    pub index: u16,
    /// The wrap counter.
    pub wrap: bool,
}

/// Where a device is in a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RingSaved {
    /// Split (virtio 1.3 §2.7).
    Split {
        /// Index of the next available entry that the device takes.
        next_available: u16,
        /// Index of the next used entry that it fills.
        next_used: u16,
        /// `next_used` when it last thought about an interrupt.
        considered_used: u16,
    },
    /// Packed (virtio 1.3 §2.8).
    Packed {
        /// The next descriptor that the device takes.
        next_available: PlaceSaved,
        /// The next one that it gives back.
        next_used: PlaceSaved,
        /// Descriptors of each chain that it holds, by buffer ID.
        held: Vec<(u16, u16)>,
        /// Descriptors given back since it last thought about an interrupt.
        unconsidered: u16,
    },
}

/// A virtqueue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueSaved {
    /// Entries in use.
    pub size: u16,
    /// The driver has enabled it.
    pub ready: bool,
    /// Addresses of the descriptors, the driver's and the device's part.
    pub addresses: [u64; 3],
    /// INDIRECT_DESC was agreed on when it was enabled.
    pub indirect: bool,
    /// EVENT_IDX likewise.
    pub event_idx: bool,
    /// Where the device is in it.
    pub ring: RingSaved,
}

/// A virtio device behind its transport (virtio 1.3 §2, §3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioSaved {
    /// The queues in order.
    pub queues: Vec<QueueSaved>,
    /// The queue that the driver has selected.
    pub queue_select: u16,
    /// The features that the driver has chosen.
    pub features: u64,
    /// Which half of the device's features the driver sees.
    pub device_feature_select: u32,
    /// Which half of its own it sees.
    pub driver_feature_select: u32,
    /// The status register.
    pub status: u8,
    /// Counts the changes of the configuration.
    pub config_generation: u8,
    /// A change of the configuration that the driver has not been told of.
    pub config_interrupt: bool,
    /// What is the device's own.
    pub device: VirtioDeviceSaved,
}

/// A named port of a console.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsolePortSaved {
    /// Its name.
    pub name: String,
    /// Bytes from the guest that nobody has taken.
    pub output: Vec<u8>,
    /// Bytes that wait for the guest.
    pub input: Vec<u8>,
    /// There may be output on the queue that was left there.
    pub stalled: bool,
    /// A buffer of output, and the bytes of it that were taken.
    pub partial: Option<(ChainSaved, u64)>,
    /// Somebody on the host had it open.
    pub host_open: bool,
    /// Somebody in the guest had it open.
    pub guest_open: bool,
}

/// What a kind of virtio device remembers itself (virtio 1.3 §5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum VirtioDeviceSaved {
    /// Block device. Nothing is in flight.
    Blk {
        /// The writeback byte of its configuration.
        write_cache: bool,
    },
    /// Entropy source.
    Rng {
        /// Buffers that wait for random bytes, oldest first.
        waiting: Vec<ChainSaved>,
    },
    /// Console.
    Console {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
        /// Bytes from the guest that nobody has taken.
        output: Vec<u8>,
        /// Bytes that wait for the guest.
        input: Vec<u8>,
        /// There may be output on the queue that was left there.
        stalled: bool,
        /// A buffer of output, and the bytes of it that were taken.
        partial: Option<(ChainSaved, u64)>,
        /// Its named ports.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        ports: Vec<ConsolePortSaved>,
        /// Messages that wait for the guest.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        control: Vec<Vec<u8>>,
    },
    /// Sockets. No stream outlives a restore: the driver is told (§5.10.6.7).
    Vsock,
    /// File system. Nothing is in flight; what the guest knows of the directory is its server's to save.
    Fs,
    /// Memory balloon.
    Balloon {
        /// Pages that the guest shall do without.
        wanted: u32,
        /// Pages that it says it does without.
        actual: u32,
        /// The buffer with which the next statistics are asked for.
        stats_buffer: Option<u16>,
    },
    /// Memory device.
    Mem {
        /// Which blocks the guest has, in order.
        plugged: Vec<bool>,
        /// Bytes that it shall have.
        requested: u64,
    },
    /// Network card.
    Net(NetSaved),
}

/// What a network card remembers (virtio 1.3 §5.1).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetSaved {
    /// The address that the driver has set, or the card's own.
    pub mac: [u8; 6],
    /// The link is up.
    pub link: bool,
    /// The receive modes, a bit each, by the command's number in class RX.
    pub modes: u8,
    /// Unicast addresses that the driver wants.
    pub unicast: Vec<[u8; 6]>,
    /// Multicast addresses likewise.
    pub multicast: Vec<[u8; 6]>,
    /// Pairs of queues in use.
    pub pairs: u16,
    /// Buffers taken for packets that have not come yet, for each pair.
    pub held: Vec<Vec<ChainSaved>>,
}

/// An entry of an MSI-X table (PCI 3.0 §6.8.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsixEntrySaved {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Vector control.
    pub control: u32,
    /// Its pending bit.
    pub pending: bool,
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FunctionSaved {
    /// The 256 bytes of configuration space; those that software cannot change count for nothing.
    pub config: Vec<u8>,
    /// What a virtio function has besides.
    pub virtio: Option<VirtioFunctionSaved>,
}

/// A virtio device as a PCI function (virtio 1.3 §4.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioFunctionSaved {
    /// The device.
    pub virtio: VirtioSaved,
    /// The MSI-X table.
    pub msix: Vec<MsixEntrySaved>,
    /// Vector of configuration changes.
    pub config_vector: u16,
    /// Vector of each queue.
    pub queue_vectors: Vec<u16>,
    /// The ISR status register.
    pub isr: u8,
}

/// A virtio device behind memory-mapped registers (virtio 1.3 §4.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VirtioMmioSaved {
    /// The device.
    pub virtio: VirtioSaved,
    /// The InterruptStatus register.
    pub interrupt_status: u32,
}

/// Any chip.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChipSaved {
    /// 16550A, and input that waits for it.
    Uart(UartSaved, Vec<u8>),
    /// MC146818.
    Rtc(RtcSaved),
    /// 8042.
    I8042(I8042Saved),
    /// ACPI fixed hardware.
    Pm(PmSaved),
    /// The events that pvpanic was told of.
    PvPanic(u8),
    /// PCI's slots.
    Slots(SlotsSaved),
    /// Both 8259A.
    Pic([PicSaved; 2]),
    /// 82093AA.
    Ioapic(IoapicSaved),
    /// 8254.
    Pit(PitSaved),
    /// A virtio device behind memory-mapped registers.
    VirtioMmio(Box<VirtioMmioSaved>),
}

/// An event on its way to a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum CpuEventSaved {
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI with its vector.
    Sipi(u8),
}

/// A vCPU with what the board keeps of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuSaved {
    /// The processor, its local APIC among it.
    pub state: CpuState,
    /// What is on its way to it, oldest first.
    pub events: Vec<CpuEventSaved>,
    /// An ExtINT message has come.
    pub extint: bool,
}

/// Everything of a machine but memory and disks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineSaved {
    /// The guest's clock, nanoseconds.
    pub clock_ns: u64,
    /// kvmclock, nanoseconds, where it is not the guest's clock.
    pub kvm_clock_ns: Option<u64>,
    /// What the guest knows its processor as. The first releases did not say it: theirs goes on with its own kind only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processor: Option<Processor>,
    /// The vCPUs in order.
    pub cpus: Vec<VcpuSaved>,
    /// The chips by name.
    pub chips: Vec<(String, ChipSaved)>,
    /// PCI's CONFIG_ADDRESS register.
    pub pci_address: u32,
    /// The functions of PCI's bus 0 by slot.
    pub functions: Vec<(u8, FunctionSaved)>,
}
