use super::*;
use crate::virtio::fs::{REPLY_MAX, REQUEST_MAX};
use viv_arch::virtio::fs as reg;

fn send<T: Registers>(driver: &mut MockDriver<T>, queue: u16, request: &[u8], room: usize) -> (Gpa, u32) {
    let readable = driver.buffer(request);
    let writable = driver.buffer(&vec![0xee; room]);
    driver.submit(queue, &[readable], if room == 0 { &[] } else { std::slice::from_ref(&writable) }).unwrap();
    writable
}

#[test]
fn the_configuration_has_the_tag_and_the_number_of_request_queues() {
    let mut driver = on_pci(Fs::new("share0"));
    let bytes: Vec<u8> = (0..44).map(|offset| driver.transport.config(offset)).collect();
    assert_eq!(&bytes[..8], b"share0\0\0");
    assert_eq!(bytes[36..44], [1, 0, 0, 0, 0, 0, 0, 0]);
    let mut long = on_mmio(Fs::new(&"x".repeat(50)));
    assert_eq!((long.transport.config(35), long.transport.config(36)), (b'x', 1));
}

#[test]
fn a_reply_is_told_when_it_is_complete_on_either_queue() {
    let mut driver = on_pci(Fs::new("share0"));
    for queue in [reg::QUEUE_HIPRIO, reg::QUEUE_REQUEST] {
        let reply = send(&mut driver, queue, b"request", 64);
        let requests = driver.transport.device().0.take_requests();
        let [request] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!(request.readable[0].len, 7);
        assert_eq!(request.writable, [Segment { gpa: reply.0, len: 64 }]);
        assert_eq!(driver.queues[usize::from(queue)].take_used(), None, "not before it is complete");
        let (device, mut rings) = driver.transport.device();
        device.complete(&mut rings, request.tag, 16);
        assert_eq!(driver.queues[usize::from(queue)].take_used().map(|used| used.1), Some(16));
        // The line goes up with the first one and stays.
        let interrupts = usize::from(queue == reg::QUEUE_HIPRIO);
        assert_eq!(PciFunction::take_interrupts(&mut driver.transport).len(), interrupts);
        let (device, mut rings) = driver.transport.device();
        device.complete(&mut rings, request.tag, 16);
        assert_eq!(driver.queues[usize::from(queue)].take_used(), None, "a tag counts once");
    }
}

#[test]
fn a_request_without_room_for_a_reply_is_a_request() {
    let mut driver = on_mmio(Fs::new("share0"));
    send(&mut driver, reg::QUEUE_HIPRIO, b"forget", 0);
    let (device, mut rings) = driver.transport.device();
    let request = device.take_requests().remove(0);
    assert_eq!(request.writable, []);
    device.complete(&mut rings, request.tag, 0);
    assert_eq!(driver.queues[0].take_used().map(|used| used.1), Some(0));
    assert_eq!(driver.transport.device().0.in_flight(), 0);
}

#[test]
fn requests_and_replies_are_bounded() {
    let mut driver = on_pci(Fs::new("share0"));
    let (half, memory) = (REQUEST_MAX as u32 / 2 + 1, Gpa(1 << 20));
    driver.submit(1, &[], &[(memory, 1 << 20), (memory, 1 << 20)]).unwrap();
    let request = driver.transport.device().0.take_requests().remove(0);
    assert_eq!(total(&request.writable), REPLY_MAX);
    driver.submit(1, &[(memory, half), (memory, half)], &[]).unwrap();
    assert_eq!(driver.transport.device().0.take_requests(), []);
    assert_eq!(driver.transport.status() & 64, 64, "a reset is needed");
}

#[test]
fn a_reset_is_complete_when_the_server_has_let_go_of_the_drivers_memory() {
    let mut driver = on_pci(Fs::new("share0"));
    send(&mut driver, 1, b"one", 64);
    let tag = driver.transport.device().0.take_requests()[0].tag;
    // This one has not left the device.
    send(&mut driver, 1, b"two", 64);
    driver.transport.set_status(0);
    assert_eq!(driver.transport.status(), 15, "as before the reset");
    assert_eq!(driver.transport.device().0.take_requests(), []);
    let (device, mut rings) = driver.transport.device();
    device.complete(&mut rings, tag, 64);
    assert_eq!(driver.transport.status(), 0);
    assert_eq!(driver.queues[1].take_used(), None, "its answer is forgotten");
}

#[test]
fn a_driver_that_resets_without_waiting_cannot_pile_up_requests() {
    let mut driver = on_pci(Fs::new("share0"));
    let mut taken = 0;
    while driver.transport.status() & 64 == 0 {
        assert!(taken < 20_000, "no end");
        driver.transport.set_status(0);
        let memory = driver.memory.clone();
        memory.fill(Gpa(0), 0x10000, 0).unwrap();
        driver = MockDriver::new(driver.transport, memory, SPLIT, 2, 64);
        for _ in 0..16 {
            send(&mut driver, 1, b"more", 64);
        }
        taken += driver.transport.device().0.take_requests().len();
    }
}
