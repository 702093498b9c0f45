//! What lets a program run, stand still and end.
//!
//! A program passes the gate whenever its machine comes by, and waits in it whenever it waits for anything: so a pause or an end
//! finds it wherever it is.
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use viv_model::End;

/// The program is to end: whoever meets this unwinds. [`Gate::end`] says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the program was told to end")
    }
}

impl std::error::Error for Stopped {}

/// What a wait has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited<T> {
    /// What was waited for.
    Ready(T),
    /// The deadline.
    Late,
    /// Somebody wants to save the program where it waits ([`Gate::want`]).
    Wanted,
}

/// The gate of one program.
#[derive(Default)]
pub struct Gate {
    inner: Mutex<Inner>,
    changed: Condvar,
    on_change: OnceLock<Box<dyn Fn() + Send + Sync>>,
    on_news: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Inner {
    closed: bool,
    /// It waits for processor time.
    held: bool,
    /// Somebody wants to save it.
    wanted: bool,
    end: Option<End>,
    /// It was not only asked to end.
    now: bool,
    /// How long it has been open before it was last opened.
    ran: Duration,
    /// Since when it is open.
    since: Option<Instant>,
}

impl Inner {
    fn is_shut(&self) -> bool {
        self.closed || self.held
    }

    fn ran(&self) -> Duration {
        self.ran + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `poke` called when the gate changes: a machine that computes comes by then.
    pub fn on_change(&self, poke: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_change.set(Box::new(poke));
    }

    /// Has `poke` called when the gate changes, and when whoever waits in it is to look again: a machine may have waits of its own.
    pub fn on_news(&self, poke: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_news.set(Box::new(poke));
    }

    fn wake(&self) {
        self.changed.notify_all();
        if let Some(poke) = self.on_news.get() {
            poke();
        }
    }

    fn tell(&self) {
        self.wake();
        if let Some(poke) = self.on_change.get() {
            poke();
        }
    }

    /// Somebody wants to save the program, or does not any more: it comes by, also if the gate is closed.
    pub fn want(&self, wanted: bool) {
        self.lock().wanted = wanted;
        if wanted {
            self.tell();
        }
    }

    /// The program has run for so long before it began here.
    pub fn has_run(&self, time: Duration) {
        self.lock().ran = time;
    }

    /// The program begins: its time counts from now.
    pub fn begin(&self) {
        self.lock().since = Some(Instant::now());
        self.changed.notify_all();
    }

    /// Lets it stand still.
    pub fn pause(&self) {
        let mut inner = self.lock();
        inner.ran = inner.ran();
        (inner.closed, inner.since) = (true, None);
        drop(inner);
        self.tell();
    }

    /// Lets it go on.
    pub fn resume(&self) {
        let mut inner = self.lock();
        (inner.closed, inner.since) = (false, Some(Instant::now()));
        drop(inner);
        self.tell();
    }

    /// Holds it for a moment, in which its time goes on, or lets it go: it has used more processor time than it may.
    pub fn hold(&self, hold: bool) {
        self.lock().held = hold;
        self.tell();
    }

    /// Has it end like this; the first wish counts.
    pub fn stop(&self, end: End) {
        let mut inner = self.lock();
        inner.end.get_or_insert(end);
        inner.now = true;
        drop(inner);
        self.tell();
    }

    /// Asks it to end, which a program that can hear may do in its own time; it counts as this end.
    pub fn ask_to_end(&self, end: End) {
        self.lock().end.get_or_insert(end);
        self.tell();
    }

    /// Whether it was told to end, and not only asked.
    pub fn is_to_end_now(&self) -> bool {
        self.lock().now
    }

    /// Whether it stands still.
    pub fn is_closed(&self) -> bool {
        self.lock().is_shut()
    }

    /// How it was told to end, if it was.
    pub fn end(&self) -> Option<End> {
        self.lock().end.clone()
    }

    /// For how long it has run, pauses left out.
    pub fn ran(&self) -> Duration {
        self.lock().ran()
    }

    /// Whoever waits in the gate looks again.
    pub fn look_again(&self) {
        drop(self.lock());
        self.wake();
    }

    /// Passes the gate, once it is open.
    pub fn pass(&self) -> Result<(), Stopped> {
        self.wait(None, || Some(())).map(drop)
    }

    /// Passes the gate, once it is open; whether somebody wants to save the program before that.
    pub fn pass_or_wanted(&self) -> Result<Waited<()>, Stopped> {
        self.wait_or_wanted(None, || Some(()))
    }

    /// Waits until `ready` gives something, which is asked whenever somebody calls [`Gate::look_again`], or until the deadline
    /// (`None`). Not while the gate is closed.
    pub fn wait<T>(
        &self,
        deadline: Option<Instant>,
        ready: impl FnMut() -> Option<T>,
    ) -> Result<Option<T>, Stopped> {
        Ok(match self.wait_for(deadline, ready, false)? {
            Waited::Ready(found) => Some(found),
            Waited::Late | Waited::Wanted => None,
        })
    }

    /// The same; it may also be left where it is, to be saved. Then nothing has been taken from `ready`.
    pub fn wait_or_wanted<T>(
        &self,
        deadline: Option<Instant>,
        ready: impl FnMut() -> Option<T>,
    ) -> Result<Waited<T>, Stopped> {
        self.wait_for(deadline, ready, true)
    }

    fn wait_for<T>(
        &self,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> Option<T>,
        can_be_saved: bool,
    ) -> Result<Waited<T>, Stopped> {
        let mut inner = self.lock();
        loop {
            if inner.end.is_some() {
                return Err(Stopped);
            }
            if can_be_saved && inner.wanted {
                return Ok(Waited::Wanted);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !inner.is_shut() {
                if let Some(found) = ready() {
                    return Ok(Waited::Ready(found));
                }
                if left == Some(Duration::ZERO) {
                    return Ok(Waited::Late);
                }
            }
            inner = match left.filter(|_| !inner.is_shut()) {
                Some(left) => {
                    self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Has the program end like this after it has run for so long.
    pub fn limit(&self, limit: Duration, end: End) {
        let mut inner = self.lock();
        while inner.end.is_none() {
            let left = limit.saturating_sub(inner.ran());
            if left.is_zero() {
                drop(inner);
                return self.stop(end);
            }
            inner = match inner.since {
                Some(_) => self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    #[test]
    fn a_closed_gate_holds_whoever_comes_and_an_end_frees_them() {
        let gate = Arc::new(Gate::default());
        let pokes = Arc::new(AtomicUsize::new(0));
        let counter = pokes.clone();
        gate.on_change(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        gate.begin();
        gate.pass().unwrap();
        gate.pause();
        let shared = gate.clone();
        let held = thread::spawn(move || shared.pass());
        thread::sleep(Duration::from_millis(20));
        assert!(!held.is_finished());
        gate.resume();
        held.join().unwrap().unwrap();
        let shared = gate.clone();
        let waits = thread::spawn(move || shared.wait(None, || None::<()>));
        gate.stop(End::Killed);
        gate.stop(End::PowerOff);
        assert_eq!(waits.join().unwrap(), Err(Stopped));
        assert_eq!((gate.pass(), gate.end()), (Err(Stopped), Some(End::Killed)));
        assert_eq!(pokes.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn who_is_held_waits_while_its_time_goes_on() {
        let gate = Arc::new(Gate::default());
        gate.begin();
        gate.hold(true);
        let shared = gate.clone();
        let held = thread::spawn(move || shared.pass());
        thread::sleep(Duration::from_millis(20));
        assert!(!held.is_finished() && gate.is_closed());
        gate.pause();
        gate.hold(false);
        thread::sleep(Duration::from_millis(20));
        assert!(!held.is_finished(), "a pause is another thing");
        gate.resume();
        held.join().unwrap().unwrap();
        assert!(gate.ran() >= Duration::from_millis(20));
    }

    #[test]
    fn time_is_counted_while_it_is_open() {
        let gate = Arc::new(Gate::default());
        let shared = gate.clone();
        let limit = Duration::from_millis(60);
        let watch = thread::spawn(move || shared.limit(limit, End::Killed));
        gate.begin();
        thread::sleep(Duration::from_millis(20));
        gate.pause();
        let ran = gate.ran();
        assert!(ran >= Duration::from_millis(20));
        thread::sleep(Duration::from_millis(100));
        assert_eq!((gate.ran(), gate.end()), (ran, None));
        gate.resume();
        watch.join().unwrap();
        assert!(gate.ran() >= limit);
        assert_eq!(gate.end(), Some(End::Killed));
    }

    #[test]
    fn who_is_wanted_leaves_a_closed_gate_and_comes_back() {
        let gate = Arc::new(Gate::default());
        gate.has_run(Duration::from_secs(7));
        gate.begin();
        gate.pause();
        let shared = gate.clone();
        let held = thread::spawn(move || (shared.pass_or_wanted(), shared.pass()));
        thread::sleep(Duration::from_millis(20));
        gate.want(true);
        thread::sleep(Duration::from_millis(20));
        assert!(!held.is_finished(), "who cannot be saved waits on");
        gate.want(false);
        gate.resume();
        assert_eq!(held.join().unwrap(), (Ok(Waited::Wanted), Ok(())));
        assert_eq!(gate.pass_or_wanted(), Ok(Waited::Ready(())));
        assert!(gate.ran() >= Duration::from_secs(7));
    }

    #[test]
    fn news_are_changes_and_what_is_worth_another_look() {
        let gate = Gate::default();
        let (news, changes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (news.clone(), changes.clone());
        gate.on_news(move || {
            counts.0.fetch_add(1, Ordering::Relaxed);
        });
        gate.on_change(move || {
            counts.1.fetch_add(1, Ordering::Relaxed);
        });
        gate.look_again();
        gate.pause();
        assert_eq!((news.load(Ordering::Relaxed), changes.load(Ordering::Relaxed)), (2, 1));
    }

    #[test]
    fn a_wait_ends_with_what_it_waits_for_or_with_its_time() {
        let gate = Gate::default();
        let soon = Some(Instant::now() + Duration::from_millis(10));
        assert_eq!(gate.wait(soon, || None::<u8>), Ok(None));
        assert_eq!(gate.wait(None, || Some(7)), Ok(Some(7)));
    }
}
