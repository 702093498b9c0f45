//! One program as it runs.
use crate::engine::WITHOUT_RESUME;
use crate::invoke::{self, Start};
use crate::keeper::{Keeper, Live, Snapshot, Stage, Stepper, step};
use crate::limits::{Limits, Usage};
use crate::live::{self, Plan, Running, Shape, now};
use crate::mapped::Memory;
use crate::trap::{self, Names};
use crate::wasi::Wasi;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use viv_api::agent::Output;
use viv_api::stats::ProgramStats;
use viv_model::{End, Fault, GuestKind, Kind};
use viv_process::{Channel, Files, Gate, Instance, Saved, Streams, Waited};
use wasmtime::{
    AsContextMut, Caller, Engine, Error, Func, InstancePre, Module, Result, Store, UpdateDeadline, Val,
};

/// How long a program that computes takes to look up.
const LOOK_UP: Duration = Duration::from_millis(1);
/// Where a library gets ready (WASI preview 1, application ABI).
const INITIALIZE: &str = "_initialize";

/// What belongs to a program in wasmtime's store.
pub(crate) struct Host {
    pub(crate) wasi: Wasi,
    pub(crate) live: Option<Live>,
    pub(crate) limits: Limits,
}

impl Host {
    pub(crate) fn usage(&self) -> &Usage {
        self.limits.usage()
    }
}

/// What is needed for a program to go on.
pub(crate) struct Resume {
    pub(crate) snapshot: Snapshot,
    pub(crate) memory: Memory,
    pub(crate) plan: Plan,
    /// The functions that it goes on in.
    pub(crate) module: Module,
}

/// All that is used up when it runs.
pub(crate) struct Ready {
    pub(crate) instance: InstancePre<Host>,
    pub(crate) wasi: Wasi,
    pub(crate) start: Start,
    /// It goes on from there.
    pub(crate) resume: Option<Resume>,
}

/// A program that is ready, or runs.
pub(crate) struct WasmInstance {
    engine: Engine,
    gate: Arc<Gate>,
    streams: Arc<Streams>,
    usage: Arc<Usage>,
    memory_max: u64,
    fuel: Option<u64>,
    /// If it can be saved.
    keeper: Option<Arc<Keeper>>,
    /// Until it runs.
    ready: Mutex<Option<Ready>>,
}

impl WasmInstance {
    /// This module, at most so many bytes of memory.
    pub(crate) fn new(
        ready: Ready,
        keeper: Option<Keeper>,
        memory_max: u64,
        fuel: Option<u64>,
    ) -> WasmInstance {
        WasmInstance {
            engine: ready.instance.module().engine().clone(),
            gate: ready.wasi.gate.clone(),
            streams: ready.wasi.streams.clone(),
            usage: Arc::default(),
            memory_max,
            fuel,
            keeper: keeper.map(Arc::new),
            ready: Mutex::new(Some(ready)),
        }
    }

    fn store(&self, wasi: Wasi) -> Result<Store<Host>> {
        let live = self.keeper.clone().map(|keeper| Live {
            keeper,
            running: None,
            rebuilds: true,
            stage: Stage::Start,
        });
        let limits = Limits::new(self.memory_max, self.usage.clone());
        let mut store = Store::new(&self.engine, Host { wasi, live, limits });
        store.limiter(|host| &mut host.limits);
        if let Some(keeper) = &self.keeper {
            store.set_debug_handler(Stepper(keeper.clone()));
        }
        let (gate, usage, fuel) = (self.gate.clone(), self.usage.clone(), self.fuel);
        store.epoch_deadline_callback(move |store| {
            if let (Some(fuel), Ok(left)) = (fuel, store.get_fuel()) {
                usage.fuel.store(fuel.saturating_sub(left), Ordering::Relaxed);
            }
            if gate.pass_or_wanted()? == Waited::Wanted {
                step(store, true)?;
            }
            Ok(UpdateDeadline::Continue(1))
        });
        store.set_epoch_deadline(1);
        if let Some(fuel) = self.fuel {
            store.set_fuel(fuel)?;
        }
        // A change before this counted for nothing.
        if self.gate.pass_or_wanted()? == Waited::Wanted {
            step(store.as_context_mut(), true)?;
        }
        Ok(store)
    }

    fn run_in(&self, ready: Ready, names: &mut Names) -> Result<()> {
        let mut store = self.store(ready.wasi)?;
        let done = call(&mut store, &ready.instance, &ready.start, ready.resume, names);
        if let (Some(fuel), Ok(left)) = (self.fuel, store.get_fuel()) {
            self.usage.fuel.store(fuel.saturating_sub(left), Ordering::Relaxed);
        }
        self.streams.write(Channel::Out, invoke::printed(&done?).as_bytes());
        Ok(())
    }
}

/// Calls all that is to be called, or what is left of it; gives the results of the last.
fn call(
    store: &mut Store<Host>,
    ready: &InstancePre<Host>,
    start: &Start,
    resume: Option<Resume>,
    names: &mut Names,
) -> Result<Vec<Val>> {
    let instance = now(ready.instantiate_async(&mut *store))?;
    store.data_mut().wasi.memory = instance.get_memory(&mut *store, "memory");
    let main = instance.get_func(&mut *store, &start.function);
    let main = main.ok_or_else(|| Error::msg(format!("it has no function {}", start.function)))?;
    // With what they are called with.
    let mut stages: Vec<(Stage, Func, &[Val])> = Vec::new();
    if let Some(bytes) = ready.module().debug_bytecode().filter(|_| store.data().live.is_some())
        && let Some(number) = crate::code::hidden_start(bytes)
        && let Some(function) = instance.debug_function(&mut *store, number)
    {
        stages.push((Stage::Start, function, &[]));
    }
    if start.function != "_start"
        && let Some(initialize) = instance.get_func(&mut *store, INITIALIZE)
        && initialize.ty(&*store).params().len() + initialize.ty(&*store).results().len() == 0
    {
        stages.push((Stage::Initialize, initialize, &[]));
    }
    stages.push((Stage::Main, main, &start.arguments));
    let mut running = Running { instance, resumed: None };
    if let Some(resume) = resume {
        let stage = resume.snapshot.stage;
        let function = rebuild(store, &mut running, resume)?;
        names.resumed.clone_from(&running.resumed);
        stages.retain(|(later, ..)| *later > stage);
        // What goes on has its arguments.
        stages.insert(0, (stage, function, &[]));
    } else if let Some(live) = &mut store.data_mut().live {
        live.rebuilds = false;
    }
    if let Some(live) = &mut store.data_mut().live {
        live.running = Some(running);
    }
    let mut results = Vec::new();
    for (stage, function, arguments) in stages {
        if let Some(live) = &mut store.data_mut().live {
            live.stage = stage;
        }
        results = vec![Val::I32(0); function.ty(&*store).results().len()];
        now(function.call_async(&mut *store, arguments, &mut results))?;
    }
    Ok(results)
}

/// Makes a program what it was; gives the function that goes on.
fn rebuild(store: &mut Store<Host>, running: &mut Running, resume: Resume) -> Result<Func> {
    let Resume { snapshot, memory, plan, module } = resume;
    let keeper = store.data().live.as_ref().map(|live| live.keeper.clone());
    let keeper = keeper.ok_or_else(|| Error::msg(WITHOUT_RESUME))?;
    let shape = Shape::read(keeper.bytecode())?;
    let read = &mut |at: u64, data: &mut [u8]| memory.put(at, data).map_err(|error| error.to_string());
    live::put_back(store.as_context_mut(), running.instance, &shape, &snapshot.state, read)?;
    store.data().usage().refused.store(snapshot.memory_refused, Ordering::Relaxed);
    // It has no more than it was given here, whatever the snapshot says.
    let limit = store.get_fuel().ok();
    let fuel = limit.map(|limit| snapshot.fuel.unwrap_or(limit).min(limit));
    let ready = move |caller: &mut Caller<'_, Host>| {
        if let Some(live) = &mut caller.data_mut().live {
            live.rebuilds = false;
        }
        fuel.map_or(Ok(()), |left| caller.set_fuel(left))
    };
    // It is not the program's.
    store.data_mut().limits.lift(true);
    let gone_on = now(live::go_on(store, running.instance, &shape, &module, plan, ready));
    store.data_mut().limits.lift(false);
    let (resumed, function) = gone_on?;
    if fuel.is_some() {
        store.set_fuel(u64::MAX)?; // until its frames are there
    }
    running.resumed = Some(Arc::new(resumed));
    Ok(function)
}

impl Instance for WasmInstance {
    fn run(&self) -> End {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(ready) = ready else {
            return End::Failed { message: "the program was to run twice".into() };
        };
        let mut names = Names::default();
        let done = self.run_in(ready, &mut names);
        if let Some(keeper) = &self.keeper {
            keeper.end();
        }
        match done {
            Ok(()) => End::Command { status: 0 },
            Err(error) => {
                let refused = self.usage.refused.load(Ordering::Relaxed) > 0;
                trap::end_of(&error, self.fuel, self.memory_max, refused, &names)
            }
        }
    }

    fn stats(&self) -> ProgramStats {
        if self.fuel.is_some() {
            self.engine.increment_epoch();
            std::thread::sleep(LOOK_UP);
        }
        self.usage.stats(self.fuel.is_some())
    }

    fn save(&self, files: &Files, drop_sockets: bool) -> Option<std::result::Result<Saved, Fault>> {
        let Some(keeper) = &self.keeper else {
            let text = "the program was started so that it cannot be saved, and is faster";
            return Some(Err(Fault::new(Kind::Conflict, text, "start it anew without --no-snapshots")));
        };
        Some(keeper.save(files, drop_sockets))
    }

    fn exec(&self, _: &[String], _: &mut dyn FnMut(Output)) -> std::result::Result<u8, Fault> {
        Err(viv_process::no_commands(GuestKind::Wasm))
    }
}
