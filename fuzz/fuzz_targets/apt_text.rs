//! What apt prints, package lists, and kernel modules' own lists.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| viv_host::images::trial::read_lists(data));
