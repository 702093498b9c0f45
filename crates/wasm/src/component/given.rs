//! What each instance of a component gets: its words, streams, directories and limits.
use super::counted::{self, Counted};
use super::streams::{Input, Printed};
use crate::limits::{Limits, Usage};
use crate::trap::{self, Names};
use http_body_util::BodyExt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::Notify;
use viv_api::runner::RunnerProgram;
use viv_model::{End, Fault, Kind, ShareSpec};
use viv_process::{Channel, Gate, Streams};
use wasmtime::component::ResourceTable;
use wasmtime::{AsContextMut, Engine, Error, Result, Store, UpdateDeadline};
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

/// Most things of its host that an instance holds: open files, streams, timers.
const HELD_MAX: usize = 4096;

/// What belongs to an instance in wasmtime's store.
pub(super) struct Host {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Outgoing,
    /// If its run is the same each time.
    pub(super) clock: Counted,
    pub(super) table: ResourceTable,
    pub(super) limits: Limits,
    /// It is the only one, and what it has used is what the program has.
    is_only: bool,
    /// Fuel that it had when that was last looked at.
    fuel: u64,
}

impl Drop for Host {
    fn drop(&mut self) {
        if !self.is_only {
            self.limits.give_back();
        }
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { ctx: &mut self.http, table: &mut self.table, hooks: &mut self.hooks }
    }
}

/// What comes of sending something by HTTP.
type Transfer<T> = Box<dyn Future<Output = wasmtime_wasi_http::Result<T>> + Send>;

/// What a component asks others by HTTP; without a network nobody, since its process can open no socket.
struct Outgoing {
    has_network: bool,
}

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: hyper::Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Transfer<()>,
    ) -> Transfer<(hyper::Response<WasiBody>, Transfer<()>)> {
        if !self.has_network {
            return Box::new(async { Err(wasmtime_wasi_http::Error::HttpRequestDenied) });
        }
        Box::new(async move {
            let (answer, rest) = wasmtime_wasi_http::default_send_request(request, options).await?;
            Ok((answer.map(BodyExt::boxed_unsync), Box::new(rest) as Transfer<()>))
        })
    }
}

/// See the module.
pub(super) struct Given {
    pub(super) engine: Engine,
    pub(super) program: RunnerProgram,
    pub(super) shares: Vec<ShareSpec>,
    /// Most bytes of memory and tables of all instances together.
    pub(super) memory_max: u64,
    pub(super) streams: Arc<Streams>,
    pub(super) gate: Arc<Gate>,
    /// When to look again at the streams and the gate.
    pub(super) news: Arc<Notify>,
    pub(super) usage: Arc<Usage>,
    /// It is in a network, where it may do what that lets it.
    pub(super) has_network: bool,
}

impl Given {
    /// What a new instance has of its host; whether it is the only one.
    pub(super) fn host(&self, is_only: bool) -> Result<Host, Fault> {
        let spec = &self.program.spec;
        let mut builder = WasiCtx::builder();
        let printed = |channel| Printed { streams: self.streams.clone(), channel, tty: spec.tty };
        builder
            .arg(&self.program.called)
            .args(&spec.args)
            .envs(&spec.env)
            .stdout(printed(Channel::Out))
            .stderr(printed(Channel::Err))
            // Without one, the process can open no socket either.
            .allow_tcp(self.has_network)
            .allow_udp(self.has_network)
            .allow_ip_name_lookup(self.has_network)
            // Others have something to do while a disk is slow.
            .allow_blocking_current_thread(is_only);
        if self.has_network {
            builder.inherit_network();
        }
        if is_only {
            let (streams, news) = (self.streams.clone(), self.news.clone());
            builder.stdin(Input { streams, news, tty: spec.tty });
        }
        for share in &self.shares {
            let rights = if share.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            builder.preopened_dir(&share.path, &share.target, rights).map_err(|error| {
                Fault::new(
                    error.downcast_ref::<io::Error>().map_or(Kind::NotFound, Kind::of_file),
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
        let (wasi, http, fuel) = (builder.build(), WasiHttpCtx::new(), spec.fuel.unwrap_or_default());
        Ok(Host {
            wasi,
            http,
            hooks: Outgoing { has_network: self.has_network },
            clock,
            table,
            limits,
            is_only,
            fuel,
        })
    }

    /// A new instance's store. One that is not the only one gives way to others whenever the epoch is raised.
    pub(super) fn store(self: &Arc<Given>, host: Host) -> Result<Store<Host>> {
        let is_only = host.is_only;
        let mut store = Store::new(&self.engine, host);
        store.limiter(|host| &mut host.limits);
        let given = self.clone();
        store.epoch_deadline_callback(move |store| {
            given.count(store);
            given.gate.pass()?;
            Ok(if is_only { UpdateDeadline::Continue(1) } else { UpdateDeadline::Yield(1) })
        });
        store.set_epoch_deadline(1);
        if let Some(fuel) = self.program.spec.fuel {
            store.set_fuel(fuel)?;
        }
        Ok(store)
    }

    /// Counts the fuel that an instance has used since it was last counted.
    pub(super) fn count(&self, mut store: impl AsContextMut<Data = Host>) {
        let mut store = store.as_context_mut();
        if let Ok(left) = store.get_fuel() {
            let had = std::mem::replace(&mut store.data_mut().fuel, left);
            self.usage.fuel.fetch_add(had.saturating_sub(left), Ordering::Relaxed);
        }
    }

    /// What this error of an instance means.
    pub(super) fn end_of(&self, error: &Error, has_been_refused: bool) -> End {
        trap::end_of(error, self.program.spec.fuel, self.memory_max, has_been_refused, &Names::default())
    }

    /// Whether any instance was refused memory.
    pub(super) fn has_refused(&self) -> bool {
        self.usage.refused.load(Ordering::Relaxed) > 0
    }

    /// Says what went wrong, among what the program says on its standard error; not that all has come to its end.
    pub(super) fn log(&self, what: &str, why: &str) {
        if self.gate.end().is_some() {
            return;
        }
        self.streams.write(Channel::Err, format!("viv: {what}: {why}\n").as_bytes());
    }
}
