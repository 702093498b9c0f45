//! The process of a VM, seen from outside: started, asked, waited for, found again.
use crate::control_groups::Group;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};
use viv_api::process::look;
use viv_api::runner::{
    Ask, CONSOLE_LOG, CONTROL, END, LINE_MAX, LOCK, Probe, RESUME, RUNNER_LOG, Reply, RunnerSpec, SPEC,
    STATS, SnapshotAsk, Started, Status,
};
use viv_api::stats::VmStats;
use viv_api::timestamp::Timestamp;
use viv_api::vm::Process;
use viv_api::{passed, socket};
use viv_block::Source;
use viv_model::{DiskSpec, End, Fault, Kind, NicSpec, SavedParts, ShareSpec};
use viv_snapshot::MANIFEST;

/// How long a runner may take to answer a question.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take to say how it is: more is hanging.
const STATUS_LIMIT: Duration = Duration::from_secs(3);
/// How long it may take to end by itself when it is forgotten by force.
const FORCE_LIMIT: Duration = Duration::from_millis(400);
/// How long it may take until its guest knows who and when it is.
const SETTLE_LIMIT: Duration = Duration::from_secs(40);
/// How long it may take to write its memory and disks, and how often is looked how far it is.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(3600);
const SNAPSHOT_LOOK: Duration = Duration::from_millis(100);
/// How long it may take to end once it was killed.
const KILL_LIMIT: Duration = Duration::from_secs(8);
/// How often a host without a descriptor is asked again.
const LOOK: Duration = Duration::from_millis(10);
/// Lines of console or log that a message shows.
const LAST_WORDS_LINES: usize = 12;
/// Lines that it shows from before a kernel's panic.
const LAST_WORDS_BEFORE: usize = 4;
/// Bytes from the end of a log that are looked at for them.
const LAST_WORDS_BYTES: u64 = 16 << 10;
/// Bytes of stack for each thread of a VM's process. With 2 MiB, the usual size, Linux may back a whole stack by one large page.
const THREAD_STACK: &str = "1048576";

/// The command that is this program.
pub(crate) fn this_program() -> Command {
    // Not its path: that may be a newer version's by now.
    in_root(Command::new("/proc/self/exe"))
}

/// A command that holds no directory and no input.
pub(crate) fn in_root(mut command: Command) -> Command {
    command.current_dir("/").stdin(Stdio::null());
    command
}

/// What a process says in the one line of its standard output; one that does not is killed, and the error is how it ended.
pub(crate) fn first_word<T: DeserializeOwned>(child: &mut Child, line_max: usize) -> Result<T, String> {
    let mut line = Vec::new();
    if let Some(output) = child.stdout.take() {
        let _ = BufReader::new(output).take(line_max as u64).read_until(b'\n', &mut line);
    }
    serde_json::from_slice(&line).map_err(|_| {
        let _ = child.kill();
        child.wait().map(|status| status.to_string()).unwrap_or_default()
    })
}

/// A standard input over which these ports come: once, then its end.
fn over_input(ports: &[OwnedFd]) -> io::Result<Stdio> {
    if ports.is_empty() {
        return Ok(Stdio::null());
    }
    let (ours, theirs) = UnixStream::pair()?;
    let ports: Vec<BorrowedFd<'_>> = ports.iter().map(OwnedFd::as_fd).collect();
    passed::send(&ours, b"\n", &ports)?;
    Ok(OwnedFd::from(theirs).into())
}

/// The runner of one VM, by the VM's directory.
#[derive(Clone, Debug)]
pub(crate) struct Runner {
    dir: PathBuf,
}

impl Runner {
    pub(crate) fn new(dir: impl Into<PathBuf>) -> Runner {
        Runner { dir: dir.into() }
    }

    /// Its process, if it lives; it may have to be waited for until the host can look.
    pub(crate) fn process(&self) -> Option<Process> {
        Process::recorded(&self.dir.join(LOCK))
    }

    /// What one of these finds out, for who must not wait himself until the host can look.
    pub(crate) async fn beside<T: Send + 'static>(&self, find: fn(&Runner) -> Option<T>) -> Option<T> {
        let runner = self.clone();
        tokio::task::spawn_blocking(move || find(&runner)).await.ok()?
    }

    /// How the VM ended the last time, and when.
    pub(crate) fn end(&self) -> Option<(End, Timestamp)> {
        let path = self.dir.join(END);
        let end = serde_json::from_slice(&look(&path)?).ok()?;
        let when = fs::metadata(&path).and_then(|data| data.modified()).ok()?;
        let unix_s = when.duration_since(UNIX_EPOCH).ok()?.as_secs();
        Some((end, Timestamp { unix_s }))
    }

    /// What the VM had used and done when it last ended.
    pub(crate) fn last_stats(&self) -> Option<VmStats> {
        serde_json::from_slice(&fs::read(self.dir.join(STATS)).ok()?).ok()
    }

    /// Writes down an end that the process could not write itself.
    pub(crate) fn set_end(&self, end: &End) {
        if let Err(error) = crate::store::write_whole(&self.dir.join(END), end) {
            viv_api::complain!("viv serve: cannot write the end of {}: {error}", self.dir.display());
        }
    }

    /// Starts the process, with the ports of its network cards that are plugged into something and in its group if it has one, and
    /// waits until the VM runs.
    pub(crate) fn start(
        &self,
        spec: &RunnerSpec,
        ports: &[OwnedFd],
        group: Option<&Group>,
    ) -> Result<Status, Fault> {
        let broken = |what: &'static str| {
            move |error: io::Error| {
                Fault::new(
                    Kind::Error,
                    format!("cannot {what} of VM {:?}: {error}", spec.name),
                    "see that there is memory and disk space for it: viv info",
                )
            }
        };
        // Read at once, and written anew for each start: it need not outlive the host.
        let spec_text = serde_json::to_vec_pretty(spec).unwrap_or_default();
        std::fs::write(self.dir.join(SPEC), spec_text).map_err(broken("write the description"))?;
        let log = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(self.dir.join(RUNNER_LOG))
            .map_err(broken("open the log"))?;
        let mut command = match &spec.program {
            None => this_program(),
            Some(program) => crate::programs::executable(program.spec.kind)?,
        };
        let mut child = command
            .args(spec.program.is_none().then_some("runner"))
            .arg(&self.dir)
            .env("RUST_MIN_STACK", THREAD_STACK)
            .stdin(over_input(ports).map_err(broken("make the network cards"))?)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(broken("start the process"))?;
        if let Some(Err(error)) = group.map(|group| group.take(child.id())) {
            let _ = child.kill().and_then(|()| child.wait());
            return Err(broken("weigh the process")(error));
        }
        match first_word(&mut child, LINE_MAX) {
            Ok(Started::Running(status)) => Ok(status),
            Ok(Started::Refused(fault)) => {
                let _ = child.wait();
                Err(fault)
            }
            Err(how) => {
                let words = last_lines(&self.dir.join(RUNNER_LOG));
                Err(Fault::new(
                    Kind::Error,
                    format!("the process of VM {:?} broke off while it started ({how}){words}", spec.name),
                    "this is a defect of ours: please report it with these lines",
                ))
            }
        }
    }

    /// Asks the process.
    pub(crate) fn ask(&self, ask: &Ask) -> Result<Status, Fault> {
        self.ask_with(ask, &[])
    }

    /// How it is, unless it hangs.
    pub(crate) fn status(&self) -> Result<Status, Fault> {
        self.ask_within(&Ask::Status, &[], STATUS_LIMIT)
    }

    fn ask_with(&self, ask: &Ask, files: &[File]) -> Result<Status, Fault> {
        self.ask_within(ask, files, ANSWER_LIMIT)
    }

    fn ask_within(&self, ask: &Ask, files: &[File], limit: Duration) -> Result<Status, Fault> {
        match self.exchange(ask, files, limit).map_err(no_answer)? {
            Reply::Ok(status) => Ok(status),
            Reply::Stats(_) | Reply::Saved(_) => Err(no_answer(io::ErrorKind::InvalidData.into())),
            Reply::Refused(fault) => Err(fault),
        }
    }

    /// What the VM has used and done so far.
    pub(crate) fn stats(&self) -> Result<VmStats, Fault> {
        match self.exchange(&Ask::Stats, &[], ANSWER_LIMIT).map_err(no_answer)? {
            Reply::Stats(stats) => Ok(*stats),
            Reply::Ok(_) | Reply::Saved(_) => Err(no_answer(io::ErrorKind::InvalidData.into())),
            Reply::Refused(fault) => Err(fault),
        }
    }

    /// Has it attach a disk, whose files we open for it: its sandbox opens none that it was not started with.
    pub(crate) fn attach_disk(&self, disk: &DiskSpec) -> Result<Status, Fault> {
        let paths = viv_block::files(&Source::of(disk))?;
        let mut files = Vec::new();
        for (depth, path) in paths.iter().enumerate() {
            let write = depth == 0 && !disk.read_only;
            let file = OpenOptions::new().read(true).write(write).open(path).map_err(|error| {
                let text = format!("cannot open {}: {error}", path.display());
                let fix = "see that you may read it, and write it unless it is attached with ,ro";
                Fault::new(Kind::Denied, text, fix)
            })?;
            files.push(file);
        }
        self.ask_with(&Ask::AttachDisk { disk: disk.clone(), files: paths }, &files)
    }

    /// Has its guest use a shared directory, whose server is behind `control`; if `mount`, its agent mounts it at each boot.
    pub(crate) fn attach_share(&self, share: &ShareSpec, mount: bool, control: OwnedFd) -> Result<(), Fault> {
        let ask = Ask::AttachShare { share: share.clone(), mount };
        self.ask_with(&ask, &[File::from(control)]).map(drop)
    }

    /// Has its guest let a shared directory go.
    pub(crate) fn detach_share(&self, tag: &str) -> Result<(), Fault> {
        self.ask(&Ask::DetachShare { tag: tag.to_string() }).map(drop)
    }

    /// Gives its guest a network card that is plugged into this port.
    pub(crate) fn attach_card(&self, nic: &NicSpec, port: Option<OwnedFd>) -> Result<(), Fault> {
        let port: Vec<File> = port.into_iter().map(File::from).collect();
        self.ask_with(&Ask::AttachCard { nic: nic.clone() }, &port).map(drop)
    }

    /// Its status, once its guest knows who and when it is.
    pub(crate) fn settled(&self) -> Result<Status, Fault> {
        match self.exchange(&Ask::Settled, &[], SETTLE_LIMIT).map_err(no_answer)? {
            Reply::Ok(status) => Ok(status),
            Reply::Stats(_) | Reply::Saved(_) => Err(no_answer(io::ErrorKind::InvalidData.into())),
            Reply::Refused(fault) => Err(fault),
        }
    }

    /// Has it save itself into these files, for as long as `go_on`, which is asked again and again, finds nothing against it.
    pub(crate) fn snapshot(
        &self,
        ask: &SnapshotAsk,
        files: &[File],
        mut go_on: impl FnMut() -> Result<(), Fault>,
    ) -> Result<SavedParts, Fault> {
        let socket = self.send(&Ask::Snapshot(ask.clone()), files).map_err(no_answer)?;
        let each = Timespec { tv_sec: 0, tv_nsec: SNAPSHOT_LOOK.subsec_nanos().into() };
        let begin = Instant::now();
        loop {
            match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&each)) {
                Ok(1..) => break,
                Ok(_) => {}
                // Nothing of that is the VM's fault.
                Err(_) => thread::sleep(SNAPSHOT_LOOK),
            }
            // It has it given up that the socket is closed.
            go_on()?;
            if begin.elapsed() > SNAPSHOT_LIMIT {
                return Err(no_answer(io::ErrorKind::TimedOut.into()));
            }
        }
        match answer(socket, ANSWER_LIMIT).map_err(no_answer)? {
            Reply::Saved(parts) => Ok(*parts),
            Reply::Ok(_) | Reply::Stats(_) => Err(no_answer(io::ErrorKind::InvalidData.into())),
            Reply::Refused(fault) => Err(fault),
        }
    }

    /// Has it write down what its processor has made of the guest's code, which only saves time. Whether there is some that
    /// is not in an earlier file.
    pub(crate) fn translated(&self, file: &File, known: Option<File>) -> io::Result<bool> {
        let files: Vec<File> = [file.try_clone()?].into_iter().chain(known).collect();
        let answer = self.exchange(&Ask::Translated, &files, ANSWER_LIMIT)?;
        Ok(matches!(answer, Reply::Ok(_)) && file.metadata()?.len() > 0)
    }

    /// Has it write down what of its snapshot's memory the guest has reached, which only saves time. Whether there is some.
    pub(crate) fn reached(&self, file: &File) -> io::Result<bool> {
        let answer = self.exchange(&Ask::Reached, &[file.try_clone()?], ANSWER_LIMIT)?;
        Ok(matches!(answer, Reply::Ok(_)) && file.metadata()?.len() > 0)
    }

    /// Has the network card with this number plugged into this port, or into none.
    pub(crate) fn plug(&self, id: u8, port: Option<OwnedFd>) -> Result<(), Fault> {
        let port: Vec<File> = port.into_iter().map(File::from).collect();
        self.ask_with(&Ask::Plug { id }, &port).map(drop)
    }

    /// One request and its answer; files go along (SCM_RIGHTS, unix(7)).
    fn exchange(&self, ask: &Ask, files: &[File], limit: Duration) -> io::Result<Reply> {
        answer(self.send(ask, files)?, limit)
    }

    /// One request, with its files; its answer comes over the socket.
    fn send(&self, ask: &Ask, files: &[File]) -> io::Result<UnixStream> {
        let socket = socket::connect(&self.dir.join(CONTROL))?;
        let mut line = serde_json::to_vec(ask)?;
        line.push(b'\n');
        let files: Vec<BorrowedFd<'_>> = files.iter().map(File::as_fd).collect();
        passed::send(&socket, &line, &files)?;
        Ok(socket)
    }

    /// Waits for the process to end; without a limit for ever. Whether it has ended.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> bool {
        let Some(process) = self.process() else { return true };
        let Some(descriptor) = descriptor_in_time(&process) else { return true };
        let limit = limit.map(|limit| Timespec {
            tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        match poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], limit.as_ref()) {
            Ok(0) => false,
            Ok(_) => {
                collect(&process);
                true
            }
            Err(_) => !process.is_alive(),
        }
    }

    /// Ends the VM now, by its own process or without its help.
    pub(crate) fn kill(&self, end: Option<End>) {
        self.kill_within(end, ANSWER_LIMIT, KILL_LIMIT);
    }

    /// The same for one that is forgotten, whose process need not be waited for long.
    pub(crate) fn kill_by_force(&self) {
        self.kill_within(None, FORCE_LIMIT, FORCE_LIMIT);
    }

    fn kill_within(&self, end: Option<End>, answer: Duration, limit: Duration) {
        let Some(process) = self.process() else { return };
        let asked = self.ask_within(&Ask::Kill { end: end.clone() }, &[], answer).is_ok();
        if asked && self.wait(Some(limit)) {
            return;
        }
        if let Some(descriptor) = descriptor_in_time(&process) {
            let _ = pidfd_send_signal(&descriptor, Signal::KILL);
        }
        if self.wait(Some(KILL_LIMIT)) && self.end().is_none() {
            self.set_end(&end.unwrap_or(End::Killed));
        }
    }

    /// The last lines of the console, for a message; what the process itself said if there are none.
    pub(crate) fn last_words(&self) -> String {
        let words = last_lines(&self.dir.join(CONSOLE_LOG));
        if words.is_empty() { last_lines(&self.dir.join(RUNNER_LOG)) } else { words }
    }

    /// What the process said when it ended without a word on how the VM ended.
    pub(crate) fn own_words(&self) -> String {
        last_lines(&self.dir.join(RUNNER_LOG))
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether it goes on from a snapshot when it starts next.
    pub(crate) fn resumes(&self) -> bool {
        self.dir.join(RESUME).join(MANIFEST).exists()
    }
}

/// What comes over a socket by which something was asked.
fn answer(socket: UnixStream, limit: Duration) -> io::Result<Reply> {
    socket.set_read_timeout(Some(limit))?;
    let mut answer = Vec::new();
    BufReader::new(socket).take(LINE_MAX as u64).read_until(b'\n', &mut answer)?;
    Ok(serde_json::from_slice(&answer)?)
}

fn no_answer(error: io::Error) -> Fault {
    Fault::new(
        Kind::Error,
        format!("the VM's process does not answer: {error}"),
        "try again in a moment, or end it: viv kill",
    )
}

/// A descriptor that becomes readable when the process ends.
pub(crate) fn descriptor_of(process: &Process) -> io::Result<OwnedFd> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let descriptor = pidfd_open(pid, PidfdFlags::empty())?;
    if process.is_alive() { Ok(descriptor) } else { Err(gone()) }
}

/// The same, once the host has one for it; none if the process has ended.
fn descriptor_in_time(process: &Process) -> Option<OwnedFd> {
    loop {
        match descriptor_of(process) {
            Ok(descriptor) => return Some(descriptor),
            Err(_) if process.is_alive() => thread::sleep(LOOK),
            Err(_) => return None,
        }
    }
}

/// Collects an ended process, if it was our child.
pub(crate) fn collect(process: &Process) {
    let pid = i32::try_from(process.pid).ok().and_then(Pid::from_raw);
    let _ = rustix::process::waitpid(pid, rustix::process::WaitOptions::NOHANG);
}

/// The last lines of a log, each on an indented line of its own, control characters left out.
fn last_lines(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LAST_WORDS_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text: String = String::from_utf8_lossy(&bytes)
        .chars()
        .filter(|c| *c == '\n' || *c == '\t' || !c.is_control())
        .collect();
    let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    // A kernel says first why it panics, and then where.
    let panic = lines
        .iter()
        .rposition(|line| line.contains("Kernel panic - not syncing") && !line.contains("end Kernel"));
    let start = match panic {
        Some(panic) => panic.saturating_sub(LAST_WORDS_BEFORE),
        None => lines.len().saturating_sub(LAST_WORDS_LINES),
    };
    let words = lines.get(start..).unwrap_or_default().iter().take(LAST_WORDS_LINES);
    words.map(|line| format!("\n    {line}")).collect()
}

/// Has KVM probed in a process of its own: this one links no machine code.
pub(crate) fn probe() -> io::Result<Probe> {
    let output = this_program().args(["runner", "--probe"]).stderr(Stdio::null()).output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_few_and_plain() {
        let path = std::env::temp_dir().join(format!("viv-words-{}", std::process::id()));
        let long: String = (0..2000).map(|number| format!("line {number}\r\n\r\n")).collect();
        fs::write(&path, long + "\x1b[31mlast\x07").unwrap();
        let words = last_lines(&path);
        assert_eq!(words.lines().count(), 1 + LAST_WORDS_LINES);
        assert!(words.contains("\n    line 1999") && words.ends_with("\n    [31mlast"), "{words}");
        fs::remove_file(&path).unwrap();
        assert_eq!(last_lines(&path), "");
    }
}
