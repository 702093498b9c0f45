//! Between our registers and the architectural state that both backends share.

use super::Attention;
use super::cpu::{Cpu, RIP};
use super::flags;
use super::msr;
use crate::CpuError;
use crate::timebase::Timebase;
use viv_arch::x86::{CpuState, MsrValue, PendingEvent, efer, rflags, vector};

/// Whether the pending event is a debug exception that comes after the next instruction only.
pub(crate) fn held_back(state: &CpuState) -> bool {
    state.stack_shadow
        && state.pending.is_some_and(|event| event.vector == vector::DB && event.payload.is_some())
}

pub(crate) fn save(cpu: &Cpu) -> CpuState {
    let mut gprs = [0; 16];
    gprs.copy_from_slice(&cpu.regs[..16]);
    let mut xsave = vec![0; 576];
    xsave[..512].copy_from_slice(cpu.fpu.image());
    // MXCSR_MASK is this processor's, not the host's (SDM vol. 1 §11.6.6).
    xsave[28..32].copy_from_slice(&super::fpu::MXCSR_MASK.to_le_bytes());
    // The header: x87 and SSE are present.
    xsave[512] = 3;
    CpuState {
        gprs,
        rip: cpu.regs[RIP],
        rflags: cpu.get_rflags(),
        segments: cpu.segs,
        ldtr: cpu.ldtr,
        tr: cpu.tr,
        gdtr: cpu.gdtr,
        idtr: cpu.idtr,
        cr0: cpu.cr0,
        cr2: cpu.cr2,
        cr3: cpu.cr3,
        cr4: cpu.cr4,
        cr8: cpu.cr8,
        efer: cpu.efer,
        debug: cpu.dr,
        xcr0: cpu.xcr0,
        xsave,
        msrs: msr::kept(cpu).map(|index| MsrValue { index, value: cpu.kept_msr(index) }).collect(),
        lapic: Vec::new(),
        activity: cpu.activity,
        // A breakpoint was met by the MOV SS whose shadow holds its exception back.
        pending: (cpu.breakpoint_hits != 0).then_some(PendingEvent {
            vector: vector::DB,
            error_code: None,
            payload: Some(cpu.breakpoint_hits),
        }),
        interrupt_shadow: cpu.shadow,
        stack_shadow: cpu.stack_shadow,
        nmi_masked: cpu.nmi_masked,
        nmi_pending: cpu.nmi_waits || cpu.shared.attention(cpu.index).has(Attention::NMI),
    }
}

pub(crate) fn load(cpu: &mut Cpu, state: &CpuState) -> Result<(), CpuError> {
    let missing = |what: String| Err(CpuError::Missing { what });
    if state.xcr0 & !3 != 0 {
        return missing(format!("the vector registers of XCR0 {:#x}", state.xcr0));
    }
    if state.cr4 & !super::system::CR4_KNOWN != 0 {
        return missing(format!("CR4 {:#x}", state.cr4));
    }
    if state.efer & !(efer::SCE | efer::LME | efer::LMA | efer::NXE | efer::AUTO_IBRS) != 0 {
        return missing(format!("EFER {:#x}", state.efer));
    }
    let Some(image) = state.xsave.first_chunk::<512>() else {
        return missing("an XSAVE area of 512 bytes at least".to_string());
    };
    cpu.regs[..16].copy_from_slice(&state.gprs);
    cpu.regs[RIP] = state.rip;
    cpu.flags = flags::from_rflags(state.rflags);
    cpu.rflags = state.rflags & !rflags::STATUS | rflags::FIXED;
    cpu.segs = state.segments;
    (cpu.ldtr, cpu.tr) = (state.ldtr, state.tr);
    (cpu.gdtr, cpu.idtr) = (state.gdtr, state.idtr);
    (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.cr8) = (state.cr0, state.cr2, state.cr3, state.cr4, state.cr8);
    cpu.efer = state.efer;
    cpu.dr = state.debug;
    cpu.xcr0 = state.xcr0 | 1;
    cpu.fpu.set_image(image);
    cpu.msrs = super::cpu::Msrs {
        pat: 0x0007_0406_0007_0406,
        misc_enable: 1,
        hwcr: msr::HWCR_TSC_FREQ_SEL,
        has_spec_ctrl: state.msrs.iter().any(|msr| msr.index == viv_arch::x86::msr::SPEC_CTRL),
        ..Default::default()
    };
    for msr in &state.msrs {
        cpu.set_kept_msr(msr.index, msr.value);
    }
    cpu.msrs.renew_system_time = cpu.shared.shown.time != Timebase::default();
    cpu.activity = state.activity;
    cpu.shadow = state.interrupt_shadow;
    cpu.stack_shadow = state.stack_shadow;
    cpu.nmi_masked = state.nmi_masked;
    cpu.nmi_waits = state.nmi_pending;
    cpu.shared.attention(cpu.index).clear(Attention::NMI);
    cpu.interrupt_waits = true;
    cpu.breakpoint_hits = match held_back(state) {
        true => state.pending.and_then(|event| event.payload).unwrap_or(0),
        false => 0,
    };
    cpu.flush_tlb(true);
    cpu.update_mode();
    Ok(())
}
