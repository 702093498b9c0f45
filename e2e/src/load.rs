//! The program that a guest runs while it is saved, forked and put back: `load/load.c`.
use crate::{exec, run, viv};
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// Where it is in a guest.
const THERE: &str = "/tmp/load";

/// Compiles it, and puts it into a guest.
#[track_caller]
pub fn put(vm: &str) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("load/load.c");
    let program = std::env::temp_dir().join(format!("viv-e2e-load-{}", std::process::id()));
    // The default guest has no libraries.
    let mut cc = Command::new("cc");
    let done = cc.args(["-O2", "-static", "-Wall", "-Wextra", "-o"]).arg(&program).arg(source).output();
    let done = done.expect("cc is there; cargo xtask test installs it");
    assert!(done.status.success(), "{done:?}");
    let take = format!("cat > {THERE} && chmod +x {THERE}");
    let input = File::open(&program).unwrap();
    let taken = viv(&["exec", vm, "--", "sh", "-c", &take]).stdin(input).status().unwrap();
    let _ = std::fs::remove_file(&program);
    assert!(taken.success(), "{vm}: {taken}");
}

/// Runs it in the background, with what it says in a file.
#[track_caller]
pub fn begin(vm: &str, words: &str, says: &str) {
    exec(vm, &format!("{THERE} {words} > {says} 2>&1 < /dev/null &")).ok();
}

/// Runs it to its end, and gives what it says.
#[track_caller]
pub fn ask(vm: &str, words: &str) -> String {
    run(&["exec", vm, "--", "sh", "-c", &format!("{THERE} {words}")], "").ok().out
}
