//! Components of WASI preview 2: what they may ask of their host is wasmtime-wasi's, what they get is what a module gets.
//!
//! All runs on the program's one thread, by a runtime that does nothing else ([`through`]): a pause holds that thread, and an end drops
//! what it does, wherever that waits. [`streams`] are the program's, [`counted`] is for runs that are the same each time. A component
//! is a command, or it handles requests ([`http`]); each instance of it gets the same ([`given`]).
mod counted;
mod given;
mod http;
mod streams;

use crate::engine::{NO_PORTS, REPORT, directories, not_runnable};
use crate::network::{self, RESOLV_CONF, Wire};
use crate::wasi;
use given::{Given, Host};
use http::Server;
use std::future::poll_fn;
use std::net::{Ipv6Addr, TcpListener};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::sync::Notify;
use viv_api::agent::Output;
use viv_api::stats::ProgramStats;
use viv_cell::sandbox;
use viv_model::{End, Fault, GuestKind, Kind, PortSpec, Protocol};
use viv_net::switch::Listeners;
use viv_process::{Confinement, Files, Gate, Instance, Prepared, Saved, Setting, Stopped};
use wasmtime::component::{Component, InstancePre, Linker};
use wasmtime::{Error, Result};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::CommandPre;
use wasmtime_wasi_http::p2::bindings::ProxyPre;

/// What a command exports, without the last number of its version.
const RUN: &str = "wasi:cli/run@0.2.";
/// The same of one that handles requests.
const HANDLER: &str = "wasi:http/incoming-handler@0.2.";
/// How long a program that computes takes to look up.
const LOOK_UP: Duration = Duration::from_millis(1);

/// What a component is there for.
enum Work {
    /// It is called once, with what it has of its host.
    Command(CommandPre<Host>, Box<Host>),
    /// It handles the requests that come to these.
    Server(Server, Vec<TcpListener>),
}

/// Makes a component ready.
pub(crate) fn prepare(component: &Component, setting: Setting<'_>) -> Result<Prepared, Fault> {
    let Setting { vm, program, streams, gate, cards } = setting;
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
        let fix =
            "build it for WASI 0.2 (--target wasm32-wasip2), whose interfaces are all that it can import";
        not_runnable(called, format!("{error:#}"), fix)
    })?;
    if spec.deterministic && !vm.machine.nics.is_empty() {
        let why = "a deterministic run has no network: what comes from there, and when, is never the same";
        return Err(not_runnable(called, why, "leave out --net, or --deterministic"));
    }
    let wire = match vm.machine.nics.as_slice() {
        [] => None,
        nics => Some(network::enter(nics, cards)?),
    };
    let news = Arc::new(Notify::new());
    let (poke, wake) = (engine.clone(), news.clone());
    gate.on_change(move || poke.increment_epoch());
    gate.on_news(move || wake.notify_waiters());
    let (whole, read) = directories(&vm.machine.shares);
    let calls = if whole.is_empty() { Vec::new() } else { wasi::CALLS.to_vec() };
    let given = Arc::new(Given {
        engine: engine.clone(),
        program: program.clone(),
        shares: vm.machine.shares.clone(),
        memory_max: vm.machine.memory_mib << 20,
        streams,
        gate,
        news,
        usage: Arc::default(),
        has_network: wire.is_some(),
    });
    let work = match vm.machine.nics.as_slice() {
        [] => work(called, &ready, &given, &vm.machine.ports)?,
        nics => {
            // In its own network: a port of the host leads there by the switch.
            let inside = |port: &PortSpec| PortSpec {
                ip: Ipv6Addr::UNSPECIFIED.into(),
                host: port.guest,
                ..port.clone()
            };
            let tcp = nics.iter().flat_map(|nic| &nic.ports).filter(|port| port.protocol == Protocol::Tcp);
            networked(called, &ready, &given, &tcp.map(inside).collect::<Vec<_>>())?
        }
    };
    let has_network = wire.is_some();
    let mut files = sandbox::Files { whole, read, ..sandbox::Files::default() };
    files.read.extend(has_network.then(|| PathBuf::from(RESOLV_CONF)));
    let work = Mutex::new(Some((work, wire)));
    Ok(Prepared {
        instance: Arc::new(ComponentInstance { given, work }),
        confinement: Confinement { files, calls, has_network },
    })
}

/// Puts all that a component may import in place.
fn link(linker: &mut Linker<Host>, deterministic: bool) -> Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    if deterministic {
        counted::link(linker)?;
    }
    Ok(())
}

/// What a component is there for, by what it exports. One that can do both handles requests if there are ports for it.
fn work(
    called: &str,
    ready: &InstancePre<Host>,
    given: &Arc<Given>,
    ports: &[viv_model::PortSpec],
) -> Result<Work, Fault> {
    let kind = ready.component().component_type();
    let mut names: Vec<&str> = kind.exports(&given.engine).map(|(name, _)| name).collect();
    let has = |start: &str| names.iter().any(|name| name.starts_with(start));
    let wrong =
        |error: Error| not_runnable(called, format!("{error:#}"), "build it again: --target wasm32-wasip2");
    match (has(HANDLER), has(RUN), ports.is_empty()) {
        (true, _, false) => {
            let server = Server::new(ProxyPre::new(ready.clone()).map_err(wrong)?, given.clone())?;
            let listeners = Listeners::open(ports).map_err(|error| Fault::from(&error))?;
            Ok(Work::Server(server, listeners.into_tcp().into_iter().map(|(listener, _)| listener).collect()))
        }
        (false, _, false) => {
            let fix = "leave out -p; or, if it listens by wasi:sockets, add --net user";
            Err(not_runnable(called, NO_PORTS, fix))
        }
        (_, true, true) => {
            let host = Box::new(given.host(true)?);
            Ok(Work::Command(CommandPre::new(ready.clone()).map_err(wrong)?, host))
        }
        (true, false, true) => Err(not_runnable(
            called,
            "it handles requests by HTTP, and no port leads to it",
            format!("publish one: viv run -p 8080:80 {called}"),
        )),
        (false, false, true) => {
            names.truncate(8);
            let has = if names.is_empty() { "nothing".to_string() } else { names.join(", ") };
            let why = format!(
                "it is a component that is neither a command ({RUN}x) nor handles requests ({HANDLER}x): it exports {has}"
            );
            Err(not_runnable(called, why, "build a command: --target wasm32-wasip2, with a main function"))
        }
    }
}

/// The same for one with a network: a command may listen at its ports by itself.
fn networked(
    called: &str,
    ready: &InstancePre<Host>,
    given: &Arc<Given>,
    ports: &[PortSpec],
) -> Result<Work, Fault> {
    let kind = ready.component().component_type();
    let handles = kind.exports(&given.engine).any(|(name, _)| name.starts_with(HANDLER));
    work(called, ready, given, if handles { ports } else { &[] })
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

/// Calls a command once; gives its exit status.
async fn call(command: CommandPre<Host>, given: &Arc<Given>, host: Host) -> Result<u8> {
    let mut store = given.store(host)?;
    let call = async {
        let command = command.instantiate_async(&mut store).await?;
        command.wasi_cli_run().call_run(&mut store).await
    };
    let done = call.await;
    given.count(&mut store);
    match done {
        Ok(done) => Ok(done.is_err().into()),
        // As with a process of the host: its low 8 bits.
        Err(error) => error.downcast::<I32Exit>().map(|I32Exit(status)| status as u8),
    }
}

/// A component that is ready, or runs.
struct ComponentInstance {
    given: Arc<Given>,
    /// Until it runs.
    work: Mutex<Option<(Work, Option<Wire>)>>,
}

impl ComponentInstance {
    fn work(&self, (work, wire): (Work, Option<Wire>)) -> Result<u8> {
        wire.map(Wire::start).transpose()?;
        // Whoever computes looks at the sockets each time that it gives way.
        let runtime = Builder::new_current_thread().enable_all().event_interval(1).build()?;
        let given = &self.given;
        let work = async {
            match work {
                Work::Command(command, host) => call(command, given, *host).await,
                Work::Server(server, listeners) => match Arc::new(server).serve(listeners).await? {},
            }
        };
        let done = runtime.block_on(through(&given.gate, &given.news, work));
        // What it waits for in another thread is not waited for.
        runtime.shutdown_background();
        done
    }
}

impl Instance for ComponentInstance {
    fn run(&self) -> End {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(work) = work else {
            return End::Failed { message: "the program was to run twice".into() };
        };
        match self.work(work) {
            Ok(status) => End::Command { status },
            Err(error) => self.given.end_of(&error, self.given.has_refused()),
        }
    }

    fn stats(&self) -> ProgramStats {
        let counts = self.given.program.spec.fuel.is_some();
        if counts {
            self.given.engine.increment_epoch();
            std::thread::sleep(LOOK_UP);
        }
        self.given.usage.stats(counts)
    }

    fn save(&self, _: &Files, _: bool) -> Option<Result<Saved, Fault>> {
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
