//! Two 8259A interrupt controllers, the second on the first one's input 2 (Intel 8259A data sheet,
//! 231468-003), with the edge/level control registers of the ISA bridge (82371AB PIIX4 §4.2.5).
//!
//! Three windows: ports 0x20-0x21 (first), 0xa0-0xa1 (second) and 0x4d0-0x4d1 (ELCR).

use super::{read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};
use viv_arch::chips::PicSaved;

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

impl Chip {
    fn save(&self) -> PicSaved {
        PicSaved {
            lines: self.lines,
            irr: self.irr,
            isr: self.isr,
            imr: self.imr,
            elcr: self.elcr,
            highest: (self.lowest + 1) & 7,
            vector_base: self.vector_base,
            init_state: match self.expect {
                Expect::Operation => 0,
                Expect::Icw2 => 2,
                Expect::Icw3 => 3,
                Expect::Icw4 => 4,
            },
            icw1: self.icw1,
            auto_eoi: self.auto_eoi,
            rotate_on_auto_eoi: self.rotate_on_auto_eoi,
            special_fully_nested: self.special_fully_nested,
            special_mask: self.special_mask,
            poll: self.poll,
            read_isr: self.read_isr,
        }
    }

    fn load(&mut self, saved: &PicSaved) {
        *self = Chip {
            lines: saved.lines,
            irr: saved.irr,
            isr: saved.isr,
            imr: saved.imr,
            elcr: saved.elcr,
            lowest: saved.highest.wrapping_add(7) & 7,
            vector_base: saved.vector_base & 0xf8,
            expect: match saved.init_state {
                2 => Expect::Icw2,
                3 => Expect::Icw3,
                4 => Expect::Icw4,
                _ => Expect::Operation,
            },
            icw1: saved.icw1,
            cascade: self.cascade,
            auto_eoi: saved.auto_eoi,
            rotate_on_auto_eoi: saved.rotate_on_auto_eoi,
            special_fully_nested: saved.special_fully_nested,
            special_mask: saved.special_mask,
            poll: saved.poll,
            read_isr: saved.read_isr,
        };
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

    /// The whole state, the first controller's before the second's.
    pub fn save(&self) -> [PicSaved; 2] {
        [self.first.save(), self.second.save()]
    }

    /// Replaces the whole state; what no chip can hold is cut off.
    pub fn load(&mut self, saved: &[PicSaved; 2]) {
        let [first, second] = saved;
        self.first.load(&PicSaved { elcr: first.elcr & ELCR_MASK[0], ..*first });
        self.second.load(&PicSaved { elcr: second.elcr & ELCR_MASK[1], ..*second });
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
mod tests;
