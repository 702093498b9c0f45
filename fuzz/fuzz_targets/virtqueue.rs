//! Lying virtqueues on every virtio device, over both transports: `viv_machine::trial::run_rings`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| viv_machine::trial::run_rings(data));
