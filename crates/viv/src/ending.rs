//! How the end of a VM becomes the end of the command.
use crate::output;
use std::time::{Duration, Instant};
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::vm::Vm;
use viv_model::{End, Fault, Kind};

/// How long a VM may run on after it has closed the connection of the command that it was for.
const LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The VM after its end; a fault if it does not end.
pub(crate) fn wait(client: &Client, id: &str) -> Result<Vm, Fault> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let vm: Vm = client.json(Request::new(Route::VmGet, &[id]))?;
        if !vm.state.is_live() {
            return Ok(vm);
        }
        if Instant::now() >= deadline {
            return Err(Fault::new(
                Kind::Error,
                format!("the connection to VM {:?} ended, and the VM runs on", vm.name),
                format!("see what it does: viv console {0}, or end it: viv kill {0}", vm.name),
            ));
        }
        std::thread::sleep(LOOK);
    }
}

/// Says how a VM ended, unless that goes without saying, and gives the exit status.
pub(crate) fn status(vm: &Vm) -> u8 {
    let Some(end) = &vm.end else { return Kind::Error.exit_status() };
    if let Some(words) = words(end) {
        output::note(&format!("VM {}: {words}", vm.name));
    }
    end.exit_status()
}

/// What is worth to be said of an end.
fn words(end: &End) -> Option<String> {
    match end {
        End::PowerOff | End::Command { .. } => None,
        End::Reboot => Some("the guest asked for a reset".into()),
        End::Panic => Some("the guest's kernel panicked".into()),
        End::TripleFault => Some("the guest's processor shut down (triple fault)".into()),
        End::Killed => Some("it was killed".into()),
        End::Failed { message }
        | End::Trap { message }
        | End::Limit { message }
        | End::Timeout { message } => Some(message.clone()),
    }
}
