//! What the software CPU says of itself: the whole of level x86-64-v2 (`viv_arch::level`), nothing that it lacks.
//!
//! Sources: SDM vol. 2 CPUID, APM vol. 3 appendix E, Linux Documentation/virt/kvm/x86/cpuid.rst.

use super::cpu::Cpu;
use super::mmu::PHYSICAL_BITS;
use crate::timebase::Timebase;
use viv_arch::level::{
    self, Feature,
    reg::{EAX, EBX, ECX, EDX},
};
use viv_arch::processor::{Processor, features, word};
use viv_arch::x86::{cr4, msr};

const VENDOR: &str = "AuthenticAMD";
const NAME: &str = "Vivarium software CPU, level x86-64-v2";
/// Family 0x1a, model 2, stepping 1. Nothing is speculated here, and kernels know the newest family to need the
/// fewest workarounds for what older ones got wrong.
const SIGNATURE: u32 = 0x00b0_0f21;

/// IA32_APIC_BASE: the local APIC is on; while it is off, CPUID shows none (SDM vol. 3 §11.4.3).
const APIC_ENABLE: u64 = 1 << 11;

/// The software CPU as it is where no other processor is to be followed.
pub fn processor() -> Processor {
    Processor {
        tsc_khz: Timebase::default().tsc_khz,
        vendor: VENDOR.to_string(),
        signature: SIGNATURE,
        name: NAME.to_string(),
        lacks: features().filter(|f| !has(f)).map(|f| f.name.to_string()).collect(),
    }
}

/// Whether it can show a feature of the level. The vector unit runs some on the host's own (see `fpu`).
pub fn has(feature: &Feature) -> bool {
    match feature.name {
        "PCLMULQDQ" => is_x86_feature_detected!("pclmulqdq"),
        "AES" => is_x86_feature_detected!("aes"),
        _ => true,
    }
}

fn bits(numbers: &[u32]) -> u32 {
    numbers.iter().fold(0, |set, n| set | 1 << n)
}

/// EAX, EBX, ECX and EDX of a leaf.
pub(crate) fn leaf(cpu: &Cpu, leaf: u32, subleaf: u32) -> [u32; 4] {
    let cpus = cpu.shared.cpus();
    let id = cpu.index;
    let apic_off =
        cpu.bus().msr_read(msr::APIC_BASE).is_some_and(|base| base & APIC_ENABLE == 0) && leaf == 1;
    let shown = &cpu.shared.shown;
    let hidden = |leaf: u32, register: usize| {
        let of_word = shown.hidden.iter().filter(|bit| (bit.0, bit.1) == (leaf, register));
        of_word.fold(0, |bits, bit| bits | bit.2)
    };
    // The level's words; what depends on more than the level is set below.
    let offered = |leaf, register| {
        level::v2_word(leaf, u32::from(leaf == 0xd), register).unwrap_or(0) & !hidden(leaf, register)
    };
    let (vendor, name, signature) =
        (&shown.processor.vendor, &shown.processor.name, shown.processor.signature);
    let is_intel = cpu.shared.is_intel();
    let alone = |bit: u32| if cpus > 1 { 0 } else { 1 << bit };
    let edx1 = offered(1, EDX) & !alone(28) & if apic_off { !(1 << 9) } else { !0 };
    let ecx1 = offered(1, ECX) & if cpu.cr4 & cr4::OSXSAVE != 0 { !0 } else { !(1 << 27) };
    match leaf {
        0 => [0xd, word(vendor, 0), word(vendor, 8), word(vendor, 4)],
        1 => [signature, id << 24 | cpus.min(255) << 16 | 8 << 8, ecx1, edx1],
        // Intel's way to tell of caches: leaf 2 points to leaf 4, which has the same as AMD's leaves below.
        2 if is_intel => [0x00ff_ff01, 0, 0, 0],
        4 if is_intel => {
            let cores = (cpus - 1).min(63) << 26;
            match subleaf {
                0 => [cores | 0x121, 0x01c0_003f, 63, 0],
                1 => [cores | 0x122, 0x01c0_003f, 63, 0],
                2 => [cores | 0x143, 0x01c0_003f, 1023, 0],
                _ => [0; 4],
            }
        }
        7 if subleaf == 0 => [0, offered(7, EBX), offered(7, ECX), 0],
        // Each vCPU is a core of its own.
        0xb => match subleaf {
            0 => [0, 1, 0x100, id],
            1 => [cpus.next_power_of_two().trailing_zeros(), cpus, 0x201, id],
            _ => [0, 0, subleaf, id],
        },
        0xd => match subleaf {
            0 => [3, 576, 576, 0],
            1 => [offered(0xd, EAX), 576, 0, 0],
            _ => [0; 4],
        },
        0x4000_0000 => {
            let text = "KVMKVMKVM";
            [0x4000_0010, word(text, 0), word(text, 4), word(text, 8)]
        }
        0x4000_0001 => [offered(leaf, EAX), 0, 0, 0],
        // TSC and APIC bus frequency in kHz.
        0x4000_0010 => [shown.time.tsc_khz, 1_000_000, 0, 0],
        0x8000_0000 => [0x8000_0021, word(vendor, 0), word(vendor, 8), word(vendor, 4)],
        0x8000_0001 => [signature, 0, offered(leaf, ECX) & !alone(1), offered(leaf, EDX)],
        0x8000_0002..=0x8000_0004 => {
            let at = (leaf - 0x8000_0002) as usize * 16;
            [word(name, at), word(name, at + 4), word(name, at + 8), word(name, at + 12)]
        }
        // L1: 32 KiB each, 8 ways, 64-byte lines.
        0x8000_0005 => [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140],
        0x8000_0006 => [0, 0x4200_4200, 0x0200_6140, 0x0100_8140],
        // Invariant TSC.
        0x8000_0007 => [0, 0, 0, 1 << 8],
        // SSB_NO, BTC_NO: no speculative store bypass, no branch type confusion.
        0x8000_0008 => [PHYSICAL_BITS | 48 << 8, bits(&[26, 29]), cpus - 1, 0],
        // LFENCE serializes, null selectors clear the base, AutoIBRS, SRSO_NO.
        0x8000_0021 => [bits(&[2, 6, 8, 29]) & !hidden(leaf, EAX), 0, 0, 0],
        _ => [0; 4],
    }
}
