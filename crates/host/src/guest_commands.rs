//! What the agent runs in a VM's guest: the command for which the VM exists, and the check of its health.
use crate::store::VmRecord;
use viv_api::agent::{Exec, HealthWatch};
use viv_model::Fault;

/// The command for which a VM exists: what was asked for, else, if it boots and nobody attends to it, what its image says. Both have
/// the image's variables, directory and user, where nothing else was asked for.
pub(crate) fn main_command(record: &VmRecord, resumes: bool) -> Result<Option<Exec>, Fault> {
    let Some(process) = &record.process else { return Ok(record.command.clone()) };
    match &record.command {
        // Its own program runs already.
        Some(command) if resumes => Ok(Some(process.exec(command.clone()))),
        None if resumes || record.attended_by.is_some() => Ok(None),
        command => process.main(command.clone().unwrap_or_else(|| Exec::new([""; 0]))).map(Some),
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
