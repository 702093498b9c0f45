//! What is read of a saved WebAssembly program: bytes as its state, or the state of one that waits, changed here and there. It is
//! refused, or goes on to some end; it finds nothing outside its directory, has no more fuel than it was given, and no more memory.
#![no_main]
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use viv_wasm::trial::Trial;

/// A recursion with values of all types, a table, two memories and a file, that waits for its input, and goes on with all of it.
const PROGRAM: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open" (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_readdir" (func $list (param i32 i32 i32 i64 i32) (result i32)))
    (memory (export "memory") 1 40) (memory $more i64 0 4) (data (i32.const 0) "b") (data $d "some words")
    (type $f (func (param i32 i64) (result i64)))
    (table $t 3 30 funcref) (elem (table $t) (i32.const 1) func $deep $flat)
    (global $g (mut i64) (i64.const 5)) (global $v (mut v128) (v128.const i32x4 1 2 3 4)) (global $r (mut funcref) (ref.null func))
    (func $flat (type $f) (i64.add (local.get 1) (i64.extend_i32_u (local.get 0))))
    (func $waits (param $n i32) (result i32)
        (i32.store (i32.const 16) (i32.const 64)) (i32.store (i32.const 20) (i32.const 64))
        (drop (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 24)))
        (drop (call $list (i32.const 3) (i32.const 1024) (i32.const 512) (i64.const 1) (i32.const 24)))
        (memory.init $d (i32.const 200) (i32.const 0) (i32.const 10))
        (drop (table.grow $t (global.get $r) (i32.const 1)))
        (drop (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 24)))
        (call $read (i32.const 4) (i32.const 16) (i32.const 1) (i32.const 24)))
    (func $deep (type $f) (local $x f32) (local $y f64) (local $w v128) (local $h funcref) (local $e externref)
        (local.set $x (f32.const 1.5)) (local.set $y (f64.const nan)) (local.set $w (global.get $v))
        (local.set $h (ref.func $flat))
        (i64.const 7) (local.get $w)
        (loop $l (param v128) (result v128)
            (global.set $v)
            (if (i32.eqz (local.get 0))
                (then (drop (call $waits (local.get 0))))
                (else (global.set $g (call_indirect $t (type $f)
                    (i32.sub (local.get 0) (i32.const 1)) (global.get $g) (i32.const 1)))))
            (global.get $v)
            (br_if $l (i64.lt_u (local.tee 1 (i64.add (local.get 1) (i64.const 1))) (i64.const 3))))
        (drop) (drop)
        (global.set $r (local.get $h))
        (local.get 1))
    (func (export "_start")
        (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)
            (i64.const 0x1fffffff) (i64.const 0) (i32.const 0) (i32.const 32)))
        (drop (memory.grow $more (i64.const 1)))
        (i64.store $more (i64.const 8) (i64.const -1))
        (drop (call $deep (i32.const 4) (i64.const 0)))))"#;

/// Most fuel of a program that goes on: some milliseconds.
const FUEL: u64 = 200_000;
/// Most memory of it, MiB.
const MEMORY_MIB: u64 = 16;
/// Values that are at the edge of something.
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    31,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_0000,
    u64::MAX,
];
const WORDS: [&str; 8] = ["", ".", "..", "../secret", "/etc/passwd", "b\0", "a", "c"];

struct Stand {
    place: PathBuf,
    trial: Trial,
    state: Value,
    memory: Vec<u8>,
}

/// A directory for the programs, beside a secret, and the state of one that waits.
fn stand() -> &'static Stand {
    static STAND: OnceLock<Stand> = OnceLock::new();
    STAND.get_or_init(|| {
        let place = std::env::temp_dir().join(format!("viv-fuzz-saved-{}", std::process::id()));
        let inside = place.join("inside");
        fs::create_dir_all(inside.join("a")).expect("a directory");
        fs::create_dir_all(place.join("cuts")).expect("a directory");
        fs::write(place.join("secret"), "do not tell").expect("a secret");
        fs::write(inside.join("b"), "content").expect("a file");
        std::os::unix::fs::symlink("../secret", inside.join("c")).expect("a link");
        let trial = |fuel| {
            Trial::new(PROGRAM.as_bytes(), inside.clone(), place.join("cuts"), MEMORY_MIB, Some(fuel))
                .expect("it is a module")
        };
        let mut waits = trial(FUEL);
        waits.has_input = true;
        let run = waits.begin(None).expect("it runs");
        let cut = waits.cut(&run, 0).expect("it waits");
        run.stop();
        let state = serde_json::from_slice(&Trial::state(&cut)).expect("a state");
        let memory = fs::read(cut.join("memory")).expect("a memory");
        let trial = trial(FUEL);
        let (end, _) = trial.begin(Some(&cut)).expect("it goes on").wait();
        assert_eq!(end, viv_model::End::Command { status: 0 });
        Stand { place, trial, state, memory }
    })
}

/// Changes what the bytes lead to.
fn change(value: &mut Value, bytes: &mut impl Iterator<Item = u8>) -> Option<()> {
    let which = usize::from(bytes.next()?);
    match value {
        Value::Array(items) if !items.is_empty() => {
            let index = which % items.len();
            match bytes.next()? {
                0 => drop(items.remove(index)),
                1 => items.insert(index, items.get(index)?.clone()),
                2 => items.truncate(index),
                _ => change(items.get_mut(index)?, bytes)?,
            }
        }
        Value::Object(fields) if !fields.is_empty() => {
            let name = fields.keys().nth(which % fields.len())?.clone();
            match bytes.next()? {
                0 => drop(fields.remove(&name)),
                1 => drop(fields.insert(name, Value::Null)),
                _ => change(fields.get_mut(&name)?, bytes)?,
            }
        }
        Value::Number(number) => {
            let now = number.as_u64().unwrap_or_default();
            *value = match which {
                0..=99 => now.wrapping_add(which as u64).wrapping_sub(50).into(),
                _ => EDGES.get(which % EDGES.len()).copied()?.into(),
            };
        }
        Value::String(_) => *value = (*WORDS.get(which % WORDS.len())?).into(),
        Value::Bool(is) => *is = !*is,
        _ => *value = EDGES.get(which % EDGES.len()).copied()?.into(),
    }
    Some(())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    static NUMBER: AtomicU32 = AtomicU32::new(1);
    let Some((first, rest)) = data.split_first() else { return };
    let Stand { place, trial, state, memory } = stand();
    let (state, memory) = match first & 3 {
        0 => (rest.to_vec(), memory.clone()),
        _ => {
            let (mut state, mut bytes) = (state.clone(), rest.iter().copied());
            while change(&mut state, &mut bytes).is_some() {}
            let sizes = state.pointer("/state/memories").and_then(Value::as_array).cloned().unwrap_or_default();
            let total = sizes.iter().filter_map(Value::as_u64).fold(0u64, u64::saturating_add);
            let mut memory = memory.clone();
            memory.resize(total.min(MEMORY_MIB << 21) as usize, 7);
            (serde_json::to_vec(&state).expect("it is text"), memory)
        }
    };
    let cut = trial.forge(&state, &memory, NUMBER.fetch_add(1, Ordering::Relaxed));
    match trial.begin(Some(&cut)) {
        Ok(run) => drop(run.wait()),
        Err(_) => fs::remove_dir_all(&cut).expect("it is there"),
    }
    trial.forget();
    assert_eq!(fs::read(place.join("secret")).expect("it is there"), b"do not tell");
    let names = fs::read_dir(place).expect("it is there").count();
    assert_eq!(names, 3, "nothing was made outside");
});
