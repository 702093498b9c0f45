//! Programs saved at any moment and let go on, as VMs do it: they say and write what they would have.
//!
//! `VIV_CUTS=500 cargo test --release -p viv-wasm cuts` for more of them.
use crate::trial::{Run, Trial};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use viv_model::End;

/// A recursion of some depth, hashing its leaves; floats, and a little of everything.
pub(crate) const COMPUTES: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1) (global $hash (mut i64) (i64.const 7)) (global $x (mut f64) (f64.const 0.5))
    (table funcref (elem $ack $other)) (type $f (func (param i32 i32) (result i32)))
    (func $say (i64.store (i32.const 64) (global.get $hash))
        (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 8))
        (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable)))
    (func $mix (param i32) (global.set $hash
        (i64.mul (i64.xor (global.get $hash) (i64.extend_i32_u (local.get 0))) (i64.const 0x100000001b3))))
    (func $other (type $f) (call $mix (local.get 1)) (i32.add (local.get 0) (local.get 1)))
    (func $ack (type $f)
        (call $mix (local.get 0))
        (global.set $x (f64.mul (f64.mul (f64.const 3.99) (global.get $x)) (f64.sub (f64.const 1) (global.get $x))))
        (if (i32.eqz (local.get 0)) (then (return (i32.add (local.get 1) (i32.const 1)))))
        (if (i32.eqz (local.get 1))
            (then (return (call_indirect (type $f) (i32.sub (local.get 0) (i32.const 1)) (i32.const 1) (i32.const 0)))))
        (call_indirect (type $f)
            (i32.sub (local.get 0) (i32.const 1))
            (call $ack (local.get 0) (i32.sub (local.get 1) (i32.const 1)))
            (i32.const 0)))
    (func (export "_start") (local $n i32)
        (loop $l
            (call $mix (call $ack (i32.const 2) (i32.add (local.get $n) (i32.const 60))))
            (call $mix (call_indirect (type $f) (i32.trunc_sat_f64_s (f64.mul (global.get $x) (f64.const 1e9)))
                (local.get $n) (i32.const 1)))
            (call $say)
            (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 40))))))"#;

/// What COMPUTES has not: loops with parameters, many results, vectors, tables of branches, tail calls, bulk copies, a memory of 64
/// bits, tables that are filled; and a wait now and then.
pub(crate) const MIXES: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "sched_yield" (func $yield (result i32)))
    (memory (export "memory") 1) (memory $wide i64 1 64) (data $seed "so many bytes to be copied about")
    (type $op (func (param i64 i64) (result i64)))
    (table $t 3 64 funcref) (elem (table $t) (i32.const 0) func $add $mul $xor) (elem $more func $xor $add $mul)
    (global $hash (mut i64) (i64.const 11)) (global $f (mut f32) (f32.const 0.5)) (global $d (mut f64) (f64.const 0.25))
    (global $v (mut v128) (v128.const i32x4 1 2 3 4)) (global $picked (mut funcref) (ref.null func))
    (func $add (type $op) (i64.add (local.get 0) (local.get 1)))
    (func $mul (type $op) (i64.mul (local.get 0) (i64.or (local.get 1) (i64.const 1))))
    (func $xor (type $op) (i64.xor (local.get 0) (i64.rotl (local.get 1) (i64.const 7))))
    (func $mix (param i64)
        (global.set $hash (i64.mul (i64.xor (global.get $hash) (local.get 0)) (i64.const 0x100000001b3))))
    (func $collatz (param $n i32) (result i32 i32) (local $steps i32) (local $most i32)
        (local.get $n) (i32.const 0)
        (loop $l (param i32 i32) (result i32 i32)
            (local.set $steps) (local.tee $n)
            (if (i32.gt_u (local.get $n) (local.get $most)) (then (local.set $most (local.get $n))))
            (if (param i32) (result i32) (i32.and (local.get $n) (i32.const 1))
                (then (i32.add (i32.mul (i32.const 3)) (i32.const 1)))
                (else (i32.shr_u (i32.const 1))))
            (i32.add (local.get $steps) (i32.const 1))
            (br_if $l (i32.gt_u (local.get $n) (i32.const 2))))
        (drop) (drop) (local.get $steps) (local.get $most))
    (func $turn (param $k i32) (param $x i64) (result i64)
        (block $three (result i64) (block $two (result i64) (block $one (result i64)
            (br_table $one $two $three $one (local.get $x) (i32.rem_u (local.get $k) (i32.const 5))))
            (i64.rotl (i64.const 13)))
            (i64.xor (i64.const 0x5555555555555555)))
        (i64.add (i64.extend_i32_u (local.get $k))))
    (func $vector (param $k i32) (result i64) (local $v v128)
        (local.set $v (i32x4.mul (i32x4.add (global.get $v) (i32x4.splat (local.get $k))) (v128.const i32x4 3 5 7 11)))
        (global.set $v (i8x16.shuffle 4 5 6 7 8 9 10 11 12 13 14 15 0 1 2 3 (local.get $v) (local.get $v)))
        (i64.xor (i64x2.extract_lane 0 (local.get $v)) (i64x2.extract_lane 1 (global.get $v))))
    (func $floats (param $k i32) (result i64)
        (global.set $f (f32.div (f32.add (global.get $f) (f32.convert_i32_u (local.get $k))) (f32.const 1.7)))
        (global.set $d (f64.sqrt (f64.add (f64.promote_f32 (global.get $f)) (f64.mul (global.get $d) (f64.const 1.25)))))
        (i64.xor (i64.reinterpret_f64 (global.get $d)) (i64.extend_i32_u (i32.reinterpret_f32 (global.get $f)))))
    (func $sum (param $n i32) (param $x i64) (result i64)
        (if (i32.eqz (local.get $n)) (then (return (local.get $x))))
        (return_call $sum (i32.sub (local.get $n) (i32.const 1))
            (i64.add (i64.mul (local.get $x) (i64.const 31)) (i64.extend_i32_u (local.get $n)))))
    (func $tree (param $d i32) (param $x i64) (result i64)
        (if (i32.eqz (local.get $d)) (then (return (call $turn (i32.wrap_i64 (local.get $x)) (local.get $x)))))
        (call_indirect $t (type $op)
            (call $tree (i32.sub (local.get $d) (i32.const 1)) (i64.mul (local.get $x) (i64.const 6364136223846793005)))
            (call $tree (i32.sub (local.get $d) (i32.const 1)) (i64.add (local.get $x) (i64.const 1442695040888963407)))
            (i32.rem_u (local.get $d) (i32.const 3))))
    (func $bulk (param $k i32) (local $at i64)
        (local.set $at (i64.extend_i32_u (i32.mul (local.get $k) (i32.const 100))))
        (memory.init $seed (i32.const 4096) (i32.const 0) (i32.const 32))
        (memory.copy (i32.add (i32.const 4100) (local.get $k)) (i32.const 4096) (i32.const 64))
        (memory.fill (i32.const 8192) (local.get $k) (i32.const 77))
        (memory.copy $wide 0 (local.get $at) (i32.add (i32.const 4096) (local.get $k)) (i32.const 100))
        (i64.store $wide (local.get $at) (global.get $hash))
        (call $mix (i64.load $wide offset=5 (local.get $at)))
        (if (i32.eqz (i32.rem_u (local.get $k) (i32.const 16))) (then
            (call $mix (memory.grow $wide (i64.const 1)))
            (global.set $picked (table.get $t (i32.rem_u (local.get $k) (i32.const 3))))
            (call $mix (i64.extend_i32_s (table.grow $t (global.get $picked) (i32.const 2))))
            (table.init $t $more (i32.const 0) (i32.const 1) (i32.const 2))))
        (table.copy $t $t (i32.const 1) (i32.const 0) (i32.const 2))
        (table.fill $t (i32.const 0) (table.get $t (i32.rem_u (local.get $k) (i32.const 3))) (i32.const 1)))
    (func (export "_start") (local $k i32)
        (loop $l
            (call $collatz (i32.add (local.get $k) (i32.const 27)))
            (call $mix (i64.extend_i32_u)) (call $mix (i64.extend_i32_u))
            (call $mix (call $vector (local.get $k)))
            (call $mix (call $floats (local.get $k)))
            (call $mix (call $sum (i32.const 100) (global.get $hash)))
            (call $mix (call $tree (i32.const 7) (global.get $hash)))
            (call $bulk (local.get $k))
            (drop (call $yield))
            (i64.store (i32.const 64) (global.get $hash))
            (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 8))
            (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
            (if (i32.eqz (i32.rem_u (local.get $k) (i32.const 32))) (then
                (i32.store (i32.const 528) (i32.const 1)) (i64.store (i32.const 536) (i64.const 100000))
                (if (call $poll (i32.const 512) (i32.const 768) (i32.const 1) (i32.const 8)) (then unreachable))))
            (br_if $l (i32.lt_u (local.tee $k (i32.add (local.get $k) (i32.const 1))) (i32.const 300))))))"#;

/// Memory and a table that grow, written all over.
pub(crate) const ALLOCATES: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1) (table $t 1 funcref) (elem declare func $f)
    (func $f (result i32) (i32.const 3))
    (func (export "_start") (local $page i32) (local $at i32) (local $sum i32)
        (loop $pages
            (local.set $page (memory.grow (i32.const 1)))
            (drop (table.grow $t (ref.func $f) (i32.const 3)))
            (local.set $at (i32.const 0))
            (loop $words
                (i32.store (i32.add (i32.shl (local.get $page) (i32.const 16)) (local.get $at))
                    (i32.mul (i32.add (local.get $at) (local.get $page)) (i32.const 0x9e3779b1)))
                (local.set $sum (i32.add (i32.rotl (local.get $sum) (i32.const 5))
                    (i32.load (i32.shr_u (i32.mul (local.get $sum) (i32.const 2654435761)) (i32.const 16)))))
                (br_if $words (i32.lt_u (local.tee $at (i32.add (local.get $at) (i32.const 64))) (i32.const 65536))))
            (i32.store (i32.const 64) (i32.add (local.get $sum) (call_indirect (result i32) (i32.sub (table.size $t) (i32.const 1)))))
            (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 4))
            (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
            (br_if $pages (i32.lt_u (local.get $page) (i32.const 48))))))"#;

/// A file that is written, read back at other places, and told about; waits now and then.
pub(crate) const WRITES: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pread" (func $pread (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1) (data (i32.const 32) "book") (global $hash (mut i64) (i64.const 9))
    (func $put (param $fd i32) (i64.store (i32.const 64) (global.get $hash))
        (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 8))
        (if (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable)))
    (func (export "_start") (local $n i32) (local $fd i32)
        (if (call $open (i32.const 3) (i32.const 0) (i32.const 32) (i32.const 4) (i32.const 9)
            (i64.const 0x1fffffff) (i64.const 0) (i32.const 0) (i32.const 16)) (then unreachable))
        (local.set $fd (i32.load (i32.const 16)))
        (loop $l
            (global.set $hash (i64.mul (i64.add (global.get $hash) (i64.extend_i32_u (local.get $n))) (i64.const 0x100000001b3)))
            (call $put (local.get $fd))
            (i32.store (i32.const 0) (i32.const 128))
            (if (call $pread (local.get $fd) (i32.const 0) (i32.const 1)
                (i64.extend_i32_u (i32.mul (i32.div_u (local.get $n) (i32.const 2)) (i32.const 8))) (i32.const 8)) (then unreachable))
            (global.set $hash (i64.xor (global.get $hash) (i64.load (i32.const 128))))
            (if (i32.eqz (i32.rem_u (local.get $n) (i32.const 256))) (then
                (i32.store (i32.const 528) (i32.const 1)) (i64.store (i32.const 536) (i64.const 100000))
                (if (call $poll (i32.const 512) (i32.const 768) (i32.const 1) (i32.const 8)) (then unreachable))
                (call $put (i32.const 1))))
            (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 6000))))
        (call $put (i32.const 1))))"#;

fn cuts() -> u32 {
    std::env::var("VIV_CUTS").ok().and_then(|number| number.parse().ok()).unwrap_or(20)
}

/// Saves one that runs; nothing if it has ended.
fn saved(trial: &Trial, run: &Run, number: u32) -> Option<PathBuf> {
    // Every second program, and what comes from it, as forks are.
    let cut = if (number / 8).is_multiple_of(2) { trial.cut(run, number) } else { trial.fork(run, number) };
    cut.inspect_err(|fault| assert!(fault.message.contains("ended"), "{fault}")).ok()
}

/// Cuts it at moments that nobody chose; what goes on is cut again up to three times.
fn goes_on_from_anywhere(text: &str) {
    let (trial, dir) = trial(text, None);
    let book = || fs::read(dir.join("share/book")).unwrap_or_default();
    let (end, said) = trial.begin(None).unwrap().wait();
    assert_eq!(end, End::Command { status: 0 });
    let written = book();
    let (mut state, mut cut, mut number) = (0x9e37_79b9u64, 0, 0);
    // How long it is left alone: no longer than it lives.
    let mut most = 1u64 << 16;
    'cuts: while cut < cuts() {
        number += 1;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let run = trial.begin(None).unwrap();
        thread::sleep(Duration::from_micros((state >> 33) % most));
        let Some(mut from) = saved(&trial, &run, 8 * number) else {
            most = (most / 2).max(1);
            continue;
        };
        if number % 2 == 0 {
            run.stop();
        } else {
            assert_eq!(run.wait(), (End::Command { status: 0 }, said.clone()), "it is not disturbed");
        }
        for generation in 1..=(state >> 50) % 4 {
            let run = trial.begin(Some(&from)).unwrap();
            thread::sleep(Duration::from_micros((state >> 40) % 500));
            let again = saved(&trial, &run, 8 * number + generation as u32);
            run.stop();
            let Some(again) = again else { continue 'cuts };
            from = again;
        }
        let (end, rest) = trial.begin(Some(&from)).unwrap().wait();
        assert_eq!(end, End::Command { status: 0 }, "cut {number}");
        assert!(said.ends_with(&rest) && rest.len() < said.len() + 1, "cut {number}: {} bytes", rest.len());
        assert!(book() == written, "cut {number}: its file");
        assert!(!from.exists(), "it goes on once");
        cut += 1;
    }
    fs::remove_dir_all(dir).unwrap();
}

/// A trial of its own.
fn trial(text: &str, fuel: Option<u64>) -> (Trial, PathBuf) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("viv-cuts-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let dir = std::env::temp_dir().join(name);
    fs::create_dir_all(dir.join("share")).unwrap();
    (Trial::new(text.as_bytes(), dir.join("share"), dir.clone(), 64, fuel).unwrap(), dir)
}

#[test]
fn a_snapshot_gives_no_more_fuel_than_there_is() {
    let text = r#"(module (memory (export "memory") 1) (func (export "_start") (loop (br 0))))"#;
    let (much, dir) = trial(text, Some(u64::MAX));
    let run = much.begin(None).unwrap();
    let cut = saved(&much, &run, 0).unwrap();
    run.stop();
    let (little, other) = trial(text, Some(10_000));
    let state = String::from_utf8(Trial::state(&cut)).unwrap();
    let fuel = state.find(r#""fuel":"#).unwrap();
    let end = fuel + state[fuel..].find(",").unwrap();
    for (number, claim) in [(1, "18446744073709551615"), (2, "null"), (3, "10000")] {
        let state = format!("{}\"fuel\":{claim}{}", &state[..fuel], &state[end..]);
        let cut = little.forge(state.as_bytes(), &[0; 65536], number);
        let run = little.begin(Some(&cut)).unwrap();
        let gate = run.gate.clone();
        thread::spawn(move || gate.limit(Duration::from_secs(20), End::Killed));
        let (end, _) = run.wait();
        assert!(matches!(&end, End::Limit { message } if message.contains("fuel")), "{claim}: {end:?}");
    }
    for dir in [dir, other] {
        fs::remove_dir_all(dir).unwrap();
    }
}

#[test]
fn what_a_fork_comes_from_is_compared_with_nothing_but_its_size() {
    let text = r#"(module (memory (export "memory") 2) (func (export "_start") (loop (br 0))))"#;
    let (trial, dir) = trial(text, None);
    let run = trial.begin(None).unwrap();
    let (kept, passing) = (trial.cut(&run, 0).unwrap(), trial.fork(&run, 1).unwrap());
    run.stop();
    let change = |cut: &PathBuf, size: usize| {
        let path = cut.join("memory");
        fs::remove_file(&path).unwrap();
        fs::write(path, vec![1; size]).unwrap();
    };
    change(&kept, 2 << 16);
    assert!(trial.begin(Some(&kept)).err().unwrap().message.contains("not what was written"));
    change(&passing, 2 << 15);
    let refused = trial.begin(Some(&passing)).err().unwrap().message;
    assert!(refused.contains("65536 bytes instead of 131072"), "{refused}");
    change(&passing, 2 << 16);
    trial.begin(Some(&passing)).unwrap().stop();
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_recursion_goes_on_from_anywhere() {
    goes_on_from_anywhere(COMPUTES);
}

#[test]
fn a_mixture_of_instructions_goes_on_from_anywhere() {
    goes_on_from_anywhere(MIXES);
}

#[test]
fn memory_and_tables_that_grow_go_on_from_anywhere() {
    goes_on_from_anywhere(ALLOCATES);
}

#[test]
fn files_go_on_from_anywhere() {
    goes_on_from_anywhere(WRITES);
}
