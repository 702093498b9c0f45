//! A VM's sockets: a thread for each connection, and not more of them than are good.
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Most connections to one socket of a VM at a time.
const CONNECTIONS_MAX: usize = 64;

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
