//! A guest that runs wild never panics the runner and never touches host memory outside its own: whatever bytes it
//! is made of, the trials come back. They are short here; `PROPTEST_CASES=100000` runs them long, and `fuzz/` runs
//! the same trials with coverage.

use proptest::collection::vec;
use proptest::prelude::*;
use viv_machine::trial::{run_accesses, run_code, run_rings};

/// Cases of each property, unless `PROPTEST_CASES` says otherwise.
fn few(cases: u32) -> ProptestConfig {
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    }
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(few(300))]

    #[test]
    fn random_code_in_any_mode_is_contained(bytes in vec(any::<u8>(), 150..900)) {
        run_code(&bytes);
    }

    #[test]
    fn random_accesses_to_the_whole_board_are_contained(bytes in vec(any::<u8>(), 0..3000)) {
        run_accesses(&bytes);
    }

    #[test]
    fn lying_virtqueues_are_contained(bytes in vec(any::<u8>(), 0..2000)) {
        run_rings(&bytes);
    }
}
