//! What a KVM guest learns from CPUID: what the host has, cut down to a level that other hosts have too.
use super::os;
use crate::CpuError;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// A CPU model: the levels of the x86-64 psABI, or whatever the host is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuLevel {
    /// x86-64-v2, SSE4.2 and POPCNT, with AES and PCLMULQDQ where the host has them.
    #[default]
    V2,
    /// The host's own features.
    Host,
}

/// Features of leaf 1 ECX that stay at level v2: SSE3, PCLMULQDQ, SSSE3, CX16, PCID, SSE4.1, SSE4.2, x2APIC, POPCNT,
/// TSC-deadline, AES, RDRAND, hypervisor (SDM vol. 2 CPUID, table 3-10). Not XSAVE, which the level does not have and
/// which saves nothing that FXSAVE does not; QEMU's emulated AMD-V also fails a guest's XRSTOR of it.
const V2_1_ECX: u32 = 1
    | 1 << 1
    | 1 << 9
    | 1 << 13
    | 1 << 17
    | 1 << 19
    | 1 << 20
    | 1 << 21
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 30
    | 1 << 31;
/// Leaf 7 EBX: FSGSBASE, TSC_ADJUST, SMEP, ERMS, INVPCID, RDSEED, SMAP, CLFLUSHOPT.
const V2_7_EBX: u32 = 1 | 1 << 1 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 18 | 1 << 20 | 1 << 23;
/// Leaf 7 ECX: UMIP.
const V2_7_ECX: u32 = 1 << 2;
/// Leaf 7 EDX: what says how to mitigate speculation: MD_CLEAR, SPEC_CTRL, STIBP, L1D flush, ARCH_CAPABILITIES, SSBD.
const V2_7_EDX: u32 = 1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
/// Leaf 0x8000_0001 ECX: LAHF, ABM's LZCNT is v3; CMP_LEGACY, topology extensions.
const V2_EXT_ECX: u32 = 1 | 1 << 1 | 1 << 22;
/// Leaf 1 ECX bit: the local APIC's timer takes a TSC deadline.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX bit: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;

/// The table for vCPU `index` of `cpus`.
pub(super) fn for_vcpu(kvm: &Kvm, index: u32, cpus: u32, level: CpuLevel) -> Result<CpuId, CpuError> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(os("read KVM's CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut entries = supported.as_slice().to_vec();
    if level == CpuLevel::V2 {
        // Wider state components, and leaves that describe what was cut.
        entries.retain(|e| !matches!(e.function, 0xd | 0x12..=0x1e | 0x24));
    }
    // Topology leaves are made new below.
    entries.retain(|e| !matches!(e.function, 0xb | 0x1f));
    for entry in &mut entries {
        if level == CpuLevel::V2 {
            cut_to_v2(entry);
        }
        place(entry, index, cpus, deadline);
    }
    let levels = [(0, 1, 1 << 8), (cpus.next_power_of_two().trailing_zeros(), cpus, 2 << 8)];
    for (subleaf, (shift, count, kind)) in (0u32..).zip(levels) {
        entries.push(kvm_cpuid_entry2 {
            function: 0xb,
            index: subleaf,
            flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: count,
            ecx: kind | subleaf,
            edx: index,
            ..Default::default()
        });
    }
    CpuId::from_entries(&entries).map_err(|_| CpuError::Missing { what: "room for CPUID".to_string() })
}

fn cut_to_v2(entry: &mut kvm_cpuid_entry2) {
    match (entry.function, entry.index) {
        (1, _) => entry.ecx &= V2_1_ECX,
        (7, 0) => {
            entry.eax = 0;
            entry.ebx &= V2_7_EBX;
            entry.ecx &= V2_7_ECX;
            entry.edx &= V2_7_EDX;
        }
        (7, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        (0x8000_0001, _) => entry.ecx &= V2_EXT_ECX,
        _ => {}
    }
}

/// APIC IDs and counts: `cpus` cores of one thread in one package.
fn place(entry: &mut kvm_cpuid_entry2, index: u32, cpus: u32, deadline: bool) {
    match entry.function {
        1 => {
            entry.ebx = (entry.ebx & 0xffff) | (cpus.min(255) << 16) | (index << 24);
            // HTT: the count in EBX is meant.
            entry.edx = if cpus > 1 { entry.edx | 1 << 28 } else { entry.edx & !(1 << 28) };
            entry.ecx |= HYPERVISOR | if deadline { TSC_DEADLINE } else { 0 };
        }
        // Cores per package and threads per cache.
        4 if entry.eax & 0x1f != 0 => {
            entry.eax = (entry.eax & 0x3fff) | (cpus.saturating_sub(1).min(63) << 26)
        }
        // No virtual performance counters.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        // No nested virtualization yet.
        0x8000_0001 => entry.ecx &= !(1 << 2),
        0x8000_0008 => {
            let bits = cpus.next_power_of_two().trailing_zeros();
            entry.ecx = cpus.saturating_sub(1) | (bits << 12);
        }
        0x8000_001d => entry.eax &= !(0xfff << 14),
        0x8000_001e => {
            entry.eax = index;
            entry.ebx = (entry.ebx & !0xffff) | (index & 0xff);
            entry.ecx = 0;
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_v2_has_no_avx_and_says_so_everywhere() {
        let entry = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        };
        let (mut one, mut seven) = (entry(1, 0), entry(7, 0));
        for leaf in [&mut one, &mut seven] {
            cut_to_v2(leaf);
        }
        assert_eq!(
            one.ecx & (1 << 26 | 1 << 27 | 1 << 28 | 1 << 12 | 1 << 29),
            0,
            "XSAVE, OSXSAVE, AVX, FMA, F16C"
        );
        assert_eq!(seven.ebx & (1 << 5 | 1 << 16 | 1 << 3 | 1 << 8), 0, "AVX2, AVX-512, BMI");
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let mut one = kvm_cpuid_entry2 { function: 1, ..Default::default() };
        place(&mut one, 3, 4, true);
        assert_eq!(one.ebx, 3 << 24 | 4 << 16);
        assert_ne!(one.ecx & TSC_DEADLINE, 0);
    }
}
