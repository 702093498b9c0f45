//! Runs hostile modules in this process, for the fuzz targets.
use crate::code;
use crate::code::How;
use crate::engine::config;
use crate::instance::{Ready, WasmInstance};
use crate::invoke;
use crate::wasi::{self, Wasi};
use std::path::Path;
use std::sync::Arc;
use viv_api::runner::RunnerProgram;
use viv_cell::Console;
use viv_model::{End, GuestKind, ProgramSpec, ShareSpec};
use viv_process::{Gate, Instance, Streams};
use wasmtime::{Engine, Linker, Module};

/// Most memory of a trial, bytes.
const MEMORY: u64 = 16 << 20;
const HOW: How = How { fuel: true, live: false };

/// Compiles and runs `module` in `directory`, which it may change, with so much fuel. Nothing if it cannot be run.
pub fn run(module: &[u8], directory: &Path, fuel: u64) -> Option<End> {
    let engine = Engine::new(&config(HOW)).ok()?;
    code::code_of(module, HOW).ok()?;
    let module = Module::new(&engine, module).ok()?;
    let mut linker = Linker::new(&engine);
    wasi::link(&mut linker).ok()?;
    let ready = linker.instantiate_pre(&module).ok()?;
    let spec = ProgramSpec {
        kind: GuestKind::Wasm,
        fuel: Some(fuel),
        deterministic: true,
        ..ProgramSpec::default()
    };
    let start = invoke::start("trial", &module, &spec).ok()?;
    let gate = Arc::new(Gate::default());
    let streams = Arc::new(Streams::new(gate.clone(), Arc::new(Console::new()), false));
    let program = RunnerProgram {
        spec,
        original: "/".into(),
        called: "trial".into(),
        cache: directory.to_path_buf(),
        awaited: false,
    };
    let share = ShareSpec { path: directory.to_path_buf(), target: "/".into(), ..ShareSpec::default() };
    let wasi = Wasi::new(&[share], &program, streams, gate.clone()).ok()?;
    gate.begin();
    let ready = Ready { instance: ready, wasi, start, resume: None };
    Some(WasmInstance::new(ready, None, MEMORY, Some(fuel)).run())
}
