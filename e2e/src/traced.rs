//! Processes whose system calls are counted; at one of them something happens to them.
use crate::{Home, until};
use nix::libc;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeSet, HashMap};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

/// To whom it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// The process itself.
    Itself,
    /// Each process that it starts, and not itself.
    Started,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// It is killed at this entry or exit of a system call, from 1.
    Kill(u64),
    /// System calls with these numbers fail: this one of them, from 1, or that and all that follow.
    Fail {
        /// Their numbers.
        calls: &'static [i64],
        /// With what.
        errno: i32,
        /// Which of them.
        at: u64,
        /// Whether those behind it do, too.
        on: bool,
    },
}

/// What is only counted.
pub const NOTHING: What = What::Kill(u64::MAX);

/// A process whose system calls are counted.
pub struct Traced {
    pid: Pid,
    seen: Arc<Seen>,
    tracer: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    counted: AtomicU64,
    armed: AtomicBool,
    ended: AtomicBool,
}

impl Traced {
    /// Starts a service to which, or to whose VMs' processes, this happens: so many system calls after it is armed.
    pub fn service(home: &Home, whom: Whom, what: What) -> Traced {
        let mut command = home.viv(&["serve"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let traced = Traced::new(whom, what, move || started(&mut command, whom));
        let socket = home.path("run/viv.sock");
        until("the service", Duration::from_secs(60), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        assert_eq!(home.ask("GET /v1/info", "", "").status, 200);
        traced.arm();
        traced
    }

    /// Takes a process that runs already. Who traces must have the right to.
    pub fn running(pid: u32, what: What) -> Traced {
        let pid = Pid::from_raw(pid.cast_signed());
        let traced = Traced::new(Whom::Itself, what, move || seized(pid));
        traced.arm();
        traced
    }

    fn new(whom: Whom, what: What, begin: impl FnOnce() -> Pid + Send + 'static) -> Traced {
        let seen = Arc::new(Seen::default());
        let (sender, receiver) = channel();
        let told = seen.clone();
        // Whoever seizes a process is the one who is told of it.
        let tracer = std::thread::spawn(move || {
            let pid = begin();
            sender.send(pid).unwrap();
            Tracer { pid, whom, what, seen: &told, failing: HashMap::new(), owners: HashMap::new() }.trace();
        });
        Traced { pid: receiver.recv().expect("the process can be traced"), seen, tracer }
    }

    fn arm(&self) {
        self.seen.armed.store(true, Ordering::SeqCst);
    }

    /// How much was counted so far.
    pub fn counted(&self) -> u64 {
        self.seen.counted.load(Ordering::SeqCst)
    }

    /// Kills it, if it has not ended; gives how many entries and exits of system calls were counted, or how many of those that fail.
    pub fn end(self) -> u64 {
        self.seen.armed.store(false, Ordering::SeqCst);
        let _ = kill(self.pid, Signal::SIGKILL);
        self.tracer.join().unwrap();
        self.seen.counted.load(Ordering::SeqCst)
    }

    /// The same, but it goes on.
    pub fn leave(self) -> u64 {
        self.seen.armed.store(false, Ordering::SeqCst);
        self.seen.ended.store(true, Ordering::SeqCst);
        while !self.tracer.is_finished() {
            // Something that the tracer is told of, and the process is not.
            let _ = kill(self.pid, Signal::SIGWINCH);
            std::thread::sleep(Duration::from_millis(5));
        }
        self.tracer.join().unwrap();
        self.seen.counted.load(Ordering::SeqCst)
    }
}

fn started(command: &mut Command, whom: Whom) -> Pid {
    let pid = Pid::from_raw(command.spawn().unwrap().id().cast_signed());
    let options = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD;
    let further = match whom {
        Whom::Itself => Options::PTRACE_O_EXITKILL,
        Whom::Started => Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK,
    };
    ptrace::seize(pid, options | further).unwrap();
    ptrace::interrupt(pid).unwrap();
    pid
}

/// All threads of a process that runs.
fn seized(pid: Pid) -> Pid {
    let options = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD;
    let mut known = BTreeSet::new();
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let threads: Vec<i32> = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect();
        let before = known.len();
        for thread in threads {
            if known.insert(thread) && ptrace::seize(Pid::from_raw(thread), options).is_ok() {
                ptrace::interrupt(Pid::from_raw(thread)).unwrap();
            }
        }
        if known.len() == before {
            return pid;
        }
    }
}

struct Tracer<'a> {
    pid: Pid,
    whom: Whom,
    what: What,
    seen: &'a Seen,
    /// Threads that are in a call that fails.
    failing: HashMap<Pid, i32>,
    /// The processes of threads.
    owners: HashMap<Pid, Pid>,
}

impl Tracer<'_> {
    /// Lets processes and their threads go on from stop to stop until the first has ended.
    fn trace(&mut self) {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            // A thread that is gone cannot go on: its end is told next.
            let (thread, signal) = match waitpid(Pid::from_raw(-1), Some(flags)) {
                Ok(WaitStatus::PtraceSyscall(thread)) => {
                    self.call(thread);
                    (thread, None)
                }
                Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
                Ok(WaitStatus::Stopped(_, Signal::SIGWINCH)) if self.seen.ended.load(Ordering::SeqCst) => {
                    return;
                }
                Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
                Ok(WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..)) if ended == self.pid => {
                    return;
                }
                Ok(_) => continue,
                Err(error) => panic!("{error}"),
            };
            let _ = ptrace::syscall(thread, signal);
        }
    }

    /// The process of a thread.
    fn owner(&mut self, thread: Pid) -> Pid {
        *self.owners.entry(thread).or_insert_with(|| {
            let status = std::fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
            Pid::from_raw(line.and_then(|line| line.trim().parse().ok()).unwrap_or(thread.as_raw()))
        })
    }

    /// At the entry or the exit of a call.
    fn call(&mut self, thread: Pid) {
        let owner = if self.whom == Whom::Itself { self.pid } else { self.owner(thread) };
        if let Some(errno) = self.failing.remove(&thread) {
            if let Ok(mut registers) = ptrace::getregs(thread) {
                registers.rax = i64::from(-errno).cast_unsigned();
                let _ = ptrace::setregs(thread, registers);
            }
            return;
        }
        if !self.seen.armed.load(Ordering::SeqCst) || (self.whom == Whom::Started && owner == self.pid) {
            return;
        }
        match self.what {
            What::Kill(last) => {
                if self.seen.counted.fetch_add(1, Ordering::SeqCst) + 1 == last {
                    let _ = kill(owner, Signal::SIGKILL);
                }
            }
            What::Fail { calls, errno, at, on } => {
                let Ok(mut registers) = ptrace::getregs(thread) else { return };
                // What is in there at the entry (arch/x86/entry/entry_64.S).
                let is_entry = registers.rax == i64::from(-libc::ENOSYS).cast_unsigned();
                if !is_entry
                    || !calls.contains(&registers.orig_rax.cast_signed())
                    || !is_file(owner, &registers)
                {
                    return;
                }
                let number = self.seen.counted.fetch_add(1, Ordering::SeqCst) + 1;
                if number == at || (on && number > at) {
                    // None is called so.
                    registers.orig_rax = u64::MAX;
                    if ptrace::setregs(thread, registers).is_ok() {
                        self.failing.insert(thread, errno);
                    }
                }
            }
        }
    }
}

/// Whether a call is about files, if it can be about something else: what wakes threads, tells of events or gives plain memory does not
/// fail on any host that goes on.
fn is_file(pid: Pid, registers: &libc::user_regs_struct) -> bool {
    let descriptor = match registers.orig_rax.cast_signed() {
        libc::SYS_write | libc::SYS_pwrite64 => registers.rdi,
        libc::SYS_mmap => registers.r8,
        _ => return true,
    };
    let descriptor = descriptor as i32;
    let leads_to = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
    // So do files without a name: `/memfd:…`.
    leads_to.is_ok_and(|path| path.is_absolute())
}
