//! The life of one VM, from its description to its end.
use crate::devices::Devices;
use crate::guest::{Build, Guest};
use crate::share::{Server, Watched, watch_all};
use crate::snapshot::Files as SnapshotFiles;
use crate::{command, control, footprint, health, ports, quiesce, sandbox};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use viv_api::passed::WithFiles;
use viv_api::runner::{Ask, Reply, RunnerSpec, STATS, SnapshotAsk, Started, Status, VSOCK};
use viv_api::stats::VmStats;
use viv_api::vm::{ConsoleSize, OnReboot, Process};
use viv_cell::{Asker, Console, DRAIN_LIMIT, Place, Quota, Saving, broken, finish, keep_log, report, spawn};
use viv_machine::{KeptMark, PerfMap};
use viv_model::{
    Accel, End, Fault, Health, HealthCheck, HealthLook, Kind, MachineSpec, NetKind, NicSpec, SavedParts,
    State, hostname_in, next,
};
use viv_net::port::Plug;

/// How long a killed guest may take to end before its process ends without it.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// How long a panicked kernel that stands still is left alone, so that its last output is seen.
const STANDSTILL: Duration = Duration::from_millis(300);
/// How long a guest that goes on from a snapshot is waited for until it knows who and when it is.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// How often it is looked whether it stands still instead.
const SETTLE_LOOK: Duration = Duration::from_millis(100);
/// A guest that asks for a reset sooner than this after its start is made to wait.
const QUICK_REBOOT: Duration = Duration::from_secs(1);

/// What the threads of the process share.
pub(crate) struct Life {
    process: Process,
    /// What it was asked to be.
    machine: MachineSpec,
    pub(crate) console: Arc<Console>,
    /// How much processor time it may use.
    quota: Quota,
    /// What the VM is called.
    name: String,
    /// What the guest is called by itself.
    hostname: String,
    inner: Mutex<Inner>,
    /// Something has changed that followers are told.
    changed: Condvar,
    saving: Saving,
    /// Whether the guest knows who and when it is.
    told: (Mutex<bool>, Condvar),
}

struct Inner {
    state: State,
    /// The guest; none while it is built anew.
    guest: Option<Arc<dyn Guest>>,
    accel: Accel,
    boots: u32,
    sandbox: Vec<String>,
    /// What it was asked to get by with.
    memory_mib: Option<u64>,
    /// How large the terminal is that shows its console.
    console_size: Option<ConsoleSize>,
    /// It was told to end.
    dying: bool,
    /// What to write as its end, if that was our wish.
    end_as: Option<End>,
    /// Disks for which the host has no room.
    full_disks: Vec<PathBuf>,
    /// It is paused because of that alone.
    held: bool,
    /// How its guest is, if that is looked at.
    health: Option<Health>,
    /// What may come and go.
    devices: Devices,
}

impl Life {
    fn new(spec: &RunnerSpec, process: Process, console: Arc<Console>, devices: Devices) -> Life {
        let inner = Inner {
            state: State::Starting,
            guest: None,
            accel: Accel::Auto,
            boots: 0,
            sandbox: Vec::new(),
            memory_mib: None,
            console_size: None,
            dying: false,
            end_as: None,
            full_disks: Vec::new(),
            health: spec.health.as_ref().map(|_| Health::default()),
            held: false,
            devices,
        };
        Life {
            process,
            quota: Quota::new(spec.machine.cpu_limit_milli),
            name: spec.name.clone(),
            hostname: hostname_in(&spec.machine.append).unwrap_or(&spec.name).to_string(),
            machine: spec.machine.clone(),
            console,
            inner: Mutex::new(inner),
            changed: Condvar::new(),
            saving: Saving::default(),
            told: (Mutex::new(true), Condvar::new()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn status(&self) -> Status {
        self.status_of(&self.lock())
    }

    /// How it is, as soon as that is worth telling to one who knows this; nothing if it is not within `limit`.
    pub(crate) fn other_than(&self, known: Option<&Status>, limit: Duration) -> Option<Status> {
        viv_cell::wait_for_news(&self.changed, self.lock(), |inner| self.status_of(inner), known, limit)
    }

    fn status_of(&self, inner: &Inner) -> Status {
        Status {
            state: inner.state,
            process: self.process,
            accel: inner.accel,
            boots: inner.boots,
            panicked: self.console.panicked(),
            sandbox: inner.sandbox.clone(),
            full_disks: inner.full_disks.clone(),
            health: inner.health.clone(),
        }
    }

    /// Nobody knows how its guest is: it has just booted, or its agent has gone.
    pub(crate) fn begin_health(&self) {
        self.lock().health = Some(Health::default());
        self.changed.notify_all();
    }

    /// Takes a look at its guest's health, and notes it in the log if that is another one now.
    pub(crate) fn take_health(&self, look: HealthLook, check: &HealthCheck, since_start_ms: u64) {
        let now = {
            let mut inner = self.lock();
            let health = inner.health.get_or_insert_default();
            health.take(look, check, since_start_ms).then_some(health.state)
        };
        if let Some(state) = now {
            self.changed.notify_all();
            self.console.write(format!("viv: {} is {state}\r\n", self.name).as_bytes());
        }
    }

    /// Says whether the guest knows who and when it is.
    pub(crate) fn set_told(&self, told: bool) {
        let (known, changed) = &self.told;
        *known.lock().unwrap_or_else(PoisonError::into_inner) = told;
        changed.notify_all();
    }

    /// Waits until the guest knows who and when it is, unless it stands still.
    pub(crate) fn settled(&self) {
        let (known, changed) = &self.told;
        let begin = Instant::now();
        let mut told = known.lock().unwrap_or_else(PoisonError::into_inner);
        while !*told && self.lock().state == State::Running && begin.elapsed() < SETTLE_LIMIT {
            told = changed.wait_timeout(told, SETTLE_LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Does what the control socket asks.
    pub(crate) fn ask(&self, ask: Ask, files: Vec<OwnedFd>, asker: &Asker) -> Reply {
        let done = match ask {
            Ask::Status | Ask::Follow => Ok(()),
            Ask::Settled => {
                self.settled();
                Ok(())
            }
            Ask::Stats => match self.stats() {
                Ok(stats) => return Reply::Stats(Box::new(stats)),
                Err(fault) => Err(fault),
            },
            Ask::Snapshot(ask) => {
                match self.snapshot(&ask, files.into_iter().map(File::from).collect(), asker) {
                    Ok(parts) => return Reply::Saved(Box::new(parts)),
                    Err(fault) => Err(fault),
                }
            }
            Ask::Translated => self.translated(files),
            Ask::Reached => self.reached(files),
            Ask::Pause => self.step(viv_model::Ask::Pause, |guest| guest.pause()),
            Ask::Resume => self.step(viv_model::Ask::Resume, |guest| {
                guest.resume()?;
                guest.shortage().retry();
                Ok(())
            }),
            about_a_device @ (Ask::LimitDisk { .. }
            | Ask::ResizeDisk { .. }
            | Ask::AttachDisk { .. }
            | Ask::DetachDisk { .. }
            | Ask::AttachShare { .. }
            | Ask::DetachShare { .. }
            | Ask::AttachCard { .. }
            | Ask::DetachCard { .. }) => self.change_device(about_a_device, files),
            Ask::PowerButton { end } => {
                self.press(end);
                Ok(())
            }
            Ask::Plug { id } => self.devices(|devices| devices.plug(id, files)),
            Ask::Renew { nic } => {
                let name = self.hostname.clone();
                // A guest without an agent is waited for in vain: nobody waits for this.
                let told = thread::Builder::new()
                    .name("renew".into())
                    .spawn(move || crate::renew::run(&name, &[nic], false));
                told.map(drop).map_err(broken("make a thread"))
            }
            Ask::ResizeMemory { mib } => self.resize_memory(mib),
            Ask::LimitCpu { milli } => {
                self.quota.set(milli);
                Ok(())
            }
            Ask::ConsoleSize(size) => {
                self.lock().console_size = Some(size);
                self.guest().map(|guest| guest.resize_console(size))
            }
            Ask::Kill { end } => {
                self.kill(end);
                Ok(())
            }
        };
        match done {
            Ok(()) => Reply::Ok(self.status()),
            Err(fault) => Reply::Refused(fault),
        }
    }

    fn step(
        &self,
        ask: viv_model::Ask,
        act: impl FnOnce(&dyn Guest) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut inner = self.lock();
        let state = next(inner.state, ask).map_err(|refused| {
            let message = format!("cannot {} a VM that is {}", ask.verb(), refused.from);
            Fault::new(Kind::Conflict, message, refused.fix("NAME"))
        })?;
        let guest = inner.guest.clone().ok_or_else(booting)?;
        act(guest.as_ref())?;
        (inner.state, inner.held) = (state, false);
        self.changed.notify_all();
        Ok(())
    }

    /// Saves the guest as it is now into `files`. It goes on while they are written; if the asker goes, they are given up.
    fn snapshot(&self, ask: &SnapshotAsk, files: Vec<File>, asker: &Asker) -> Result<SavedParts, Fault> {
        let _saving = self.saving.begin()?;
        // Before anybody waits for us: it may take a while.
        let may_write = {
            let inner = self.lock();
            let disks = inner.devices.of(&self.machine).disks;
            inner.state == State::Running && disks.iter().any(|disk| !disk.read_only)
        };
        let quiet = may_write.then(quiesce::file_systems).flatten();
        // Whoever wants something else of it waits.
        let mut inner = self.lock();
        let guest = inner.guest.clone().ok_or_else(booting)?;
        if !matches!(inner.state, State::Running | State::Paused) {
            let message = format!("cannot make a snapshot of a VM that is {}", inner.state);
            return Err(Fault::new(Kind::Conflict, message, "wait until it runs: viv ps"));
        }
        let spec = MachineSpec {
            accel: guest.accel(),
            cpu_limit_milli: self.quota.get(),
            ..inner.devices.of(&self.machine)
        };
        let files = SnapshotFiles::new(ask, files, &spec.disks, asker)?;
        let above = inner.devices.above(&ask.apart)?;
        let since = Instant::now();
        let runs = inner.state == State::Running;
        if runs {
            guest.pause()?;
        }
        let moment = guest.freeze(&files);
        if moment.is_ok() {
            inner.devices.set_disks(above);
        }
        if runs {
            guest.resume()?;
        }
        let paused_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // The VM may end, or boot anew, while this is written.
        drop((inner, guest));
        let frozen_file_systems = quiet.map(|quiet| quiet.count);
        Ok(SavedParts { paused_ns, frozen_file_systems, ..moment?.write(&spec, &files)? })
    }

    /// Writes down what the guest's processor has translated, if it has; not if a second file, from before, has about all of it.
    fn translated(&self, files: Vec<OwnedFd>) -> Result<(), Fault> {
        let guest = self.guest()?;
        let mut files = files.into_iter().map(File::from);
        let (file, known) = (files.next(), files.next().and_then(|known| KeptMark::of(&known)));
        if let (Some(mut file), Some(bytes)) = (file, guest.translated(known)) {
            file.write_all(&bytes).map_err(broken("write down translated code"))?;
        }
        Ok(())
    }

    /// Writes down what of its snapshot's memory the guest has reached, if anything.
    fn reached(&self, files: Vec<OwnedFd>) -> Result<(), Fault> {
        let reached = self.guest()?.reached();
        if let (false, Some(file)) = (reached.is_empty(), files.into_iter().next()) {
            let failed = broken("write down what was reached");
            let bytes = serde_json::to_vec(&reached).map_err(|error| failed(error.into()))?;
            File::from(file).write_all(&bytes).map_err(failed)?;
        }
        Ok(())
    }

    /// Lets the guest stand still while disks wait for room on the host.
    fn hold(&self, full_disks: Vec<PathBuf>) {
        let mut inner = self.lock();
        let Some(guest) = inner.guest.clone() else { return };
        let (full, state) = (!full_disks.is_empty(), inner.state);
        inner.full_disks = full_disks;
        // A guest that does not stand still, or not go on, is about to end.
        if full && state == State::Running && guest.pause().is_ok() {
            (inner.state, inner.held) = (State::Paused, true);
        } else if !full && inner.held && state == State::Paused && guest.resume().is_ok() {
            (inner.state, inner.held) = (State::Running, false);
        }
        self.changed.notify_all();
    }

    /// Does something to the devices that may come and go.
    pub(crate) fn devices<R>(&self, act: impl FnOnce(&mut Devices) -> R) -> R {
        act(&mut self.lock().devices)
    }

    pub(crate) fn guest(&self) -> Result<Arc<dyn Guest>, Fault> {
        self.lock().guest.clone().ok_or_else(booting)
    }

    fn resize_memory(&self, mib: u64) -> Result<(), Fault> {
        let mut inner = self.lock();
        inner.guest.clone().ok_or_else(booting)?.resize_memory(mib)?;
        inner.memory_mib = Some(mib);
        Ok(())
    }

    fn stats(&self) -> Result<VmStats, Fault> {
        let guest = self.lock().guest.clone();
        guest.map(|guest| guest.stats()).ok_or_else(booting)
    }

    /// Ends the guest, and the process even if the guest does not end.
    /// Presses the power button; the guest's end then counts as `end`.
    pub(crate) fn press(&self, end: Option<End>) {
        let mut inner = self.lock();
        inner.end_as = end.or(inner.end_as.take());
        if let Some(guest) = &inner.guest {
            guest.power_button();
        }
    }

    /// Whether the guest has a disk to write to.
    pub(crate) fn has_own_disk(&self) -> bool {
        self.lock().devices.of(&self.machine).disks.iter().any(|disk| !disk.read_only)
    }

    pub(crate) fn kill(&self, end: Option<End>) {
        let guest = {
            let mut inner = self.lock();
            if end.is_some() {
                inner.end_as = end;
            }
            inner.dying = true;
            inner.guest.clone()
        };
        let end = self.end_of(End::Killed);
        let _ = thread::Builder::new().name("kill".into()).spawn(move || {
            thread::sleep(KILL_LIMIT);
            finish(&end);
        });
        if let Some(guest) = guest {
            guest.kill();
        }
    }

    pub(crate) fn console_input(&self, bytes: &[u8]) {
        let guest = self.lock().guest.clone();
        if let Some(guest) = guest {
            guest.console_input(bytes);
        }
    }

    /// Lets a built guest run, unless the VM was told to end meanwhile.
    fn boot(self: &Arc<Self>, guest: Arc<dyn Guest>) -> Result<(), Fault> {
        let mut inner = self.lock();
        inner.accel = guest.accel();
        inner.guest = Some(guest.clone());
        inner.boots += 1;
        (inner.state, inner.held) = (State::Running, false);
        inner.full_disks.clear();
        self.changed.notify_all();
        let (dying, memory_mib, console_size) = (inner.dying, inner.memory_mib, inner.console_size);
        drop(inner);
        if let Some(size) = console_size {
            guest.resize_console(size);
        }
        if let Some(mib) = memory_mib {
            guest.resize_memory(mib)?;
        }
        guest.start()?;
        if dying {
            guest.kill();
        }
        // It has the guest's list alone: a guest that ends lets go of its disks.
        let (life, shortage) = (self.clone(), guest.shortage());
        let watch = move || {
            let mut seen = 0;
            while let Some((now, full_disks)) = shortage.wait_for_change(seen) {
                seen = now;
                life.hold(full_disks);
            }
        };
        thread::Builder::new().name("room".into()).spawn(watch).map(drop).map_err(broken("make a thread"))
    }

    /// What is written as the end of a VM whose guest ended like this.
    fn end_of(&self, end: End) -> End {
        let wish = self.lock().end_as.clone();
        match (end, wish) {
            (End::Killed | End::PowerOff | End::Reboot, Some(wish)) => wish,
            (End::Reboot | End::TripleFault, None) if self.console.panicked() => End::Panic,
            (end, _) => end,
        }
    }
}

fn booting() -> Fault {
    Fault::new(Kind::Conflict, "the guest is just booting anew", "try again in a moment")
}

/// Runs the VM whose directory is `dir`. The exit status says whether it could be started at all; how it
/// ended is in its directory.
pub fn run_with(dir: &Path, build: &Build) -> u8 {
    let outcome = prepare(dir).and_then(|prepared| live(prepared, build));
    match outcome {
        Ok(end) => finish(&end),
        Err(fault) => {
            report(&Started::Refused(fault));
            1
        }
    }
}

/// What is there before the sandbox closes.
struct Prepared {
    spec: RunnerSpec,
    place: Place,
    shares: Vec<Server>,
    watched: Vec<Watched>,
    console_ports: Vec<(String, UnixListener)>,
    plugs: Vec<Arc<Plug>>,
}

fn prepare(dir: &Path) -> Result<Prepared, Fault> {
    let (place, spec) = Place::enter(dir)?;
    if spec.machine.soft.perf_map {
        // The sandbox lets it be written later, but not be made.
        PerfMap::reserve().map_err(broken("make the map for perf in /tmp"))?;
    }
    footprint::share_heaps(spec.machine.cpus);
    let plugs = first_plugs(&spec.machine).map_err(broken("take the ports of its networks"))?;
    // Processes: the sandbox allows none later.
    let (shares, watched) = Server::start_all(&spec.machine.shares)?;
    let console_ports = ports::listen(&spec.machine.console_ports)?;
    Ok(Prepared { spec, place, shares, watched, console_ports, plugs })
}

/// A plug for each card, in the port that came for it over standard input.
fn first_plugs(machine: &MachineSpec) -> std::io::Result<Vec<Arc<Plug>>> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    // Nothing else holds it open.
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    let mut came = match rustix::net::sockopt::socket_type(&socket) {
        Ok(_) => {
            let mut socket = WithFiles::new(UnixStream::from(socket));
            socket.read_to_end(&mut Vec::new())?;
            socket.take_files()
        }
        // Nobody has plugged anything in.
        Err(_) => Vec::new(),
    }
    .into_iter();
    let plug = |nic: &NicSpec| {
        let port = if nic.net == NetKind::None { None } else { came.next() };
        Ok(Arc::new(Plug::new(port)?))
    };
    machine.nics.iter().map(plug).collect()
}

fn live(prepared: Prepared, build: &Build) -> Result<End, Fault> {
    let Prepared { spec, place, shares, watched, console_ports, plugs } = prepared;
    let Place { control, console: listener, log, owner, signals, process, lock: _lock } = place;
    let console = Arc::new(Console::new());
    let devices = Devices::new(&spec.machine, shares, plugs, console_ports);
    let life = Arc::new(Life::new(&spec, process, console.clone(), devices));
    // Before the first thread: these restrictions are a thread's own and pass on to the threads it makes.
    let mut restricted = viv_cell::sandbox::restrict(&sandbox::files(&spec)?)?;
    keep_log(&console, log)?;

    let shared = life.clone();
    let hold = move |hold| {
        if let Ok(guest) = shared.guest() {
            guest.hold(hold);
        }
    };
    life.quota.govern(|| 0, hold)?;
    let started = Instant::now();
    watch_all(watched).map_err(broken("make a thread"))?;
    let parts = life.devices(|devices| devices.connect())?;
    let guest = build(&spec, console.clone(), parts)?;
    life.boot(guest.clone())?;
    restricted.extend(viv_cell::sandbox::filter_calls(&[]));
    life.lock().sandbox = restricted;

    let shared = life.clone();
    viv_cell::serve("control", control, move |connection| control::answer(&shared, connection))
        .map_err(broken("serve its control socket"))?;
    let shared = life.clone();
    let input = move |shared: &Arc<Life>, connection| {
        let life = shared.clone();
        viv_cell::attach(&shared.console, connection, move |bytes| life.console_input(bytes));
    };
    viv_cell::serve("console", listener, move |connection| input(&shared, connection))
        .map_err(broken("serve its console"))?;
    if let Some(owner) = owner {
        let shared = life.clone();
        viv_cell::watch_owner(owner, move || shared.kill(None))?;
    }
    let shared = life.clone();
    viv_cell::watch_signals(signals, move || shared.kill(None))?;
    let shared = life.clone();
    spawn("panic", move || watch_for_standstill(&shared))?;
    if spec.resume {
        let (shared, name, nics) = (life.clone(), life.hostname.clone(), spec.machine.nics.clone());
        let is_copy = spec.is_copy;
        shared.set_told(false);
        spawn("renew", move || {
            crate::renew::run(&name, &nics, is_copy);
            shared.set_told(true);
        })?;
    }
    if let Some(watch) = spec.health.clone() {
        let shared = life.clone();
        spawn("health", move || health::run(&shared, &watch))?;
    }
    if spec.attend {
        let (shared, ends) = (life.clone(), spec.command.is_none());
        spawn("attend", move || command::attend(&shared, ends))?;
    }
    if let Some(exec) = spec.command.clone() {
        let (shared, is_main) = (life.clone(), !spec.attend);
        spawn("command", move || command::run(&shared, exec, is_main))?;
    }
    report(&Started::Running(life.status()));
    let end = until_the_end(&life, &spec, build, guest, started);
    console.close();
    console.drain(DRAIN_LIMIT);
    Ok(end)
}

/// Waits for the guest's end, over its reboots.
fn until_the_end(
    life: &Arc<Life>,
    spec: &RunnerSpec,
    build: &Build,
    mut guest: Arc<dyn Guest>,
    mut started: Instant,
) -> End {
    loop {
        footprint::give_back_soon();
        let end = guest.wait();
        let again = end == End::Reboot && spec.on_reboot == OnReboot::Restart;
        if !again || life.lock().dying || life.console.panicked() {
            let _ = viv_cell::write_json(STATS.as_ref(), &guest.stats()); // a full disk must not hide the end
            return life.end_of(end);
        }
        if started.elapsed() < QUICK_REBOOT {
            thread::sleep(QUICK_REBOOT / 4);
        }
        life.lock().guest = None;
        drop(guest); // its disks are locked and its sockets bound until then
        let _ = fs::remove_file(VSOCK);
        life.console.forget_panic();
        started = Instant::now();
        guest = match rebuild(life, spec, build) {
            Ok(guest) => guest,
            Err(fault) => return End::Failed { message: fault.to_string() },
        };
        if let Err(fault) = life.boot(guest.clone()) {
            return End::Failed { message: fault.to_string() };
        }
    }
}

/// Builds the guest anew, with the devices that it has by now.
fn rebuild(life: &Life, spec: &RunnerSpec, build: &Build) -> Result<Arc<dyn Guest>, Fault> {
    let (machine, later) =
        life.devices(|devices| (devices.before_disks_come(&spec.machine), devices.later_disks()));
    let parts = life.devices(|devices| devices.connect())?;
    // It boots, whatever it came from.
    let spec = RunnerSpec { machine, resume: false, ..spec.clone() };
    let guest = build(&spec, life.console.clone(), parts)?;
    for (disk, files) in later {
        guest.attach_disk(&disk, files)?;
    }
    Ok(guest)
}

/// A kernel that was not told to reboot after a panic stands still for ever: that is the VM's end.
fn watch_for_standstill(life: &Life) {
    if life.console.wait_for_standstill() {
        thread::sleep(STANDSTILL);
        life.kill(Some(End::Panic));
    }
}
