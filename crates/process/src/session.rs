//! Conversations with commands: this process is its program's agent ([`viv_api::agent`]).
use crate::life::Life;
use crate::streams::Streams;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use viv_api::agent::{self, Decoder, Exec, Input, Message, Output, Reply, Request, STATUS_NOT_EXECUTABLE};
use viv_model::End;

/// Most bytes of the line by which a connection names its port.
const CONNECT_MAX: u64 = 64;

/// Answers one connection: `CONNECT <port>`, then what the agent's protocol has.
pub(crate) fn answer(life: &Arc<Life>, stream: UnixStream) {
    drop(converse(life, stream)); // whoever it was has gone
}

fn converse(life: &Arc<Life>, mut stream: UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.by_ref().take(CONNECT_MAX).read_line(&mut line)?;
    if line.trim_end() != format!("CONNECT {}", agent::PORT) {
        return Ok(());
    }
    stream.write_all(b"OK 1\n")?;
    let mut line = Vec::new();
    reader.by_ref().take(agent::LINE_MAX as u64).read_until(b'\n', &mut line)?;
    let Ok(request) = serde_json::from_slice::<Request>(&line) else { return Ok(()) };
    let reply = |error: Option<&str>| Reply {
        agent: env!("CARGO_PKG_VERSION").to_string(),
        error: error.map(str::to_string),
        in_use: None,
        frozen: 0,
    };
    let reply = match request {
        // As a guest's agent would: with no words, what the VM is there for.
        Request::Exec(exec) if exec.argv.is_empty() => return attend(life, stream, reader),
        Request::Exec(exec) => return command(life, stream, &exec),
        Request::Ping {} => reply(None),
        Request::Poweroff {} => {
            life.stop(None);
            reply(None)
        }
        _ => reply(Some("this is a program, and no whole computer")),
    };
    stream.write_all(&agent::to_line(&reply)?)
}

/// Connects somebody with the program's standard streams.
fn attend(life: &Arc<Life>, stream: UnixStream, mut reader: BufReader<UnixStream>) -> io::Result<()> {
    let streams: &Streams = &life.streams;
    if let Err(mut stream) = streams.begin_session(stream) {
        let text = "somebody else has the program's standard streams; see its output with: viv logs -f";
        stream.write_all(&Output::Error(text.into()).to_bytes())?;
        return stream.write_all(&Output::Exit(STATUS_NOT_EXECUTABLE).to_bytes());
    }
    let mut decoder = Decoder::new();
    while let Some(input) = decoder.read::<Input>(&mut reader)? {
        match input {
            Input::Stdin(bytes) if streams.feed(&bytes).is_err() => return Ok(()),
            Input::Stdin(_) | Input::Resize { .. } => {}
            // It has no signals; those that ask for an end have their way.
            Input::Signal(number) => life.kill(Some(End::Command { status: number.saturating_add(128) })),
        }
    }
    Ok(())
}

/// Runs a command in the program.
fn command(life: &Life, mut stream: UnixStream, exec: &Exec) -> io::Result<()> {
    let mut broken = Ok(());
    let mut output = |output: Output| {
        if broken.is_ok() {
            broken = stream.write_all(&output.to_bytes());
        }
    };
    let status = life.instance().and_then(|instance| instance.exec(&exec.argv, &mut output));
    let status = status.unwrap_or_else(|fault| {
        output(Output::Error(fault.to_string()));
        STATUS_NOT_EXECUTABLE
    });
    output(Output::Exit(status));
    broken
}
