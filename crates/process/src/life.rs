//! The life of one program, from its description to its end.
use crate::engine::{Engine, Files, Instance, Prepared, Setting};
use crate::gate::Gate;
use crate::streams::Streams;
use crate::{control, session};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;
use viv_api::passed::WithFiles;
use viv_api::runner::{RunnerProgram, STATS, SnapshotAsk, Started, Status, VSOCK, not_saved};
use viv_api::stats::VmStats;
use viv_api::vm::Process;
use viv_cell::{
    Console, DRAIN_LIMIT, Place, Quota, Saving, broken, finish, keep_log, report, sandbox, serve, spawn,
    wait_for_news, watch_owner, watch_signals, write_json,
};
use viv_model::{Accel, End, Fault, GuestKind, Kind, MachineSpec, NetKind, NicSpec, SavedParts, State, next};

/// How long a program that was told to end may go on talking to whoever waits for it.
const HANG_UP: Duration = Duration::from_millis(200);
/// How long it may take to end before its process ends without it.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of stack of the thread that a program runs on: more than any of them is let use.
const STACK: usize = 16 << 20;

/// What the threads of the process share.
pub(crate) struct Life {
    process: Process,
    kind: GuestKind,
    machine: MachineSpec,
    saving: Saving,
    pub(crate) console: Arc<Console>,
    pub(crate) streams: Arc<Streams>,
    gate: Arc<Gate>,
    /// How much processor time it may use.
    quota: Quota,
    instance: OnceLock<Arc<dyn Instance>>,
    state: Mutex<State>,
    /// The state is another one, which followers are told.
    changed: Condvar,
    sandbox: OnceLock<Vec<String>>,
}

impl Life {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn kind(&self) -> GuestKind {
        self.kind
    }

    pub(crate) fn instance(&self) -> Result<&Arc<dyn Instance>, Fault> {
        let starts = || Fault::new(Kind::Conflict, "the program is just starting", "try again in a moment");
        self.instance.get().ok_or_else(starts)
    }

    pub(crate) fn status(&self) -> Status {
        self.status_in(*self.lock())
    }

    /// How it is, as soon as that is worth telling to one who knows this; nothing if it is not within `limit`.
    pub(crate) fn other_than(&self, known: Option<&Status>, limit: Duration) -> Option<Status> {
        wait_for_news(&self.changed, self.lock(), |state| self.status_in(*state), known, limit)
    }

    fn status_in(&self, state: State) -> Status {
        Status {
            state,
            process: self.process,
            accel: Accel::Auto,
            boots: 1,
            panicked: false,
            sandbox: self.sandbox.get().cloned().unwrap_or_default(),
            full_disks: Vec::new(),
            health: None,
        }
    }

    pub(crate) fn stats(&self) -> VmStats {
        let (stdin_bytes, output_bytes) = self.streams.counts();
        let used = self.instance.get().map(|instance| instance.stats()).unwrap_or_default();
        let elsewhere = |of: fn(&dyn Instance) -> u64| self.instance.get().map_or(0, |it| of(&**it));
        let cpu_ns = elsewhere(|instance| instance.cpu_ns_elsewhere());
        let memory_bytes = elsewhere(|instance| instance.memory_elsewhere());
        VmStats {
            uptime_ns: u64::try_from(self.gate.ran().as_nanos()).unwrap_or(u64::MAX),
            cpu_ns: viv_cell::cpu_ns().saturating_add(cpu_ns),
            memory_bytes: viv_cell::memory_bytes().saturating_add(memory_bytes),
            program: Some(viv_api::stats::ProgramStats { stdin_bytes, output_bytes, ..used }),
            ..VmStats::default()
        }
    }

    /// Lets it stand still or go on.
    pub(crate) fn step(&self, ask: viv_model::Ask) -> Result<(), Fault> {
        let mut state = self.lock();
        *state = next(*state, ask).map_err(|refused| {
            let message = format!("cannot {} a VM that is {}", ask.verb(), refused.from);
            Fault::new(Kind::Conflict, message, refused.fix("NAME"))
        })?;
        match *state {
            State::Paused => self.gate.pause(),
            _ => self.gate.resume(),
        }
        self.quota.rest(*state == State::Paused);
        self.changed.notify_all();
        Ok(())
    }

    /// Saves it as it is now into these files.
    pub(crate) fn snapshot(
        &self,
        ask: &SnapshotAsk,
        mut files: impl Iterator<Item = File>,
    ) -> Result<SavedParts, Fault> {
        let _saving = self.saving.begin()?;
        if ask.since.is_some() {
            let message = "of a program, a snapshot is always whole";
            return Err(Fault::new(Kind::Usage, message, "use the command of the VM's version"));
        }
        let mut next = || {
            let missing = "a snapshot needs files for state and memory";
            files.next().ok_or_else(|| Fault::new(Kind::Usage, missing, "send them along"))
        };
        let (state, memory, sums) = (next()?, next()?, next()?);
        // Nobody compares what forks come from: it has just been written, and is gone in a moment.
        let files = Files { state, memory, sums: (!ask.arrives).then_some(sums) };
        let saved = self.instance()?.save(&files, ask.drop_sockets).unwrap_or_else(|| {
            let (what, fix) = not_saved(self.kind);
            Err(Fault::new(Kind::Conflict, format!("{} {what}", self.kind.called()), fix))
        })?;
        Ok(SavedParts {
            machine: MachineSpec { cpu_limit_milli: self.quota.get(), ..self.machine.clone() },
            paused_ns: saved.paused_ns,
            frozen_file_systems: None,
            sections: saved.sections,
            memory: saved.memory,
            disks: Vec::new(),
        })
    }

    /// Lets it use so much processor time from now on.
    pub(crate) fn limit_cpu(&self, milli: Option<u32>) {
        self.quota.set(milli);
    }

    /// Asks it to end.
    pub(crate) fn stop(&self, end: Option<End>) {
        self.gate.ask_to_end(end.unwrap_or(End::PowerOff));
    }

    /// Has it end now.
    pub(crate) fn kill(&self, end: Option<End>) {
        self.end(end.unwrap_or(End::Killed));
    }

    fn end(&self, end: End) {
        self.gate.stop(end.clone());
        let streams = self.streams.clone();
        let _ = thread::Builder::new().name("kill".into()).spawn(move || {
            thread::sleep(HANG_UP);
            streams.hang_up();
            thread::sleep(KILL_LIMIT);
            finish(&end);
        });
    }
}

/// Runs the program whose VM's directory is `dir`. The exit status says whether it could be started at all; how it ended is in
/// its directory.
pub fn run(dir: &Path, engine: &dyn Engine) -> u8 {
    match live(dir, engine) {
        Ok(end) => finish(&end),
        Err(fault) => {
            report(&Started::Refused(fault));
            1
        }
    }
}

fn live(dir: &Path, engine: &dyn Engine) -> Result<End, Fault> {
    let (place, spec) = Place::enter(dir)?;
    let program =
        spec.program.clone().filter(|program| program.spec.kind == engine.kind()).ok_or_else(|| {
            let text = format!("the VM is not {}", engine.kind().called());
            Fault::new(Kind::Usage, text, "start it with the command of the same version: viv start")
        })?;
    let console = Arc::new(Console::new());
    let gate = Arc::new(Gate::default());
    let streams = Arc::new(Streams::new(gate.clone(), console.clone(), program.awaited));
    let cards = cards(&spec.machine).map_err(broken("take the port of its network"))?;
    let (shared, held) = (streams.clone(), gate.clone());
    let setting = Setting { vm: &spec, program: &program, streams: shared, gate: held, cards };
    let Prepared { instance, confinement } = engine.prepare(setting)?;
    let sessions = UnixListener::bind(VSOCK).map_err(broken("make the socket of its streams"))?;
    let Place { control, console: listener, log, owner, signals, process, lock: _lock } = place;
    // Before the first thread: these restrictions are a thread's own and pass on to the threads it makes.
    let mut restricted = sandbox::restrict(&confinement.files)?;
    keep_log(&console, log)?;
    // Java's programs change modes of files that are theirs.
    let calls = [&confinement.calls, sandbox::MODES].concat();
    restricted.extend(match confinement.has_network {
        true => sandbox::filter_calls_but_sockets(&calls),
        false => sandbox::filter_calls(&calls),
    });
    let life = Arc::new(Life {
        process,
        kind: engine.kind(),
        machine: spec.machine.clone(),
        saving: Saving::default(),
        console: console.clone(),
        streams: streams.clone(),
        gate: gate.clone(),
        quota: Quota::new(spec.machine.cpu_limit_milli),
        instance: OnceLock::from(instance.clone()),
        state: Mutex::new(State::Running),
        changed: Condvar::new(),
        sandbox: OnceLock::from(restricted),
    });

    let shared = life.clone();
    serve("control", control, move |connection| control::answer(&shared, connection))
        .map_err(broken("serve its control socket"))?;
    let shared = life.clone();
    serve("session", sessions, move |connection| session::answer(&shared, connection))
        .map_err(broken("serve its streams"))?;
    let shared = life.clone();
    serve("console", listener, move |connection| viv_cell::attach(&shared.console, connection, |_| {}))
        .map_err(broken("serve its console"))?;
    if let Some(owner) = owner {
        let shared = life.clone();
        watch_owner(owner, move || shared.kill(None))?;
    }
    let shared = life.clone();
    watch_signals(signals, move || shared.kill(None))?;
    if let Some(ms) = program.spec.time_ms {
        let (shared, end) = (gate.clone(), timeout(ms));
        spawn("time", move || shared.limit(Duration::from_millis(ms), end))?;
    }
    let (measured, held) = (instance.clone(), gate.clone());
    life.quota.govern(move || measured.cpu_ns_elsewhere(), move |hold| held.hold(hold))?;
    report(&Started::Running(life.status()));
    let end = to_the_end(&life, &program, instance)?;
    let _ = write_json(STATS.as_ref(), &life.stats()); // a full disk must not hide the end
    console.close();
    console.drain(DRAIN_LIMIT);
    let status = match &end {
        End::Command { status } => Some(*status),
        _ => None,
    };
    // The end is there before whoever waits for it looks.
    let _ = write_json(viv_api::runner::END.as_ref(), &end);
    streams.end_session(status);
    Ok(end)
}

/// The ports of its network cards, which come over standard input, for each card that is plugged into something.
fn cards(machine: &MachineSpec) -> io::Result<Vec<Option<OwnedFd>>> {
    if machine.nics.is_empty() {
        return Ok(Vec::new());
    }
    let mut input = WithFiles::new(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?));
    input.read_to_end(&mut Vec::new())?;
    let mut came = input.take_files().into_iter();
    let port = |nic: &NicSpec| if nic.net == NetKind::None { None } else { came.next() };
    Ok(machine.nics.iter().map(port).collect())
}

fn timeout(ms: u64) -> End {
    End::Timeout { message: format!("the program has run for {} s, its limit", ms as f64 / 1000.0) }
}

/// Runs it, once somebody is there who waits for its output.
fn to_the_end(life: &Arc<Life>, program: &RunnerProgram, instance: Arc<dyn Instance>) -> Result<End, Fault> {
    let (gate, streams, awaited) = (life.gate.clone(), life.streams.clone(), program.awaited);
    let run = move || {
        if awaited && streams.wait_for_session().is_err() {
            return gate.end().unwrap_or(End::Killed);
        }
        gate.begin();
        let end = instance.run();
        gate.end().unwrap_or(end)
    };
    let thread = thread::Builder::new().name("program".into()).stack_size(STACK);
    let joined = thread.spawn(run).map_err(broken("make a thread"))?.join();
    Ok(joined.unwrap_or_else(|_| End::Failed {
        message: "the program's machine broke off: this is a defect of ours; see runner.log of its VM".into(),
    }))
}
