//! One command and its client: bytes, signals and sizes one way, bytes and a status the other.
//!
//! One thread, one poll loop, nothing that blocks: a command that does not read and a client that does not
//! read stop each other only, and a signal gets through to either.
use crate::children;
use crate::command::{Prepared, Refusal, prepare};
use crate::sys::{self, Watch};
use crate::users::User;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Command, Stdio};
use viv_api::agent::{Decoder, Exec, Input, Message, Output, STATUS_NOT_EXECUTABLE, STATUS_NOT_FOUND};

/// Where programs are looked for if the client does not say.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What interactive shells of the default guest read.
const SHELL_FILE: &str = "/etc/viv/shell";
/// Bytes held for a command or a client that does not read, before the other side is no longer read.
const PENDING_MAX: usize = 256 * 1024;
/// How often what a command left in its pipes is looked for after its end: a pipe holds at most a mebibyte
/// (pipe(7)), and a child that lives on may fill it for ever.
const LOOKS_AFTER_END: u32 = 128;
/// Bytes of one read.
const PIECE_LEN: usize = 16 * 1024;

/// The environment of a new login.
pub(crate) fn default_env(user: &User) -> impl Iterator<Item = (String, String)> + use<> {
    // The default guest's prompt, for shells that are no login shells.
    let shell_file = Some(SHELL_FILE).filter(|path| std::path::Path::new(path).exists());
    [
        ("PATH", DEFAULT_PATH.to_string()),
        ("HOME", user.home.clone()),
        ("USER", user.name.clone()),
        ("LOGNAME", user.name.clone()),
        ("SHELL", user.shell.clone()),
    ]
    .into_iter()
    .chain(shell_file.map(|path| ("ENV", path.to_string())))
    .map(|(name, value)| (name.to_string(), value))
}

/// Runs `exec` for the client on `connection`, to the end of either.
pub(crate) fn run(mut connection: File, exec: &Exec) -> io::Result<()> {
    match Session::of(exec) {
        Ok(mut session) => session.serve(connection),
        Err(refusal) => connection.write_all(&refused(refusal)),
    }
}

/// What a client is told whose command cannot be run.
pub(crate) fn refused((status, message): Refusal) -> Vec<u8> {
    let mut out = Output::Error(message).to_bytes();
    Output::Exit(status).encode(&mut out);
    out
}

/// A source of output.
struct Source {
    file: File,
    wrap: fn(Vec<u8>) -> Output,
}

/// Frames for a client. One that comes after another gets the first of them whole.
#[derive(Default)]
struct Outbox {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    /// What of the first frame is sent.
    sent: usize,
}

impl Outbox {
    fn push(&mut self, output: &Output) {
        let frame = output.to_bytes();
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Writes what `client` takes.
    fn feed(&mut self, client: &mut File) -> io::Result<()> {
        while let Some(frame) = self.frames.front() {
            match client.write(frame.get(self.sent..).unwrap_or_default()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(length) => self.sent += length,
                Err(error) if is_later(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
            if self.sent >= frame.len() {
                self.bytes -= frame.len();
                self.sent = 0;
                self.frames.pop_front();
            }
        }
        Ok(())
    }
}

/// A command that runs.
pub(crate) struct Session {
    pid: i32,
    /// Counts status + 1 once the command has ended.
    ended: File,
    /// The terminal, if it has one.
    terminal: Option<OwnedFd>,
    /// Where standard input goes; `None` once it was closed.
    stdin: Option<File>,
    to_stdin: VecDeque<u8>,
    stdin_ends: bool,
    sources: Vec<Source>,
    to_client: Outbox,
    /// Its status, once it has ended.
    status: Option<u8>,
    /// That is the last frame for the client.
    is_told: bool,
}

impl Session {
    /// Starts a command.
    pub(crate) fn of(exec: &Exec) -> Result<Session, Refusal> {
        prepare(exec).and_then(|prepared| Session::start(&prepared, exec))
    }

    fn start(prepared: &Prepared, exec: &Exec) -> Result<Session, Refusal> {
        let refuse = |error: io::Error| -> Refusal {
            let status = match error.kind() {
                // The program is there: it is its interpreter that is not.
                io::ErrorKind::NotFound => STATUS_NOT_FOUND,
                _ => STATUS_NOT_EXECUTABLE,
            };
            (status, format!("{}: {error}", prepared.name))
        };
        Session::spawn(prepared, exec).map_err(refuse)
    }

    fn spawn(prepared: &Prepared, exec: &Exec) -> io::Result<Session> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&prepared.program);
        command.arg0(&prepared.name).args(&prepared.args).env_clear().envs(&prepared.env);
        sys::as_session(&mut command, exec.tty, prepared.user.identity(&prepared.cwd))?;
        let mut session = if exec.tty {
            let (ours, theirs) = sys::open_terminal(exec.rows, exec.cols)?;
            command.stdin(theirs.try_clone()?).stdout(theirs.try_clone()?).stderr(theirs);
            let (child, ended) = children::spawn(&mut command)?;
            let file = || ours.try_clone().map(File::from);
            Session {
                pid: child.id() as i32,
                ended,
                stdin: Some(file()?),
                sources: vec![Source { file: file()?, wrap: Output::Stdout }],
                terminal: Some(ours),
                to_stdin: VecDeque::new(),
                stdin_ends: false,
                to_client: Outbox::default(),
                status: None,
                is_told: false,
            }
        } else {
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let (mut child, ended) = children::spawn(&mut command)?;
            let mut sources = Vec::new();
            if let Some(stdout) = child.stdout.take() {
                sources.push(Source { file: File::from(OwnedFd::from(stdout)), wrap: Output::Stdout });
            }
            if let Some(stderr) = child.stderr.take() {
                sources.push(Source { file: File::from(OwnedFd::from(stderr)), wrap: Output::Stderr });
            }
            Session {
                pid: child.id() as i32,
                ended,
                stdin: child.stdin.take().map(|stdin| File::from(OwnedFd::from(stdin))),
                sources,
                terminal: None,
                to_stdin: VecDeque::new(),
                stdin_ends: false,
                to_client: Outbox::default(),
                status: None,
                is_told: false,
            }
        };
        for source in &mut session.sources {
            sys::set_nonblocking(source.file.as_fd())?;
        }
        if let Some(stdin) = &session.stdin {
            sys::set_nonblocking(stdin.as_fd())?;
        }
        Ok(session)
    }

    /// Pumps until the command has ended and the client has everything, or the client is gone.
    fn serve(&mut self, mut connection: File) -> io::Result<()> {
        let result = self.pump(&mut connection, None);
        if result.is_err() {
            // Nobody listens any more: the terminal hangs up.
            self.signal(libc::SIGHUP);
            self.signal(libc::SIGCONT);
        }
        result
    }

    /// The same, but whoever is gone has changed nothing, and the client is gone when `other` can be read, too.
    pub(crate) fn pump(&mut self, connection: &mut File, other: Option<&File>) -> io::Result<()> {
        sys::set_nonblocking(connection.as_fd())?;
        let mut decoder = Decoder::new();
        self.to_client.sent = 0;
        let mut looks_left = LOOKS_AFTER_END;
        loop {
            let room = self.to_client.bytes < PENDING_MAX && !self.is_told;
            let mut watches = vec![
                Watch {
                    fd: connection.as_raw_fd(),
                    read: self.to_stdin.len() < PENDING_MAX && !self.is_told,
                    write: !self.to_client.is_empty(),
                },
                Watch { fd: self.ended.as_raw_fd(), read: self.status.is_none(), write: false },
                Watch { fd: other.map_or(-1, AsRawFd::as_raw_fd), read: true, write: false },
                Watch {
                    fd: self.stdin.as_ref().map_or(-1, AsRawFd::as_raw_fd),
                    read: false,
                    write: !self.to_stdin.is_empty(),
                },
            ];
            watches.extend(self.sources.iter().map(|source| Watch {
                fd: source.file.as_raw_fd(),
                read: room,
                write: false,
            }));
            let ready = sys::poll(&watches, -1)?;
            let ready_at = |index: usize| ready.get(index).copied().unwrap_or_default();
            if ready_at(0) && !self.is_told {
                self.take_input(connection, &mut decoder)?;
            }
            self.feed_stdin();
            if ready_at(1) {
                self.status = children::status(&self.ended).or(self.status);
            }
            if ready_at(2) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if room {
                // After the end, whatever the command wrote is there already: what a child of it that lives on may
                // still write is not waited for.
                self.take_output();
            }
            self.to_client.feed(connection)?;
            if let Some(status) = self.status
                && room
                && (!self.take_output() || looks_left == 0)
            {
                self.to_client.push(&Output::Exit(status));
                self.is_told = true;
                self.to_client.feed(connection)?;
            }
            if self.is_told && self.to_client.is_empty() {
                return Ok(());
            }
            looks_left -= u32::from(self.status.is_some() && room).min(looks_left);
        }
    }

    /// Reads the client's frames. Its end is an error: nobody is left to serve.
    fn take_input(&mut self, connection: &mut File, decoder: &mut Decoder) -> io::Result<()> {
        let mut piece = [0; PIECE_LEN];
        match connection.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => decoder.push(piece.get(..length).unwrap_or_default()),
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(input) = decoder.next()? {
            match input {
                Input::Stdin(bytes) if bytes.is_empty() => self.stdin_ends = true,
                // Nobody reads it: as a closed pipe, without a word.
                Input::Stdin(_) if self.stdin.is_none() || self.stdin_ends => {}
                Input::Stdin(bytes) => self.to_stdin.extend(bytes),
                Input::Signal(number) => self.signal(i32::from(number)),
                Input::Resize { rows, cols } => {
                    if let Some(terminal) = &self.terminal {
                        let _ = sys::resize(terminal.as_fd(), rows, cols);
                    }
                }
            }
        }
        Ok(())
    }

    /// To the terminal's foreground, or to the command's process group.
    fn signal(&self, number: i32) {
        let group = self.terminal.as_ref().and_then(|terminal| sys::foreground(terminal.as_fd()));
        let _ = sys::kill(-group.unwrap_or(self.pid), number);
    }

    fn feed_stdin(&mut self) {
        let Some(stdin) = &mut self.stdin else { return };
        while !self.to_stdin.is_empty() {
            let (now, _) = self.to_stdin.as_slices();
            match stdin.write(now) {
                Ok(length) => drop(self.to_stdin.drain(..length)),
                Err(error) if is_later(&error) => return,
                Err(_) => {
                    self.to_stdin.clear();
                    self.stdin = None;
                    return;
                }
            }
        }
        if self.stdin_ends {
            if self.terminal.is_some() {
                // A terminal has no end; it has a character that means it (termios VEOF, ^D).
                let _ = stdin.write(&[4]);
            }
            self.stdin = None;
        }
    }

    /// Takes what the command wrote; whether there was anything.
    fn take_output(&mut self) -> bool {
        let mut any = false;
        let to_client = &mut self.to_client;
        self.sources.retain_mut(|source| {
            let mut piece = [0; PIECE_LEN];
            match source.file.read(&mut piece) {
                // The terminal's last user has closed it: EIO.
                Ok(0) => false,
                Ok(length) => {
                    any = true;
                    let bytes = piece.get(..length).unwrap_or_default().to_vec();
                    to_client.push(&(source.wrap)(bytes));
                    true
                }
                Err(error) => is_later(&error),
            }
        });
        any
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    /// A session over a socket pair, driven as a host would.
    struct Client {
        stream: UnixStream,
        decoder: Decoder,
    }

    fn start(exec: Exec) -> Client {
        std::thread::spawn(|| {
            loop {
                children::bury();
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        std::thread::spawn(move || run(File::from(OwnedFd::from(theirs)), &exec));
        Client { stream: ours, decoder: Decoder::new() }
    }

    impl Client {
        fn send(&mut self, input: Input) {
            self.stream.write_all(&input.to_bytes()).unwrap();
        }

        fn next(&mut self) -> Output {
            self.decoder.read(&mut self.stream).unwrap().expect("an exit before the end")
        }

        /// Standard output, standard error and status.
        fn finish(mut self) -> (String, String, u8) {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            loop {
                match self.next() {
                    Output::Stdout(bytes) => out.extend(bytes),
                    Output::Stderr(bytes) => err.extend(bytes),
                    Output::Error(text) => err.extend(text.bytes()),
                    Output::Exit(status) => {
                        let text = |bytes| String::from_utf8(bytes).unwrap();
                        return (text(out), text(err), status);
                    }
                }
            }
        }
    }

    /// `sh -c script` as whoever runs the tests.
    fn shell(script: &str) -> Exec {
        let mut exec = Exec::new(["sh", "-c", script]);
        exec.cwd = Some("/".into());
        let (uid, gid) = sys::who();
        exec.user = Some(format!("{uid}:{gid}"));
        exec
    }

    #[test]
    fn output_error_and_status_arrive() {
        let (out, err, status) = start(shell("echo one; echo two >&2; exit 7")).finish();
        assert_eq!((out.as_str(), err.as_str(), status), ("one\n", "two\n", 7));
    }

    #[test]
    fn input_ends_and_large_streams_pass_both_ways() {
        let mut client = start(shell("cat"));
        let mut writer = client.stream.try_clone().unwrap();
        let sent = "0123456789abcde\n".repeat(200_000);
        let bytes = Input::Stdin(sent.clone().into_bytes()).to_bytes();
        let feeder = std::thread::spawn(move || {
            writer.write_all(&bytes).unwrap();
            writer.write_all(&Input::Stdin(Vec::new()).to_bytes()).unwrap();
        });
        let mut received = Vec::new();
        let status = loop {
            match client.next() {
                Output::Stdout(bytes) => received.extend(bytes),
                Output::Exit(status) => break status,
                other => panic!("{other:?}"),
            }
        };
        feeder.join().unwrap();
        assert_eq!(status, 0);
        assert!(received == sent.as_bytes(), "{} of {} bytes", received.len(), sent.len());
    }

    #[test]
    fn a_signal_reaches_the_whole_group() {
        let mut client = start(shell("sleep 100 | cat; echo not reached"));
        std::thread::sleep(Duration::from_millis(200));
        client.send(Input::Signal(libc::SIGTERM as u8));
        let (out, _, status) = client.finish();
        assert_eq!((out.as_str(), status), ("", 128 + libc::SIGTERM as u8));
    }

    #[test]
    fn a_terminal_has_a_size_and_hears_control_characters() {
        // A shell may lose an interrupt in the moment in which it starts a program: whoever gets it here runs already,
        // for it has answered.
        let mut exec = shell("stty size; read line; stty size; tty; exec cat");
        exec.tty = true;
        (exec.rows, exec.cols) = (33, 111);
        let mut client = start(exec);
        let mut seen = String::new();
        let until = |client: &mut Client, seen: &mut String, what: &str| {
            while !seen.contains(what) {
                match client.next() {
                    Output::Stdout(bytes) => seen.push_str(&String::from_utf8_lossy(&bytes)),
                    other => panic!("{other:?} after {seen:?}"),
                }
            }
        };
        until(&mut client, &mut seen, "33 111");
        client.send(Input::Resize { rows: 5, cols: 7 });
        client.send(Input::Stdin(b"go\n".to_vec()));
        until(&mut client, &mut seen, "5 7");
        until(&mut client, &mut seen, "/dev/pts/");
        client.send(Input::Stdin(b"again\n".to_vec()));
        // Once from the terminal, once from the program.
        until(&mut client, &mut seen, "again\r\nagain\r\n");
        client.send(Input::Stdin(vec![3]));
        assert_eq!(client.finish().2, 128 + libc::SIGINT as u8);
    }

    #[test]
    fn a_child_that_lives_on_keeps_nobody_waiting() {
        let begun = Instant::now();
        let (out, _, status) = start(shell("sleep 30 & echo done")).finish();
        assert_eq!((out.as_str(), status), ("done\n", 0));
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_child_that_writes_for_ever_does_not_either() {
        let mut client = start(shell("yes & echo $! >&2; exit 3"));
        let (mut pid, mut seen) = (String::new(), 0);
        let status = loop {
            match client.next() {
                Output::Stdout(bytes) => seen += bytes.len(),
                Output::Stderr(bytes) => pid.push_str(&String::from_utf8_lossy(&bytes)),
                Output::Exit(status) => break status,
                other => panic!("{other:?}"),
            }
        };
        // Its pipe is closed by now, so it is gone or will be.
        let _ = sys::kill(pid.trim().parse().unwrap(), libc::SIGKILL);
        assert_eq!(status, 3);
        assert!(seen < 64 << 20, "{seen} bytes");
    }

    #[test]
    fn only_root_becomes_somebody_else() {
        let mut exec = shell("id -u; id -G");
        exec.user = Some("12345:54321".into());
        let (out, err, status) = start(exec).finish();
        match sys::who().0 {
            0 => assert_eq!((out.as_str(), status), ("12345\n54321\n", 0), "{err}"),
            _ => assert!(status != 0 && out.is_empty() && !err.is_empty(), "{out}{status}"),
        }
    }

    #[test]
    fn a_command_that_is_not_there_is_127_with_words() {
        let (_, err, status) = start(Exec::new(["no-such-command"])).finish();
        assert_eq!((err.as_str(), status), ("no-such-command: not found", 127));
    }

    #[test]
    fn a_client_that_leaves_hangs_the_command_up() {
        let mark = std::env::temp_dir().join(format!("viv-agent-hangup-{}", std::process::id()));
        let script = format!(
            "exec 2>/dev/null; trap 'echo > {}; exit' HUP; echo ready; while :; do sleep 0.1; done",
            mark.display()
        );
        let mut client = start(shell(&script));
        assert_eq!(client.next(), Output::Stdout(b"ready\n".to_vec()));
        drop(client);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !mark.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(std::fs::remove_file(&mark).is_ok(), "the command was not told");
    }
}
