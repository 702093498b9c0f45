//! Any bytes as guest code, their region and its translation: `viv_cpu::soft::trial::find_region`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| viv_cpu::soft::trial::find_region(data));
