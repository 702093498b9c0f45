//! One network's process: the switch that its VMs are plugged into.
//!
//! ```text
//!   host service ── switch.sock ──► control ──► viv_net::switch::Engine ◄── a socket pair for each VM ──► runners
//! ```
//! [`run`] reads which network it is, gives up every right but to have sockets ([`sandbox`]), says that it serves, and ends
//! when nobody has been plugged in for a while. It knows nothing of other networks and of records: that is policy, and
//! lives in `host`. VMs outlive it: whoever finds it gone starts another one and plugs them in again.
#![forbid(unsafe_code)]

mod control;
mod sandbox;

use rustix::process::{Resource, getrlimit, setrlimit};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use viv_api::switch::{CONTROL, LOCK, SPEC, Started, Status};
use viv_api::vm::Process;
use viv_model::{Fault, Kind, NetworkSpec};
use viv_net::switch::{Controls, Engine, resolver};

/// How long an earlier process of the network may take to end.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(5);
/// How often it is looked for.
const RETRY: Duration = Duration::from_millis(20);

/// Runs the switch whose directory is `dir`, until it is not needed any more. Gives the exit status.
pub fn run(dir: &Path) -> u8 {
    let prepared = match prepare(dir) {
        Ok(prepared) => prepared,
        Err(fault) => {
            report(&Started::Refused(fault));
            return 1;
        }
    };
    let Prepared { status, mut engine, controls, listener, _lock } = prepared;
    let answering = status.clone();
    let answered = control::serve(listener, answering, controls);
    report(&match answered {
        Ok(()) => Started::Serving(status),
        Err(error) => Started::Refused(broken("serve its socket")(error)),
    });
    match engine.serve() {
        Ok(()) => 0,
        Err(error) => {
            viv_api::complain!("viv switch: the network broke off: {error}");
            1
        }
    }
}

/// What is there once the sandbox has closed.
struct Prepared {
    status: Status,
    engine: Engine,
    controls: Controls,
    listener: UnixListener,
    _lock: File,
}

fn broken(what: &str) -> impl Fn(io::Error) -> Fault {
    move |error| {
        Fault::new(
            Kind::Error,
            format!("the network's process cannot {what}: {error}"),
            "see that its directory is writable and its disk has space: viv info",
        )
    }
}

fn prepare(dir: &Path) -> Result<Prepared, Fault> {
    std::env::set_current_dir(dir).map_err(broken("enter its directory"))?;
    let (lock, process) = lock().map_err(broken("lock its directory"))?;
    let spec = fs::read(SPEC).map_err(broken("read which network it is"))?;
    let network: NetworkSpec = serde_json::from_slice(&spec)
        .map_err(|error| broken("understand which network it is")(io::Error::other(error)))?;
    match fs::remove_file(CONTROL) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(broken("clear its directory")(error));
        }
        _ => {}
    }
    let listener = UnixListener::bind(CONTROL).map_err(broken("make its socket"))?;
    let (engine, controls) = Engine::new(&network, resolver()).map_err(broken("make its switch"))?;
    // Each connection is a descriptor; as many as the host lets us have, if it lets us.
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let sandbox = sandbox::restrict()?;
    let status = Status { process, network, ports: Vec::new(), sandbox };
    Ok(Prepared { status, engine, controls, listener, _lock: lock })
}

/// Held while the process lives; it names the process. One before it may just be ending.
fn lock() -> io::Result<(File, Process)> {
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(LOCK)?;
    let deadline = Instant::now() + PREDECESSOR_LIMIT;
    while let Err(error) = file.try_lock() {
        match error {
            fs::TryLockError::WouldBlock if Instant::now() < deadline => thread::sleep(RETRY),
            fs::TryLockError::WouldBlock => return Err(io::ErrorKind::ResourceBusy.into()),
            fs::TryLockError::Error(error) => return Err(error),
        }
    }
    file.set_len(0)?;
    let process = Process::current()?;
    file.write_all(&serde_json::to_vec(&process)?)?;
    Ok((file, process))
}

/// Tells the service how the start went.
fn report(started: &Started) {
    let mut line = serde_json::to_vec(started).unwrap_or_default();
    line.push(b'\n');
    let mut out = io::stdout().lock();
    // A service that is gone finds us again by our lock.
    let _ = out.write_all(&line).and_then(|()| out.flush());
}
