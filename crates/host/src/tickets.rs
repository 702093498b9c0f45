//! Tickets for WebSockets, which a page opens without a token: each for one caller and one path, once, within half a minute.
use crate::access::By;
use crate::tokens::{secret, sha256};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;
use viv_api::endpoint::Route;
use viv_model::{Fault, Kind};

/// How long one lasts.
pub(crate) const LASTS: Duration = Duration::from_secs(30);
/// How to get one.
pub(crate) const FIX: &str =
    "get a new one for each WebSocket: POST /v1/tickets {\"path\": …}, and use it within 30 seconds";
/// Most that are not used yet, of one caller and of all.
const OF_CALLER_MAX: usize = 64;
const ALL_MAX: usize = 4096;
/// What one begins with, so that it is known where it was left lying.
const PREFIX: &str = "viv_ticket_";

/// One that is not used yet.
struct Kept {
    sha256: String,
    by: By,
    route: Route,
    arguments: Vec<String>,
    until: Instant,
}

/// All that are not used yet. They are nowhere but here, and end with the service.
#[derive(Default)]
pub(crate) struct Tickets(Mutex<Vec<Kept>>);

impl Tickets {
    /// A new one, which opens this route of these things.
    pub(crate) fn give(
        &self,
        by: By,
        route: Route,
        arguments: Vec<String>,
        now: Instant,
    ) -> Result<String, Fault> {
        let ticket = secret(PREFIX)?;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|ticket| now < ticket.until);
        let his = kept.iter().filter(|ticket| ticket.by == by).count();
        if his >= OF_CALLER_MAX || kept.len() >= ALL_MAX {
            let (whose, most) = match his >= OF_CALLER_MAX {
                true => ("you have", OF_CALLER_MAX),
                false => ("there are", ALL_MAX),
            };
            let text = format!("{whose} {most} tickets that are not used yet, which is the most");
            return Err(Fault::new(Kind::NoCapacity, text, "use them, or wait half a minute"));
        }
        kept.push(Kept { sha256: sha256(ticket.as_bytes()), by, route, arguments, until: now + LASTS });
        Ok(ticket)
    }

    /// Uses one, whatever comes of it; whose it is, if it is for this. Takes as long for one that is nearly right as for any other.
    pub(crate) fn take(&self, ticket: &str, route: Route, arguments: &[String], now: Instant) -> Option<By> {
        let hash = sha256(ticket.as_bytes());
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        for (index, known) in kept.iter().enumerate() {
            if bool::from(known.sha256.as_bytes().ct_eq(hash.as_bytes())) {
                found = Some(index);
            }
        }
        let used = kept.swap_remove(found?);
        (now < used.until && used.route == route && used.arguments == arguments).then_some(used.by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use viv_api::access::PassKind;

    const CONSOLE: Route = Route::VmConsoleSocket;

    fn by(name: &str) -> By {
        By::Pass(PassKind::Token, name.to_string())
    }

    fn web() -> Vec<String> {
        vec!["web".to_string()]
    }

    #[test]
    fn a_ticket_opens_one_thing_once_and_not_for_long() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let give = || tickets.give(by("ci"), CONSOLE, web(), now).unwrap();
        let ticket = give();
        assert_eq!(ticket.len(), PREFIX.len() + 64);
        assert_ne!(ticket, give());
        assert_eq!(tickets.take("viv_ticket_0", CONSOLE, &web(), now), None);
        assert_eq!(tickets.take(&ticket, CONSOLE, &web(), now), Some(by("ci")));
        assert_eq!(tickets.take(&ticket, CONSOLE, &web(), now), None, "once");
        let late = give();
        assert_eq!(tickets.take(&late, CONSOLE, &web(), now + LASTS), None);
        let last = give();
        assert_eq!(
            tickets.take(&last, CONSOLE, &web(), now + LASTS - Duration::from_nanos(1)),
            Some(by("ci"))
        );
        // Shown for something else it is used, too.
        for (route, arguments) in [(Route::VmAgentSocket, web()), (CONSOLE, vec!["db".to_string()])] {
            let ticket = give();
            assert_eq!(tickets.take(&ticket, route, &arguments, now), None);
            assert_eq!(tickets.take(&ticket, CONSOLE, &web(), now), None);
        }
        let port = |port: &str| vec!["web".to_string(), port.to_string()];
        let ticket = tickets.give(by("ci"), Route::VmConnectSocket, port("80"), now).unwrap();
        assert_eq!(tickets.take(&ticket, Route::VmConnectSocket, &port("8080"), now), None);
    }

    #[test]
    fn tickets_are_so_many_and_the_old_make_room() {
        let (tickets, now) = (Tickets::default(), Instant::now());
        let give = |name: &str, at| tickets.give(by(name), CONSOLE, web(), at);
        for _ in 0..OF_CALLER_MAX {
            give("greedy", now).unwrap();
        }
        let fault = give("greedy", now).unwrap_err();
        assert_eq!(fault.kind, Kind::NoCapacity);
        assert!(fault.message.contains("you have 64"), "{fault}");
        for other in 0..ALL_MAX / OF_CALLER_MAX - 1 {
            for _ in 0..OF_CALLER_MAX {
                give(&other.to_string(), now).unwrap();
            }
        }
        assert!(give("late", now).unwrap_err().message.contains("there are 4096"));
        give("greedy", now + LASTS).unwrap();
        assert_eq!(tickets.0.lock().unwrap().len(), 1, "those that are over are gone");
    }
}
