//! What a KVM guest learns from CPUID: what the host has, cut down to a level that other hosts have too.
use super::os;
use crate::CpuError;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use viv_arch::level::{self, Need};

/// A CPU model: the levels of the x86-64 psABI, or whatever the host is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuLevel {
    /// x86-64-v2: SSE4.2 and POPCNT, and of the table in [`level::V2`] what the host has.
    #[default]
    V2,
    /// The host's own features.
    Host,
}

/// Leaf 7 EDX: what says how to mitigate speculation: MD_CLEAR, SPEC_CTRL, STIBP, L1D flush, ARCH_CAPABILITIES, SSBD.
const V2_7_EDX: u32 = 1 << 10 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29 | 1 << 31;
/// Leaf 0x8000_0008 EBX likewise: IBPB, IBRS, STIBP, SSBD, VIRT_SSBD, SSB_NO, PSFD, BTC_NO.
const V2_EXT8_EBX: u32 = 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24 | 1 << 25 | 1 << 26 | 1 << 28 | 1 << 29;
/// Leaf 1 ECX bit.
const XSAVE: u32 = 1 << 26;
/// Leaf 1 ECX bit: the local APIC's timer takes a TSC deadline.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX bit: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;

/// The table for vCPU `index` of `cpus`. `xsave`: a guest's XSAVE works here, see [`super::xsave`].
pub(super) fn for_vcpu(
    kvm: &Kvm,
    index: u32,
    cpus: u32,
    level: CpuLevel,
    xsave: bool,
) -> Result<CpuId, CpuError> {
    let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(os("read KVM's CPUID"))?;
    let deadline = kvm.check_extension(Cap::TscDeadlineTimer);
    let mut entries = supported.as_slice().to_vec();
    if level == CpuLevel::V2 {
        // Wider state components, and leaves that describe what was cut.
        entries.retain(|e| !matches!(e.function, 0x12..=0x1e | 0x24));
    }
    // Topology leaves are made new below.
    entries.retain(|e| !matches!(e.function, 0xb | 0x1f));
    for entry in &mut entries {
        if level == CpuLevel::V2 {
            cut_to_v2(entry, xsave);
        }
        place(entry, index, cpus, deadline);
    }
    if level == CpuLevel::V2
        && let Some(feature) =
            level::V2.iter().find(|feature| feature.need == Need::Must && !has(&entries, feature))
    {
        return Err(CpuError::Level { what: feature.name });
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

/// Whether the table offers a feature.
pub(super) fn has(entries: &[kvm_cpuid_entry2], feature: &level::Feature) -> bool {
    let subleaf = u32::from(feature.leaf == 0xd);
    entries.iter().any(|entry| {
        let word = [entry.eax, entry.ebx, entry.ecx, entry.edx].get(feature.register).copied().unwrap_or(0);
        (entry.function, entry.index) == (feature.leaf, subleaf) && word & 1 << feature.bit != 0
    })
}

/// Whether a guest may switch IBRS on: leaf 7 EDX (SDM) or leaf 0x8000_0008 EBX (APM).
pub(super) fn has_ibrs(entries: &[kvm_cpuid_entry2]) -> bool {
    entries.iter().any(|entry| match (entry.function, entry.index) {
        (7, 0) => entry.edx & 1 << 26 != 0,
        (0x8000_0008, _) => entry.ebx & 1 << 14 != 0,
        _ => false,
    })
}

fn cut_to_v2(entry: &mut kvm_cpuid_entry2, xsave: bool) {
    let (leaf, subleaf) = (entry.function, entry.index);
    let words = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
    for (register, word) in words.into_iter().enumerate() {
        *word &= level::v2_word(leaf, subleaf, register).unwrap_or(!0);
    }
    match (leaf, subleaf) {
        (1, _) if !xsave => entry.ecx &= !XSAVE,
        (7, 0) => {
            entry.eax = 0;
            entry.edx &= V2_7_EDX;
        }
        // x87 and SSE: 512 bytes and the header (SDM vol. 1 §13.2).
        (0xd, 0) if xsave => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (3, 576, 576, 0),
        (0xd, 1) if xsave => (entry.ebx, entry.ecx, entry.edx) = (576, 0, 0),
        (0x8000_0008, _) => entry.ebx &= V2_EXT8_EBX,
        (0x4000_0001, _) => (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0),
        // What was cut has nothing to describe: wider components, more features, SVM.
        (7 | 0xd | 0x8000_000a, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
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
        let (mut one, mut seven, mut area) = (entry(1, 0), entry(7, 0), entry(0xd, 0));
        for leaf in [&mut one, &mut seven, &mut area] {
            cut_to_v2(leaf, true);
        }
        assert_eq!(one.ecx & (1 << 28 | 1 << 12 | 1 << 29), 0, "AVX, FMA, F16C");
        assert_eq!(seven.ebx & (1 << 5 | 1 << 16 | 1 << 3 | 1 << 8), 0, "AVX2, AVX-512, BMI");
        assert_eq!((area.eax, area.ebx, area.ecx, area.edx), (3, 576, 576, 0));
        assert_ne!(one.ecx & XSAVE, 0);
        for leaf in [&mut one, &mut area] {
            cut_to_v2(leaf, false);
        }
        assert_eq!((one.ecx & XSAVE, area.eax), (0, 0), "where XSAVE does not work");
    }

    #[test]
    fn a_needed_feature_is_found_or_missed_by_name() {
        let entries = [kvm_cpuid_entry2 { function: 1, ecx: 1 << 20, ..Default::default() }];
        let missed: Vec<_> =
            level::V2.iter().filter(|f| f.need == Need::Must && !has(&entries, f)).map(|f| f.name).collect();
        assert!(missed.contains(&"SSE4.1") && !missed.contains(&"SSE4.2"), "{missed:?}");
    }

    #[test]
    fn each_vcpu_has_its_own_apic_id() {
        let mut one = kvm_cpuid_entry2 { function: 1, ..Default::default() };
        place(&mut one, 3, 4, true);
        assert_eq!(one.ebx, 3 << 24 | 4 << 16);
        assert_ne!(one.ecx & TSC_DEADLINE, 0);
    }
}
