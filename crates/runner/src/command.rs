//! The command for which a detached VM exists: waits for the agent, runs it, ends the VM with its status.
use crate::life::Life;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;
use viv_api::agent::{self, Decoder, Exec, Input, Message, Output, Request};
use viv_api::runner::VSOCK;
use viv_model::End;

/// How long to wait between two attempts to reach the agent.
const RETRY: Duration = Duration::from_millis(100);
/// How long a guest may take to switch itself off after its command.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(30);
/// How long one attempt may take: an agent that is there answers at once, even on the software CPU.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Runs `exec` in the guest; its output joins the console's, and its end is the VM's. With `is_main` it goes on in whatever goes on
/// from a snapshot of the VM.
pub(crate) fn run(life: &Life, exec: Exec, is_main: bool) {
    let mut request = if is_main { Request::Main { exec: Some(exec) } } else { Request::Exec(exec) };
    let end = loop {
        match converse(life, &request) {
            Ok(Some(status)) => break End::Command { status },
            // The guest has gone down, or is about to: its own end is the better story.
            Ok(None) => return,
            // What an agent of an earlier release answers.
            Err(error) if error.kind() == io::ErrorKind::InvalidData && is_main => match request {
                Request::Main { exec: Some(exec) } => request = Request::Exec(exec),
                _ => break broken(&error),
            },
            Err(error) => break broken(&error),
        }
    };
    finish(life, end);
}

/// Attends to the command that runs already in a guest that goes on, if there is one: its output joins the console's. Its end is the
/// VM's if it `ends` that.
pub(crate) fn attend(life: &Life, ends: bool) {
    if let Ok(Some(status)) = converse(life, &Request::Main { exec: None })
        && ends
    {
        finish(life, End::Command { status });
    }
}

fn broken(error: &io::Error) -> End {
    End::Failed { message: format!("the guest agent broke off: {error}") }
}

fn finish(life: &Life, end: End) {
    // What the command wrote is to be on its disks: a guest that has some switches itself off. Its end ends this process.
    if matches!(end, End::Command { .. }) && life.has_own_disk() {
        life.press(Some(end.clone()));
        thread::sleep(POWER_OFF_LIMIT);
    }
    life.kill(Some(end));
}

/// A connection to the agent, which may take so long to answer.
pub(crate) fn connect(limit: Duration) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(VSOCK)?;
    stream.set_read_timeout(Some(limit))?;
    writeln!(stream, "CONNECT {}", agent::PORT)?;
    let mut answer = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" && answer.len() < 64 {
        if stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        answer.push(byte[0]);
    }
    if !answer.starts_with(b"OK ") {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// Has the guest's agent do this, and gives the status of the command.
fn converse(life: &Life, request: &Request) -> io::Result<Option<u8>> {
    life.settled();
    let mut stream = loop {
        match connect(ANSWER_LIMIT) {
            Ok(stream) => break stream,
            Err(_) => thread::sleep(RETRY),
        }
    };
    stream.write_all(&agent::to_line(request)?)?;
    stream.write_all(&Input::Stdin(Vec::new()).to_bytes())?;
    let mut decoder = Decoder::new();
    while let Some(output) = decoder.read::<Output>(&mut stream)? {
        match output {
            Output::Stdout(bytes) | Output::Stderr(bytes) => life.console.write(&bytes),
            Output::Error(text) => life.console.write(format!("viv: {text}\n").as_bytes()),
            Output::Exit(status) => return Ok(Some(status)),
        }
    }
    Ok(None)
}
