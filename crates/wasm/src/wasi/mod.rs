//! WASI preview 1: what a program may ask of its host (`wasi_snapshot_preview1.witx`).
//!
//! Our own, so that all that a program holds is ours to see: a table of descriptors and a clock. A program reaches the
//! directories that it was given, nothing above them ([`path`]), its streams, a clock and random numbers. What can wait, waits in
//! the program's gate, where a pause and an end find it.
pub(crate) mod clock;
mod errno;
mod fd;
mod file;
mod guest;
mod link;
mod path;
mod poll;
pub(crate) mod random;
mod saved;
mod socket;
mod words;

pub(crate) use errno::Fail;
pub(crate) use link::{MODULE, link};
pub(crate) use saved::SavedWasi;

use clock::Clock;
use fd::Table;
use random::Random;
use socket::News;
use std::sync::Arc;
use std::time::Instant;
use viv_api::runner::RunnerProgram;
use viv_model::{Fault, ShareSpec};
use viv_process::{Gate, Streams, Waited};
use wasmtime::Memory;

/// System calls of a program with a directory that it may change, which are refused to others.
pub(crate) const CALLS: &[i64] = &[libc::SYS_linkat, libc::SYS_symlinkat];

/// What a program ends itself with: `proc_exit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) u8);

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit with status {}", self.0)
    }
}

impl std::error::Error for Exit {}

/// What a program holds of its host.
pub(crate) struct Wasi {
    pub(crate) gate: Arc<Gate>,
    pub(crate) streams: Arc<Streams>,
    /// Its memory, once it is there.
    pub(crate) memory: Option<Memory>,
    args: Vec<String>,
    env: Vec<String>,
    table: Table,
    clock: Clock,
    random: Random,
    /// Since when it waits in a call that it is to make again.
    waits_since: Option<Instant>,
    /// What wakes it when it waits for sockets, once it has.
    news: Option<Arc<News>>,
}

impl Wasi {
    /// What this program is given, these directories among it.
    pub(crate) fn new(
        shares: &[ShareSpec],
        program: &RunnerProgram,
        streams: Arc<Streams>,
        gate: Arc<Gate>,
    ) -> Result<Wasi, Fault> {
        let spec = &program.spec;
        let args = if spec.invoke.is_some() { &[] } else { spec.args.as_slice() };
        Ok(Wasi {
            gate,
            streams,
            memory: None,
            args: std::iter::once(program.called.clone()).chain(args.iter().cloned()).collect(),
            env: spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
            table: Table::new(shares, spec.tty)?,
            clock: if spec.deterministic { Clock::counted() } else { Clock::real() },
            random: if spec.deterministic { Random::from_seed(spec.seed) } else { Random::of_host() },
            waits_since: None,
            news: None,
        })
    }

    /// Passes the gate, before anything has been done.
    fn pass(&self) -> Result<(), Fail> {
        match self.gate.pass_or_wanted()? {
            Waited::Ready(()) | Waited::Late => Ok(()),
            Waited::Wanted => Err(Fail::Wanted),
        }
    }
}
