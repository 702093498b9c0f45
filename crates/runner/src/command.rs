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

/// Runs `exec` in the guest; its output joins the console's.
pub(crate) fn run(life: &Life, exec: &Exec) {
    life.settled();
    let mut stream = loop {
        match connect(ANSWER_LIMIT) {
            Ok(stream) => break stream,
            Err(_) => thread::sleep(RETRY),
        }
    };
    let end = match converse(life, &mut stream, exec) {
        Ok(Some(status)) => End::Command { status },
        // The guest has gone down, or is about to: its own end is the better story.
        Ok(None) => return,
        Err(error) => End::Failed { message: format!("the guest agent broke off: {error}") },
    };
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

fn converse(life: &Life, stream: &mut UnixStream, exec: &Exec) -> io::Result<Option<u8>> {
    stream.write_all(&agent::to_line(&Request::Exec(exec.clone()))?)?;
    stream.write_all(&Input::Stdin(Vec::new()).to_bytes())?;
    let mut decoder = Decoder::new();
    while let Some(output) = decoder.read::<Output>(stream)? {
        match output {
            Output::Stdout(bytes) | Output::Stderr(bytes) => life.console.write(&bytes),
            Output::Error(text) => life.console.write(format!("viv: {text}\n").as_bytes()),
            Output::Exit(status) => return Ok(Some(status)),
        }
    }
    Ok(None)
}
