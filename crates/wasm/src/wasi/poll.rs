//! Waiting: `poll_oneoff`.
use super::Wasi;
use super::clock::{MONOTONIC, REALTIME};
use super::errno::{Errno, Fail};
use super::fd::Kinds;
use super::guest::Guest;
use std::time::{Duration, Instant};
use viv_process::Waited;

/// Bytes of a `subscription` and of an `event`.
const SUBSCRIPTION: u32 = 48;
const EVENT: u32 = 32;
/// Most subscriptions of one call.
const SUBSCRIPTIONS_MAX: u32 = 1024;
/// `eventtype`.
const CLOCK: u8 = 0;
const FD_READ: u8 = 1;
const FD_WRITE: u8 = 2;
/// `subclockflags`: the time is one of the clock's, not one from now.
const ABSOLUTE: u16 = 1;

/// What a program waits for.
struct Subscription {
    userdata: u64,
    kind: u8,
    what: Result<What, Errno>,
}

enum What {
    /// This instant.
    Time(Instant),
    /// Standard input.
    Input,
    /// It need not wait: so many bytes.
    Ready(u64),
}

struct Event {
    userdata: u64,
    errno: u16,
    kind: u8,
    bytes: u64,
}

fn at(base: u32, offset: u32) -> Result<u32, Errno> {
    base.checked_add(offset).ok_or(Errno::Fault)
}

fn subscription(
    guest: &Guest<'_>,
    wasi: &mut Wasi,
    base: u32,
    begin: Instant,
) -> Result<Subscription, Errno> {
    let (userdata, kind) = (guest.u64(base)?, guest.u8(at(base, 8)?)?);
    let what = match kind {
        CLOCK => {
            let (id, timeout) = (guest.u32(at(base, 16)?)?, guest.u64(at(base, 24)?)?);
            let flags = guest.u16(at(base, 40)?)?;
            wait_for(wasi, id, timeout, flags & ABSOLUTE != 0).map(|wait| {
                let far = Duration::from_secs(u64::from(u32::MAX));
                What::Time(begin.checked_add(wait.min(far)).unwrap_or(begin))
            })
        }
        FD_READ | FD_WRITE => readiness(wasi, guest.u32(at(base, 16)?)?, kind == FD_WRITE),
        _ => return Err(Errno::Invalid),
    };
    Ok(Subscription { userdata, kind, what })
}

/// How long it is until a clock shows this.
fn wait_for(wasi: &mut Wasi, id: u32, timeout: u64, is_absolute: bool) -> Result<Duration, Errno> {
    if id != REALTIME && id != MONOTONIC {
        return Err(Errno::NotSupported);
    }
    let ns = if is_absolute { timeout.saturating_sub(wasi.clock.now(id)?) } else { timeout };
    Ok(Duration::from_nanos(ns))
}

fn readiness(wasi: &Wasi, fd: u32, to_write: bool) -> Result<What, Errno> {
    match (&wasi.table.get(fd)?.kind, to_write) {
        (Kinds::Stdin, false) => Ok(What::Input),
        (Kinds::Stdout | Kinds::Stderr, true) => Ok(What::Ready(1 << 16)),
        (Kinds::File(_), true) => Ok(What::Ready(1 << 16)),
        (Kinds::File(file), false) => {
            let size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or_default();
            let place = rustix::fs::tell(file).unwrap_or_default();
            Ok(What::Ready(size.saturating_sub(place)))
        }
        _ => Err(Errno::BadFd),
    }
}

pub(crate) fn oneoff(
    guest: &mut Guest<'_>,
    wasi: &mut Wasi,
    (input, output, count): (u32, u32, u32),
    done: u32,
) -> Result<(), Fail> {
    if count == 0 || count > SUBSCRIPTIONS_MAX {
        return Err(Errno::Invalid.into());
    }
    // A call that was left to be saved has waited for a while already.
    let begin = wasi.waits_since.take().unwrap_or_else(Instant::now);
    let clock = wasi.clock;
    let mut all = Vec::new();
    for index in 0..count {
        let base = at(input, index.saturating_mul(SUBSCRIPTION))?;
        all.push(subscription(guest, wasi, base, begin)?);
    }
    let events = wait(wasi, &all, begin).inspect_err(|fail| {
        if *fail == Fail::Wanted {
            (wasi.waits_since, wasi.clock) = (Some(begin), clock);
        }
    })?;
    let mut place = output;
    for event in &events {
        let mut bytes = [0; EVENT as usize];
        let fields = [event.userdata, u64::from(event.errno) | u64::from(event.kind) << 16, event.bytes];
        for (field, number) in bytes.chunks_exact_mut(8).zip(fields) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        guest.put(place, &bytes)?;
        place = at(place, EVENT)?;
    }
    Ok(guest.put_u32(done, events.len() as u32)?)
}

/// Waits until something has come about, and gives all that has.
fn wait(wasi: &mut Wasi, all: &[Subscription], begin: Instant) -> Result<Vec<Event>, Fail> {
    let times = all.iter().filter_map(|one| match &one.what {
        Ok(What::Time(time)) => Some(*time),
        _ => None,
    });
    let mut deadline = times.min();
    let is_ready = all.iter().any(|one| matches!(one.what, Err(_) | Ok(What::Ready(_))));
    if is_ready {
        deadline = Some(begin);
    }
    let streams = wasi.streams.clone();
    let waits_for_input = all.iter().any(|one| matches!(one.what, Ok(What::Input)));
    let input = || if waits_for_input { streams.available() } else { None };
    // A program that is the same in each run does not wait for the clock.
    let due = match deadline {
        Some(time) if input().is_none() && !is_ready => {
            let wait = time.saturating_duration_since(begin);
            let waits = wasi.clock.sleep(wait);
            Some((time, begin.checked_add(waits).unwrap_or(time)))
        }
        Some(time) => Some((time, time)),
        None => None,
    };
    let came = match wasi.gate.wait_or_wanted(due.map(|(_, until)| until), input)? {
        Waited::Ready(bytes) => Some(bytes),
        Waited::Late => None,
        Waited::Wanted => return Err(Fail::Wanted),
    };
    let now = due.filter(|_| came.is_none()).map_or_else(Instant::now, |(time, _)| time.max(Instant::now()));
    let event = |one: &Subscription| {
        let (errno, bytes) = match &one.what {
            Err(errno) => (*errno as u16, 0),
            Ok(What::Ready(bytes)) => (0, *bytes),
            Ok(What::Time(time)) if *time <= now => (0, 0),
            Ok(What::Input) => (0, came? as u64),
            Ok(What::Time(_)) => return None,
        };
        Some(Event { userdata: one.userdata, errno, kind: one.kind, bytes })
    };
    Ok(all.iter().filter_map(event).collect())
}
