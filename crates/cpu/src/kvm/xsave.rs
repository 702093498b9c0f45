//! Does a guest's XSAVE work here?
//!
//! KVM must see each XSETBV, to load the guest's XCR0 before it runs. QEMU's emulated AMD-V (until its 8th version at
//! least) lets a guest's XSETBV past it: KVM goes on with XCR0 = 1, and the guest's XSAVE leaves SSE out and its
//! XRSTOR faults. So a tiny guest sets XCR0, and we look whether KVM knows.
use super::{create_vm, os};
use crate::CpuError;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit};
use std::sync::OnceLock;
use viv_arch::x86::cr4;
use viv_mem::{Gpa, GuestMemory};

/// Whether it does; found out once in a process.
pub(super) fn works(kvm: &Kvm) -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    // What cannot be tried is not offered.
    *WORKS.get_or_init(|| try_it(kvm).unwrap_or(false))
}

/// The guest says by this port that it is done.
const DONE_PORT: u16 = 0x80;
/// Signals may interrupt it so often.
const ATTEMPTS: usize = 100;
/// x87 and SSE.
const XCR0: u64 = 3;

fn try_it(kvm: &Kvm) -> Result<bool, CpuError> {
    const CODE: Gpa = Gpa(0x1000);
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(os("read KVM's CPUID"))?;
    if !supported.as_slice().iter().any(|entry| entry.function == 1 && entry.ecx & 1 << 26 != 0) {
        return Ok(false);
    }
    let vm = create_vm(kvm)?;
    let missing = |_| CpuError::Missing { what: "memory for a probe".to_string() };
    let memory = GuestMemory::new(&[(Gpa(0), 0x2000)]).map_err(missing)?;
    // xor ecx, ecx; xor edx, edx; mov eax, 3; xsetbv; out DONE_PORT, al; hlt
    let code = [0x31, 0xc9, 0x31, 0xd2, 0xb8, 3, 0, 0, 0, 0x0f, 0x01, 0xd1, 0xe6, DONE_PORT as u8, 0xf4];
    memory.write(CODE, &code).map_err(missing)?;
    let range = memory.host_range(Gpa(0), 0x2000).map_err(missing)?;
    let slot = kvm_userspace_memory_region {
        memory_size: range.len as u64,
        userspace_addr: range.ptr as u64,
        ..Default::default()
    };
    // SAFETY: `memory` outlives the VM of this function.
    unsafe { vm.set_user_memory_region(slot) }.map_err(os("give a probe its memory"))?;
    let mut vcpu = vm.create_vcpu(0).map_err(os("make a probe's vCPU"))?;
    vcpu.set_cpuid2(&supported).map_err(os("give a probe its CPUID"))?;
    let mut sregs = vcpu.get_sregs().map_err(os("read a probe's registers"))?;
    sregs.cr0 |= 1;
    sregs.cr4 |= cr4::OSXSAVE;
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        (segment.base, segment.limit, segment.selector) = (0, !0, 0x10);
        (segment.db, segment.g, segment.s, segment.present) = (1, 1, 1, 1);
        segment.type_ = 3;
    }
    (sregs.cs.selector, sregs.cs.type_) = (8, 11);
    vcpu.set_sregs(&sregs).map_err(os("load a probe's registers"))?;
    let regs = kvm_regs { rip: CODE.0, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).map_err(os("load a probe's registers"))?;
    for _ in 0..ATTEMPTS {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(DONE_PORT, _)) => {
                let xcrs = vcpu.get_xcrs().map_err(os("read a probe's XCR0"))?;
                return Ok(xcrs
                    .xcrs
                    .iter()
                    .take(xcrs.nr_xcrs as usize)
                    .any(|x| x.xcr == 0 && x.value == XCR0));
            }
            Err(error) if error.errno() == libc::EINTR => {}
            _ => break,
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_always_has_an_answer() {
        if let Ok(kvm) = Kvm::new() {
            println!("a guest's XSAVE works here: {}", works(&kvm));
            assert!(try_it(&kvm).is_ok());
        }
    }
}
