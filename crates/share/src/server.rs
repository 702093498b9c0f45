//! How a server's process is started: by whoever may start processes, which is the VM's process before its sandbox closes,
//! and the host service after.
use crate::link;
use rustix::fd::OwnedFd;
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use viv_model::{Fault, Kind, ShareSpec};

/// Most bytes of a server's first word.
const LINE_MAX: u64 = 64 << 10;

/// What a server says once, in a line on its standard output.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ready {
    /// It serves; what restricts it, by name.
    Serving(Vec<String>),
    /// It cannot, and why.
    Refused(Fault),
}

/// What went wrong with the server of `share`.
pub fn broken(share: &ShareSpec, what: &str, error: &io::Error) -> Fault {
    Fault::new(
        Kind::Error,
        format!("cannot {what} the process that serves {}: {error}", share.path.display()),
        "end programs that use many processes or files, and try again",
    )
}

/// Starts this program as the server of `share`, and waits until it serves. It ends with the last copy of its control socket,
/// which is given with it. What it has to say goes to `log`.
pub fn start(share: &ShareSpec, log: Stdio) -> Result<(OwnedFd, Child), Fault> {
    let (control, theirs) = link::control().map_err(|error| broken(share, "make the socket of", &error))?;
    // Not the program's path: that may be a newer version's by now.
    let mut command = Command::new("/proc/self/exe");
    command.args(["runner", "--share"]).arg(&share.path).args(share.read_only.then_some("--read-only"));
    command.stdin(theirs).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().map_err(|error| broken(share, "start", &error))?;
    let mut line = Vec::new();
    if let Some(output) = child.stdout.take() {
        let _ = BufReader::new(output).take(LINE_MAX).read_until(b'\n', &mut line);
    }
    match serde_json::from_slice(&line) {
        Ok(Ready::Serving(_)) => Ok((control, child)),
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

/// Waits for a server's end, and says so if it came too early.
pub fn watch(mut child: Child, share: &ShareSpec) {
    let how = match child.wait() {
        Ok(status) if status.success() => return,
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    eprintln!(
        "viv: the process that serves {} has ended ({how}): the guest gets I/O errors from {} until the VM is started \
         anew, or the directory is detached and attached again",
        share.path.display(),
        share.target
    );
}
