//! The standard streams of a program: to whoever has started it and waits, and in any case to the console.
use crate::gate::{Gate, Stopped, Waited};
use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use viv_api::agent::{Message, Output};
use viv_cell::Console;

/// Bytes of input that wait for the program; whoever sends more waits.
const INPUT_MAX: usize = 256 << 10;
/// Bytes of output in one frame.
const PIECE_MAX: usize = 32 << 10;

/// Where output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// The streams of one program.
pub struct Streams {
    gate: Arc<Gate>,
    console: Arc<Console>,
    input: Mutex<Input>,
    /// Who waits for its output.
    session: Mutex<Option<UnixStream>>,
    /// The same connection, for whoever cannot wait until the program has written to it.
    line: Mutex<Option<UnixStream>>,
    read: AtomicU64,
    written: AtomicU64,
}

#[derive(Default)]
struct Input {
    bytes: VecDeque<u8>,
    ended: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Streams {
    /// Streams whose output the console shows. Their input has ended, unless `has_input`.
    pub fn new(gate: Arc<Gate>, console: Arc<Console>, has_input: bool) -> Streams {
        Streams {
            gate,
            console,
            input: Mutex::new(Input { ended: !has_input, ..Input::default() }),
            session: Mutex::default(),
            line: Mutex::default(),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
        }
    }

    /// Bytes read and written so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed))
    }

    /// Waits for input, and takes up to `max` bytes of it; nothing at its end.
    pub fn read(&self, max: usize) -> Result<Vec<u8>, Stopped> {
        let taken = self.gate.wait(None, || self.take(max))?.unwrap_or_default();
        self.read.fetch_add(taken.len() as u64, Ordering::Relaxed);
        self.gate.look_again(); // there is room again
        Ok(taken)
    }

    fn take(&self, max: usize) -> Option<Vec<u8>> {
        let mut input = lock(&self.input);
        let length = input.bytes.len().min(max);
        (length > 0 || input.ended || max == 0).then(|| input.bytes.drain(..length).collect())
    }

    /// The same of a program that can be saved where it waits: [`Waited::Wanted`] has taken nothing.
    pub fn read_or_wanted(&self, max: usize) -> Result<Waited<Vec<u8>>, Stopped> {
        let taken = self.gate.wait_or_wanted(None, || self.take(max))?;
        if let Waited::Ready(taken) = &taken {
            self.read.fetch_add(taken.len() as u64, Ordering::Relaxed);
            self.gate.look_again(); // there is room again
        }
        Ok(taken)
    }

    /// What waits to be read, to be saved.
    pub fn pending(&self) -> Vec<u8> {
        lock(&self.input).bytes.iter().copied().collect()
    }

    /// What waited to be read when the program was saved: it comes before all else.
    pub fn put_back(&self, pending: Vec<u8>) {
        lock(&self.input).bytes = pending.into();
    }

    /// How many bytes can be read without waiting; `None`: it would wait. At the end of the input: 0.
    pub fn available(&self) -> Option<usize> {
        let input = lock(&self.input);
        (input.ended || !input.bytes.is_empty()).then_some(input.bytes.len())
    }

    /// Input for the program; nothing is its end. Waits until there is room.
    pub(crate) fn feed(&self, bytes: &[u8]) -> Result<(), Stopped> {
        if bytes.is_empty() {
            lock(&self.input).ended = true;
        } else {
            self.gate.wait(None, || {
                let mut input = lock(&self.input);
                if input.ended || input.bytes.len() >= INPUT_MAX {
                    return input.ended.then_some(());
                }
                input.bytes.extend(bytes);
                Some(())
            })?;
        }
        self.gate.look_again();
        Ok(())
    }

    /// Writes out what the program says. Whoever waits for it and is slow makes it wait.
    pub fn write(&self, channel: Channel, bytes: &[u8]) {
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.console.write(bytes);
        for piece in bytes.chunks(PIECE_MAX) {
            self.send(match channel {
                Channel::Out => Output::Stdout(piece.to_vec()),
                Channel::Err => Output::Stderr(piece.to_vec()),
            });
        }
    }

    /// Sends to whoever waits for the program.
    pub(crate) fn send(&self, output: Output) {
        let mut session = lock(&self.session);
        if let Some(stream) = session.as_mut()
            && stream.write_all(&output.to_bytes()).is_err()
        {
            *session = None;
        }
    }

    /// Output goes to this connection, too, from now on; refused if there is one already.
    pub(crate) fn begin_session(&self, stream: UnixStream) -> Result<(), UnixStream> {
        let mut session = lock(&self.session);
        if session.is_some() {
            return Err(stream);
        }
        *lock(&self.line) = stream.try_clone().ok();
        *session = Some(stream);
        drop(session);
        self.gate.look_again();
        Ok(())
    }

    /// Waits for somebody who wants the output.
    pub(crate) fn wait_for_session(&self) -> Result<(), Stopped> {
        self.gate.wait(None, || lock(&self.session).is_some().then_some(())).map(drop)
    }

    /// Lets whoever waits for the program go, also one who does not listen while the program talks.
    pub(crate) fn hang_up(&self) {
        if let Some(stream) = lock(&self.line).take() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whoever waits for the program is told that it has ended, with its status if it has one.
    pub(crate) fn end_session(&self, status: Option<u8>) {
        if let Some(status) = status {
            self.send(Output::Exit(status));
        }
        lock(&self.session).take();
        self.hang_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::thread;
    use viv_api::agent::Decoder;
    use viv_model::End;

    fn streams(has_input: bool) -> Arc<Streams> {
        Arc::new(Streams::new(Arc::default(), Arc::new(Console::new()), has_input))
    }

    #[test]
    fn what_waited_to_be_read_is_read_where_the_program_goes_on() {
        let (was, is) = (streams(true), streams(false));
        was.feed(b"hello").unwrap();
        is.put_back(was.pending());
        assert_eq!(
            (is.read(3).unwrap(), is.read(9).unwrap(), is.read(9).unwrap()),
            (b"hel".to_vec(), b"lo".to_vec(), Vec::new())
        );
        was.gate.want(true);
        assert_eq!(was.read_or_wanted(3), Ok(Waited::Wanted));
        assert_eq!(was.available(), Some(5), "and nothing is lost");
    }

    #[test]
    fn input_comes_in_order_then_ends() {
        let streams = streams(true);
        assert_eq!(streams.available(), None);
        streams.feed(b"hello").unwrap();
        assert_eq!((streams.available(), streams.read(3).unwrap()), (Some(5), b"hel".to_vec()));
        let shared = streams.clone();
        let sender = thread::spawn(move || {
            shared.feed(&vec![7; 2 * INPUT_MAX]).unwrap();
            shared.feed(&[1]).unwrap(); // waits for room
            shared.feed(&[]).unwrap();
        });
        let mut all = Vec::new();
        loop {
            let piece = streams.read(1000).unwrap();
            if piece.is_empty() {
                break;
            }
            all.extend(piece);
        }
        sender.join().unwrap();
        assert_eq!((all.len(), all.last()), (2 + 2 * INPUT_MAX + 1, Some(&1)));
        assert_eq!(streams.available(), Some(0));
        assert_eq!(streams.counts().0, all.len() as u64 + 3);
    }

    #[test]
    fn a_program_without_input_finds_its_end_and_one_that_waits_can_be_ended() {
        assert_eq!(streams(false).read(10), Ok(Vec::new()));
        let streams = streams(true);
        let shared = streams.clone();
        let waits = thread::spawn(move || shared.read(1));
        streams.gate.stop(End::Killed);
        assert_eq!(waits.join().unwrap(), Err(Stopped));
    }

    #[test]
    fn output_goes_to_the_session_by_channel_and_to_one_only() {
        let streams = streams(false);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        streams.begin_session(ours.try_clone().unwrap()).unwrap();
        streams.begin_session(ours).unwrap_err();
        streams.write(Channel::Out, b"out");
        streams.write(Channel::Err, b"err");
        streams.end_session(Some(3));
        let mut decoder = Decoder::new();
        let mut next = || decoder.read::<Output>(&mut theirs).unwrap();
        assert_eq!(next(), Some(Output::Stdout(b"out".to_vec())));
        assert_eq!(next(), Some(Output::Stderr(b"err".to_vec())));
        assert_eq!(next(), Some(Output::Exit(3)));
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0);
    }
}
