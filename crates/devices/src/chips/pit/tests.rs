//! Tests of the timer, named after the data sheet.
use super::super::NS_PER_S;
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn port(offset: u64) -> Access {
    Access { window: TIMER_WINDOW, offset, size: 1 }
}
fn port_61() -> Access {
    Access { window: PORT_B_WINDOW, offset: 0, size: 1 }
}
fn program(pit: &mut Pit, control: u8, count: u16, now: Ns) {
    let channel = u64::from(control >> 6);
    pit.write(port(3), control.into(), now);
    pit.write(port(channel), (count & 0xff).into(), now);
    pit.write(port(channel), (count >> 8).into(), now);
}
/// The time at which `count` more ticks than at zero have passed.
fn at(count: u64) -> Ns {
    ns_of(count)
}

#[test]
fn a_rate_generator_gives_an_edge_each_period() {
    let mut pit = Pit::new();
    assert_eq!(pit.deadline(), None);
    program(&mut pit, 0x34, 11932, 0);
    assert_eq!(pit.deadline(), Some(at(11933)));
    pit.tick(at(11933));
    assert!(pit.irq());
    assert_eq!(pit.take_edges(), 1);
    assert!(!pit.irq());
    pit.tick(at(1 + 11932 * 5));
    assert_eq!((pit.take_edges(), pit.missed()), (4, 3));
    assert_eq!(pit.deadline(), Some(at(1 + 11932 * 6)));
}

/// The loop of Linux's quick TSC calibration.
#[test]
fn channel_2_counts_while_its_gate_is_open() {
    let mut pit = Pit::new();
    pit.write(port_61(), 1, 0);
    program(&mut pit, 0xb0, 0xffff, 0);
    let mut last = 0x100;
    for step in 0..200u64 {
        let now = at(1 + 256 * step);
        pit.read(port(2), now);
        let high = pit.read(port(2), now);
        assert!(high == last - 1 || last == 0x100, "{high} after {last}");
        last = high;
    }
    assert_eq!(pit.read(port_61(), at(0xffff)) & 0x20, 0);
    assert_eq!(pit.read(port_61(), at(0x10000)) & 0x20, 0x20);
}

#[test]
fn terminal_count_raises_the_output_once() {
    let mut pit = Pit::new();
    program(&mut pit, 0x30, 100, 0);
    assert_eq!(pit.deadline(), Some(at(101)));
    pit.tick(at(100));
    assert!(!pit.irq());
    pit.tick(at(101));
    assert_eq!(pit.take_edges(), 1);
    assert_eq!(pit.deadline(), None);
    pit.tick(NS_PER_S * 100);
    assert!(!pit.irq());
}

#[test]
fn the_gate_holds_mode_0_and_triggers_mode_1() {
    let mut pit = Pit::new();
    pit.write(port_61(), 1, 0);
    program(&mut pit, 0xb0, 1000, 0);
    pit.write(port_61(), 0, at(501));
    pit.tick(at(90_000));
    assert_eq!(pit.read(port_61(), at(90_000)) & 0x20, 0);
    pit.write(port_61(), 1, at(90_000));
    assert_eq!(pit.read(port_61(), at(90_499)) & 0x20, 0);
    assert_eq!(pit.read(port_61(), at(90_500)) & 0x20, 0x20);

    pit.write(port_61(), 0, at(100_000));
    program(&mut pit, 0xb2, 10, at(100_000));
    assert_eq!(pit.read(port_61(), at(100_100)) & 0x20, 0x20, "high until the trigger");
    pit.write(port_61(), 1, at(100_200));
    assert_eq!(pit.read(port_61(), at(100_205)) & 0x20, 0);
    assert_eq!(pit.read(port_61(), at(100_211)) & 0x20, 0x20);
}

#[test]
fn a_square_wave_is_high_for_the_longer_half() {
    let mut pit = Pit::new();
    pit.write(port_61(), 1, 0);
    program(&mut pit, 0xb6, 5, 0);
    let wave: Vec<bool> = (1..11).map(|tick| pit.read(port_61(), at(tick)) & 0x20 != 0).collect();
    assert_eq!(wave, [true, true, true, false, false, true, true, true, false, false]);
}

#[test]
fn a_new_count_of_a_rate_generator_waits_for_the_period() {
    let mut pit = Pit::new();
    program(&mut pit, 0x34, 1000, 0);
    pit.write(port(0), 0x58, at(500));
    pit.write(port(0), 0x02, at(500));
    assert_eq!(pit.deadline(), Some(at(1001)));
    pit.tick(at(1001));
    assert_eq!(pit.deadline(), Some(at(1601)));
}

#[test]
fn read_back_latches_status_and_count() {
    let mut pit = Pit::new();
    program(&mut pit, 0x34, 0x1234, 0);
    pit.write(port(3), 0xc2, at(1));
    assert_eq!(pit.read(port(0), at(9)), 0xb4);
    assert_eq!(pit.read(port(0), at(99)), 0x34);
    assert_eq!(pit.read(port(0), at(999)), 0x12);
    pit.write(port(3), 0x00, at(0x35));
    pit.write(port(3), 0x00, at(0x1000));
    assert_eq!(pit.read(port(0), at(0x1001)), 0x00, "the first latch holds");
    assert_eq!(pit.read(port(0), at(0x1001)), 0x12);
}

#[test]
fn decimal_counts_wrap_at_ten_thousand() {
    let mut pit = Pit::new();
    program(&mut pit, 0x31, 0x0100, 0);
    pit.write(port(3), 0, at(52));
    assert_eq!((pit.read(port(0), at(60)), pit.read(port(0), at(60))), (0x49, 0x00));
    pit.write(port(3), 0, at(103));
    assert_eq!((pit.read(port(0), at(60)), pit.read(port(0), at(60))), (0x98, 0x99));
}

proptest! {
    /// Edges do not depend on how often the machine looks (8254 "Mode definitions").
    #[test]
    fn edges_are_a_function_of_time(
        mode in 0u8..6, count in any::<u16>(), steps in vec(0u64..3_000_000, 1..60),
    ) {
        let (mut often, mut once) = (Pit::new(), Pit::new());
        for pit in [&mut often, &mut once] {
            program(pit, 0x30 | mode << 1, count, 0);
        }
        let mut now = 0;
        for step in steps {
            now += step;
            if let Some(due) = often.deadline().filter(|due| *due <= now) {
                let length = often.channels[0].length();
                often.tick(due);
                prop_assert!(often.irq() || length < 64, "a deadline without an edge");
            }
            often.tick(now);
        }
        once.tick(now);
        prop_assert_eq!(often.channels[0].edges, once.channels[0].edges);
    }

    /// The edges that are counted are those that a probe on the output sees (8254 "Mode definitions").
    #[test]
    fn edges_are_those_of_the_output(mode in 0u8..6, count in 2u16..40, bcd: bool, length in 1u64..300) {
        let mut pit = Pit::new();
        let digits = count / 10 * 16 + count % 10;
        program(&mut pit, 0x30 | mode << 1 | u8::from(bcd), if bcd { digits } else { count }, 0);
        let (mut before, mut rises) = (mode != 0, 0);
        for tick in 1..=length {
            let due = pit.deadline();
            pit.write(port(3), 0xe2, at(tick));
            let output = pit.read(port(0), at(tick)) & 0x80 != 0;
            let rise = output && !before;
            rises += u64::from(rise);
            before = output;
            prop_assert_eq!(pit.channels[0].edges, rises, "at tick {}", tick);
            if rise && !matches!(mode, 2 | 3) {
                prop_assert_eq!(due, Some(at(tick)));
            }
        }
    }

    /// Whatever is written, time goes on and deadlines lie ahead.
    #[test]
    fn hostile_programming_never_stops_the_clock(
        ops in vec((0u8..3, 0u64..5, any::<u64>(), 0u64..1_000_000, 0u8..3), 0..300),
    ) {
        let mut pit = Pit::new();
        let mut now = 0;
        for (window, offset, value, step, op) in ops {
            now += step;
            let access = Access { window, offset, size: 1 << (value >> 62) };
            match op {
                0 => { pit.read(access, now); }
                _ => pit.write(access, value, now),
            }
            if step & 1 == 0 {
                pit.tick(now);
            }
            pit.take_edges();
            if let Some(due) = pit.deadline() {
                prop_assert!(due > now.saturating_sub(1), "due {} at {}", due, now);
            }
        }
        pit.tick(u64::MAX);
    }
}
