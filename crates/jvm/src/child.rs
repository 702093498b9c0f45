//! A Java program as a child process.
use crate::forward;
use crate::hotspot::Hotspot;
use crate::own_network;
use crate::together;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use viv_api::agent::Output;
use viv_api::stats::ProgramStats;
use viv_cell::OtherProcess;
use viv_cell::sandbox::Files;
use viv_java::Program;
use viv_model::{End, Fault, GuestKind, Kind};
use viv_net::switch::Listeners;
use viv_process::{Channel, Confinement, Engine, Gate, Instance, Prepared, Setting, Streams};

/// The program's own directory, below its VM's.
const WORK: &str = "work";
/// The classes that it loads, as its machine had them in memory at its last end: a start from there is quicker.
const CLASSES: &str = "classes.jsa";
/// Of a VM's memory so much is for the program's objects; the rest is for its machine.
const HEAP_OF_100: u64 = 70;
/// What HotSpot says when it ends for want of memory, and its status then (`-XX:+ExitOnOutOfMemoryError`).
const NO_MEMORY: &[u8] = b"Terminating due to java.lang.OutOfMemoryError";
const NO_MEMORY_STATUS: i32 = 3;
/// Of the host's files, what HotSpot reads besides its own.
const READABLE: &[&str] = &[
    "/etc",
    "/proc",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/sys/kernel/mm",
    "/usr/share",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
];
/// What it executes: itself, and the libraries of the host.
const EXECUTABLE: &[&str] = &["/lib", "/lib64", "/usr/lib", "/usr/lib64"];

/// The Java virtual machine that is on this host.
pub(crate) struct Jvm;

impl Engine for Jvm {
    fn kind(&self) -> GuestKind {
        GuestKind::Jvm
    }

    fn prepare(&self, setting: Setting<'_>) -> Result<Prepared, Fault> {
        let Setting { vm, program, streams, gate, .. } = setting;
        let spec = &program.spec;
        let hotspot = Hotspot::find()?;
        let what = viv_java::look(&spec.file, &program.original, &program.called, hotspot.java())?;
        let failed = |error: std::io::Error| {
            let text = format!("the program's own directory cannot be made: {error}");
            Fault::new(Kind::Error, text, "see that there is room: viv info")
        };
        fs::create_dir_all(WORK).map_err(failed)?;
        let here = std::env::current_dir().map_err(failed)?;
        let mut command = Command::new(hotspot.home.join("bin/java"));
        command.current_dir(here.join(WORK)).env_clear();
        let work = here.join(WORK);
        command.env("HOME", &work).env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8");
        command.envs(spec.env.iter().map(|(name, value)| (name, value)));
        let heap = (vm.machine.memory_mib * HEAP_OF_100 / 100).max(2);
        command
            .arg(format!("-Xmx{heap}m"))
            .arg("-XX:+ExitOnOutOfMemoryError")
            .arg("-XX:-UsePerfData")
            .arg(format!("-Djava.io.tmpdir={}", work.display()))
            .arg(format!("-Duser.home={}", work.display()));
        // Classes from a directory cannot be kept so, nor with agents, which may change them: HotSpot would not start.
        if what == Program::Jar && !has_agent(&spec.options) {
            classes(&mut command, &hotspot, here.join(CLASSES));
        }
        command.args(&spec.options);
        let mut read: Vec<PathBuf> = READABLE.iter().map(PathBuf::from).collect();
        match what {
            Program::Jar => command.arg("-jar").arg(&spec.file),
            Program::Class { name, root } => {
                read.push(root.clone());
                command.arg("-cp").arg(root).arg(name)
            }
        };
        command.args(&spec.args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (mut whole, mut run) = (Vec::new(), vec![hotspot.home.clone()]);
        run.extend(EXECUTABLE.iter().map(PathBuf::from));
        for share in &vm.machine.shares {
            if share.path.as_os_str() != share.target.as_str() {
                let path = share.path.display();
                let text = format!(
                    "a Java program knows the directory {path} by no other name, not {}",
                    share.target
                );
                return Err(Fault::new(Kind::Usage, text, format!("write it twice: -v {path}:{path}")));
            }
            if share.read_only { &mut read } else { &mut whole }.push(share.path.clone());
        }
        // It starts its machine, which wakes its own threads (tgkill), and has sockets if there is a network of its own for them.
        let mut calls = vec![
            libc::SYS_execve,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_tgkill,
        ];
        GuestKind::Jvm.check_ports(&vm.machine.ports)?; // a document may say what the command would not
        // Taken before this process leaves the host's network.
        let listeners = Listeners::open(&vm.machine.ports).map_err(|error| Fault::from(&error))?.into_tcp();
        match own_network::enter() {
            true => calls.push(libc::SYS_socket),
            false if !listeners.is_empty() => {
                return Err(Fault::new(
                    Kind::Conflict,
                    "this host gives the program no network of its own, and so none of its ports can be published",
                    "allow user namespaces (sysctl user.max_user_namespaces), run the service as root, or leave out -p",
                ));
            }
            false => streams.write(
                Channel::Err,
                b"viv: this host gives the program no network of its own: it has none\n",
            ),
        }
        let program = Arc::new(JavaProgram {
            command: Mutex::new(Some(command)),
            listeners: Mutex::new(listeners),
            child: OnceLock::new(),
            seen: OnceLock::new(),
            telling: Mutex::default(),
            streams,
            gate: gate.clone(),
            heap_mib: heap,
        });
        let weak = Arc::downgrade(&program);
        gate.on_change(move || {
            if let Some(program) = weak.upgrade() {
                program.follow();
            }
        });
        Ok(Prepared {
            instance: program,
            confinement: Confinement {
                files: Files { read, whole, run, ..Files::default() },
                calls,
                ..Confinement::default()
            },
        })
    }
}

/// Has the machine keep the classes that it has loaded for the VM's next start (JEP 350; since 19 it needs no care, JDK-8261455).
fn classes(command: &mut Command, hotspot: &Hotspot, archive: PathBuf) {
    let path = archive.display();
    match hotspot.version {
        19.. => {
            command
                .args(["-XX:+AutoCreateSharedArchive".to_string(), format!("-XX:SharedArchiveFile={path}")]);
        }
        13..=18 if archive.exists() => {
            command.arg(format!("-XX:SharedArchiveFile={path}"));
        }
        13..=18 => {
            command.arg(format!("-XX:ArchiveClassesAtExit={path}"));
        }
        _ => return,
    }
    // What it has to say of the archive is nothing to the program's user.
    command.args(["-Xshare:auto", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]);
}

struct JavaProgram {
    /// Until it runs.
    command: Mutex<Option<Command>>,
    /// Published ports, until it runs, each with the program's.
    listeners: Mutex<Vec<(TcpListener, u16)>>,
    child: OnceLock<OwnedFd>,
    seen: OnceLock<OtherProcess>,
    /// Held from a look at the gate until the child is told: who has seen an older state must not have the last word.
    telling: Mutex<()>,
    streams: Arc<Streams>,
    gate: Arc<Gate>,
    heap_mib: u64,
}

impl JavaProgram {
    /// Does with the child what its gate says.
    fn follow(&self) {
        let _one = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        let signal = match (self.gate.end(), self.gate.is_closed()) {
            (Some(_), _) if self.gate.is_to_end_now() => Signal::KILL,
            (Some(_), _) => Signal::TERM,
            (None, true) => Signal::STOP,
            (None, false) => Signal::CONT,
        };
        if let Some(child) = self.child.get() {
            if signal == Signal::TERM {
                let _ = pidfd_send_signal(child, Signal::CONT);
            }
            let _ = pidfd_send_signal(child, signal);
        }
    }

    fn start(&self) -> std::io::Result<Child> {
        let command = self.command.lock().unwrap_or_else(PoisonError::into_inner).take();
        let mut command = command.ok_or(std::io::ErrorKind::NotFound)?;
        together::end_with_us(&mut command);
        let mut child = command.spawn()?;
        let known = OtherProcess::open(child.id())
            .and_then(|seen| Ok((seen, pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?)));
        match known {
            Ok((seen, descriptor)) => {
                let _ = (self.seen.set(seen), self.child.set(descriptor));
                self.follow(); // what came before there was a child
                Ok(child)
            }
            Err(error) => {
                let _ = (child.kill(), child.wait());
                Err(error)
            }
        }
    }

    /// Its end, by its status and its last words.
    fn end_of(&self, status: ExitStatus, last: &[u8]) -> End {
        let ran_out = last.windows(NO_MEMORY.len()).any(|words| words == NO_MEMORY);
        match (status.code(), status.signal()) {
            (Some(NO_MEMORY_STATUS), _) if ran_out => End::Limit {
                message: format!(
                    "the program has used up its {} MiB for objects; give it more: viv run --memory",
                    self.heap_mib
                ),
            },
            (Some(code), _) => End::Command { status: code as u8 },
            (None, Some(libc::SIGABRT | libc::SIGSEGV | libc::SIGBUS | libc::SIGILL)) => {
                End::Trap { message: "the Java virtual machine crashed: see viv logs".into() }
            }
            (None, signal) => End::Command {
                status: u8::try_from(signal.unwrap_or_default()).unwrap_or(0).saturating_add(128),
            },
        }
    }
}

/// Bytes of output that are looked at for the machine's last words.
const LAST: usize = 4096;

/// Passes on what the child says; gives the last of it.
fn pass_on(mut from: impl Read, streams: &Streams, channel: Channel) -> Vec<u8> {
    let (mut piece, mut last) = (vec![0; 32 << 10], Vec::new());
    while let Ok(count @ 1..) = from.read(&mut piece) {
        let bytes = piece.get(..count).unwrap_or_default();
        streams.write(channel, bytes);
        last.extend_from_slice(bytes);
        let too_many = last.len().saturating_sub(LAST);
        last.drain(..too_many);
    }
    last
}

impl Instance for JavaProgram {
    fn run(&self) -> End {
        let mut child = match self.start() {
            Ok(child) => child,
            Err(error) => return End::Failed { message: format!("Java does not start: {error}") },
        };
        let listeners = std::mem::take(&mut *self.listeners.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = forward::start(listeners, forward::CONNECTIONS_MAX) {
            self.gate.stop(End::Failed { message: format!("its ports cannot be published: {error}") });
        }
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let streams = self.streams.clone();
        // It ends with the process, if nobody sends anything any more.
        let sender = move || {
            let Some(mut input) = input else { return };
            while let Ok(bytes) = streams.read(32 << 10) {
                if bytes.is_empty() || input.write_all(&bytes).is_err() {
                    return;
                }
            }
        };
        let _ = thread::Builder::new().name("stdin".into()).spawn(sender);
        let streams = self.streams.clone();
        let errors = thread::Builder::new()
            .name("stderr".into())
            .spawn(move || errors.map(|errors| pass_on(errors, &streams, Channel::Err)));
        let mut last = output.map(|output| pass_on(output, &self.streams, Channel::Out)).unwrap_or_default();
        if let Ok(Ok(Some(said))) = errors.map(thread::JoinHandle::join) {
            last.extend(said);
        }
        match child.wait() {
            Ok(status) => self.end_of(status, &last),
            Err(error) => End::Failed { message: format!("the end of Java is not known: {error}") },
        }
    }

    fn stats(&self) -> ProgramStats {
        ProgramStats { memory_bytes: self.memory_elsewhere(), ..ProgramStats::default() }
    }

    fn cpu_ns_elsewhere(&self) -> u64 {
        self.seen.get().map_or(0, OtherProcess::cpu_ns)
    }

    fn memory_elsewhere(&self) -> u64 {
        self.seen.get().map_or(0, OtherProcess::memory_bytes)
    }

    fn exec(&self, argv: &[String], output: &mut dyn FnMut(Output)) -> Result<u8, Fault> {
        let words: Vec<&str> = argv.iter().map(String::as_str).collect();
        if words != ["threads"] {
            return Err(Fault::new(
                Kind::Conflict,
                format!("a Java program knows no command {:?}", argv.join(" ")),
                "there is one: viv exec VM threads, which has it print what its threads do",
            ));
        }
        let child = self.child.get().ok_or_else(|| {
            Fault::new(Kind::Conflict, "the program has not begun", "try again in a moment")
        })?;
        let sent = pidfd_send_signal(child, Signal::QUIT);
        output(Output::Stdout(b"its threads are in its output: viv logs VM\n".to_vec()));
        Ok(u8::from(sent.is_err()))
    }
}

/// Whether options of the machine give it an agent: of its tool interface, or in Java.
fn has_agent(options: &[String]) -> bool {
    let ways = ["-agentlib:", "-agentpath:", "-javaagent:", "-Xrun"];
    options.iter().any(|option| ways.iter().any(|way| option.starts_with(way)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_known_by_their_options() {
        let has = |option: &str| has_agent(&["-Xss2m".to_string(), option.to_string()]);
        assert!(has("-agentlib:jdwp=server=y") && has("-javaagent:/a.jar") && has("-agentpath:/a.so=x"));
        assert!(!has("-Dagent=-agentlib:x") && !has_agent(&[]));
    }
    use viv_cell::Console;

    /// A child in the place of Java, which follows its gate.
    fn program(gate: &Arc<Gate>) -> (Arc<JavaProgram>, Child) {
        let mut command = Command::new("sleep");
        command.arg("1000");
        let program = Arc::new(JavaProgram {
            command: Mutex::new(Some(command)),
            listeners: Mutex::default(),
            child: OnceLock::new(),
            seen: OnceLock::new(),
            telling: Mutex::default(),
            streams: Arc::new(Streams::new(gate.clone(), Arc::new(Console::new()), false)),
            gate: gate.clone(),
            heap_mib: 1,
        });
        let told = program.clone();
        gate.on_change(move || told.follow());
        let child = program.start().unwrap();
        (program, child)
    }

    /// Whether the child is stopped, or is not, in a moment: a signal takes one.
    fn stands_still(child: &Child, still: bool) -> bool {
        let path = format!("/proc/{}/stat", child.id());
        (0..10_000).any(|_| {
            let stat = fs::read_to_string(&path).unwrap();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T') == still)
        })
    }

    #[test]
    fn the_child_stands_still_as_long_as_anybody_wants_it() {
        let gate = Arc::new(Gate::default());
        let (program, mut child) = program(&gate);
        gate.hold(true);
        assert!(stands_still(&child, true));
        gate.hold(false);
        assert!(stands_still(&child, false));
        gate.pause();
        for _ in 0..100 {
            gate.hold(true);
            gate.hold(false);
            assert!(stands_still(&child, true), "a limit that lets go ends no pause");
        }
        gate.resume();
        assert!(stands_still(&child, false));
        assert!(program.memory_elsewhere() > 0);
        gate.pause();
        gate.ask_to_end(End::Killed);
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGTERM), "it hears of its end, paused or not");
        assert_eq!((program.cpu_ns_elsewhere(), program.memory_elsewhere()), (0, 0));
    }
}
