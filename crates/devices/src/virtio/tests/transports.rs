use super::*;
use crate::Interrupt;
use viv_arch::virtio::{feature, mmio, pci as reg, status};

/// A feature of rings that we do not offer (§6).
const IN_ORDER: u64 = 1 << 35;

#[test]
fn features_ok_stays_clear_without_version_1_or_with_unknown_features() {
    for wanted in [0, feature::VERSION_1 | IN_ORDER] {
        let mut function = function(Rng::new(), &memory());
        function.set_status(status::ACKNOWLEDGE | status::DRIVER);
        function.set_driver_features(wanted);
        function.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
        assert_eq!(function.status(), status::ACKNOWLEDGE | status::DRIVER, "{wanted:#x}");
        function.set_status(!status::FEATURES_OK);
        assert_eq!(function.status() & status::DRIVER_OK, 0);
    }
}

#[test]
fn a_device_says_what_it_is_on_both_transports() {
    let mut function = function(Rng::new(), &memory());
    assert_eq!(function.config_read(0, 4), 0x1044_1af4);
    assert_eq!(function.config_read(8, 1), 1, "revision of a modern device");
    let mut window = VirtioMmio::new(Rng::new(), memory());
    let words: Vec<u64> = (0..4).map(|i| window.read(4 * i, 4)).collect();
    assert_eq!(words, [0x7472_6976, 2, 4, 0x1af4]);
    assert_eq!(window.queue_size_max(0), 64);
    assert_eq!(window.queue_size_max(1), 0, "no such queue");
}

#[test]
fn intx_is_a_level_until_isr_status_is_read() {
    let mut driver = on_pci(Rng::new());
    let buffer = driver.buffer(&[0; 16]);
    driver.submit(0, &[], &[buffer]).unwrap();
    let (rng, mut rings) = driver.transport.device();
    rng.provide(&mut rings, &[7; 16]);
    let function = &mut driver.transport;
    assert_eq!(PciFunction::take_interrupts(function), [Interrupt::Line(true)]);
    assert_eq!(PciFunction::take_interrupts(function), []);
    assert_eq!(function.config_read(0x06, 2) & 8, 8, "interrupt status");
    assert_eq!(function.bar_read(0, 0x1000, 1), reg::ISR_QUEUE.into());
    assert_eq!(PciFunction::take_interrupts(function), [Interrupt::Line(false)]);
    assert_eq!(function.bar_read(0, 0x1000, 1), 0);
}

#[test]
fn intx_disable_holds_the_line_down() {
    let mut driver = on_pci(Rng::new());
    driver.transport.config_write(0x04, 2, 0x406);
    let buffer = driver.buffer(&[0; 16]);
    driver.submit(0, &[], &[buffer]).unwrap();
    let (rng, mut rings) = driver.transport.device();
    rng.provide(&mut rings, &[7; 16]);
    assert_eq!(PciFunction::take_interrupts(&mut driver.transport), []);
    driver.transport.config_write(0x04, 2, 0x006);
    assert_eq!(PciFunction::take_interrupts(&mut driver.transport), [Interrupt::Line(true)]);
}

#[test]
fn with_msix_each_queue_has_its_own_message() {
    let mut driver = on_pci(Console::new(80, 25));
    let function = &mut driver.transport;
    // The MSI-X capability is the last one.
    let mut at = function.config_read(0x34, 1) as u16;
    while function.config_read(at, 1) != 0x11 {
        at = function.config_read(at + 1, 1) as u16;
    }
    let table = u64::from(function.config_read(at + 4, 4));
    for vector in 0..3 {
        function.bar_write(0, table + 16 * vector, 8, 0xfee0_1000);
        function.bar_write(0, table + 16 * vector + 8, 8, 0x40 + vector);
    }
    function.config_write(at + 2, 2, 0x8000);
    let text = driver.buffer(b"hello");
    driver.submit(1, &[text], &[]).unwrap();
    assert_eq!(
        PciFunction::take_interrupts(&mut driver.transport),
        [Interrupt::Message { address: 0xfee0_1000, data: 0x42 }]
    );
    assert_eq!(driver.transport.bar_read(0, 0x1000, 1), 0, "ISR is not used (§4.1.4.5.1)");
}

#[test]
fn the_pci_configuration_access_capability_reaches_the_registers() {
    let mut function = function(Rng::new(), &memory());
    let mut at = function.config_read(0x34, 1) as u16;
    while function.config_read(at + 3, 1) != reg::CAP_PCI_CFG.into() {
        at = function.config_read(at + 1, 1) as u16;
    }
    function.config_write(at + 8, 4, reg::NUM_QUEUES as u32);
    function.config_write(at + 12, 4, 2);
    assert_eq!(function.config_read(at + 16, 2), 1);
    function.config_write(at + 8, 4, reg::DEVICE_STATUS as u32);
    function.config_write(at + 12, 4, 1);
    function.config_write(at + 16, 1, 3);
    assert_eq!(function.status(), 3);
    // Malformed windows do nothing.
    for (offset, len) in [(1, 2), (0, 8), (u32::MAX, 1), (0x8000_0000, 4)] {
        function.config_write(at + 8, 4, offset);
        function.config_write(at + 12, 4, len);
        function.config_write(at + 16, 4, 0);
        function.config_read(at + 16, 4);
    }
    assert_eq!(function.status(), 3);
}

#[test]
fn mmio_interrupts_stay_until_acknowledged() {
    let mut driver = on_mmio(Rng::new());
    let buffer = driver.buffer(&[0; 8]);
    driver.submit(0, &[], &[buffer]).unwrap();
    let (rng, mut rings) = driver.transport.device();
    rng.provide(&mut rings, &[1; 8]);
    let window = &mut driver.transport;
    assert_eq!(window.take_interrupts(), [Interrupt::Line(true)]);
    assert_eq!(window.read(mmio::INTERRUPT_STATUS, 4), 1);
    window.write(mmio::INTERRUPT_ACK, 4, 1);
    assert_eq!(window.take_interrupts(), [Interrupt::Line(false)]);
}

#[test]
fn no_interrupt_while_the_driver_wants_none() {
    let mut driver = on_mmio(Rng::new());
    driver.queues[0].set_flags(1);
    let buffer = driver.buffer(&[0; 8]);
    driver.submit(0, &[], &[buffer]).unwrap();
    let (rng, mut rings) = driver.transport.device();
    rng.provide(&mut rings, &[1; 8]);
    assert_eq!(driver.transport.take_interrupts(), []);
    assert!(driver.queues[0].take_used().is_some());
}

#[test]
fn with_event_idx_the_device_interrupts_only_at_used_event() {
    let mut driver = on_pci(Rng::new());
    driver.queues[0].set_used_event(2);
    let mut interrupts = Vec::new();
    for _ in 0..4 {
        let buffer = driver.buffer(&[0; 8]);
        driver.submit(0, &[], &[buffer]).unwrap();
        let (rng, mut rings) = driver.transport.device();
        rng.provide(&mut rings, &[1; 8]);
        interrupts.push(PciFunction::take_interrupts(&mut driver.transport).len());
    }
    assert_eq!(interrupts, [0, 0, 1, 0], "the third entry has index 2");
    assert_eq!(driver.queues[0].avail_event(), 4, "notify me of the next");
}

#[test]
fn a_reset_device_is_as_new_and_works_again() {
    let mut driver = on_pci(Rng::new());
    let buffer = driver.buffer(&[0; 8]);
    driver.submit(0, &[], &[buffer]).unwrap();
    assert!(driver.transport.device().0.demand().is_some());
    driver.transport.set_status(0);
    assert_eq!(driver.transport.status(), 0);
    assert!(driver.transport.device().0.demand().is_none());
    let memory = driver.memory.clone();
    memory.fill(Gpa(0), 0x10000, 0).unwrap();
    let mut again = MockDriver::new(driver.transport, memory, SPLIT, 1, 32);
    let buffer = again.buffer(&[0; 8]);
    again.submit(0, &[], &[buffer]).unwrap();
    assert_eq!(again.transport.device().0.demand(), Some(8));
}

#[test]
fn registers_of_odd_sizes_and_places_are_harmless() {
    let mut driver = on_pci(Blk::new(BlkSettings {
        bytes: 1 << 20,
        read_only: false,
        block_size: 512,
        queues: 2,
        id: "x".into(),
    }));
    for offset in (0..0x8010).chain([u64::MAX, u64::MAX - 3]) {
        for size in [1, 2, 4, 8] {
            driver.transport.bar_read(0, offset, size);
            driver.transport.bar_write(0, offset, size, 0x5555_aaaa_ffff_0001);
        }
    }
    driver.transport.bar_read(5, 0, 4);
    driver.transport.bar_write(5, 0, 4, 0);
    let mut window = VirtioMmio::new(Console::new(1, 1), memory());
    for offset in (0..0x1010).chain([u64::MAX]) {
        for size in [1, 2, 4, 8] {
            window.read(offset, size);
            window.write(offset, size, 0xffff_ffff_0000_0007);
        }
    }
}
