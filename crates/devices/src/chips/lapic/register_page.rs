//! The local APIC's saved form: the register page in xAPIC layout, as KVM's `kvm_lapic_state` has it, with
//! IA32_APIC_BASE and IA32_TSC_DEADLINE beside it.

use super::spec::*;
use super::{Lapic, Vectors};
use crate::Ns;

/// Registers in the page, one each 16 bytes (SDM table 11-1).
pub const PAGE_REGISTERS: usize = 64;

impl Lapic {
    /// The register page ([`PAGE_REGISTERS`] values). IPIs and EOIs must have been taken before; the base
    /// register and the TSC deadline are saved by [`Lapic::read_msr`].
    pub fn save_page(&mut self, now: Ns) -> Vec<u32> {
        let mut one = |register| match register {
            // In xAPIC's place in either mode, as KVM has it.
            reg::ID => self.id << 24,
            _ => self.read_register(register, now).unwrap_or(0),
        };
        (0..PAGE_REGISTERS as u32).map(&mut one).collect()
    }

    /// Replaces the whole state. Registers that are missing are as after INIT; what no APIC can hold is cut off.
    pub fn load_page(&mut self, apic_base: u64, page: &[u32], tsc_deadline: u64, now: Ns) {
        let register = |index: u32| page.get(index as usize).copied();
        let vectors = |first: u32| {
            let mut vectors = Vectors::default();
            for (word, index) in vectors.0.iter_mut().zip(first..) {
                *word = register(index).unwrap_or(0);
            }
            // The first 16 vectors cannot be requested (SDM §11.5.2).
            vectors.0[0] &= 0xffff_0000;
            vectors
        };
        let base = apic_base & (base::ADDRESS | base::BSP | base::X2APIC | base::ENABLE);
        *self = Lapic::with_base(self.id, base);
        self.tpr = register(reg::TPR).unwrap_or(0) as u8;
        self.ldr = if self.x2apic() { 0 } else { register(reg::LDR).unwrap_or(0) & 0xff00_0000 };
        self.dfr = register(reg::DFR).unwrap_or(u32::MAX) | 0x0fff_ffff;
        self.svr = register(reg::SVR).unwrap_or(0xff) & SVR_WRITABLE;
        self.isr = vectors(reg::ISR);
        self.tmr = vectors(reg::TMR);
        self.irr = vectors(reg::IRR);
        self.esr = register(reg::ESR).unwrap_or(0);
        self.icr = u64::from(register(reg::ICR_HIGH).unwrap_or(0)) << 32
            | u64::from(register(reg::ICR).unwrap_or(0) & icr::WRITABLE);
        for ((entry, writable), index) in self.lvt.iter_mut().zip(LVT_WRITABLE).zip(reg::LVT_TIMER..) {
            *entry = register(index).unwrap_or(LVT_MASKED) & writable;
        }
        self.divide = register(reg::TIMER_DIVIDE).unwrap_or(0) & 0xb;
        self.initial = register(reg::TIMER_INITIAL).unwrap_or(0);
        let left = u64::from(register(reg::TIMER_CURRENT).unwrap_or(0).min(self.initial));
        self.due = match self.timer_mode() {
            TimerMode::OneShot | TimerMode::Periodic if left != 0 => now.checked_add(left * self.divisor()),
            TimerMode::TscDeadline if tsc_deadline != 0 => Some(tsc_deadline),
            _ => None,
        };
    }
}
