//! A VM's process from outside: its directory, its sockets, its end. The guest is a puppet that does what its
//! serial line tells it, so that this needs no kernel and takes no time.
//!
//! The runner is a process of its own, which is this same program with other arguments: so it has its own
//! `main` and no test harness.
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use viv_api::runner::{Ask, CONSOLE, CONSOLE_LOG, CONTROL, END, Reply, RunnerSpec, SPEC, Started, Status};
use viv_api::stats::VmStats;
use viv_api::vm::{ConsoleSize, DiskSize, OnReboot, Process};
use viv_block::{Disk, MemoryDisk, Patient};
use viv_machine::{HandedFiles, Shortage};
use viv_model::{Accel, DiskSpec, End, Fault, Kind, MachineSpec, NicSpec, ShareSpec, State};
use viv_net::port::NetPort;
use viv_runner::{Console, Guest, Moment, Parts, SnapshotFiles};
use viv_share::link::Caller;
use viv_share::protocol::{ROOT, opcode};

/// What the puppet does with its lines.
struct Puppet {
    console: Arc<Console>,
    line: Mutex<Vec<u8>>,
    end: Sender<End>,
    ended: Mutex<Receiver<End>>,
    share: Mutex<Option<Caller>>,
    shortage: Arc<Shortage>,
    disk: Arc<MemoryDisk>,
    /// What it was built with.
    has: String,
}

impl Puppet {
    fn obey(&self, line: &str) {
        let say = |text: String| self.console.write(text.as_bytes());
        let end = |end| self.end.send(end).unwrap();
        match line {
            "fill" => {
                self.disk.set_full(true);
                let patient = Patient::new(self.disk.clone(), Path::new("/full"), self.shortage.clone());
                let console = self.console.clone();
                std::thread::spawn(move || {
                    if patient.write(0, &[1; 512]).is_ok() {
                        console.write(b"written\n");
                    }
                });
            }
            "room" => self.disk.set_full(false),
            "has" => say(format!("has {}\n", self.has)),
            "off" => end(End::PowerOff),
            "reset" => end(End::Reboot),
            "panic" => {
                say("[    0.1] Kernel panic - not syncing: oops\r\n".into());
                end(End::Reboot);
            }
            "stand" => say("Kernel panic - not syncing: oops\n---[ end Kernel panic ]---\n".into()),
            "escape" => {
                let read = fs::read("/etc/passwd").is_ok();
                let process = Command::new("/bin/true").status().is_ok();
                let network = TcpListener::bind("127.0.0.1:0").is_ok();
                let thread = std::thread::spawn(|| true).join().unwrap();
                let own = fs::write("own", "x").is_ok();
                say(format!("read={read} process={process} network={network} thread={thread} own={own}\n"));
            }
            make if make.starts_with("mkdir ") => {
                say(format!("{make}: {}\n", self.make_directory(&make[6..])))
            }
            other => say(format!("heard {other}\n")),
        }
    }
}

impl Puppet {
    /// Asks the server of the shared directory for a directory: what went wrong, 0 if nothing.
    fn make_directory(&self, name: &str) -> String {
        let mut request = Vec::new();
        request.extend((40 + 8 + name.len() as u32 + 1).to_le_bytes());
        request.extend(opcode::MKDIR.to_le_bytes());
        request.extend([1, ROOT].iter().flat_map(|word: &u64| word.to_le_bytes()));
        request.extend([0; 16]);
        request.extend([0o755u32, 0].iter().flat_map(|word| word.to_le_bytes()));
        request.extend(name.bytes().chain([0]));
        let mut reply = Vec::new();
        let mut share = self.share.lock().unwrap();
        match share.as_mut().map(|caller| caller.call(&request, 4096, &mut reply)) {
            Some(Ok(())) => i32::from_le_bytes(reply[4..8].try_into().unwrap()).to_string(),
            _ => "gone".to_string(),
        }
    }
}

impl Guest for Puppet {
    fn freeze(&self, _: &SnapshotFiles) -> Result<Box<dyn Moment>, Fault> {
        Err(Fault::new(Kind::Error, "a puppet has no state", "take a machine"))
    }
    fn start(&self) -> Result<(), Fault> {
        self.console.write(b"booted\n");
        Ok(())
    }
    fn pause(&self) -> Result<(), Fault> {
        Ok(())
    }
    fn resume(&self) -> Result<(), Fault> {
        Ok(())
    }
    fn power_button(&self) {
        self.obey("off");
    }
    fn resize_disk(&self, _disk: usize, _size: DiskSize) -> Result<(), Fault> {
        Ok(())
    }
    fn attach_disk(&self, _disk: &DiskSpec, _files: HandedFiles) -> Result<(), Fault> {
        Ok(())
    }
    fn attach_share(&self, _tag: &str, server: UnixStream) -> Result<(), Fault> {
        *self.share.lock().unwrap() = Some(Caller::new(server));
        Ok(())
    }
    fn detach_share(&self, _tag: &str) -> Result<(), Fault> {
        *self.share.lock().unwrap() = None;
        Ok(())
    }
    fn attach_card(&self, _nic: &NicSpec, _port: Arc<dyn NetPort>) -> Result<(), Fault> {
        Ok(())
    }
    fn detach_card(&self, _id: u8) -> Result<(), Fault> {
        Ok(())
    }
    fn detach_disk(&self, _disk: usize) -> Result<(), Fault> {
        Ok(())
    }
    fn hold(&self, _hold: bool) {}
    fn resize_memory(&self, _mib: u64) -> Result<(), Fault> {
        Ok(())
    }
    fn kill(&self) {
        self.end.send(End::Killed).unwrap();
    }
    fn limit_disk(&self, _disk: usize, _limits: &viv_model::DiskLimits) -> Result<(), Fault> {
        Ok(())
    }
    fn shortage(&self) -> Arc<Shortage> {
        self.shortage.clone()
    }
    fn resize_console(&self, size: ConsoleSize) {
        self.console.write(format!("size {} {}\n", size.rows, size.cols).as_bytes());
    }
    fn console_input(&self, bytes: &[u8]) {
        let mut line = self.line.lock().unwrap();
        for &byte in bytes {
            match byte {
                b'\n' => self.obey(&String::from_utf8(std::mem::take(&mut line)).unwrap()),
                byte => line.push(byte),
            }
        }
    }
    fn wait(&self) -> End {
        self.ended.lock().unwrap().recv().unwrap()
    }
    fn accel(&self) -> Accel {
        Accel::Soft
    }
    fn stats(&self) -> VmStats {
        VmStats { uptime_ns: 42, ..VmStats::default() }
    }
}

fn build(spec: &RunnerSpec, console: Arc<Console>, parts: Parts) -> Result<Arc<dyn Guest>, Fault> {
    if spec.name == "broken" {
        return Err(Fault::new(Kind::NoCapacity, "no puppet fits", "buy a bigger theatre"));
    }
    let (end, ended) = channel();
    let has = format!("{} {} {}", parts.shares.len(), parts.ports.len(), spec.machine.append);
    let share = Mutex::new(parts.shares.into_iter().next().map(Caller::new));
    let (shortage, disk) = (Arc::<Shortage>::default(), Arc::new(MemoryDisk::zeroed(1)));
    let ended = Mutex::new(ended);
    Ok(Arc::new(Puppet { console, line: Mutex::default(), end, ended, share, shortage, disk, has }))
}

/// One runner process, in a directory of its own.
struct Stage {
    dir: PathBuf,
    child: Child,
    output: BufReader<ChildStdout>,
}

fn spawn(dir: &Path) -> (Child, BufReader<ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .arg("as-runner")
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    (child, output)
}

fn started(output: &mut impl BufRead) -> Started {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

impl Stage {
    fn new(test: &str, change: impl FnOnce(&mut RunnerSpec)) -> Stage {
        let dir = std::env::temp_dir().join(format!("viv-runner-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let machine = MachineSpec {
            cpus: 1,
            memory_mib: 64,
            memory_max_mib: None,
            cpu_limit_milli: None,
            cpu_weight: None,
            accel: Accel::Auto,
            soft: Default::default(),
            kernel: "/vmlinuz".into(),
            initrd: None,
            append: String::new(),
            disks: Vec::new(),
            shares: Vec::new(),
            nics: Vec::new(),
            console_ports: Vec::new(),
            ports: Vec::new(),
        };
        let mut spec = RunnerSpec {
            name: test.into(),
            machine,
            on_reboot: OnReboot::End,
            attended_by: None,
            command: None,
            attend: false,
            health: None,
            program: None,
            resume: false,
            beside_kvm: false,
            is_copy: false,
            translated: None,
        };
        change(&mut spec);
        fs::write(dir.join(SPEC), serde_json::to_vec(&spec).unwrap()).unwrap();
        let (child, output) = spawn(&dir);
        Stage { dir, child, output }
    }

    fn running(test: &str, change: impl FnOnce(&mut RunnerSpec)) -> (Stage, Status) {
        let mut stage = Stage::new(test, change);
        match started(&mut stage.output) {
            Started::Running(status) => (stage, status),
            Started::Refused(fault) => panic!("{fault}"),
        }
    }

    fn console(&self) -> UnixStream {
        UnixStream::connect(self.dir.join(CONSOLE)).unwrap()
    }

    fn tell(&self, line: &str) {
        writeln!(self.console(), "{line}").unwrap();
    }

    /// What it answers to a line, behind the line's own words.
    fn answer(&self, line: &str, start: &str) -> String {
        self.tell(line);
        let mut answer = None;
        until("an answer", || {
            let log = fs::read_to_string(self.dir.join(CONSOLE_LOG)).unwrap_or_default();
            answer = log.lines().rev().find_map(|line| line.strip_prefix(start)).map(str::to_string);
            answer.is_some() && log.ends_with('\n')
        });
        answer.unwrap_or_default()
    }

    /// Resets the guest, and waits for its boot of this number.
    fn reset(&self, boots: u32) {
        self.tell("reset");
        until("a new boot", || matches!(self.ask(&Ask::Status), Reply::Ok(status) if status.boots == boots));
    }

    fn ask(&self, ask: &Ask) -> Reply {
        self.ask_with(ask, &[])
    }

    fn ask_with(&self, ask: &Ask, files: &[BorrowedFd<'_>]) -> Reply {
        let socket = UnixStream::connect(self.dir.join(CONTROL)).unwrap();
        let mut line = serde_json::to_vec(ask).unwrap();
        line.push(b'\n');
        viv_api::passed::send(&socket, &line, files).unwrap();
        let mut line = String::new();
        BufReader::new(socket).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn status(&self) -> Status {
        match self.ask(&Ask::Status) {
            Reply::Ok(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end of the process.
    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the runner does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for the end of the process; gives how the VM ended.
    fn end(mut self) -> End {
        self.wait();
        assert!(!self.dir.join(CONTROL).exists() && !self.dir.join(CONSOLE).exists(), "sockets are left");
        let end = serde_json::from_slice(&fs::read(self.dir.join(END)).unwrap()).unwrap();
        fs::remove_dir_all(&self.dir).unwrap();
        end
    }
}

fn a_console_is_replayed_and_closed_after_the_last_word() {
    let (mut stage, status) = Stage::running("console", |_| {});
    assert_eq!((status.state, status.accel, status.boots), (State::Running, Accel::Soft, 1));
    let mut one = stage.console();
    writeln!(one, "hello").unwrap();
    let mut heard = [0; 19];
    one.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"booted\nheard hello\n");
    let mut two = stage.console();
    two.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"booted\nheard hello\n");
    writeln!(two, "bye\noff").unwrap();
    let mut rest = String::new();
    one.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "heard bye\n");
    let mut output = String::new();
    stage.output.read_to_string(&mut output).unwrap();
    assert_eq!(output, "", "one line on standard output, then its end");
    // A thread of its own writes the log: it is whole when the process has ended.
    stage.wait();
    let log = fs::read_to_string(stage.dir.join(CONSOLE_LOG)).unwrap();
    assert_eq!(log, "booted\nheard hello\nheard bye\n");
    assert_eq!(stage.end(), End::PowerOff);
}

fn a_reset_restarts_or_ends() {
    let (stage, _) = Stage::running("ends", |_| {});
    stage.tell("reset");
    assert_eq!(stage.end(), End::Reboot);
    let (stage, _) = Stage::running("restarts", |spec| spec.on_reboot = OnReboot::Restart);
    stage.tell("reset");
    let deadline = Instant::now() + Duration::from_secs(10);
    while stage.status().boots < 2 {
        assert!(Instant::now() < deadline, "no second boot");
        std::thread::sleep(Duration::from_millis(5));
    }
    stage.tell("off");
    assert_eq!(stage.end(), End::PowerOff);
}

fn a_panic_ends_it_whether_the_kernel_resets_or_stands_still() {
    for line in ["panic", "stand"] {
        let (stage, _) = Stage::running(line, |spec| spec.on_reboot = OnReboot::Restart);
        stage.tell(line);
        assert_eq!(stage.end(), End::Panic, "{line}");
    }
}

fn a_full_disk_holds_the_vm_until_there_is_room() {
    let (stage, _) = Stage::running("full", |_| {});
    let wait_for = |state: State| {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let status = stage.status();
            let full = status.full_disks == [Path::new("/full")];
            if status.state == state && full == (state == State::Paused) {
                return;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    stage.tell("fill");
    wait_for(State::Paused);
    // A user's wish is tried, and in vain.
    assert!(matches!(stage.ask(&Ask::Resume), Reply::Ok(_)));
    wait_for(State::Paused);
    stage.tell("room");
    wait_for(State::Running);
    // It waits for room no more when it ends.
    stage.tell("fill");
    wait_for(State::Paused);
    stage.ask(&Ask::Kill { end: None });
    assert_eq!(stage.end(), End::Killed);
}

fn the_control_socket_knows_the_lifecycle() {
    let (stage, _) = Stage::running("control", |_| {});
    let state = |reply| match reply {
        Reply::Ok(Status { state, .. }) => Ok(state),
        Reply::Refused(fault) => Err(fault.kind),
        other @ (Reply::Stats(_) | Reply::Saved(_)) => panic!("{other:?}"),
    };
    assert_eq!(state(stage.ask(&Ask::Resume)), Err(Kind::Conflict));
    assert_eq!(state(stage.ask(&Ask::Pause)), Ok(State::Paused));
    assert_eq!(state(stage.ask(&Ask::Pause)), Err(Kind::Conflict));
    assert_eq!(state(stage.ask(&Ask::Resume)), Ok(State::Running));
    let Reply::Stats(stats) = stage.ask(&Ask::Stats) else { panic!("no stats") };
    assert_eq!(stats.uptime_ns, 42);
    let disk = DiskSpec { path: "/d".into(), ..DiskSpec::default() };
    let Reply::Refused(fault) = stage.ask(&Ask::AttachDisk { disk, files: vec!["/d".into()] }) else {
        panic!("its file has not come")
    };
    assert!(fault.kind == Kind::NoCapacity && fault.message.contains("open files"), "{fault}");
    let mut noise = UnixStream::connect(stage.dir.join(CONTROL)).unwrap();
    noise.write_all(b"noise\n").unwrap();
    let mut answer = String::new();
    BufReader::new(noise).read_line(&mut answer).unwrap();
    assert!(answer.contains("refused"), "{answer}");
    stage.ask(&Ask::Kill { end: Some(End::Command { status: 7 }) });
    assert_eq!(stage.end(), End::Command { status: 7 });
    let (stage, _) = Stage::running("button", |_| {});
    stage.ask(&Ask::PowerButton { end: None });
    assert_eq!(stage.end(), End::PowerOff);
}

fn a_refusal_reaches_whoever_started_it() {
    let mut stage = Stage::new("broken", |_| {});
    let Started::Refused(fault) = started(&mut stage.output) else { panic!("it runs") };
    assert_eq!((fault.kind, fault.fix.as_str()), (Kind::NoCapacity, "buy a bigger theatre"));
    assert!(!stage.child.wait().unwrap().success());
    fs::remove_dir_all(&stage.dir).unwrap();
}

fn a_vm_has_one_process() {
    let (stage, _) = Stage::running("twice", |_| {});
    let (mut other, mut output) = spawn(&stage.dir);
    let Started::Refused(fault) = started(&mut output) else { panic!("it runs twice") };
    assert_eq!(fault.kind, Kind::Conflict);
    other.wait().unwrap();
    stage.tell("off");
    assert_eq!(stage.end(), End::PowerOff);
}

fn it_ends_with_the_process_that_it_is_for() {
    let mut owner = Command::new("sleep").arg("60").spawn().unwrap();
    let (stage, _) = Stage::running("owner", |spec| spec.attended_by = Process::of(owner.id()));
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert_eq!(stage.end(), End::Killed);
}

fn a_signal_ends_it_in_order() {
    let (stage, status) = Stage::running("signal", |_| {});
    let pid = rustix::process::Pid::from_raw(status.process.pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(stage.end(), End::Killed);
}

/// Only what the status claims to be in force is demanded: the host's kernel may lack some of it.
fn there_is_nothing_outside() {
    let (stage, status) = Stage::running("sandbox", |_| {});
    let console = stage.console();
    stage.tell("escape");
    let answer = BufReader::new(console).lines().map(Result::unwrap).find(|line| line.starts_with("read="));
    let answer = answer.unwrap();
    let has = |name: &str| status.sandbox.iter().any(|other| other == name);
    assert!(has("no-new-privileges"), "{:?}", status.sandbox);
    if has("landlock") {
        assert!(answer.contains("read=false"), "{answer}");
    }
    if has("seccomp") {
        assert!(answer.contains("process=false network=false"), "{answer}");
    }
    assert!(answer.contains("thread=true own=true"), "{answer}");
    println!("     in force: {}", status.sandbox.join(", "));
    stage.tell("off");
    assert_eq!(stage.end(), End::PowerOff);
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let since = Instant::now();
    while !done() {
        assert!(since.elapsed() < Duration::from_secs(20), "{what} does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The process that serves a directory of this VM.
fn server_of(stage: &Stage) -> Option<u32> {
    let children = format!("/proc/{0}/task/{0}/children", stage.child.id());
    fs::read_to_string(children).ok()?.split_whitespace().next()?.parse().ok()
}

fn a_shared_directory_is_served_by_a_process_that_lives_as_long() {
    let shared = std::env::temp_dir().join(format!("viv-runner-shared-{}", std::process::id()));
    let _ = fs::remove_dir_all(&shared);
    fs::create_dir_all(shared.join("in")).unwrap();
    let spec = |read_only| ShareSpec { path: shared.join("in"), target: "/in".into(), read_only, tag: None };
    let (stage, _) = Stage::running("share", |asked| {
        asked.machine.shares = vec![spec(false)];
        asked.on_reboot = OnReboot::Restart;
    });
    let answer = |stage: &Stage, line: &str| stage.answer(line, &format!("{line}: "));
    assert_eq!(answer(&stage, "mkdir one"), "0");
    assert_eq!(answer(&stage, "mkdir ../two"), "-22");
    assert!(shared.join("in/one").is_dir() && !shared.join("two").exists());
    let server = server_of(&stage).expect("a server");
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    // A new boot is a new guest of the same server.
    stage.reset(2);
    assert_eq!(answer(&stage, "mkdir three"), "0");
    assert_eq!(server_of(&stage), Some(server));
    assert!(Command::new("kill").args(["-9", &server.to_string()]).status().unwrap().success());
    assert_eq!(answer(&stage, "mkdir four"), "gone");
    stage.reset(3);
    assert_eq!(answer(&stage, "mkdir five"), "gone");
    stage.tell("off");
    assert_eq!(stage.end(), End::PowerOff);

    let (stage, _) = Stage::running("share-read-only", |asked| asked.machine.shares = vec![spec(true)]);
    assert_eq!(answer(&stage, "mkdir six"), "-30");
    let server = server_of(&stage).expect("a server");
    stage.tell("off");
    assert_eq!(stage.end(), End::PowerOff);
    // Whoever collects it may take a while: it is dead.
    until("the server's end", || {
        let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap_or_default();
        status.is_empty() || status.contains("State:\tZ")
    });
    fs::remove_dir_all(&shared).unwrap();
}

fn what_comes_while_it_runs_is_there_after_a_reset_until_it_goes() {
    let shared = std::env::temp_dir().join(format!("viv-runner-comes-{}", std::process::id()));
    let _ = fs::remove_dir_all(&shared);
    fs::create_dir_all(&shared).unwrap();
    let (stage, _) = Stage::running("coming", |asked| {
        asked.on_reboot = OnReboot::Restart;
        asked.machine.append = "quiet".into();
    });
    let share = ShareSpec {
        path: shared.clone(),
        target: "/in".into(),
        read_only: false,
        tag: Some("share3".into()),
    };
    let attach = Ask::AttachShare { share: share.clone(), mount: true };
    let Reply::Refused(fault) = stage.ask(&attach) else { panic!("its server has not come") };
    assert_eq!(fault.kind, Kind::NoCapacity);
    let (control, mut server) = viv_share::server::start(&share, Stdio::inherit()).unwrap();
    assert!(matches!(stage.ask_with(&attach, &[control.as_fd()]), Reply::Ok(_)));
    drop(control);
    assert_eq!(stage.answer("mkdir one", "mkdir one: "), "0");
    let card = Ask::AttachCard { nic: NicSpec::default() };
    assert!(matches!(stage.ask(&card), Reply::Ok(_)));
    assert!(matches!(stage.ask(&card), Reply::Refused(fault) if fault.kind == Kind::Conflict));
    stage.reset(2);
    assert_eq!(stage.answer("has", "has "), "1 1 quiet viv.share=share3:rw:/in");
    assert_eq!(stage.answer("mkdir two", "mkdir two: "), "0");
    assert!(shared.join("one").is_dir() && shared.join("two").is_dir());
    assert!(matches!(stage.ask(&Ask::DetachShare { tag: "share3".into() }), Reply::Ok(_)));
    assert!(server.wait().unwrap().success(), "nobody needs it any more");
    assert!(matches!(stage.ask(&Ask::DetachCard { id: 0 }), Reply::Ok(_)));
    stage.reset(3);
    until("what is left", || stage.answer("has", "has ") == "0 0 quiet");
    stage.tell("off");
    assert_eq!(stage.end(), End::PowerOff);
    fs::remove_dir_all(&shared).unwrap();
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, mode, dir] = arguments.as_slice()
        && mode == "as-runner"
    {
        std::process::exit(viv_runner::run_with(Path::new(dir), &build).into());
    }
    if let [_, verb, flag, dir, access @ ..] = arguments.as_slice()
        && verb == "runner"
        && flag == "--share"
    {
        std::process::exit(viv_runner::share::serve(Path::new(dir), !access.is_empty()).into());
    }
    let tests: &[(&str, fn())] = &[
        ("console", a_console_is_replayed_and_closed_after_the_last_word),
        ("reset", a_reset_restarts_or_ends),
        ("panic", a_panic_ends_it_whether_the_kernel_resets_or_stands_still),
        ("full", a_full_disk_holds_the_vm_until_there_is_room),
        ("control", the_control_socket_knows_the_lifecycle),
        ("refusal", a_refusal_reaches_whoever_started_it),
        ("one process", a_vm_has_one_process),
        ("owner", it_ends_with_the_process_that_it_is_for),
        ("signal", a_signal_ends_it_in_order),
        ("sandbox", there_is_nothing_outside),
        ("coming", what_comes_while_it_runs_is_there_after_a_reset_until_it_goes),
        ("share", a_shared_directory_is_served_by_a_process_that_lives_as_long),
    ];
    for (name, test) in tests {
        test();
        println!("test {name} ... ok");
    }
}
