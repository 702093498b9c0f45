//! The control socket: JSON lines, an answer for each request, a thread for each connection.
use crate::footprint;
use crate::life::Life;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use viv_api::passed::answer_lines;
use viv_api::runner::{Ask, LINE_MAX, Reply, Status};
use viv_model::{Fault, Kind};

/// Most connections to one socket of a VM at a time.
pub(crate) const CONNECTIONS_MAX: usize = 64;

/// After how long without a change it is looked whether somebody still follows.
const FOLLOWER_LOOK: Duration = Duration::from_secs(15);

/// Takes connections and gives each to `each` in a thread of its own; more than [`CONNECTIONS_MAX`] are
/// closed at once.
pub(crate) fn serve(
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
                thread::sleep(std::time::Duration::from_millis(100));
                continue;
            };
            if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (each, counter) = (each.clone(), open.clone());
            let spawned = thread::Builder::new().name(thread_name.clone()).spawn(move || {
                each(connection);
                counter.fetch_sub(1, Ordering::Relaxed);
            });
            if spawned.is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    })?;
    Ok(())
}

/// Says how the VM is whenever that changes, until nobody listens.
fn follow(life: &Life, mut connection: &UnixStream) {
    let mut said: Option<Status> = None;
    loop {
        if let Some(now) = life.other_than(said.as_ref(), FOLLOWER_LOOK) {
            let Ok(mut line) = serde_json::to_vec(&Reply::Ok(now.clone())) else { return };
            line.push(b'\n');
            if connection.write_all(&line).is_err() {
                return;
            }
            said = Some(now);
        }
        let mut gone = [PollFd::new(connection, PollFlags::empty())];
        // A hang-up is told without being asked for (poll(2)).
        if !matches!(poll(&mut gone, Some(&Timespec::default())), Ok(0)) {
            return;
        }
    }
}

/// Answers the requests of one connection.
pub(crate) fn answer(life: &Life, connection: UnixStream) {
    let mut changed = false;
    let follower = connection.try_clone();
    answer_lines(connection, LINE_MAX, |asked, files| match asked {
        Ok(Ask::Follow) => {
            if let Ok(follower) = &follower {
                follow(life, follower);
            }
            // Nobody is there any more who would read it.
            Reply::Ok(life.status())
        }
        Ok(ask) => {
            changed |= !matches!(ask, Ask::Status | Ask::Stats | Ask::Follow);
            life.ask(ask, files)
        }
        // Files that came with what is not understood are closed here.
        Err(error) => Reply::Refused(Fault::new(
            Kind::Usage,
            format!("a request to the VM's process was not understood: {error}"),
            "use the command of the same version as the VM's process, or start the VM anew",
        )),
    });
    if changed {
        footprint::give_back();
    }
}
