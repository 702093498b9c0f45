//! What a KVM guest knows its processor as, and how one that comes from another host keeps that.
use super::cpuid::{self, CpuLevel};
use super::{create_vm, os, xsave};
use crate::CpuError;
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use viv_arch::processor::{Processor, features, word};

/// KVM itself takes rates for the same that differ by less (its parameter `tsc_tolerance_ppm`).
const TOLERANCE_PPM: u64 = 250;

/// What guests of level x86-64-v2 know this host's processor as.
pub fn shown_here() -> Result<Processor, CpuError> {
    let kvm = Kvm::new().map_err(os("open /dev/kvm"))?;
    let fd = create_vm(&kvm)?.create_vcpu(0).map_err(os("make a vCPU"))?;
    let cpuid = cpuid::for_vcpu(&kvm, 0, 1, CpuLevel::V2, xsave::works(&kvm))?;
    of(&fd, cpuid.as_slice())
}

/// What the guest of a vCPU knows it as.
pub(super) fn of(fd: &VcpuFd, entries: &[kvm_cpuid_entry2]) -> Result<Processor, CpuError> {
    let leaf = |function: u32| entries.iter().find(|entry| entry.function == function);
    let vendor = leaf(0).map_or(String::new(), |entry| text(&[entry.ebx, entry.edx, entry.ecx]));
    let name = (0x8000_0002..=0x8000_0004)
        .filter_map(leaf)
        .map(|entry| text(&[entry.eax, entry.ebx, entry.ecx, entry.edx]))
        .collect::<String>();
    Ok(Processor {
        tsc_khz: fd.get_tsc_khz().map_err(os("read the rate of the time stamp counter"))?,
        vendor,
        signature: leaf(1).map_or(0, |entry| entry.eax),
        name: name.trim_end_matches('\0').to_string(),
        lacks: features().filter(|f| !cpuid::has(entries, f)).map(|f| f.name.to_string()).collect(),
    })
}

/// The characters of registers; what is none of ASCII is none of a processor's name.
fn text(words: &[u32]) -> String {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    bytes.map(|byte| if byte.is_ascii() { char::from(byte) } else { '?' }).collect()
}

/// Lets a vCPU's time stamp counter have the rate that its guest knows.
pub(super) fn set_tsc_rate(kvm: &Kvm, fd: &VcpuFd, processor: &Processor) -> Result<(), CpuError> {
    let here = fd.get_tsc_khz().map_err(os("read the rate of the time stamp counter"))?;
    if is_same_rate(here, processor.tsc_khz) {
        return Ok(());
    }
    if !kvm.check_extension(Cap::TscControl) {
        let what = format!(
            "TSC scaling for a time stamp counter of {} kHz where the host's has {here}",
            processor.tsc_khz
        );
        return Err(CpuError::Missing { what });
    }
    fd.set_tsc_khz(processor.tsc_khz).map_err(os("set the rate of the time stamp counter"))
}

fn is_same_rate(here: u32, wanted: u32) -> bool {
    u64::from(here.abs_diff(wanted)) * 1_000_000 <= u64::from(here) * TOLERANCE_PPM
}

/// Gives the table of a vCPU the names of another processor, and takes from it what that did not show.
pub(super) fn rename(cpuid: &mut CpuId, processor: &Processor) {
    let hidden = processor.hidden();
    for entry in cpuid.as_mut_slice() {
        let named = |at| word(&processor.name, at);
        match entry.function {
            0 | 0x8000_0000 => {
                let of = |at| word(&processor.vendor, at);
                (entry.ebx, entry.edx, entry.ecx) = (of(0), of(4), of(8));
            }
            1 | 0x8000_0001 => entry.eax = processor.signature,
            0x8000_0002..=0x8000_0004 => {
                let at = (entry.function - 0x8000_0002) as usize * 16;
                (entry.eax, entry.ebx, entry.ecx, entry.edx) =
                    (named(at), named(at + 4), named(at + 8), named(at + 12));
            }
            _ => {}
        }
        let (leaf, subleaf) = (entry.function, entry.index);
        let words = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
        for (register, word) in words.into_iter().enumerate() {
            let here = |bit: &&(u32, usize, u32)| {
                (bit.0, bit.1, u32::from(bit.0 == 0xd)) == (leaf, register, subleaf)
            };
            *word &= hidden.iter().filter(here).fold(!0, |left, bit| left & !bit.2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_takes_the_names_and_the_gaps_of_another_processor() {
        let entry = |function| kvm_cpuid_entry2 {
            function,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        };
        let mut cpuid =
            CpuId::from_entries(&[entry(0), entry(1), entry(0x8000_0002), entry(0x8000_0004)]).unwrap();
        let processor = Processor {
            tsc_khz: 1_000_000,
            vendor: "AuthenticAMD".to_string(),
            signature: 0xb00f21,
            name: "A processor of ours".to_string(),
            lacks: vec!["RDRAND".to_string()],
        };
        rename(&mut cpuid, &processor);
        let [vendor, one, name, last] = cpuid.as_slice() else { panic!("four leaves") };
        assert_eq!(text(&[vendor.ebx, vendor.edx, vendor.ecx]), "AuthenticAMD");
        assert_eq!((one.eax, one.ecx), (0xb00f21, !(1 << 30)));
        assert_eq!(text(&[name.eax, name.ebx, name.ecx, name.edx]), "A processor of o");
        assert_eq!((last.eax, last.edx), (0, 0));
    }

    #[test]
    fn rates_are_the_same_within_kvms_tolerance() {
        assert!(is_same_rate(2_100_000, 2_100_500) && !is_same_rate(2_100_000, 2_100_600));
        assert!(!is_same_rate(2_100_000, 1_000_000));
    }
}
