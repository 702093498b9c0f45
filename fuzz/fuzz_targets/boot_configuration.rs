//! Any text as GRUB's configuration, executed, and as an entry of the Boot Loader Specification.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    viv_guestfs::trial::read_configuration(&String::from_utf8_lossy(data));
});
