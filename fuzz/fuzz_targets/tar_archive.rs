//! Tar archives, with headers whose checksums are right.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| viv_host::images::trial::read_tar(data));
