//! Byte streams between a command and a VM's process.
use crate::connections::Place;
use crate::http::{self, Body};
use crate::runners::Runner;
use crate::service::{Busy, Service};
use crate::signs::Signs;
use hyper::body::Bytes;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use viv_api::agent::{self, Request as AgentRequest};
use viv_api::runner::{Ask, CONSOLE, CONSOLE_LOG, CONSOLE_LOG_OLD, VSOCK};
use viv_api::socket;
use viv_api::vm::ConsoleSize;
use viv_model::{Fault, Kind, State};

/// How long to wait between two attempts to reach an agent.
const RETRY: Duration = Duration::from_millis(10);
/// How long one attempt may take.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(5);
/// How long an agent may take to answer: a mount waits for its device.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long a guest may be silent that boots, and how long it may boot.
const QUIET_LIMIT: Duration = Duration::from_secs(10);
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// How often a followed log is looked at.
const FOLLOW: Duration = Duration::from_millis(100);
/// Bytes of a log that are sent at once.
const PIECE: usize = 64 << 10;

/// Answers with a switch of protocols, and then carries bytes between the command and `there`.
pub(crate) fn switch(
    service: &Arc<Service>,
    mut request: Request<Bytes>,
    mut there: UnixStream,
) -> Response<Body> {
    let upgrade = hyper::upgrade::on(&mut request);
    let (busy, place) = (Busy::new(&service.work), Place::carrying(request.extensions()));
    tokio::spawn(async move {
        if let Ok(here) = upgrade.await {
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(here), &mut there).await;
        }
        drop((busy, place));
    });
    http::switching()
}

fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = socket::connect(path)?;
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// The serial console of a VM that runs.
pub(crate) async fn console(name: &str, runner: &Runner) -> Result<UnixStream, Fault> {
    if let Ok(stream) = connect(&runner.dir().join(CONSOLE)) {
        return Ok(stream);
    }
    Err(match runner.beside(Runner::process).await {
        None => not_running(name, "has no console"),
        Some(_) => Fault::new(
            Kind::Conflict,
            format!("the console of VM {name:?} does not answer"),
            "it is just starting or ending: try again in a moment",
        ),
    })
}

fn not_running(name: &str, what: &str) -> Fault {
    Fault::new(
        Kind::Conflict,
        format!("VM {name:?} {what}: it does not run"),
        format!("start it first: viv start {name}, or read what it said: viv logs {name}"),
    )
}

/// A connection to the guest's agent. Waits up to `limit` for the agent to come up, and on, up to `boot`, as long as the
/// last sign that the guest boots is not older than `limit`; but not for a guest that has ended.
pub(crate) async fn agent(
    name: &str,
    runner: &Runner,
    limit: Duration,
    boot: Duration,
) -> Result<UnixStream, Fault> {
    let begin = Instant::now();
    let last = begin + limit.max(boot);
    let mut deadline = begin + limit;
    let mut signs = Signs::default();
    if runner.beside(Runner::process).await.is_none() {
        return Err(not_running(name, "has no agent"));
    }
    let asked = runner.clone();
    if let Ok(Ok(status)) = tokio::task::spawn_blocking(move || asked.settled()).await
        && status.state == State::Paused
    {
        let fix = format!("let it go on: viv resume {name}");
        return Err(Fault::new(
            Kind::Conflict,
            format!("the agent of VM {name:?} cannot answer: it is paused"),
            fix,
        ));
    }
    loop {
        if let Ok(Ok(stream)) = tokio::time::timeout(ATTEMPT_LIMIT, attempt(runner)).await {
            return Ok(stream);
        }
        let asked = runner.clone();
        let status = tokio::task::spawn_blocking(move || asked.ask(&Ask::Status)).await;
        let panicked = matches!(&status, Ok(Ok(status)) if status.panicked);
        if runner.beside(Runner::process).await.is_none() || panicked {
            if panicked {
                tokio::time::sleep(FOLLOW).await; // for the rest of its last words
            }
            let how = match (panicked, runner.beside(Runner::end).await) {
                (true, _) => "its kernel panicked".to_string(),
                (false, Some((end, _))) => format!("it ended: {}", told(&end)),
                (false, None) => "its process ended".to_string(),
            };
            return Err(Fault::new(
                Kind::Error,
                format!("the agent of VM {name:?} did not come up: {how}{}", runner.last_words()),
                "see what its kernel needs: more --memory, another --append or --kernel",
            ));
        }
        let now = Instant::now();
        if !limit.is_zero() && signs.look(runner) {
            deadline = last.min(deadline.max(now + limit));
        }
        if now >= deadline {
            let fix = match limit.is_zero() {
                true => format!("wait until it has booted, or use its console: viv console {name}"),
                false => format!("see what it does on its console: viv console {name}"),
            };
            let waited = now.duration_since(begin).as_secs();
            let why = match deadline == last && limit < boot {
                _ if limit.is_zero() => String::new(),
                true => format!(" after {waited} s, though it is busy"),
                false => format!(" after {waited} s, and it does not look as if it were booting"),
            };
            let message = format!("the agent of VM {name:?} does not answer{why}");
            return Err(Fault::new(Kind::Error, message, fix));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Connects to the agent's port: `CONNECT <port>`, `OK <n>`.
async fn attempt(runner: &Runner) -> io::Result<UnixStream> {
    let mut stream = connect(&runner.dir().join(VSOCK))?;
    stream.write_all(format!("CONNECT {}\n", agent::PORT).as_bytes()).await?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') && answer.len() < 64 {
        answer.push(stream.read_u8().await?);
    }
    match answer.starts_with(b"OK ") {
        true => Ok(stream),
        false => Err(io::ErrorKind::ConnectionRefused.into()),
    }
}

/// Asks an agent, if there is one, to switch its guest off: not every guest listens to its power button.
pub(crate) fn ask_agent_to_power_off(runner: Runner) {
    tokio::spawn(async move {
        let asked = async {
            let mut stream = attempt(&runner).await?;
            stream.write_all(&agent::to_line(&AgentRequest::Poweroff {})?).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await
        };
        let _ = tokio::time::timeout(ATTEMPT_LIMIT, asked).await;
    });
}

/// Who in the guest uses the disk with this serial number, as far as an agent is there to say.
pub(crate) async fn disk_use(runner: &Runner, serial: String) -> Option<String> {
    ask_agent(runner, &AgentRequest::Disk { serial }).await.ok()?.in_use
}

/// What an agent that is there answers.
pub(crate) async fn ask_agent(runner: &Runner, request: &AgentRequest) -> io::Result<agent::Reply> {
    let stream = tokio::time::timeout(ATTEMPT_LIMIT, attempt(runner)).await??;
    converse(stream, request).await
}

/// The serial port knows no size: the agent sets its terminal's.
pub(crate) async fn tell_agent_size(runner: Runner, size: ConsoleSize) {
    let request = AgentRequest::ConsoleSize { rows: size.rows, cols: size.cols };
    let _ = ask_agent(&runner, &request).await; // not every guest has one
}

/// What the agent of a guest that may be booting answers.
pub(crate) async fn ask_booting_agent(
    name: &str,
    runner: &Runner,
    request: &AgentRequest,
) -> Result<Option<agent::Reply>, Fault> {
    let stream = agent(name, runner, QUIET_LIMIT, BOOT_LIMIT).await?;
    converse(stream, request).await.map(Some).map_err(|error| {
        let text = format!("the agent of VM {name:?} broke off: {error}");
        Fault::new(Kind::Error, text, format!("see what its guest does: viv console {name}"))
    })
}

async fn converse(mut stream: UnixStream, request: &AgentRequest) -> io::Result<agent::Reply> {
    let asked = async {
        stream.write_all(&agent::to_line(request)?).await?;
        let mut answer = Vec::new();
        stream.take(agent::LINE_MAX as u64).read_to_end(&mut answer).await?;
        Ok::<_, io::Error>(serde_json::from_slice::<agent::Reply>(&answer)?)
    };
    tokio::time::timeout(ANSWER_LIMIT, asked).await?
}

/// What the serial line has said, and, if that is wanted, what it goes on to say.
pub(crate) fn logs(runner: Runner, follow: bool) -> mpsc::Receiver<Bytes> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        let _ = send_logs(&runner, follow, &sender).await;
    });
    receiver
}

async fn send_logs(runner: &Runner, follow: bool, sender: &mpsc::Sender<Bytes>) -> io::Result<()> {
    if let Ok(mut old) = File::open(runner.dir().join(CONSOLE_LOG_OLD)) {
        send_rest(&mut old, sender).await?;
    }
    let path: PathBuf = runner.dir().join(CONSOLE_LOG);
    let mut file = None;
    loop {
        // Looked at before the file, so that the last words are not missed.
        let live = runner.beside(Runner::process).await.is_some();
        if file.is_none() {
            file = File::open(&path).ok();
        }
        if let Some(open) = &mut file {
            send_rest(open, sender).await?;
            // The log may have become the old one, and a new one begun.
            let same = std::fs::metadata(&path).is_ok_and(|data| {
                open.metadata().is_ok_and(|open| (open.dev(), open.ino()) == (data.dev(), data.ino()))
            });
            if !same {
                send_rest(open, sender).await?;
                file = File::open(&path).ok();
                continue;
            }
        }
        if !follow || !live {
            return Ok(());
        }
        if sender.is_closed() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        tokio::time::sleep(FOLLOW).await;
    }
}

async fn send_rest(file: &mut File, sender: &mpsc::Sender<Bytes>) -> io::Result<()> {
    loop {
        let mut piece = vec![0; PIECE];
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        piece.truncate(length);
        sender.send(piece.into()).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    }
}

/// How a VM ended, in words.
pub(crate) fn told(end: &viv_model::End) -> &'static str {
    use viv_model::End::*;
    match end {
        PowerOff => "it switched itself off",
        Reboot => "it asked for a reset",
        Panic => "its kernel panicked",
        TripleFault => "a triple fault",
        Command { .. } => "its command ended",
        Killed => "it was killed",
        Failed { .. } => "its process failed",
        Trap { .. } => "it trapped",
        Limit { .. } => "it came to a limit",
        Timeout { .. } => "it came to the end of its time",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use viv_api::vm::Process;

    #[test]
    fn an_agent_is_waited_for_as_long_as_the_guest_boots() {
        let dir = std::env::temp_dir().join(format!("viv-host-boots-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        // Its process is a sleeping one, so that only the console shows that something goes on.
        let mut process = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let lock = serde_json::to_vec(&Process::of(process.id()).unwrap()).unwrap();
        fs::write(dir.join(viv_api::runner::LOCK), lock).unwrap();
        let console = dir.join(CONSOLE_LOG);
        // It only ever grows, as a console's log does: a moment in which it is empty looks like silence.
        let mut console = fs::File::create(&console).unwrap();
        let talker = std::thread::spawn(move || {
            for _ in 0..15 {
                std::thread::sleep(Duration::from_millis(200));
                console.write_all(b"systemd starts something\n").unwrap();
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let wait = |limit, boot| {
            let (runner, begin) = (Runner::new(&dir), Instant::now());
            let (limit, boot) = (Duration::from_millis(limit), Duration::from_millis(boot));
            let fault = runtime.block_on(agent("web", &runner, limit, boot)).unwrap_err();
            (begin.elapsed(), fault.to_string())
        };
        let (time, why) = wait(1500, 20_000);
        assert!((Duration::from_secs(3)..Duration::from_secs(15)).contains(&time), "{time:?}");
        assert!(why.contains("does not look as if it were booting"), "{why}");
        talker.join().unwrap();
        let (time, why) = wait(0, 0);
        assert!(time < Duration::from_secs(1) && why.contains("does not answer"), "{time:?} {why}");
        let _ = process.kill();
        let _ = process.wait();
        fs::remove_dir_all(dir).unwrap();
    }
}
