//! The directory of a VM as its process finds it, and leaves it.
use crate::console::{Console, Log};
use crate::sandbox;
use crate::written;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use signal_hook::iterator::Signals;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use viv_api::runner::{
    CONSOLE, CONSOLE_LOG, CONSOLE_LOG_MAX, CONSOLE_LOG_OLD, CONTROL, END, LOCK, RunnerSpec, SPEC, STATS,
    Started, VSOCK,
};
use viv_api::vm::Process;
use viv_model::{End, Fault, Kind};

/// How long the last output may take to reach its readers.
pub const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// How long a process that was killed may take to let go of its files: it counts as dead from its first thread's end on.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A VM's directory, which is this process's own from now on and its working directory.
pub struct Place {
    /// The control socket.
    pub control: UnixListener,
    /// The console's socket.
    pub console: UnixListener,
    /// The console's log.
    pub log: Log,
    /// Readable when the process has ended whose end is the VM's end.
    pub owner: Option<OwnedFd>,
    /// What may end the process from outside.
    pub signals: Signals,
    /// This process.
    pub process: Process,
    /// The directory is ours for as long as this is open.
    pub lock: File,
}

impl Place {
    /// Takes the directory, clears it of what an earlier process has left, and reads what the VM is asked to be.
    pub fn enter(dir: &Path) -> Result<(Place, RunnerSpec), Fault> {
        std::env::set_current_dir(dir).map_err(broken("enter its directory"))?;
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(LOCK)
            .map_err(broken("make its lock"))?;
        let begin = Instant::now();
        while lock.try_lock().is_err() {
            if begin.elapsed() >= LOCK_PATIENCE {
                let text = "the VM runs already in another process";
                return Err(Fault::new(Kind::Conflict, text, "see it with: viv ps"));
            }
            thread::sleep(LOCK_PATIENCE / 400);
        }
        // By that it is known from others: without it, it would run and nobody would see it.
        let process = Process::current().map_err(broken("see when it was started"))?;
        let line = serde_json::to_vec(&process).unwrap_or_default();
        lock.set_len(0).and_then(|()| lock.write_all(&line)).map_err(broken("write its lock"))?;
        let spec = fs::read(SPEC).map_err(broken("read its description"))?;
        let spec: RunnerSpec = serde_json::from_slice(&spec)
            .map_err(|error| broken("understand its description")(io::Error::other(error)))?;
        for name in [END, STATS, CONTROL, CONSOLE, VSOCK] {
            if let Err(error) = fs::remove_file(name)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(broken("clear its directory")(error));
            }
        }
        // A write beyond RLIMIT_FSIZE is an error of the file, not the VM's end (setrlimit(2)).
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default())
            .map_err(broken("take signals"))?;
        let place = Place {
            owner: spec.attended_by.as_ref().map(attended).transpose()?,
            control: UnixListener::bind(CONTROL).map_err(broken("make its control socket"))?,
            console: UnixListener::bind(CONSOLE).map_err(broken("make its console socket"))?,
            log: Log::open(CONSOLE_LOG.as_ref(), CONSOLE_LOG_OLD.as_ref(), CONSOLE_LOG_MAX)
                .map_err(broken("open its console's log"))?,
            signals: Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])
                .map_err(broken("take signals"))?,
            process,
            lock,
        };
        Ok((place, spec))
    }
}

/// A fault of the VM's own directory.
pub fn broken(what: &str) -> impl Fn(io::Error) -> Fault {
    move |error| {
        Fault::new(
            Kind::Error,
            format!("the VM's process cannot {what}: {error}"),
            "see that its directory is writable and its disk has space: viv info",
        )
    }
}

/// A descriptor that becomes readable when the process ends.
fn attended(owner: &Process) -> Result<OwnedFd, Fault> {
    let gone = || Fault::new(Kind::Conflict, "the command that wanted the VM has ended", "start it again");
    let pid = i32::try_from(owner.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let descriptor = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
    if owner.is_alive() { Ok(descriptor) } else { Err(gone()) }
}

/// Does this work in a thread of its own.
pub fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
    thread::Builder::new().name(name.into()).spawn(work).map(drop).map_err(broken("make a thread"))
}

/// Calls `gone` when the process has ended whose end is the VM's.
pub fn watch_owner(owner: OwnedFd, gone: impl FnOnce() + Send + 'static) -> Result<(), Fault> {
    spawn("owner", move || {
        while let Err(rustix::io::Errno::INTR) = poll(&mut [PollFd::new(&owner, PollFlags::IN)], None) {}
        gone();
    })
}

/// Calls `end` for each signal that asks the process to end.
pub fn watch_signals(mut signals: Signals, mut end: impl FnMut() + Send + 'static) -> Result<(), Fault> {
    spawn("signals", move || signals.forever().for_each(|_| end()))
}

/// Writes what the console shows into the log.
pub fn keep_log(console: &Arc<Console>, mut log: Log) -> Result<(), Fault> {
    let reader = console.reader(u64::MAX);
    spawn("console-log", move || {
        for piece in reader {
            let _ = log.write(&piece); // a full disk must not stop the guest
        }
    })
}

/// Tells the service how the start went, then lets go of its pipe.
pub fn report(started: &Started) {
    let mut line = serde_json::to_vec(started).unwrap_or_default();
    line.push(b'\n');
    let mut out = io::stdout().lock();
    let _ = out.write_all(&line).and_then(|()| out.flush());
    sandbox::close_output();
}

/// Writes down how the VM ended and ends the process.
pub fn finish(end: &End) -> ! {
    let written = written::write_json(END.as_ref(), end);
    for name in [CONTROL, CONSOLE, VSOCK] {
        let _ = fs::remove_file(name);
    }
    if let Err(error) = &written {
        viv_api::complain!("viv runner: cannot write how the VM ended ({end:?}): {error}");
    }
    std::process::exit(if written.is_ok() { 0 } else { 1 })
}
