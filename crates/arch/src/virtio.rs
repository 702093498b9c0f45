//! Virtio: identifiers, registers and structure layouts.
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, OASIS Committee Specification 01 (paragraphs as §);
//! the numbers are the same in 1.3. All fields are little-endian.

/// Vendor ID of every virtio PCI device (§4.1.2).
pub const PCI_VENDOR_ID: u16 = 0x1af4;
/// PCI device ID of a modern device is this plus the device type (§4.1.2).
pub const PCI_DEVICE_ID_BASE: u16 = 0x1040;

/// Device types (§5).
pub mod device_type {
    /// Network card (§5.1).
    pub const NET: u16 = 1;
    /// Block device (§5.2).
    pub const BLK: u16 = 2;
    /// Console (§5.3).
    pub const CONSOLE: u16 = 3;
    /// Entropy source (§5.4).
    pub const RNG: u16 = 4;
    /// Memory balloon (§5.5).
    pub const BALLOON: u16 = 5;
    /// Socket device (§5.10).
    pub const VSOCK: u16 = 19;
    /// Memory device (§5.15).
    pub const MEM: u16 = 24;
    /// File system (§5.11).
    pub const FS: u16 = 26;
}

/// Device status bits (§2.1).
pub mod status {
    /// The guest noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The device met an error that only a reset mends.
    pub const DEVICE_NEEDS_RESET: u8 = 64;
    /// The guest gave up on the device.
    pub const FAILED: u8 = 128;
}

/// Feature bits that belong to no device type, as masks (§6).
pub mod feature {
    /// A descriptor may point to a table of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event` say when to notify.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// Packed virtqueues.
    pub const RING_PACKED: u64 = 1 << 34;
}

/// Split virtqueues (§2.7).
pub mod split {
    /// The largest queue size (§2.7).
    pub const QUEUE_SIZE_MAX: u16 = 32768;
    /// Bytes of a descriptor: addr u64, len u32, flags u16, next u16 (§2.7.5).
    pub const DESCRIPTOR_LEN: u64 = 16;
    /// The chain goes on at `next` (§2.7.5).
    pub const DESC_F_NEXT: u16 = 1;
    /// The device writes the buffer (§2.7.5).
    pub const DESC_F_WRITE: u16 = 2;
    /// The buffer is a table of descriptors (§2.7.5.3).
    pub const DESC_F_INDIRECT: u16 = 4;
    /// Available ring: the driver wants no interrupts (§2.7.6).
    pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
    /// Offset of `idx` in either ring (§2.7.6, §2.7.8).
    pub const RING_IDX: u64 = 2;
    /// Offset of the entries in either ring (§2.7.6, §2.7.8).
    pub const RING_ENTRIES: u64 = 4;
    /// Bytes of an available entry (§2.7.6).
    pub const AVAIL_ENTRY_LEN: u64 = 2;
    /// Bytes of a used entry: id u32, len u32 (§2.7.8).
    pub const USED_ENTRY_LEN: u64 = 8;
    /// Alignment of the descriptor table (§2.7).
    pub const DESCRIPTOR_ALIGN: u64 = 16;
    /// Alignment of the available ring (§2.7).
    pub const AVAIL_ALIGN: u64 = 2;
    /// Alignment of the used ring (§2.7).
    pub const USED_ALIGN: u64 = 4;
}

/// Packed virtqueues (§2.8), where they differ from split ones.
pub mod packed {
    /// Alignment of the descriptor ring (§2.8.10.1).
    pub const DESCRIPTOR_ALIGN: u64 = 16;
    /// Offset in a descriptor of what the device writes: len u32, id u16, before the flags (§2.8.13).
    pub const DESC_WRITTEN: u64 = 8;
    /// Offset of the flags in a descriptor (§2.8.13).
    pub const DESC_FLAGS: u64 = 14;
    /// The driver made it available in this round of its wrap counter (§2.8.1).
    pub const DESC_F_AVAIL: u16 = 1 << 7;
    /// The device used it in this round (§2.8.1).
    pub const DESC_F_USED: u16 = 1 << 15;
    /// Bytes of an event suppression structure: desc u16, flags u16 (§2.8.14).
    pub const EVENT_LEN: u64 = 4;
    /// Its alignment (§2.8.10.1).
    pub const EVENT_ALIGN: u64 = 4;
    /// Offset of its flags.
    pub const EVENT_FLAGS: u64 = 2;
    /// The bits of its flags that count.
    pub const EVENT_F_MASK: u16 = 3;
    /// No notifications (§2.8.10).
    pub const EVENT_F_DISABLE: u16 = 1;
    /// A notification for the descriptor named in `desc` (§2.8.10).
    pub const EVENT_F_DESC: u16 = 2;
}

/// Virtio over PCI (§4.1).
pub mod pci {
    /// Capability: common configuration (§4.1.4).
    pub const CAP_COMMON_CFG: u8 = 1;
    /// Capability: notifications (§4.1.4).
    pub const CAP_NOTIFY_CFG: u8 = 2;
    /// Capability: ISR status (§4.1.4).
    pub const CAP_ISR_CFG: u8 = 3;
    /// Capability: device-specific configuration (§4.1.4).
    pub const CAP_DEVICE_CFG: u8 = 4;
    /// Capability: PCI configuration access (§4.1.4).
    pub const CAP_PCI_CFG: u8 = 5;
    /// Bytes of `struct virtio_pci_cap` (§4.1.4).
    pub const CAP_LEN: u8 = 16;

    /// Offset of `cap_len` in the capability (§4.1.4).
    pub const CAP_CAP_LEN: u16 = 2;
    /// Offset of `cfg_type`.
    pub const CAP_CFG_TYPE: u16 = 3;
    /// Offset of `bar`.
    pub const CAP_BAR: u16 = 4;
    /// Offset of `offset`.
    pub const CAP_OFFSET: u16 = 8;
    /// Offset of `length`.
    pub const CAP_LENGTH: u16 = 12;
    /// Offset of `notify_off_multiplier` or `pci_cfg_data` behind the capability (§4.1.4.4, §4.1.4.9).
    pub const CAP_TAIL: u16 = 16;

    /// Common configuration: which 32 device feature bits to show, u32 (§4.1.4.3).
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    /// Common configuration: 32 device feature bits, u32.
    pub const DEVICE_FEATURE: u64 = 0x04;
    /// Common configuration: which 32 driver feature bits to show, u32.
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    /// Common configuration: 32 driver feature bits, u32.
    pub const DRIVER_FEATURE: u64 = 0x0c;
    /// Common configuration: MSI-X vector for configuration changes, u16.
    pub const CONFIG_MSIX_VECTOR: u64 = 0x10;
    /// Common configuration: number of queues, u16.
    pub const NUM_QUEUES: u64 = 0x12;
    /// Common configuration: device status, u8.
    pub const DEVICE_STATUS: u64 = 0x14;
    /// Common configuration: changes with each change of the configuration, u8.
    pub const CONFIG_GENERATION: u64 = 0x15;
    /// Common configuration: which queue the following fields show, u16.
    pub const QUEUE_SELECT: u64 = 0x16;
    /// Common configuration: queue size, u16.
    pub const QUEUE_SIZE: u64 = 0x18;
    /// Common configuration: the queue's MSI-X vector, u16.
    pub const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    /// Common configuration: the queue is in use, u16.
    pub const QUEUE_ENABLE: u64 = 0x1c;
    /// Common configuration: where the queue is notified, in multipliers, u16.
    pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    /// Common configuration: address of the descriptor table, u64.
    pub const QUEUE_DESC: u64 = 0x20;
    /// Common configuration: address of the available ring, u64.
    pub const QUEUE_DRIVER: u64 = 0x28;
    /// Common configuration: address of the used ring, u64.
    pub const QUEUE_DEVICE: u64 = 0x30;
    /// Bytes of the common configuration without the fields of later features.
    pub const COMMON_CFG_LEN: u64 = 0x38;

    /// ISR status: a queue interrupt (§4.1.4.5).
    pub const ISR_QUEUE: u8 = 1;
    /// ISR status: the configuration changed (§4.1.4.5).
    pub const ISR_CONFIG: u8 = 2;
    /// No MSI-X vector (§4.1.4.3).
    pub const NO_VECTOR: u16 = 0xffff;
}

/// Virtio over MMIO, version 2 (§4.2.2).
pub mod mmio {
    /// "virt", read-only.
    pub const MAGIC_VALUE: u64 = 0x000;
    /// What MagicValue reads as.
    pub const MAGIC: u32 = 0x7472_6976;
    /// 2, read-only.
    pub const VERSION: u64 = 0x004;
    /// Device type, read-only.
    pub const DEVICE_ID: u64 = 0x008;
    /// Vendor, read-only.
    pub const VENDOR_ID: u64 = 0x00c;
    /// 32 device feature bits, read-only.
    pub const DEVICE_FEATURES: u64 = 0x010;
    /// Which, write-only.
    pub const DEVICE_FEATURES_SEL: u64 = 0x014;
    /// 32 driver feature bits, write-only.
    pub const DRIVER_FEATURES: u64 = 0x020;
    /// Which, write-only.
    pub const DRIVER_FEATURES_SEL: u64 = 0x024;
    /// Queue index, write-only.
    pub const QUEUE_SEL: u64 = 0x030;
    /// Largest size of the queue, read-only.
    pub const QUEUE_NUM_MAX: u64 = 0x034;
    /// Size of the queue, write-only.
    pub const QUEUE_NUM: u64 = 0x038;
    /// The queue is in use.
    pub const QUEUE_READY: u64 = 0x044;
    /// Notifies a queue, write-only.
    pub const QUEUE_NOTIFY: u64 = 0x050;
    /// Pending interrupts, read-only.
    pub const INTERRUPT_STATUS: u64 = 0x060;
    /// Acknowledges interrupts, write-only.
    pub const INTERRUPT_ACK: u64 = 0x064;
    /// Device status.
    pub const STATUS: u64 = 0x070;
    /// Descriptor table, low half, write-only.
    pub const QUEUE_DESC_LOW: u64 = 0x080;
    /// Descriptor table, high half, write-only.
    pub const QUEUE_DESC_HIGH: u64 = 0x084;
    /// Available ring, low half, write-only.
    pub const QUEUE_DRIVER_LOW: u64 = 0x090;
    /// Available ring, high half, write-only.
    pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
    /// Used ring, low half, write-only.
    pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
    /// Used ring, high half, write-only.
    pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
    /// First of the shared memory length and base registers, which read as all ones without such memory.
    pub const SHM_LEN_LOW: u64 = 0x0b0;
    /// Last of the shared memory registers.
    pub const SHM_BASE_HIGH: u64 = 0x0bc;
    /// Changes with each change of the configuration, read-only.
    pub const CONFIG_GENERATION: u64 = 0x0fc;
    /// Device-specific configuration.
    pub const CONFIG: u64 = 0x100;
    /// InterruptStatus: a queue interrupt.
    pub const INTERRUPT_QUEUE: u32 = 1;
    /// InterruptStatus: the configuration changed.
    pub const INTERRUPT_CONFIG: u32 = 2;
    /// Bytes of a device's window on our boards.
    pub const WINDOW_LEN: u64 = 0x1000;
}

/// Network card (§5.1).
pub mod net {
    /// The device finishes checksums of packets that it is given (§5.1.3).
    pub const F_CSUM: u64 = 1 << 0;
    /// The driver takes packets whose checksum is not finished (§5.1.3).
    pub const F_GUEST_CSUM: u64 = 1 << 1;
    /// `mtu` is valid (§5.1.3).
    pub const F_MTU: u64 = 1 << 3;
    /// `mac` is valid (§5.1.3).
    pub const F_MAC: u64 = 1 << 5;
    /// The driver takes TCP over IPv4 in large segments (§5.1.3).
    pub const F_GUEST_TSO4: u64 = 1 << 7;
    /// The driver takes TCP over IPv6 in large segments (§5.1.3).
    pub const F_GUEST_TSO6: u64 = 1 << 8;
    /// The device takes TCP over IPv4 in large segments (§5.1.3).
    pub const F_HOST_TSO4: u64 = 1 << 11;
    /// The device takes TCP over IPv6 in large segments (§5.1.3).
    pub const F_HOST_TSO6: u64 = 1 << 12;
    /// A packet may be spread over several receive buffers (§5.1.3).
    pub const F_MRG_RXBUF: u64 = 1 << 15;
    /// `status` is valid (§5.1.3).
    pub const F_STATUS: u64 = 1 << 16;
    /// There is a control queue (§5.1.3).
    pub const F_CTRL_VQ: u64 = 1 << 17;
    /// The driver chooses what is received (§5.1.3).
    pub const F_CTRL_RX: u64 = 1 << 18;
    /// It may choose more finely (§5.1.3).
    pub const F_CTRL_RX_EXTRA: u64 = 1 << 20;
    /// Several pairs of queues (§5.1.3).
    pub const F_MQ: u64 = 1 << 22;
    /// The driver may set the MAC address by a command (§5.1.3).
    pub const F_CTRL_MAC_ADDR: u64 = 1 << 23;

    /// Configuration: mac, 6 bytes (§5.1.4).
    pub const CONFIG_MAC: usize = 0;
    /// Configuration: status, u16.
    pub const CONFIG_STATUS: usize = 6;
    /// Configuration: max_virtqueue_pairs, u16.
    pub const CONFIG_PAIRS_MAX: usize = 8;
    /// Configuration: mtu, u16.
    pub const CONFIG_MTU: usize = 10;
    /// Bytes of the configuration up to and with the MTU.
    pub const CONFIG_LEN: usize = 12;
    /// `status`: the link is up (§5.1.4).
    pub const S_LINK_UP: u16 = 1;

    /// Bytes of `struct virtio_net_hdr`: flags u8, gso_type u8, hdr_len, gso_size, csum_start, csum_offset and num_buffers
    /// u16 each (§5.1.6).
    pub const HEADER_LEN: usize = 12;
    /// Header flag: the checksum is to be finished from `csum_start` on (§5.1.6).
    pub const HDR_F_NEEDS_CSUM: u8 = 1;
    /// Header flag: the checksum was found right (§5.1.6).
    pub const HDR_F_DATA_VALID: u8 = 2;
    /// `gso_type`: an ordinary packet (§5.1.6).
    pub const HDR_GSO_NONE: u8 = 0;
    /// `gso_type`: TCP over IPv4 (§5.1.6).
    pub const HDR_GSO_TCPV4: u8 = 1;
    /// `gso_type`: TCP over IPv6 (§5.1.6).
    pub const HDR_GSO_TCPV6: u8 = 4;

    /// Command class: what is received (§5.1.6.5.1).
    pub const CTRL_RX: u8 = 0;
    /// Command: everything.
    pub const CTRL_RX_PROMISC: u8 = 0;
    /// Command: all multicast.
    pub const CTRL_RX_ALLMULTI: u8 = 1;
    /// Command: all unicast.
    pub const CTRL_RX_ALLUNI: u8 = 2;
    /// Command: no multicast.
    pub const CTRL_RX_NOMULTI: u8 = 3;
    /// Command: no unicast.
    pub const CTRL_RX_NOUNI: u8 = 4;
    /// Command: no broadcast.
    pub const CTRL_RX_NOBCAST: u8 = 5;
    /// Command class: MAC addresses (§5.1.6.5.2).
    pub const CTRL_MAC: u8 = 1;
    /// Command: the tables of unicast and multicast addresses, each a u32 and so many addresses.
    pub const CTRL_MAC_TABLE_SET: u8 = 0;
    /// Command: the card's own address.
    pub const CTRL_MAC_ADDR_SET: u8 = 1;
    /// Command class: pairs of queues (§5.1.6.5.6).
    pub const CTRL_MQ: u8 = 4;
    /// Command: how many the driver uses, u16.
    pub const CTRL_MQ_VQ_PAIRS_SET: u8 = 0;
    /// Answer: done (§5.1.6.5).
    pub const CTRL_OK: u8 = 0;
    /// Answer: refused (§5.1.6.5).
    pub const CTRL_ERR: u8 = 1;
}

/// Block device (§5.2).
pub mod blk {
    /// Bytes of a sector, whatever `blk_size` says (§5.2.4).
    pub const SECTOR_LEN: u64 = 512;
    /// `seg_max` is valid (§5.2.3).
    pub const F_SEG_MAX: u64 = 1 << 2;
    /// Read-only (§5.2.3).
    pub const F_RO: u64 = 1 << 5;
    /// `blk_size` is valid (§5.2.3).
    pub const F_BLK_SIZE: u64 = 1 << 6;
    /// Flush requests (§5.2.3).
    pub const F_FLUSH: u64 = 1 << 9;
    /// `topology` is valid (§5.2.3).
    pub const F_TOPOLOGY: u64 = 1 << 10;
    /// The write cache can be switched (§5.2.3).
    pub const F_CONFIG_WCE: u64 = 1 << 11;
    /// More than one queue (§5.2.3).
    pub const F_MQ: u64 = 1 << 12;
    /// Discard requests (§5.2.3).
    pub const F_DISCARD: u64 = 1 << 13;
    /// Write-zeroes requests (§5.2.3).
    pub const F_WRITE_ZEROES: u64 = 1 << 14;

    /// Request: read (§5.2.6).
    pub const T_IN: u32 = 0;
    /// Request: write.
    pub const T_OUT: u32 = 1;
    /// Request: flush.
    pub const T_FLUSH: u32 = 4;
    /// Request: identify, 20 bytes.
    pub const T_GET_ID: u32 = 8;
    /// Request: discard.
    pub const T_DISCARD: u32 = 11;
    /// Request: write zeroes.
    pub const T_WRITE_ZEROES: u32 = 13;
    /// Bytes of the request header: type u32, reserved u32, sector u64 (§5.2.6).
    pub const HEADER_LEN: u64 = 16;
    /// Bytes of the answer to GET_ID (§5.2.6).
    pub const ID_LEN: usize = 20;
    /// Bytes of a discard or write-zeroes segment: sector u64, num_sectors u32, flags u32 (§5.2.6).
    pub const RANGE_LEN: u64 = 16;
    /// Segment flag: the space may be given back (§5.2.6).
    pub const RANGE_F_UNMAP: u32 = 1;

    /// Status: done (§5.2.6).
    pub const S_OK: u8 = 0;
    /// Status: failed.
    pub const S_IOERR: u8 = 1;
    /// Status: no such request.
    pub const S_UNSUPP: u8 = 2;

    /// Configuration: capacity in sectors, u64 (§5.2.4).
    pub const CONFIG_CAPACITY: usize = 0;
    /// Configuration: seg_max, u32.
    pub const CONFIG_SEG_MAX: usize = 12;
    /// Configuration: blk_size in bytes, u32.
    pub const CONFIG_BLK_SIZE: usize = 20;
    /// Configuration: physical_block_exp u8, alignment_offset u8, min_io_size u16, opt_io_size u32.
    pub const CONFIG_TOPOLOGY: usize = 24;
    /// Configuration: writeback, u8.
    pub const CONFIG_WRITEBACK: usize = 32;
    /// Configuration: num_queues, u16.
    pub const CONFIG_NUM_QUEUES: usize = 34;
    /// Configuration: max_discard_sectors, max_discard_seg, discard_sector_alignment, u32 each.
    pub const CONFIG_DISCARD: usize = 36;
    /// Configuration: max_write_zeroes_sectors u32, max_write_zeroes_seg u32, write_zeroes_may_unmap u8.
    pub const CONFIG_WRITE_ZEROES: usize = 48;
    /// Bytes of the configuration up to and with the write-zeroes fields.
    pub const CONFIG_LEN: usize = 60;
}

/// Console (§5.3).
pub mod console {
    /// `cols` and `rows` are valid (§5.3.3).
    pub const F_SIZE: u64 = 1 << 0;
    /// Several ports and control queues (§5.3.3).
    pub const F_MULTIPORT: u64 = 1 << 1;
    /// `emerg_wr` is valid (§5.3.3).
    pub const F_EMERG_WRITE: u64 = 1 << 2;
    /// receiveq of port 0 (§5.3.2).
    pub const QUEUE_RECEIVE: u16 = 0;
    /// transmitq of port 0 (§5.3.2).
    pub const QUEUE_TRANSMIT: u16 = 1;
    /// Messages for the driver, with F_MULTIPORT (§5.3.2).
    pub const QUEUE_CONTROL_RECEIVE: u16 = 2;
    /// Messages of the driver, with F_MULTIPORT (§5.3.2).
    pub const QUEUE_CONTROL_TRANSMIT: u16 = 3;
    /// receiveq of port 1; its transmitq, and the queues of further ports, follow (§5.3.2).
    pub const QUEUE_RECEIVE_1: u16 = 4;
    /// Bytes of a message: id u32, event u16, value u16 (§5.3.6.2).
    pub const CONTROL_LEN: usize = 8;
    /// What a message says (§5.3.6.2).
    pub mod event {
        /// The driver is there (1), or could not be.
        pub const DEVICE_READY: u16 = 0;
        /// There is this port.
        pub const PORT_ADD: u16 = 1;
        /// The driver is ready for this port (1), or cannot be.
        pub const PORT_READY: u16 = 3;
        /// This port is a console.
        pub const CONSOLE_PORT: u16 = 4;
        /// The console's size: two u16 follow.
        pub const RESIZE: u16 = 5;
        /// The port was opened (1) or closed (0) at the other side.
        pub const PORT_OPEN: u16 = 6;
        /// The port's name, which follows.
        pub const PORT_NAME: u16 = 7;
    }
    /// Configuration: emerg_wr, u32 (§5.3.4).
    pub const CONFIG_EMERG_WR: u64 = 8;
    /// Bytes of the configuration: cols u16, rows u16, max_nr_ports u32, emerg_wr u32 (§5.3.4).
    pub const CONFIG_LEN: usize = 12;
}

/// Memory balloon (§5.5).
pub mod balloon {
    /// The guest tells of its memory (§5.5.3).
    pub const F_STATS_VQ: u64 = 1 << 1;
    /// The guest may take pages back when it has no others (§5.5.3).
    pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The guest tells which pages are free (§5.5.3).
    pub const F_PAGE_REPORTING: u64 = 1 << 5;
    /// Pages for the balloon (§5.5.2).
    pub const QUEUE_INFLATE: u16 = 0;
    /// Pages from the balloon (§5.5.2).
    pub const QUEUE_DEFLATE: u16 = 1;
    /// Statistics (§5.5.2).
    pub const QUEUE_STATS: u16 = 2;
    /// Free pages. §5.5.2 gives it number 4, behind a queue of free page hints: drivers leave out the queues of features
    /// that are not offered, and number those that are there.
    pub const QUEUE_REPORTING: u16 = 3;
    /// Configuration: actual, u32 (§5.5.4).
    pub const CONFIG_ACTUAL: u64 = 4;
    /// Bytes of the configuration: num_pages, actual, free_page_hint_cmd_id, poison_val, each u32 (§5.5.4).
    pub const CONFIG_LEN: usize = 16;
    /// Bytes of a statistic: tag u16, value u64 (§5.5.6.3).
    pub const STAT_LEN: u64 = 10;
    /// Major page faults (§5.5.6.4).
    pub const S_MAJFLT: u16 = 2;
    /// Unused memory, bytes (§5.5.6.4).
    pub const S_MEMFREE: u16 = 4;
    /// All memory, bytes (§5.5.6.4).
    pub const S_MEMTOT: u16 = 5;
    /// Memory for new programs, bytes (§5.5.6.4).
    pub const S_AVAIL: u16 = 6;
    /// Disk caches, bytes (§5.5.6.4).
    pub const S_CACHES: u16 = 7;
}

/// Memory device (§5.15).
pub mod mem {
    /// Configuration: block_size, u64 (§5.15.4).
    pub const CONFIG_BLOCK_SIZE: usize = 0;
    /// Configuration: addr, u64.
    pub const CONFIG_ADDR: usize = 16;
    /// Configuration: region_size, u64.
    pub const CONFIG_REGION_SIZE: usize = 24;
    /// Configuration: usable_region_size, u64.
    pub const CONFIG_USABLE_SIZE: usize = 32;
    /// Configuration: plugged_size, u64.
    pub const CONFIG_PLUGGED_SIZE: usize = 40;
    /// Configuration: requested_size, u64.
    pub const CONFIG_REQUESTED_SIZE: usize = 48;
    /// Bytes of the configuration.
    pub const CONFIG_LEN: usize = 56;
    /// Bytes of a request: type u16, 3 x u16 of padding, addr u64, nb_blocks u16, 3 x u16 of padding (§5.15.6).
    pub const REQUEST_LEN: usize = 24;
    /// Bytes of a response: type u16, 3 x u16 of padding, state u16 (§5.15.6).
    pub const RESPONSE_LEN: usize = 10;
    /// Plug blocks (§5.15.6).
    pub const REQ_PLUG: u16 = 0;
    /// Unplug blocks (§5.15.6).
    pub const REQ_UNPLUG: u16 = 1;
    /// Unplug all blocks (§5.15.6).
    pub const REQ_UNPLUG_ALL: u16 = 2;
    /// Tell the state of blocks (§5.15.6).
    pub const REQ_STATE: u16 = 3;
    /// Done (§5.15.6).
    pub const RESP_ACK: u16 = 0;
    /// Not now (§5.15.6).
    pub const RESP_NACK: u16 = 1;
    /// A wrong request (§5.15.6).
    pub const RESP_ERROR: u16 = 3;
    /// All blocks are plugged (§5.15.6.6).
    pub const STATE_PLUGGED: u16 = 0;
    /// None is (§5.15.6.6).
    pub const STATE_UNPLUGGED: u16 = 1;
    /// Some are (§5.15.6.6).
    pub const STATE_MIXED: u16 = 2;
}

/// Socket device (§5.10).
pub mod vsock {
    /// Stream sockets (§5.10.3).
    pub const F_STREAM: u64 = 1 << 0;
    /// Packets for the guest (§5.10.2).
    pub const QUEUE_RX: u16 = 0;
    /// Packets from the guest (§5.10.2).
    pub const QUEUE_TX: u16 = 1;
    /// Events for the guest (§5.10.2).
    pub const QUEUE_EVENT: u16 = 2;
    /// The host's context ID (§5.10.4).
    pub const CID_HOST: u64 = 2;
    /// Bytes of `struct virtio_vsock_hdr` (§5.10.6).
    pub const HEADER_LEN: usize = 44;
    /// Socket type: stream (§5.10.6).
    pub const TYPE_STREAM: u16 = 1;
    /// Operation: connect (§5.10.6).
    pub const OP_REQUEST: u16 = 1;
    /// Operation: accepted.
    pub const OP_RESPONSE: u16 = 2;
    /// Operation: reset.
    pub const OP_RST: u16 = 3;
    /// Operation: shutdown.
    pub const OP_SHUTDOWN: u16 = 4;
    /// Operation: data.
    pub const OP_RW: u16 = 5;
    /// Operation: buffer space, as in every header.
    pub const OP_CREDIT_UPDATE: u16 = 6;
    /// Operation: asks for a credit update.
    pub const OP_CREDIT_REQUEST: u16 = 7;
    /// Shutdown flag: the sender receives no more (§5.10.6.5).
    pub const SHUTDOWN_RECEIVE: u32 = 1;
    /// Shutdown flag: the sender sends no more (§5.10.6.5).
    pub const SHUTDOWN_SEND: u32 = 2;
    /// Event: all connections are gone and the CID may have changed (§5.10.6.7).
    pub const EVENT_TRANSPORT_RESET: u32 = 0;
}

/// File system (§5.11).
pub mod fs {
    /// Requests that may overtake others (§5.11.2).
    pub const QUEUE_HIPRIO: u16 = 0;
    /// The first of the request queues (§5.11.2).
    pub const QUEUE_REQUEST: u16 = 1;
    /// Bytes of `tag`: UTF-8, filled up with zeroes (§5.11.4).
    pub const TAG_LEN: usize = 36;
    /// Configuration: num_request_queues, u32 (§5.11.4).
    pub const CONFIG_NUM_REQUEST_QUEUES: usize = 36;
    /// Bytes of the configuration without the fields of F_NOTIFICATION (§5.11.4).
    pub const CONFIG_LEN: usize = 40;
}
