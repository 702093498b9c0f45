//! What a switch watches, and how it is called.

use super::address::Flow;
use super::datagram::EchoFlow;
use rustix::event::{Timespec, epoll};
use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// Events that are taken at once.
const EVENTS: usize = 64;

/// What is watched, and what has a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Commands,
    Port(Ipv4Addr),
    Listener(Ipv4Addr, usize),
    Tcp(Flow),
    Udp(Flow),
    Echo(EchoFlow),
}

/// Something happened.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event {
    pub(super) who: Who,
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// Watches descriptors, edge-triggered. No token is ever used again, so that a late event of one that is gone means
/// nobody.
pub(super) struct Poll {
    epoll: OwnedFd,
    who: HashMap<u64, Who>,
    next_token: u64,
}

impl Poll {
    pub(super) fn new() -> io::Result<Poll> {
        Ok(Poll { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?, who: HashMap::new(), next_token: 0 })
    }

    /// A token for something that has no descriptor of its own.
    pub(super) fn token(&mut self, who: Who) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        self.who.insert(token, who);
        token
    }

    /// Watches a descriptor until it is closed; none if the host refuses.
    pub(super) fn watch(&mut self, descriptor: impl AsFd, who: Who) -> Option<u64> {
        let flags =
            epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let token = self.token(who);
        match epoll::add(&self.epoll, descriptor, epoll::EventData::new_u64(token), flags) {
            Ok(()) => Some(token),
            Err(_) => {
                self.who.remove(&token);
                None
            }
        }
    }

    /// Watches a descriptor no more that will be watched for somebody else.
    pub(super) fn release(&self, descriptor: impl AsFd) {
        // It may never have been watched.
        let _ = epoll::delete(&self.epoll, descriptor);
    }

    pub(super) fn forget(&mut self, token: u64) {
        self.who.remove(&token);
    }

    /// Waits for events, without `limit` for ever.
    pub(super) fn wait(&mut self, limit: Option<Duration>) -> io::Result<Vec<Event>> {
        let limit = limit.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut room = [MaybeUninit::uninit(); EVENTS];
        let events = match epoll::wait(&self.epoll, &mut room, limit.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let ended = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
        let readable = ended | epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        let writable = ended | epoll::EventFlags::OUT;
        let known = events.iter().filter_map(|event| {
            let who = *self.who.get(&event.data.u64())?;
            let flags = event.flags;
            Some(Event { who, readable: flags.intersects(readable), writable: flags.intersects(writable) })
        });
        Ok(known.collect())
    }
}
