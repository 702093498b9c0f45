//! ACPI fixed hardware (ACPI 6.5 §4.8): power button, sleep, PM timer, general-purpose events and reset.
//!
//! One window of [`WINDOW_LEN`] ports, laid out as the `*_OFFSET` constants say; the tables' FADT names
//! them. There is no SMI command port: the chip is in ACPI mode always (§4.8.3.2.1, SCI_EN reads as one).

use super::{NS_PER_S, read_byte_lanes, write_byte_lanes};
use crate::{Access, BusDevice, Ns};
use viv_arch::chips::PmSaved;

/// PM1a event block: status, then enable, 2 bytes each (FADT `PM1a_EVT_BLK`, length 4).
pub const PM1A_EVENT_OFFSET: u16 = 0x00;
/// PM1a control block (FADT `PM1a_CNT_BLK`, length 2).
pub const PM1A_CONTROL_OFFSET: u16 = 0x04;
/// PM timer, 32 bits wide (FADT `PM_TMR_BLK`, length 4, flag `TMR_VAL_EXT`).
pub const TIMER_OFFSET: u16 = 0x08;
/// Reset register, 1 byte (FADT `RESET_REG`, flag `RESET_REG_SUP`).
pub const RESET_OFFSET: u16 = 0x10;
/// General-purpose event block 0: 2 bytes of status, 2 of enable (FADT `GPE0_BLK`, length 4).
pub const GPE0_OFFSET: u16 = 0x20;
/// Ports in the window.
pub const WINDOW_LEN: u16 = 0x30;
/// What the guest writes into the reset register (FADT `RESET_VALUE`).
pub const RESET_VALUE: u8 = 0x01;
/// General-purpose events of block 0.
pub const GPES: u8 = 16;
/// The value of SLP_TYPa that means soft-off; the DSDT's `\_S5` must say the same (§7.4.2).
pub const SLEEP_TYPE_S5: u8 = 5;

/// PM timer frequency in Hz (§4.8.2.1).
pub const TIMER_HZ: u64 = 3_579_545;

/// PM1 status and enable bits (§4.8.3.1.1, §4.8.3.1.2).
mod pm1 {
    pub(super) const TIMER: u16 = 1 << 0;
    pub(super) const BUS_MASTER: u16 = 1 << 4;
    pub(super) const GLOBAL: u16 = 1 << 5;
    pub(super) const POWER_BUTTON: u16 = 1 << 8;
    pub(super) const SLEEP_BUTTON: u16 = 1 << 9;
    pub(super) const RTC: u16 = 1 << 10;
    pub(super) const PCIE_WAKE: u16 = 1 << 14;
    pub(super) const WAKE: u16 = 1 << 15;
    pub(super) const STATUS_ALL: u16 =
        TIMER | BUS_MASTER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC | PCIE_WAKE | WAKE;
    pub(super) const ENABLE_ALL: u16 = TIMER | GLOBAL | POWER_BUTTON | SLEEP_BUTTON | RTC | PCIE_WAKE;
}

/// PM1 control bits (§4.8.3.2.1).
mod control {
    pub(super) const SCI_EN: u16 = 1 << 0;
    pub(super) const BM_RLD: u16 = 1 << 1;
    pub(super) const SLP_TYP: u16 = 7 << 10;
    pub(super) const SLP_EN: u16 = 1 << 13;
}

/// The ACPI fixed hardware.
#[derive(Clone, Debug, Default)]
pub struct Pm {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    sleep: Option<u8>,
    reset: bool,
    /// Up to here the timer's top bit has been watched.
    watched: Ns,
}

/// Timer ticks since power-on.
fn ticks(now: Ns) -> u128 {
    u128::from(now) * u128::from(TIMER_HZ) / u128::from(NS_PER_S)
}

impl Pm {
    /// The block after power-on.
    pub fn new() -> Pm {
        Pm::default()
    }

    /// Somebody presses the power button: the guest gets an SCI if it wants to know.
    pub fn press_power_button(&mut self) {
        self.status |= pm1::POWER_BUTTON;
    }

    /// Whether a press of the power button reaches the guest as an SCI.
    pub fn power_button_enabled(&self) -> bool {
        self.enable & pm1::POWER_BUTTON != 0
    }

    /// Raises general-purpose event `number` (0 to [`GPES`] - 1; others do not exist).
    pub fn raise_gpe(&mut self, number: u8) {
        self.gpe_status |= 1u16.checked_shl(number.into()).unwrap_or(0);
    }

    /// Takes the sleep type that the guest has asked for; [`SLEEP_TYPE_S5`] is power-off.
    pub fn sleep_requested(&mut self) -> Option<u8> {
        self.sleep.take()
    }

    /// Takes whether the guest has asked for a reset.
    pub fn reset_requested(&mut self) -> bool {
        std::mem::take(&mut self.reset)
    }

    /// The timer's status bit is set whenever its top bit changes (§4.8.2.1).
    fn watch_timer(&mut self, now: Ns) {
        if ticks(now) >> 31 != ticks(self.watched) >> 31 {
            self.status |= pm1::TIMER;
        }
        self.watched = self.watched.max(now);
    }

    fn read_port(&self, offset: u64, now: Ns) -> u8 {
        let half = |value: u16, index: u64| value.to_le_bytes()[(index & 1) as usize];
        match offset {
            0x00..=0x01 => half(self.status, offset),
            0x02..=0x03 => half(self.enable, offset),
            0x04..=0x05 => half(self.control | control::SCI_EN, offset),
            0x06..=0x07 => 0,
            0x08..=0x0b => (ticks(now) as u32).to_le_bytes()[(offset & 3) as usize],
            0x20..=0x21 => half(self.gpe_status, offset),
            0x22..=0x23 => half(self.gpe_enable, offset),
            _ => 0,
        }
    }

    fn write_port(&mut self, offset: u64, value: u8) {
        let (mask, shifted) = match offset & 1 {
            0 => (0x00ff, u16::from(value)),
            _ => (0xff00, u16::from(value) << 8),
        };
        match offset {
            // Status bits are cleared by writing ones (§4.8.3.1.1).
            0x00..=0x01 => self.status &= !(shifted & pm1::STATUS_ALL),
            0x02..=0x03 => self.enable = (self.enable & !mask | shifted) & pm1::ENABLE_ALL,
            0x04..=0x05 => {
                let written = self.control & !mask | shifted;
                self.control = written & (control::BM_RLD | control::SLP_TYP);
                if shifted & control::SLP_EN != 0 {
                    self.sleep = Some(((written & control::SLP_TYP) >> 10) as u8);
                }
            }
            0x10 if value == RESET_VALUE => self.reset = true,
            0x20..=0x21 => self.gpe_status &= !shifted,
            0x22..=0x23 => self.gpe_enable = self.gpe_enable & !mask | shifted,
            _ => {}
        }
    }

    /// The whole state. Requests of the guest must have been taken before.
    pub fn save(&self) -> PmSaved {
        PmSaved {
            status: self.status,
            enable: self.enable,
            control: self.control,
            gpe_status: self.gpe_status,
            gpe_enable: self.gpe_enable,
            watched: self.watched,
        }
    }

    /// Replaces the whole state; bits that do not exist are cut off.
    pub fn load(&mut self, saved: &PmSaved) {
        *self = Pm {
            status: saved.status & pm1::STATUS_ALL,
            enable: saved.enable & pm1::ENABLE_ALL,
            control: saved.control & (control::BM_RLD | control::SLP_TYP),
            gpe_status: saved.gpe_status,
            gpe_enable: saved.gpe_enable,
            watched: saved.watched,
            sleep: None,
            reset: false,
        };
    }
}

impl BusDevice for Pm {
    fn read(&mut self, access: Access, now: Ns) -> u64 {
        self.watch_timer(now);
        read_byte_lanes(access, |offset| self.read_port(offset, now))
    }

    fn write(&mut self, access: Access, value: u64, now: Ns) {
        self.watch_timer(now);
        write_byte_lanes(access, value, |offset, byte| self.write_port(offset, byte));
    }

    /// The system control interrupt, level-triggered (§4.8.1.1).
    fn irq(&self) -> bool {
        self.status & self.enable != 0 || self.gpe_status & self.gpe_enable != 0
    }

    fn deadline(&self) -> Option<Ns> {
        if self.enable & pm1::TIMER == 0 || self.status & pm1::TIMER != 0 {
            return None;
        }
        let next = ((ticks(self.watched) >> 31) + 1) << 31;
        let ns = (next * u128::from(NS_PER_S)).div_ceil(u128::from(TIMER_HZ));
        Ns::try_from(ns).ok()
    }

    fn tick(&mut self, now: Ns) {
        self.watch_timer(now);
    }

    fn reset(&mut self) {
        *self = Pm { watched: self.watched, ..Pm::new() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn access(offset: u16, size: u8) -> Access {
        Access { window: 0, offset: offset.into(), size }
    }

    #[test]
    fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
        let mut pm = Pm::new();
        pm.press_power_button();
        assert!(!pm.irq());
        pm.write(access(PM1A_EVENT_OFFSET + 2, 2), 0x100, 0);
        assert!(pm.irq());
        assert_eq!(pm.read(access(PM1A_EVENT_OFFSET, 2), 0), 0x100);
        pm.write(access(PM1A_EVENT_OFFSET, 2), 0x100, 0);
        assert!(!pm.irq());
    }

    #[test]
    fn soft_off_needs_the_sleep_enable_bit() {
        let mut pm = Pm::new();
        let s5 = u64::from(SLEEP_TYPE_S5) << 10;
        pm.write(access(PM1A_CONTROL_OFFSET, 2), s5, 0);
        assert_eq!(pm.sleep_requested(), None);
        pm.write(access(PM1A_CONTROL_OFFSET, 2), s5 | 1 << 13, 0);
        assert_eq!(pm.sleep_requested(), Some(SLEEP_TYPE_S5));
        assert_eq!(pm.sleep_requested(), None);
        assert_eq!(pm.read(access(PM1A_CONTROL_OFFSET, 2), 0), s5 | 1, "SLP_EN reads as zero, SCI_EN as one");
    }

    #[test]
    fn the_timer_runs_at_3_579545_mhz_and_reports_its_top_bit() {
        let mut pm = Pm::new();
        assert_eq!(pm.read(access(TIMER_OFFSET, 4), NS_PER_S), TIMER_HZ);
        assert_eq!(pm.deadline(), None);
        pm.write(access(PM1A_EVENT_OFFSET + 2, 2), 1, NS_PER_S);
        let due = pm.deadline().unwrap();
        pm.tick(due - 1);
        assert!(!pm.irq());
        pm.tick(due);
        assert!(pm.irq());
        assert_eq!(pm.read(access(TIMER_OFFSET, 4), due), 1 << 31);
    }

    #[test]
    fn only_the_reset_value_resets() {
        let mut pm = Pm::new();
        pm.write(access(RESET_OFFSET, 1), 0xfe, 0);
        assert!(!pm.reset_requested());
        pm.write(access(RESET_OFFSET, 1), RESET_VALUE.into(), 0);
        assert!(pm.reset_requested() && !pm.reset_requested());
    }

    proptest! {
        /// The SCI is up exactly while an enabled status bit is set (ACPI 4.8.1.1), whatever is written.
        #[test]
        fn the_sci_follows_status_and_enable(
            ops in vec((0u64..0x34, 1u8..9, any::<u64>(), any::<u8>()), 0..200),
        ) {
            let mut pm = Pm::new();
            let mut now = 0u64;
            for (offset, size, value, what) in ops {
                now = now.saturating_add(value >> 20);
                let at = Access { window: 0, offset, size };
                match what & 3 {
                    0 => { pm.read(at, now); }
                    1 => pm.write(at, value, now),
                    2 => pm.raise_gpe(what >> 2),
                    _ => pm.press_power_button(),
                }
                let enabled = pm.read(access(0, 2), now) & pm.read(access(2, 2), now);
                let gpe = pm.read(access(0x20, 2), now) & pm.read(access(0x22, 2), now);
                prop_assert_eq!(pm.irq(), enabled != 0 || gpe != 0);
                if let Some(due) = pm.deadline() {
                    prop_assert!(due > now);
                }
            }
        }
    }
}
