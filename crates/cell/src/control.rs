//! A VM's sockets: a thread for each connection, and not more of them than are good; and what is said on the control socket: JSON
//! lines, an answer for each request.
use crate::follow::follow;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;
use viv_api::passed::answer_lines;
use viv_api::runner::{Ask, LINE_MAX, Reply, Status};
use viv_model::{Fault, Kind};

/// Most connections to one socket of a VM at a time.
const CONNECTIONS_MAX: usize = 64;
/// How often it is tried to have a thread for one, and after how long again.
const SPAWN_TRIES: u8 = 20;
const SPAWN_AGAIN: Duration = Duration::from_millis(20);

/// Who has asked for something, at the other end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Asker(Option<Arc<UnixStream>>);

impl Asker {
    fn of(connection: &UnixStream) -> Asker {
        // Without a descriptor for it, it is taken for one that waits.
        Asker(connection.try_clone().ok().map(Arc::new))
    }

    /// Fails if nobody waits for the answer any more.
    pub fn is_there(&self) -> std::io::Result<()> {
        let Some(connection) = &self.0 else { return Ok(()) };
        let mut end = [PollFd::new(connection, PollFlags::RDHUP)];
        match poll(&mut end, Some(&Timespec::default())) {
            Ok(1..) => Err(std::io::ErrorKind::ConnectionAborted.into()),
            _ => Ok(()),
        }
    }
}

/// Takes connections and gives each to `each` in a thread of its own; more than [`CONNECTIONS_MAX`] are
/// closed at once.
pub fn serve(
    name: &str,
    listener: UnixListener,
    each: impl Fn(UnixStream) + Send + Sync + 'static,
) -> std::io::Result<()> {
    let each = Arc::new(each);
    let open = Arc::new(AtomicUsize::new(0));
    let thread_name = name.to_string();
    thread::Builder::new().name(name.to_string()).spawn(move || {
        for connection in listener.incoming() {
            let Ok(connection) = connection else {
                // Out of descriptors or memory: it passes, and must not become a busy loop.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let waiting = Arc::new(Mutex::new(Some(connection)));
            let spawn = || {
                let (each, counter, waiting) = (each.clone(), open.clone(), waiting.clone());
                thread::Builder::new().name(thread_name.clone()).spawn(move || {
                    let connection = waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
                    connection.into_iter().for_each(|connection| each(connection));
                    counter.fetch_sub(1, Ordering::Relaxed);
                })
            };
            // What the host has not got for a thread just now it may have in a moment.
            let mut tries = (0..SPAWN_TRIES).map(|number| {
                thread::sleep(SPAWN_AGAIN * u32::from(number > 0));
                spawn()
            });
            if !tries.any(|spawned| spawned.is_ok()) {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(())
}

/// Answers the requests of one connection to the control socket. Who follows the VM is told what `other_than` gives: how it is, as soon as
/// that is worth telling to one who knows this, or nothing within a time. All else is answered by `reply`.
pub fn answer(
    connection: UnixStream,
    other_than: impl Fn(Option<&Status>, Duration) -> Option<Status>,
    mut reply: impl FnMut(Ask, Vec<OwnedFd>, &Asker) -> Reply,
) {
    let asker = Asker::of(&connection);
    answer_lines(connection, LINE_MAX, |asked, files| match asked {
        Ok(Ask::Follow) => {
            if let Some(follower) = &asker.0 {
                follow(follower, &other_than);
            }
            // Nobody is there any more who would read it.
            reply(Ask::Status, files, &asker)
        }
        Ok(ask) => reply(ask, files, &asker),
        // Files that came with what is not understood are closed here.
        Err(error) => Reply::Refused(Fault::new(
            Kind::Usage,
            format!("a request to the VM's process was not understood: {error}"),
            "use the command of the same version as the VM's process, or start the VM anew",
        )),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_asker_is_there_until_it_goes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let asker = Asker::of(&ours);
        assert!(asker.is_there().is_ok());
        std::io::Write::write_all(&mut &theirs, b"more").unwrap();
        assert!(asker.is_there().is_ok(), "it has something to say");
        drop(theirs);
        assert!(asker.is_there().is_err());
        assert!(Asker::default().is_there().is_ok());
    }
}
