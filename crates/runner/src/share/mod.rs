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

use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use viv_model::{Fault, ShareSpec};
use viv_share::server::{Ready, broken, start, watch};
use viv_share::{Directory, link};

/// The server of one directory. It ends when this is gone.
pub(crate) struct Server {
    control: OwnedFd,
    pub(crate) share: ShareSpec,
}

/// A server's process, whose end is to be told, and what it serves.
pub(crate) type Watched = (Child, ShareSpec);

impl Server {
    /// The one behind `control`.
    pub(crate) fn new(share: ShareSpec, control: OwnedFd) -> Server {
        Server { control, share }
    }

    /// Starts a server for each share, and waits until it serves.
    pub(crate) fn start_all(shares: &[ShareSpec]) -> Result<(Vec<Server>, Vec<Watched>), Fault> {
        let mut shares = shares.to_vec();
        ShareSpec::keep_tags(&mut shares);
        let mut started = (Vec::new(), Vec::new());
        for share in shares {
            let (control, child) = start(&share, Stdio::inherit())?;
            started.0.push(Server::new(share.clone(), control));
            started.1.push((child, share));
        }
        Ok(started)
    }

    /// A new guest's socket.
    pub(crate) fn connect(&self) -> Result<UnixStream, Fault> {
        match link::open_session(&self.control) {
            // It is gone: the guest boots all the same, and gets errors.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => UnixStream::pair().map(|(ours, _)| ours),
            connected => connected,
        }
        .map_err(|error| broken(&self.share, "reach", &error))
    }
}

/// Waits, in a thread for each, for servers that end too early, and says so.
pub(crate) fn watch_all(servers: Vec<Watched>) -> std::io::Result<()> {
    for (child, share) in servers {
        thread::Builder::new().name("share-watch".into()).spawn(move || watch(child, &share))?;
    }
    Ok(())
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
            viv_api::complain!("viv runner: cannot serve {}: standard input: {error}", path.display());
            return 1;
        }
    };
    match link::serve(&directory, control) {
        Ok(()) => 0,
        Err(error) => {
            viv_api::complain!("viv runner: serving {} broke off: {error}", path.display());
            1
        }
    }
}
