//! The translator's trusted base keeps its promises, whatever it is asked: `fuzz/` runs the same trials with coverage.

use viv_cpu::soft::trial;

/// Bytes of a sequence (xorshift64).
fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn any_calls_of_the_emitter_read_back() {
    (0..2000).for_each(|seed| trial::emit(&bytes(seed, 64 + seed as usize % 900)));
}

#[test]
fn any_bytes_make_regions_that_keep_their_promises() {
    (0..2000).for_each(|seed| trial::find_region(&bytes(seed, 16 + seed as usize % 600)));
}
