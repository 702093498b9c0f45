//! Programs of test suites, as wasmtime alone runs them, and saved and gone on with after every so many of their instructions.
//!
//! A life of a program ends at a cut: what it was is written down as a snapshot has it, its store is thrown away, and a new store
//! goes on. Its suite sees no difference.
mod spec;
mod wasi;

use crate::code::{hidden_start, hide_start};
use crate::live::{self, Running, Shape, Stands, State, Unsaved};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll, Waker};
use wasmtime::{
    AsContextMut, Caller, DebugEvent, DebugHandler, Engine, Error, Func, Instance, Linker, Module, Result,
    Store, StoreContextMut, Val,
};

/// What a program has of its host.
trait World: Send + Sized + 'static {
    /// What of it goes into a snapshot.
    type Saved: Serialize + DeserializeOwned + Send;

    fn saved(&self) -> std::result::Result<Self::Saved, Unsaved>;

    /// Its instance is there.
    fn begins(_: StoreContextMut<'_, Self>, _: Instance) {}
}

/// How often programs are cut, and what has come of it.
#[derive(Default)]
struct Tally {
    /// After so many instructions, each time; never if none.
    every: Option<u64>,
    /// At most so many cuts of one call.
    most: u64,
    instructions: u64,
    due: u64,
    cuts: u64,
    /// Why there was no cut, and how often.
    refused: BTreeMap<String, u64>,
    /// Code that was made already.
    made: HashMap<Vec<u8>, Module>,
}

type Shared = Arc<Mutex<Tally>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Tally {
    fn new(every: Option<u64>, most: u64) -> Shared {
        let due = every.unwrap_or_default();
        Arc::new(Mutex::new(Tally { every, most, due, ..Tally::default() }))
    }

    /// What has come of it, for whoever reads it.
    fn words(&self, live: bool) -> String {
        let how = match (live, self.every) {
            (false, _) => "without snapshots".to_string(),
            (true, None) => "with snapshots, never cut".to_string(),
            (true, Some(every)) => format!(
                "cut every {every} instructions ({} instructions, {} cuts)",
                self.instructions, self.cuts
            ),
        };
        self.refused.iter().fold(how, |words, (why, times)| format!("{words}, not cut {times} times: {why}"))
    }
}

/// A cut: a snapshot's state, what the program held of its host, and its memories' bytes.
struct Moment(Vec<u8>, Vec<u8>, Vec<u8>);

/// A life of a program.
#[derive(Default)]
struct Life {
    /// If it can be cut: not while its frames are rebuilt.
    running: Option<Running>,
    /// How often this call may still be cut.
    left: u64,
    moment: Option<Moment>,
}

/// Counts instructions, and stops a program for good where it is to be cut.
struct Stepper<T> {
    shape: Arc<Shape<'static>>,
    tally: Shared,
    life: Arc<Mutex<Life>>,
    world: PhantomData<fn(T)>,
}

impl<T> Clone for Stepper<T> {
    fn clone(&self) -> Self {
        let (shape, tally, life) = (self.shape.clone(), self.tally.clone(), self.life.clone());
        Stepper { shape, tally, life, world: self.world }
    }
}

impl<T: World> Stepper<T> {
    /// Whether it is cut here.
    fn steps(&self, store: StoreContextMut<'_, T>) -> bool {
        let mut life = lock(&self.life);
        let Some(running) = life.running.clone() else { return false };
        let mut tally = lock(&self.tally);
        tally.instructions += 1;
        if tally.instructions < tally.due || life.left == 0 {
            return false;
        }
        let moment = self.moment(store, &running);
        if let Err(Unsaved::Soon) = moment {
            return false;
        }
        tally.due = tally.instructions + tally.every.unwrap_or_default();
        match moment {
            Ok(moment) => {
                life.moment = Some(moment);
                life.left -= 1;
                tally.cuts += 1;
                true
            }
            Err(why) => {
                *tally.refused.entry(why.to_string()).or_default() += 1;
                false
            }
        }
    }

    fn moment(
        &self,
        mut store: StoreContextMut<'_, T>,
        running: &Running,
    ) -> std::result::Result<Moment, Unsaved> {
        let state = live::capture(store.as_context_mut(), running, &self.shape, &Stands::Between)?;
        live::plan(&self.shape, &state)?;
        let mut bytes = Vec::new();
        for number in 0..state.memories.len() as u32 {
            let memory = running.instance.debug_memory(store.as_context_mut(), number).unwrap();
            bytes.extend(memory.data(&store));
        }
        let world = serde_json::to_vec(&store.data().saved()?).unwrap();
        Ok(Moment(serde_json::to_vec(&state).unwrap(), world, bytes))
    }
}

impl<T: World> DebugHandler for Stepper<T> {
    type Data = T;

    fn handle(
        &self,
        store: StoreContextMut<'_, T>,
        event: DebugEvent<'_>,
    ) -> impl Future<Output = ()> + Send {
        let cut = matches!(event, DebugEvent::Breakpoint) && self.steps(store);
        async move {
            // Whoever called it lets go of it, and of its store.
            if cut {
                std::future::pending().await
            }
        }
    }
}

/// What comes of something now; nothing if it waits.
fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// Makes a store for a program, with what it has of its host: anew, or as it was.
type Make<'a, T> = Box<dyn Fn(Option<<T as World>::Saved>) -> Store<T> + 'a>;

/// A program that can be cut.
struct Program<'a, T: World> {
    module: Module,
    linker: &'a Linker<T>,
    make: Make<'a, T>,
    shape: Arc<Shape<'static>>,
    tally: Shared,
    life: Arc<Mutex<Life>>,
    store: Store<T>,
    instance: Instance,
}

impl<'a, T: World> Program<'a, T> {
    /// The program of a module; its start function has been called.
    fn new(
        engine: &Engine,
        bytes: &[u8],
        linker: &'a Linker<T>,
        make: Make<'a, T>,
        tally: Shared,
    ) -> Result<Self> {
        // It lives as long as the test: a handler of events cannot borrow.
        let bytes: &'static [u8] = hide_start(bytes).unwrap_or_else(|| bytes.to_vec()).leak();
        let module = Module::new(engine, bytes)?;
        let shape = Arc::new(Shape::read(bytes)?);
        let mut store = make(None);
        let instance = at_once(linker.instantiate_async(&mut store, &module)).unwrap()?;
        let life = Arc::default();
        let mut program = Program { module, linker, make, shape, tally, life, store, instance };
        program.begin(Some(Running { instance, resumed: None }));
        if let Some(start) = hidden_start(bytes) {
            let start = program.instance.debug_function(&mut program.store, start).unwrap();
            program.call(start, &[])?;
        }
        Ok(program)
    }

    fn begin(&mut self, running: Option<Running>) {
        let (shape, tally, life) = (self.shape.clone(), self.tally.clone(), self.life.clone());
        if self.module.debug_bytecode().is_some() {
            self.store.set_debug_handler(Stepper { shape, tally, life, world: PhantomData });
        }
        T::begins(self.store.as_context_mut(), self.instance);
        lock(&self.life).running = running;
    }

    /// Calls a function, in as many lives as it takes.
    fn call(&mut self, mut function: Func, arguments: &[Val]) -> Result<Vec<Val>> {
        let mut arguments = arguments.to_vec();
        let steps = {
            let tally = lock(&self.tally);
            lock(&self.life).left = tally.most;
            tally.every.is_some()
        };
        loop {
            if let Some(mut breakpoints) = self.store.edit_breakpoints() {
                breakpoints.single_step(steps)?;
            }
            let mut results = vec![Val::I32(0); function.ty(&self.store).results().len()];
            if let Some(done) = at_once(function.call_async(&mut self.store, &arguments, &mut results)) {
                return done.map(|()| results);
            }
            function = self.live_again()?;
            arguments.clear();
        }
    }

    /// Begins the next life, from the last cut.
    fn live_again(&mut self) -> Result<Func> {
        let moment = lock(&self.life).moment.take();
        let Moment(state, world, bytes) = moment.ok_or_else(|| Error::msg("it waits for something else"))?;
        let state: State = serde_json::from_slice(&state).unwrap();
        let plan = live::plan(&self.shape, &state)?;
        let made = lock(&self.tally).made.get(&plan.written.module).cloned();
        let module = match made {
            Some(module) => module,
            None => {
                let module = Module::new(self.store.engine(), &plan.written.module)?;
                lock(&self.tally).made.insert(plan.written.module.clone(), module.clone());
                module
            }
        };
        self.store = (self.make)(Some(serde_json::from_slice(&world).unwrap()));
        let instance = at_once(self.linker.instantiate_async(&mut self.store, &self.module)).unwrap()?;
        self.instance = instance;
        self.begin(None);
        let read = &mut |offset: u64, data: &mut [u8]| {
            data.copy_from_slice(&bytes[offset as usize..offset as usize + data.len()]);
            Ok(())
        };
        live::put_back(self.store.as_context_mut(), instance, &self.shape, &state, read)?;
        let resumed = Arc::new(OnceLock::new());
        let (life, all) = (self.life.clone(), resumed.clone());
        // It can be cut again when all frames are there.
        let ready = move |_: &mut Caller<'_, T>| {
            lock(&life).running = Some(Running { instance, resumed: all.get().cloned() });
            Ok(())
        };
        let gone_on = live::go_on(&mut self.store, instance, &self.shape, &module, plan, ready);
        let (done, function) = live::now(gone_on)?;
        let _ = resumed.set(Arc::new(done));
        Ok(function)
    }
}

/// A number that is given in a variable.
fn given(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is no number")))
}

/// After how many instructions a suite is cut.
fn every() -> Vec<u64> {
    given("VIV_WASM_EVERY").map_or_else(|| vec![1000, 7, 1], |every| vec![every])
}

/// The files of a kind in a directory.
fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut all: Vec<PathBuf> = all.map(|entry| entry.unwrap().path()).collect();
    all.retain(|path| path.extension().is_some_and(|found| found == extension));
    all.sort();
    all
}
