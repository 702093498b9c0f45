//! What the agent runs in a VM's guest: the command for which the VM exists, and the check of its health.
use crate::store::VmRecord;
use viv_api::agent::{Exec, HealthWatch};
use viv_model::Fault;

/// The command to begin for a VM: what was asked for, else, if it boots and nobody attends to it, what its image says. Both have the
/// image's variables, directory and user, where nothing else was asked for. In one that goes on from somewhere it runs already, unless
/// it is `new`.
pub(crate) fn main_command(record: &VmRecord, resumes: bool, new: bool) -> Result<Option<Exec>, Fault> {
    let asked = record.command.clone().filter(|_| !resumes || new);
    let Some(process) = &record.process else { return Ok(asked) };
    match asked {
        Some(command) if resumes => Ok(Some(process.exec(command))),
        None if resumes || record.attended_by.is_some() => Ok(None),
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
