//! The local APIC's numbers (SDM vol. 3 ch. 11, "Advanced Programmable Interrupt Controller").

use crate::Ns;

/// Where it is after reset (SDM §11.4.1).
pub const BASE: u64 = 0xfee0_0000;
/// Bytes of its window.
pub const WINDOW_LEN: u64 = 0x1000;
/// Bus clock that drives the timer, Hz: one count is 1 ns when dividing by 1.
pub const BUS_HZ: u64 = 1_000_000_000;
/// A periodic timer does not ask for the host more often than this; faster periods are coalesced.
pub const PERIOD_NS_MIN: Ns = 20_000;

/// Register offsets divided by 16, which are the x2APIC's MSR numbers too (SDM tables 11-1 and 11-6).
pub(super) mod reg {
    pub(crate) const ID: u32 = 0x02;
    pub(crate) const VERSION: u32 = 0x03;
    pub(crate) const TPR: u32 = 0x08;
    pub(crate) const PPR: u32 = 0x0a;
    pub(crate) const EOI: u32 = 0x0b;
    pub(crate) const LDR: u32 = 0x0d;
    pub(crate) const DFR: u32 = 0x0e;
    pub(crate) const SVR: u32 = 0x0f;
    pub(crate) const ISR: u32 = 0x10;
    pub(crate) const TMR: u32 = 0x18;
    pub(crate) const IRR: u32 = 0x20;
    pub(crate) const ESR: u32 = 0x28;
    pub(crate) const ICR: u32 = 0x30;
    pub(crate) const ICR_HIGH: u32 = 0x31;
    pub(crate) const LVT_TIMER: u32 = 0x32;
    pub(crate) const LVT_ERROR: u32 = 0x37;
    pub(crate) const TIMER_INITIAL: u32 = 0x38;
    pub(crate) const TIMER_CURRENT: u32 = 0x39;
    pub(crate) const TIMER_DIVIDE: u32 = 0x3e;
    pub(crate) const SELF_IPI: u32 = 0x3f;
}

/// Integrated APIC, version 0x14, six LVT entries (SDM §11.4.8).
pub(super) const VERSION: u32 = 0x14 | 5 << 16;

/// IA32_APIC_BASE bits (SDM §11.4.4, §11.12.1).
pub(super) mod base {
    pub(crate) const BSP: u64 = 1 << 8;
    pub(crate) const X2APIC: u64 = 1 << 10;
    pub(crate) const ENABLE: u64 = 1 << 11;
    /// Base address, 40 physical address bits.
    pub(crate) const ADDRESS: u64 = 0xff_ffff_f000;
}

/// Local vector table entries in register order: timer, thermal, performance, LINT0, LINT1, error (SDM §11.5.1).
pub(super) const LVTS: usize = 6;
pub(super) const TIMER: usize = 0;
pub(super) const LINT0: usize = 3;
pub(super) const LINT1: usize = 4;
pub(super) const ERROR: usize = 5;
/// The bits of each that can be written (SDM figure 11-8).
pub(super) const LVT_WRITABLE: [u32; LVTS] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
pub(super) const LVT_MASKED: u32 = 1 << 16;

/// Spurious-interrupt vector register: vector and software enable (SDM §11.9).
pub(super) const SVR_ENABLE: u32 = 1 << 8;
pub(super) const SVR_WRITABLE: u32 = 0x1ff;

/// Error status bits (SDM §11.5.3).
pub(super) mod esr {
    pub(crate) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(crate) const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub(crate) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Interrupt command register (SDM figure 11-12).
pub(super) mod icr {
    pub(crate) const LOGICAL: u32 = 1 << 11;
    pub(crate) const ASSERT: u32 = 1 << 14;
    pub(crate) const LEVEL: u32 = 1 << 15;
    pub(crate) const WRITABLE: u32 = 0x000c_cfff;
}

/// Vectors below this are illegal for the APIC (SDM §11.5.2).
pub(super) const VECTOR_MIN: u8 = 16;
/// Messages that may wait for the machine; it collects them after each access.
pub(super) const OUTPUTS_MAX: usize = 64;

/// How the timer counts (SDM table 11-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}
