//! A child that ends with this process, however that ends.
#![allow(unsafe_code)]
use rustix::io::Errno;
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the program that this will start killed when the thread that starts it ends (PR_SET_PDEATHSIG of prctl(2)): to be started by the thread
/// that waits for it. Without that, a program whose VM was killed would go on beside the one that is started in its place.
pub(crate) fn end_with_us(command: &mut Command) {
    let us = getpid();
    let tie = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // We may have ended before that.
        if getppid() == Some(us) { Ok(()) } else { Err(Errno::SRCH.into()) }
    };
    // SAFETY: in the new process, which has one thread and may have its locks held by others, it makes two system calls and nothing else.
    unsafe { command.pre_exec(tie) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn a_child_ends_with_the_thread_that_has_started_it() {
        let start = || {
            let mut command = Command::new("sleep");
            end_with_us(command.arg("600"));
            command.spawn().expect("sleep")
        };
        let mut child = std::thread::spawn(start).join().expect("the thread");
        assert_eq!(child.wait().expect("its end").signal(), Some(9));
    }
}
