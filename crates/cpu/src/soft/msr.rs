//! Model-specific registers, kvmclock among them.

use super::cpu::{Cpu, R};
use viv_arch::x86::{msr, seg};
use viv_mem::Gpa;

/// MCG_CAP, MCG_STATUS (SDM vol. 3 §15.3.1): no banks.
const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MTRR_VARIABLE_FIRST: u32 = 0x200;
const MTRR_VARIABLE_LAST: u32 = 0x20f;
/// Fixed-range MTRRs (SDM vol. 3 §11.11.2.2).
const MTRR_FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// AMD's hardware configuration and northbridge registers that Linux touches (APM vol. 2 appendix A).
const HWCR: u32 = 0xc001_0015;
/// The TSC counts at the P0 frequency.
pub(crate) const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// What a guest may use whose processor was another one: IBPB, the L1D flush, what needs no workaround, and AMD's SSBD for guests (SDM vol. 4
/// table 2-2, APM vol. 2 §3.2.9). There is nothing to be done here.
const PRED_CMD: u32 = 0x49;
const ARCH_CAPABILITIES: u32 = 0x10a;
const FLUSH_CMD: u32 = 0x10b;
const VIRT_SPEC_CTRL: u32 = 0xc001_011f;
const PATCH_LEVEL: u32 = 0x8b;
const SYSCFG: u32 = 0xc001_0010;
const VM_CR: u32 = 0xc001_0114;
/// Interrupts that wait (family 0xf's BKDG): nothing does.
const INT_PENDING: u32 = 0xc001_0055;
/// Northbridge configuration: where Linux enables extended configuration cycles.
const NB_CFG: u32 = 0xc001_001f;
const DE_CFG: u32 = 0xc001_1029;
/// The four performance counters and their selectors that every AMD processor has (APM vol. 2 §13.2.1). They count
/// nothing, as with a KVM that has none.
const PERF_FIRST: u32 = 0xc001_0000;
const PERF_LAST: u32 = 0xc001_0007;

/// What a saved state keeps, besides the registers that have fields of their own; and the memory types.
const KEPT: [u32; 18] = [
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::KERNEL_GS_BASE,
    msr::TSC_AUX,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::PAT,
    msr::TSC_ADJUST,
    msr::MTRR_DEF_TYPE,
    msr::MISC_ENABLE,
    msr::SPEC_CTRL,
    msr::KVM_WALL_CLOCK,
    msr::KVM_SYSTEM_TIME,
    HWCR,
    MCG_STATUS,
];

/// Every MSR of a saved state. SPEC_CTRL is none of ours: only a guest that came with it has it.
pub(crate) fn kept(cpu: &Cpu) -> impl Iterator<Item = u32> {
    let spec_ctrl = cpu.msrs.has_spec_ctrl;
    let all = KEPT.into_iter().chain(MTRR_FIXED).chain(MTRR_VARIABLE_FIRST..=MTRR_VARIABLE_LAST);
    all.filter(move |index| spec_ctrl || *index != msr::SPEC_CTRL)
}

impl Cpu {
    fn kept_in(m: &mut super::cpu::Msrs, index: u32) -> Option<&mut u64> {
        Some(match index {
            msr::STAR => &mut m.star,
            msr::LSTAR => &mut m.lstar,
            msr::CSTAR => &mut m.cstar,
            msr::SFMASK => &mut m.sfmask,
            msr::KERNEL_GS_BASE => &mut m.kernel_gs_base,
            msr::TSC_AUX => &mut m.tsc_aux,
            msr::SYSENTER_CS => &mut m.sysenter_cs,
            msr::SYSENTER_ESP => &mut m.sysenter_esp,
            msr::SYSENTER_EIP => &mut m.sysenter_eip,
            msr::PAT => &mut m.pat,
            msr::TSC_ADJUST => &mut m.tsc_offset,
            msr::MTRR_DEF_TYPE => &mut m.mtrr_def_type,
            msr::MISC_ENABLE => &mut m.misc_enable,
            msr::SPEC_CTRL => &mut m.spec_ctrl,
            msr::KVM_WALL_CLOCK => &mut m.kvm_wall_clock,
            msr::KVM_SYSTEM_TIME => &mut m.kvm_system_time,
            HWCR => &mut m.hwcr,
            MCG_STATUS => &mut m.mcg_status,
            MTRR_VARIABLE_FIRST..=MTRR_VARIABLE_LAST => {
                &mut m.mtrr_variable[(index - MTRR_VARIABLE_FIRST) as usize]
            }
            _ => &mut m.mtrr_fixed[MTRR_FIXED.iter().position(|fixed| *fixed == index)?],
        })
    }

    /// The value of one of [`kept`].
    pub(crate) fn kept_msr(&self, index: u32) -> u64 {
        let mut copy = self.msrs.clone();
        Cpu::kept_in(&mut copy, index).map_or(0, |slot| *slot)
    }

    /// Sets one of [`kept`] without side effects; others belong to nobody here.
    pub(crate) fn set_kept_msr(&mut self, index: u32, value: u64) {
        if let Some(slot) = Cpu::kept_in(&mut self.msrs, index) {
            *slot = value;
        }
    }

    pub(crate) fn read_msr(&mut self, index: u32) -> R<u64> {
        let m = &self.msrs;
        Ok(match index {
            msr::TSC => self.tsc(),
            msr::TSC_ADJUST => m.tsc_offset,
            msr::APIC_BASE | msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                let value = match self.bus().msr_read(index) {
                    Some(value) => value,
                    None => return self.gp(0),
                };
                // The local APIC has a deadline in the guest's clock.
                if index == msr::TSC_DEADLINE && value != 0 {
                    self.shared.shown.time.tsc(value).wrapping_add(m.tsc_offset)
                } else {
                    value
                }
            }
            msr::SYSENTER_CS => m.sysenter_cs,
            msr::SYSENTER_ESP => m.sysenter_esp,
            msr::SYSENTER_EIP => m.sysenter_eip,
            msr::EFER => self.efer,
            msr::STAR => m.star,
            msr::LSTAR => m.lstar,
            msr::CSTAR => m.cstar,
            msr::SFMASK => m.sfmask,
            msr::FS_BASE => self.segs[seg::FS].base,
            msr::GS_BASE => self.segs[seg::GS].base,
            msr::KERNEL_GS_BASE => m.kernel_gs_base,
            msr::TSC_AUX => m.tsc_aux,
            msr::PAT => m.pat,
            msr::MISC_ENABLE => m.misc_enable,
            msr::SPEC_CTRL if m.has_spec_ctrl => m.spec_ctrl,
            ARCH_CAPABILITIES | VIRT_SPEC_CTRL if m.has_spec_ctrl => 0,
            msr::MTRR_CAP => 0x508,
            msr::MTRR_DEF_TYPE => m.mtrr_def_type,
            MTRR_VARIABLE_FIRST..=MTRR_VARIABLE_LAST => {
                m.mtrr_variable[(index - MTRR_VARIABLE_FIRST) as usize]
            }
            MCG_CAP => 0,
            MCG_STATUS => m.mcg_status,
            msr::KVM_WALL_CLOCK => m.kvm_wall_clock,
            msr::KVM_SYSTEM_TIME => m.kvm_system_time,
            HWCR => m.hwcr,
            // A microcode level that no erratum check asks for.
            PATCH_LEVEL => 0x0100_0065,
            // LFENCE serializes.
            DE_CFG => 2,
            SYSCFG | VM_CR | INT_PENDING | NB_CFG | PERF_FIRST..=PERF_LAST => 0,
            _ => match MTRR_FIXED.iter().position(|fixed| *fixed == index) {
                Some(n) => m.mtrr_fixed[n],
                None => return self.gp(0),
            },
        })
    }

    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> R<()> {
        let canonical = self.canonical(value);
        let want_canonical = matches!(
            index,
            msr::LSTAR
                | msr::CSTAR
                | msr::FS_BASE
                | msr::GS_BASE
                | msr::KERNEL_GS_BASE
                | msr::SYSENTER_ESP
                | msr::SYSENTER_EIP
        );
        if want_canonical && !canonical {
            return self.gp(0);
        }
        match index {
            msr::TSC => {
                let now = self.shared.shown.time.tsc(self.bus().now_ns());
                self.msrs.tsc_offset = value.wrapping_sub(now);
            }
            msr::TSC_ADJUST => self.msrs.tsc_offset = value,
            msr::APIC_BASE | msr::TSC_DEADLINE | msr::X2APIC_FIRST..=msr::X2APIC_LAST => {
                if index == msr::TSC_DEADLINE && value != 0 {
                    // The local APIC counts the guest's clock.
                    let value = value.wrapping_sub(self.msrs.tsc_offset);
                    return self.bus_msr_write(index, self.shared.shown.time.ns_at(value).max(1));
                }
                return self.bus_msr_write(index, value);
            }
            msr::SYSENTER_CS => self.msrs.sysenter_cs = value & 0xffff_ffff,
            msr::SYSENTER_ESP => self.msrs.sysenter_esp = value,
            msr::SYSENTER_EIP => self.msrs.sysenter_eip = value,
            msr::EFER => return self.set_efer(value),
            msr::STAR => self.msrs.star = value,
            msr::LSTAR => self.msrs.lstar = value,
            msr::CSTAR => self.msrs.cstar = value,
            msr::SFMASK => self.msrs.sfmask = value & 0xffff_ffff,
            msr::FS_BASE => self.segs[seg::FS].base = value,
            msr::GS_BASE => self.segs[seg::GS].base = value,
            msr::KERNEL_GS_BASE => self.msrs.kernel_gs_base = value,
            msr::TSC_AUX => self.msrs.tsc_aux = value & 0xffff_ffff,
            msr::PAT => {
                if value.to_le_bytes().iter().any(|kind| !matches!(kind, 0 | 1 | 4 | 5 | 6 | 7)) {
                    return self.gp(0);
                }
                self.msrs.pat = value;
            }
            msr::MISC_ENABLE => self.msrs.misc_enable = value,
            msr::SPEC_CTRL if self.msrs.has_spec_ctrl => self.msrs.spec_ctrl = value & 7,
            // Nothing is predicted here.
            PRED_CMD | FLUSH_CMD | VIRT_SPEC_CTRL if self.msrs.has_spec_ctrl => {}
            msr::MTRR_DEF_TYPE => self.msrs.mtrr_def_type = value & 0xcff,
            MTRR_VARIABLE_FIRST..=MTRR_VARIABLE_LAST => {
                self.msrs.mtrr_variable[(index - MTRR_VARIABLE_FIRST) as usize] = value;
            }
            MCG_STATUS => self.msrs.mcg_status = value,
            msr::KVM_WALL_CLOCK => {
                self.msrs.kvm_wall_clock = value;
                self.write_wall_clock(value);
            }
            msr::KVM_SYSTEM_TIME => {
                self.msrs.kvm_system_time = value;
                self.write_system_time();
            }
            HWCR => self.msrs.hwcr = value,
            PATCH_LEVEL | SYSCFG | VM_CR | INT_PENDING | NB_CFG | DE_CFG | PERF_FIRST..=PERF_LAST => {}
            _ => match MTRR_FIXED.iter().position(|fixed| *fixed == index) {
                Some(n) => self.msrs.mtrr_fixed[n] = value,
                None => return self.gp(0),
            },
        }
        Ok(())
    }

    fn bus_msr_write(&mut self, index: u32, value: u64) -> R<()> {
        let done = self.bus().msr_write(index, value);
        self.look_again();
        if done.is_none() { self.gp(0) } else { Ok(()) }
    }

    /// `struct pvclock_wall_clock` (Linux Documentation/virt/kvm/x86/msr.rst): the wall clock when the guest's
    /// clock was zero.
    fn write_wall_clock(&mut self, gpa: u64) {
        let clock = self.shared.shown.time.kvmclock(self.bus().now_ns());
        let boot = self.bus().wall_ns().saturating_sub(clock);
        let mut data = [0; 12];
        data[0..4].copy_from_slice(&2u32.to_le_bytes());
        data[4..8].copy_from_slice(&((boot / 1_000_000_000) as u32).to_le_bytes());
        data[8..12].copy_from_slice(&((boot % 1_000_000_000) as u32).to_le_bytes());
        // An address without RAM is the guest's own loss.
        let _ = self.shared.memory.write(Gpa(gpa & !3), &data);
    }

    /// `struct pvclock_vcpu_time_info`: the guest's clock and our TSC go at one pace, so one record is right for ever.
    pub(crate) fn write_system_time(&mut self) {
        let gpa = self.msrs.kvm_system_time;
        if gpa & 1 == 0 {
            return;
        }
        let now = self.bus().now_ns();
        let time = self.shared.shown.time;
        let tsc = time.tsc(now).wrapping_add(self.msrs.tsc_offset);
        let (multiplier, shift) = time.to_nanoseconds();
        // Another even number than before: who is reading the old record notices, and begins again.
        let mut version = [0; 4];
        let _ = self.shared.memory.read(Gpa(gpa & !1), &mut version);
        let version = (u32::from_le_bytes(version) & !1).wrapping_add(2);
        let mut data = [0; 32];
        data[0..4].copy_from_slice(&version.to_le_bytes());
        data[8..16].copy_from_slice(&tsc.to_le_bytes());
        data[16..24].copy_from_slice(&time.kvmclock(now).to_le_bytes());
        data[24..28].copy_from_slice(&multiplier.to_le_bytes());
        data[28] = shift as u8;
        // PVCLOCK_TSC_STABLE_BIT.
        data[29] = 1;
        let _ = self.shared.memory.write(Gpa(gpa & !1), &data);
    }
}
