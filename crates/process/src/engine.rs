//! The seam to an abstract machine.
use crate::{Gate, Streams};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use viv_api::agent::Output;
use viv_api::runner::{RunnerProgram, RunnerSpec};
use viv_api::stats::ProgramStats;
use viv_cell::sandbox;
use viv_model::{Content, End, Fault, GuestKind, Kind, Section};

/// An abstract machine.
pub trait Engine: Sync {
    /// What programs it runs.
    fn kind(&self) -> GuestKind;

    /// Makes a program ready, in a process that is not confined yet. What cannot be run is refused here. If [`RunnerSpec::resume`] says
    /// so, it goes on from the snapshot in the directory [`viv_api::runner::RESUME`], which is gone before it runs.
    fn prepare(&self, setting: Setting<'_>) -> Result<Prepared, Fault>;
}

/// What a program is made ready from.
pub struct Setting<'a> {
    /// The VM, with the directories that it may use and its memory.
    pub vm: &'a RunnerSpec,
    /// The program.
    pub program: &'a RunnerProgram,
    /// Its standard streams.
    pub streams: Arc<Streams>,
    /// What lets it run, stand still and end.
    pub gate: Arc<Gate>,
    /// The ports of its network cards, in order; none for a card that is plugged into nothing.
    pub cards: Vec<Option<OwnedFd>>,
}

/// A program that is ready to run.
pub struct Prepared {
    /// It.
    pub instance: Arc<dyn Instance>,
    /// What its process keeps of its rights.
    pub confinement: Confinement,
}

/// What a program's process keeps of its rights when it is confined.
#[derive(Default)]
pub struct Confinement {
    /// Files outside the VM's directory.
    pub files: sandbox::Files,
    /// Numbers of system calls that are not refused to it.
    pub calls: Vec<i64>,
    /// It has a network of its own, and opens sockets in it.
    pub has_network: bool,
}

/// A program. Every call may come from any thread. Its pauses and its end come through its [`Gate`].
pub trait Instance: Send + Sync {
    /// Runs it on this thread, and says how it ended. Called once.
    fn run(&self) -> End;

    /// What it has used so far.
    fn stats(&self) -> ProgramStats;

    /// Processor time that other processes have used for it, nanoseconds.
    fn cpu_ns_elsewhere(&self) -> u64 {
        0
    }

    /// Memory that other processes have in use for it, bytes.
    fn memory_elsewhere(&self) -> u64 {
        0
    }

    /// Saves it as it is between two of its steps, and lets it go on; its state and its memory are written while it stands still.
    /// Nothing, if the abstract machine cannot do that. Connections that it has to others are left behind only if that is said.
    fn save(&self, _files: &Files, _drop_sockets: bool) -> Option<Result<Saved, Fault>> {
        None
    }

    /// Does `viv exec` in it: output goes to `output`; gives the exit status.
    fn exec(&self, argv: &[String], output: &mut dyn FnMut(Output)) -> Result<u8, Fault>;
}

/// Where a program is saved to: empty files (`docs/snapshot-format.md`).
pub struct Files {
    /// Its sections.
    pub state: File,
    /// Its memory.
    pub memory: File,
    /// The checksums of that; none if it is for what goes on from it now, and is gone then.
    pub sums: Option<File>,
}

/// What was written of a program.
pub struct Saved {
    /// The pieces of its state.
    pub sections: Vec<Section>,
    /// Its memory.
    pub memory: Content,
    /// How long it stood still, nanoseconds.
    pub paused_ns: u64,
}

/// The answer of an abstract machine in which there is nothing but the program.
pub fn no_commands(kind: GuestKind) -> Fault {
    Fault::new(
        Kind::Conflict,
        format!("no command can be run in {}: there is nothing in it but itself", kind.called()),
        "start the command as a VM of its own: viv run FILE; see what this one does: viv logs, viv stats",
    )
}
