//! Debian packages: the ar archive, compressed members, and what is in them.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| viv_host::images::trial::read_package(data));
