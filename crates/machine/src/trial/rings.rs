//! Virtqueues that lie: each virtio device is set up by the rules, over its real transport, and then given noise.
use super::accesses::host;
use super::{Entropy, Trial};
use crate::layout::{ECAM, VIRTIO_MMIO};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use viv_arch::virtio::{feature, mmio, packed, pci, split, status};
use viv_block::{Disk, MemoryDisk};
use viv_cpu::CpuBus;
use viv_devices::virtio::{NOTIFY_MULTIPLIER, NOTIFY_OFFSET};
use viv_mem::{Gpa, GuestMemory};
use viv_net::port::{Message, NetPort, SocketPort};

/// RAM of the board, bytes.
const RAM: u64 = 1 << 20;
/// Sectors of its disk.
const SECTORS: u64 = 64;
/// Entries of each queue.
const QUEUE_LEN: u16 = 8;
/// Queues that are set up on a device.
const QUEUES: u16 = 4;
/// Where the rings are: a page for each queue.
const RINGS: u64 = 0x1_0000;
/// Where buffers and indirect tables mostly are.
const BUFFERS: u64 = 0x2_0000;
const STEPS_MAX: usize = 1024;

/// A device's registers, wherever they are.
struct Driver<'a> {
    bus: &'a dyn CpuBus,
    base: u64,
    pci: bool,
}

impl Driver<'_> {
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.bus.mmio_write(Gpa(self.base.wrapping_add(offset)), size, value);
    }

    fn set_status(&self, value: u8) {
        let offset = if self.pci { pci::DEVICE_STATUS } else { mmio::STATUS };
        self.write(offset, if self.pci { 1 } else { 4 }, value.into());
    }

    fn set_features(&self, features: u64) {
        let (select, value) = if self.pci {
            (pci::DRIVER_FEATURE_SELECT, pci::DRIVER_FEATURE)
        } else {
            (mmio::DRIVER_FEATURES_SEL, mmio::DRIVER_FEATURES)
        };
        for half in 0..2 {
            self.write(select, 4, half);
            self.write(value, 4, features >> (32 * half) & 0xffff_ffff);
        }
    }

    fn set_queue(&self, queue: u16, len: u16, rings: [u64; 3]) {
        if self.pci {
            self.write(pci::QUEUE_SELECT, 2, queue.into());
            self.write(pci::QUEUE_SIZE, 2, len.into());
            self.write(pci::QUEUE_MSIX_VECTOR, 2, queue.into());
            for (register, ring) in [pci::QUEUE_DESC, pci::QUEUE_DRIVER, pci::QUEUE_DEVICE].iter().zip(rings)
            {
                self.write(*register, 8, ring);
            }
            self.write(pci::QUEUE_ENABLE, 2, 1);
        } else {
            self.write(mmio::QUEUE_SEL, 4, queue.into());
            self.write(mmio::QUEUE_NUM, 4, len.into());
            for (register, ring) in
                [mmio::QUEUE_DESC_LOW, mmio::QUEUE_DRIVER_LOW, mmio::QUEUE_DEVICE_LOW].iter().zip(rings)
            {
                self.write(*register, 4, ring & 0xffff_ffff);
                self.write(*register + 4, 4, ring >> 32);
            }
            self.write(mmio::QUEUE_READY, 4, 1);
        }
    }

    fn notify(&self, queue: u16) {
        if self.pci {
            let offset = NOTIFY_OFFSET + u64::from(queue) * u64::from(NOTIFY_MULTIPLIER);
            self.write(offset, 2, queue.into());
        } else {
            self.write(mmio::QUEUE_NOTIFY, 4, queue.into());
        }
    }
}

fn rings(queue: u16) -> [u64; 3] {
    let page = RINGS + u64::from(queue) * 0x1000;
    [page, page + 0x400, page + 0x800]
}

/// Drives the virtio devices of a board with lying rings: see [`super`].
pub fn run_rings(data: &[u8]) {
    let mut entropy = Entropy::new(data);
    let with_disk = entropy.one_in(2);
    let disks: Vec<Arc<dyn Disk>> =
        if with_disk { vec![Arc::new(MemoryDisk::zeroed(SECTORS))] } else { Vec::new() };
    let split = entropy.one_in(4);
    let with_share = !with_disk && entropy.one_in(3);
    let shares = if with_share { vec![deaf_server()] } else { Vec::new() };
    // What comes out of the network card goes back in.
    let Ok((port, mirror)) = SocketPort::pair() else { return };
    let port: Arc<dyn NetPort> = Arc::new(port);
    let Ok(trial) = Trial::with(RAM, split, 1, disks, shares, Some(port)) else { return };
    let bus = trial.bus(0);
    // The entropy source is on MMIO, the others on PCI: vsock, console, disk, balloon, share, network card.
    let slot = u64::from(match () {
        () if with_disk => 3 + entropy.u8() % 3,
        () if with_share => 4 + entropy.u8() % 2,
        () => entropy.u8() % 5,
    });
    let driver = if slot == 0 {
        Driver { bus: &bus, base: VIRTIO_MMIO, pci: false }
    } else {
        let function = ECAM + (slot << 15);
        // Memory space and bus master on.
        bus.mmio_write(Gpa(function + 4), 2, 6);
        let low = bus.mmio_read(Gpa(function + 0x10), 4) & 0xffff_fff0;
        let base = low | bus.mmio_read(Gpa(function + 0x14), 4) << 32;
        Driver { bus: &bus, base, pci: true }
    };
    let mut packed = set_up(&mut entropy, &driver);
    let mut message = Message::default();
    for _ in 0..STEPS_MAX {
        if entropy.is_empty() {
            break;
        }
        step(&mut entropy, &trial, &driver, &mut packed);
        reflect(&mirror, &mut message);
    }
    drop(trial.output());
}

fn reflect(mirror: &SocketPort, message: &mut Message) {
    while let Ok(true) = mirror.receive(message) {
        while let Some(packet) = message.front() {
            // What finds no room is lost.
            let _ = mirror.send_one(packet);
            message.pop();
        }
    }
}

/// A server that is gone: every request fails.
fn deaf_server() -> UnixStream {
    UnixStream::pair().map(|(ours, _)| ours).expect("the host gives sockets")
}

/// Sets the device up; says whether its rings are packed.
fn set_up(entropy: &mut Entropy<'_>, driver: &Driver<'_>) -> bool {
    let choice = entropy.u8();
    driver.set_status(0);
    driver.set_status(status::ACKNOWLEDGE | status::DRIVER);
    let ring_features = match choice & 3 {
        0 => 0,
        1 => feature::INDIRECT_DESC,
        2 => feature::EVENT_IDX,
        _ => feature::INDIRECT_DESC | feature::EVENT_IDX,
    };
    let packed = choice & 8 != 0;
    let ring_features = ring_features | if packed { feature::RING_PACKED } else { 0 };
    let own = if choice & 4 != 0 { u64::from(entropy.u16()) & 0x7fff } else { 0 };
    driver.set_features(feature::VERSION_1 | ring_features | own);
    driver.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    for queue in 0..QUEUES {
        driver.set_queue(queue, QUEUE_LEN, rings(queue));
    }
    driver.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK);
    packed
}

fn step(entropy: &mut Entropy<'_>, trial: &Trial, driver: &Driver<'_>, packed: &mut bool) {
    let memory = trial.memory();
    let queue = u16::from(entropy.u8()) % QUEUES;
    let [descriptors, available, used] = rings(queue);
    // What lies outside RAM is refused, and that is fine.
    match entropy.u8() % 16 {
        0..=4 => {
            let table = if entropy.one_in(4) { buffer(entropy) } else { descriptors };
            let index = u64::from(entropy.u8()) % (2 * u64::from(QUEUE_LEN));
            let at = Gpa(table.wrapping_add(split::DESCRIPTOR_LEN * index));
            let _ = memory.write(at, &descriptor(entropy, *packed));
        }
        5..=8 if *packed => driver.notify(queue),
        5..=8 => make_available(entropy, memory, available, driver, queue),
        9 => {
            // What a device reads from its buffers: headers.
            let at = Gpa(buffer(entropy));
            let _ = memory.write(at, entropy.bytes(48));
        }
        10 => {
            let _ = memory.store_u16(Gpa(available + split::RING_IDX), entropy.u16());
            driver.notify(queue);
        }
        11 => {
            let _ = memory.write(Gpa(used + u64::from(entropy.u8())), entropy.bytes(8));
        }
        12 => host(entropy, trial),
        13 => trial.input(entropy.bytes(32)),
        14 => driver.write(u64::from(entropy.u16() & 0x7fff), entropy.size(), entropy.number()),
        _ => match entropy.u8() % 4 {
            0 => *packed = set_up(entropy, driver),
            1 => {
                driver.set_queue(queue, entropy.u16(), [entropy.number(), entropy.number(), entropy.number()])
            }
            2 => driver.set_status(entropy.u8()),
            _ => drop(trial.output()),
        },
    }
}

fn make_available(
    entropy: &mut Entropy<'_>,
    memory: &GuestMemory,
    available: u64,
    driver: &Driver<'_>,
    queue: u16,
) {
    let index = memory.load_u16(Gpa(available + split::RING_IDX)).unwrap_or_default();
    let count = 1 + u16::from(entropy.u8() % 3);
    for n in 0..count {
        let entry = u64::from(index.wrapping_add(n) % QUEUE_LEN);
        let head = u16::from(entropy.u8()) % (QUEUE_LEN + 1);
        let _ = memory.store_u16(Gpa(available + split::RING_ENTRIES + split::AVAIL_ENTRY_LEN * entry), head);
    }
    let _ = memory.store_u16(Gpa(available + split::RING_IDX), index.wrapping_add(count));
    driver.notify(queue);
}

/// Marks of a packed descriptor: mostly available, in this round or the next.
fn available(entropy: &mut Entropy<'_>) -> u16 {
    let (avail, used) = (packed::DESC_F_AVAIL, packed::DESC_F_USED);
    [avail, avail, used, used, avail | used, 0][usize::from(entropy.u8() % 6)]
}

fn buffer(entropy: &mut Entropy<'_>) -> u64 {
    match entropy.u8() % 8 {
        0 => entropy.number(),
        1 => RAM - u64::from(entropy.u8()),
        2 => RINGS + u64::from(entropy.u16() & 0x3fff),
        _ => BUFFERS + 16 * u64::from(entropy.u8()),
    }
}

fn descriptor(entropy: &mut Entropy<'_>, packed: bool) -> [u8; 16] {
    let mut bytes = [0; 16];
    let len = match entropy.u8() % 6 {
        0 => entropy.number() as u32,
        1 => 16 * u32::from(entropy.u8() & 31),
        2 => 512 * u32::from(entropy.u8() & 3),
        3 => 16,
        4 => 44,
        _ => 1,
    };
    let flags = u16::from(entropy.u8() & 7);
    bytes[..8].copy_from_slice(&buffer(entropy).to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    let number = u16::from(entropy.u8()) % (QUEUE_LEN + 1);
    let words = if packed { [number, flags | available(entropy)] } else { [flags, number] };
    bytes[12..14].copy_from_slice(&words[0].to_le_bytes());
    bytes[14..].copy_from_slice(&words[1].to_le_bytes());
    bytes
}
