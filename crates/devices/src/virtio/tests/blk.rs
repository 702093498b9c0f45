use super::*;
use crate::virtio::blk::{BlkKind, BlkOutcome};
use viv_arch::virtio::blk as reg;

const SECTORS: u64 = 128;

fn disk(read_only: bool) -> Blk {
    Blk::new(BlkSettings {
        bytes: SECTORS * 512 + 100,
        read_only,
        block_size: 512,
        queues: 2,
        id: "disk-0123456789-0123456789".into(),
    })
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    (u128::from(kind) | u128::from(sector) << 64).to_le_bytes()
}

/// Submits a request with `out` bytes to the device and `room` bytes back; gives status and what came back
/// if the device answered at once, else the request.
struct Sent {
    status: (Gpa, u32),
    data: (Gpa, u32),
}

fn send<T: Registers>(
    driver: &mut MockDriver<T>,
    queue: u16,
    header: [u8; 16],
    out: &[u8],
    room: usize,
) -> Sent {
    let mut readable = vec![driver.buffer(&header)];
    if !out.is_empty() {
        let buffer = driver.buffer(out);
        readable.push(buffer);
    }
    let data = driver.buffer(&vec![0xee; room]);
    let status = driver.buffer(&[0xff]);
    let mut writable = if room == 0 { vec![] } else { vec![data] };
    writable.push(status);
    driver.submit(queue, &readable, &writable).unwrap();
    Sent { status, data }
}

fn status<T: Registers>(driver: &MockDriver<T>, sent: &Sent) -> u8 {
    driver.content(sent.status)[0]
}

#[test]
fn a_read_fills_the_segments_and_reports_their_length() {
    let mut driver = on_pci(disk(false));
    let sent = send(&mut driver, 1, header(reg::T_IN, 5), &[], 1024);
    let requests = driver.transport.device().0.take_requests();
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!((request.kind, request.sector, request.queue), (BlkKind::Read, 5, 1));
    assert_eq!(request.segments, [Segment { gpa: sent.data.0, len: 1024 }]);
    assert_eq!(driver.queues[1].take_used(), None, "not before it is complete");
    driver.memory.write(request.segments[0].gpa, &[9; 1024]).unwrap();
    let (blk, mut rings) = driver.transport.device();
    blk.complete(&mut rings, request.tag, BlkOutcome::Ok);
    assert_eq!(status(&driver, &sent), reg::S_OK);
    assert_eq!(driver.queues[1].take_used().map(|used| used.1), Some(1025));
    assert_eq!(PciFunction::take_interrupts(&mut driver.transport).len(), 1);
    let (blk, mut rings) = driver.transport.device();
    blk.complete(&mut rings, request.tag, BlkOutcome::Ok);
    assert_eq!(driver.queues[1].take_used(), None, "a tag counts once");
}

#[test]
fn requests_may_complete_in_any_order() {
    let mut driver = on_mmio(disk(false));
    let first = send(&mut driver, 0, header(reg::T_OUT, 0), &[1; 512], 0);
    let second = send(&mut driver, 0, header(reg::T_FLUSH, 0), &[], 0);
    let requests = driver.transport.device().0.take_requests();
    assert_eq!(requests[0].kind, BlkKind::Write { durable: false });
    assert_eq!(requests[1].kind, BlkKind::Flush);
    let (blk, mut rings) = driver.transport.device();
    blk.complete(&mut rings, requests[1].tag, BlkOutcome::IoError);
    blk.complete(&mut rings, requests[0].tag, BlkOutcome::Ok);
    assert_eq!((status(&driver, &first), status(&driver, &second)), (reg::S_OK, reg::S_IOERR));
    assert_eq!(driver.transport.device().0.in_flight(), 0);
}

#[test]
fn what_lies_beyond_the_end_or_is_no_whole_sector_fails() {
    let mut driver = on_pci(disk(false));
    for (sector, len) in
        [(SECTORS, 512), (SECTORS - 1, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511)]
    {
        let read = send(&mut driver, 0, header(reg::T_IN, sector), &[], len);
        assert_eq!(status(&driver, &read), reg::S_IOERR, "{sector} {len}");
        let write = send(&mut driver, 0, header(reg::T_OUT, sector), &vec![0; len], 0);
        assert_eq!(status(&driver, &write), reg::S_IOERR, "{sector} {len}");
        while driver.queues[0].take_used().is_some() {}
    }
    let last = send(&mut driver, 0, header(reg::T_IN, SECTORS - 1), &[], 512);
    assert_eq!(status(&driver, &last), 0xff, "the last sector is fine");
    assert_eq!(driver.transport.device().0.take_requests().len(), 1);
}

#[test]
fn a_read_only_disk_refuses_every_change() {
    let mut driver = on_pci(disk(true));
    assert_eq!(driver.transport.device_features() & reg::F_RO, reg::F_RO);
    let mut range = [0; 16];
    range[8] = 1;
    for (kind, data) in
        [(reg::T_OUT, vec![0; 512]), (reg::T_DISCARD, range.to_vec()), (reg::T_WRITE_ZEROES, range.to_vec())]
    {
        let sent = send(&mut driver, 0, header(kind, 0), &data, 0);
        assert_eq!(status(&driver, &sent), reg::S_IOERR, "{kind}");
    }
    assert_eq!(driver.transport.device().0.take_requests(), []);
}

#[test]
fn discard_and_write_zeroes_check_flags_and_range() {
    let mut driver = on_pci(disk(false));
    let range = |sector: u64, sectors: u32, flags: u32| {
        (u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96).to_le_bytes()
    };
    for (kind, data, expected) in [
        (reg::T_DISCARD, range(0, 1, 1), reg::S_UNSUPP),
        (reg::T_WRITE_ZEROES, range(0, 1, 2), reg::S_UNSUPP),
        (reg::T_DISCARD, range(SECTORS, 1, 0), reg::S_IOERR),
        (reg::T_WRITE_ZEROES, range(u64::MAX, 1, 0), reg::S_IOERR),
        (reg::T_WRITE_ZEROES, range(0, u32::MAX, 0), reg::S_IOERR),
        (99, range(0, 0, 0), reg::S_UNSUPP),
    ] {
        let sent = send(&mut driver, 0, header(kind, 0), &data, 0);
        assert_eq!(status(&driver, &sent), expected, "{kind}");
    }
    send(&mut driver, 0, header(reg::T_DISCARD, 77), &range(3, 8, 0), 0);
    send(&mut driver, 0, header(reg::T_WRITE_ZEROES, 77), &range(4, 9, 1), 0);
    let requests = driver.transport.device().0.take_requests();
    let seen: Vec<_> = requests.iter().map(|request| (request.kind, request.sector)).collect();
    let zeroes = BlkKind::WriteZeroes { sectors: 9, unmap: true };
    assert_eq!(seen, [(BlkKind::Discard { sectors: 8 }, 3), (zeroes, 4)]);
}

#[test]
fn get_id_gives_twenty_bytes() {
    let mut driver = on_pci(disk(false));
    let sent = send(&mut driver, 0, header(reg::T_GET_ID, 0), &[], 20);
    assert_eq!(driver.content(sent.data), b"disk-0123456789-0123");
    assert_eq!(status(&driver, &sent), reg::S_OK);
}

#[test]
fn without_the_write_cache_writes_are_durable() {
    let mut driver = on_pci(disk(false));
    assert_eq!(driver.transport.config(32), 1);
    driver.transport.set_config(32, 0);
    send(&mut driver, 0, header(reg::T_OUT, 0), &[0; 512], 0);
    assert_eq!(driver.transport.device().0.take_requests()[0].kind, BlkKind::Write { durable: true });
}

#[test]
fn configuration_tells_capacity_in_whole_sectors() {
    let mut driver = on_pci(disk(false));
    let bytes: Vec<u8> = (0..60).map(|offset| driver.transport.config(offset)).collect();
    assert_eq!(bytes[..8], SECTORS.to_le_bytes());
    assert_eq!(bytes[20..24], 512u32.to_le_bytes());
    assert_eq!(bytes[34..36], 2u16.to_le_bytes());
    let (blk, mut rings) = driver.transport.device();
    blk.resize(&mut rings, 1 << 20);
    assert_eq!(driver.transport.config(1), 8, "2048 sectors");
    assert_eq!(PciFunction::take_interrupts(&mut driver.transport).len(), 1, "a configuration change");
}

#[test]
fn a_request_without_header_or_status_needs_a_reset() {
    for (readable, writable) in [(15, 1), (16, 0), (0, 1)] {
        let mut driver = on_pci(disk(false));
        let readable = vec![driver.buffer(&vec![0; readable])];
        let writable = if writable == 0 { vec![] } else { vec![driver.buffer(&[0])] };
        driver.submit(0, &readable, &writable).unwrap();
        assert_eq!(driver.transport.status() & 64, 64);
    }
}

#[test]
fn a_reset_is_complete_when_no_io_thread_has_the_drivers_memory() {
    let mut driver = on_pci(disk(false));
    send(&mut driver, 0, header(reg::T_IN, 0), &[], 512);
    let tag = driver.transport.device().0.take_requests()[0].tag;
    // This one has not left the device.
    send(&mut driver, 0, header(reg::T_IN, 1), &[], 512);
    driver.transport.set_status(0);
    assert_eq!(driver.transport.status(), 15, "as before the reset");
    assert_eq!(driver.transport.device().0.take_requests(), []);
    let (blk, mut rings) = driver.transport.device();
    blk.complete(&mut rings, tag, BlkOutcome::Ok);
    assert_eq!(driver.transport.status(), 0);
}

#[test]
fn an_answer_from_before_a_reset_is_forgotten() {
    let mut driver = on_pci(disk(false));
    send(&mut driver, 0, header(reg::T_IN, 0), &[], 512);
    let tag = driver.transport.device().0.take_requests()[0].tag;
    driver.transport.set_status(0);
    let memory = driver.memory.clone();
    memory.fill(Gpa(0), 0x10000, 0).unwrap();
    let mut again = MockDriver::new(driver.transport, memory, SPLIT, 2, 64);
    let (blk, mut rings) = again.transport.device();
    blk.complete(&mut rings, tag, BlkOutcome::Ok);
    assert_eq!(again.queues[0].take_used(), None);
}

#[test]
fn a_driver_that_resets_without_waiting_cannot_pile_up_requests() {
    let mut driver = on_pci(disk(false));
    let mut taken = 0;
    loop {
        for _ in 0..16 {
            send(&mut driver, 0, header(reg::T_IN, 0), &[], 512);
        }
        taken += driver.transport.device().0.take_requests().len();
        if driver.transport.status() & 64 != 0 {
            break;
        }
        assert!(taken < 10_000, "no end");
        driver.transport.set_status(0);
        let memory = driver.memory.clone();
        memory.fill(Gpa(0), 0x10000, 0).unwrap();
        driver = MockDriver::new(driver.transport, memory, SPLIT, 2, 64);
    }
}
