//! Tells a guest that goes on from a snapshot what has changed without it: the time, and who it is.
use crate::command::connect;
use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use viv_api::agent::{LINE_MAX, NewCard, Reply, Request, to_line};
use viv_model::NicSpec;

/// How long an agent is waited for: a guest without one cannot be told.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long to wait between two attempts to reach it.
const RETRY: Duration = Duration::from_millis(5);
/// How long its answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Bytes of randomness that it gets.
const ENTROPY_LEN: usize = 64;

/// Tells the guest's agent, if there is one, that it is in the VM called `name` now, with these network cards.
pub(crate) fn run(name: &str, nics: &[NicSpec]) {
    let new = nics.iter().filter(|nic| !nic.aliases.is_empty());
    let mut cards = new.map(|nic| NewCard { before: nic.aliases.clone(), mac: nic.mac });
    // One at a time, each with an answer, for getting an address takes a while.
    let mut card = cards.next();
    let begin = Instant::now();
    loop {
        match tell(name, card.clone()) {
            Ok(reply) => {
                if let Some(error) = reply.error {
                    eprintln!("viv runner: {error}");
                }
                card = cards.next();
                if card.is_none() {
                    return;
                }
            }
            Err(_) if begin.elapsed() < PATIENCE => thread::sleep(RETRY),
            Err(error) => return eprintln!("viv runner: no agent to renew the guest: {error}"),
        }
    }
}

fn tell(name: &str, card: Option<NewCard>) -> io::Result<Reply> {
    let mut entropy = vec![0; ENTROPY_LEN];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut entropy)?;
    let mut stream = connect(ANSWER_LIMIT)?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let unix_ns = u64::try_from(since.as_nanos()).unwrap_or(u64::MAX);
    let hostname = name.to_string();
    stream.write_all(&to_line(&Request::Renew { unix_ns, entropy, hostname, card })?)?;
    let mut answer = Vec::new();
    stream.take(LINE_MAX as u64).read_to_end(&mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}
