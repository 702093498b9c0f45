//! The service is killed at one system call after the other of fifteen changes: what it had acknowledged is there, and the one that it
//! was at is done or not, but never by half.
//!
//! CI does 24 of the some thousand points; `VIV_KILL_POINTS=1000 cargo test --release -p viv-e2e --test kill_points` any number.
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;
use viv_e2e::null_kernel::null_kernel;
use viv_e2e::{Home, until};

/// The changes; KERNEL and DISK are files.
const CHANGES: [(&str, &str); 15] = [
    ("POST /v1/vms", r#"{"name": "web", "kernel": "KERNEL", "accel": "soft", "memory_mib": 16, "nics": []}"#),
    (
        "POST /v1/vms",
        r#"{"name": "db", "kernel": "KERNEL", "accel": "soft", "memory_mib": 16, "labels": ["a=b"]}"#,
    ),
    ("POST /v1/vms/web/update", r#"{"labels": ["tier=web"], "memory_mib": 32}"#),
    ("POST /v1/vms/web/disks", r#"{"path": "DISK"}"#),
    ("POST /v1/vms/web/start", "{}"),
    ("POST /v1/vms/web/pause", ""),
    ("POST /v1/limits", r#"{"vms": 7}"#),
    ("POST /v1/secgroups", r#"{"name": "front", "rules": []}"#),
    ("POST /v1/secgroups/front/rules", r#"{"rule": "in tcp/80"}"#),
    ("POST /v1/networks", r#"{"name": "blue", "subnet": "10.77.0.0/24"}"#),
    ("POST /v1/vms/web/resume", ""),
    ("POST /v1/vms/web/kill", "{}"),
    ("DELETE /v1/vms/web/disks/0", ""),
    ("DELETE /v1/vms/db", ""),
    ("DELETE /v1/networks/blue", ""),
];
/// The change that starts a VM: half of it is a VM that was started and has no process, which is shown as that.
const START: usize = 4;

/// A service whose system calls are counted.
struct Traced {
    pid: Pid,
    counted: Arc<AtomicU64>,
    armed: Arc<AtomicBool>,
    tracer: JoinHandle<()>,
}

impl Traced {
    /// Starts one that is killed at the entry or exit of a system call: so many after it is armed.
    fn start(home: &Home, last: u64) -> Traced {
        let (counted, armed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let mut command = home.viv(&["serve"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let (number, on) = (counted.clone(), armed.clone());
        let (sender, receiver) = channel();
        // Whoever seizes a process is the one who is told of it.
        let tracer = std::thread::spawn(move || {
            let pid = Pid::from_raw(command.spawn().unwrap().id() as i32);
            let options =
                Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
            ptrace::seize(pid, options).unwrap();
            ptrace::interrupt(pid).unwrap();
            sender.send(pid).unwrap();
            trace(pid, last, &number, &on);
        });
        let pid = receiver.recv().unwrap();
        let socket = home.path("run/viv.sock");
        until("the service", Duration::from_secs(60), || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        assert_eq!(home.ask("GET /v1/info", "", "").status, 200);
        armed.store(true, Ordering::SeqCst);
        Traced { pid, counted, armed, tracer }
    }

    /// Ends it, if it has not ended; gives how many system calls were counted, by twos.
    fn end(self) -> u64 {
        self.armed.store(false, Ordering::SeqCst);
        let _ = kill(self.pid, Signal::SIGKILL);
        self.tracer.join().unwrap();
        self.counted.load(Ordering::SeqCst)
    }
}

/// Lets a process and its threads go on from stop to stop until it has ended.
fn trace(pid: Pid, last: u64, counted: &AtomicU64, armed: &AtomicBool) {
    let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
    loop {
        // A thread that is gone cannot go on: its end is told next.
        let (thread, signal) = match waitpid(Pid::from_raw(-1), Some(flags)) {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                if armed.load(Ordering::SeqCst) && counted.fetch_add(1, Ordering::SeqCst) + 1 == last {
                    let _ = kill(pid, Signal::SIGKILL);
                }
                (thread, None)
            }
            Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..)) if ended == pid => return,
            Ok(_) => continue,
            Err(error) => panic!("{error}"),
        };
        let _ = ptrace::syscall(thread, signal);
    }
}

/// Makes the changes until the service is gone; gives how many it has acknowledged, and what was seen after each.
fn change(home: &Home, look: bool) -> (usize, Vec<Value>) {
    let (kernel, disk) = (home.path("kernel"), home.path("disk"));
    let mut seen = Vec::new();
    for (number, (request, body)) in CHANGES.iter().enumerate() {
        let body = body.replace("KERNEL", &kernel).replace("DISK", &disk);
        match home.try_ask(request, "", &body) {
            Some(answer) => assert_eq!(answer.status, 200, "{request}: {answer:?}"),
            None => return (number, seen),
        }
        if look {
            seen.push(state(home));
        }
    }
    (CHANGES.len(), seen)
}

/// All that the changes are about.
fn state(home: &Home) -> Value {
    let get = |path: &str| {
        let answer = home.ask(&format!("GET {path}"), "", "");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body
    };
    let of = |list: Value, fields: &[&str]| -> Vec<Value> {
        let pick = |item: &Value| Value::from_iter(fields.iter().map(|field| item.pointer(field).cloned()));
        let mut items: Vec<Value> = list.as_array().unwrap().iter().map(pick).collect();
        items.sort_by_key(Value::to_string);
        items
    };
    let vm = ["/name", "/state", "/labels", "/machine/memory_mib", "/machine/disks/0/path"];
    let state = json!({
        "vms": of(get("/v1/vms"), &vm),
        "limit": get("/v1/limits")["limits"]["vms"],
        "taken": get("/v1/limits")["described"]["taken"],
        "groups": of(get("/v1/secgroups"), &["/name", "/rules"]),
        "networks": of(get("/v1/networks"), &["/name", "/subnet"]),
    });
    serde_json::from_str(&state.to_string().replace(&home.path(""), "/")).unwrap()
}

fn home(name: &str) -> Home {
    let home = Home::bare(name);
    std::fs::write(home.path("kernel"), null_kernel()).unwrap();
    std::fs::write(home.path("disk"), vec![0; 1 << 20]).unwrap();
    home
}

/// What VMs have is what there is: a process for each that lives, and no directory for one that is not remembered.
fn is_real(home: &Home) {
    let vms = home.ask("GET /v1/vms", "", "").body;
    let mut known = BTreeSet::new();
    for vm in vms.as_array().unwrap() {
        known.insert(vm["id"].as_str().unwrap().to_string());
        let lives = ["running", "paused"].contains(&vm["state"].as_str().unwrap());
        let process = vm["pid"].as_u64();
        let is_there = process.is_some_and(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(lives, is_there, "{vm}");
    }
    let directories = std::fs::read_dir(home.path("state/vms")).into_iter().flatten().flatten();
    let left: Vec<String> = directories
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !known.contains(name))
        .collect();
    assert!(left.is_empty(), "directories of VMs that nobody remembers: {left:?}");
}

#[test]
fn killed_at_any_system_call_it_has_done_all_or_nothing() {
    let points: u64 = std::env::var("VIV_KILL_POINTS").map_or(24, |points| points.parse().expect("a number"));
    let whole = home("kill-points");
    let service = Traced::start(&whole, u64::MAX);
    let before = state(&whole);
    let (done, after) = change(&whole, true);
    assert_eq!(done, CHANGES.len());
    service.end();
    drop(whole);
    let whole = home("kill-points");
    let service = Traced::start(&whole, u64::MAX);
    assert_eq!(change(&whole, false).0, CHANGES.len());
    let stops = service.end();
    drop(whole);
    let states: Vec<Value> = std::iter::once(before).chain(after).collect();
    let mut cut = BTreeSet::new();
    for point in 0..points {
        let last = 1 + point * stops / points;
        let home = home(&format!("kill-point-{point}"));
        let service = Traced::start(&home, last);
        let (done, _) = change(&home, false);
        service.end();
        cut.insert(done);
        // The next one finds what is left by itself.
        let _next = viv_e2e::client::Service::start(&home);
        let found = state(&home);
        let mut may_be = states.iter().skip(done).take(2).cloned().collect::<Vec<_>>();
        if done == START {
            let mut half = states[START + 1].clone();
            for vm in half["vms"].as_array_mut().unwrap() {
                if vm[1] == "running" {
                    vm[1] = "failed".into();
                }
            }
            may_be.push(half);
        }
        assert!(
            may_be.contains(&found),
            "killed at {last} of {stops}, after {done} changes: {found:#}\nand not one of {may_be:#?}"
        );
        is_real(&home);
    }
    println!("{points} of {stops} points, in {} of {} changes", cut.len(), CHANGES.len());
}
