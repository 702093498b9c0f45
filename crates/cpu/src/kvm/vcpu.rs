//! A vCPU of KVM behind the [`Vcpu`] seam.
use super::kick::KvmKick;
use super::{os, state};
use crate::{CpuBus, CpuError, Exit, Kick, Vcpu};
use kvm_bindings::{Msrs, kvm_msr_entry, kvm_run};
use kvm_ioctls::{VcpuExit, VcpuFd, VmFd};
use std::sync::Arc;
use viv_arch::x86::{CpuState, msr};
use viv_mem::{Gpa, GuestMemory};

/// One vCPU in the kernel.
pub struct KvmVcpu {
    fd: VcpuFd,
    kick: Arc<KvmKick>,
    /// The shared page, for what the exit enum leaves out. Valid as long as `fd`.
    run: *const kvm_run,
    /// MSRs to save, in an order in which they can be loaded.
    msrs: Vec<u32>,
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
    ) -> Result<KvmVcpu, CpuError> {
        let kick = Arc::new(KvmKick::new(&fd)?);
        let run: *const kvm_run = fd.get_kvm_run();
        let vcpu = KvmVcpu { fd, kick, run, msrs: KEPT.to_vec(), _vm: vm, _memory: memory };
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
        state::load(&self.fd, state, &self.msrs)
    }

    fn kicker(&self) -> Arc<dyn Kick> {
        self.kick.clone()
    }
}
