//! The server of requests over vsock: a thread for each connection.
use crate::power::{self, Last};
use crate::{children, disks, exec, freeze, health, lasting, renew, root, say, setup, shares, sys};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use viv_api::agent::{PORT, Reply, Request, read_line, to_line};
use viv_model::ShareMount;

/// Most connections at the same time.
const CONNECTIONS_MAX: usize = 256;
static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);

/// `viv-agent serve`: the server alone, under somebody else's init.
pub(crate) fn main() -> io::Result<()> {
    let signals = [libc::SIGCHLD, libc::SIGTERM];
    sys::block_signals(&signals);
    sys::ignore(libc::SIGPIPE);
    start()?;
    power::watch_button();
    loop {
        match sys::next_signal(&signals, 1000) {
            Some(libc::SIGTERM) => return Ok(()),
            _ => children::bury(),
        }
    }
}

/// Listens in a thread of its own.
pub(crate) fn start() -> io::Result<()> {
    take_new_memory();
    let listener = sys::listen_vsock(PORT)?;
    std::thread::spawn(move || {
        loop {
            match sys::accept(listener.as_fd()) {
                Ok(connection) => take(connection),
                Err(error) => {
                    say(format_args!("cannot accept a connection: {error}"));
                    std::thread::sleep(std::time::Duration::from_millis(200));
                }
            }
        }
    });
    Ok(())
}

/// Memory that comes later is used at once, and can go again: some kernels leave that to user space.
fn take_new_memory() {
    const POLICY: &str = "/sys/devices/system/memory/auto_online_blocks";
    if std::fs::read_to_string(POLICY).is_ok_and(|policy| policy.trim() == "offline") {
        // A kernel that refuses leaves it to the user, as before.
        let _ = std::fs::write(POLICY, "online_movable");
    }
}

/// Gives a connection its thread, or closes it if there are too many.
fn take(connection: File) {
    if CONNECTIONS.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
        return;
    }
    let started = std::thread::Builder::new().stack_size(256 * 1024).spawn(move || {
        // A connection that breaks is its client's business.
        let _ = handle(connection);
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    });
    if started.is_err() {
        CONNECTIONS.fetch_sub(1, Ordering::Relaxed);
    }
}

fn handle(mut connection: File) -> io::Result<()> {
    let mut reply =
        Reply { agent: env!("CARGO_PKG_VERSION").to_string(), error: None, in_use: None, frozen: 0 };
    let asked = match read_line(&mut connection) {
        Ok(Request::Exec(what)) => {
            root::enter()?;
            return exec::run(connection, &what);
        }
        Ok(Request::Main { exec }) => {
            root::enter()?;
            return lasting::attend(connection, exec.as_ref());
        }
        Ok(Request::Health(what)) => return health::watch(connection, &what),
        Ok(Request::Ping {}) => None,
        Ok(Request::Renew { unix_ns, entropy, hostname, card, identity }) => {
            let renewed = renew::renew(unix_ns, &entropy, &hostname, card.as_ref(), identity.as_ref());
            reply.error = renewed.err().map(|error| format!("cannot renew the guest: {error}"));
            None
        }
        Ok(Request::Disk { serial }) => {
            reply.in_use = disks::in_use(&serial);
            None
        }
        Ok(Request::Mount { tag, target, read_only }) => {
            reply.error = shares::mount_when_there(&ShareMount { tag, target, read_only }).err();
            None
        }
        Ok(Request::Unmount { tag, force }) => {
            match shares::unmount(&tag, force) {
                Ok(in_use) => reply.in_use = in_use,
                Err(error) => reply.error = Some(format!("cannot unmount {tag}: {error}")),
            }
            None
        }
        Ok(Request::ConsoleSize { rows, cols }) => {
            let resized = setup::open_console().and_then(|console| sys::resize(console.as_fd(), rows, cols));
            reply.error = resized.err().map(|error| format!("cannot resize the console: {error}"));
            None
        }
        Ok(Request::Freeze {}) => {
            let frozen = freeze::freeze();
            reply.frozen = frozen.count();
            connection.write_all(&to_line(&reply)?)?;
            return frozen.hold(connection);
        }
        Ok(Request::Poweroff {}) => Some(Last::PowerOff),
        Ok(Request::Reboot {}) => Some(Last::Reboot),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            reply.error = Some(format!("no request of this agent: {error}"));
            None
        }
        Err(error) => return Err(error),
    };
    // First the answer: afterwards there may be nobody to give it.
    connection.write_all(&to_line(&reply)?)?;
    if let Some(last) = asked
        && let Err(error) = power::ask(last)
    {
        say(format_args!("asked to end the guest: {error}"));
    }
    Ok(())
}
