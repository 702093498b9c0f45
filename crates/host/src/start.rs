//! How a command reaches the service, which it starts if there is none.
use crate::places::Places;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use viv_api::client::Client;
use viv_api::socket;
use viv_model::{Fault, Kind};

/// How long a service may take to answer the door.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How long to wait between two attempts.
const RETRY: Duration = Duration::from_millis(5);
/// Most bytes of what a service says that cannot run.
const REFUSAL_MAX: u64 = 64 << 10;
/// Bytes after which the service's log begins anew.
const LOG_MAX: u64 = 1 << 20;

/// A client of this user's service.
pub fn client(places: &Places) -> Client {
    let places = places.clone();
    Client::new(Box::new(move || connect_or_start(&places)))
}

/// Connects. Several commands may start a service at once: the lock lets one through, the others end, and
/// whoever started them finds the one.
fn connect_or_start(places: &Places) -> Result<UnixStream, Fault> {
    let deadline = Instant::now() + START_LIMIT;
    let mut child: Option<Child> = None;
    loop {
        let error = match socket::connect(&places.socket()) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        if error.kind() == io::ErrorKind::PermissionDenied {
            return Err(Fault::new(
                Kind::Denied,
                format!("the host service's socket {} is not yours", places.socket().display()),
                "run the command as the user whose service it is, or with a VIV_HOME of your own",
            ));
        }
        let ended = match &mut child {
            Some(child) => match child.try_wait().ok().flatten() {
                Some(_) => match refusal(child) {
                    Some(fault) => return Err(fault),
                    None => true,
                },
                None => false,
            },
            None => true,
        };
        if Instant::now() >= deadline {
            return Err(Fault::new(
                Kind::Error,
                format!("the host service does not start: {error}"),
                format!("see what it says: {}", places.log().display()),
            ));
        }
        if ended {
            if child.is_some() {
                std::thread::sleep(RETRY * 4); // the one before is just going
            }
            child = Some(start(places).map_err(|error| {
                Fault::new(
                    Kind::Error,
                    format!("cannot start the host service: {error}"),
                    "see that the state directory is writable and its disk has space",
                )
            })?);
        }
        std::thread::sleep(RETRY);
    }
}

/// Why a service that has ended could not run; nothing if another one runs, or it was killed.
fn refusal(child: &mut Child) -> Option<Fault> {
    let mut text = Vec::new();
    child.stdout.take()?.take(REFUSAL_MAX).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn start(places: &Places) -> io::Result<Child> {
    let long = std::fs::metadata(places.log()).is_ok_and(|data| data.len() > LOG_MAX);
    let log = OpenOptions::new()
        .create(true)
        .append(!long)
        .write(true)
        .truncate(long)
        .mode(0o600)
        .open(places.log())?;
    Command::new("/proc/self/exe")
        .args(["serve", "--on-demand"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
}
