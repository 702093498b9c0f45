//! The user's terminal: raw while a guest has it, and sane again whatever happens.
use rustix::termios::{self, OptionalActions, Termios};
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// The terminal's settings from before it became raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);
/// It shows a screen of its own.
static ON_SCREEN: AtomicBool = AtomicBool::new(false);
static PANIC_HOOK: Once = Once::new();

/// Whether a person sits at both ends.
pub(crate) fn is_interactive() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Height and width in characters.
pub(crate) fn size() -> Option<(u16, u16)> {
    let size = termios::tcgetwinsize(rustix::stdio::stdout())
        .or_else(|_| termios::tcgetwinsize(rustix::stdio::stdin()))
        .ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// The terminal is raw for as long as this lives.
pub(crate) struct Raw(());

impl Raw {
    /// Makes it raw; nothing happens if standard input is no terminal.
    pub(crate) fn enter() -> Raw {
        let input = rustix::stdio::stdin();
        if let Ok(before) = termios::tcgetattr(input) {
            PANIC_HOOK.call_once(|| {
                let hook = std::panic::take_hook();
                std::panic::set_hook(Box::new(move |panic| {
                    restore();
                    hook(panic);
                }));
            });
            let mut raw = before.clone();
            raw.make_raw();
            *BEFORE.lock().unwrap_or_else(PoisonError::into_inner) = Some(before);
            let _ = termios::tcsetattr(input, OptionalActions::Now, &raw);
        }
        Raw(())
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// The terminal is raw and shows a screen of its own, without a cursor, for as long as this lives.
pub(crate) struct Screen(Raw);

impl Screen {
    pub(crate) fn enter() -> Screen {
        let screen = Screen(Raw::enter());
        ON_SCREEN.store(true, Ordering::SeqCst);
        write_now(b"\x1b[?1049h\x1b[?25l");
        screen
    }
}

fn write_now(bytes: &[u8]) {
    let mut out = std::io::stdout();
    // A terminal that is gone needs nothing.
    let _ = out.write_all(bytes).and_then(|()| out.flush());
}

/// Gives the terminal its settings back, if they were changed.
pub(crate) fn restore() {
    if ON_SCREEN.swap(false, Ordering::SeqCst) {
        write_now(b"\x1b[?25h\x1b[?1049l");
    }
    let before = match BEFORE.try_lock() {
        Ok(mut before) => before.take(),
        Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner().take(),
        Err(std::sync::TryLockError::WouldBlock) => None,
    };
    if let Some(before) = before {
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &before);
    }
}

/// What the keys said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// These bytes are for the guest.
    Pass(Vec<u8>),
    /// These are for the guest, then the user wants to leave.
    Leave(Vec<u8>),
}

/// Ctrl-].
const ESCAPE: u8 = 0x1d;

/// How to leave, as it is announced.
pub(crate) const HOW_TO_LEAVE: &str = "Ctrl-] then q";

/// Finds the escape sequence: Ctrl-] then `.` or `q`; Ctrl-] twice is one for the guest.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    armed: bool,
}

impl Escape {
    pub(crate) fn scan(&mut self, keys: &[u8]) -> Keys {
        let mut pass = Vec::with_capacity(keys.len());
        for &key in keys {
            match (std::mem::take(&mut self.armed), key) {
                (false, ESCAPE) => self.armed = true,
                (true, b'.' | b'q') => return Keys::Leave(pass),
                (true, ESCAPE) => pass.push(ESCAPE),
                (true, other) => pass.extend([ESCAPE, other]),
                (false, other) => pass.push(other),
            }
        }
        Keys::Pass(pass)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_sequence_leaves() {
        let mut escape = Escape::default();
        assert_eq!(escape.scan(b"a.q"), Keys::Pass(b"a.q".to_vec()));
        assert_eq!(escape.scan(b"b\x1d"), Keys::Pass(b"b".to_vec()));
        assert_eq!(escape.scan(b"x\x1d\x1d"), Keys::Pass(b"\x1dx\x1d".to_vec()));
        assert_eq!(escape.scan(b"c\x1d"), Keys::Pass(b"c".to_vec()));
        assert_eq!(escape.scan(b".rest"), Keys::Leave(b"".to_vec()));
        assert_eq!(escape.scan(b"d\x1dq"), Keys::Leave(b"d".to_vec()));
    }
}
