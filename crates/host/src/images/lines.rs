//! What the console of a builder VM says, line by line: passed on, counted, and the last of it kept for who asks why it failed.
use super::Watcher;
use std::collections::VecDeque;
use viv_api::operation::Progress;
use viv_model::{Fault, Kind};

/// Bytes of a line that are kept: the guest decides how much it says.
const LINE_LEN_MAX: usize = 1000;
/// Lines that are kept, and those that a fault has.
const KEPT: usize = 20;

/// Reads a console.
pub(super) struct Lines<'a> {
    watcher: &'a dyn Watcher,
    /// What is done while packages are configured, how many there are, and how many were.
    step: String,
    total: u64,
    done: u64,
    line: Vec<u8>,
    last: VecDeque<String>,
    /// The command of the user's that runs, counted from 1.
    command: Option<usize>,
}

impl<'a> Lines<'a> {
    /// In a line of ours: a command's number follows, or nothing when all have run.
    pub(super) const MARK: &'static str = "viv-build: command";

    pub(super) fn new(watcher: &'a dyn Watcher) -> Lines<'a> {
        Lines {
            watcher,
            step: String::new(),
            total: 0,
            done: 0,
            line: Vec::new(),
            last: VecDeque::new(),
            command: None,
        }
    }

    /// Tells how many of `total` packages were configured.
    pub(super) fn counting(mut self, step: &str, total: u64) -> Lines<'a> {
        (self.step, self.total) = (step.to_string(), total);
        self.report();
        self
    }

    /// The command of the user's that ran last.
    pub(super) fn command(&self) -> Option<usize> {
        self.command
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.end(),
                byte if self.line.len() < LINE_LEN_MAX => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn end(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim_end().replace(char::is_control, "");
        self.line.clear();
        // What ran before it may not have ended its line.
        if let Some((rest, number)) = line.rsplit_once(Lines::MARK) {
            if self.command.is_some() && !rest.is_empty() {
                self.watcher.said(rest);
            }
            self.command = number.trim().parse().ok().filter(|number| *number > 0);
            self.last.clear();
            return;
        }
        // dpkg's words for each package that it configures.
        if self.command.is_none() && line.starts_with("Setting up ") && self.done < self.total {
            self.done += 1;
            self.report();
        }
        if self.command.is_some() {
            self.watcher.said(&line);
        }
        if !line.is_empty() {
            self.last.push_back(line);
            if self.last.len() > KEPT {
                self.last.pop_front();
            }
        }
    }

    fn report(&self) {
        if self.total > 0 {
            let progress =
                Progress { step: self.step.clone(), done: self.done, total: Some(self.total), bytes: false };
            self.watcher.progress(progress);
        }
    }

    /// That something went wrong, with what was said last.
    pub(super) fn fault(&self, what: &str) -> Fault {
        let mut last: Vec<String> = self.last.iter().cloned().collect();
        let rest = String::from_utf8_lossy(&self.line).trim_end().replace(char::is_control, "");
        last.extend(Some(rest).filter(|rest| !rest.is_empty()));
        let words = match last.is_empty() {
            true => " without a word".to_string(),
            false => format!("; it said last:\n  {}", last.join("\n  ")),
        };
        Fault::new(
            Kind::Error,
            format!("{what}{words}"),
            "mend that, and build again; nothing half-built is kept",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Heard(Mutex<Vec<String>>, Mutex<u64>);

    impl Watcher for Heard {
        fn progress(&self, progress: Progress) {
            *self.1.lock().unwrap() = progress.done;
        }
        fn said(&self, line: &str) {
            self.0.lock().unwrap().push(line.to_string());
        }
    }

    #[test]
    fn a_console_is_read_in_any_pieces_and_bounded() {
        let heard = Heard::default();
        let mut lines = Lines::new(&heard).counting("configuring", 2);
        for piece in [&b"Setting up a (1)"[..], b" ...\r\nSett", b"ing up b\r\nSetting up c\r\n"] {
            lines.take(piece);
        }
        assert_eq!((*heard.1.lock().unwrap(), lines.command()), (2, None));
        lines.take(b"viv-build: command 1\r\nfirst\r\n\x1b[31mred\r\nviv-build: command 2\nsecond\nno end");
        assert_eq!(*heard.0.lock().unwrap(), ["first", "[31mred", "second"]);
        assert_eq!(lines.command(), Some(2));
        let fault = lines.fault("it failed");
        assert!(fault.message.ends_with("it failed; it said last:\n  second\n  no end"), "{fault:?}");
        lines.take(&vec![b'x'; 100_000]);
        assert!(lines.line.len() <= LINE_LEN_MAX);
        for _ in 0..1000 {
            lines.take(b"again\n");
        }
        assert!(lines.last.len() <= KEPT);
        lines.take(b"no lineviv-build: command\nquiet\n");
        assert_eq!((lines.command(), heard.0.lock().unwrap().last().unwrap().as_str()), (None, "no line"));
        assert!(Lines::new(&heard).fault("x").message.ends_with("without a word"));
    }
}
