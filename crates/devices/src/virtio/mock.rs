//! The guest's side for tests: a driver that sets a device up over either transport and plays with its queues.
//!
//! It trusts nobody's arithmetic but its own: registers, descriptors and rings are written out again here,
//! from the text of the specification.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::vsock::Header;
use super::{VirtioDevice, VirtioMmio, VirtioPci};
use crate::pci::PciFunction;
use viv_arch::virtio::{feature, mmio, pci, split, status};
use viv_mem::{Gpa, GuestMemory};

/// Every feature but packed rings, which [`MockQueue`] has not.
pub const SPLIT: u64 = !feature::RING_PACKED;

/// The registers that a driver needs, whatever the transport.
pub trait Registers {
    /// Reads the device status.
    fn status(&mut self) -> u8;
    /// Writes the device status.
    fn set_status(&mut self, value: u8);
    /// Reads the device's features.
    fn device_features(&mut self) -> u64;
    /// Writes the driver's features.
    fn set_driver_features(&mut self, features: u64);
    /// Sets a queue up and enables it.
    fn enable_queue(&mut self, index: u16, size: u16, rings: [Gpa; 3]);
    /// The device's largest size of a queue.
    fn queue_size_max(&mut self, index: u16) -> u16;
    /// Notifies a queue.
    fn notify(&mut self, index: u16);
    /// Reads one byte of the device configuration.
    fn config(&mut self, offset: u64) -> u8;
    /// Writes one byte of the device configuration.
    fn set_config(&mut self, offset: u64, value: u8);
}

/// Where a virtio structure is: BAR and offset, found in the capability list (virtio 1.2 §4.1.4).
fn structure<D: VirtioDevice>(function: &mut VirtioPci<D>, wanted: u8) -> (u8, u64, u64) {
    let mut at = function.config_read(0x34, 1) as u16;
    for _ in 0..48 {
        let kind = function.config_read(at + pci::CAP_CFG_TYPE, 1) as u8;
        if function.config_read(at, 1) == 0x09 && kind == wanted {
            let bar = function.config_read(at + pci::CAP_BAR, 1) as u8;
            let offset = function.config_read(at + pci::CAP_OFFSET, 4);
            let tail = function.config_read(at + pci::CAP_TAIL, 4);
            return (bar, offset.into(), tail.into());
        }
        at = function.config_read(at + 1, 1) as u16;
    }
    panic!("no virtio capability {wanted}");
}

fn common_read<D: VirtioDevice>(function: &mut VirtioPci<D>, field: u64, size: u8) -> u64 {
    let (bar, offset, _) = structure(function, pci::CAP_COMMON_CFG);
    function.bar_read(bar, offset + field, size)
}

fn common_write<D: VirtioDevice>(function: &mut VirtioPci<D>, field: u64, size: u8, value: u64) {
    let (bar, offset, _) = structure(function, pci::CAP_COMMON_CFG);
    function.bar_write(bar, offset + field, size, value);
}

impl<D: VirtioDevice> Registers for VirtioPci<D> {
    fn status(&mut self) -> u8 {
        common_read(self, pci::DEVICE_STATUS, 1) as u8
    }
    fn set_status(&mut self, value: u8) {
        common_write(self, pci::DEVICE_STATUS, 1, value.into());
    }
    fn device_features(&mut self) -> u64 {
        (0..2).fold(0, |features, half| {
            common_write(self, pci::DEVICE_FEATURE_SELECT, 4, half);
            features | common_read(self, pci::DEVICE_FEATURE, 4) << (32 * half)
        })
    }
    fn set_driver_features(&mut self, features: u64) {
        for half in 0..2 {
            common_write(self, pci::DRIVER_FEATURE_SELECT, 4, half);
            common_write(self, pci::DRIVER_FEATURE, 4, features >> (32 * half) & 0xffff_ffff);
        }
    }
    fn enable_queue(&mut self, index: u16, size: u16, rings: [Gpa; 3]) {
        common_write(self, pci::QUEUE_SELECT, 2, index.into());
        common_write(self, pci::QUEUE_SIZE, 2, size.into());
        common_write(self, pci::QUEUE_MSIX_VECTOR, 2, u64::from(index) + 1);
        for (field, ring) in [pci::QUEUE_DESC, pci::QUEUE_DRIVER, pci::QUEUE_DEVICE].into_iter().zip(rings) {
            common_write(self, field, 4, ring.0 & 0xffff_ffff);
            common_write(self, field + 4, 4, ring.0 >> 32);
        }
        common_write(self, pci::QUEUE_ENABLE, 2, 1);
    }
    fn queue_size_max(&mut self, index: u16) -> u16 {
        common_write(self, pci::QUEUE_SELECT, 2, index.into());
        common_read(self, pci::QUEUE_SIZE, 2) as u16
    }
    fn notify(&mut self, index: u16) {
        common_write(self, pci::QUEUE_SELECT, 2, index.into());
        let queue = common_read(self, pci::QUEUE_NOTIFY_OFF, 2);
        let (bar, offset, multiplier) = structure(self, pci::CAP_NOTIFY_CFG);
        self.bar_write(bar, offset + queue * multiplier, 2, index.into());
    }
    fn config(&mut self, offset: u64) -> u8 {
        let (bar, base, _) = structure(self, pci::CAP_DEVICE_CFG);
        self.bar_read(bar, base + offset, 1) as u8
    }
    fn set_config(&mut self, offset: u64, value: u8) {
        let (bar, base, _) = structure(self, pci::CAP_DEVICE_CFG);
        self.bar_write(bar, base + offset, 1, value.into());
    }
}

impl<D: VirtioDevice> Registers for VirtioMmio<D> {
    fn status(&mut self) -> u8 {
        self.read(mmio::STATUS, 4) as u8
    }
    fn set_status(&mut self, value: u8) {
        self.write(mmio::STATUS, 4, value.into());
    }
    fn device_features(&mut self) -> u64 {
        (0..2).fold(0, |features, half| {
            self.write(mmio::DEVICE_FEATURES_SEL, 4, half);
            features | self.read(mmio::DEVICE_FEATURES, 4) << (32 * half)
        })
    }
    fn set_driver_features(&mut self, features: u64) {
        for half in 0..2 {
            self.write(mmio::DRIVER_FEATURES_SEL, 4, half);
            self.write(mmio::DRIVER_FEATURES, 4, features >> (32 * half) & 0xffff_ffff);
        }
    }
    fn enable_queue(&mut self, index: u16, size: u16, rings: [Gpa; 3]) {
        self.write(mmio::QUEUE_SEL, 4, index.into());
        self.write(mmio::QUEUE_NUM, 4, size.into());
        for (low, ring) in
            [mmio::QUEUE_DESC_LOW, mmio::QUEUE_DRIVER_LOW, mmio::QUEUE_DEVICE_LOW].into_iter().zip(rings)
        {
            self.write(low, 4, ring.0 & 0xffff_ffff);
            self.write(low + 4, 4, ring.0 >> 32);
        }
        self.write(mmio::QUEUE_READY, 4, 1);
    }
    fn queue_size_max(&mut self, index: u16) -> u16 {
        self.write(mmio::QUEUE_SEL, 4, index.into());
        self.read(mmio::QUEUE_NUM_MAX, 4) as u16
    }
    fn notify(&mut self, index: u16) {
        self.write(mmio::QUEUE_NOTIFY, 4, index.into());
    }
    fn config(&mut self, offset: u64) -> u8 {
        self.read(mmio::CONFIG + offset, 1) as u8
    }
    fn set_config(&mut self, offset: u64, value: u8) {
        self.write(mmio::CONFIG + offset, 1, value.into());
    }
}

impl<T: Registers> Registers for Arc<Mutex<T>> {
    fn status(&mut self) -> u8 {
        self.lock().unwrap_or_else(PoisonError::into_inner).status()
    }
    fn set_status(&mut self, value: u8) {
        self.lock().unwrap_or_else(PoisonError::into_inner).set_status(value);
    }
    fn device_features(&mut self) -> u64 {
        self.lock().unwrap_or_else(PoisonError::into_inner).device_features()
    }
    fn set_driver_features(&mut self, features: u64) {
        self.lock().unwrap_or_else(PoisonError::into_inner).set_driver_features(features);
    }
    fn enable_queue(&mut self, index: u16, size: u16, rings: [Gpa; 3]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).enable_queue(index, size, rings);
    }
    fn queue_size_max(&mut self, index: u16) -> u16 {
        self.lock().unwrap_or_else(PoisonError::into_inner).queue_size_max(index)
    }
    fn notify(&mut self, index: u16) {
        self.lock().unwrap_or_else(PoisonError::into_inner).notify(index);
    }
    fn config(&mut self, offset: u64) -> u8 {
        self.lock().unwrap_or_else(PoisonError::into_inner).config(offset)
    }
    fn set_config(&mut self, offset: u64, value: u8) {
        self.lock().unwrap_or_else(PoisonError::into_inner).set_config(offset, value);
    }
}

/// The driver's side of one split virtqueue.
pub struct MockQueue {
    /// Descriptor table, available ring, used ring.
    pub rings: [Gpa; 3],
    /// Number of entries.
    pub size: u16,
    memory: GuestMemory,
    free: Vec<u16>,
    chains: BTreeMap<u16, Vec<u16>>,
    next_available: u16,
    next_used: u16,
}

impl MockQueue {
    /// Puts the rings of a queue at `base`, a page boundary. They take less than [`MockQueue::LEN`] bytes.
    pub fn new(memory: GuestMemory, base: Gpa, size: u16) -> MockQueue {
        let at = |offset: u64| Gpa(base.0 + offset);
        MockQueue {
            rings: [at(0), at(0x2000), at(0x3000)],
            size,
            memory,
            free: (0..size).rev().collect(),
            chains: BTreeMap::new(),
            next_available: 0,
            next_used: 0,
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> GuestMemory {
        self.memory.clone()
    }

    /// Bytes for the rings of a queue of up to 512 entries.
    pub const LEN: u64 = 0x5000;

    /// Writes one descriptor.
    pub fn descriptor(&self, index: u16, addr: Gpa, len: u32, flags: u16, next: u16) {
        let raw =
            u128::from(addr.0) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
        let at = Gpa(self.rings[0].0 + u64::from(index) * split::DESCRIPTOR_LEN);
        self.memory.write(at, &raw.to_le_bytes()).expect("the table is memory");
    }

    /// Makes the chain that begins at `head` available, whatever it is.
    pub fn make_available(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        let ring = self.rings[1];
        self.memory.store_u16(Gpa(ring.0 + 4 + slot * 2), head).expect("the ring is memory");
        self.next_available = self.next_available.wrapping_add(1);
        self.memory.store_u16(Gpa(ring.0 + 2), self.next_available).expect("the ring is memory");
    }

    /// Builds a chain of these buffers and makes it available. `None` if there are too few free descriptors.
    pub fn offer(&mut self, readable: &[(Gpa, u32)], writable: &[(Gpa, u32)]) -> Option<u16> {
        let buffers: Vec<(Gpa, u32, u16)> = readable
            .iter()
            .map(|&(gpa, len)| (gpa, len, 0))
            .chain(writable.iter().map(|&(gpa, len)| (gpa, len, split::DESC_F_WRITE)))
            .collect();
        if buffers.is_empty() || self.free.len() < buffers.len() {
            return None;
        }
        let indices = self.free.split_off(self.free.len() - buffers.len());
        for (i, &(gpa, len, flags)) in buffers.iter().enumerate() {
            let next = indices.get(i + 1).copied();
            let flags = flags | if next.is_some() { split::DESC_F_NEXT } else { 0 };
            self.descriptor(indices[i], gpa, len, flags, next.unwrap_or(0));
        }
        let head = indices[0];
        self.chains.insert(head, indices);
        self.make_available(head);
        Some(head)
    }

    /// Takes the next used chain: head and written bytes.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let ring = self.rings[2];
        if self.memory.load_u16(Gpa(ring.0 + 2)).expect("the ring is memory") == self.next_used {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let head = self.memory.load_u32(Gpa(ring.0 + 4 + slot * 8)).expect("the ring is memory") as u16;
        let len = self.memory.load_u32(Gpa(ring.0 + 8 + slot * 8)).expect("the ring is memory");
        self.next_used = self.next_used.wrapping_add(1);
        self.free.extend(self.chains.remove(&head).unwrap_or_default());
        Some((head, len))
    }

    /// Sets `used_event`: interrupt me when you fill this entry (§2.7.10).
    pub fn set_used_event(&self, index: u16) {
        let at = Gpa(self.rings[1].0 + 4 + 2 * u64::from(self.size));
        self.memory.store_u16(at, index).expect("the ring is memory");
    }

    /// Reads `avail_event`: the device wants a notification for this entry.
    pub fn avail_event(&self) -> u16 {
        let at = Gpa(self.rings[2].0 + 4 + 8 * u64::from(self.size));
        self.memory.load_u16(at).expect("the ring is memory")
    }

    /// Sets the flags of the available ring.
    pub fn set_flags(&self, flags: u16) {
        self.memory.store_u16(self.rings[1], flags).expect("the ring is memory");
    }
}

/// A driver with its device.
pub struct MockDriver<T> {
    /// The device.
    pub transport: T,
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The queues, in order.
    pub queues: Vec<MockQueue>,
    next_buffer: u64,
}

impl<T: Registers> MockDriver<T> {
    /// Sets a device up with what it offers of `features` (and VERSION_1) and the first `queues` queues of
    /// `size` entries, with the rings at the start of memory and buffers behind them.
    pub fn new(
        mut transport: T,
        memory: GuestMemory,
        features: u64,
        queues: u16,
        size: u16,
    ) -> MockDriver<T> {
        let up = status::ACKNOWLEDGE | status::DRIVER;
        transport.set_status(0);
        transport.set_status(up);
        let agreed = transport.device_features() & (features | feature::VERSION_1);
        transport.set_driver_features(agreed);
        transport.set_status(up | status::FEATURES_OK);
        assert_eq!(transport.status(), up | status::FEATURES_OK, "features accepted");
        let mut made = Vec::new();
        for index in 0..queues {
            let queue = MockQueue::new(memory.clone(), Gpa(u64::from(index) * MockQueue::LEN), size);
            transport.enable_queue(index, size, queue.rings);
            made.push(queue);
        }
        transport.set_status(up | status::FEATURES_OK | status::DRIVER_OK);
        MockDriver { transport, memory, queues: made, next_buffer: u64::from(queues) * MockQueue::LEN }
    }

    /// A new piece of memory with this content.
    pub fn buffer(&mut self, content: &[u8]) -> (Gpa, u32) {
        let gpa = Gpa(self.next_buffer);
        self.next_buffer += (content.len() as u64).next_multiple_of(16);
        self.memory.write(gpa, content).expect("the test has enough memory");
        (gpa, content.len() as u32)
    }

    /// The content of a piece of memory.
    pub fn content(&self, (gpa, len): (Gpa, u32)) -> Vec<u8> {
        let mut data = vec![0; len as usize];
        self.memory.read(gpa, &mut data).expect("it is memory");
        data
    }

    /// Offers a chain on a queue and notifies the device.
    pub fn submit(&mut self, queue: u16, readable: &[(Gpa, u32)], writable: &[(Gpa, u32)]) -> Option<u16> {
        let head = self.queues[usize::from(queue)].offer(readable, writable)?;
        self.transport.notify(queue);
        Some(head)
    }
}

/// The guest's side of the socket device.
pub struct MockVsock<T> {
    /// The driver under it.
    pub driver: MockDriver<T>,
    /// The guest's context ID.
    pub cid: u64,
    /// The credit that [`MockVsock::send`] tells the host.
    pub buf_alloc: u32,
    /// The bytes taken that [`MockVsock::send`] tells the host.
    pub fwd_cnt: u32,
    receive_buffers: BTreeMap<u16, (Gpa, u32)>,
    send_buffer: (Gpa, u32),
}

/// Bytes of payload in a receive buffer.
const RECEIVE_LEN: usize = 4096;

impl<T: Registers> MockVsock<T> {
    /// Sets the device up and gives it `buffers` receive buffers.
    pub fn new(transport: T, memory: GuestMemory, cid: u64, buffers: usize) -> MockVsock<T> {
        let mut driver = MockDriver::new(transport, memory, SPLIT, 3, 64);
        let send_buffer = driver.buffer(&vec![0; 44 + (64 << 10)]);
        let mut this = MockVsock {
            driver,
            cid,
            buf_alloc: 256 << 10,
            fwd_cnt: 0,
            receive_buffers: BTreeMap::new(),
            send_buffer,
        };
        for _ in 0..buffers {
            let buffer = this.driver.buffer(&[0; 44 + RECEIVE_LEN]);
            this.give(buffer);
        }
        this
    }

    fn give(&mut self, buffer: (Gpa, u32)) {
        let head = self.driver.submit(0, &[], &[buffer]).expect("there are free descriptors");
        self.receive_buffers.insert(head, buffer);
    }

    /// Sends a packet from `port` to the host's `host_port`.
    pub fn send(&mut self, host_port: u32, port: u32, op: u16, flags: u32, payload: &[u8]) {
        let header = Header {
            src_cid: self.cid,
            dst_cid: 2,
            src_port: port,
            dst_port: host_port,
            len: payload.len() as u32,
            socket_type: 1,
            op,
            flags,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        };
        self.send_raw(&header, payload);
    }

    /// Sends a packet with any header; waits for nothing, so a packet that stays on the ring is an error
    /// of the test.
    pub fn send_raw(&mut self, header: &Header, payload: &[u8]) {
        let (gpa, _) = self.send_buffer;
        let bytes = [&header.to_bytes()[..], payload].concat();
        self.driver.memory.write(gpa, &bytes).expect("it fits");
        self.driver.submit(1, &[(gpa, bytes.len() as u32)], &[]).expect("there are free descriptors");
        assert!(self.driver.queues[1].take_used().is_some(), "the device took the packet");
    }

    /// The next packet from the host; its buffer goes back to the device.
    pub fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (head, len) = self.driver.queues[0].take_used()?;
        let buffer = self.receive_buffers.remove(&head).expect("the device gives back what it got");
        let bytes = self.driver.content((buffer.0, len));
        self.give(buffer);
        let (header, payload) = bytes.split_first_chunk::<44>().expect("a whole header");
        let header = Header::from_bytes(header);
        assert_eq!(header.len as usize, payload.len());
        assert_eq!((header.src_cid, header.dst_cid, header.socket_type), (2, self.cid, 1));
        Some((header, payload.to_vec()))
    }
}
