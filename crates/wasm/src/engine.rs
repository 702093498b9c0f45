//! Makes a WebAssembly program ready to run.
use crate::code;
use crate::instance::WasmInstance;
use crate::wasi::{self, Wasi};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use viv_cell::sandbox::Files;
use viv_model::{Fault, GuestKind, Kind, ShareSpec};
use viv_process::{Confinement, Engine, Prepared, Setting};
use wasmtime::{Config, ExternType, Linker, Module};

/// Bytes of stack that a program's calls may take.
const STACK: usize = 4 << 20;
/// Most bytes of a program's file.
const FILE_MAX: u64 = 256 << 20;

/// WebAssembly, by wasmtime.
pub(crate) struct Wasm;

impl Engine for Wasm {
    fn kind(&self) -> GuestKind {
        GuestKind::Wasm
    }

    fn prepare(&self, setting: Setting<'_>) -> Result<Prepared, Fault> {
        let Setting { vm, program, streams, gate } = setting;
        let spec = &program.spec;
        let length = fs::metadata(&spec.file).map_err(|error| no_file(&spec.file, &error))?.len();
        if length > FILE_MAX {
            return Err(not_runnable(
                &program.called,
                format!("it has {length} bytes, and at most {FILE_MAX} can be compiled"),
                "make it smaller: wasm-opt, or strip its debug information",
            ));
        }
        let bytes = fs::read(&spec.file).map_err(|error| no_file(&spec.file, &error))?;
        let engine = wasmtime::Engine::new(&config(spec.fuel.is_some())).map_err(|error| {
            Fault::new(
                Kind::Error,
                format!("wasmtime does not start on this host: {error:#}"),
                "report this with the output of: viv info",
            )
        })?;
        let module = code::module(&engine, &program.called, &bytes, spec.fuel.is_some(), &program.cache)?;
        let mut linker = Linker::new(&engine);
        wasi::link(&mut linker)
            .map_err(|error| not_runnable(&program.called, format!("{error:#}"), REPORT))?;
        let ready =
            linker.instantiate_pre(&module).map_err(|error| imports(&program.called, &module, &error))?;
        let start = crate::invoke::start(&program.called, &module, spec)?;
        let wasi = Wasi::new(&vm.machine.shares, program, streams, gate.clone())?;
        let (whole, read) = directories(&vm.machine.shares);
        let poke = engine.clone();
        gate.on_change(move || poke.increment_epoch());
        let calls = if whole.is_empty() { Vec::new() } else { wasi::CALLS.to_vec() };
        let instance = WasmInstance::new(ready, wasi, start, vm.machine.memory_mib << 20, spec.fuel);
        Ok(Prepared {
            instance: Arc::new(instance),
            confinement: Confinement { files: Files { whole, read, ..Files::default() }, calls },
        })
    }
}

/// The directories that a program may change, and those that it may read.
pub(crate) fn directories(shares: &[ShareSpec]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (read, whole): (Vec<&ShareSpec>, _) = shares.iter().partition(|share| share.read_only);
    let paths = |shares: Vec<&ShareSpec>| shares.into_iter().map(|share| share.path.clone()).collect();
    (paths(whole), paths(read))
}

/// How code is made. What is not named is wasmtime's usual.
pub(crate) fn config(fuel: bool) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(fuel)
        .max_wasm_stack(STACK)
        .async_stack_size(STACK) // not used, and may not be less
        .wasm_function_references(true)
        .wasm_gc(true)
        .wasm_exceptions(true)
        .wasm_memory64(true);
    config
}

pub(crate) const REPORT: &str = "this is a defect of ours: please report it with this line";

pub(crate) fn not_runnable(called: &str, why: impl std::fmt::Display, fix: impl Into<String>) -> Fault {
    Fault::new(Kind::NotRunnable, format!("{called} cannot be run: {why}"), fix)
}

fn no_file(path: &std::path::Path, error: &std::io::Error) -> Fault {
    Fault::new(
        Kind::of_file(error),
        format!("the VM's copy of its program {} cannot be read: {error}", path.display()),
        "make the VM anew: viv rm, then viv run FILE",
    )
}

/// What is wrong with what a module imports.
fn imports(called: &str, module: &Module, error: &wasmtime::Error) -> Fault {
    let component = module.imports().find(|import| import.module().starts_with("wasi:"));
    if let Some(import) = component {
        let why = format!("it imports {:?}, which is WASI preview 2", import.module());
        return not_runnable(called, why, "build it for WASI preview 1: --target wasm32-wasip1");
    }
    let memory = module
        .imports()
        .find(|import| matches!(import.ty(), ExternType::Memory(memory) if memory.is_shared()));
    if memory.is_some() {
        let why = "it wants a memory that threads share, and gets no threads";
        return not_runnable(called, why, "build it without threads: --target wasm32-wasip1");
    }
    let names: Vec<String> = module
        .imports()
        .filter(|import| import.module() != wasi::MODULE)
        .take(8)
        .map(|import| format!("{}::{}", import.module(), import.name()))
        .collect();
    let why = match names.as_slice() {
        [] => format!("{error:#}"),
        names => format!("nobody gives it what it imports: {}", names.join(", ")),
    };
    not_runnable(
        called,
        why,
        "build it for WASI preview 1 (--target wasm32-wasip1), whose functions are all that it can import",
    )
}
