//! Processes of this host, told from later ones with the same number.
use crate::vm::Process;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

/// How long it takes until a host that has no descriptor or memory left is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// How often it is asked again whose disk had an error: one that stays is no reason to wait for ever.
const ERRORS_MAX: u32 = 20;

/// Whether the host could not look at all, for now: whatever was asked for may be there.
fn is_short(error: &io::Error) -> bool {
    let errors = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    Errno::from_io_error(error).is_some_and(|error| errors.contains(&error))
}

/// Whether its disk had an error.
fn is_broken(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::IO)
}

/// What is in a file, if it is there and can be read. What cannot be looked at because the host has no descriptor or memory
/// for it is not therefore gone: that is waited for, however long it takes; and for a while that an error of the disk passes.
pub fn look(path: &Path) -> Option<Vec<u8>> {
    let mut errors = 0;
    loop {
        match fs::read(path) {
            Ok(bytes) => return Some(bytes),
            Err(error) if is_short(&error) => {}
            Err(error) if is_broken(&error) && errors < ERRORS_MAX => errors += 1,
            Err(_) => return None,
        }
        thread::sleep(ASK_AGAIN);
    }
}

impl Process {
    /// The process that calls; the error is that the host could not look.
    pub fn current() -> io::Result<Process> {
        Process::read(std::process::id())?.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The process that has the number `pid` now, unless it is gone or waits only to be collected.
    pub fn of(pid: u32) -> Option<Process> {
        Process::read(pid).ok().flatten()
    }

    /// The process that has written itself into this file, if it still runs; what is short for it is waited for ([`look`]).
    pub fn recorded(path: &Path) -> Option<Process> {
        let process: Process = serde_json::from_slice(&look(path)?).ok()?;
        process.is_alive().then_some(process)
    }

    /// Whether it still runs.
    pub fn is_alive(&self) -> bool {
        match Process::read(self.pid) {
            Ok(now) => now.as_ref() == Some(self),
            // Whether there is one with its number is told without a descriptor.
            Err(error) if is_short(&error) || is_broken(&error) => {
                let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
                pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
            }
            Err(_) => false,
        }
    }

    fn read(pid: u32) -> io::Result<Option<Process>> {
        let stat = fs::read(format!("/proc/{pid}/stat"))?;
        let of = |stat: &str| {
            // The second field is the program's name in parentheses, which may contain anything (proc(5)).
            let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
            let state = fields.next()?;
            let start_ticks = fields.nth(18)?.parse().ok()?;
            (!matches!(state, "Z" | "X")).then_some(Process { pid, start_ticks })
        };
        Ok(of(&String::from_utf8_lossy(&stat)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    #[test]
    fn a_process_is_alive_until_it_has_ended() {
        assert!(Process::current().unwrap().is_alive());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(process.is_alive());
        assert!(!Process { start_ticks: process.start_ticks + 1, ..process }.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!process.is_alive());
    }

    #[test]
    fn what_cannot_be_looked_at_is_not_gone() {
        // Of another process: the limit is for all of its threads.
        let name = "what_cannot_be_looked_at_is_not_gone";
        let Some(parent) = std::env::var_os("VIV_TEST_PARENT") else {
            let file = std::env::temp_dir().join(format!("viv-api-recorded-{}", std::process::id()));
            fs::write(&file, serde_json::to_vec(&Process::current().unwrap()).unwrap()).unwrap();
            let mut this = std::process::Command::new(std::env::current_exe().unwrap());
            this.args([name, "--nocapture"]).env("VIV_TEST_PARENT", &file);
            let output = this.output().unwrap();
            fs::remove_file(file).unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        };
        let path = Path::new(&parent);
        let parent = Process::recorded(path).unwrap();
        let limit = getrlimit(Resource::Nofile);
        let set = |current| setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limit });
        set(0).unwrap();
        assert!(fs::read(path).is_err() && parent.is_alive());
        assert!(!Process { pid: i32::MAX as u32, ..parent }.is_alive());
        let waiting = thread::scope(|scope| {
            let waiting = scope.spawn(|| Process::recorded(path));
            thread::sleep(ASK_AGAIN * 5);
            assert!(!waiting.is_finished());
            set(64).unwrap();
            waiting.join().unwrap()
        });
        assert_eq!(waiting, Some(parent));
        assert_eq!(look(Path::new("/nowhere")), None);
    }
}
