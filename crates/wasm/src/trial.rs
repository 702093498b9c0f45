//! Runs programs in this process, saves them and lets them go on: hostile ones for the fuzz targets, others for tests and figures.
use crate::code::{self, How};
use crate::engine::{config, resume};
use crate::instance::{Ready, WasmInstance};
use crate::invoke;
use crate::keeper::{Keeper, SECTION};
use crate::wasi::{self, Wasi};
use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use viv_api::runner::{RunnerProgram, RunnerSpec};
use viv_cell::Console;
use viv_model::{End, Fault, GuestKind, Kind, MachineSpec, Manifest, ProgramSpec, ShareSpec};
use viv_process::{Files, Gate, Instance, Saved, Streams};
use viv_snapshot::{
    FORMAT_PROGRAM, MEMORY, STATE, read_manifest, sums_file, write_content, write_manifest, write_section,
};
use wasmtime::{Engine, Linker, Module};

/// Most memory of a hostile program, MiB.
const MEMORY_MIB: u64 = 16;
/// Bytes of stack of a program's thread.
const STACK: usize = 16 << 20;

/// Compiles and runs `module` in `directory`, which it may change, with so much fuel. Nothing if it cannot be run.
pub fn run(module: &[u8], directory: &Path, fuel: u64) -> Option<End> {
    let how = How { fuel: true, live: false };
    code::code_of(module, how).ok()?;
    let trial = Trial::of(module, how, directory.to_path_buf(), PathBuf::new(), MEMORY_MIB, Some(fuel))?;
    Some(trial.ready(None).ok()?.0.run())
}

/// A module, and where its programs live.
pub struct Trial {
    engine: Engine,
    module: Module,
    how: How,
    share: PathBuf,
    cuts: PathBuf,
    memory_mib: u64,
    fuel: Option<u64>,
    /// Its programs wait for input, which never comes; else it has ended.
    pub has_input: bool,
    /// Code that programs go on in, made before.
    made: Mutex<HashMap<Vec<u8>, Module>>,
}

/// A program that runs.
pub struct Run {
    instance: Arc<WasmInstance>,
    /// Its gate.
    pub gate: Arc<Gate>,
    console: Arc<Console>,
    end: thread::JoinHandle<End>,
}

impl Run {
    /// Its end, and all that it has said.
    pub fn wait(self) -> (End, Vec<u8>) {
        let end = self.end.join().expect("no program ends its thread");
        self.console.close();
        (end, self.console.reader(u64::MAX).flatten().collect())
    }

    /// Waits until it says something.
    pub fn hear(&self) {
        self.console.reader(0).next();
    }

    /// Ends it.
    pub fn stop(self) {
        self.gate.stop(End::Killed);
        self.wait();
    }
}

fn machine(memory_mib: u64, shares: &[ShareSpec]) -> MachineSpec {
    let json = serde_json::json!({ "cpus": 1, "memory_mib": memory_mib, "kernel": "", "shares": shares });
    serde_json::from_value(json).expect("a machine")
}

impl Trial {
    /// Forgets the code that programs have gone on in.
    pub fn forget(&self) {
        self.made.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A module whose programs can be saved: in the directory `share`, with snapshots in `cuts`, at most so much memory, and fuel if it
    /// is limited. Nothing if it cannot be compiled.
    pub fn new(
        module: &[u8],
        share: PathBuf,
        cuts: PathBuf,
        memory_mib: u64,
        fuel: Option<u64>,
    ) -> Option<Trial> {
        let how = How { fuel: fuel.is_some(), live: true };
        Trial::of(module, how, share, cuts, memory_mib, fuel)
    }

    fn of(
        module: &[u8],
        how: How,
        share: PathBuf,
        cuts: PathBuf,
        memory_mib: u64,
        fuel: Option<u64>,
    ) -> Option<Trial> {
        let engine = Engine::new(&config(how)).ok()?;
        let module = Module::new(&engine, module).ok()?;
        let made = Mutex::default();
        Some(Trial { engine, module, how, share, cuts, memory_mib, fuel, has_input: false, made })
    }

    fn ready(&self, from: Option<&Path>) -> Result<(WasmInstance, Arc<Gate>, Arc<Console>), Fault> {
        let refused = |error: wasmtime::Error| Fault::new(Kind::NotRunnable, format!("{error:#}"), "");
        let spec = ProgramSpec {
            kind: GuestKind::Wasm,
            fuel: self.fuel,
            deterministic: self.fuel.is_some(),
            ..ProgramSpec::default()
        };
        let program = RunnerProgram {
            spec,
            original: "/".into(),
            called: "trial".into(),
            cache: PathBuf::new(),
            awaited: false,
        };
        let share = ShareSpec { path: self.share.clone(), target: "/".into(), ..ShareSpec::default() };
        let vm = RunnerSpec {
            name: "trial".into(),
            machine: machine(self.memory_mib, &[share]),
            on_reboot: Default::default(),
            attended_by: None,
            command: None,
            attend: false,
            health: None,
            program: None,
            resume: from.is_some(),
            beside_kvm: false,
            is_copy: false,
            translated: None,
        };
        let (gate, console) = (Arc::new(Gate::default()), Arc::new(Console::new()));
        let poke = self.engine.clone();
        gate.on_change(move || poke.increment_epoch());
        let streams = Arc::new(Streams::new(gate.clone(), console.clone(), self.has_input));
        let mut wasi = Wasi::new(&vm.machine.shares, &program, streams, gate.clone())?;
        let make = |bytes: &[u8]| {
            let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(module) = made.get(bytes) {
                return Ok(module.clone());
            }
            let module = Module::new(&self.engine, bytes).map_err(refused)?;
            made.insert(bytes.to_vec(), module.clone());
            Ok(module)
        };
        let resume = match from {
            Some(dir) => Some(resume(dir, &vm, &program, &self.module, "file", &mut wasi, &make)?),
            None => None,
        };
        let mut linker = Linker::new(&self.engine);
        wasi::link(&mut linker).map_err(refused)?;
        let instance = linker.instantiate_pre(&self.module).map_err(refused)?;
        let start = invoke::start("trial", &self.module, &program.spec)?;
        let keeper = self.how.live.then(|| Keeper::new(&self.module, "file".into(), gate.clone()));
        let ready = Ready { instance, wasi, start, resume };
        let instance = WasmInstance::new(ready, keeper, self.memory_mib << 20, self.fuel);
        gate.begin();
        Ok((instance, gate, console))
    }

    /// Begins a program, at its start or where a snapshot is of, which is gone then; or says why it cannot go on.
    pub fn begin(&self, from: Option<&Path>) -> Result<Run, Fault> {
        let (instance, gate, console) = self.ready(from)?;
        let instance = Arc::new(instance);
        let runs = instance.clone();
        let end = thread::Builder::new().stack_size(STACK).spawn(move || runs.run()).expect("a thread");
        Ok(Run { instance, gate, console, end })
    }

    fn files(dir: &Path) -> Files {
        let create = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(dir.join(name)).expect("a file")
        };
        Files { state: create(STATE), memory: create(MEMORY), sums: Some(create(&sums_file(MEMORY))) }
    }

    fn complete(saved: Saved, dir: &Path) {
        let manifest = Manifest {
            format: FORMAT_PROGRAM,
            release: String::new(),
            id: "0".into(),
            name: "cut".into(),
            project: Default::default(),
            comment: String::new(),
            created_unix_s: 0,
            vm: (String::new(), String::new()),
            image: None,
            parent: None,
            groups: Vec::new(),
            labels: Vec::new(),
            template: false,
            machine: machine(1, &[]),
            program: None,
            asked: None,
            paused_ns: saved.paused_ns,
            frozen_file_systems: None,
            sections: saved.sections,
            memory: saved.memory,
            disks: Vec::new(),
            files: Vec::new(),
        };
        write_manifest(&manifest, dir, false).expect("a manifest");
    }

    fn new_cut(&self, number: u32) -> PathBuf {
        let dir = self.cuts.join(format!("cut{number}"));
        fs::create_dir(&dir).expect("a directory");
        dir
    }

    /// Saves a program that runs, under a number that no other cut has, or says why not.
    pub fn cut(&self, run: &Run, number: u32) -> Result<PathBuf, Fault> {
        let dir = self.new_cut(number);
        let saved = run.instance.save(&Self::files(&dir), false).expect("programs can be saved");
        Self::complete(saved.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?, &dir);
        Ok(dir)
    }

    /// The same for those that go on from it now, and are compared with nothing: forks.
    pub fn fork(&self, run: &Run, number: u32) -> Result<PathBuf, Fault> {
        let dir = self.new_cut(number);
        let files = Files { sums: None, ..Self::files(&dir) };
        let saved = run.instance.save(&files, false).expect("programs can be saved");
        Self::complete(saved.inspect_err(|_| drop(fs::remove_dir_all(&dir)))?, &dir);
        Ok(dir)
    }

    /// How long a program has stood still for a snapshot.
    pub fn paused(dir: &Path) -> Duration {
        Duration::from_nanos(read_manifest(dir).expect("a manifest").paused_ns)
    }

    /// The state in a snapshot.
    pub fn state(dir: &Path) -> Vec<u8> {
        fs::read(dir.join(STATE)).expect("a state")
    }

    /// A snapshot with this state and memory, whatever they are, whose checksums are right.
    pub fn forge(&self, state: &[u8], memory: &[u8], number: u32) -> PathBuf {
        let dir = self.new_cut(number);
        let files = Self::files(&dir);
        let section = write_section(&files.state, SECTION.0, SECTION.1, 0, state).expect("a section");
        let total = memory.len() as u64;
        let read = &mut |offset: u64, data: &mut [u8]| {
            let from = offset as usize;
            data.copy_from_slice(&memory[from..from + data.len()]);
            Ok(true)
        };
        let content =
            write_content(&files.memory, files.sums.as_ref().expect("checksums"), total, &[(0, total)], read)
                .expect("a memory");
        Self::complete(Saved { sections: vec![section], memory: content, paused_ns: 0 }, &dir);
        dir
    }
}
