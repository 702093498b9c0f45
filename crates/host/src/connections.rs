//! Connections: so many at a time, and so many of one address. Where all places are taken, whoever has waited longest without having
//! asked for anything gives up its own: somebody who holds many connections open keeps nobody out.
use hyper::http::Extensions;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The places of one door.
pub(crate) struct Connections {
    most: usize,
    /// Of one address.
    most_of_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    places: HashMap<u64, Held>,
    /// Counts whatever happens, to tell what came before what.
    turn: u64,
}

struct Held {
    of: Option<IpAddr>,
    doing: Doing,
    leave: Arc<Notify>,
}

/// What a connection does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Nothing since this turn: a whole request has yet to come.
    Waits(u64),
    /// It is being answered.
    Asked,
    /// It is no connection of requests any more, but carries something both ways.
    Carries,
}

/// A place among the connections.
pub(crate) struct Place {
    all: Arc<Connections>,
    number: u64,
    leave: Arc<Notify>,
}

impl Connections {
    pub(crate) fn new(most: usize, most_of_one: usize) -> Arc<Connections> {
        Arc::new(Connections { most, most_of_one, taken: Mutex::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.taken().places.is_empty()
    }

    /// A place for a connection of an address; none if all are taken by some that have asked for something.
    pub(crate) fn take(self: &Arc<Connections>, of: Option<IpAddr>) -> Option<Arc<Place>> {
        let mut taken = self.taken();
        let same = taken.places.values().filter(|held| held.of == of).count();
        if same >= self.most_of_one {
            taken.give_up(|held| held.of == of)?;
        } else if taken.places.len() >= self.most {
            taken.give_up(|_| true)?;
        }
        let (number, leave) = (taken.next(), Arc::new(Notify::new()));
        taken.places.insert(number, Held { of, doing: Doing::Waits(number), leave: leave.clone() });
        Some(Arc::new(Place { all: self.clone(), number, leave }))
    }
}

impl Taken {
    fn next(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    /// Frees the place of the one that has waited longest, of those that `may` give up theirs.
    fn give_up(&mut self, may: impl Fn(&Held) -> bool) -> Option<()> {
        let waiting = self.places.iter().filter(|(_, held)| may(held)).filter_map(|(number, held)| {
            let Doing::Waits(since) = held.doing else { return None };
            Some((since, *number))
        });
        let (_, longest) = waiting.min()?;
        self.places.remove(&longest)?.leave.notify_one();
        Some(())
    }
}

impl Place {
    /// That of the connection by which a request came.
    pub(crate) fn of(extensions: &Extensions) -> Option<Arc<Place>> {
        extensions.get::<Arc<Place>>().cloned()
    }

    fn does(&self, what: impl FnOnce(Doing, u64) -> Doing) {
        let mut taken = self.all.taken();
        let turn = taken.next();
        if let Some(held) = taken.places.get_mut(&self.number) {
            held.doing = what(held.doing, turn);
        }
    }

    /// A whole request has come.
    pub(crate) fn asked(&self) {
        self.does(|_, _| Doing::Asked);
    }

    /// It has its answer.
    fn answered(&self) {
        self.does(|doing, turn| if doing == Doing::Carries { doing } else { Doing::Waits(turn) });
    }

    /// That of a connection which is about to be none of requests any more: it keeps the place as long as this is there.
    pub(crate) fn carrying(extensions: &Extensions) -> Option<Arc<Place>> {
        let place = Place::of(extensions)?;
        place.does(|_, _| Doing::Carries);
        Some(place)
    }

    /// Returns when the place is somebody else's.
    pub(crate) async fn given_up(&self) {
        self.leave.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.taken().places.remove(&self.number);
    }
}

/// An answer on its way: its connection waits again when that is sent.
pub(crate) struct Answering(Arc<Place>);

impl Answering {
    pub(crate) fn at(place: &Arc<Place>) -> Answering {
        Answering(place.clone())
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.answered();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::{Context, Waker};

    fn is_given_up(place: &Place) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        std::pin::pin!(place.given_up()).poll(&mut context).is_ready()
    }

    #[test]
    fn who_waits_longest_gives_up_its_place() {
        let all = Connections::new(3, 3);
        let [first, second, third] = [(); 3].map(|()| all.take(None).unwrap());
        first.asked();
        first.answered();
        let fourth = all.take(None).unwrap();
        assert!(is_given_up(&second), "the first has asked for something since");
        assert!(!is_given_up(&first) && !is_given_up(&third) && !is_given_up(&fourth));
        drop(second);
        // Who is answered, or carries something, keeps its place.
        third.asked();
        let mut extensions = Extensions::new();
        extensions.insert(first.clone());
        assert!(Place::carrying(&extensions).is_some());
        drop(extensions);
        first.answered();
        fourth.asked();
        assert!(all.take(None).is_none());
        drop(Answering::at(&fourth));
        assert!(all.take(None).is_some() && is_given_up(&fourth));
        drop((first, third, fourth));
        assert!(all.is_empty());
    }

    #[test]
    fn an_address_takes_the_places_of_no_other() {
        let all = Connections::new(100, 10);
        let one: IpAddr = "192.0.2.1".parse().unwrap();
        let other = all.take(Some("192.0.2.2".parse().unwrap())).unwrap();
        let mut places: Vec<_> = (0..10).map(|_| all.take(Some(one)).unwrap()).collect();
        places.push(all.take(Some(one)).unwrap());
        assert!(is_given_up(&places[0]) && !is_given_up(&other));
        places.iter().for_each(|place| place.asked());
        assert!(all.take(Some(one)).is_none());
        assert!(all.take(None).is_some());
    }
}
