//! What the agent runs in a VM's guest: the command for which the VM exists, and the check of its health.
use crate::store::VmRecord;
use viv_api::agent::{Exec, HealthWatch};
use viv_model::Fault;

/// What runs already in a guest whose VM's process begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    /// All that it is there for, as far as it has begun: it goes on.
    All,
    /// The same, but for a command that is new.
    AllBut,
    /// Nothing: it boots, or has done no more than that.
    Nothing,
}

/// The command to begin for a VM: what was asked for, else, if nothing runs in it and nobody attends to it, what its image says. Both have
/// the image's variables, directory and user, where nothing else was asked for.
pub(crate) fn main_command(record: &VmRecord, runs: Runs) -> Result<Option<Exec>, Fault> {
    let asked = record.command.clone().filter(|_| runs != Runs::All);
    let Some(process) = &record.process else { return Ok(asked) };
    match asked {
        Some(command) if runs != Runs::Nothing => Ok(Some(process.exec(command))),
        None if runs != Runs::Nothing || record.attended_by.is_some() => Ok(None),
        command => process.main(command.unwrap_or_else(|| Exec::new([""; 0]))).map(Some),
    }
}

/// How to see whether its guest is well: with the variables, directory and user of its command.
pub(crate) fn health_watch(record: &VmRecord) -> Result<Option<HealthWatch>, Fault> {
    let image = record.process.as_ref();
    let check = record.health.over(image.and_then(|process| process.health.as_ref()))?;
    Ok(check.map(|check| {
        let plain = Exec::new([""; 0]);
        let exec = Exec { argv: check.argv.clone(), tty: false, ..record.command.clone().unwrap_or(plain) };
        let exec = image.map_or_else(|| exec.clone(), |process| process.exec(exec.clone()));
        HealthWatch { check, exec }
    }))
}
