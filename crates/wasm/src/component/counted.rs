//! Time and random numbers of a component whose run is the same each time: a clock that only its own questions and waits move, and
//! numbers from a seed, as modules have them ([`crate::wasi::clock`]).
use super::given::Host;
use crate::wasi::clock::{COUNTED_BEGIN, COUNTED_STEP};
use crate::wasi::random::Random;
use rand_core::TryRng;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use wasmtime::Result;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::p2::bindings::clocks::monotonic_clock;
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtxBuilder, async_trait};

#[derive(Default)]
struct Inner {
    /// Nanoseconds since the program began.
    now: u64,
    /// The moments that somebody waits for now.
    awaited: Vec<u64>,
}

/// The clock. All that are made of it are the same one.
#[derive(Clone, Default)]
pub(crate) struct Counted(Arc<Mutex<Inner>>);

impl Counted {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time; asking moves it.
    fn ask(&self) -> u64 {
        let mut inner = self.lock();
        inner.now = inner.now.saturating_add(COUNTED_STEP);
        inner.now
    }
}

impl HostWallClock for Counted {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(COUNTED_STEP)
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(COUNTED_BEGIN.saturating_add(self.ask()))
    }
}

impl HostMonotonicClock for Counted {
    fn resolution(&self) -> u64 {
        COUNTED_STEP
    }

    fn now(&self) -> u64 {
        self.ask()
    }
}

/// One who waits for a moment.
struct Wait {
    clock: Counted,
    when: u64,
}

/// A wait while it is looked at.
struct Awaited<'a>(&'a Wait);

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        let Awaited(Wait { clock, when }) = self;
        let mut inner = clock.lock();
        if let Some(at) = inner.awaited.iter().position(|moment| moment == when) {
            inner.awaited.swap_remove(at);
        }
    }
}

#[async_trait]
impl Pollable for Wait {
    async fn ready(&mut self) {
        self.clock.lock().awaited.push(self.when);
        let _awaited = Awaited(self);
        // All that are polled together have said what they wait for, and what is there already has been seen: then the clock goes
        // to the first of the moments.
        loop {
            tokio::task::yield_now().await;
            let mut inner = self.clock.lock();
            if inner.awaited.iter().all(|moment| *moment >= self.when) {
                inner.now = inner.now.max(self.when);
                return;
            }
        }
    }
}

/// A component's view of it.
pub(crate) struct View<'a> {
    clock: &'a Counted,
    table: &'a mut ResourceTable,
}

impl HasData for Counted {
    type Data<'a> = View<'a>;
}

impl View<'_> {
    fn wait(&mut self, when: u64) -> Result<Resource<DynPollable>> {
        let wait = self.table.push(Wait { clock: self.clock.clone(), when })?;
        subscribe(self.table, wait)
    }
}

impl monotonic_clock::Host for View<'_> {
    fn now(&mut self) -> Result<u64> {
        Ok(self.clock.ask())
    }

    fn resolution(&mut self) -> Result<u64> {
        Ok(COUNTED_STEP)
    }

    fn subscribe_instant(&mut self, when: u64) -> Result<Resource<DynPollable>> {
        self.wait(when)
    }

    fn subscribe_duration(&mut self, time: u64) -> Result<Resource<DynPollable>> {
        let when = self.clock.lock().now.saturating_add(time);
        self.wait(when)
    }
}

/// Numbers from a seed.
struct Seeded(Random);

impl TryRng for Seeded {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.try_next_u64().map(|number| number as u32)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        let _ = self.0.fill(bytes); // only the host's can fail
        Ok(())
    }
}

/// Gives a component this clock, and numbers from this seed.
pub(crate) fn apply(builder: &mut WasiCtxBuilder, clock: &Counted, seed: u64) {
    builder
        .wall_clock(clock.clone())
        .monotonic_clock(clock.clone())
        .secure_random(Seeded(Random::from_seed(seed)))
        .insecure_random(Seeded(Random::from_seed(!seed)))
        .insecure_random_seed(seed.into());
}

/// Puts waits that take no time in the place of those of the host.
pub(crate) fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.allow_shadowing(true);
    monotonic_clock::add_to_linker::<Host, Counted>(linker, |host| View {
        clock: &host.clock,
        table: &mut host.table,
    })?;
    linker.allow_shadowing(false);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::pin::pin;
    use std::task::Poll;
    use std::time::Instant;

    #[test]
    fn of_those_who_wait_together_the_first_moment_comes_and_takes_no_time() {
        let clock = Counted::default();
        let wait = |when| Wait { clock: clock.clone(), when };
        let (mut late, mut soon) = (wait(90_000_000_000), wait(60_000_000_000));
        let begin = Instant::now();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let came = runtime.block_on(async {
            let (mut late, mut soon) = (pin!(late.ready()), pin!(soon.ready()));
            poll_fn(|context| match (late.as_mut().poll(context), soon.as_mut().poll(context)) {
                (Poll::Pending, Poll::Pending) => Poll::Pending,
                (late, soon) => Poll::Ready((late.is_ready(), soon.is_ready())),
            })
            .await
        });
        assert_eq!((came, clock.lock().now), ((false, true), 60_000_000_000));
        assert!(clock.lock().awaited.is_empty(), "who is not looked at any more does not count");
        runtime.block_on(late.ready());
        assert_eq!(HostMonotonicClock::now(&clock), 90_000_000_000 + COUNTED_STEP);
        runtime.block_on(wait(1).ready());
        assert_eq!(HostMonotonicClock::now(&clock), 90_000_000_000 + 2 * COUNTED_STEP, "it never goes back");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_seed_gives_the_numbers_that_modules_have() {
        let mut bytes = [0; 20];
        let mut other = bytes;
        Seeded(Random::from_seed(7)).try_fill_bytes(&mut bytes).unwrap();
        Random::from_seed(7).fill(&mut other).unwrap();
        assert_eq!(bytes, other);
    }
}
