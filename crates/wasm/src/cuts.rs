//! Programs saved at any moment and let go on, as VMs do it: they say and write what they would have.
//!
//! `VIV_CUTS=500 cargo test --release -p viv-wasm cuts` for more of them.
use crate::code::How;
use crate::engine::{config, resume};
use crate::instance::{Ready, WasmInstance};
use crate::invoke;
use crate::keeper::Keeper;
use crate::wasi::{self, Wasi};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;
use viv_api::runner::{RunnerProgram, RunnerSpec};
use viv_cell::Console;
use viv_model::{End, GuestKind, MachineSpec, Manifest, ProgramSpec, ShareSpec};
use viv_process::{Files, Gate, Instance, Streams};
use viv_snapshot::{FORMAT_PROGRAM, MEMORY, STATE, sums_file, write_manifest};
use wasmtime::{Engine, Linker, Module};

/// A recursion of some depth, hashing its leaves; floats, and a little of everything.
const COMPUTES: &str = r#"(module
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

/// Memory and a table that grow, written all over.
const ALLOCATES: &str = r#"(module
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
const WRITES: &str = r#"(module
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

struct Trial {
    engine: Engine,
    module: Module,
    dir: PathBuf,
}

fn machine(shares: &[ShareSpec]) -> MachineSpec {
    let json = serde_json::json!({ "cpus": 1, "memory_mib": 64, "kernel": "", "shares": shares });
    serde_json::from_value(json).unwrap()
}

/// One that runs.
struct Run {
    instance: Arc<WasmInstance>,
    gate: Arc<Gate>,
    console: Arc<Console>,
    output: thread::JoinHandle<Vec<u8>>,
    end: thread::JoinHandle<End>,
}

impl Run {
    /// Its end, and all that it has said.
    fn wait(self) -> (End, Vec<u8>) {
        let end = self.end.join().unwrap();
        self.console.close();
        (end, self.output.join().unwrap())
    }
}

impl Trial {
    fn new(text: &str) -> Trial {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("viv-cuts-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        fs::create_dir_all(dir.join("share")).unwrap();
        let engine = Engine::new(&config(How { fuel: false, live: true })).unwrap();
        Trial { module: Module::new(&engine, text).unwrap(), engine, dir }
    }

    fn begin(&self, from: Option<&Path>) -> Run {
        let spec = ProgramSpec { kind: GuestKind::Wasm, ..ProgramSpec::default() };
        let share = ShareSpec { path: self.dir.join("share"), target: "/".into(), ..ShareSpec::default() };
        let program = RunnerProgram {
            spec,
            original: "/".into(),
            called: "trial".into(),
            cache: self.dir.clone(),
            awaited: false,
        };
        let vm = RunnerSpec {
            name: "trial".into(),
            machine: machine(&[share]),
            on_reboot: Default::default(),
            attended_by: None,
            command: None,
            health: None,
            program: None,
            resume: from.is_some(),
            is_copy: false,
        };
        let gate = Arc::new(Gate::default());
        let poke = self.engine.clone();
        gate.on_change(move || poke.increment_epoch());
        let console = Arc::new(Console::new());
        let streams = Arc::new(Streams::new(gate.clone(), console.clone(), false));
        let mut wasi = Wasi::new(&vm.machine.shares, &program, streams, gate.clone()).unwrap();
        let make = |bytes: &[u8]| Ok(Module::new(&self.engine, bytes).unwrap());
        let resume =
            from.map(|dir| resume(dir, &vm, &program, &self.module, "file", &mut wasi, &make).unwrap());
        let mut linker = Linker::new(&self.engine);
        wasi::link(&mut linker).unwrap();
        let instance = linker.instantiate_pre(&self.module).unwrap();
        let start = invoke::start("trial", &self.module, &program.spec).unwrap();
        let keeper = Keeper::new(&self.module, "file".into(), gate.clone());
        let ready = Ready { instance, wasi, start, resume };
        let instance = Arc::new(WasmInstance::new(ready, Some(keeper), 64 << 20, None));
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let shown = console.clone();
        thread::spawn(move || viv_cell::attach(&shown, ours, |_| {}));
        let output = thread::spawn(move || {
            let mut all = Vec::new();
            let _ = theirs.read_to_end(&mut all);
            all
        });
        gate.begin();
        let runs = instance.clone();
        let end = thread::Builder::new().stack_size(16 << 20).spawn(move || runs.run()).unwrap();
        Run { instance, gate, console, output, end }
    }

    /// Saves one that runs; nothing if it has ended.
    fn cut(&self, run: &Run, number: u32) -> Option<PathBuf> {
        let dir = self.dir.join(format!("cut{number}"));
        fs::create_dir(&dir).unwrap();
        let create = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(dir.join(name)).unwrap()
        };
        let files = Files { state: create(STATE), memory: create(MEMORY), sums: create(&sums_file(MEMORY)) };
        let saved = run.instance.save(&files).unwrap();
        let saved = match saved {
            Ok(saved) => saved,
            Err(fault) => {
                assert!(fault.message.contains("ended"), "{fault}");
                return None;
            }
        };
        let manifest = Manifest {
            format: FORMAT_PROGRAM,
            release: String::new(),
            id: "0".into(),
            name: "cut".into(),
            comment: String::new(),
            created_unix_s: 0,
            vm: (String::new(), String::new()),
            image: None,
            parent: None,
            groups: Vec::new(),
            labels: Vec::new(),
            template: false,
            machine: machine(&[]),
            program: None,
            paused_ns: saved.paused_ns,
            frozen_file_systems: None,
            sections: saved.sections,
            memory: saved.memory,
            disks: Vec::new(),
            files: Vec::new(),
        };
        write_manifest(&manifest, &dir, false).unwrap();
        Some(dir)
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn cuts() -> u32 {
    std::env::var("VIV_CUTS").ok().and_then(|number| number.parse().ok()).unwrap_or(20)
}

/// Cuts it at moments that nobody chose; every third of what goes on is cut again.
fn goes_on_from_anywhere(text: &str) {
    let trial = Trial::new(text);
    let book = || fs::read(trial.dir.join("share/book")).unwrap_or_default();
    let (end, said) = trial.begin(None).wait();
    assert_eq!(end, End::Command { status: 0 });
    let written = book();
    let (mut state, mut cut, mut number) = (0x9e37_79b9u64, 0, 0);
    // How long it is left alone: no longer than it lives.
    let mut most = 1u64 << 16;
    while cut < cuts() {
        number += 1;
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let run = trial.begin(None);
        thread::sleep(Duration::from_micros((state >> 33) % most));
        let Some(mut from) = trial.cut(&run, 2 * number) else {
            most = (most / 2).max(1);
            continue;
        };
        if number % 2 == 0 {
            run.gate.stop(End::Killed);
            run.wait();
        } else {
            assert_eq!(run.wait(), (End::Command { status: 0 }, said.clone()), "it is not disturbed");
        }
        if number % 3 == 0 {
            let run = trial.begin(Some(&from));
            thread::sleep(Duration::from_micros((state >> 40) % 500));
            let again = trial.cut(&run, 2 * number + 1);
            run.gate.stop(End::Killed);
            run.wait();
            let Some(again) = again else { continue };
            from = again;
        }
        let (end, rest) = trial.begin(Some(&from)).wait();
        assert_eq!(end, End::Command { status: 0 }, "cut {number}");
        assert!(said.ends_with(&rest) && rest.len() < said.len() + 1, "cut {number}: {} bytes", rest.len());
        assert!(book() == written, "cut {number}: its file");
        assert!(!from.exists(), "it goes on once");
        cut += 1;
    }
}

#[test]
fn a_recursion_goes_on_from_anywhere() {
    goes_on_from_anywhere(COMPUTES);
}

#[test]
fn memory_and_tables_that_grow_go_on_from_anywhere() {
    goes_on_from_anywhere(ALLOCATES);
}

#[test]
fn files_go_on_from_anywhere() {
    goes_on_from_anywhere(WRITES);
}
