//! The one place that buries children: theirs are ours if we are process 1, and a status that was collected
//! twice would be lost.
use crate::sys;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Who waits for which child: the child's number and an eventfd that will count status + 1.
static WAITING: Mutex<Option<HashMap<i32, File>>> = Mutex::new(None);

fn waiting() -> MutexGuard<'static, Option<HashMap<i32, File>>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts `command`. The file becomes readable when it has ended; [`status`] reads it.
pub(crate) fn spawn(command: &mut Command) -> io::Result<(Child, File)> {
    let event = sys::event()?;
    let theirs = event.try_clone()?;
    // The lock keeps `bury` away until the number is known, and from a child whose exec failed, which `spawn`
    // itself collects.
    let mut waiting = waiting();
    let child = command.spawn()?;
    waiting.get_or_insert_default().insert(child.id() as i32, theirs);
    Ok((child, event))
}

/// The children that somebody waits for.
pub(crate) fn alive() -> Vec<i32> {
    waiting().iter().flat_map(|map| map.keys().copied()).collect()
}

/// The status in an eventfd of [`spawn`], if the child has ended.
pub(crate) fn status(event: &File) -> Option<u8> {
    use std::io::Read;
    let mut count = [0; 8];
    let mut event = event;
    event.read_exact(&mut count).ok()?;
    u8::try_from(u64::from_le_bytes(count).saturating_sub(1)).ok()
}

/// Runs `command` to its end, whoever buries children meanwhile: its status.
pub(crate) fn run(command: &mut Command) -> io::Result<u8> {
    const LOOK_MS: i32 = 50;
    let (child, ended) = spawn(command)?;
    // Nobody may bury it but we: the process itself says when it is time. A kernel before 5.3 does not.
    let itself = sys::process(child.id()).ok();
    let fds = [Some(ended.as_raw_fd()), itself.as_ref().map(AsRawFd::as_raw_fd)];
    let watch: Vec<_> =
        fds.into_iter().flatten().map(|fd| sys::Watch { fd, read: true, write: false }).collect();
    loop {
        bury();
        if let Some(status) = status(&ended) {
            return Ok(status);
        }
        let _ = sys::poll(&watch, LOOK_MS);
    }
}

/// Collects every child that has ended and tells those who wait. Call it upon SIGCHLD.
pub(crate) fn bury() {
    let mut waiting = waiting();
    while let Some((pid, status)) = sys::reap() {
        if let Some(mut event) = waiting.as_mut().and_then(|map| map.remove(&pid)) {
            let _ = event.write_all(&(u64::from(status) + 1).to_le_bytes());
        }
    }
}
