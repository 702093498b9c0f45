//! The serial console, with our standard input and output.
use crate::terminal::{self, Escape, Keys, Raw};
use signal_hook::consts::SIGWINCH;
use signal_hook::iterator::Signals;
use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use viv_api::client::{Client, Request};
use viv_api::endpoint::Route;
use viv_api::vm::ConsoleSize;

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The guest's line is closed.
    Closed,
    /// The user left by the escape sequence.
    Left,
    /// Nobody reads our standard output any more.
    ReaderGone,
}

/// Has the guest told how large our terminal is, now and whenever it changes.
pub(crate) fn follow_size(client: &Arc<Client>, id: &str) {
    if !io::stdin().is_terminal() {
        return;
    }
    let (client, id) = (client.clone(), id.to_string());
    thread::spawn(move || {
        // Before the first look: no change is missed.
        let signals = Signals::new([SIGWINCH]);
        let tell = || {
            let Some((rows, cols)) = terminal::size() else { return };
            let path = [id.as_str()];
            let request = Request::new(Route::VmConsoleSize, &path).body(&ConsoleSize { rows, cols });
            // A guest that is just booting anew is told by its process.
            let _ = client.json::<()>(request);
        };
        tell();
        if let Ok(mut signals) = signals {
            signals.forever().for_each(|_| tell());
        }
    });
}

/// Carries bytes until the console ends or the user leaves. A terminal is raw meanwhile.
pub(crate) fn run(mut stream: UnixStream) -> Outcome {
    let on_terminal = io::stdin().is_terminal();
    let raw = on_terminal.then(Raw::enter);
    let left = Arc::new(AtomicBool::new(false));
    if let Ok(input) = stream.try_clone() {
        let left = left.clone();
        thread::spawn(move || send_input(input, on_terminal, &left));
    }
    let mut out = io::stdout();
    let mut piece = vec![0; 16 * 1024];
    let mut outcome = Outcome::Closed;
    loop {
        let length = match stream.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let written = out.write_all(piece.get(..length).unwrap_or_default()).and_then(|()| out.flush());
        if written.is_err() {
            outcome = Outcome::ReaderGone;
            break;
        }
    }
    drop(raw);
    if left.load(Ordering::Relaxed) {
        eprintln!(); // the guest's prompt stands on this line
    }
    if left.load(Ordering::Relaxed) { Outcome::Left } else { outcome }
}

/// Sends our standard input. Its end is not the console's: a guest goes on without a keyboard.
fn send_input(mut stream: UnixStream, on_terminal: bool, left: &AtomicBool) {
    let mut escape = Escape::default();
    let mut piece = vec![0; 4096];
    loop {
        let length = match io::stdin().lock().read(&mut piece) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let bytes = piece.get(..length).unwrap_or_default();
        let sent = match if on_terminal { escape.scan(bytes) } else { Keys::Pass(bytes.to_vec()) } {
            Keys::Pass(pass) => stream.write_all(&pass),
            Keys::Leave(_) => {
                left.store(true, Ordering::Relaxed);
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}
