//! Streams to a VM: asked of the service, and then, as we are on the same host, taken from the VM's process
//! itself. So a session outlives a service that is killed or replaced, as its VM does.
use crate::progress::Waiting;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use viv_api::agent;
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::runner::{CONSOLE, VSOCK};
use viv_api::socket;
use viv_api::vm::Vm;
use viv_model::Fault;

/// How long the process may take to answer; then the service's stream will do.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// A connection to the guest's agent, which may take `wait_s` seconds to come up, or `boot_s` while the guest boots.
pub(crate) fn agent(client: &Client, vm: &Vm, wait_s: u64, boot_s: u64) -> Result<UnixStream, Fault> {
    let names = [vm.id.as_str()];
    let waiting = Waiting::new(format!("{} boots ({} CPU)", vm.name, vm.accel));
    let query = format!("wait={wait_s}&boot={boot_s}");
    let by_service = client.stream(Request::new(Route::VmAgent, &names).query(query))?;
    drop(waiting);
    if client.is_elsewhere() {
        return Ok(by_service);
    }
    Ok(direct_agent(vm).unwrap_or(by_service))
}

/// The same from the VM's process on this host.
pub(crate) fn direct_agent(vm: &Vm) -> io::Result<UnixStream> {
    let mut stream = socket::connect(&vm.dir.join(VSOCK))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    writeln!(stream, "CONNECT {}", agent::PORT)?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while answer.last() != Some(&b'\n') && answer.len() < 64 {
        stream.read_exact(&mut byte)?;
        answer.push(byte[0]);
    }
    if !answer.starts_with(b"OK ") {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// The serial console.
pub(crate) fn console(client: &Client, vm: &Vm) -> Result<UnixStream, Fault> {
    match socket::connect(&vm.dir.join(CONSOLE)) {
        Ok(stream) if !client.is_elsewhere() => Ok(stream),
        _ => client.stream(Request::new(Route::VmConsole, &[&vm.id])),
    }
}
