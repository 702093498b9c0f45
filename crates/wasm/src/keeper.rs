//! Saves a program that runs: whoever asks waits, and the program's own thread writes when it comes by.
//!
//! A program that computes is made to look up (the epoch), and then stops before its next instruction; one that waits in a call of
//! its host is saved as about to make that call. Either way it stands still for as long as this takes, and goes on.
use crate::instance::Host;
use crate::live::{self, Running, Stands, State, Unsaved, Value};
use crate::wasi::{self, SavedWasi};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use viv_model::{Fault, Kind};
use viv_process::{Files, Gate, Saved, Waited};
use viv_snapshot::{SECTION_MAX, write_content, write_passing, write_section};
use wasmtime::{AsContextMut, DebugEvent, DebugHandler, ExternType, Module, StoreContextMut};

/// The section with a program's state, and the version of its form.
pub(crate) const SECTION: (&str, u32) = ("program", 1);
/// How long a program is waited for that is in a call which nobody can leave.
const COMES_BY: Duration = Duration::from_secs(10);

/// What of a program is in its section. Its memories are one after the other in the snapshot's memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    /// The checksum of its file.
    pub(crate) file: String,
    /// What is called.
    pub(crate) stage: Stage,
    pub(crate) state: State,
    pub(crate) wasi: SavedWasi,
    /// Fuel that is left, as of the last function that it called.
    pub(crate) fuel: Option<u64>,
    /// How often it was refused memory.
    pub(crate) memory_refused: u64,
    /// For how long it has run, nanoseconds.
    pub(crate) ran_ns: u64,
}

/// What of a program is called, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Stage {
    /// The module's start function.
    Start,
    /// `_initialize`.
    Initialize,
    /// What it is there for.
    Main,
}

/// What a store knows of its program, to save it.
pub(crate) struct Live {
    pub(crate) keeper: Arc<Keeper>,
    /// Once it is there.
    pub(crate) running: Option<Running>,
    /// Its frames are not all there again.
    pub(crate) rebuilds: bool,
    pub(crate) stage: Stage,
}

/// Somebody who wants a program saved.
struct Job {
    files: Files,
    /// Connections may be left behind.
    drop_sockets: bool,
    reply: SyncSender<Result<Saved, Fault>>,
}

#[derive(Default)]
struct Jobs {
    waits: Option<Job>,
    ended: bool,
}

/// See the module.
pub(crate) struct Keeper {
    module: Module,
    /// The checksum of the program's file.
    file: String,
    gate: Arc<Gate>,
    /// The functions of the host, by their numbers in the module.
    imports: HashMap<String, u32>,
    jobs: Mutex<Jobs>,
}

fn refused(why: impl std::fmt::Display, fix: &str) -> Fault {
    Fault::new(Kind::Conflict, format!("the program cannot be saved now: {why}"), fix)
}

impl Keeper {
    /// For a program of this module.
    pub(crate) fn new(module: &Module, file: String, gate: Arc<Gate>) -> Keeper {
        let functions = module.imports().filter(|import| matches!(import.ty(), ExternType::Func(_)));
        let mut imports = HashMap::new();
        for (number, import) in (0..).zip(functions) {
            if import.module() == wasi::MODULE {
                imports.entry(import.name().to_string()).or_insert(number);
            }
        }
        Keeper { module: module.clone(), file, gate, imports, jobs: Mutex::default() }
    }

    /// The module's own bytes.
    pub(crate) fn bytecode(&self) -> &[u8] {
        self.module.debug_bytecode().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the program save itself.
    pub(crate) fn save(&self, files: &Files, drop_sockets: bool) -> Result<Saved, Fault> {
        let gone = || refused("it has ended", "start it first: viv start VM");
        let open = |file: &std::fs::File| file.try_clone().map_err(failed);
        let sums = files.sums.as_ref().map(open).transpose()?;
        let files = Files { state: open(&files.state)?, memory: open(&files.memory)?, sums };
        let (reply, answer) = sync_channel(1);
        {
            let mut jobs = self.lock();
            if jobs.ended {
                return Err(gone());
            }
            jobs.waits = Some(Job { files, drop_sockets, reply });
            self.gate.want(true);
        }
        let answered = match answer.recv_timeout(COMES_BY) {
            Err(RecvTimeoutError::Timeout) => {
                let given_up = self.take().is_some();
                self.settle();
                if given_up {
                    let why = "it has not begun yet, or is in a call that waits for whoever reads its output";
                    return Err(refused(why, "read what it says (viv logs -f), and try again"));
                }
                // It is being written.
                answer.recv().map_err(|_| gone())
            }
            other => other.map_err(|_| gone()),
        };
        answered?
    }

    fn take(&self) -> Option<Job> {
        self.lock().waits.take()
    }

    /// Nobody wants it any more, unless somebody has come meanwhile.
    fn settle(&self) {
        let jobs = self.lock();
        if jobs.waits.is_none() {
            self.gate.want(false);
        }
    }

    /// The program has ended: nobody waits for it any longer.
    pub(crate) fn end(&self) {
        let mut jobs = self.lock();
        jobs.ended = true;
        jobs.waits = None;
    }

    /// Saves the program for whoever wants that. False if it has to go one step further first.
    fn serve(&self, mut store: StoreContextMut<'_, Host>, stands: &Stands) -> bool {
        if let Some(job) = self.take() {
            let done = match self.write(store.as_context_mut(), stands, &job) {
                Err(Unwritten::Unsaved(Unsaved::Soon)) => {
                    self.lock().waits.get_or_insert(job);
                    return false;
                }
                Err(Unwritten::Unsaved(why)) => Err(fault(&why)),
                Err(Unwritten::Failed(fault)) => Err(fault),
                Ok(saved) => Ok(saved),
            };
            self.settle();
            let _ = job.reply.send(done); // who has gone does not want it any more
        }
        self.settle();
        true
    }

    fn write(
        &self,
        mut store: StoreContextMut<'_, Host>,
        stands: &Stands,
        Job { files, drop_sockets, .. }: &Job,
    ) -> Result<Saved, Unwritten> {
        let began = Instant::now();
        let early = || Unsaved::Damaged("it has not begun".into());
        let live = store.data().live.as_ref().ok_or_else(early)?;
        let (stage, running) = (live.stage, live.running.clone().ok_or_else(early)?);
        let shape = live::Shape::read(self.bytecode())?;
        let state = live::capture(store.as_context_mut(), &running, &shape, stands)?;
        // What could not go on is refused now.
        live::plan(&shape, &state)?;
        let snapshot = Snapshot {
            file: self.file.clone(),
            stage,
            wasi: store.data().wasi.saved(*drop_sockets)?,
            fuel: store.get_fuel().ok(),
            memory_refused: store.data().usage().refused.load(Ordering::Relaxed),
            ran_ns: u64::try_from(self.gate.ran().as_nanos()).unwrap_or(u64::MAX),
            state,
        };
        let bytes = serde_json::to_vec(&snapshot).map_err(|error| failed(error.into()))?;
        if bytes.len() as u64 > SECTION_MAX {
            return Err(
                Unsaved::Kind("more frames, tables and open directories than a snapshot takes").into()
            );
        }
        let section = write_section(&files.state, SECTION.0, SECTION.1, 0, &bytes).map_err(failed)?;
        let mut memories = Vec::new();
        for number in 0..snapshot.state.memories.len() as u32 {
            memories.push(running.instance.debug_memory(store.as_context_mut(), number).ok_or_else(early)?);
        }
        let memories: Vec<&[u8]> = memories.iter().map(|memory| memory.data(&store)).collect();
        let total = memories.iter().map(|memory| memory.len() as u64).sum();
        let read = &mut |offset: u64, data: &mut [u8]| copy_out(&memories, offset, data).map(|()| true);
        let memory = match &files.sums {
            Some(sums) => write_content(&files.memory, sums, total, &[(0, total)], read),
            None => write_passing(&files.memory, total, read),
        };
        let memory = memory.map_err(failed)?;
        let paused_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(Saved { sections: vec![section], memory, paused_ns })
    }
}

/// Reads from memories that lie one after the other.
fn copy_out(memories: &[&[u8]], offset: u64, mut data: &mut [u8]) -> io::Result<()> {
    let mut begin = 0u64;
    let mut at = offset;
    for memory in memories {
        let end = begin + memory.len() as u64;
        if at < end && !data.is_empty() {
            let length = data.len().min((end - at) as usize);
            let from = (at - begin) as usize;
            let (now, rest) = data.split_at_mut(length);
            let piece = memory.get(from..from + length).ok_or(io::ErrorKind::InvalidInput)?;
            now.copy_from_slice(piece);
            (data, at) = (rest, at + length as u64);
        }
        begin = end;
    }
    if data.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Why nothing was written.
enum Unwritten {
    Unsaved(Unsaved),
    Failed(Fault),
}

impl From<Unsaved> for Unwritten {
    fn from(why: Unsaved) -> Unwritten {
        Unwritten::Unsaved(why)
    }
}

impl From<Fault> for Unwritten {
    fn from(fault: Fault) -> Unwritten {
        Unwritten::Failed(fault)
    }
}

fn failed(error: io::Error) -> Fault {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull => Kind::NoCapacity,
        _ => Kind::Error,
    };
    let text = format!("cannot save the program: {error}");
    Fault::new(kind, text, "see that there is space for it, for example: viv snapshot rm")
}

fn fault(why: &Unsaved) -> Fault {
    let fix = match why {
        Unsaved::Kind(_) => "try again a moment later, or let it end; what cannot be saved: docs/programs.md",
        Unsaved::Open(_) => "let it close that first, and try again",
        Unsaved::Connected(_) => {
            "add --drop-sockets: they stay with it as it runs, and are reset where it goes on from the snapshot"
        }
        Unsaved::Soon | Unsaved::Damaged(_) => crate::engine::REPORT,
    };
    refused(why, fix)
}

/// Saves a program in a call of its host that it is about to make, or to make again.
pub(crate) fn save_in_host(store: StoreContextMut<'_, Host>, name: &str, arguments: &[u32]) {
    let Some(live) = &store.data().live else { return };
    let keeper = live.keeper.clone();
    let Some(number) = keeper.imports.get(name) else { return keeper.settle() };
    let arguments = arguments.iter().map(|value| Value::I32(*value)).collect();
    keeper.serve(store, &Stands::InHost(*number, arguments));
}

/// Has a program stop before its next instruction, or not any more.
pub(crate) fn step(mut store: StoreContextMut<'_, Host>, on: bool) -> wasmtime::Result<()> {
    match store.as_context_mut().edit_breakpoints() {
        Some(mut breakpoints) => breakpoints.single_step(on),
        None => Ok(()),
    }
}

/// What is called before each instruction of a program that is to be saved.
#[derive(Clone)]
pub(crate) struct Stepper(pub(crate) Arc<Keeper>);

impl Stepper {
    fn stand(&self, mut store: StoreContextMut<'_, Host>) {
        if store.data().live.as_ref().is_none_or(|live| live.rebuilds) {
            return;
        }
        loop {
            if !self.0.serve(store.as_context_mut(), &Stands::Between) {
                return;
            }
            // A program that stands still does so here.
            match self.0.gate.pass_or_wanted() {
                Ok(Waited::Wanted) => {}
                Ok(Waited::Ready(()) | Waited::Late) | Err(_) => break,
            }
        }
        let _ = step(store, false); // it would come by here again, and be asked again
    }
}

impl DebugHandler for Stepper {
    type Data = Host;

    fn handle(
        &self,
        store: StoreContextMut<'_, Host>,
        event: DebugEvent<'_>,
    ) -> impl Future<Output = ()> + Send {
        if matches!(event, DebugEvent::Breakpoint) {
            self.stand(store);
        }
        async {}
    }
}
