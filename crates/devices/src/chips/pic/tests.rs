//! Tests of the interrupt controllers, named after the data sheet.
use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn write(pic: &mut Pic, window: u8, offset: u64, value: u8) {
    pic.write(Access { window, offset, size: 1 }, value.into(), 0);
}
fn read(pic: &mut Pic, window: u8, offset: u64) -> u8 {
    pic.read(Access { window, offset, size: 1 }, 0) as u8
}

/// As Linux initializes the pair: vectors 0x30 and 0x38.
fn initialized(icw4: u8) -> Pic {
    let mut pic = Pic::new();
    for (window, base, icw3) in [(FIRST_WINDOW, 0x30, 4), (SECOND_WINDOW, 0x38, 2)] {
        write(&mut pic, window, 0, 0x11);
        write(&mut pic, window, 1, base);
        write(&mut pic, window, 1, icw3);
        write(&mut pic, window, 1, icw4);
        write(&mut pic, window, 1, 0);
    }
    pic
}

#[test]
fn the_mask_register_is_found_by_probing() {
    let mut pic = Pic::new();
    write(&mut pic, SECOND_WINDOW, 1, 0xff);
    write(&mut pic, FIRST_WINDOW, 1, 0xfb);
    assert_eq!(read(&mut pic, FIRST_WINDOW, 1), 0xfb);
}

#[test]
fn an_edge_is_served_once_and_nested_by_priority() {
    let mut pic = initialized(1);
    pic.set_line(4, true);
    assert!(pic.output());
    assert_eq!(pic.acknowledge(), 0x34);
    assert!(!pic.output());
    pic.set_line(5, true);
    assert!(!pic.output(), "5 is below 4, which is in service");
    pic.set_line(1, true);
    assert_eq!(pic.acknowledge(), 0x31);
    write(&mut pic, FIRST_WINDOW, 0, 0x20);
    write(&mut pic, FIRST_WINDOW, 0, 0x20);
    assert_eq!(pic.acknowledge(), 0x35);
    write(&mut pic, FIRST_WINDOW, 0, 0x65);
    assert!(!pic.output(), "the lines are still up, but edges count");
}

#[test]
fn the_second_controller_comes_through_the_cascade() {
    let mut pic = initialized(1);
    pic.set_line(8, true);
    assert_eq!(pic.acknowledge(), 0x38);
    pic.set_line(12, true);
    assert!(!pic.output());
    write(&mut pic, SECOND_WINDOW, 0, 0x60);
    write(&mut pic, FIRST_WINDOW, 0, 0x62);
    assert_eq!(pic.acknowledge(), 0x3c);
}

#[test]
fn two_requests_of_the_second_controller_are_both_served() {
    let mut pic = initialized(1);
    pic.set_line(8, true);
    pic.set_line(12, true);
    for vector in [0x38, 0x3c] {
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), vector);
        write(&mut pic, SECOND_WINDOW, 0, 0x20);
        write(&mut pic, FIRST_WINDOW, 0, 0x20);
    }
    assert!(!pic.output());
}

#[test]
fn a_level_triggered_line_asks_again_until_it_falls() {
    let mut pic = initialized(1);
    write(&mut pic, ELCR_WINDOW, 1, 0xff);
    write(&mut pic, ELCR_WINDOW, 0, 0xff);
    assert_eq!((read(&mut pic, ELCR_WINDOW, 0), read(&mut pic, ELCR_WINDOW, 1)), (0xf8, 0xde));
    pic.set_line(9, true);
    for _ in 0..3 {
        assert_eq!(pic.acknowledge(), 0x39);
        assert!(!pic.output());
        write(&mut pic, SECOND_WINDOW, 0, 0x20);
        write(&mut pic, FIRST_WINDOW, 0, 0x20);
        assert!(pic.output());
    }
    pic.set_line(9, false);
    assert!(!pic.output());
}

#[test]
fn a_request_that_went_away_gives_the_spurious_vector() {
    let mut pic = initialized(1);
    assert_eq!(pic.acknowledge(), 0x37);
    write(&mut pic, FIRST_WINDOW, 0, 0x0b);
    assert_eq!(read(&mut pic, FIRST_WINDOW, 0), 0, "nothing is in service");
}

#[test]
fn automatic_end_of_interrupt_with_rotation_is_fair() {
    let mut pic = initialized(3);
    write(&mut pic, FIRST_WINDOW, 0, 0x80);
    let mut seen = Vec::new();
    for _ in 0..4 {
        for irq in [3, 4] {
            pic.set_line(irq, false);
            pic.set_line(irq, true);
        }
        seen.push(pic.acknowledge());
    }
    assert_eq!(seen, [0x33, 0x34, 0x33, 0x34]);
}

#[test]
fn special_mask_mode_lets_lower_levels_through() {
    let mut pic = initialized(1);
    pic.set_line(3, true);
    pic.acknowledge();
    write(&mut pic, FIRST_WINDOW, 1, 0x08);
    write(&mut pic, FIRST_WINDOW, 0, 0x68);
    pic.set_line(6, true);
    assert_eq!(pic.acknowledge(), 0x36);
    write(&mut pic, FIRST_WINDOW, 0, 0x20);
    write(&mut pic, FIRST_WINDOW, 0, 0x0b);
    assert_eq!(read(&mut pic, FIRST_WINDOW, 0), 0x08, "the masked level is ended only by name");
}

#[test]
fn special_fully_nested_mode_lets_the_second_controller_nest() {
    let mut pic = initialized(0x11);
    pic.set_line(12, true);
    assert_eq!(pic.acknowledge(), 0x3c);
    pic.set_line(3, true);
    assert!(!pic.output(), "below the cascade");
    pic.set_line(8, true);
    assert_eq!(pic.acknowledge(), 0x38);
    pic.set_line(1, true);
    assert_eq!(pic.acknowledge(), 0x31);
}

#[test]
fn the_poll_command_acknowledges() {
    let mut pic = initialized(1);
    pic.set_line(5, true);
    write(&mut pic, FIRST_WINDOW, 0, 0x0c);
    assert_eq!(read(&mut pic, FIRST_WINDOW, 0), 0x85);
    assert!(!pic.output());
    write(&mut pic, FIRST_WINDOW, 0, 0x0c);
    assert_eq!(read(&mut pic, FIRST_WINDOW, 0), 0);
}

proptest! {
    /// With everything masked the output is low (8259A "Interrupt mask register"), whatever happened before.
    #[test]
    fn a_masked_pair_is_silent(ops in vec((0u8..4, any::<u64>(), 0u8..20, any::<bool>(), 0u8..5), 0..300)) {
        let mut pic = initialized(1);
        for (window, value, irq, level, op) in ops {
            let access = Access { window, offset: value >> 32 & 3, size: 1 << (value >> 62) };
            match op {
                0 => pic.write(access, value, 0),
                1 => { pic.read(access, 0); }
                2 | 3 => pic.set_line(irq, level),
                _ => { pic.acknowledge(); }
            }
        }
        for window in [FIRST_WINDOW, SECOND_WINDOW] {
            write(&mut pic, window, 0, 0x11);
            for value in [0x20, 4, 1, 0xff] {
                write(&mut pic, window, 1, value);
            }
        }
        prop_assert!(!pic.output());
    }

    /// Fully nested: with specific ends the order of service is the order of priority (8259A "Fully nested mode").
    #[test]
    fn service_follows_priority(lines in any::<u16>()) {
        let mut pic = initialized(1);
        for irq in (0..16).filter(|irq| lines & (1 << irq) != 0) {
            pic.set_line(irq, true);
        }
        let mut seen = Vec::new();
        while pic.output() {
            let vector = pic.acknowledge();
            seen.push(vector - 0x30);
            if vector >= 0x38 {
                write(&mut pic, SECOND_WINDOW, 0, 0x60 | (vector & 7));
                write(&mut pic, FIRST_WINDOW, 0, 0x62);
            } else {
                write(&mut pic, FIRST_WINDOW, 0, 0x60 | (vector & 7));
            }
        }
        let order = [0u8, 1, 8, 9, 10, 11, 12, 13, 14, 15, 3, 4, 5, 6, 7];
        let expected: Vec<u8> = order.into_iter().filter(|irq| lines & (1 << irq) != 0).collect();
        prop_assert_eq!(seen, expected);
    }
}
