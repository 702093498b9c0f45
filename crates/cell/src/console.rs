//! The serial line's output: kept for a while, written to a log, and sent to whoever listens.
//!
//! The guest's threads only append to a ring; the log and each connection are readers with a place of their
//! own in it. A reader that is too slow loses the oldest bytes and is told how many, and never holds up the
//! guest.
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of output that are kept for slow readers.
const RING_MAX: usize = 1 << 20;
/// Bytes of earlier output that a new connection gets first.
const REPLAY_MAX: u64 = 64 << 10;
/// Bytes that a reader takes at once.
const PIECE_MAX: usize = 64 << 10;
/// Bytes of a line that are looked at for a panic.
const LINE_MAX: usize = 160;

/// The output of one serial line.
pub struct Console {
    inner: Mutex<Inner>,
    changed: Condvar,
}

struct Inner {
    /// The last bytes of the output.
    ring: VecDeque<u8>,
    /// How many bytes there have been in all: the place after the ring's last.
    written: u64,
    closed: bool,
    /// How many readers have not yet seen the end.
    readers: usize,
    scan: Scan,
}

/// Looks for a kernel's last words.
#[derive(Default)]
struct Scan {
    line: Vec<u8>,
    panicked: bool,
    stands_still: bool,
}

impl Scan {
    fn push(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < LINE_MAX {
                self.line.push(byte);
            }
            return;
        }
        let text = String::from_utf8_lossy(&self.line);
        // "[    0.123456] Kernel panic - …": only the time stamp may come before it.
        let message = match text.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((stamp, message)) if stamp.bytes().all(|b| b" .0123456789T".contains(&b)) => message,
            _ => &text,
        };
        self.panicked |= message.starts_with("Kernel panic - not syncing");
        self.stands_still |= self.panicked && message.starts_with("---[ end Kernel panic");
        self.line.clear();
    }
}

/// A place in the output. The end waits for it as long as it is there, also while the thread that will read has not begun.
pub struct Reader {
    console: Arc<Console>,
    place: u64,
}

impl Console {
    /// Nothing written yet.
    pub fn new() -> Console {
        let inner =
            Inner { ring: VecDeque::new(), written: 0, closed: false, readers: 0, scan: Scan::default() };
        Console { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends what the guest has sent. Never waits for a reader.
    pub fn write(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.written += bytes.len() as u64;
        for &byte in bytes {
            inner.scan.push(byte);
        }
        inner.ring.extend(bytes);
        let too_many = inner.ring.len().saturating_sub(RING_MAX);
        inner.ring.drain(..too_many);
        drop(inner);
        self.changed.notify_all();
    }

    /// A reader that first gets up to `replay` bytes of earlier output.
    pub fn reader(self: &Arc<Self>, replay: u64) -> Reader {
        let mut inner = self.lock();
        inner.readers += 1;
        let oldest = inner.written - inner.ring.len() as u64;
        Reader { console: self.clone(), place: oldest.max(inner.written.saturating_sub(replay)) }
    }

    /// No more output will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until every reader has got everything, for at most `limit`.
    pub fn drain(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut inner = self.lock();
        while inner.readers > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether the guest's kernel has reported a panic since the last boot.
    pub fn panicked(&self) -> bool {
        self.lock().scan.panicked
    }

    /// Returns when a panicked kernel has said that it will stand still, or the console is closed (false).
    pub fn wait_for_standstill(&self) -> bool {
        let mut inner = self.lock();
        while !inner.scan.stands_still && !inner.closed {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        inner.scan.stands_still
    }

    /// The guest boots anew.
    pub fn forget_panic(&self) {
        self.lock().scan = Scan::default();
    }
}

/// One connection to the console: shows it its output, and gives what comes from it to `input`.
pub fn attach(console: &Arc<Console>, mut connection: UnixStream, input: impl Fn(&[u8]) + Send + 'static) {
    let Ok(mut from) = connection.try_clone() else { return };
    let spawned = std::thread::Builder::new().name("console-input".into()).spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut piece) {
            input(piece.get(..length).unwrap_or_default());
        }
    });
    if spawned.is_err() {
        return;
    }
    for piece in console.reader(REPLAY_MAX) {
        if connection.write_all(&piece).is_err() {
            break;
        }
    }
    let _ = connection.shutdown(Shutdown::Both);
}

impl Default for Console {
    fn default() -> Console {
        Console::new()
    }
}

/// The next bytes, as soon as there are any; `None` at the end of the output.
impl Iterator for Reader {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut inner = self.console.lock();
        while inner.written == self.place {
            if inner.closed {
                return None;
            }
            inner = self.console.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        let oldest = inner.written - inner.ring.len() as u64;
        if self.place < oldest {
            let lost = oldest - self.place;
            self.place = oldest;
            return Some(format!("\r\n[viv: {lost} bytes of output lost]\r\n").into_bytes());
        }
        let start = (self.place - oldest) as usize;
        let piece: Vec<u8> = inner.ring.range(start..).take(PIECE_MAX).copied().collect();
        self.place += piece.len() as u64;
        Some(piece)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.console.lock().readers -= 1;
        self.console.changed.notify_all();
    }
}

/// A log file of bounded size: when it is full it becomes the old one, and a new one begins.
pub struct Log {
    path: PathBuf,
    old: PathBuf,
    max: u64,
    file: File,
    length: u64,
}

impl Log {
    /// Goes on with the log at `path`.
    pub fn open(path: &Path, old: &Path, max: u64) -> io::Result<Log> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Log { path: path.to_path_buf(), old: old.to_path_buf(), max, file, length })
    }

    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.length > 0 && self.length + bytes.len() as u64 > self.max {
            fs::rename(&self.path, &self.old)?;
            *self = Log::open(&self.path, &self.old, self.max)?;
        }
        self.file.write_all(bytes)?;
        self.length += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_whose_thread_has_not_begun_is_waited_for() {
        let console = Arc::new(Console::new());
        let mut reader = console.reader(u64::MAX);
        console.write(b"last");
        console.close();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            (reader.next(), reader.next())
        });
        console.drain(Duration::from_secs(60));
        assert_eq!(console.lock().readers, 0);
        assert_eq!(late.join().unwrap(), (Some(b"last".to_vec()), None));
    }

    #[test]
    fn a_reader_gets_everything_then_the_end() {
        let console = Arc::new(Console::new());
        console.write(b"before ");
        let mut reader = console.reader(3);
        assert_eq!(reader.next().unwrap(), b"re ");
        let writer = console.clone();
        let thread = std::thread::spawn(move || {
            writer.write(b"after");
            writer.close();
        });
        let mut text = Vec::new();
        for piece in reader.by_ref() {
            text.extend(piece);
        }
        assert_eq!(text, b"after");
        drop(reader);
        thread.join().unwrap();
        console.drain(Duration::from_secs(1));
        assert_eq!(console.lock().readers, 0);
    }

    #[test]
    fn a_slow_reader_is_told_what_it_lost() {
        let console = Arc::new(Console::new());
        let mut reader = console.reader(0);
        console.write(&vec![b'x'; RING_MAX]);
        console.write(b"0123456789");
        assert_eq!(reader.next().unwrap(), b"\r\n[viv: 10 bytes of output lost]\r\n");
        let mut length = 0;
        console.close();
        for piece in reader {
            length += piece.len();
        }
        assert_eq!(length, RING_MAX);
    }

    #[test]
    fn a_panic_is_a_line_of_the_kernel_and_nothing_else() {
        let console = Console::new();
        console.write(b"echo Kernel panic - not syncing\n[user] Kernel panic - not syncing\n");
        assert!(!console.panicked());
        console.write(b"[    1.234567] Kernel panic");
        console.write(b" - not syncing: VFS: Unable to mount root fs\r\n");
        assert!(console.panicked());
        console.write(b"[    1.3][    T1] foo\n[    1.234599] ---[ end Kernel panic - not syncing: VFS\n");
        assert!(console.wait_for_standstill());
        console.forget_panic();
        assert!(!console.panicked());
        console.write(b"Kernel panic - not syncing: early\n");
        assert!(console.panicked());
    }

    #[test]
    fn a_full_log_becomes_the_old_one() {
        let directory = std::env::temp_dir().join(format!("viv-log-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (path, old) = (directory.join("a"), directory.join("b"));
        let mut log = Log::open(&path, &old, 8).unwrap();
        for piece in [b"aaaa", b"bbbb", b"cccc"] {
            log.write(piece).unwrap();
        }
        assert_eq!(fs::read(&old).unwrap(), b"aaaabbbb");
        assert_eq!(fs::read(&path).unwrap(), b"cccc");
        fs::remove_dir_all(directory).unwrap();
    }
}
