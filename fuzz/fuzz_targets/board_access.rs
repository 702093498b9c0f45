//! Accesses to everything that the board has: `viv_machine::trial::run_accesses`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| viv_machine::trial::run_accesses(data));
