//! Makes a WebAssembly program ready to run.
use crate::code::{self, How};
use crate::component;
use crate::instance::{Ready, Resume, WasmInstance};
use crate::keeper::{Keeper, SECTION, Snapshot};
use crate::live::{self, Shape, Unsaved};
use crate::mapped::Memory;
use crate::wasi::{self, Wasi};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use viv_api::runner::{RESUME, RunnerProgram, RunnerSpec};
use viv_cell::sandbox::Files;
use viv_model::{Fault, GuestKind, Kind, ProgramSpec, ShareSpec};
use viv_net::switch::Listeners;
use viv_process::{Confinement, Engine, Prepared, Setting};
use viv_snapshot::{MANIFEST, read_manifest, read_section};
use wasmtime::{Config, ExternType, Linker, Module};

/// Bytes of stack that a program's calls may take.
const STACK: usize = 4 << 20;
/// Bytes of stack of what it asks of its host, and of saving it.
const STACK_OF_HOST: usize = 4 << 20;
/// What a module calls to take a connection.
const ACCEPT: &str = "sock_accept";
/// Most bytes of a program's file.
const FILE_MAX: u64 = 256 << 20;

/// WebAssembly, by wasmtime.
pub(crate) struct Wasm;

impl Engine for Wasm {
    fn kind(&self) -> GuestKind {
        GuestKind::Wasm
    }

    fn prepare(&self, setting: Setting<'_>) -> Result<Prepared, Fault> {
        let program = setting.program;
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
        let is_component = code::is_component(&bytes);
        let how = How { fuel: spec.fuel.is_some(), live: !spec.no_snapshots && !is_component };
        let engine = wasmtime::Engine::new(&config(how)).map_err(|error| {
            Fault::new(
                Kind::Error,
                format!("wasmtime does not start on this host: {error:#}"),
                "report this with the output of: viv info",
            )
        })?;
        let sum = code::sum_of(&bytes);
        if is_component {
            let code = code::code(&engine, &program.called, (&bytes, &sum), how, &program.cache)?;
            return component::prepare(&code, setting);
        }
        let Setting { vm, program, streams, gate, .. } = setting;
        if !vm.machine.nics.is_empty() {
            let why = "it is a module of WASI preview 1, which has no call that opens a connection";
            let fix = "leave out --net (-p alone gives it a port to listen at), or build a component: --target wasm32-wasip2";
            return Err(not_runnable(&program.called, why, fix));
        }
        let make =
            |bytes: &[u8], sum: &str| code::code(&engine, &program.called, (bytes, sum), how, &program.cache);
        let module = make(&bytes, &sum)?;
        let mut linker = Linker::new(&engine);
        wasi::link(&mut linker)
            .map_err(|error| not_runnable(&program.called, format!("{error:#}"), REPORT))?;
        let ready =
            linker.instantiate_pre(&module).map_err(|error| imports(&program.called, &module, &error))?;
        let start = crate::invoke::start(&program.called, &module, spec)?;
        let mut wasi = Wasi::new(&vm.machine.shares, program, streams, gate.clone())?;
        wasi.listen(listeners(&program.called, &module, vm, spec)?);
        let (whole, read) = directories(&vm.machine.shares);
        let poke = engine.clone();
        gate.on_change(move || poke.increment_epoch());
        let calls = if whole.is_empty() { Vec::new() } else { wasi::CALLS.to_vec() };
        let resume = match vm.resume {
            true => {
                let make = |bytes: &[u8]| make(bytes, &code::sum_of(bytes));
                Some(resume(Path::new(RESUME), vm, program, &module, &sum, &mut wasi, &make)?)
            }
            false => None,
        };
        let keeper = how.live.then(|| Keeper::new(&module, sum, gate.clone()));
        let ready = Ready { instance: ready, wasi, start, resume };
        let instance = WasmInstance::new(ready, keeper, vm.machine.memory_mib << 20, spec.fuel);
        Ok(Prepared {
            instance: Arc::new(instance),
            confinement: Confinement {
                files: Files { whole, read, ..Files::default() },
                calls,
                ..Confinement::default()
            },
        })
    }
}

/// The ports that a module listens at.
fn listeners(
    called: &str,
    module: &Module,
    vm: &RunnerSpec,
    spec: &ProgramSpec,
) -> Result<Vec<(TcpListener, u16)>, Fault> {
    let ports = &vm.machine.ports;
    if ports.is_empty() {
        return Ok(Vec::new());
    }
    if spec.deterministic {
        let why = "a deterministic run is not reached from outside: who comes, and when, is never the same";
        return Err(not_runnable(called, why, "leave out -p, or --deterministic"));
    }
    if !module.imports().any(|import| import.name() == ACCEPT) {
        let why = "it takes no connections: it does not import sock_accept";
        return Err(not_runnable(
            called,
            why,
            "leave out -p; its listeners would be its descriptors from 3 on",
        ));
    }
    spec.kind.check_ports(ports)?; // a document may say what the command would not
    Ok(Listeners::open(ports).map_err(|error| Fault::from(&error))?.into_tcp())
}

/// What a program needs to go on from the snapshot in `dir`, with code that is made for it. When it is there, the snapshot is gone: it goes
/// on once.
pub(crate) fn resume(
    dir: &Path,
    vm: &RunnerSpec,
    program: &RunnerProgram,
    module: &Module,
    file: &str,
    wasi: &mut Wasi,
    make: &dyn Fn(&[u8]) -> Result<Module, Fault>,
) -> Result<Resume, Fault> {
    let refused = |why: String, fix: &str| {
        Fault::new(Kind::Conflict, format!("{} cannot go on from the snapshot: {why}", program.called), fix)
    };
    let unsaved = |why: Unsaved| match why {
        Unsaved::Open(_) => refused(
            format!("{why}"),
            "put it back where it was when the snapshot was made, or use another snapshot",
        ),
        why => refused(format!("{why}"), "use another one: viv snapshot ls"),
    };
    let manifest = read_manifest(dir)?;
    let state = read_section(dir, &manifest, SECTION.0, SECTION.1)?;
    let snapshot: Snapshot = serde_json::from_slice(&state).map_err(|error| {
        refused(format!("its state is not understood: {error}"), "restore it with the release that made it")
    })?;
    if snapshot.file != file {
        return Err(refused("it is of another module".into(), "restore it with the program that it is of"));
    }
    let Some(bytes) = module.debug_bytecode().filter(|_| !program.spec.no_snapshots) else {
        return Err(refused(WITHOUT_RESUME.into(), "leave out --no-snapshots"));
    };
    let plan = live::plan(&Shape::read(bytes).map_err(unsaved)?, &snapshot.state).map_err(unsaved)?;
    let total = snapshot.state.memories.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
    if total != manifest.memory.bytes {
        let why = format!("it has {} bytes of memory instead of {total}", manifest.memory.bytes);
        return Err(refused(why, "use another one: viv snapshot ls"));
    }
    let memory = Memory::open(&manifest, dir)?;
    let module = make(&plan.written.module)?;
    wasi.put_back(&vm.machine.shares, &snapshot.wasi).map_err(unsaved)?;
    wasi.gate.has_run(Duration::from_nanos(snapshot.ran_ns));
    // Without its manifest it is none any more: nobody finds half of it.
    fs::remove_file(dir.join(MANIFEST)).and_then(|()| fs::remove_dir_all(dir)).map_err(|error| {
        refused(format!("its files cannot be removed: {error}"), "see that the VM's directory is writable")
    })?;
    Ok(Resume { snapshot, memory, plan, module })
}

/// The directories that a program may change, and those that it may read.
pub(crate) fn directories(shares: &[ShareSpec]) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (read, whole): (Vec<&ShareSpec>, _) = shares.iter().partition(|share| share.read_only);
    let paths = |shares: Vec<&ShareSpec>| shares.into_iter().map(|share| share.path.clone()).collect();
    (paths(whole), paths(read))
}

/// Why a program without a server in it gets no ports.
pub(crate) const NO_PORTS: &str =
    "it serves nothing at a port: only a component with wasi:http/incoming-handler does, or one in a network";

/// How code is made. What is not named is wasmtime's usual.
pub(crate) fn config(how: How) -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .consume_fuel(how.fuel)
        .guest_debug(how.live)
        .max_wasm_stack(STACK)
        .async_stack_size(STACK + STACK_OF_HOST)
        .wasm_function_references(true)
        .wasm_gc(true)
        .wasm_exceptions(true)
        .wasm_memory64(true);
    config
}

/// Why a program without them does not go on from one.
pub(crate) const WITHOUT_RESUME: &str = "its code is made so that it cannot be saved, nor go on";
pub(crate) const REPORT: &str = "this is a defect of ours: please report it with this line";

pub(crate) fn not_runnable(called: &str, why: impl std::fmt::Display, fix: impl Into<String>) -> Fault {
    Fault::new(Kind::NotRunnable, format!("{called} cannot be run: {why}"), fix)
}

fn no_file(path: &Path, error: &std::io::Error) -> Fault {
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
        let why = format!("it is a module that imports {:?}, which only components get", import.module());
        return not_runnable(
            called,
            why,
            "make a component of it: wasm-tools component new; or --target wasm32-wasip2",
        );
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
