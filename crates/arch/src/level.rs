//! CPU levels: which features a guest is promised, and which it is never shown. Both backends read this table, so that
//! a guest of one level meets the same processor on KVM and on the software CPU.
//!
//! Sources: x86-64 psABI §3.1.1 (the levels), SDM vol. 2 CPUID, APM vol. 3 appendix E, Linux
//! Documentation/virt/kvm/x86/cpuid.rst.

/// Index of a register in CPUID's answer.
pub mod reg {
    #![allow(missing_docs)]
    pub const EAX: usize = 0;
    pub const EBX: usize = 1;
    pub const ECX: usize = 2;
    pub const EDX: usize = 3;
}
use reg::{EAX, EBX, ECX, EDX};

/// One bit of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Its name in the manuals.
    pub name: &'static str,
    /// Leaf (the subleaf is 0, but for leaf 0xd: 1).
    pub leaf: u32,
    /// Register, see [`reg`].
    pub register: usize,
    /// Bit.
    pub bit: u32,
    /// Who needs it.
    pub need: Need,
}

/// Who needs a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The level is not there without it.
    Must,
    /// A host may lack it: guests look before they use it, and count on it from then on.
    May,
    /// Likewise, but it is in use only while a bit of CR4 is set.
    Mode,
    /// It describes something, or says what is fast: nothing fails without it.
    Hint,
}

const fn feature(name: &'static str, leaf: u32, register: usize, bit: u32, need: Need) -> Feature {
    Feature { name, leaf, register, bit, need }
}
const fn must(name: &'static str, leaf: u32, register: usize, bit: u32) -> Feature {
    feature(name, leaf, register, bit, Need::Must)
}
const fn may(name: &'static str, leaf: u32, register: usize, bit: u32) -> Feature {
    feature(name, leaf, register, bit, Need::May)
}
const fn mode(name: &'static str, leaf: u32, register: usize, bit: u32) -> Feature {
    feature(name, leaf, register, bit, Need::Mode)
}
const fn hint(name: &'static str, leaf: u32, register: usize, bit: u32) -> Feature {
    feature(name, leaf, register, bit, Need::Hint)
}

/// Automatic IBRS (APM vol. 2 §3.2.9): no feature of the level, but a guest that has switched it on relies on it for its own safety.
pub const AUTO_IBRS: Feature = may("AutoIBRS", 0x8000_0021, EAX, 8);

const EXT: u32 = 0x8000_0001;
const KVM: u32 = 0x4000_0001;

/// Level x86-64-v2: what the psABI names, what every 64-bit kernel needs, and what the software CPU has beyond that.
/// Nothing that it does not have: VME or KVM's paravirtual IPIs would keep a guest from ever moving there. RDRAND and RDSEED
/// are no part of the psABI's level, but without them a kernel waits a second for its first random numbers.
#[rustfmt::skip]
pub const V2: &[Feature] = &[
    must("FPU", 1, EDX, 0), may("DE", 1, EDX, 2), must("PSE", 1, EDX, 3), must("TSC", 1, EDX, 4), must("MSR", 1, EDX, 5),
    must("PAE", 1, EDX, 6), may("MCE", 1, EDX, 7), must("CX8", 1, EDX, 8), must("APIC", 1, EDX, 9), may("SEP", 1, EDX, 11),
    may("MTRR", 1, EDX, 12), must("PGE", 1, EDX, 13), may("MCA", 1, EDX, 14), must("CMOV", 1, EDX, 15), may("PAT", 1, EDX, 16),
    may("PSE-36", 1, EDX, 17), may("CLFSH", 1, EDX, 19), must("MMX", 1, EDX, 23), must("FXSR", 1, EDX, 24),
    must("SSE", 1, EDX, 25), must("SSE2", 1, EDX, 26), hint("HTT", 1, EDX, 28),
    must("SSE3", 1, ECX, 0), may("PCLMULQDQ", 1, ECX, 1), must("SSSE3", 1, ECX, 9), must("CMPXCHG16B", 1, ECX, 13),
    mode("PCID", 1, ECX, 17), must("SSE4.1", 1, ECX, 19), must("SSE4.2", 1, ECX, 20), may("x2APIC", 1, ECX, 21),
    may("MOVBE", 1, ECX, 22), must("POPCNT", 1, ECX, 23), may("TSC-deadline", 1, ECX, 24), may("AES", 1, ECX, 25),
    mode("XSAVE", 1, ECX, 26), hint("OSXSAVE", 1, ECX, 27), may("RDRAND", 1, ECX, 30), hint("hypervisor", 1, ECX, 31),
    mode("FSGSBASE", 7, EBX, 0), may("TSC_ADJUST", 7, EBX, 1), mode("SMEP", 7, EBX, 7), hint("ERMS", 7, EBX, 9), may("INVPCID", 7, EBX, 10),
    may("RDSEED", 7, EBX, 18), mode("SMAP", 7, EBX, 20), mode("UMIP", 7, ECX, 2), may("RDPID", 7, ECX, 22),
    may("XSAVEOPT", 0xd, EAX, 0),
    may("kvmclock without delays", KVM, EAX, 1), may("kvmclock", KVM, EAX, 3), hint("stable kvmclock", KVM, EAX, 24),
    must("LAHF in 64-bit mode", EXT, ECX, 0), hint("CMP_LEGACY", EXT, ECX, 1), hint("CR8_LEGACY", EXT, ECX, 4),
    must("SYSCALL", EXT, EDX, 11), must("NX", EXT, EDX, 20), may("1-GiB pages", EXT, EDX, 26), may("RDTSCP", EXT, EDX, 27),
    must("64-bit mode", EXT, EDX, 29),
];

/// What leaf 0x8000_0001 EDX repeats of leaf 1 EDX on AMD's processors.
const REPEATED: u32 = 0x0183_f3fd;

/// The bits that level v2 may show in a feature word; `None`: not a word of features.
pub fn v2_word(leaf: u32, subleaf: u32, register: usize) -> Option<u32> {
    let words = [(1, ECX), (1, EDX), (7, EBX), (7, ECX), (0xd, EAX), (KVM, EAX), (EXT, ECX), (EXT, EDX)];
    if !words.contains(&(leaf, register)) || subleaf != u32::from(leaf == 0xd) {
        return None;
    }
    let features = V2.iter().filter(|f| (f.leaf, f.register) == (leaf, register));
    let bits = features.fold(0, |bits, feature| bits | 1 << feature.bit);
    Some(if (leaf, register) == (EXT, EDX) { bits | REPEATED } else { bits })
}

/// The feature that a value of CR4 needs and a processor lacks, by name; `has` says what it has.
pub fn lacking(cr4: u64, has: impl Fn(&Feature) -> bool) -> Option<&'static str> {
    use crate::x86::cr4;
    let needs = [
        (cr4::UMIP, "UMIP"),
        (cr4::FSGSBASE, "FSGSBASE"),
        (cr4::PCIDE, "PCID"),
        (cr4::OSXSAVE, "XSAVE"),
        (cr4::SMEP, "SMEP"),
        (cr4::SMAP, "SMAP"),
    ];
    let absent = |name| V2.iter().any(|feature| feature.name == name && !has(feature));
    needs.into_iter().find(|(bit, name)| cr4 & bit != 0 && absent(*name)).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_v2_is_the_psabis_and_not_more() {
        let named = [
            "CMOV",
            "CX8",
            "FPU",
            "FXSR",
            "MMX",
            "SYSCALL",
            "SSE",
            "SSE2",
            "CMPXCHG16B",
            "LAHF in 64-bit mode",
            "POPCNT",
            "SSE3",
            "SSE4.1",
            "SSE4.2",
            "SSSE3",
        ];
        for name in named {
            assert!(V2.iter().any(|f| f.name == name && f.need == Need::Must), "{name}");
        }
        let word = |leaf, register| v2_word(leaf, 0, register).unwrap();
        assert_eq!(word(1, ECX) & (1 << 12 | 1 << 28 | 1 << 29), 0, "FMA, AVX, F16C");
        assert_eq!(word(1, EDX) & (1 << 1), 0, "VME");
        assert_eq!(word(7, EBX) & (1 << 3 | 1 << 5 | 1 << 8 | 1 << 16), 0, "BMI, AVX2, AVX-512");
        assert_eq!(v2_word(0xd, 1, EAX), Some(1));
        assert_eq!(v2_word(0xd, 0, EAX), None);
    }

    #[test]
    fn a_mode_without_its_feature_is_named() {
        let without_xsave = |feature: &Feature| feature.name != "XSAVE";
        assert_eq!(lacking(crate::x86::cr4::OSXSAVE | crate::x86::cr4::SMEP, without_xsave), Some("XSAVE"));
        assert_eq!(lacking(crate::x86::cr4::SMEP | crate::x86::cr4::PAE, without_xsave), None);
    }
}
