//! Has the guest's agent look whether the guest is well, and keeps what it tells.
use crate::command::connect;
use crate::life::Life;
use std::io::{self, Write};
use std::thread;
use std::time::{Duration, Instant};
use viv_api::agent::{self, HealthWatch, Request};
use viv_model::HealthLook;

/// How long to wait between two attempts to reach the agent.
const RETRY: Duration = Duration::from_millis(500);
/// How long one attempt may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Least time between two looks that are taken: an agent may say anything.
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// Keeps the guest's health up to date, over its reboots.
pub(crate) fn run(life: &Life, watch: &HealthWatch) {
    life.settled();
    loop {
        drop(follow(life, watch));
        // What an agent has said that is gone says nothing of its successor.
        life.begin_health();
        thread::sleep(RETRY);
    }
}

fn follow(life: &Life, watch: &HealthWatch) -> io::Result<()> {
    let mut stream = connect(ANSWER_LIMIT)?;
    stream.write_all(&agent::to_line(&Request::Health(watch.clone()))?)?;
    let begin = Instant::now();
    loop {
        let look: HealthLook = agent::read_line(&mut stream)?;
        let since = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX);
        life.take_health(look.bounded(), &watch.check, since);
        thread::sleep(PAUSE_MIN);
    }
}
