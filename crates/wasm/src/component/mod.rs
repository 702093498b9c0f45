//! Components of WASI preview 2: what they may ask of their host is wasmtime-wasi's, what they get is what a module gets.
//!
//! A component runs on its own thread, as the only task of a runtime that does nothing else ([`through`]): a pause holds that thread,
//! and an end drops the task wherever it waits. [`streams`] are the program's, [`counted`] is for runs that are the same each time.
mod counted;
mod streams;

use crate::engine::{NO_PORTS, REPORT, directories, not_runnable};
use crate::limits::{Limits, Usage};
use crate::trap::{self, Names};
use crate::wasi;
use counted::Counted;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use streams::{Input, Printed};
use tokio::runtime::Builder;
use tokio::sync::Notify;
use viv_api::agent::Output;
use viv_api::runner::RunnerProgram;
use viv_api::stats::ProgramStats;
use viv_cell::sandbox;
use viv_model::{End, Fault, GuestKind, Kind, ShareSpec};
use viv_process::{Channel, Confinement, Files, Gate, Instance, Prepared, Saved, Setting, Stopped, Streams};
use wasmtime::component::{Component, InstancePre, Linker, ResourceTable};
use wasmtime::{Engine, Error, Result, Store, UpdateDeadline};
use wasmtime_wasi::p2::bindings::{Command, CommandPre};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxView, WasiView};

/// What a command exports, without the last number of its version.
const RUN: &str = "wasi:cli/run@0.2.";
/// Most things of its host that a component holds: open files, streams, timers.
const HELD_MAX: usize = 4096;
/// How long a program that computes takes to look up.
const LOOK_UP: Duration = Duration::from_millis(1);

/// What belongs to a component in wasmtime's store.
pub(crate) struct Host {
    wasi: WasiCtx,
    table: ResourceTable,
    limits: Limits,
    /// If its run is the same each time.
    clock: Counted,
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// What each instance of a component gets.
struct Given {
    program: RunnerProgram,
    shares: Vec<ShareSpec>,
    memory_max: u64,
    streams: Arc<Streams>,
    /// When to look again at the streams and the gate.
    news: Arc<Notify>,
    usage: Arc<Usage>,
}

impl Given {
    /// What a new instance has of its host.
    fn host(&self) -> Result<Host, Fault> {
        let spec = &self.program.spec;
        let mut builder = WasiCtx::builder();
        let printed = |channel| Printed { streams: self.streams.clone(), channel, tty: spec.tty };
        builder
            .arg(&self.program.called)
            .args(&spec.args)
            .envs(&spec.env)
            .stdin(Input { streams: self.streams.clone(), news: self.news.clone(), tty: spec.tty })
            .stdout(printed(Channel::Out))
            .stderr(printed(Channel::Err))
            // The process can open no socket either.
            .allow_tcp(false)
            .allow_udp(false)
            // Nothing else waits on this thread.
            .allow_blocking_current_thread(true);
        for share in &self.shares {
            let rights = if share.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            builder.preopened_dir(&share.path, &share.target, rights).map_err(|error| {
                Fault::new(
                    error.downcast_ref::<std::io::Error>().map_or(Kind::NotFound, Kind::of_file),
                    format!("cannot share the directory {}: {error:#}", share.path.display()),
                    "name a directory that is there and that you may read: -v DIR:PATH",
                )
            })?;
        }
        let clock = Counted::default();
        if spec.deterministic {
            counted::apply(&mut builder, &clock, spec.seed);
        }
        let mut table = ResourceTable::new();
        table.set_max_capacity(HELD_MAX);
        let limits = Limits::new(self.memory_max, self.usage.clone());
        Ok(Host { wasi: builder.build(), table, limits, clock })
    }
}

/// Makes a component ready.
pub(crate) fn prepare(component: &Component, setting: Setting<'_>) -> Result<Prepared, Fault> {
    let Setting { vm, program, streams, gate } = setting;
    let (called, spec) = (&program.called, &program.spec);
    if spec.invoke.is_some() {
        return Err(not_runnable(
            called,
            "it is a component, whose functions cannot be called one by one",
            "leave out --invoke, or build a core module: --target wasm32-wasip1",
        ));
    }
    let engine = component.engine();
    let mut linker = Linker::new(engine);
    link(&mut linker, spec.deterministic)
        .map_err(|error| not_runnable(called, format!("{error:#}"), REPORT))?;
    let ready = linker.instantiate_pre(component).map_err(|error| {
        let fix = "build it for WASI preview 2 (--target wasm32-wasip2), whose interfaces are all that it can import";
        not_runnable(called, format!("{error:#}"), fix)
    })?;
    let command = command(called, &ready)?;
    if !vm.machine.ports.is_empty() {
        return Err(not_runnable(called, NO_PORTS, "leave out -p"));
    }
    let news = Arc::new(Notify::new());
    let (poke, wake) = (engine.clone(), news.clone());
    gate.on_change(move || poke.increment_epoch());
    gate.on_news(move || wake.notify_waiters());
    let (whole, read) = directories(&vm.machine.shares);
    let calls = if whole.is_empty() { Vec::new() } else { wasi::CALLS.to_vec() };
    let given = Given {
        program: program.clone(),
        shares: vm.machine.shares.clone(),
        memory_max: vm.machine.memory_mib << 20,
        streams,
        news,
        usage: Arc::default(),
    };
    let ready = Mutex::new(Some((command, given.host()?)));
    let instance = Arc::new(ComponentInstance { engine: engine.clone(), gate, given, ready });
    Ok(Prepared {
        instance,
        confinement: Confinement {
            files: sandbox::Files { whole, read, ..sandbox::Files::default() },
            calls,
        },
    })
}

/// Puts all that a component may import in place.
fn link(linker: &mut Linker<Host>, deterministic: bool) -> Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    if deterministic {
        counted::link(linker)?;
    }
    Ok(())
}

/// The component as a command, if it is one.
fn command(called: &str, ready: &InstancePre<Host>) -> Result<CommandPre<Host>, Fault> {
    let component = ready.component();
    let kind = component.component_type();
    let mut names: Vec<&str> = kind.exports(component.engine()).map(|(name, _)| name).collect();
    if names.iter().any(|name| name.starts_with(RUN)) {
        return CommandPre::new(ready.clone()).map_err(|error| {
            not_runnable(called, format!("{error:#}"), "build it again: --target wasm32-wasip2")
        });
    }
    names.truncate(8);
    let has = if names.is_empty() { "nothing".to_string() } else { names.join(", ") };
    Err(not_runnable(
        called,
        format!("it is a component without a start: it exports {has}, and no {RUN}x"),
        "build a command: --target wasm32-wasip2, with a main function",
    ))
}

/// Does `work` until it is done or the program is to end; while the gate is shut, this thread stands still.
async fn through<T>(gate: &Gate, news: &Notify, work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut work = pin!(work);
    let mut changed = pin!(async {
        loop {
            let change = news.notified();
            if gate.end().is_some() {
                return;
            }
            change.await;
        }
    });
    poll_fn(|context| {
        if gate.pass().is_err() || changed.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(Error::new(Stopped)));
        }
        work.as_mut().poll(context)
    })
    .await
}

/// A component that is ready, or runs.
struct ComponentInstance {
    engine: Engine,
    gate: Arc<Gate>,
    given: Given,
    /// Until it runs.
    ready: Mutex<Option<(CommandPre<Host>, Host)>>,
}

impl ComponentInstance {
    fn fuel(&self) -> Option<u64> {
        self.given.program.spec.fuel
    }

    fn store(&self, host: Host) -> Result<Store<Host>> {
        let mut store = Store::new(&self.engine, host);
        store.limiter(|host| &mut host.limits);
        let (gate, usage, fuel) = (self.gate.clone(), self.given.usage.clone(), self.fuel());
        store.epoch_deadline_callback(move |store| {
            if let (Some(fuel), Ok(left)) = (fuel, store.get_fuel()) {
                usage.fuel.store(fuel.saturating_sub(left), Ordering::Relaxed);
            }
            gate.pass()?;
            Ok(UpdateDeadline::Continue(1))
        });
        store.set_epoch_deadline(1);
        if let Some(fuel) = fuel {
            store.set_fuel(fuel)?;
        }
        Ok(store)
    }

    /// Runs a command; gives its exit status.
    fn command(&self, command: &CommandPre<Host>, host: Host) -> Result<u8> {
        let mut store = self.store(host)?;
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let run = async {
            let command: Command = command.instantiate_async(&mut store).await?;
            command.wasi_cli_run().call_run(&mut store).await
        };
        let done = runtime.block_on(through(&self.gate, &self.given.news, run));
        if let (Some(fuel), Ok(left)) = (self.fuel(), store.get_fuel()) {
            self.given.usage.fuel.store(fuel.saturating_sub(left), Ordering::Relaxed);
        }
        match done {
            Ok(done) => Ok(done.is_err().into()),
            // As with a process of the host: its low 8 bits.
            Err(error) => error.downcast::<I32Exit>().map(|I32Exit(status)| status as u8),
        }
    }
}

impl Instance for ComponentInstance {
    fn run(&self) -> End {
        let ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((command, host)) = ready else {
            return End::Failed { message: "the program was to run twice".into() };
        };
        match self.command(&command, host) {
            Ok(status) => End::Command { status },
            Err(error) => {
                trap::end_of(&error, self.fuel(), self.given.memory_max, &self.given.usage, &Names::default())
            }
        }
    }

    fn stats(&self) -> ProgramStats {
        if self.fuel().is_some() {
            self.engine.increment_epoch();
            std::thread::sleep(LOOK_UP);
        }
        self.given.usage.stats(self.fuel().is_some())
    }

    fn save(&self, _: &Files) -> Option<Result<Saved, Fault>> {
        Some(Err(Fault::new(
            Kind::Conflict,
            "a component cannot be saved while it runs: much of what it holds (streams, timers, open files) is its host's, and not \
             in its memory",
            "let it end, and keep what matters in a directory: viv run -v DIR:PATH; a core module can be saved: --target wasm32-wasip1",
        )))
    }

    fn exec(&self, _: &[String], _: &mut dyn FnMut(Output)) -> Result<u8, Fault> {
        Err(viv_process::no_commands(GuestKind::Wasm))
    }
}
