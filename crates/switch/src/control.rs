//! The control socket: JSON lines, an answer for each request, a thread for each connection.
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;
use viv_api::passed::answer_lines;
use viv_api::switch::{Ask, LINE_MAX, Reply, Status};
use viv_model::{Attachment, Fault, Kind, PortSpec};
use viv_net::switch::{Controls, Listeners, PlugError};

/// How long the service may take to send a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Answers the service from now on.
pub(crate) fn serve(listener: UnixListener, status: Status, controls: Controls) -> io::Result<()> {
    thread::Builder::new().name("control".into()).spawn(move || {
        for connection in listener.incoming() {
            let Ok(connection) = connection else {
                // Out of descriptors or memory: it passes, and must not become a busy loop.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            let (status, controls) = (status.clone(), controls.clone());
            let _ = thread::Builder::new()
                .name("control".into())
                .spawn(move || answer(connection, &status, &controls));
        }
    })?;
    Ok(())
}

fn answer(connection: UnixStream, status: &Status, controls: &Controls) {
    let _ = connection.set_read_timeout(Some(REQUEST_LIMIT));
    answer_lines(connection, LINE_MAX, |asked, files| {
        let done = match asked {
            Ok(Ask::Counters) => return Reply::Counters(controls.counters()),
            Ok(ask) => obey(ask, files, controls),
            Err(error) => Err(Fault::new(
                Kind::Usage,
                format!("a request to the network's process was not understood: {error}"),
                "start the network's VMs anew with the command of one version",
            )),
        };
        match done {
            Ok(()) => Reply::Ok(Status { ports: controls.list(), ..status.clone() }),
            Err(fault) => Reply::Refused(fault),
        }
    });
}

fn obey(ask: Ask, files: Vec<OwnedFd>, controls: &Controls) -> Result<(), Fault> {
    match ask {
        Ask::Status => Ok(()),
        Ask::Plug { port, publish } => plug(port, &publish, files, controls),
        Ask::Groups { groups } => {
            controls.set_groups(groups);
            Ok(())
        }
        Ask::Resolver { address } => {
            controls.set_resolver(address);
            Ok(())
        }
        Ask::Member { vm, groups } => {
            controls.set_member(&vm, groups);
            Ok(())
        }
        Ask::Limit { vm, limits } => {
            controls.limit(&vm, limits);
            Ok(())
        }
        Ask::Capture { vm } => capture(&vm, files, controls),
        Ask::Connect { vm, port } => connect(&vm, port, files, controls),
        // Answered before.
        Ask::Counters => Ok(()),
        Ask::Unplug { vm } => {
            controls.unplug(&vm);
            Ok(())
        }
    }
}

fn capture(vm: &str, files: Vec<OwnedFd>, controls: &Controls) -> Result<(), Fault> {
    let refused =
        |kind, why: &str, fix: &str| Err(Fault::new(kind, format!("cannot watch the port: {why}"), fix));
    let Some(socket) = files.into_iter().next() else {
        return refused(Kind::Usage, "no socket came for it", "send one along");
    };
    match controls.capture(vm, socket) {
        true => Ok(()),
        false => refused(
            Kind::Conflict,
            "the VM is not plugged in, or too many watch it already",
            "see its port: viv port show; end another viv capture",
        ),
    }
}

fn connect(vm: &str, port: u16, files: Vec<OwnedFd>, controls: &Controls) -> Result<(), Fault> {
    let refused = |kind, why: &str, fix: &str| {
        Err(Fault::new(kind, format!("cannot connect to port {port} of the VM: {why}"), fix))
    };
    let Some(stream) = files.into_iter().next() else {
        return refused(Kind::Usage, "no stream came for it", "send one along");
    };
    match controls.connect(vm, port, stream) {
        true => Ok(()),
        false => refused(Kind::Conflict, "it is not plugged in", "see its port: viv port show"),
    }
}

fn plug(
    port: Attachment,
    publish: &[PortSpec],
    files: Vec<OwnedFd>,
    controls: &Controls,
) -> Result<(), Fault> {
    let name = port.name.clone();
    let refused = |kind: Kind, why: String| {
        let fix = "see who is in the network: viv network show";
        Fault::new(kind, format!("cannot plug VM {name:?} into its network: {why}"), fix)
    };
    let mut files = files.into_iter();
    let socket = files.next().ok_or_else(|| refused(Kind::Usage, "no socket came for it".to_string()))?;
    let listeners = Listeners::adopt(publish, files.collect());
    controls.plug(port, socket.into(), listeners).map_err(|error| {
        let kind = match error {
            PlugError::NotOurs(_) | PlugError::Taken(_) => Kind::Conflict,
            PlugError::Gone | PlugError::Host(_) => Kind::Error,
        };
        refused(kind, error.to_string())
    })
}
