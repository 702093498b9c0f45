//! A disk with 256 requests in flight is reset or goes away, on the board with its threads, again and again.
//! `VIV_RESETS` says how often.

use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use viv_arch::virtio::{blk, pci};
use viv_block::{Disk, MemoryDisk};
use viv_cpu::CpuBus;
use viv_devices::virtio::mock::{MockDriver, MockQueue, Registers, SPLIT};
use viv_devices::virtio::{NOTIFY_MULTIPLIER, NOTIFY_OFFSET};
use viv_machine::layout::ECAM;
use viv_machine::trial::Trial;
use viv_mem::Gpa;

const LIMIT: Duration = Duration::from_secs(60);
/// Where the guest ejects (the board's table).
const EJECT: u16 = 0x648;
/// As many as the machine has vCPUs.
const QUEUES: u16 = 4;
const IN_FLIGHT: usize = 256;
/// Rounds on one board.
const ROUNDS: usize = 50;

/// A disk that does nothing until it may.
struct Held {
    disk: MemoryDisk,
    may: Mutex<bool>,
    changed: Condvar,
}

impl Held {
    fn new() -> Held {
        Held { disk: MemoryDisk::zeroed(2048), may: Mutex::new(false), changed: Condvar::new() }
    }

    fn release(&self) {
        *self.may.lock().unwrap() = true;
        self.changed.notify_all();
    }

    fn wait(&self) -> &MemoryDisk {
        drop(self.changed.wait_while(self.may.lock().unwrap(), |may| !*may).unwrap());
        &self.disk
    }
}

impl Disk for Held {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.wait().read(offset, data)
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.wait().write(offset, data)
    }
    fn flush(&self) -> io::Result<()> {
        self.wait().flush()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.wait().discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.wait().write_zeroes(offset, len, unmap)
    }
}

/// The registers of a virtio function on the board, as a vCPU reaches them.
struct OnBus<'a> {
    bus: &'a dyn CpuBus,
    base: u64,
}

impl<'a> OnBus<'a> {
    fn new(bus: &'a dyn CpuBus, slot: u8) -> OnBus<'a> {
        let function = ECAM + (u64::from(slot) << 15);
        bus.mmio_write(Gpa(function + 4), 2, 6); // memory space, bus master
        let half = |offset: u64| bus.mmio_read(Gpa(function + offset), 4) & 0xffff_ffff;
        OnBus { bus, base: half(0x10) & !0xf | half(0x14) << 32 }
    }
    fn read(&self, offset: u64, size: u8) -> u64 {
        self.bus.mmio_read(Gpa(self.base + offset), size)
    }
    fn write(&self, offset: u64, size: u8, value: u64) {
        self.bus.mmio_write(Gpa(self.base + offset), size, value);
    }
}

impl Registers for OnBus<'_> {
    fn status(&mut self) -> u8 {
        self.read(pci::DEVICE_STATUS, 1) as u8
    }
    fn set_status(&mut self, value: u8) {
        self.write(pci::DEVICE_STATUS, 1, value.into());
    }
    fn device_features(&mut self) -> u64 {
        (0..2).fold(0, |features, half| {
            self.write(pci::DEVICE_FEATURE_SELECT, 4, half);
            features | (self.read(pci::DEVICE_FEATURE, 4) & 0xffff_ffff) << (32 * half)
        })
    }
    fn set_driver_features(&mut self, features: u64) {
        for half in 0..2 {
            self.write(pci::DRIVER_FEATURE_SELECT, 4, half);
            self.write(pci::DRIVER_FEATURE, 4, features >> (32 * half) & 0xffff_ffff);
        }
    }
    fn enable_queue(&mut self, index: u16, size: u16, rings: [Gpa; 3]) {
        self.write(pci::QUEUE_SELECT, 2, index.into());
        self.write(pci::QUEUE_SIZE, 2, size.into());
        for (field, ring) in [pci::QUEUE_DESC, pci::QUEUE_DRIVER, pci::QUEUE_DEVICE].into_iter().zip(rings) {
            self.write(field, 4, ring.0 & 0xffff_ffff);
            self.write(field + 4, 4, ring.0 >> 32);
        }
        self.write(pci::QUEUE_ENABLE, 2, 1);
    }
    fn queue_size_max(&mut self, index: u16) -> u16 {
        self.write(pci::QUEUE_SELECT, 2, index.into());
        self.read(pci::QUEUE_SIZE, 2) as u16
    }
    fn notify(&mut self, index: u16) {
        let at = NOTIFY_OFFSET + u64::from(index) * u64::from(NOTIFY_MULTIPLIER);
        self.write(at, 2, index.into());
    }
    fn config(&mut self, _: u64) -> u8 {
        0
    }
    fn set_config(&mut self, _: u64, _: u8) {}
}

/// Waits for what must come.
fn wait(what: &str, round: usize, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < LIMIT, "round {round}: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_disk_with_256_requests_in_flight_is_reset_or_goes_and_nothing_is_left_of_them() {
    let rounds: usize = std::env::var("VIV_RESETS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let mut trial = Trial::new(4 << 20, false, QUEUES.into(), Vec::new()).unwrap();
    for round in 0..rounds {
        if round % ROUNDS == ROUNDS - 1 {
            trial = Trial::new(4 << 20, false, QUEUES.into(), Vec::new()).unwrap();
        }
        let memory = trial.memory().clone();
        memory.fill(Gpa(0), u64::from(QUEUES) * MockQueue::LEN, 0).unwrap();
        let disk = Arc::new(Held::new());
        let slot = trial.plug_disk(disk.clone()).unwrap();
        let bus = trial.bus(0);
        let mut driver = MockDriver::new(OnBus::new(&bus, slot), memory.clone(), SPLIT, QUEUES, 256);
        let mut statuses = Vec::new();
        for n in 0..IN_FLIGHT {
            let kind = [blk::T_IN, blk::T_OUT, blk::T_FLUSH][n % 3];
            let header = driver.buffer(&(u128::from(kind) | (n as u128) << 64).to_le_bytes());
            let (data, status) = (driver.buffer(&[0xee; 512]), driver.buffer(&[0xff]));
            let (readable, writable) = match kind {
                blk::T_IN => (vec![header], vec![data, status]),
                blk::T_OUT => (vec![header, data], vec![status]),
                _ => (vec![header], vec![status]),
            };
            driver.submit(n as u16 % QUEUES, &readable, &writable).expect("there is room");
            statuses.push(status);
        }
        let open = |driver: &MockDriver<_>| {
            statuses.iter().filter(|status| driver.content(**status) == [0xff]).count()
        };
        assert_eq!(open(&driver), IN_FLIGHT, "round {round}: the disk does nothing yet");
        match round % 3 {
            // The driver waits for the end of its reset, as it must (Virtio 1.3 §2.4.2).
            0 => {
                driver.transport.set_status(0);
                assert_ne!(driver.transport.status(), 0, "round {round}: threads are at work");
                disk.release();
                wait("the end of the reset", round, || driver.transport.status() == 0);
                assert_eq!(open(&driver), IN_FLIGHT, "round {round}: none is answered any more");
                trial.bus(0).port_write(EJECT, 4, 1 << slot);
            }
            // It goes while its threads are at work, or after some of it.
            1 => {
                trial.bus(0).port_write(EJECT, 4, 1 << slot);
                disk.release();
            }
            _ => {
                disk.release();
                wait("an answer", round, || open(&driver) < IN_FLIGHT);
                trial.bus(0).port_write(EJECT, 4, 1 << slot);
            }
        }
        assert!(!trial.has_slot(slot));
        wait("the end of the disk's threads", round, || Arc::strong_count(&disk) == 1);
        // Nobody has the guest's memory any more.
        memory.fill(Gpa(0), 4 << 20, 0x55).unwrap();
        let mut content = vec![0; 4 << 20];
        memory.read(Gpa(0), &mut content).unwrap();
        assert!(content.iter().all(|byte| *byte == 0x55), "round {round}");
    }
}
