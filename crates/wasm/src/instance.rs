//! One program as it runs.
use crate::invoke::{self, Start};
use crate::limits::{Limits, Usage};
use crate::trap;
use crate::wasi::Wasi;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use viv_api::agent::Output;
use viv_api::stats::ProgramStats;
use viv_model::{End, Fault, GuestKind};
use viv_process::{Channel, Gate, Instance, Streams};
use wasmtime::{Engine, InstancePre, Store, UpdateDeadline, Val};

/// How long a program that computes takes to look up.
const LOOK_UP: Duration = Duration::from_millis(1);
/// Where a library gets ready (WASI preview 1, application ABI).
const INITIALIZE: &str = "_initialize";

/// What belongs to a program in wasmtime's store.
pub(crate) struct Host {
    pub(crate) wasi: Wasi,
    limits: Limits,
}

/// A program that is ready, or runs.
pub(crate) struct WasmInstance {
    engine: Engine,
    gate: Arc<Gate>,
    streams: Arc<Streams>,
    usage: Arc<Usage>,
    memory_max: u64,
    fuel: Option<u64>,
    /// Until it runs.
    ready: Mutex<Option<(InstancePre<Host>, Wasi, Start)>>,
}

impl WasmInstance {
    /// This module, at most so many bytes of memory.
    pub(crate) fn new(
        ready: InstancePre<Host>,
        wasi: Wasi,
        start: Start,
        memory_max: u64,
        fuel: Option<u64>,
    ) -> WasmInstance {
        WasmInstance {
            engine: ready.module().engine().clone(),
            gate: wasi.gate.clone(),
            streams: wasi.streams.clone(),
            usage: Arc::default(),
            memory_max,
            fuel,
            ready: Mutex::new(Some((ready, wasi, start))),
        }
    }

    fn run_in(&self, ready: &InstancePre<Host>, wasi: Wasi, start: &Start) -> wasmtime::Result<()> {
        let limits = Limits::new(self.memory_max, self.usage.clone());
        let mut store = Store::new(&self.engine, Host { wasi, limits });
        store.limiter(|host| &mut host.limits);
        let (gate, usage, fuel) = (self.gate.clone(), self.usage.clone(), self.fuel);
        store.epoch_deadline_callback(move |store| {
            if let (Some(fuel), Ok(left)) = (fuel, store.get_fuel()) {
                usage.fuel.store(fuel.saturating_sub(left), Ordering::Relaxed);
            }
            gate.pass()?;
            Ok(UpdateDeadline::Continue(1))
        });
        store.set_epoch_deadline(1);
        if let Some(fuel) = self.fuel {
            store.set_fuel(fuel)?;
        }
        // A change before this counted for nothing.
        self.gate.pass()?;
        let done = call(&mut store, ready, start);
        if let (Some(fuel), Ok(left)) = (self.fuel, store.get_fuel()) {
            self.usage.fuel.store(fuel.saturating_sub(left), Ordering::Relaxed);
        }
        let results = done?;
        self.streams.write(Channel::Out, invoke::printed(&results).as_bytes());
        Ok(())
    }
}

fn call(store: &mut Store<Host>, ready: &InstancePre<Host>, start: &Start) -> wasmtime::Result<Vec<Val>> {
    let instance = ready.instantiate(&mut *store)?;
    store.data_mut().wasi.memory = instance.get_memory(&mut *store, "memory");
    let missing = || wasmtime::Error::msg(format!("it has no function {}", start.function));
    if start.function != "_start"
        && let Some(initialize) = instance.get_func(&mut *store, INITIALIZE)
        && initialize.ty(&*store).params().len() + initialize.ty(&*store).results().len() == 0
    {
        initialize.call(&mut *store, &[], &mut [])?;
    }
    let function = instance.get_func(&mut *store, &start.function).ok_or_else(missing)?;
    let mut results = vec![Val::I32(0); start.results];
    function.call(&mut *store, &start.arguments, &mut results)?;
    Ok(results)
}

impl Instance for WasmInstance {
    fn run(&self) -> End {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((ready, wasi, start)) = ready else {
            return End::Failed { message: "the program was to run twice".into() };
        };
        match self.run_in(&ready, wasi, &start) {
            Ok(()) => End::Command { status: 0 },
            Err(error) => trap::end_of(&error, self.fuel, self.memory_max, &self.usage),
        }
    }

    fn stats(&self) -> ProgramStats {
        if self.fuel.is_some() {
            self.engine.increment_epoch();
            std::thread::sleep(LOOK_UP);
        }
        ProgramStats {
            steps: self.fuel.map(|_| self.usage.fuel.load(Ordering::Relaxed)),
            memory_bytes: self.usage.memory.load(Ordering::Relaxed),
            memory_refused: self.usage.refused.load(Ordering::Relaxed),
            ..ProgramStats::default()
        }
    }

    fn exec(&self, _: &[String], _: &mut dyn FnMut(Output)) -> Result<u8, Fault> {
        Err(viv_process::no_commands(GuestKind::Wasm))
    }
}
