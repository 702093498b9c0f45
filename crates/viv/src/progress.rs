//! Progress on standard error: a line that changes on a terminal, plain lines elsewhere.
use crate::size;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use viv_api::operation::Progress;

/// Characters of the bar.
const BAR: usize = 24;
/// How often a changing line changes.
const FRAME: Duration = Duration::from_millis(100);
/// How often a line comes where none can change.
const SAY_EACH: Duration = Duration::from_secs(20);
/// What is over sooner needs no line.
const GRACE: Duration = Duration::from_millis(300);
/// Most characters of a step's name beside a bar.
const STEP_MAX: usize = 44;

/// Shows a long work.
pub(crate) struct Bar {
    on_terminal: bool,
    step: String,
    shown: bool,
    drawn_at: Option<Instant>,
}

impl Bar {
    pub(crate) fn new() -> Bar {
        Bar {
            on_terminal: std::io::stderr().is_terminal(),
            step: String::new(),
            shown: false,
            drawn_at: None,
        }
    }

    /// Shows where the work is.
    pub(crate) fn show(&mut self, progress: &Progress) {
        let new_step = self.step != progress.step;
        if new_step {
            self.step.clone_from(&progress.step);
        }
        if !self.on_terminal {
            if new_step {
                let _ = writeln!(std::io::stderr(), "viv: {}", progress.step);
            }
            return;
        }
        let due = self.drawn_at.is_none_or(|at| at.elapsed() >= FRAME);
        if new_step || due || progress.total == Some(progress.done) {
            self.drawn_at = Some(Instant::now());
            self.shown = true;
            let _ = write!(std::io::stderr(), "\r\x1b[K{}", line(progress));
        }
    }

    /// Shows a line of somebody else's words.
    pub(crate) fn say(&mut self, line: &str) {
        self.clear();
        let _ = writeln!(std::io::stderr(), "{line}");
    }

    /// Clears the line.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Where a work is, in a few words.
pub(crate) fn words(progress: &Progress) -> String {
    match progress.total {
        Some(total) if total > 0 => {
            let done = progress.done.min(total);
            format!("{}  {}%", progress.step, u128::from(done) * 100 / u128::from(total))
        }
        _ => progress.step.clone(),
    }
}

fn line(progress: &Progress) -> String {
    let step: String = progress.step.chars().take(STEP_MAX).collect();
    let unit = |number| if progress.bytes { size::bytes(number) } else { number.to_string() };
    match progress.total {
        Some(total) if total > 0 => {
            let done = progress.done.min(total);
            let full = (BAR as u64 * done / total) as usize;
            let bar = "=".repeat(full) + &" ".repeat(BAR - full);
            format!("{step:<STEP_MAX$} [{bar}] {:>3}%  {} / {}", 100 * done / total, unit(done), unit(total))
        }
        _ if progress.done > 0 => format!("{step}  {}", unit(progress.done)),
        _ => step,
    }
}

/// While something is waited for: a line with the time that passes on a terminal; elsewhere a line now and then, once it
/// takes long.
pub(crate) struct Waiting {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Waiting {
    pub(crate) fn new(text: String) -> Waiting {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let on_terminal = std::io::stderr().is_terminal();
        let thread = Some({
            thread::spawn(move || {
                let begin = Instant::now();
                if !on_terminal {
                    say_now_and_then(&text, begin, &stopped);
                    return;
                }
                thread::park_timeout(GRACE);
                while !stopped.load(Ordering::Relaxed) {
                    let _ =
                        write!(std::io::stderr(), "\r\x1b[K{text} {:.1} s", begin.elapsed().as_secs_f64());
                    thread::park_timeout(FRAME);
                }
                let _ = write!(std::io::stderr(), "\r\x1b[K");
            })
        });
        Waiting { stop, thread }
    }
}

fn say_now_and_then(text: &str, begin: Instant, stopped: &AtomicBool) {
    let mut next = begin + SAY_EACH;
    while !stopped.load(Ordering::Relaxed) {
        let now = Instant::now();
        if now >= next {
            let _ = writeln!(std::io::stderr(), "viv: {text}, for {} s now", (now - begin).as_secs());
            next += SAY_EACH;
        }
        thread::park_timeout(next.saturating_duration_since(now));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_fills_and_never_overflows() {
        let progress = |done, total| Progress { step: "downloading linux".into(), done, total, bytes: true };
        let half = line(&progress(5_000_000, Some(10_000_000)));
        assert!(half.contains("[============            ]  50%  5.0 MB / 10.0 MB"), "{half}");
        assert!(line(&progress(11, Some(10))).contains("100%"));
        assert_eq!(line(&progress(0, None)), "downloading linux");
        assert_eq!(line(&progress(7, Some(0))), "downloading linux  7 B");
    }
}
