//! Between KVM's structures and [`CpuState`].
use super::os;
use crate::CpuError;
use kvm_bindings::*;
use kvm_ioctls::VcpuFd;
use viv_arch::x86::{
    Activity, CpuState, MsrValue, PendingEvent, Segment, TableRegister, rflags, seg, vector,
};

/// Bytes of KVM_GET_XSAVE's area.
const XSAVE_LEN: usize = 4096;
/// FXSAVE image and XSAVE header.
const XSAVE_LEGACY: usize = 576;
/// The same with the AVX component.
const XSAVE_AVX: usize = 832;
/// KVM_X86_SHADOW_INT_MOV_SS and KVM_X86_SHADOW_INT_STI (Linux Documentation/virt/kvm/api.rst §4.31).
const SHADOW_MOV_SS: u8 = 1;
const SHADOW_STI: u8 = 2;
/// Local APIC registers that KVM keeps, one each 16 bytes.
const LAPIC_REGISTERS: usize = 64;

fn from_kvm(segment: &kvm_segment) -> Segment {
    if segment.unusable != 0 {
        return Segment { selector: segment.selector, base: segment.base, limit: segment.limit, rights: 0 };
    }
    let bit = |value: u8, at: u32| u16::from(value & 1) << at;
    let rights = u16::from(segment.type_ & 15)
        | bit(segment.s, 4)
        | u16::from(segment.dpl & 3) << 5
        | bit(segment.present, 7)
        | bit(segment.avl, 12)
        | bit(segment.l, 13)
        | bit(segment.db, 14)
        | bit(segment.g, 15);
    Segment { selector: segment.selector, base: segment.base, limit: segment.limit, rights }
}

fn to_kvm(segment: &Segment) -> kvm_segment {
    let bit = |at: u32| ((segment.rights >> at) & 1) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: (segment.rights & 15) as u8,
        s: bit(4),
        dpl: segment.dpl(),
        present: bit(7),
        avl: bit(12),
        l: bit(13),
        db: bit(14),
        g: bit(15),
        unusable: u8::from(segment.rights == 0),
        padding: 0,
    }
}

fn table_from_kvm(table: &kvm_dtable) -> TableRegister {
    TableRegister { base: table.base, limit: table.limit }
}

fn table_to_kvm(table: &TableRegister) -> kvm_dtable {
    kvm_dtable { base: table.base, limit: table.limit, ..Default::default() }
}

fn activity_from_kvm(mp_state: u32) -> Activity {
    match mp_state {
        KVM_MP_STATE_HALTED => Activity::Halted,
        KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Activity::WaitForSipi,
        _ => Activity::Running,
    }
}

fn activity_to_kvm(activity: Activity) -> u32 {
    match activity {
        Activity::Running => KVM_MP_STATE_RUNNABLE,
        Activity::Halted => KVM_MP_STATE_HALTED,
        Activity::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
        Activity::Shutdown => KVM_MP_STATE_UNINITIALIZED,
    }
}

fn pending_from_kvm(events: &kvm_vcpu_events) -> Option<PendingEvent> {
    let exception = &events.exception;
    if exception.injected != 0 {
        let error_code = (exception.has_error_code != 0).then_some(exception.error_code);
        return Some(PendingEvent { vector: exception.nr, error_code, payload: None });
    }
    if events.interrupt.injected != 0 {
        return Some(PendingEvent { vector: events.interrupt.nr, error_code: None, payload: None });
    }
    (events.nmi.injected != 0).then_some(PendingEvent { vector: 2, error_code: None, payload: None })
}

fn pending_to_kvm(state: &CpuState, events: &mut kvm_vcpu_events) {
    events.exception = Default::default();
    events.interrupt.injected = 0;
    events.nmi.injected = 0;
    match state.pending {
        Some(PendingEvent { vector: 2, .. }) => events.nmi.injected = 1,
        Some(event) if event.vector < 32 => {
            events.exception.injected = 1;
            events.exception.nr = event.vector;
            events.exception.has_error_code = u8::from(event.error_code.is_some());
            events.exception.error_code = event.error_code.unwrap_or(0);
        }
        Some(event) => {
            events.interrupt.injected = 1;
            events.interrupt.nr = event.vector;
        }
        None => {}
    }
    events.interrupt.shadow = match state.interrupt_shadow {
        false => 0,
        // Intel's processors refuse the shadow of an STI when interrupts are off (SDM vol. 3 §26.3.1.5).
        true if state.stack_shadow || state.rflags & rflags::IF == 0 => SHADOW_MOV_SS,
        true => SHADOW_STI,
    };
    events.nmi.masked = u8::from(state.nmi_masked);
    events.nmi.pending = u8::from(state.nmi_pending);
    events.flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
}

pub(super) fn save(fd: &VcpuFd, kept: &[u32]) -> Result<CpuState, CpuError> {
    let regs = fd.get_regs().map_err(os("save registers"))?;
    let sregs = fd.get_sregs().map_err(os("save system registers"))?;
    let debug = fd.get_debug_regs().map_err(os("save debug registers"))?;
    let events = fd.get_vcpu_events().map_err(os("save pending events"))?;
    let mp_state = fd.get_mp_state().map_err(os("save the vCPU's activity"))?;
    let xcrs = fd.get_xcrs().map_err(os("save XCR0"))?;
    let xsave = fd.get_xsave().map_err(os("save the floating-point state"))?;
    let lapic = fd.get_lapic().map_err(os("save the local APIC"))?;
    let xcr0 =
        xcrs.xcrs.iter().take(xcrs.nr_xcrs as usize).find(|xcr| xcr.xcr == 0).map_or(1, |xcr| xcr.value);
    let mut area: Vec<u8> = xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect();
    area.truncate(match xcr0 {
        0..=3 => XSAVE_LEGACY,
        4..=7 => XSAVE_AVX,
        _ => XSAVE_LEN,
    });
    let mut msrs = vec![MsrValue { index: viv_arch::x86::msr::APIC_BASE, value: sregs.apic_base }];
    let entries: Vec<kvm_msr_entry> =
        kept.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
    let mut list = Msrs::from_entries(&entries)
        .map_err(|_| CpuError::Missing { what: "room for the MSRs".to_string() })?;
    let count = fd.get_msrs(&mut list).map_err(os("save MSRs"))?;
    msrs.extend(list.as_slice().iter().take(count).map(|e| MsrValue { index: e.index, value: e.data }));
    let [db0, db1, db2, db3] = debug.db;
    Ok(CpuState {
        gprs: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi, regs.r8, regs.r9,
            regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
        segments: [&sregs.es, &sregs.cs, &sregs.ss, &sregs.ds, &sregs.fs, &sregs.gs].map(from_kvm),
        ldtr: from_kvm(&sregs.ldt),
        tr: from_kvm(&sregs.tr),
        gdtr: table_from_kvm(&sregs.gdt),
        idtr: table_from_kvm(&sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        debug: [db0, db1, db2, db3, debug.dr6, debug.dr7],
        xcr0,
        xsave: area,
        msrs,
        lapic: lapic
            .regs
            .chunks_exact(16)
            .map(|bytes| {
                bytes.iter().take(4).rev().fold(0, |word, byte| (word << 8) | u32::from(*byte as u8))
            })
            .collect(),
        activity: activity_from_kvm(mp_state.mp_state),
        pending: pending_from_kvm(&events),
        interrupt_shadow: events.interrupt.shadow != 0,
        // AMD's processors know one shadow only, which KVM reports as both.
        stack_shadow: events.interrupt.shadow == SHADOW_MOV_SS,
        nmi_masked: events.nmi.masked != 0,
        nmi_pending: events.nmi.pending != 0,
    })
}

pub(super) fn load(fd: &VcpuFd, state: &CpuState, kept: &[u32]) -> Result<(), CpuError> {
    let mut sregs = fd.get_sregs().map_err(os("read system registers"))?;
    // KVM takes events whose CR2 or DR6 is already set.
    let payload = |of| state.pending.filter(|event| event.vector == of).and_then(|event| event.payload);
    let segment = |index: usize| state.segments.get(index).map(to_kvm).unwrap_or_default();
    sregs.es = segment(seg::ES);
    sregs.cs = segment(seg::CS);
    sregs.ss = segment(seg::SS);
    sregs.ds = segment(seg::DS);
    sregs.fs = segment(seg::FS);
    sregs.gs = segment(seg::GS);
    sregs.ldt = to_kvm(&state.ldtr);
    sregs.tr = to_kvm(&state.tr);
    sregs.gdt = table_to_kvm(&state.gdtr);
    sregs.idt = table_to_kvm(&state.idtr);
    sregs.cr0 = state.cr0;
    sregs.cr2 = payload(vector::PF).unwrap_or(state.cr2);
    sregs.cr3 = state.cr3;
    sregs.cr4 = state.cr4;
    sregs.cr8 = state.cr8;
    sregs.efer = state.efer;
    sregs.interrupt_bitmap = Default::default();
    let msr = |index| state.msrs.iter().find(|msr| msr.index == index).map(|msr| msr.value);
    if let Some(apic_base) = msr(viv_arch::x86::msr::APIC_BASE) {
        sregs.apic_base = apic_base;
    }
    fd.set_mp_state(kvm_mp_state { mp_state: activity_to_kvm(state.activity) })
        .map_err(os("load the vCPU's activity"))?;
    fd.set_sregs(&sregs).map_err(os("load system registers"))?;
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gprs;
    let (rip, rflags) = (state.rip, state.rflags);
    let regs = kvm_regs {
        rax,
        rbx,
        rcx,
        rdx,
        rsi,
        rdi,
        rsp,
        rbp,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rip,
        rflags,
    };
    fd.set_regs(&regs).map_err(os("load registers"))?;
    load_xsave(fd, state)?;
    let [db0, db1, db2, db3, dr6, dr7] = state.debug;
    let dr6 = dr6 | payload(vector::DB).unwrap_or(0);
    let debug = kvm_debugregs { db: [db0, db1, db2, db3], dr6, dr7, ..Default::default() };
    fd.set_debug_regs(&debug).map_err(os("load debug registers"))?;
    if !state.lapic.is_empty() {
        let mut lapic = kvm_lapic_state::default();
        for (slot, word) in lapic.regs.chunks_exact_mut(16).zip(state.lapic.iter().take(LAPIC_REGISTERS)) {
            for (byte, from) in slot.iter_mut().zip(word.to_le_bytes()) {
                *byte = from as _;
            }
        }
        fd.set_lapic(&lapic).map_err(os("load the local APIC"))?;
    }
    // The deadline comes last in `kept`: it needs the TSC and the local APIC's timer mode.
    for &index in kept {
        if let Some(data) = msr(index) {
            let list = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }])
                .map_err(|_| CpuError::Missing { what: "room for an MSR".to_string() })?;
            if fd.set_msrs(&list).map_err(os("load MSRs"))? != 1 {
                return Err(CpuError::Missing { what: format!("MSR {index:#x} with value {data:#x}") });
            }
        }
    }
    let mut events = fd.get_vcpu_events().map_err(os("read pending events"))?;
    pending_to_kvm(state, &mut events);
    fd.set_vcpu_events(&events).map_err(os("load pending events"))
}

fn load_xsave(fd: &VcpuFd, state: &CpuState) -> Result<(), CpuError> {
    let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    if let Some(first) = xcrs.xcrs.first_mut() {
        first.value = state.xcr0;
    }
    fd.set_xcrs(&xcrs).map_err(os("load XCR0"))?;
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(state.xsave.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |word, byte| (word << 8) | u32::from(*byte));
    }
    // XSTATE_BV tells which components are not in their initial state (SDM vol. 1 §13.4.2): x87 and SSE always count.
    if let Some(word) = xsave.region.get_mut(512 / 4) {
        *word |= 3;
    }
    // SAFETY: no dynamically enabled components are asked for, so the area is 4096 bytes long.
    unsafe { fd.set_xsave(&xsave) }.map_err(os("load the floating-point state"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_way_through_kvm() {
        for rights in [0xa09b, 0xc093, 0x8b, 0x82, 0xf3 | 0x1000] {
            let segment = Segment { selector: 0x10, base: 0x1234_5000, limit: 0xf_ffff, rights };
            assert_eq!(from_kvm(&to_kvm(&segment)), segment);
        }
        let null = Segment { rights: 0, ..Segment::default() };
        assert_eq!(to_kvm(&null).unusable, 1);
        assert_eq!(from_kvm(&to_kvm(&null)), null);
    }

    #[test]
    fn pending_events_survive_the_way_through_kvm() {
        for (vector, error_code) in [(2, None), (14, Some(6)), (6, None), (0x41, None)] {
            let pending = Some(PendingEvent { vector, error_code, payload: None });
            let state = CpuState { pending, ..CpuState::default() };
            let mut events = kvm_vcpu_events::default();
            pending_to_kvm(&state, &mut events);
            assert_eq!(pending_from_kvm(&events), pending);
        }
    }
}
