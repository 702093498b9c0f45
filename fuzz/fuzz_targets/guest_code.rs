//! Random code on a whole board, in every mode: `viv_machine::trial::run_code`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| viv_machine::trial::run_code(data));
