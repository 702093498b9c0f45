//! Two 8259A interrupt controllers, the second on the first one's input 2 (Intel 8259A data sheet,
//! 231468-003), with the edge/level control registers of the ISA bridge (82371AB PIIX4 §4.2.5).
//!
//! Three windows: ports 0x20-0x21 (first), 0xa0-0xa1 (second) and 0x4d0-0x4d1 (ELCR).

use super::{read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};

/// The window of the first controller, ports 0x20 and 0x21.
pub const FIRST_WINDOW: u8 = 0;
/// The window of the second controller, ports 0xa0 and 0xa1.
pub const SECOND_WINDOW: u8 = 1;
/// The window of the edge/level control registers, ports 0x4d0 and 0x4d1.
pub const ELCR_WINDOW: u8 = 2;
/// Inputs of the pair; input 2 is the cascade.
pub const LINES: u8 = 16;

/// First initialization command word (8259A "ICW1").
mod icw1 {
    pub(super) const ICW4_NEEDED: u8 = 1 << 0;
    pub(super) const SINGLE: u8 = 1 << 1;
    pub(super) const LEVEL: u8 = 1 << 3;
    pub(super) const INIT: u8 = 1 << 4;
}

/// Fourth initialization command word (8259A "ICW4").
mod icw4 {
    pub(super) const AUTO_EOI: u8 = 1 << 1;
    pub(super) const SPECIAL_FULLY_NESTED: u8 = 1 << 4;
}

/// Third operation command word (8259A "OCW3"); bit 3 with bit 4 clear selects it.
mod ocw3 {
    pub(super) const SELECT: u8 = 1 << 3;
    pub(super) const READ_ISR: u8 = 1 << 0;
    pub(super) const READ_ENABLE: u8 = 1 << 1;
    pub(super) const POLL: u8 = 1 << 2;
    pub(super) const SPECIAL_MASK: u8 = 1 << 5;
    pub(super) const SPECIAL_MASK_ENABLE: u8 = 1 << 6;
}

/// The input of the first controller that the second one drives.
const CASCADE: u8 = 2;
/// Inputs that can be level-triggered: not timer, keyboard, cascade, RTC and coprocessor (PIIX4 §4.2.5).
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// Which initialization word comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Operation,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug)]
struct Chip {
    lines: u8,
    irr: u8,
    isr: u8,
    imr: u8,
    elcr: u8,
    /// Input with the lowest priority; the next one has the highest.
    lowest: u8,
    vector_base: u8,
    expect: Expect,
    icw1: u8,
    /// The input that another controller drives, as a bit; 0 for the second.
    cascade: u8,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    poll: bool,
    read_isr: bool,
}

impl Chip {
    fn new(cascade: u8) -> Chip {
        Chip {
            lines: 0,
            irr: 0,
            isr: 0,
            imr: 0,
            elcr: 0,
            lowest: 7,
            vector_base: 0,
            expect: Expect::Operation,
            icw1: 0,
            cascade,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            poll: false,
            read_isr: false,
        }
    }

    fn level_triggered(&self) -> u8 {
        if self.icw1 & icw1::LEVEL != 0 { 0xff } else { self.elcr }
    }

    fn set_line(&mut self, input: u8, level: bool) {
        let bit = 1u8 << (input & 7);
        let rising = level && self.lines & bit == 0;
        self.lines = if level { self.lines | bit } else { self.lines & !bit };
        if self.level_triggered() & bit != 0 {
            self.irr = if level { self.irr | bit } else { self.irr & !bit };
        } else if rising {
            self.irr |= bit;
        }
    }

    /// The input of highest priority in `set`, and its distance from the top.
    fn highest(&self, set: u8) -> Option<(u8, u8)> {
        (0..8)
            .map(|rank| ((self.lowest.wrapping_add(1).wrapping_add(rank)) & 7, rank))
            .find(|(input, _)| set & (1 << input) != 0)
    }

    /// The request that interrupts now (8259A "Fully nested mode").
    fn request(&self) -> Option<u8> {
        let (input, rank) = self.highest(self.irr & !self.imr)?;
        let mut in_service = self.isr;
        if self.special_mask {
            // What is in service but masked inhibits nothing (8259A "Special mask mode").
            in_service &= !self.imr;
        }
        if self.special_fully_nested
            && let Some((_, cascade)) = self.highest(in_service & self.cascade)
        {
            // Further requests of the cascade's own level are let through (8259A "Special fully nested mode").
            in_service &= !self.cascade;
            if cascade < rank {
                return None;
            }
        }
        match self.highest(in_service) {
            Some((_, serving)) if serving <= rank => None,
            _ => Some(input),
        }
    }

    /// The acknowledge cycle for `input`.
    fn accept(&mut self, input: u8) {
        let bit = 1u8 << (input & 7);
        if self.level_triggered() & bit == 0 {
            self.irr &= !bit;
        }
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = input & 7;
            }
        } else {
            self.isr |= bit;
        }
    }

    fn read(&mut self, offset: u64) -> u8 {
        if std::mem::take(&mut self.poll) {
            // A read after the poll command is the acknowledge (8259A "Poll command").
            return match self.request() {
                Some(input) => {
                    self.accept(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (offset, self.read_isr) {
            (0, false) => self.irr,
            (0, true) => self.isr,
            _ => self.imr,
        }
    }

    fn write(&mut self, offset: u64, value: u8) {
        if offset == 0 {
            if value & icw1::INIT != 0 {
                self.initialize(value);
            } else if value & ocw3::SELECT != 0 {
                self.write_ocw3(value);
            } else {
                self.write_ocw2(value);
            }
            return;
        }
        self.expect = match self.expect {
            Expect::Operation => {
                self.imr = value;
                Expect::Operation
            }
            Expect::Icw2 => {
                self.vector_base = value & 0xf8;
                if self.icw1 & icw1::SINGLE == 0 { Expect::Icw3 } else { self.after_icw3() }
            }
            // The wiring is fixed: there is nothing to configure.
            Expect::Icw3 => self.after_icw3(),
            Expect::Icw4 => {
                self.auto_eoi = value & icw4::AUTO_EOI != 0;
                self.special_fully_nested = value & icw4::SPECIAL_FULLY_NESTED != 0;
                Expect::Operation
            }
        };
    }

    fn after_icw3(&self) -> Expect {
        if self.icw1 & icw1::ICW4_NEEDED != 0 { Expect::Icw4 } else { Expect::Operation }
    }

    /// ICW1 clears the edge circuit, the mask, the priorities and the special modes (8259A "ICW1").
    fn initialize(&mut self, value: u8) {
        let (lines, elcr) = (self.lines, self.elcr);
        *self = Chip { lines, elcr, icw1: value, expect: Expect::Icw2, ..Chip::new(self.cascade) };
        self.irr = lines & self.level_triggered();
    }

    /// End of interrupt and rotation (8259A "OCW2").
    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        let highest = || {
            // In special mask mode a masked level is not ended by a non-specific command.
            let ending = if self.special_mask { self.isr & !self.imr } else { self.isr };
            self.highest(ending).map(|(input, _)| input)
        };
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                if let Some(input) = highest() {
                    self.isr &= !(1 << input);
                }
            }
            0b101 => {
                if let Some(input) = highest() {
                    self.isr &= !(1 << input);
                    self.lowest = input;
                }
            }
            0b011 => self.isr &= !(1 << level),
            0b111 => {
                self.isr &= !(1 << level);
                self.lowest = level;
            }
            0b110 => self.lowest = level,
            _ => {}
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        if value & ocw3::SPECIAL_MASK_ENABLE != 0 {
            self.special_mask = value & ocw3::SPECIAL_MASK != 0;
        }
        if value & ocw3::POLL != 0 {
            self.poll = true;
        } else if value & ocw3::READ_ENABLE != 0 {
            self.read_isr = value & ocw3::READ_ISR != 0;
        }
    }
}

/// The pair of controllers.
#[derive(Clone, Debug)]
pub struct Pic {
    first: Chip,
    second: Chip,
}

impl Default for Pic {
    fn default() -> Pic {
        Pic::new()
    }
}

impl Pic {
    /// Both controllers after power-on: not initialized, nothing masked, nothing pending.
    pub fn new() -> Pic {
        Pic { first: Chip::new(1 << CASCADE), second: Chip::new(0) }
    }

    /// Sets the level of input `irq` (0 to 15; the cascade and numbers beyond have no input).
    pub fn set_line(&mut self, irq: u8, level: bool) {
        match irq {
            CASCADE => {}
            0..=7 => self.first.set_line(irq, level),
            8..=15 => self.second.set_line(irq - 8, level),
            _ => {}
        }
        self.update_cascade();
    }

    /// The pair's interrupt output (INTR).
    pub fn output(&self) -> bool {
        self.first.request().is_some()
    }

    /// The processor's acknowledge cycle: the vector of the highest request. A request that has gone away
    /// meanwhile gives input 7's vector without setting it in service (8259A "Interrupt sequence").
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.first.request() {
            None => self.first.vector_base | 7,
            Some(CASCADE) => {
                self.first.accept(CASCADE);
                match self.second.request() {
                    None => self.second.vector_base | 7,
                    Some(input) => {
                        self.second.accept(input);
                        self.second.vector_base | input
                    }
                }
            }
            Some(input) => {
                self.first.accept(input);
                self.first.vector_base | input
            }
        };
        self.update_cascade();
        vector
    }

    /// The second controller's output is the first one's input 2. An output that stays up after an
    /// acknowledge is a new edge: the real one falls for the length of the acknowledge cycle.
    fn update_cascade(&mut self) {
        let output = self.second.request().is_some();
        let cascade = 1u8 << CASCADE;
        if !output {
            self.first.irr &= !cascade;
        } else if self.first.irr & cascade == 0 {
            self.first.lines &= !cascade;
        }
        self.first.set_line(CASCADE, output);
    }
}

impl BusDevice for Pic {
    fn read(&mut self, access: Access, _now: Ns) -> u64 {
        let value = read_byte_lanes(access, |offset| match (access.window, offset) {
            (FIRST_WINDOW, 0..=1) => self.first.read(offset),
            (SECOND_WINDOW, 0..=1) => self.second.read(offset),
            (ELCR_WINDOW, 0) => self.first.elcr,
            (ELCR_WINDOW, 1) => self.second.elcr,
            _ => 0xff,
        });
        self.update_cascade();
        value
    }

    fn write(&mut self, access: Access, value: u64, _now: Ns) {
        write_byte_lanes(access, value, |offset, byte| match (access.window, offset) {
            (FIRST_WINDOW, 0..=1) => self.first.write(offset, byte),
            (SECOND_WINDOW, 0..=1) => self.second.write(offset, byte),
            (ELCR_WINDOW, 0) => self.first.elcr = byte & ELCR_MASK[0],
            (ELCR_WINDOW, 1) => self.second.elcr = byte & ELCR_MASK[1],
            _ => {}
        });
        self.update_cascade();
    }

    fn irq(&self) -> bool {
        self.output()
    }

    /// The lines are the devices': they keep their levels.
    fn reset(&mut self) {
        let lines = [self.first.lines & !(1 << CASCADE), self.second.lines];
        *self = Pic::new();
        self.first.lines = lines[0];
        self.second.lines = lines[1];
    }
}

#[cfg(test)]
mod tests {
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
}
