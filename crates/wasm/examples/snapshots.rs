//! How long a program stands still to be saved, and how long it takes to go on: 64 MiB of memory, all of it written, in the middle of a
//! recursion.
//!
//! ```text
//! cargo run --release -p viv-wasm --features trial --example snapshots [DIR]
//! ```
//! Snapshots are kept in DIR, or where temporary files are. The time to go on ends with the program's next word.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use viv_wasm::trial::Trial;

/// Fills its memory; then, a thousand calls deep, says a byte now and then.
const PROGRAM: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1024) (global $x (mut i64) (i64.const 1))
    (func $next (global.set $x (i64.add (i64.mul (global.get $x) (i64.const 6364136223846793005)) (i64.const 1442695040888963407))))
    (func $deep (param $n i32) (result i64) (local $k i32)
        (if (local.get $n) (then (return (i64.add (call $deep (i32.sub (local.get $n) (i32.const 1))) (i64.const 1)))))
        (loop $l
            (call $next)
            (i64.store (i32.and (i32.wrap_i64 (global.get $x)) (i32.const 0x3fffff8)) (global.get $x))
            (br_if $l (i32.and (local.tee $k (i32.add (local.get $k) (i32.const 1))) (i32.const 0xff)))
            (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 1))
            (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
            (br $l))
        (i64.const 0))
    (func (export "_start") (local $at i32)
        (loop $l
            (call $next)
            (i64.store (local.get $at) (global.get $x))
            (br_if $l (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 8))) (i32.const 0x4000000))))
        (drop (call $deep (i32.const 1000)))))"#;

/// How often each is measured.
const ROUNDS: u32 = 11;
/// Programs that go on from one snapshot, all in this process.
const CLONES: u32 = 100;

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    ms(times[times.len() / 2])
}

/// A copy of a snapshot, which is gone when a program has gone on from it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::hard_link(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn main() {
    let place: PathBuf = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = place.join(format!("viv-snapshots-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("share")).unwrap();
    let trial = Trial::new(PROGRAM.as_bytes(), dir.join("share"), dir.clone(), 256, None).unwrap();
    let run = trial.begin(None).unwrap();
    run.hear();
    let (mut paused, mut saved, mut cold, mut warm) = (vec![], vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        let begin = Instant::now();
        let cut = trial.cut(&run, round).unwrap();
        saved.push(begin.elapsed());
        paused.push(Trial::paused(&cut));
        let again = dir.join("again");
        copy(&cut, &again);
        for (from, times) in [(&cut, &mut cold), (&again, &mut warm)] {
            let begin = Instant::now();
            let other = trial.begin(Some(from)).unwrap();
            other.hear();
            times.push(begin.elapsed());
            other.stop();
        }
        trial.forget();
    }
    let kept = trial.cut(&run, ROUNDS).unwrap();
    let begin = Instant::now();
    let passing = trial.fork(&run, ROUNDS + 1).unwrap();
    let (forked, still) = (begin.elapsed(), Trial::paused(&passing));
    run.stop();
    let clones = |cut: &Path| {
        let begin = Instant::now();
        let clones = (0..CLONES).map(|number| {
            let again = dir.join(format!("clone{number}"));
            copy(cut, &again);
            let clone = trial.begin(Some(&again)).unwrap();
            clone.hear();
            clone.gate.pause();
            clone
        });
        let clones: Vec<_> = clones.collect();
        let cloned = begin.elapsed() / CLONES;
        clones.into_iter().for_each(|clone| clone.stop());
        ms(cloned)
    };
    let (of_kept, of_passing) = (clones(&kept), clones(&passing));
    println!(
        "stands still to be saved    {:7.1} ms (with all of it: {:.1} ms)",
        median(paused),
        median(saved)
    );
    println!("goes on, code made anew     {:7.1} ms", median(cold));
    println!("goes on, code made before   {:7.1} ms", median(warm));
    println!("stands still to be forked   {:7.1} ms (with all of it: {:.1} ms)", ms(still), ms(forked));
    println!("one of {CLONES} that go on from one that is kept   {of_kept:7.2} ms");
    println!("one of {CLONES} forks                              {of_passing:7.2} ms");
    std::fs::remove_dir_all(dir).unwrap();
}
