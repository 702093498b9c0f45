//! Those who are told how a VM is whenever that changes.
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;
use viv_api::runner::{Reply, Status};

/// After how long without a change it is looked whether somebody still follows.
const FOLLOWER_LOOK: Duration = Duration::from_secs(15);

/// Says how the VM is whenever that changes, until nobody listens. `other_than` waits for at most that long until there is
/// something else to say than this.
pub fn follow(mut connection: &UnixStream, other_than: impl Fn(Option<&Status>, Duration) -> Option<Status>) {
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
