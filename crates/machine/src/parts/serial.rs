//! The serial port with both ends of its wire: output to the user by a thread of its own, input from a buffer
//! that fills the UART only as fast as the guest takes it.
use super::{Chip, Part};
use crate::core::{World, lock};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;
use viv_arch::saved::ChipSaved;
use viv_devices::chips::uart::Uart;
use viv_devices::{Access, Unfit, Unsaved};

/// Bytes of input that may wait for the guest; more is dropped, as on any serial line.
const INPUT_MAX: usize = 1 << 20;
/// Bytes of output that may wait for the user before the guest is slowed down.
const OUTPUT_MAX: usize = 1 << 20;
/// Output is gathered for so long, since guests write it byte by byte.
const GATHER: Duration = Duration::from_micros(500);

/// What Linux prints first when it panics.
const LAST_WORDS: &[u8] = b"Kernel panic - not syncing";

struct Sink {
    bytes: Vec<u8>,
    /// How much of [`LAST_WORDS`] the output's end has.
    matched: usize,
    panicked: bool,
    /// The guest is no longer slowed down.
    free: bool,
    closed: bool,
}

/// The way of output to the user.
pub(crate) struct ConsoleSink {
    sink: Mutex<Sink>,
    changed: Condvar,
}

impl ConsoleSink {
    pub(crate) fn new() -> Arc<ConsoleSink> {
        let sink = Sink { bytes: Vec::new(), matched: 0, panicked: false, free: false, closed: false };
        Arc::new(ConsoleSink { sink: Mutex::new(sink), changed: Condvar::new() })
    }

    /// Queues output. Waits while the user is far behind, unless the machine is ending.
    pub(crate) fn push(&self, bytes: &[u8]) {
        let mut sink = lock(&self.sink);
        for &byte in bytes {
            // The pattern's first letter does not occur in it again, so a mismatch starts over.
            sink.matched = match LAST_WORDS.get(sink.matched) {
                Some(&wanted) if wanted == byte => sink.matched + 1,
                _ => usize::from(LAST_WORDS.first() == Some(&byte)),
            };
            sink.panicked |= sink.matched == LAST_WORDS.len();
        }
        while sink.bytes.len() > OUTPUT_MAX && !sink.free {
            sink = self.changed.wait(sink).unwrap_or_else(PoisonError::into_inner);
        }
        sink.bytes.extend_from_slice(bytes);
        self.changed.notify_all();
    }

    /// The thread that hands output to `write`, until the console is closed and empty.
    pub(crate) fn serve(&self, write: &dyn Fn(&[u8])) {
        loop {
            let mut sink = lock(&self.sink);
            while sink.bytes.is_empty() {
                if sink.closed {
                    return;
                }
                sink = self.changed.wait(sink).unwrap_or_else(PoisonError::into_inner);
            }
            if !sink.closed {
                drop(sink);
                std::thread::sleep(GATHER);
                sink = lock(&self.sink);
            }
            let bytes = std::mem::take(&mut sink.bytes);
            self.changed.notify_all();
            drop(sink);
            write(&bytes);
        }
    }

    /// Takes the output that waits.
    #[cfg(feature = "trial")]
    pub(crate) fn take(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.sink).bytes)
    }

    /// Whether the guest's kernel said that it panicked.
    pub(crate) fn saw_panic(&self) -> bool {
        lock(&self.sink).panicked
    }

    /// Never again makes a vCPU wait: the machine is ending.
    pub(crate) fn set_free(&self) {
        lock(&self.sink).free = true;
        self.changed.notify_all();
    }

    /// No more output comes; what there is still goes to the user.
    pub(crate) fn close(&self) {
        lock(&self.sink).closed = true;
        self.changed.notify_all();
    }
}

/// The serial port.
pub(crate) struct Serial {
    uart: Arc<Chip<Uart>>,
    input: Arc<Mutex<VecDeque<u8>>>,
}

impl Serial {
    pub(crate) fn new(line: u32, world: &Arc<World>, sink: Arc<ConsoleSink>) -> Arc<Serial> {
        let input = Arc::new(Mutex::new(VecDeque::new()));
        let waiting = input.clone();
        let uart = Chip::new(Uart::new(), Some(line), world, move |uart, _| {
            feed(uart, &mut lock(&waiting));
            if uart.has_transmitted() {
                sink.push(&uart.transmitted());
            }
        });
        Arc::new(Serial { uart, input })
    }

    /// Bytes from the user.
    pub(crate) fn input(&self, bytes: &[u8]) {
        let mut input = lock(&self.input);
        let room = INPUT_MAX.saturating_sub(input.len());
        input.extend(bytes.iter().take(room));
        drop(input);
        self.uart.with(|_, _| ());
    }
}

/// Gives the guest what waits, as far as it is ready: before its driver listens, a reset of the FIFO would eat it.
fn feed(uart: &mut Uart, input: &mut VecDeque<u8>) {
    while uart.ready_for_input() && !input.is_empty() {
        let taken = uart.receive(input.as_slices().0);
        if taken == 0 {
            return;
        }
        input.drain(..taken);
    }
}

impl Part for Serial {
    fn read(&self, access: Access) -> u64 {
        self.uart.read(access)
    }
    fn write(&self, access: Access, value: u64) {
        self.uart.write(access, value);
    }
    fn deadline(&self) -> Option<u64> {
        self.uart.deadline()
    }
    fn tick(&self, now: u64) {
        self.uart.tick(now);
    }
    fn save(&self) -> Result<ChipSaved, Unsaved> {
        let waiting = || lock(&self.input).iter().copied().collect();
        self.uart.save().map(|saved| match saved {
            ChipSaved::Uart(uart, _) => ChipSaved::Uart(uart, waiting()),
            other => other,
        })
    }
    fn load(&self, saved: &ChipSaved) -> Result<(), Unfit> {
        if let ChipSaved::Uart(_, waiting) = saved {
            lock(&self.input).extend(waiting.iter().take(INPUT_MAX));
        }
        self.uart.load(saved)
    }
}
