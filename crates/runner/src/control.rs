//! The control socket: JSON lines, an answer for each request, a thread for each connection.
use crate::life::Life;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use viv_api::passed::WithFiles;
use viv_api::runner::{Ask, LINE_MAX, Reply};
use viv_model::{Fault, Kind};

/// Most connections to one socket of a VM at a time.
pub(crate) const CONNECTIONS_MAX: usize = 64;

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

/// Answers the requests of one connection.
pub(crate) fn answer(life: &Life, connection: UnixStream) {
    let Ok(mut writer) = connection.try_clone() else { return };
    let mut reader = BufReader::new(WithFiles::new(connection));
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let reply = match serde_json::from_slice::<Ask>(&line) {
            Ok(ask) => life.ask(ask, reader.get_mut().take_files()),
            Err(error) => Reply::Refused(Fault::new(
                Kind::Usage,
                format!("a request to the VM's process was not understood: {error}"),
                "use the command of the same version as the VM's process, or start the VM anew",
            )),
        };
        let Ok(mut bytes) = serde_json::to_vec(&reply) else { return };
        bytes.push(b'\n');
        if writer.write_all(&bytes).is_err() || line.last() != Some(&b'\n') {
            return;
        }
    }
}
