//! 256 requests are in flight when the driver resets the disk, again and again. `VIV_RESETS` says how often.
use super::*;
use crate::virtio::blk::{BlkOutcome, BlkRequest};
use crate::virtio::mock::MockQueue;
use viv_arch::virtio::blk as reg;

const QUEUES: u16 = 4;
/// Requests of a queue: all four together have 256.
const EACH: usize = 64;
/// Not yet answered.
const OPEN: u8 = 0xff;

fn disk() -> Blk {
    Blk::new(BlkSettings {
        bytes: 1 << 20,
        read_only: false,
        block_size: 512,
        queues: QUEUES,
        id: String::new(),
    })
}

/// Fills all queues; gives where each request's status is.
fn fill<T: Registers>(driver: &mut MockDriver<T>) -> Vec<(Gpa, u32)> {
    let mut statuses = Vec::new();
    for n in 0..EACH * usize::from(QUEUES) {
        let kind = [reg::T_IN, reg::T_OUT, reg::T_FLUSH][n % 3];
        let header = driver.buffer(&(u128::from(kind) | (n as u128) << 64).to_le_bytes());
        let status = driver.buffer(&[OPEN]);
        let data = driver.buffer(&[0xee; 512]);
        let (readable, writable) = match kind {
            reg::T_IN => (vec![header], vec![data, status]),
            reg::T_OUT => (vec![header, data], vec![status]),
            _ => (vec![header], vec![status]),
        };
        driver.submit((n % usize::from(QUEUES)) as u16, &readable, &writable).expect("there is room");
        statuses.push(status);
    }
    statuses
}

/// What the driver's memory has at the rings' used entries.
fn used<T>(driver: &MockDriver<T>) -> Vec<u8> {
    let rings = driver.queues.iter().map(|queue| queue.rings[2]);
    rings
        .flat_map(|ring| {
            let mut bytes = vec![0; 0x1000];
            driver.memory.read(ring, &mut bytes).unwrap();
            bytes
        })
        .collect()
}

#[test]
fn a_reset_with_256_requests_in_flight_touches_nothing_of_the_driver_afterwards() {
    let rounds: usize = std::env::var("VIV_RESETS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let memory = memory();
    let mut transport = function(disk(), &memory);
    for round in 0..rounds {
        memory.fill(Gpa(0), u64::from(QUEUES) * MockQueue::LEN, 0).unwrap();
        let mut driver = MockDriver::new(transport, memory.clone(), SPLIT, QUEUES, 256);
        let statuses = fill(&mut driver);
        assert_eq!(driver.transport.device().0.in_flight(), 256);
        // Some of them may be with the I/O threads already, and some of those be done.
        let mut taken: Vec<BlkRequest> = Vec::new();
        let with_threads = round * 37 % 2 == 0;
        if with_threads {
            taken = driver.transport.device().0.take_requests();
        }
        let done = if with_threads { round * 97 % 257 } else { 0 };
        for request in taken.drain(..done) {
            let (blk, mut rings) = driver.transport.device();
            blk.complete(&mut rings, request.tag, BlkOutcome::Ok);
        }
        let answered = |driver: &MockDriver<_>| {
            statuses.iter().filter(|status| driver.content(**status)[0] != OPEN).count()
        };
        assert_eq!(answered(&driver), done, "round {round}");
        driver.transport.set_status(0);
        let before = used(&driver);
        for (left, request) in taken.iter().enumerate().rev() {
            assert_ne!(driver.transport.status(), 0, "round {round}: {left} are still worked on");
            let (blk, mut rings) = driver.transport.device();
            blk.complete(&mut rings, request.tag, BlkOutcome::IoError);
        }
        assert_eq!(driver.transport.status(), 0, "round {round}: the reset is complete");
        assert_eq!(driver.transport.device().0.take_requests(), [], "round {round}: nothing is left to do");
        assert_eq!(answered(&driver), done, "round {round}: none was answered after the reset");
        assert!(used(&driver) == before, "round {round}: the rings are the driver's");
        assert_eq!(driver.transport.device().0.in_flight(), 0);
        transport = driver.transport;
    }
}
