//! Clients whose requests are refused again and again are served at leisure, so that others need not wait for them.
//!
//! A client is a process of this host, or an address of the network. Each refusal costs it something, more for a large request;
//! what it may cost comes back with time. Whoever has used it up waits: before a new connection is read, and before the next
//! refusal. Requests that are good, on a connection that is there, never wait.
use crate::network_door::network_of;
use hyper::StatusCode;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Refusals of small requests that a client may have at once, and in a second.
const BURST: f64 = 400.0;
const A_SECOND: f64 = 200.0;
/// So many bytes of a refused request count as one more.
const BYTES: u64 = 64 << 10;
/// Nobody waits longer: what was sent is then looked at, and costs again.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Clients that are remembered, at most.
const CLIENTS_MAX: usize = 4096;

/// Who is on the other end, as far as its manners are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Client {
    /// A process of this host.
    Process(i32),
    /// An address, or a network of 64 bits with IPv6.
    Address(IpAddr),
}

impl Client {
    /// Whoever comes from there.
    pub(crate) fn at(address: IpAddr) -> Client {
        Client::Address(network_of(address))
    }
}

/// What a client may still cost.
#[derive(Clone, Copy, Debug)]
struct Credit {
    left: f64,
    at: Instant,
}

impl Credit {
    fn now(self, now: Instant) -> f64 {
        (self.left + now.saturating_duration_since(self.at).as_secs_f64() * A_SECOND).min(BURST)
    }
}

/// The manners of all clients that are not beyond reproach.
#[derive(Default)]
pub(crate) struct Manners(Mutex<HashMap<Client, Credit>>);

impl Manners {
    /// Something of a client was refused, which had so many bytes.
    pub(crate) fn refused(&self, client: Client, bytes: u64) {
        self.pay(client, bytes, Instant::now());
    }

    fn pay(&self, client: Client, bytes: u64, now: Instant) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= CLIENTS_MAX {
            known.retain(|_, credit| credit.now(now) < BURST);
        }
        let left = known.get(&client).map_or(BURST, |credit| credit.now(now));
        if known.len() < CLIENTS_MAX || known.contains_key(&client) {
            let most = -A_SECOND * WAIT_MAX.as_secs_f64();
            let left = (left - 1.0 - bytes as f64 / BYTES as f64).max(most);
            known.insert(client, Credit { left, at: now });
        }
    }

    /// How long a client has to wait.
    fn wait_of(&self, client: Client, now: Instant) -> Duration {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = known.get(&client).map_or(0.0, |credit| -credit.now(now));
        Duration::try_from_secs_f64(owed / A_SECOND).unwrap_or_default().min(WAIT_MAX)
    }

    /// Waits until a client owes nothing.
    pub(crate) async fn wait(&self, client: Client) {
        let wait = self.wait_of(client, Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Whether an answer is one that a client with manners seldom gets: not of what is missing, busy or full.
pub(crate) fn is_refusal(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::BAD_REQUEST
            | StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::MISDIRECTED_REQUEST
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_refused_again_and_again_waits_and_nobody_else() {
        let (manners, now) = (Manners::default(), Instant::now());
        let (one, other) = (Client::Process(1), Client::Process(2));
        for _ in 0..400 {
            assert_eq!(manners.wait_of(one, now), Duration::ZERO);
            manners.pay(one, 0, now);
        }
        manners.pay(one, 0, now);
        assert_eq!(manners.wait_of(one, now), Duration::from_millis(5));
        assert_eq!(manners.wait_of(other, now), Duration::ZERO);
        assert_eq!(manners.wait_of(one, now + Duration::from_millis(5)), Duration::ZERO, "it comes back");
        // A second later a client that stops has what two hundred small refusals cost.
        let later = now + Duration::from_millis(1005);
        for _ in 0..200 {
            assert_eq!(manners.wait_of(one, later), Duration::ZERO);
            manners.pay(one, 0, later);
        }
        manners.pay(one, 0, later);
        assert!(manners.wait_of(one, later) > Duration::ZERO);
    }

    #[test]
    fn what_is_large_costs_more_and_no_wait_is_without_end() {
        let (manners, now) = (Manners::default(), Instant::now());
        let client = Client::at("2001:db8::1".parse().unwrap());
        (0..24).for_each(|_| manners.pay(client, 1 << 20, now));
        assert!(
            manners.wait_of(Client::at("2001:db8::2".parse().unwrap()), now) > Duration::ZERO,
            "its neighbour is it"
        );
        (0..100).for_each(|_| manners.pay(client, u64::MAX, now));
        assert_eq!(manners.wait_of(client, now), WAIT_MAX);
        for number in 0..10_000 {
            manners.pay(Client::Process(number), 0, now);
        }
        assert_eq!(manners.0.lock().unwrap().len(), CLIENTS_MAX);
        manners.pay(Client::Process(20_000), 0, now + Duration::from_secs(10));
        assert_eq!(manners.0.lock().unwrap().len(), 1, "who has behaved since is forgotten");
    }
}
