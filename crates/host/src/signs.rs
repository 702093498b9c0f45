//! Does a guest still boot? Its agent is waited for as long as it does.
//!
//! A guest that boots writes to its console or keeps its processors busy; one that has booted without an agent soon does
//! neither. Both are seen from outside, without asking the guest.
use crate::runners::Runner;
use std::fs;
use std::time::{Duration, Instant};
use viv_api::runner::CONSOLE_LOG;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// Of one processor's time: a booting guest uses more, an idle one a tenth of it.
const BUSY_PERCENT: u64 = 5;

/// What was seen of one guest at the last look.
#[derive(Default)]
pub(crate) struct Signs {
    last: Option<(Instant, Seen)>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Seen {
    console_bytes: u64,
    cpu_ms: u64,
}

impl Signs {
    /// Whether the guest of a process was busy since the last look. The first look sees nothing yet.
    pub(crate) fn look(&mut self, runner: &Runner) -> bool {
        let now = Instant::now();
        if self.last.is_some_and(|(at, _)| now - at < LOOK) {
            return false;
        }
        let seen = Seen {
            console_bytes: fs::metadata(runner.dir().join(CONSOLE_LOG)).map_or(0, |data| data.len()),
            cpu_ms: runner.process().and_then(|process| cpu_ms(process.pid)).unwrap_or(0),
        };
        let before = self.last.replace((now, seen));
        before.is_some_and(|(at, before)| is_busy(before, seen, now - at))
    }
}

fn is_busy(before: Seen, now: Seen, time: Duration) -> bool {
    let used = u128::from(now.cpu_ms.saturating_sub(before.cpu_ms));
    now.console_bytes != before.console_bytes || used * 100 >= time.as_millis() * u128::from(BUSY_PERCENT)
}

/// Processor time of a process (proc(5), `stat` fields 14 and 15).
fn cpu_ms(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ticks(&stat).map(|ticks| ticks * 1000 / rustix::param::clock_ticks_per_second().max(1))
}

fn ticks(stat: &str) -> Option<u64> {
    // The name before the last parenthesis may hold anything; field 3 follows it.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut field = || fields.next()?.parse::<u64>().ok();
    Some(field()? + field()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_or_work_are_signs_and_idling_is_none() {
        let seen = |console_bytes, cpu_ms| Seen { console_bytes, cpu_ms };
        let second = Duration::from_secs(1);
        assert!(is_busy(seen(10, 0), seen(11, 0), second));
        assert!(is_busy(seen(10, 100), seen(10, 150), second));
        assert!(!is_busy(seen(10, 100), seen(10, 110), second));
        // A log that was rotated is shorter.
        assert!(is_busy(seen(10, 0), seen(2, 0), second));
    }

    #[test]
    fn processor_time_is_read_behind_any_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 0 0 0 120 30 0 0 20 0 4 0 99 1 1";
        assert_eq!(ticks(stat), Some(150));
        assert_eq!(ticks("nonsense"), None);
        assert!(cpu_ms(std::process::id()).is_some());
    }
}
