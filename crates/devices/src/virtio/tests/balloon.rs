use super::*;
use crate::virtio::{Balloon, Given, Giving};
use viv_arch::virtio::{balloon as reg, status};

fn page(number: u64) -> Gpa {
    Gpa(number * 4096)
}

#[test]
fn pages_in_the_balloon_are_given_to_the_machine_before_the_driver_hears_of_it() {
    let mut driver = on_pci(Balloon::new());
    let numbers: Vec<u8> = [300u32, 302, 301, 400, 400].into_iter().flat_map(u32::to_le_bytes).collect();
    let buffer = driver.buffer(&numbers);
    driver.submit(reg::QUEUE_INFLATE, &[buffer], &[]).unwrap();
    assert_eq!(driver.queues[0].take_used(), None);
    let (balloon, mut rings) = driver.transport.device();
    let given = balloon.take_given();
    assert_eq!(given, [Given { tag: 0, ranges: vec![(page(300), 3 * 4096), (page(400), 4096)] }]);
    assert_eq!(balloon.take_given(), []);
    balloon.taken(&mut rings, 0);
    assert!(driver.queues[0].take_used().is_some());
}

#[test]
fn free_pages_are_whole_pages_inside_what_was_reported() {
    let mut driver = on_pci(Balloon::new());
    let reported = [(Gpa(0x10_0000), 0x20_0000), (Gpa(0x4f_f800), 0x1900), (Gpa(0x8_0800), 0x700)];
    driver.submit(reg::QUEUE_REPORTING, &[], &reported[..1]).unwrap();
    driver.memory.write(Gpa(0x10_0000), &[1; 16]).unwrap();
    driver.submit(reg::QUEUE_REPORTING, &[], &reported[2..]).unwrap();
    assert!(driver.queues[3].take_used().is_some(), "no whole page: nothing to wait for");
    let (balloon, mut rings) = driver.transport.device();
    let given = balloon.take_given();
    assert_eq!(given.len(), 1);
    assert_eq!(given[0].ranges, [(Gpa(0x10_0000), 0x20_0000)]);
    rings.memory().give_back(given[0].ranges[0].0, given[0].ranges[0].1).unwrap();
    balloon.taken(&mut rings, given[0].tag);
    assert_eq!(driver.content((Gpa(0x10_0000), 16)), [0; 16], "what comes back is zero");
    assert!(driver.queues[3].take_used().is_some());
}

#[test]
fn a_reset_waits_for_the_machine() {
    let mut driver = on_pci(Balloon::new());
    driver.submit(reg::QUEUE_REPORTING, &[], &[(page(256), 4096)]).unwrap();
    let tag = driver.transport.device().0.take_given()[0].tag;
    driver.transport.set_status(0);
    assert_ne!(driver.transport.status(), 0, "or the driver would use pages that are about to go");
    let (balloon, mut rings) = driver.transport.device();
    balloon.taken(&mut rings, tag);
    assert_eq!(driver.transport.status(), 0);
}

#[test]
fn the_host_asks_and_the_driver_answers_in_the_configuration() {
    let mut driver = on_pci(Balloon::new());
    let (balloon, mut rings) = driver.transport.device();
    balloon.want(&mut rings, 5 << 20);
    assert_eq!(driver.transport.bar_read(0, 0x1000, 1), 2, "a configuration change");
    let wanted: Vec<u8> = (0..4).map(|at| driver.transport.config(at)).collect();
    assert_eq!(wanted, 1280u32.to_le_bytes());
    for (at, byte) in (4..).zip(1000u32.to_le_bytes()) {
        driver.transport.set_config(at, byte);
    }
    assert_eq!(driver.transport.device().0.held(), 1000 * 4096);
    driver.transport.set_config(0, 9);
    assert_eq!(driver.transport.config(0), 0, "num_pages is the host's");
}

#[test]
fn statistics_come_in_the_buffer_that_asks_for_them() {
    let mut driver = on_pci(Balloon::new());
    assert!(!{
        let (balloon, mut rings) = driver.transport.device();
        balloon.ask_stats(&mut rings)
    });
    let entries = [(reg::S_MEMFREE, 7u64 << 20), (reg::S_MEMTOT, 9 << 20), (77, 1)];
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
        .collect();
    let buffer = driver.buffer(&bytes);
    driver.submit(reg::QUEUE_STATS, &[buffer], &[]).unwrap();
    assert_eq!(driver.queues[2].take_used(), None, "it is kept until somebody asks");
    let (balloon, mut rings) = driver.transport.device();
    let (stats, batches) = balloon.stats();
    assert_eq!((stats.free, stats.total, stats.available, batches), (Some(7 << 20), Some(9 << 20), None, 1));
    assert!(balloon.ask_stats(&mut rings) && !balloon.ask_stats(&mut rings));
    assert!(driver.queues[2].take_used().is_some());
}

#[test]
fn more_page_numbers_than_anybody_needs_are_refused() {
    let mut driver = on_pci(Balloon::new());
    driver.submit(reg::QUEUE_INFLATE, &[(Gpa(0x10_0000), 1 << 20)], &[]).unwrap();
    assert_ne!(driver.transport.status() & status::DEVICE_NEEDS_RESET, 0);
}
