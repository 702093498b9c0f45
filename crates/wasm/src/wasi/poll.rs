//! Waiting: `poll_oneoff`.
use super::Wasi;
use super::clock::{MONOTONIC, REALTIME};
use super::errno::{Errno, Fail};
use super::fd::Kinds;
use super::guest::Guest;
use super::socket::{self, CONNECTIONS_MAX, Watched};
use rustix::event::PollFlags;
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
/// `eventrwflags`: the other end has gone.
const HANGUP: u16 = 1;
/// Bytes that can be written without waiting, as far as anybody can tell.
const ROOM: u64 = 1 << 16;
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
    /// A socket; whether it is one that connections come to.
    Socket { watched: Watched, listens: bool },
    /// It need not wait: so many bytes.
    Ready(u64),
    /// What does not come about.
    Never,
}

struct Event {
    userdata: u64,
    errno: u16,
    kind: u8,
    bytes: u64,
    flags: u16,
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
        (Kinds::Stdout | Kinds::Stderr | Kinds::File(_), true) => Ok(What::Ready(ROOM)),
        (Kinds::File(file), false) => {
            let size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or_default();
            let place = rustix::fs::tell(file).unwrap_or_default();
            Ok(What::Ready(size.saturating_sub(place)))
        }
        (Kinds::Listener { socket: Some(socket), .. }, false)
            if wasi.table.connections() < CONNECTIONS_MAX =>
        {
            let watched = Watched { socket: socket.clone(), flags: PollFlags::IN };
            Ok(What::Socket { watched, listens: true })
        }
        (Kinds::Listener { .. }, _) => Ok(What::Never),
        (Kinds::Connection { socket, .. }, _) => {
            let flags = if to_write { PollFlags::OUT } else { PollFlags::IN };
            Ok(What::Socket { watched: Watched { socket: socket.clone(), flags }, listens: false })
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
    let events = wait(wasi, all, begin).inspect_err(|fail| {
        if *fail == Fail::Wanted {
            (wasi.waits_since, wasi.clock) = (Some(begin), clock);
        }
    })?;
    let mut place = output;
    for event in &events {
        let mut bytes = [0; EVENT as usize];
        let how = u64::from(event.errno) | u64::from(event.kind) << 16;
        let fields = [event.userdata, how, event.bytes, event.flags.into()];
        for (field, number) in bytes.chunks_exact_mut(8).zip(fields) {
            field.copy_from_slice(&number.to_le_bytes());
        }
        guest.put(place, &bytes)?;
        place = at(place, EVENT)?;
    }
    Ok(guest.put_u32(done, events.len() as u32)?)
}

/// What has come about: input, so many bytes of it, and at each of the sockets.
struct Came {
    input: Option<usize>,
    sockets: Vec<PollFlags>,
}

/// Waits until something has come about, and gives all that has.
fn wait(wasi: &mut Wasi, all: Vec<Subscription>, begin: Instant) -> Result<Vec<Event>, Fail> {
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
    let until = due.map(|(_, until)| until);
    let (mut watched, mut others) = (Vec::new(), Vec::new());
    for one in all {
        let (userdata, kind) = (one.userdata, one.kind);
        match one.what {
            Ok(What::Socket { watched: socket, listens }) => {
                watched.push(socket);
                others.push((userdata, kind, Ok(Waits::Socket { index: watched.len() - 1, listens })));
            }
            what => others.push((userdata, kind, what.map(Waits::Other))),
        }
    }
    let look = || {
        let came = Came { input: input(), sockets: socket::look(&watched) };
        let any = came.input.is_some() || came.sockets.iter().any(|flags| !flags.is_empty());
        any.then_some(came)
    };
    let came = match watched.is_empty() {
        true => wasi.gate.wait_or_wanted(until, look)?,
        false => socket::wait(wasi, &watched, until, look)?,
    };
    let came = match came {
        Waited::Ready(came) => Some(came),
        Waited::Late => None,
        Waited::Wanted => return Err(Fail::Wanted),
    };
    let now = due.filter(|_| came.is_none()).map_or_else(Instant::now, |(time, _)| time.max(Instant::now()));
    let event = |(userdata, kind, what): &(u64, u8, Result<Waits, Errno>)| {
        let (errno, bytes, flags) = match what {
            Err(errno) => (*errno as u16, 0, 0),
            Ok(Waits::Other(What::Ready(bytes))) => (0, *bytes, 0),
            Ok(Waits::Other(What::Time(time))) if *time <= now => (0, 0, 0),
            Ok(Waits::Other(What::Input)) => (0, came.as_ref()?.input? as u64, 0),
            Ok(Waits::Other(_)) => return None,
            Ok(Waits::Socket { index, listens }) => {
                let flags = came.as_ref()?.sockets.get(*index).filter(|flags| !flags.is_empty())?;
                let bytes = match (kind, watched.get(*index)) {
                    (&FD_READ, Some(_)) if *listens => 1,
                    (&FD_READ, Some(one)) => rustix::io::ioctl_fionread(&one.socket).unwrap_or_default(),
                    _ => ROOM,
                };
                (0, bytes, if flags.contains(PollFlags::HUP) { HANGUP } else { 0 })
            }
        };
        Some(Event { userdata: *userdata, errno, kind: *kind, bytes, flags })
    };
    Ok(others.iter().filter_map(event).collect())
}

/// What is waited for, the sockets apart.
enum Waits {
    Socket { index: usize, listens: bool },
    Other(What),
}
