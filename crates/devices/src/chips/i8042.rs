//! Keyboard controller 8042 (IBM PC/AT Technical Reference §1, "Keyboard Controller") without a keyboard
//! and without a mouse: self test, configuration, output port and the reset pulse.
//!
//! A byte for a device that is not there gets the controller's time-out answer, so that a driver which
//! probes gives up at once instead of waiting. Two windows: port 0x60 (data) and port 0x64 (status, command).

use super::{read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};
use std::collections::VecDeque;
use viv_arch::chips::I8042Saved;

/// The window of the data port, 0x60.
pub const DATA_WINDOW: u8 = 0;
/// The window of the status and command port, 0x64.
pub const COMMAND_WINDOW: u8 = 1;

/// Status register bits (PC/AT Technical Reference, "Status Register").
mod status {
    pub(super) const OUTPUT_FULL: u8 = 1 << 0;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const COMMAND: u8 = 1 << 3;
    /// The keyboard lock is open.
    pub(super) const UNLOCKED: u8 = 1 << 4;
    pub(super) const TIMEOUT: u8 = 1 << 6;
}

/// Configuration byte bits ("Command Byte").
mod config {
    pub(super) const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub(super) const SYSTEM: u8 = 1 << 2;
    pub(super) const KEYBOARD_DISABLED: u8 = 1 << 4;
    pub(super) const MOUSE_DISABLED: u8 = 1 << 5;
}

/// Output port bits ("Output Port"): the reset line is active low.
const OUTPUT_NOT_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;

/// Controller commands ("Commands (I/O Address hex 64)"); the second channel's are the PS/2's.
mod command {
    pub(super) const READ_RAM_FIRST: u8 = 0x20;
    pub(super) const READ_RAM_LAST: u8 = 0x3f;
    pub(super) const WRITE_RAM_FIRST: u8 = 0x60;
    pub(super) const WRITE_RAM_LAST: u8 = 0x7f;
    pub(super) const DISABLE_MOUSE: u8 = 0xa7;
    pub(super) const ENABLE_MOUSE: u8 = 0xa8;
    pub(super) const TEST_MOUSE: u8 = 0xa9;
    pub(super) const SELF_TEST: u8 = 0xaa;
    pub(super) const TEST_KEYBOARD: u8 = 0xab;
    pub(super) const DISABLE_KEYBOARD: u8 = 0xad;
    pub(super) const ENABLE_KEYBOARD: u8 = 0xae;
    pub(super) const READ_INPUT_PORT: u8 = 0xc0;
    pub(super) const READ_OUTPUT_PORT: u8 = 0xd0;
    pub(super) const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub(super) const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
    pub(super) const WRITE_MOUSE_BUFFER: u8 = 0xd3;
    pub(super) const WRITE_MOUSE: u8 = 0xd4;
    pub(super) const PULSE_FIRST: u8 = 0xf0;
}

/// Answer of a passed self test.
const SELF_TEST_PASSED: u8 = 0x55;
/// Answer of an interface test: the clock line is stuck low, nothing is connected.
const CLOCK_STUCK_LOW: u8 = 0x01;
/// The controller's answer for a device that does not answer.
const RESEND: u8 = 0xfe;
/// Answers that may wait for the guest.
const ANSWERS_MAX: usize = 16;

/// What the next byte at the data port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Keyboard,
    Ram(u8),
    OutputPort,
    KeyboardBuffer,
    MouseBuffer,
    Mouse,
}

/// The controller.
#[derive(Clone, Debug)]
pub struct I8042 {
    ram: [u8; 32],
    output_port: u8,
    expect: Expect,
    /// The last write went to the command port.
    command_last: bool,
    passed_self_test: bool,
    /// Waiting answers, each with whether it reports a time-out.
    answers: VecDeque<(u8, bool)>,
    last: u8,
    reset: bool,
}

impl Default for I8042 {
    fn default() -> I8042 {
        I8042::new()
    }
}

impl I8042 {
    /// A controller as the firmware leaves it: tested, both channels off, interrupts off.
    pub fn new() -> I8042 {
        let mut ram = [0; 32];
        ram[0] = config::SYSTEM | config::KEYBOARD_DISABLED | config::MOUSE_DISABLED;
        I8042 {
            ram,
            output_port: OUTPUT_NOT_RESET | OUTPUT_A20 | 0xcc,
            expect: Expect::Keyboard,
            command_last: true,
            passed_self_test: true,
            answers: VecDeque::new(),
            last: 0,
            reset: false,
        }
    }

    /// Takes whether the guest has pulled the processor's reset line.
    pub fn reset_requested(&mut self) -> bool {
        std::mem::take(&mut self.reset)
    }

    fn config(&self) -> u8 {
        self.ram[0]
    }

    fn answer(&mut self, byte: u8, timeout: bool) {
        if self.answers.len() < ANSWERS_MAX {
            self.answers.push_back((byte, timeout));
        }
    }

    fn read_status(&self) -> u8 {
        let mut value = status::UNLOCKED;
        if let Some((_, timeout)) = self.answers.front() {
            value |= status::OUTPUT_FULL;
            if *timeout {
                value |= status::TIMEOUT;
            }
        }
        if self.passed_self_test {
            value |= status::SYSTEM;
        }
        if self.command_last {
            value |= status::COMMAND;
        }
        value
    }

    fn write_command(&mut self, value: u8) {
        self.command_last = true;
        self.expect = Expect::Keyboard;
        match value {
            command::READ_RAM_FIRST..=command::READ_RAM_LAST => {
                let byte = self.ram[usize::from(value & 0x1f)];
                self.answer(byte, false);
            }
            command::WRITE_RAM_FIRST..=command::WRITE_RAM_LAST => self.expect = Expect::Ram(value & 0x1f),
            command::DISABLE_MOUSE => self.ram[0] |= config::MOUSE_DISABLED,
            command::ENABLE_MOUSE => self.ram[0] &= !config::MOUSE_DISABLED,
            command::TEST_MOUSE | command::TEST_KEYBOARD => self.answer(CLOCK_STUCK_LOW, false),
            command::SELF_TEST => {
                self.passed_self_test = true;
                self.answers.clear();
                self.answer(SELF_TEST_PASSED, false);
            }
            command::DISABLE_KEYBOARD => self.ram[0] |= config::KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => self.ram[0] &= !config::KEYBOARD_DISABLED,
            command::READ_INPUT_PORT => self.answer(0x80, false),
            command::READ_OUTPUT_PORT => self.answer(self.output_port, false),
            command::WRITE_OUTPUT_PORT => self.expect = Expect::OutputPort,
            command::WRITE_KEYBOARD_BUFFER => self.expect = Expect::KeyboardBuffer,
            command::WRITE_MOUSE_BUFFER => self.expect = Expect::MouseBuffer,
            command::WRITE_MOUSE => self.expect = Expect::Mouse,
            // Bits 0 to 3 that are zero pulse their output line low; line 0 is the processor's reset.
            command::PULSE_FIRST.. if value & OUTPUT_NOT_RESET == 0 => self.reset = true,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        self.command_last = false;
        match std::mem::replace(&mut self.expect, Expect::Keyboard) {
            Expect::Ram(index) => {
                self.ram[usize::from(index & 0x1f)] = value;
                if index == 0 {
                    self.passed_self_test = value & config::SYSTEM != 0;
                }
            }
            Expect::OutputPort => {
                self.output_port = value;
                if value & OUTPUT_NOT_RESET == 0 {
                    self.reset = true;
                }
            }
            // There is no second channel: the byte comes back as the first one's, and a driver knows (PS/2).
            Expect::KeyboardBuffer | Expect::MouseBuffer => self.answer(value, false),
            Expect::Keyboard | Expect::Mouse => {
                // Sending to the keyboard switches its channel on.
                self.ram[0] &= !config::KEYBOARD_DISABLED;
                self.answer(RESEND, true);
            }
        }
    }

    fn read_data(&mut self) -> u8 {
        if let Some((byte, _)) = self.answers.pop_front() {
            self.last = byte;
        }
        self.last
    }

    /// The whole state. A reset request must have been taken before.
    pub fn save(&self) -> I8042Saved {
        let command = match self.expect {
            Expect::Keyboard => 0,
            Expect::Ram(index) => command::WRITE_RAM_FIRST | index,
            Expect::OutputPort => command::WRITE_OUTPUT_PORT,
            Expect::KeyboardBuffer => command::WRITE_KEYBOARD_BUFFER,
            Expect::MouseBuffer => command::WRITE_MOUSE_BUFFER,
            Expect::Mouse => command::WRITE_MOUSE,
        };
        I8042Saved {
            ram: self.ram.to_vec(),
            output_port: self.output_port,
            command,
            status: self.read_status() & (status::SYSTEM | status::COMMAND),
            answers: self.answers.iter().copied().collect(),
            last: self.last,
        }
    }

    /// Replaces the whole state; what no chip can hold is cut off.
    pub fn load(&mut self, saved: &I8042Saved) {
        *self = I8042::new();
        match saved.command {
            0 => {}
            // Only commands that wait for a byte: others would act again.
            command::WRITE_RAM_FIRST..=command::WRITE_RAM_LAST
            | command::WRITE_OUTPUT_PORT..=command::WRITE_MOUSE => self.write_command(saved.command),
            _ => {}
        }
        self.ram.iter_mut().zip(&saved.ram).for_each(|(byte, saved)| *byte = *saved);
        self.output_port = saved.output_port;
        self.passed_self_test = saved.status & status::SYSTEM != 0;
        self.command_last = saved.status & status::COMMAND != 0;
        self.answers = saved.answers.iter().copied().take(ANSWERS_MAX).collect();
        self.last = saved.last;
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, access: Access, _now: Ns) -> u64 {
        read_byte_lanes(access, |offset| match (access.window, offset) {
            (DATA_WINDOW, 0) => self.read_data(),
            (COMMAND_WINDOW, 0) => self.read_status(),
            _ => 0xff,
        })
    }

    fn write(&mut self, access: Access, value: u64, _now: Ns) {
        write_byte_lanes(access, value, |offset, byte| match (access.window, offset) {
            (DATA_WINDOW, 0) => self.write_data(byte),
            (COMMAND_WINDOW, 0) => self.write_command(byte),
            _ => {}
        });
    }

    /// IRQ 1: the output buffer is full and the guest wants to know.
    fn irq(&self) -> bool {
        !self.answers.is_empty() && self.config() & config::KEYBOARD_INTERRUPT != 0
    }

    fn reset(&mut self) {
        *self = I8042::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn data() -> Access {
        Access { window: DATA_WINDOW, offset: 0, size: 1 }
    }
    fn port() -> Access {
        Access { window: COMMAND_WINDOW, offset: 0, size: 1 }
    }
    fn ask(chip: &mut I8042, value: u8) -> u64 {
        chip.write(port(), value.into(), 0);
        assert_eq!(chip.read(port(), 0) & 1, 1, "command {value:#x} has no answer");
        chip.read(data(), 0)
    }

    #[test]
    fn a_driver_probes_without_waiting() {
        let mut chip = I8042::new();
        assert_eq!(chip.read(port(), 0) & 1, 0);
        assert_eq!(ask(&mut chip, 0xaa), 0x55);
        let before = ask(&mut chip, 0x20);
        chip.write(port(), 0x60, 0);
        chip.write(data(), before | 3, 0);
        assert_eq!(ask(&mut chip, 0x20), before | 3);
        assert!(!chip.irq());
        assert_ne!(ask(&mut chip, 0xa9), 0, "no mouse");
        chip.write(data(), 0xf2, 0);
        assert!(chip.irq());
        assert_eq!(chip.read(port(), 0) & 0x41, 0x41, "time-out");
        assert_eq!(chip.read(data(), 0), 0xfe);
        assert!(!chip.irq());
        assert!(!chip.reset_requested());
    }

    #[test]
    fn the_reset_line_is_pulled_by_pulse_and_by_output_port() {
        let mut chip = I8042::new();
        chip.write(port(), 0xfe, 0);
        assert!(chip.reset_requested());
        chip.write(port(), 0xff, 0);
        assert!(!chip.reset_requested());
        chip.write(port(), 0xd1, 0);
        chip.write(data(), 0xdf, 0);
        assert!(!chip.reset_requested());
        chip.write(port(), 0xd1, 0);
        chip.write(data(), 0xfe & 0xde, 0);
        assert!(chip.reset_requested());
    }

    proptest! {
        /// Whatever is written, a guest that reads while the buffer is full comes to an end.
        #[test]
        fn the_output_buffer_can_always_be_emptied(ops in vec((0u8..3, any::<u64>(), 0u8..9), 0..200)) {
            let mut chip = I8042::new();
            for (window, value, size) in ops {
                chip.write(Access { window, offset: value >> 60, size }, value, 0);
            }
            for _ in 0..ANSWERS_MAX {
                chip.read(data(), 0);
            }
            prop_assert_eq!(chip.read(port(), 0) & 1, 0);
            prop_assert!(!chip.irq());
        }
    }
}
