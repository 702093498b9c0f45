//! Those who are told how a VM is whenever that changes.
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::Duration;
use viv_api::runner::{Reply, Status};

/// After how long without a change it is looked whether somebody still follows.
const FOLLOWER_LOOK: Duration = Duration::from_secs(15);

/// Says how the VM is whenever that changes, until nobody listens. `other_than` waits for at most that long until there is
/// something else to say than this.
pub(crate) fn follow(
    mut connection: &UnixStream,
    other_than: impl Fn(Option<&Status>, Duration) -> Option<Status>,
) {
    let mut said: Option<Status> = None;
    loop {
        if let Some(now) = other_than(said.as_ref(), FOLLOWER_LOOK) {
            let Ok(mut line) = serde_json::to_vec(&Reply::Ok(now.clone())) else { return };
            line.push(b'\n');
            if connection.write_all(&line).is_err() {
                return;
            }
            said = Some(now);
        }
        let mut gone = [PollFd::new(connection, PollFlags::empty())];
        // A hang-up is told without being asked for (poll(2)).
        if !matches!(poll(&mut gone, Some(&Timespec::default())), Ok(0)) {
            return;
        }
    }
}

/// How the VM is, as soon as that is worth telling to one who knows this; nothing if it is not within `limit`. `changed` is notified
/// when `state`, of which `status` is made, is another one.
pub fn wait_for_news<T>(
    changed: &Condvar,
    state: MutexGuard<'_, T>,
    status: impl Fn(&T) -> Status,
    known: Option<&Status>,
    limit: Duration,
) -> Option<Status> {
    let news = |state: &T| Some(status(state)).filter(|now| known.is_none_or(|known| now.is_news_to(known)));
    let waited = changed.wait_timeout_while(state, limit, |state| news(state).is_none());
    let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
    news(&state)
}
