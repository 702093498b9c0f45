//! A vCPU of KVM behind the [`Vcpu`] seam.
use super::kick::KvmKick;
use super::{identity, os, state};
use crate::{CpuBus, CpuError, Exit, Kick, Vcpu};
use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use std::borrow::Cow;
use std::sync::Arc;
use viv_arch::level;
use viv_arch::processor::Processor;
use viv_arch::x86::{CpuState, MsrValue, efer, msr};
use viv_mem::{Gpa, GuestMemory};

/// One vCPU in the kernel.
pub struct KvmVcpu {
    fd: VcpuFd,
    kick: Arc<KvmKick>,
    /// The shared page, for what the exit enum leaves out. Valid as long as `fd`.
    run: *const kvm_run,
    /// MSRs to save, in an order in which they can be loaded.
    msrs: Vec<u32>,
    cpuid: CpuId,
    _vm: Arc<VmFd>,
    _memory: GuestMemory,
}

// SAFETY: the pointer belongs to `fd` and is only used by the thread that has `&mut self`.
unsafe impl Send for KvmVcpu {}

/// MSRs that are worth keeping: those of `arch`, and KVM's own.
const KEPT: &[u32] = &[
    msr::TSC,
    msr::TSC_ADJUST,
    msr::MISC_ENABLE,
    msr::SYSENTER_CS,
    msr::SYSENTER_ESP,
    msr::SYSENTER_EIP,
    msr::MTRR_DEF_TYPE,
    msr::PAT,
    msr::STAR,
    msr::LSTAR,
    msr::CSTAR,
    msr::SFMASK,
    msr::KERNEL_GS_BASE,
    msr::TSC_AUX,
    msr::SPEC_CTRL,
    msr::KVM_WALL_CLOCK,
    msr::KVM_SYSTEM_TIME,
    0x4b56_4d02,
    0x4b56_4d03,
    0x4b56_4d04,
    0x4b56_4d05,
    msr::TSC_DEADLINE,
];

impl KvmVcpu {
    pub(super) fn new(
        mut fd: VcpuFd,
        vm: Arc<VmFd>,
        memory: GuestMemory,
        known: &[u32],
        cpuid: CpuId,
    ) -> Result<KvmVcpu, CpuError> {
        let kick = Arc::new(KvmKick::new(&fd)?);
        let run: *const kvm_run = fd.get_kvm_run();
        let vcpu = KvmVcpu { fd, kick, run, msrs: KEPT.to_vec(), cpuid, _vm: vm, _memory: memory };
        let msrs =
            KEPT.iter().copied().filter(|index| known.contains(index) && vcpu.read_msr(*index).is_ok());
        let vcpu = KvmVcpu { msrs: msrs.collect(), ..vcpu };
        // What firmware would have set: caching on by default, fast strings.
        vcpu.write_msr(msr::MTRR_DEF_TYPE, (1 << 11) | 6)?;
        let misc = vcpu.read_msr(msr::MISC_ENABLE).unwrap_or(0);
        // Processors without the register refuse it, and need nothing.
        let _ = vcpu.write_msr(msr::MISC_ENABLE, misc | 1);
        Ok(vcpu)
    }

    /// Reads an MSR of the guest.
    pub fn read_msr(&self, index: u32) -> Result<u64, CpuError> {
        let mut msrs = one_msr(index, 0)?;
        match self.fd.get_msrs(&mut msrs).map_err(os("read an MSR"))? {
            1 => Ok(msrs.as_slice().first().map_or(0, |entry| entry.data)),
            _ => Err(CpuError::Missing { what: format!("MSR {index:#x}") }),
        }
    }

    /// Writes an MSR of the guest.
    pub fn write_msr(&self, index: u32, value: u64) -> Result<(), CpuError> {
        match self.fd.set_msrs(&one_msr(index, value)?).map_err(os("write an MSR"))? {
            1 => Ok(()),
            _ => Err(CpuError::Missing { what: format!("MSR {index:#x}") }),
        }
    }

    /// Whether this vCPU's CPUID offers a feature of the level.
    pub fn offers(&self, name: &str) -> bool {
        level::V2.iter().any(|f| f.name == name && self.has(f))
    }

    /// What the guest knows its processor as.
    pub fn processor(&self) -> Result<Processor, CpuError> {
        identity::of(&self.fd, self.cpuid.as_slice())
    }

    fn has(&self, feature: &level::Feature) -> bool {
        super::cpuid::has(self.cpuid.as_slice(), feature)
    }

    /// Whether it has all that a guest counts on which knew its processor as `known` and whose vCPUs are in these states.
    pub fn fits<'a>(
        &self,
        known: &Processor,
        states: impl IntoIterator<Item = &'a CpuState> + Clone,
    ) -> Result<(), CpuError> {
        let cr4 = states.clone().into_iter().fold(0, |all, state| all | state.cr4);
        if let Some(name) = known.missing_in(|feature| self.has(feature), cr4) {
            return Err(CpuError::Missing { what: name.to_string() });
        }
        states.into_iter().try_for_each(|state| self.takeable(state).map(drop))
    }

    /// The state as this processor can take it, if it has the modes that are in use.
    fn takeable<'a>(&self, state: &'a CpuState) -> Result<Cow<'a, CpuState>, CpuError> {
        /// SPEC_CTRL bit 0 (SDM vol. 4 table 2-2).
        const IBRS: u64 = 1;
        let missing = |what: &str| Err(CpuError::Missing { what: what.to_string() });
        if let Some(name) = level::lacking(state.cr4, |feature| self.has(feature)) {
            return missing(name);
        }
        if state.efer & efer::AUTO_IBRS == 0 || self.has(&level::AUTO_IBRS) {
            return Ok(Cow::Borrowed(state));
        }
        // Its kernel leaves it to automatic IBRS to keep its branches apart: IBRS all the time is not less.
        if !self.msrs.contains(&msr::SPEC_CTRL) || !super::cpuid::has_ibrs(self.cpuid.as_slice()) {
            return missing("AutoIBRS or IBRS");
        }
        let mut state = state.clone();
        state.efer &= !efer::AUTO_IBRS;
        match state.msrs.iter_mut().find(|entry| entry.index == msr::SPEC_CTRL) {
            Some(entry) => entry.value |= IBRS,
            None => state.msrs.push(MsrValue { index: msr::SPEC_CTRL, value: IBRS }),
        }
        Ok(Cow::Owned(state))
    }

    /// Tells a guest with kvmclock that it was paused, so that its watchdogs stay quiet.
    pub fn tell_paused(&self) {
        // EINVAL: the guest has no kvmclock, and nothing to be told.
        let _ = self.fd.kvmclock_ctrl();
    }

    fn io_size(&self) -> usize {
        // SAFETY: `run` points to the page of our own vCPU, which the kernel does not write while we are outside
        // KVM_RUN; the exit reason is KVM_EXIT_IO, so the union holds `io`.
        usize::from(unsafe { (*self.run).__bindgen_anon_1.io.size }).clamp(1, 4)
    }

    fn internal_error(&self) -> String {
        // SAFETY: as above; the exit reason is KVM_EXIT_INTERNAL_ERROR.
        let suberror = unsafe { (*self.run).__bindgen_anon_1.internal.suberror };
        let what = match suberror {
            1 => "an instruction that KVM cannot emulate",
            2 => "an unexpected simultaneous exception",
            3 => "an unexpected exit while delivering an event",
            4 => "an unexpected reason to exit",
            _ => "an unknown internal error",
        };
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        format!("KVM gave up: {what}, at rip {rip:#x}")
    }
}

fn one_msr(index: u32, data: u64) -> Result<Msrs, CpuError> {
    Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }])
        .map_err(|_| CpuError::Missing { what: "room for an MSR".to_string() })
}

fn little_endian(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte))
}

fn fill(data: &mut [u8], value: u64) {
    for (byte, from) in data.iter_mut().zip(value.to_le_bytes()) {
        *byte = from;
    }
}

/// Sizes that a bus knows; KVM gives others when an access crosses a page.
fn is_bus_size(len: usize) -> bool {
    matches!(len, 1 | 2 | 4 | 8)
}

impl Vcpu for KvmVcpu {
    fn run(&mut self, bus: &dyn CpuBus) -> Exit {
        let kick = self.kick.clone();
        let _entered = kick.enter();
        loop {
            // A port or memory access is finished by the next KVM_RUN, even if that returns at once: so a kick is
            // only looked at after the call.
            match self.fd.run() {
                Ok(VcpuExit::IoIn(port, data)) => {
                    let data: *mut [u8] = data;
                    let size = self.io_size();
                    // SAFETY: the slice lies in the vCPU's mapping, which lives as long as `self`; the kernel leaves it
                    // alone until the next KVM_RUN, and nobody else has a reference.
                    for piece in unsafe { &mut *data }.chunks_mut(size) {
                        let value = bus.port_read(port, size as u8);
                        fill(piece, u64::from(value));
                    }
                }
                Ok(VcpuExit::IoOut(port, data)) => {
                    let data: *const [u8] = data;
                    let size = self.io_size();
                    // SAFETY: as above.
                    for piece in unsafe { &*data }.chunks(size) {
                        bus.port_write(port, size as u8, little_endian(piece) as u32);
                    }
                }
                Ok(VcpuExit::MmioRead(gpa, data)) => {
                    if is_bus_size(data.len()) {
                        let value = bus.mmio_read(Gpa(gpa), data.len() as u8);
                        fill(data, value);
                    } else {
                        for (at, byte) in (gpa..).zip(data.iter_mut()) {
                            *byte = bus.mmio_read(Gpa(at), 1) as u8;
                        }
                    }
                }
                Ok(VcpuExit::MmioWrite(gpa, data)) => {
                    if is_bus_size(data.len()) {
                        bus.mmio_write(Gpa(gpa), data.len() as u8, little_endian(data));
                    } else {
                        for (at, byte) in (gpa..).zip(data.iter()) {
                            bus.mmio_write(Gpa(at), 1, u64::from(*byte));
                        }
                    }
                }
                Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
                Ok(VcpuExit::Hlt) => return Exit::Halted,
                Ok(VcpuExit::Shutdown) => return Exit::Shutdown,
                Ok(VcpuExit::InternalError) => return Exit::Failed(self.internal_error()),
                Ok(VcpuExit::FailEntry(reason, _)) => {
                    return Exit::Failed(format!("the processor refused the guest's state ({reason:#x})"));
                }
                Ok(other) => {
                    return Exit::Failed(format!("KVM left the guest for an unknown reason: {other:?}"));
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    if self.kick.take() {
                        return Exit::Kicked;
                    }
                }
                Err(error) => return Exit::Failed(format!("KVM cannot run the guest: {error}")),
            }
        }
    }

    fn save(&self) -> Result<CpuState, CpuError> {
        state::save(&self.fd, &self.msrs)
    }

    fn load(&mut self, state: &CpuState) -> Result<(), CpuError> {
        state::load(&self.fd, &*self.takeable(state)?, &self.msrs)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::{CpuLevel, KvmPlaces, KvmVm};
    use viv_arch::x86::{Activity, Segment, cr0, rflags, seg};

    /// Needs a /dev/kvm that opens; that it runs guests too slowly or is below every level does not matter.
    fn vm() -> Option<KvmVm> {
        vm_of(CpuLevel::Host)
    }

    fn vm_of(level: CpuLevel) -> Option<KvmVm> {
        let memory = GuestMemory::new(&[(Gpa(0), 0x10_0000)]).unwrap();
        let places = KvmPlaces { tss: Gpa(0xfffb_d000), identity_map: Gpa(0xfffb_c000) };
        match KvmVm::new(&memory, 2, level, places) {
            Ok(vm) => Some(vm),
            Err(error) => {
                println!("no KVM here, not checked: {error}");
                None
            }
        }
    }

    #[test]
    fn what_is_loaded_is_saved_again() {
        let Some(vm) = vm() else { return };
        let (mut first, second) = (vm.vcpu(0).unwrap(), vm.vcpu(1).unwrap());
        assert_eq!(second.save().unwrap().activity, Activity::WaitForSipi);
        let mut state = first.save().unwrap();
        assert_eq!(state.activity, Activity::Running);
        state.gprs = std::array::from_fn(|index| 0x1111_1111_1111_1111 * index as u64);
        (state.rip, state.rflags) = (0x1_0000, rflags::FIXED | rflags::CF | rflags::IF);
        state.cr0 = cr0::PE | cr0::ET | cr0::NE;
        state.cr2 = 0xdead_b000;
        let flat = |selector, rights| Segment { selector, base: 0, limit: u32::MAX, rights };
        state.segments = [flat(0x18, 0xc093); 6];
        state.segments[seg::CS] = flat(0x10, 0xc09b);
        state.debug[0] = 0x4000;
        // An SSE register and MXCSR in the FXSAVE image.
        state.xsave[160..176].copy_from_slice(&[0x5a; 16]);
        for entry in &mut state.msrs {
            match entry.index {
                msr::LSTAR | msr::KERNEL_GS_BASE => entry.value = 0xffff_8000_1234_5678,
                msr::STAR => entry.value = 0x0023_0010_0000_0000,
                _ => {}
            }
        }
        state.interrupt_shadow = true;
        first.load(&state).unwrap();
        let mut saved = first.save().unwrap();
        // The time goes on meanwhile, and KVM says which state components are in use.
        saved.msrs.retain(|entry| entry.index != msr::TSC);
        state.msrs.retain(|entry| entry.index != msr::TSC);
        saved.xsave[512..520].copy_from_slice(&state.xsave[512..520]);
        assert_eq!(saved, state);
    }

    #[test]
    fn a_guest_of_level_v2_sees_no_feature_that_the_software_cpu_lacks() {
        let Some(vm) = vm_of(CpuLevel::V2) else { return };
        let vcpu = match vm.vcpu(0) {
            // Some nested KVMs offer nearly nothing, and then the level is refused by what it lacks.
            Err(error) => return assert!(matches!(error, CpuError::Level { .. }), "{error}"),
            Ok(vcpu) => vcpu,
        };
        for entry in vcpu.cpuid.as_slice() {
            let words = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            for (register, word) in words.into_iter().enumerate() {
                if let Some(level) = level::v2_word(entry.function, entry.index, register) {
                    assert_eq!(word & !level, 0, "leaf {:x}, register {register}", entry.function);
                }
            }
        }
        let lacks: Vec<_> = level::V2.iter().filter(|f| !vcpu.offers(f.name)).map(|f| f.name).collect();
        println!("of level v2 this host's KVM lacks {lacks:?}");
    }

    #[test]
    fn a_state_that_needs_what_is_not_there_is_refused_by_name() {
        let Some(vm) = vm() else { return };
        let mut vcpu = vm.vcpu(0).unwrap();
        let mut state = vcpu.save().unwrap();
        let mut entries = vcpu.cpuid.as_slice().to_vec();
        entries.retain(|entry| entry.function != 1);
        vcpu.cpuid = CpuId::from_entries(&entries).unwrap();
        state.cr4 |= viv_arch::x86::cr4::OSXSAVE;
        let refused = vcpu.load(&state).unwrap_err().to_string();
        assert!(refused.contains("XSAVE"), "{refused}");
    }

    #[test]
    fn a_kick_counts_before_and_during_a_run() {
        struct NoBus;
        impl CpuBus for NoBus {
            fn port_read(&self, _: u16, _: u8) -> u32 {
                0
            }
            fn port_write(&self, _: u16, _: u8, _: u32) {}
            fn mmio_read(&self, _: Gpa, _: u8) -> u64 {
                0
            }
            fn mmio_write(&self, _: Gpa, _: u8, _: u64) {}
            fn interrupt_pending(&self) -> bool {
                false
            }
            fn acknowledge_interrupt(&self) -> Option<u8> {
                None
            }
            fn take_event(&self) -> Option<crate::CpuEvent> {
                None
            }
            fn msr_read(&self, _: u32) -> Option<u64> {
                None
            }
            fn msr_write(&self, _: u32, _: u64) -> Option<()> {
                None
            }
            fn cr8(&self) -> u64 {
                0
            }
            fn set_cr8(&self, _: u64) {}
            fn now_ns(&self) -> u64 {
                0
            }
            fn wall_ns(&self) -> u64 {
                0
            }
        }
        let Some(vm) = vm() else { return };
        // vCPU 1 waits for a start-up IPI in the kernel.
        let mut vcpu = vm.vcpu(1).unwrap();
        let kick = vcpu.kicker();
        kick.kick();
        assert_eq!(vcpu.run(&NoBus), Exit::Kicked);
        let later = kick.clone();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(30));
            later.kick();
        });
        assert_eq!(vcpu.run(&NoBus), Exit::Kicked);
        thread.join().unwrap();
        drop(vcpu);
        kick.kick();
    }
}
