//! Programs of WASI preview 1, as they run, and cut again and again.
//!
//! ```text
//! VIV_WASM_WASI=DIR [VIV_WASM_EVERY=1000] cargo test --release -p viv-wasm suites::wasi -- --nocapture
//! ```
//! `DIR` is a checkout of the branch `prod/testsuite-base` of github.com/WebAssembly/wasi-testsuite, which has its programs compiled.
use super::{Program, Tally, World, every, given, lock};
use crate::code::How;
use crate::cuts::{ALLOCATES, COMPUTES, MIXES, WRITES};
use crate::engine::config;
use crate::instance::Host;
use crate::limits::Limits;
use crate::live::Unsaved;
use crate::wasi::{self, Exit, SavedWasi, Wasi};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use viv_api::runner::RunnerProgram;
use viv_cell::Console;
use viv_model::{GuestKind, ProgramSpec, ShareSpec};
use viv_process::{Gate, Streams};
use wasmtime::{Engine, Instance, Linker, Store, StoreContextMut};

/// Where its compiled programs are.
const PARTS: [&str; 3] = [
    "tests/assemblyscript/testsuite/wasm32-wasip1",
    "tests/c/testsuite/wasm32-wasip1",
    "tests/rust/testsuite/wasm32-wasip1",
];
/// Most memory of a program, bytes.
const MEMORY: u64 = 64 << 20;
/// Most cuts of one program, unless `VIV_WASM_MOST` says otherwise.
const MOST: u64 = 150;

impl World for Host {
    type Saved = SavedWasi;

    fn saved(&self) -> Result<SavedWasi, Unsaved> {
        self.wasi.saved(false)
    }

    fn begins(mut store: StoreContextMut<'_, Host>, instance: Instance) {
        store.data_mut().wasi.memory = instance.get_memory(&mut store, "memory");
    }
}

/// What a test is given, and what is expected of it (doc/specification.md of the suite).
#[derive(Default, Deserialize)]
#[serde(default)]
struct Test {
    args: Vec<String>,
    env: BTreeMap<String, String>,
    root: Option<PathBuf>,
    exit_code: u8,
    stdout: Option<String>,
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap_or_else(|error| panic!("{}: {error}", from.display())) {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&from, &to);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from).unwrap(), &to).unwrap();
        } else {
            fs::copy(&from, &to).unwrap();
        }
    }
}

/// Runs a program with this directory; gives its status, or why it has none, and what it has said.
fn run(
    live: bool,
    name: &str,
    bytes: &[u8],
    test: &Test,
    root: &Path,
    tally: &super::Shared,
) -> (Result<u8, String>, Vec<u8>) {
    let engine = Engine::new(&config(How { fuel: false, live })).unwrap();
    let mut linker = Linker::new(&engine);
    wasi::link(&mut linker).unwrap();
    let spec = ProgramSpec {
        kind: GuestKind::Wasm,
        args: test.args.clone(),
        env: test.env.clone().into_iter().collect(),
        ..ProgramSpec::default()
    };
    let program = RunnerProgram {
        spec,
        original: "/".into(),
        called: name.into(),
        cache: root.to_path_buf(),
        awaited: false,
    };
    let share = ShareSpec { path: root.to_path_buf(), target: "/".into(), ..ShareSpec::default() };
    let shares = if test.root.is_some() { vec![share] } else { Vec::new() };
    let (gate, console) = (Arc::new(Gate::default()), Arc::new(Console::new()));
    gate.begin();
    let streams = Arc::new(Streams::new(gate.clone(), console.clone(), false));
    let make = Box::new(|saved: Option<SavedWasi>| {
        let mut wasi = Wasi::new(&shares, &program, streams.clone(), gate.clone()).unwrap();
        if let Some(saved) = saved {
            wasi.put_back(&shares, &saved).unwrap();
        }
        let mut store =
            Store::new(&engine, Host { wasi, live: None, limits: Limits::new(MEMORY, Arc::default()) });
        store.set_epoch_deadline(u64::MAX / 2);
        store
    });
    let done = Program::new(&engine, bytes, &linker, make, tally.clone()).and_then(|mut program| {
        let start = program.instance.get_func(&mut program.store, "_start").unwrap();
        program.call(start, &[])
    });
    console.close();
    let status = match done {
        Ok(_) => Ok(0),
        Err(error) => error.downcast_ref::<Exit>().map(|exit| exit.0).ok_or_else(|| format!("{error:#}")),
    };
    (status, console.reader(u64::MAX).flatten().collect())
}

/// A directory for one run.
fn place() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("viv-wasi-suite-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let place = std::env::temp_dir().join(name);
    fs::create_dir_all(&place).unwrap();
    place
}

/// Runs a test of the suite; says what is wrong.
fn one(live: bool, path: &Path, tally: &super::Shared) -> Result<(), String> {
    let test = fs::read(path.with_extension("json")).map_or_else(
        |_| Test::default(),
        |text| serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    );
    let (place, name) = (place(), path.file_name().unwrap().to_str().unwrap());
    if let Some(root) = &test.root {
        copy(&path.with_file_name(root), &place);
    }
    let (status, said) = run(live, name, &fs::read(path).unwrap(), &test, &place, tally);
    fs::remove_dir_all(place).unwrap();
    let said = String::from_utf8_lossy(&said);
    match status {
        Ok(status) if status == test.exit_code => match &test.stdout {
            Some(wanted) if *wanted != said => Err(format!("it says {said:?} instead of {wanted:?}")),
            _ => Ok(()),
        },
        status => Err(format!("{status:?} instead of {}: {}", test.exit_code, said.trim())),
    }
}

/// Runs the suite; gives what failed.
fn suite(dir: &Path, live: bool, every: Option<u64>) -> Vec<String> {
    let (mut failed, mut all) = (Vec::new(), 0);
    let tally = Tally::new(every, given("VIV_WASM_MOST").unwrap_or(MOST));
    for part in PARTS {
        for path in super::files(&dir.join(part), "wasm") {
            all += 1;
            if let Err(why) = one(live, &path, &tally) {
                failed.push(format!("{}: {why}", path.strip_prefix(dir).unwrap().display()));
            }
            lock(&tally).made.clear();
        }
    }
    println!("WASI, {}: {} of {all} programs failed", lock(&tally).words(live), failed.len());
    failed.iter().for_each(|failed| println!("  {failed}"));
    failed
}

#[test]
fn programs_say_the_same_however_often_they_are_cut() {
    let all = [("COMPUTES", COMPUTES), ("MIXES", MIXES), ("ALLOCATES", ALLOCATES), ("WRITES", WRITES)];
    for (name, text) in all {
        let bytes = wat::parse_str(text).unwrap();
        let run = |every| {
            let (place, tally) = (place(), Tally::new(every, given("VIV_WASM_MOST").unwrap_or(6)));
            let test = Test { root: Some(place.clone()), ..Test::default() };
            let done = run(true, "ours", &bytes, &test, &place, &tally);
            let book = fs::read(place.join("book")).unwrap_or_default();
            fs::remove_dir_all(place).unwrap();
            assert_eq!(lock(&tally).refused, BTreeMap::new());
            assert!(every.is_none() || lock(&tally).cuts > 0);
            (done, book)
        };
        let alone = run(None);
        assert_eq!(alone.0.0, Ok(0));
        for every in [1, 7, 1000] {
            let ((status, said), book) = run(Some(every));
            assert_eq!(status, alone.0.0, "{name}, cut every {every} instructions");
            assert!(said == alone.0.1 && book == alone.1, "{name}, cut every {every} instructions");
        }
    }
}

/// The suite passes; without `VIV_WASM_WASI`, it has no programs.
#[test]
fn the_suite_passes_however_often_it_is_cut() {
    if let Ok(dir) = std::env::var("VIV_WASM_WASI") {
        let dir = Path::new(&dir);
        assert_eq!(suite(dir, false, None), [""; 0]);
        assert_eq!(suite(dir, true, None), [""; 0]);
        for every in every() {
            assert_eq!(suite(dir, true, Some(every)), [""; 0], "cut every {every} instructions");
        }
    }
}
