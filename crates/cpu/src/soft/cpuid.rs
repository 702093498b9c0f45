//! What the software CPU says of itself: level x86-64-v2 with AES and PCLMULQDQ, nothing that it lacks.
//!
//! Sources: SDM vol. 2 CPUID, APM vol. 3 appendix E, Linux Documentation/virt/kvm/x86/cpuid.rst.

use super::cpu::Cpu;
use super::mmu::PHYSICAL_BITS;
use viv_arch::x86::cr4;

const VENDOR: &[u8; 12] = b"AuthenticAMD";
const NAME: &[u8; 48] = b"Vivarium software CPU, level x86-64-v2\0\0\0\0\0\0\0\0\0\0";
/// Family 0x1a, model 2, stepping 1. Nothing is speculated here, and kernels know the newest family to need the
/// fewest workarounds for what older ones got wrong.
const SIGNATURE: u32 = 0x00b0_0f21;

fn word(text: &[u8], at: usize) -> u32 {
    text.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn bits(numbers: &[u32]) -> u32 {
    numbers.iter().fold(0, |set, n| set | 1 << n)
}

/// EAX, EBX, ECX and EDX of a leaf.
pub(crate) fn leaf(cpu: &Cpu, leaf: u32, subleaf: u32) -> [u32; 4] {
    let cpus = cpu.shared.cpus();
    let id = cpu.index;
    // FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2
    let edx1 = bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26])
        | if cpus > 1 { 1 << 28 } else { 0 };
    // SSE3 PCLMUL SSSE3 CX16 PCID SSE4.1 SSE4.2 x2APIC MOVBE POPCNT TSC-deadline AES XSAVE, hypervisor
    let ecx1 = bits(&[0, 1, 9, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 31])
        | if cpu.cr4 & cr4::OSXSAVE != 0 { 1 << 27 } else { 0 };
    // The vector unit runs these on the host's own (see `fpu`).
    let ecx1 = if is_x86_feature_detected!("pclmulqdq") { ecx1 } else { ecx1 & !(1 << 1) };
    let ecx1 = if is_x86_feature_detected!("aes") { ecx1 } else { ecx1 & !(1 << 25) };
    match leaf {
        0 => [0xd, word(VENDOR, 0), word(VENDOR, 8), word(VENDOR, 4)],
        1 => [SIGNATURE, id << 24 | cpus.min(255) << 16 | 8 << 8, ecx1, edx1],
        // FSGSBASE TSC_ADJUST SMEP INVPCID SMAP; UMIP RDPID
        7 if subleaf == 0 => [0, bits(&[0, 1, 7, 10, 20]), bits(&[2, 22]), 0],
        // Each vCPU is a core of its own.
        0xb => match subleaf {
            0 => [0, 1, 0x100, id],
            1 => [cpus.next_power_of_two().trailing_zeros(), cpus, 0x201, id],
            _ => [0, 0, subleaf, id],
        },
        0xd => match subleaf {
            0 => [3, 576, 576, 0],
            // XSAVEOPT
            1 => [1, 576, 0, 0],
            _ => [0; 4],
        },
        0x4000_0000 => {
            let text = b"KVMKVMKVM\0\0\0";
            [0x4000_0010, word(text, 0), word(text, 4), word(text, 8)]
        }
        // CLOCKSOURCE2, NOP_IO_DELAY, CLOCKSOURCE_STABLE
        0x4000_0001 => [bits(&[1, 3, 24]), 0, 0, 0],
        // TSC and APIC bus frequency in kHz.
        0x4000_0010 => [1_000_000, 1_000_000, 0, 0],
        0x8000_0000 => [0x8000_0021, word(VENDOR, 0), word(VENDOR, 8), word(VENDOR, 4)],
        // LAHF CMP_LEGACY CR8_LEGACY; SYSCALL NX 1GB pages RDTSCP LM
        0x8000_0001 => {
            let common = bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24]);
            [SIGNATURE, 0, bits(&[0, 4]) | if cpus > 1 { 2 } else { 0 }, common | bits(&[11, 20, 26, 27, 29])]
        }
        0x8000_0002..=0x8000_0004 => {
            let at = (leaf - 0x8000_0002) as usize * 16;
            [word(NAME, at), word(NAME, at + 4), word(NAME, at + 8), word(NAME, at + 12)]
        }
        // L1: 32 KiB each, 8 ways, 64-byte lines.
        0x8000_0005 => [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140],
        0x8000_0006 => [0, 0x4200_4200, 0x0200_6140, 0],
        // Invariant TSC.
        0x8000_0007 => [0, 0, 0, 1 << 8],
        // SSB_NO, BTC_NO: no speculative store bypass, no branch type confusion.
        0x8000_0008 => [PHYSICAL_BITS | 48 << 8, bits(&[26, 29]), cpus - 1, 0],
        // LFENCE serializes, null selectors clear the base, AutoIBRS, SRSO_NO.
        0x8000_0021 => [bits(&[2, 6, 8, 29]), 0, 0, 0],
        _ => [0; 4],
    }
}
