//! Tests of the serial port, named after the data sheet.
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn read(uart: &mut Uart, offset: u64) -> u8 {
    uart.read(Access { window: 0, offset, size: 1 }, 0) as u8
}
fn write(uart: &mut Uart, offset: u64, value: u8) {
    uart.write(Access { window: 0, offset, size: 1 }, value.into(), 0);
}

/// What a driver does before it sends and receives.
fn opened() -> Uart {
    let mut uart = Uart::new();
    write(&mut uart, reg::IIR_FCR, 0x81);
    write(&mut uart, reg::MCR, mcr::OUT2 | mcr::RTS | mcr::DTR);
    uart
}

#[test]
fn a_driver_finds_a_16550a() {
    let mut uart = Uart::new();
    for value in [0, 0x0f] {
        write(&mut uart, reg::IER, value);
        assert_eq!(read(&mut uart, reg::IER), value);
    }
    write(&mut uart, reg::IER, 0xff);
    assert_eq!(read(&mut uart, reg::IER), 0x0f, "only four enables exist (8.6)");
    write(&mut uart, reg::IER, 0);
    write(&mut uart, reg::MCR, 0x1a);
    assert_eq!(read(&mut uart, reg::MSR) & 0xf0, 0x90, "loopback shows RTS as CTS and OUT2 as DCD");
    write(&mut uart, reg::MCR, 0);
    write(&mut uart, reg::IIR_FCR, 0x21);
    assert_eq!(read(&mut uart, reg::IIR_FCR), 0xc1);
    write(&mut uart, reg::SCR, 0xa5);
    assert_eq!(read(&mut uart, reg::SCR), 0xa5);
    write(&mut uart, reg::LCR, 0x83);
    write(&mut uart, reg::DATA, 0x34);
    write(&mut uart, reg::IER, 0x12);
    assert_eq!((read(&mut uart, reg::DATA), read(&mut uart, reg::IER)), (0x34, 0x12));
    write(&mut uart, reg::LCR, 0x03);
    assert_eq!(read(&mut uart, reg::IER), 0);
    assert!(uart.transmitted().is_empty());
}

/// The test of the Linux 8250 driver for chips that do not raise the interrupt again.
#[test]
fn enabling_the_empty_interrupt_raises_it_each_time() {
    let mut uart = opened();
    for _ in 0..2 {
        write(&mut uart, reg::IER, ier::TRANSMITTER_EMPTY);
        assert!(uart.irq());
        assert_eq!(read(&mut uart, reg::IIR_FCR) & 0x0f, iir::TRANSMITTER_EMPTY);
        assert!(!uart.irq(), "reading the identification answers it (table IV)");
        assert_eq!(read(&mut uart, reg::IIR_FCR) & 0x0f, iir::NONE);
        write(&mut uart, reg::IER, 0);
    }
    write(&mut uart, reg::IER, ier::TRANSMITTER_EMPTY);
    read(&mut uart, reg::IIR_FCR);
    write(&mut uart, reg::DATA, b'x');
    assert!(uart.irq(), "the byte has left, the register is empty again");
    assert_eq!(uart.transmitted(), b"x");
}

#[test]
fn a_full_wire_makes_the_transmitter_busy_until_it_is_drained() {
    let mut uart = opened();
    write(&mut uart, reg::IER, ier::TRANSMITTER_EMPTY);
    for _ in 0..WIRE_LEN_MAX {
        write(&mut uart, reg::DATA, b'a');
    }
    assert_eq!(read(&mut uart, reg::LSR) & 0x60, 0);
    assert!(!uart.irq());
    assert_eq!(uart.transmitted().len(), WIRE_LEN_MAX);
    assert!(uart.irq());
    assert_eq!(read(&mut uart, reg::LSR) & 0x60, 0x60);
}

#[test]
fn input_between_the_interrupt_enable_and_the_fifos_is_kept() {
    let mut uart = Uart::new();
    write(&mut uart, reg::MCR, mcr::OUT2);
    write(&mut uart, reg::IER, ier::RECEIVED_DATA);
    assert_eq!(uart.receive(b"exit"), 1);
    write(&mut uart, reg::IIR_FCR, 0x81);
    assert_eq!(read(&mut uart, reg::DATA), b'e');
    assert_eq!(uart.receive(b"xit"), 3);
    write(&mut uart, reg::IIR_FCR, 0x83);
    assert_eq!(read(&mut uart, reg::LSR) & 1, 0, "a reset that is asked for is one");
}

#[test]
fn input_waits_until_the_driver_can_take_it() {
    let mut uart = Uart::new();
    assert!(!uart.ready_for_input());
    write(&mut uart, reg::IIR_FCR, 0x07);
    assert!(!uart.ready_for_input());
    write(&mut uart, reg::IIR_FCR, 0x81);
    write(&mut uart, reg::MCR, mcr::OUT2);
    write(&mut uart, reg::IER, ier::RECEIVED_DATA);
    assert!(uart.ready_for_input());
    write(&mut uart, reg::IIR_FCR, 0);
    write(&mut uart, reg::IER, ier::ALL);
    assert!(!uart.ready_for_input(), "Linux's autoconfig");
    write(&mut uart, reg::IER, ier::RECEIVED_DATA);
    write(&mut uart, reg::IIR_FCR, 0x81);
    assert_eq!(uart.receive(&[7; 64]), FIFO_LEN);
    assert!(!uart.ready_for_input());
    assert_eq!(read(&mut uart, reg::IIR_FCR) & 0x0f, iir::RECEIVED_DATA);
    for _ in 0..9 {
        assert_eq!(read(&mut uart, reg::DATA), 7);
    }
    assert_eq!(read(&mut uart, reg::IIR_FCR) & 0x0f, iir::CHARACTER_TIMEOUT, "below the trigger of 8");
    assert!(uart.irq());
}

/// Input without end comes as one interrupt after another, never as one that does not end.
#[test]
fn each_burst_of_input_is_an_edge() {
    let mut uart = opened();
    write(&mut uart, reg::IER, ier::RECEIVED_DATA);
    for _ in 0..3 {
        assert!(uart.ready_for_input() && !uart.irq());
        assert_eq!(uart.receive(&[1; 20]), FIFO_LEN);
        assert!(uart.irq());
        for _ in 0..FIFO_LEN {
            assert!(!uart.ready_for_input());
            read(&mut uart, reg::DATA);
        }
        assert!(!uart.irq() && !uart.ready_for_input());
        assert_eq!(read(&mut uart, reg::LSR) & lsr::DATA_READY, 0);
        assert_eq!(read(&mut uart, reg::IIR_FCR) & 0x0f, iir::NONE);
    }
    assert_eq!(uart.deadline(), None);
}

#[test]
fn a_driver_that_only_polls_gets_the_next_burst_after_a_while() {
    let mut uart = opened();
    write(&mut uart, reg::IER, ier::RECEIVED_DATA);
    uart.receive(b"x");
    assert_eq!(uart.deadline(), None);
    uart.read(Access { window: 0, offset: reg::DATA, size: 1 }, 5000);
    assert_eq!(uart.deadline(), Some(5000 + QUIET_NS));
    uart.tick(5000 + QUIET_NS - 1);
    assert!(!uart.ready_for_input());
    uart.tick(5000 + QUIET_NS);
    assert!(uart.ready_for_input());
    assert_eq!(uart.deadline(), None);
}

#[test]
fn loopback_returns_what_is_sent_and_overruns() {
    let mut uart = opened();
    write(&mut uart, reg::MCR, mcr::LOOPBACK | mcr::OUT2);
    assert_eq!(uart.receive(b"x"), 0);
    for byte in 0..17 {
        write(&mut uart, reg::DATA, byte);
    }
    assert_eq!(read(&mut uart, reg::LSR), 0x63);
    assert_eq!(read(&mut uart, reg::LSR), 0x61, "reading clears the overrun (8.3)");
    for byte in 0..16 {
        assert_eq!(read(&mut uart, reg::DATA), byte);
    }
    assert!(uart.transmitted().is_empty());
    assert!(!uart.irq());
}

#[test]
fn the_ring_indicator_reports_its_trailing_edge_only() {
    let mut uart = Uart::new();
    write(&mut uart, reg::MCR, mcr::LOOPBACK);
    read(&mut uart, reg::MSR);
    write(&mut uart, reg::MCR, mcr::LOOPBACK | mcr::OUT1);
    assert_eq!(read(&mut uart, reg::MSR), msr::RING);
    write(&mut uart, reg::MCR, mcr::LOOPBACK);
    assert_eq!(read(&mut uart, reg::MSR), msr::TRAILING_RING);
    assert_eq!(read(&mut uart, reg::MSR), 0);
}

proptest! {
    /// The line is high only for an enabled cause, and only through OUT2 (PC16550D 8.5, 8.7).
    #[test]
    fn a_masked_uart_never_interrupts(ops in vec((0u64..8, any::<u8>(), any::<bool>()), 0..200)) {
        let mut uart = Uart::new();
        for (offset, value, is_read) in ops {
            if is_read {
                read(&mut uart, offset);
            } else {
                write(&mut uart, offset, value);
                uart.receive(&[value]);
            }
            if uart.ier == 0 || uart.mcr & mcr::OUT2 == 0 {
                prop_assert!(!uart.irq());
            }
        }
    }

    /// Any access of any size is answered, and the queues keep their bounds.
    #[test]
    fn hostile_accesses_keep_the_bounds(
        ops in vec((any::<u64>(), 0u8..=9, any::<u64>(), 0u8..4), 0..300),
    ) {
        let mut uart = Uart::new();
        for (offset, size, value, op) in ops {
            let offset = if op < 2 { offset % 8 } else { offset };
            let access = Access { window: 0, offset, size };
            if op & 1 == 0 {
                uart.read(access, value);
            } else {
                uart.write(access, value, 0);
            }
            uart.receive(&value.to_le_bytes());
            prop_assert!(uart.rx.len() <= FIFO_LEN && uart.wire.len() <= WIRE_LEN_MAX);
        }
    }

    /// Every byte offered while the chip is ready comes out once and in order.
    #[test]
    fn input_is_neither_lost_nor_doubled(bytes in vec(any::<u8>(), 0..200), reads in vec(0usize..20, 1..50)) {
        let mut uart = opened();
        write(&mut uart, reg::IER, ier::RECEIVED_DATA);
        let (mut offered, mut seen) = (0, Vec::new());
        for count in reads.into_iter().cycle() {
            if seen.len() == bytes.len() {
                break;
            }
            offered += uart.receive(&bytes[offered..]);
            for _ in 0..=count {
                if read(&mut uart, reg::LSR) & lsr::DATA_READY != 0 {
                    seen.push(read(&mut uart, reg::DATA));
                }
            }
        }
        prop_assert_eq!(seen, bytes);
    }
}
