//! The local APIC as model-specific registers (SDM vol. 3 §11.12 "Extended xAPIC").

use super::Lapic;
use super::spec::*;
use crate::Ns;
use viv_arch::x86::msr;

impl Lapic {
    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE or an x2APIC register; `None` is #GP (SDM §11.12.1.2).
    pub fn read_msr(&mut self, index: u32, now: Ns) -> Option<u64> {
        match index {
            msr::APIC_BASE => Some(self.base),
            msr::TSC_DEADLINE => {
                self.advance(now);
                Some(self.tsc_deadline())
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.x2apic() => match index - msr::X2APIC_FIRST {
                reg::ICR => Some(self.icr),
                reg::ICR_HIGH | reg::DFR | reg::EOI | 0x09 | 0x0c => None,
                register => self.read_register(register, now).map(u64::from),
            },
            _ => None,
        }
    }

    /// WRMSR likewise; reserved bits and read-only registers are #GP.
    pub fn write_msr(&mut self, index: u32, value: u64, now: Ns) -> Option<()> {
        match index {
            msr::APIC_BASE => self.write_base(value),
            msr::TSC_DEADLINE => {
                self.set_tsc_deadline(value, now);
                Some(())
            }
            msr::X2APIC_FIRST..=msr::X2APIC_LAST if self.x2apic() => {
                self.write_x2apic(index - msr::X2APIC_FIRST, value, now)
            }
            _ => None,
        }
    }

    fn write_x2apic(&mut self, register: u32, value: u64, now: Ns) -> Option<()> {
        let writable = match register {
            reg::TPR => 0xff,
            reg::EOI | reg::ESR => 0,
            reg::SVR => u64::from(SVR_WRITABLE),
            reg::ICR => 0xffff_ffff_0000_0000 | u64::from(icr::WRITABLE) | 1 << 12,
            // Delivery status and remote IRR are read-only, not reserved: Linux writes both back when it hands the
            // interrupts over to the 8259 on its way down.
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                u64::from(LVT_WRITABLE.get((register - reg::LVT_TIMER) as usize)? | 1 << 12 | 1 << 14)
            }
            reg::TIMER_INITIAL => 0xffff_ffff,
            reg::TIMER_DIVIDE => 0xb,
            reg::SELF_IPI => 0xff,
            _ => return None,
        };
        if value & !writable != 0 {
            return None;
        }
        match register {
            reg::ICR => {
                self.icr = value & (0xffff_ffff_0000_0000 | u64::from(icr::WRITABLE));
                self.send();
            }
            reg::SELF_IPI if (value as u8) < VECTOR_MIN => self.error(esr::SEND_ILLEGAL_VECTOR),
            reg::SELF_IPI => self.accept(value as u8, false),
            _ => return self.write_register(register, value as u32, now).then_some(()),
        }
        Some(())
    }

    /// Mode changes allowed by SDM figure 11-27; others are #GP.
    fn write_base(&mut self, value: u64) -> Option<()> {
        let writable = base::ADDRESS | base::BSP | base::X2APIC | base::ENABLE;
        let mode = |value: u64| (value & base::ENABLE != 0, value & base::X2APIC != 0);
        let forbidden = matches!(
            (mode(self.base), mode(value)),
            (_, (false, true)) | ((false, _), (true, true)) | ((true, true), (true, false))
        );
        if value & !writable != 0 || forbidden {
            return None;
        }
        let (was_enabled, was_x2apic) = mode(self.base);
        self.base = value;
        if was_enabled && !self.hardware_enabled() {
            // Switched off: the state is lost (SDM §11.4.3).
            self.init();
        } else if !was_x2apic && self.x2apic() {
            // The destination's high half has a new meaning (SDM §11.12.5.1).
            self.icr &= 0xffff_ffff;
        }
        Some(())
    }
}
