//! Backups of Proxmox VE (VMA), as they are and with right checksums, and what lzop has compressed.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viv_foreign::trial::read_vma(data);
    viv_foreign::trial::read_lzop(data);
});
