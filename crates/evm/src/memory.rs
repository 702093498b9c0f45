//! What the process has in memory, and what a chain says when that is too much.
use std::fs;

/// Why a request gets no answer.
pub const SHORT: &str = "out of memory: the chain has come to its limit of memory; give it more, or forget blocks with a shorter --history";

/// Bytes that the process has in memory (proc(5), `statm` field 2).
pub fn resident() -> usize {
    let text = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages.saturating_mul(rustix::param::page_size())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_is_seen() {
        let before = resident();
        let filled = vec![1_u8; 64 << 20];
        let after = resident();
        assert!(before > 0 && after >= before + (32 << 20), "{before} then {after}, {}", filled.len());
    }
}
