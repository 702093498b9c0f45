//! A command in the guest, with our standard input, output and error.
use crate::interrupt::Interrupt;
use crate::terminal::{Escape, Keys, Raw};
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use viv_api::agent::{self, Decoder, Exec, Input, Message, Output, Request};
use viv_model::{Fault, Kind};

/// 128 + SIGPIPE: what a shell shows for a program whose reader went away.
const READER_GONE: u8 = 141;

/// How it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The command has ended with this status.
    Exited(u8),
    /// The connection has ended before the command: the guest went down, or the agent.
    Gone,
    /// The user left by the escape sequence.
    Left,
}

/// Runs `exec` over a fresh connection to the agent.
pub(crate) fn run(stream: UnixStream, exec: &Exec, interrupt: &Interrupt) -> Result<Outcome, Fault> {
    let left = Arc::new(AtomicBool::new(false));
    let raw = exec.tty.then(Raw::enter);
    let outcome = converse(stream, exec, interrupt, &left);
    interrupt.set_session(None, false);
    drop(raw);
    if left.load(Ordering::Relaxed) {
        eprintln!(); // the guest's prompt stands on this line
    }
    match outcome {
        _ if left.load(Ordering::Relaxed) => Ok(Outcome::Left),
        Ok(outcome) => Ok(outcome),
        Err(error) if is_lost(&error) => Ok(Outcome::Gone),
        Err(error) => Err(Fault::new(
            Kind::Error,
            format!("the conversation with the guest's agent broke off: {error}"),
            "run the command again; if that does not help, build the image anew: viv build",
        )),
    }
}

fn is_lost(error: &io::Error) -> bool {
    use ErrorKind::*;
    matches!(error.kind(), UnexpectedEof | ConnectionReset | BrokenPipe | NotConnected)
}

fn converse(
    mut stream: UnixStream,
    exec: &Exec,
    interrupt: &Interrupt,
    left: &Arc<AtomicBool>,
) -> io::Result<Outcome> {
    stream.write_all(&agent::to_line(&Request::Exec(exec.clone()))?)?;
    interrupt.set_session(Some(&stream), exec.tty);
    let input = stream.try_clone()?;
    let (tty, left) = (exec.tty, left.clone());
    thread::spawn(move || send_input(input, tty, &left));
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let mut decoder = Decoder::new();
    while let Some(message) = decoder.read::<Output>(&mut stream)? {
        let written = match message {
            Output::Stdout(bytes) => out.write_all(&bytes).and_then(|()| out.flush()),
            Output::Stderr(bytes) => err.write_all(&bytes),
            Output::Error(text) => {
                let end = if tty { "\r\n" } else { "\n" };
                write!(err, "viv: {text}{end}")
            }
            Output::Exit(status) => return Ok(Outcome::Exited(status)),
        };
        if written.is_err_and(|error| error.kind() == ErrorKind::BrokenPipe) {
            return Ok(Outcome::Exited(READER_GONE));
        }
    }
    Ok(Outcome::Gone)
}

/// Sends our standard input until it ends, the connection does, or the user leaves.
fn send_input(mut stream: UnixStream, tty: bool, left: &AtomicBool) {
    let mut escape = Escape::default();
    let mut piece = vec![0; 16 * 1024];
    loop {
        let length = match io::stdin().lock().read(&mut piece) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let bytes = piece.get(..length).unwrap_or_default();
        let sent = match if tty { escape.scan(bytes) } else { Keys::Pass(bytes.to_vec()) } {
            // Nothing is the end of the input, or half of the escape sequence.
            Keys::Pass(pass) if pass.is_empty() && length > 0 => Ok(()),
            Keys::Pass(pass) => stream.write_all(&Input::Stdin(pass).to_bytes()),
            Keys::Leave(_) => {
                left.store(true, Ordering::Relaxed);
                let _ = stream.shutdown(Shutdown::Both);
                return;
            }
        };
        if sent.is_err() || length == 0 {
            return;
        }
    }
}
