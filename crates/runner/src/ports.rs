//! The sockets of the console's named ports: made before the sandbox closes, for it lets files be made in the VM's directory only.
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use viv_api::socket;
use viv_model::{ConsolePortSpec, Fault, Kind};

/// Listens for the clients of each.
pub(crate) fn listen(ports: &[ConsolePortSpec]) -> Result<Vec<(String, UnixListener)>, Fault> {
    ports.iter().map(|port| Ok((port.name.clone(), one(port)?))).collect()
}

fn one(port: &ConsolePortSpec) -> Result<UnixListener, Fault> {
    let path = port.path.clone().unwrap_or_else(|| PathBuf::from(port.file_name()));
    socket::remove_left(&path)
        .and_then(|()| UnixListener::bind(&path))
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .map_err(|error| refused(port, &path, &error))
}

fn refused(port: &ConsolePortSpec, path: &Path, error: &io::Error) -> Fault {
    let path = path.display();
    let (kind, fix) = match error.kind() {
        ErrorKind::AddrInUse => {
            (Kind::Conflict, "another program has it, or it is a file: use another".to_string())
        }
        ErrorKind::NotFound => (Kind::NotFound, "make the directory that it is in".to_string()),
        ErrorKind::PermissionDenied => (Kind::Denied, "use a directory that you may write to".to_string()),
        ErrorKind::InvalidInput => {
            (Kind::Usage, "a socket's path has at most 107 bytes: use a shorter one".to_string())
        }
        _ => (
            Kind::Error,
            format!("leave out the file, and have the socket in the VM's directory: --console-port {port}"),
        ),
    };
    Fault::new(kind, format!("cannot make the socket {path} of console port {port}: {error}"), fix)
}
