//! Kernel files of every kind that the boot loader reads, up to the loaded machine.
#![no_main]
use viv_machine::boot::{BootFiles, bzimage, elf, load, multiboot, payload};
use viv_machine::layout::{ACPI_TABLES, e820};
use viv_mem::{Gpa, GuestMemory};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = payload::unpack(data);
    let _ = bzimage::parse(data);
    let _ = elf::parse(data);
    let _ = elf::parse_any(data);
    let _ = multiboot::parse(data);
    const MIB: u64 = 4;
    let Ok(memory) = GuestMemory::new(&[(Gpa(0), MIB << 20)]) else { return };
    // The first byte says how long the initrd is that comes before the kernel.
    let Some((len, rest)) = data.split_first() else { return };
    let (initrd, kernel) = rest.split_at(usize::from(*len).min(rest.len()));
    for kernel in [data, kernel] {
        let files = BootFiles { kernel, initrd: Some(initrd), cmdline: "console=ttyS0", name: "kernel" };
        let _ = load(&memory, &e820(MIB), ACPI_TABLES, &files);
    }
});
