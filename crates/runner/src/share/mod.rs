//! The processes that serve a VM's shared directories: one for each, beside the VM's own.
//!
//! ```text
//!  runner ── starts, before its sandbox closes ──► server: opens the directory, closes its own sandbox, says so
//!     └───── for each boot a socket ─────────────► answers that guest (viv_share::link)
//! ```
//! A server can reach nothing but its directory, the VM's process cannot even reach that. When the VM's process ends, its
//! servers see the end of their control socket and end too. When a server ends first, the guest gets I/O errors
//! from that directory, and the log says why.
mod sandbox;

use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use viv_api::runner::LINE_MAX;
use viv_model::{Fault, Kind, ShareSpec};
use viv_share::{Directory, link};

/// What a server says once, on its standard output.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ready {
    /// It serves; what restricts it, by name.
    Serving(Vec<String>),
    /// It cannot, and why.
    Refused(Fault),
}

/// The servers of one VM.
pub(crate) struct Servers {
    servers: Vec<Server>,
}

struct Server {
    control: OwnedFd,
    /// None when it is watched.
    child: Option<Child>,
    share: ShareSpec,
}

fn broken(share: &ShareSpec, what: &str, error: &std::io::Error) -> Fault {
    Fault::new(
        Kind::Error,
        format!("cannot {what} the process that serves {}: {error}", share.path.display()),
        "end programs that use many processes or files, and try again",
    )
}

impl Servers {
    /// Starts a server for each share, and waits until it serves.
    pub(crate) fn start(shares: &[ShareSpec]) -> Result<Servers, Fault> {
        let servers = shares.iter().map(Server::start).collect::<Result<_, _>>()?;
        Ok(Servers { servers })
    }

    /// A new guest's sockets, in the order of the shares.
    pub(crate) fn connect(&self) -> Result<Vec<UnixStream>, Fault> {
        let connect = |server: &Server| match link::open_session(&server.control) {
            Ok(stream) => Ok(stream),
            // It is gone: the guest boots all the same, and gets errors.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => UnixStream::pair()
                .map(|(ours, _)| ours)
                .map_err(|error| broken(&server.share, "reach", &error)),
            Err(error) => Err(broken(&server.share, "reach", &error)),
        };
        self.servers.iter().map(connect).collect()
    }

    /// Waits, in a thread for each, for servers that end too early, and says so.
    pub(crate) fn watch(&mut self) -> std::io::Result<()> {
        for server in &mut self.servers {
            let Some(mut child) = server.child.take() else { continue };
            let (path, target) = (server.share.path.clone(), server.share.target.clone());
            thread::Builder::new().name("share-watch".into()).spawn(move || {
                let how = child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
                eprintln!(
                    "viv runner: the process that serves {} has ended ({how}): the guest gets I/O errors from \
                     {target} until the VM is started anew",
                    path.display()
                );
            })?;
        }
        Ok(())
    }
}

impl Server {
    fn start(share: &ShareSpec) -> Result<Server, Fault> {
        let (control, theirs) =
            link::control().map_err(|error| broken(share, "make the socket of", &error))?;
        // Not the program's path: that may be a newer version's by now.
        let mut command = Command::new("/proc/self/exe");
        command.args(["runner", "--share"]).arg(&share.path).args(share.read_only.then_some("--read-only"));
        command.stdin(theirs).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| broken(share, "start", &error))?;
        let mut line = Vec::new();
        if let Some(output) = child.stdout.take() {
            let _ = BufReader::new(output).take(LINE_MAX as u64).read_until(b'\n', &mut line);
        }
        match serde_json::from_slice(&line) {
            Ok(Ready::Serving(_)) => Ok(Server { control, child: Some(child), share: share.clone() }),
            Ok(Ready::Refused(fault)) => {
                let _ = child.wait();
                Err(fault)
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(broken(share, "understand", &error.into()))
            }
        }
    }
}

/// The main function of a server: serves `path` to the VM's process behind standard input. Gives the exit status.
pub fn serve(path: &Path, read_only: bool) -> u8 {
    let prepared = Directory::open(path, read_only).and_then(|directory| {
        let in_force = sandbox::restrict(&directory, path)?;
        Ok((directory, in_force))
    });
    let (ready, directory) = match prepared {
        Ok((directory, in_force)) => (Ready::Serving(in_force), Some(directory)),
        Err(fault) => (Ready::Refused(fault), None),
    };
    let mut line = serde_json::to_vec(&ready).unwrap_or_default();
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    if out.write_all(&line).and_then(|()| out.flush()).is_err() {
        return 1;
    }
    let Some(directory) = directory else { return 1 };
    let control = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(control) => control,
        Err(error) => {
            eprintln!("viv runner: cannot serve {}: standard input: {error}", path.display());
            return 1;
        }
    };
    match link::serve(&directory, control) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("viv runner: serving {} broke off: {error}", path.display());
            1
        }
    }
}
