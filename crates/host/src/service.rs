//! The service's process: one at a time for each user, on a Unix socket, there only while it is needed.
use crate::access::{Access, Peer};
use crate::builder;
use crate::connections::{Answering, Connections, Place};
use crate::door;
use crate::following;
use crate::http;
use crate::images::Images;
use crate::manners::{Client, Manners};
use crate::metrics::Metrics;
use crate::network_door::{self, Listen};
use crate::networks::Networks;
use crate::operations::{self, Operations};
use crate::places::Places;
use crate::plugs::WatchedSwitch;
use crate::runners;
use crate::snapshots::Snapshots;
use crate::store::{SqliteStore, StoreError};
use crate::telemetry::{self, Collector, Telemetry};
use crate::vms::{Hooks, Vms};
use crate::warm;
use crate::websocket;
use futures_util::future::{Either, select};
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use viv_api::socket;
use viv_api::timestamp::Timestamp;
use viv_api::vm::Process;
use viv_model::{Fault, Kind};
use viv_net::switch::resolver;

/// How long it stays when it has nothing to do.
const IDLE_LIMIT: Duration = Duration::from_secs(2);
/// How often it looks whether it has something to do.
const TICK: Duration = Duration::from_millis(250);
/// How long another service may take to end when it is replaced.
const REPLACE_LIMIT: Duration = Duration::from_secs(10);
/// How often it is looked whether the host has another name server.
const RESOLVER_TICK: Duration = Duration::from_secs(2);
/// How often it looks for VMs that a vanished command wanted to be forgotten.
const SWEEP: Duration = Duration::from_secs(2);
/// Most bytes of the head of a request.
const HEAD_MAX: usize = 64 << 10;
/// Most connections at a time.
const CONNECTIONS_MAX: usize = 2048;

/// Connections that are told, at a time, that there is no place for them, and how long each may take to hear it.
const TURNED_AWAY_MAX: usize = 64;
const TURN_AWAY_LIMIT: Duration = Duration::from_secs(1);

/// What all requests share.
pub(crate) struct Service {
    pub(crate) places: Places,
    pub(crate) vms: Arc<Vms>,
    pub(crate) images: Arc<Images>,
    pub(crate) started_at: Timestamp,
    /// Work in hand: connections, builds.
    pub(crate) work: Arc<AtomicUsize>,
    pub(crate) operations: Operations,
    pub(crate) snapshots: Snapshots,
    pub(crate) metrics: Metrics,
    pub(crate) telemetry: Telemetry,
    pub(crate) access: Access,
    pub(crate) manners: Manners,
    /// Places for WebSockets.
    pub(crate) sockets: Arc<Semaphore>,
    /// Held by who boots a guest for others, for warm starts or for its kernel's code: one at a time.
    pub(crate) warming: tokio::sync::Mutex<()>,
    /// Templates for warm starts that came to nothing.
    pub(crate) failed: warm::Failed,
}

/// Something that keeps the service from ending.
pub(crate) struct Busy(Arc<AtomicUsize>);

impl Busy {
    pub(crate) fn new(work: &Arc<AtomicUsize>) -> Busy {
        work.fetch_add(1, Ordering::Relaxed);
        Busy(work.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// This program's file, to see when another version takes its place.
pub(crate) struct Program {
    path: PathBuf,
    identity: (u64, u64, i64),
}

impl Program {
    pub(crate) fn current() -> Option<Program> {
        let path = std::env::current_exe().ok()?;
        let identity = Program::identity(&path)?;
        Some(Program { path, identity })
    }

    fn identity(path: &std::path::Path) -> Option<(u64, u64, i64)> {
        let data = fs::metadata(path).ok()?;
        Some((data.dev(), data.ino(), data.mtime_nsec() ^ data.mtime()))
    }

    /// What no other version of it has.
    pub(crate) fn mark(&self) -> String {
        let (device, inode, time) = self.identity;
        format!("{device:x}-{inode:x}-{time:x}")
    }

    fn was_replaced(&self) -> bool {
        Program::identity(&self.path) != Some(self.identity)
    }
}

/// How to serve.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    /// Until told to end (SIGTERM, SIGINT), and not only until there is nothing to do.
    pub stay: bool,
    /// End a service that runs already, and take its place.
    pub replace: bool,
    /// Where to listen besides the Unix socket. One that listens at the network is to stay.
    pub listen: Listen,
    /// Who is told what is measured, besides those who ask for it.
    pub collector: Option<Collector>,
}

/// Runs the service. If another one runs already, that is a conflict, unless this is to replace it.
pub fn serve(places: Places, serving: &Serving) -> Result<(), Fault> {
    let Serving { stay, replace, listen, collector } = serving;
    let (stay, replace) = (*stay, *replace);
    let broken = |what: &'static str, path: PathBuf| {
        move |source| Fault::from(StoreError::Io { what, path: path.clone(), source })
    };
    let _ = rustix::process::setsid(); // it fails if we lead a session already
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    std::env::set_current_dir("/").map_err(broken("enter", "/".into()))?;
    let mut lock = take(&places).map_err(broken("lock", places.lock()))?;
    if lock.is_none() && replace {
        lock = take_from_another(&places).map_err(broken("lock", places.lock()))?;
    }
    let Some(mut lock) = lock else {
        let holder = fs::read_to_string(places.lock()).unwrap_or_default();
        let who = match holder.trim() {
            "" => String::new(),
            pid => format!(": process {pid}"),
        };
        return Err(Fault::new(
            Kind::Conflict,
            format!("the host service of {} runs already{who}", places.state.display()),
            "use it: every command finds it by itself; to take its place, end it first",
        ));
    };
    lock.set_len(0)
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(broken("write", places.lock()))?;
    // Who cannot read what is remembered answers nobody.
    builder::clear(&places);
    let images = Arc::new(Images::open(places.images())?);
    let (store, left) = SqliteStore::open(&places.store(), &places.vms())?;
    for directory in left {
        viv_api::complain!(
            "viv serve: {} belongs to no VM that is remembered; it is kept",
            directory.display()
        );
    }
    let sockets = listen.bind()?;
    let access = Access::open(&places)?;
    let path = places.socket();
    let _ = fs::remove_file(&path); // of a service that was killed: we hold its lock
    let listener = socket::listen(&path).map_err(broken("listen at", path.clone()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(broken("protect", path.clone()))?;
    if !stay {
        // The command that has started us listens there for a refusal, and goes away.
        let null =
            OpenOptions::new().write(true).open("/dev/null").map_err(broken("open", "/dev/null".into()))?;
        rustix::stdio::dup2_stdout(null).map_err(|error| broken("open", "/dev/null".into())(error.into()))?;
    }
    listener.set_nonblocking(true).map_err(broken("listen at", path.clone()))?;

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(256)
        .build()
        .map_err(broken("make threads in", "/".into()))?;
    let outcome = runtime.block_on(async {
        let listener = UnixListener::from_std(listener).map_err(broken("listen at", path.clone()))?;
        let parts = Parts { places, images, store, access };
        run(parts, listener, stay, sockets, listen, collector.as_ref()).await
    });
    let _ = fs::remove_file(&path);
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Ends the service that holds the lock, whose VMs live on, and takes it.
fn take_from_another(places: &Places) -> std::io::Result<Option<File>> {
    let deadline = Instant::now() + REPLACE_LIMIT;
    loop {
        let holder = fs::read_to_string(places.lock()).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = holder.and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM); // it may just have gone
        }
        std::thread::sleep(TICK / 10);
        match take(places)? {
            None if Instant::now() < deadline => {}
            taken => return Ok(taken),
        }
    }
}

fn take(places: &Places) -> std::io::Result<Option<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(places.lock())?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// What was opened before anybody is let in.
struct Parts {
    places: Places,
    images: Arc<Images>,
    store: SqliteStore,
    access: Access,
}

async fn run(
    parts: Parts,
    listener: UnixListener,
    stay: bool,
    sockets: Vec<std::net::TcpListener>,
    listen: &Listen,
    collector: Option<&Collector>,
) -> Result<(), Fault> {
    let Parts { places, images, store, access } = parts;
    // Each connection is a file, and so is each VM that is watched.
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    let (watch, mut watched) = mpsc::unbounded_channel();
    let watch = Box::new(move |process, id| {
        let _ = watch.send((process, id));
    });
    let (later, mut delayed) = mpsc::unbounded_channel();
    let later = Box::new(move |id, delay| {
        let _ = later.send((id, delay));
    });
    let (watch_switch, mut switches) = mpsc::unbounded_channel();
    let watch_switch = Box::new(move |process, switch| {
        let _ = watch_switch.send(WatchedSwitch { process, switch, since: Instant::now() });
    });
    let networks = Networks::new(&places, watch_switch);
    let vms =
        Arc::new(Vms::new(Box::new(store), places.clone(), images.clone(), networks, Hooks { watch, later }));
    vms.adopt()?;
    let snapshots = Snapshots::open(&places, vms.clone())?;
    let service = Arc::new(Service {
        snapshots,
        places,
        vms: vms.clone(),
        images,
        started_at: Timestamp::now(),
        work: Arc::default(),
        operations: Operations::open(&*vms.store)?,
        metrics: Metrics::default(),
        telemetry: Telemetry::new(collector.cloned()),
        access,
        manners: Manners::default(),
        sockets: Arc::new(Semaphore::new(websocket::SOCKETS_MAX)),
        warming: tokio::sync::Mutex::default(),
        failed: warm::Failed::default(),
    });
    operations::take_up(&service)?;
    let connected = vms.clone();
    tokio::spawn(async move {
        let mut known: Vec<Process> = Vec::new();
        while let Some(watched) = switches.recv().await {
            known.retain(Process::is_alive);
            // VMs that are found again name the same one.
            if !known.contains(&watched.process) {
                known.push(watched.process);
                tokio::spawn(watch_switch_of(connected.clone(), watched));
            }
        }
    });
    let live = Arc::new(AtomicUsize::new(0));
    let (counter, watching) = (live.clone(), vms.clone());
    tokio::spawn(async move {
        while let Some((process, id)) = watched.recv().await {
            let busy = Busy::new(&counter);
            tokio::spawn(watch_vm(watching.clone(), process, id, busy));
        }
    });
    let counter = live.clone();
    tokio::spawn(async move {
        while let Some((id, delay)) = delayed.recv().await {
            let (vms, busy) = (vms.clone(), Busy::new(&counter));
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = tokio::task::spawn_blocking(move || vms.start_again(&id)).await;
                drop(busy);
            });
        }
    });
    let (back, busy) = (service.clone(), Busy::new(&live));
    tokio::task::spawn_blocking(move || {
        back.snapshots.finish_going_back();
        drop(busy);
    });
    network_door::open(&service, sockets, listen)?;
    tokio::spawn(telemetry::send(service.clone()));
    let accepting = tokio::spawn(accept(service.clone(), listener));
    match stay {
        true => until_told(&service).await?,
        false => until_idle(&service, &live).await,
    }
    accepting.abort();
    Ok(())
}

/// Returns when the process is told to end. Its VMs live on.
async fn until_told(service: &Service) -> Result<(), Fault> {
    let broken = |source| StoreError::Io { what: "take signals in", path: "/".into(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(broken)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(broken)?;
    let mut told = pin!(async {
        let (mut terminate, mut interrupt) = (pin!(terminate.recv()), pin!(interrupt.recv()));
        std::future::poll_fn(|context| {
            match terminate.as_mut().poll(context).is_ready() || interrupt.as_mut().poll(context).is_ready() {
                true => Poll::Ready(()),
                false => Poll::Pending,
            }
        })
        .await
    });
    while tokio::time::timeout(SWEEP, &mut told).await.is_err() {
        service.vms.sweep();
    }
    Ok(())
}

/// Returns when there has been nothing to do for a while.
async fn until_idle(service: &Service, live: &AtomicUsize) {
    let program = Program::current();
    let mut busy_at = Instant::now();
    let mut swept_at = Instant::now();
    loop {
        tokio::time::sleep(TICK).await;
        let working = service.work.load(Ordering::Relaxed) > 0;
        // VMs need no service; it stays for them only to answer faster. A newer version takes over.
        let replaced = program.as_ref().is_some_and(Program::was_replaced);
        if working || live.load(Ordering::Relaxed) > 0 && !replaced {
            busy_at = Instant::now();
        }
        if busy_at.elapsed() >= IDLE_LIMIT || replaced && !working {
            return;
        }
        if swept_at.elapsed() >= SWEEP {
            service.vms.sweep();
            swept_at = Instant::now();
        }
    }
}

/// Waits for the end of one VM's process.
async fn watch_vm(vms: Arc<Vms>, process: Process, id: String, busy: Busy) {
    let follower = tokio::spawn(following::follow(vms.clone(), id.clone()));
    ended(&process).await;
    follower.abort();
    let _ = tokio::task::spawn_blocking(move || vms.ended(&id)).await;
    drop(busy);
}

/// Waits for the end of a network's switch, which cannot see by itself that the host has another name server.
async fn watch_switch_of(vms: Arc<Vms>, watched: WatchedSwitch) {
    let mut told = None;
    let mut end = pin!(ended(&watched.process));
    while tokio::time::timeout(RESOLVER_TICK, &mut end).await.is_err() {
        let switch = watched.switch.clone();
        let look = move || {
            let now = resolver();
            if told == Some(now) {
                return told;
            }
            // One of an earlier release refuses what it does not understand; one that does not answer is told again.
            switch.set_resolver(now).ok().map(|_| now)
        };
        told = tokio::task::spawn_blocking(look).await.unwrap_or(told);
    }
    let lived = watched.since.elapsed();
    let _ = tokio::task::spawn_blocking(move || vms.switch_ended(&watched.switch, lived)).await;
}

/// Returns when the process has ended.
pub(crate) async fn ended(process: &Process) {
    // Its successor is unsafe because of types whose descriptor may change; an OwnedFd's does not.
    #[allow(deprecated)]
    let descriptor = runners::descriptor_of(process).and_then(AsyncFd::new);
    match descriptor {
        Ok(descriptor) => {
            let _ = descriptor.readable().await;
        }
        Err(_) => {
            while process.is_alive() {
                tokio::time::sleep(TICK).await;
            }
        }
    }
    runners::collect(process);
}

async fn accept(service: Arc<Service>, listener: UnixListener) {
    let connections = Connections::new(CONNECTIONS_MAX, CONNECTIONS_MAX);
    let turned_away = Arc::new(Semaphore::new(TURNED_AWAY_MAX));
    loop {
        match listener.accept().await {
            Ok((socket, _)) => {
                let Some(place) = connections.take(None) else {
                    if let Ok(permit) = turned_away.clone().try_acquire_owned() {
                        tokio::spawn(turn_away(socket, permit));
                    }
                    continue;
                };
                let busy = Busy::new(&service.work);
                let service = service.clone();
                tokio::spawn(async move {
                    // Its file is its user's alone; this is who it is, for the log.
                    if let Some(peer) = socket.peer_cred().ok().filter(|peer| is_own(peer.uid())) {
                        let client = Client::Process(peer.pid().unwrap_or_default());
                        service.manners.wait(client).await;
                        converse(service, socket, Peer::User(peer.uid()), client, None, place).await;
                    }
                    drop(busy);
                });
            }
            Err(_) => tokio::time::sleep(TICK).await, // out of descriptors or memory: it passes
        }
    }
}

/// Tells a client that all places are taken.
async fn turn_away(socket: UnixStream, permit: OwnedSemaphorePermit) {
    let handler = service_fn(|_: hyper::Request<Incoming>| async {
        let text = format!("{CONNECTIONS_MAX} connections are open, and all of them are used");
        let fix = "end some of the commands that watch, follow or are attached";
        let fault = Fault::new(Kind::NoCapacity, text, fix);
        Ok::<_, Infallible>(http::refusal(StatusCode::SERVICE_UNAVAILABLE, &fault))
    });
    let mut talk = hyper::server::conn::http1::Builder::new();
    let talk = talk.keep_alive(false).serve_connection(TokioIo::new(socket), handler);
    let _ = tokio::time::timeout(TURN_AWAY_LIMIT, talk).await;
    drop(permit);
}

/// Whether this is the service's own user, or root, who may do everything anyway.
fn is_own(uid: u32) -> bool {
    uid == rustix::process::geteuid().as_raw() || uid == 0
}

/// One connection; the head of each request must come within `limit`.
pub(crate) async fn converse(
    service: Arc<Service>,
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    client: Client,
    limit: Option<Duration>,
    place: Arc<Place>,
) {
    let peer = Arc::new(peer);
    let handler = service_fn(|mut request: hyper::Request<Incoming>| {
        let (service, peer, place) = (service.clone(), peer.clone(), place.clone());
        request.extensions_mut().insert(place.clone());
        async move {
            let answer = door::enter(service, &peer, client, request).await;
            Ok::<_, Infallible>(answer.map(|body| body.of(Answering::at(&place))))
        }
    });
    let talk = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limit)
        .max_buf_size(HEAD_MAX)
        .serve_connection(TokioIo::new(socket), handler)
        .with_upgrades();
    let Either::Left((ended, _)) = select(pin!(talk), pin!(place.given_up())).await else { return };
    // What is no HTTP, or too much of it, never gets to the door.
    if ended.is_err_and(|error| error.is_parse()) {
        service.manners.refused(client, HEAD_MAX as u64);
    }
}
