//! Calls of the translator's emitter, read back by the decoder: `viv_cpu::soft::trial::emit`.
#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| viv_cpu::soft::trial::emit(data));
