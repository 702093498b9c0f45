//! How fast VMs come and go, and how the service bears many of them: `cargo run --release -p viv-e2e --example service_life [VMS]`,
//! after `cargo build --release -p viv`.
//!
//! Its VMs have a kernel of thirty bytes that says one letter and halts, on the software CPU: what is measured is ours alone.
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use viv_e2e::Home;
use viv_e2e::client::{Client, Service, resident};
use viv_e2e::null_kernel::null_kernel;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() * 99 / 100).copied().unwrap_or_default()
}

fn timed(act: impl FnOnce()) -> Duration {
    let start = Instant::now();
    act();
    start.elapsed()
}

/// Describes a VM; gives its directory.
fn describe(home: &Home, client: &mut Client, kernel: &Path, name: &str) -> PathBuf {
    let body = format!(
        r#"{{"name": "{name}", "kernel": "{}", "accel": "soft", "memory_mib": 32}}"#,
        kernel.display()
    );
    let answer = client.must("POST /v1/vms", &body);
    let vm: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    PathBuf::from(home.path("state/vms")).join(vm["id"].as_str().unwrap())
}

/// Waits until something is there, looking all the time.
fn wait_for(what: &str, there: impl Fn() -> bool) {
    let start = Instant::now();
    while !there() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_micros(50));
    }
}

/// From a request to the guest's first letter, to the answer, and to the end of a removal.
fn come_and_go(home: &Home, kernel: &Path, rounds: usize) {
    let mut client = Client::new(home);
    let (mut spoken, mut answered, mut gone) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let name = format!("life-{round}");
        let dir = describe(home, &mut client, kernel, &name);
        let log = dir.join("console.log");
        let start = Instant::now();
        let first = std::thread::spawn(move || {
            wait_for("the guest speaks", || std::fs::metadata(&log).is_ok_and(|log| log.len() > 0));
            start.elapsed()
        });
        client.must(&format!("POST /v1/vms/{name}/start"), "{}");
        answered.push(start.elapsed());
        spoken.push(first.join().unwrap());
        gone.push(timed(|| drop(client.must(&format!("DELETE /v1/vms/{name}?force=true"), ""))));
    }
    println!("start, to what the guest says in its first instructions: {:?} (target 25 ms)", median(spoken));
    println!("start, to the answer: {:?}", median(answered));
    println!("destroy, to the answer: {:?} (target 15 ms)", median(gone));
}

/// All of them run; the service is killed, and the next one knows them.
fn adopt(home: &Home, kernel: &Path, service: Service, count: usize) -> Service {
    let next = AtomicUsize::new(0);
    let took = timed(|| {
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut client = Client::new(home);
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= count {
                            return;
                        }
                        let name = format!("null-{number}");
                        describe(home, &mut client, kernel, &name);
                        client.must(&format!("POST /v1/vms/{name}/start"), "{}");
                    }
                });
            }
        });
    });
    println!("{count} VMs described and started by 8 clients: {took:.1?}");
    println!(
        "service with {count} VMs that run: {} MiB resident (target 40 at 300)",
        resident(service.pid())
    );
    drop(service);
    let start = Instant::now();
    let service = Service::start(home);
    let mut client = Client::new(home);
    loop {
        let vms: serde_json::Value =
            serde_json::from_slice(&client.must("GET /v1/vms?state=running", "")).unwrap();
        if vms.as_array().unwrap().len() == count {
            break;
        }
    }
    println!("killed; the next one lists all {count} as running: {:?} (target 1 s at 500)", start.elapsed());
    service
}

/// What a call takes while others do something.
fn calls(home: &Home, count: usize) -> Vec<Duration> {
    let mut client = Client::new(home);
    let call = |_| timed(|| drop(client.must("GET /v1/vms/null-0", "")));
    (0..count).map(call).collect()
}

fn connect(home: &Home) -> UnixStream {
    let socket = UnixStream::connect(home.path("run/viv.sock")).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket
}

/// So many watch the VMs; one of them changes.
fn watch(home: &Home, count: usize) {
    let begin = Instant::now();
    let mut watchers: Vec<UnixStream> = (0..count)
        .map(|_| {
            let mut socket = connect(home);
            let request = "GET /v1/vms?watch=true&name=null-0 HTTP/1.1\r\nHost: vivarium\r\n\r\n";
            socket.write_all(request.as_bytes()).unwrap();
            socket
        })
        .collect();
    fn read_to(socket: &mut UnixStream, word: &str) {
        let (mut text, mut piece) = (String::new(), [0; 4096]);
        while !text.contains(word) {
            let read = socket.read(&mut piece).unwrap();
            assert!(read > 0, "the stream ended: {text}");
            text.push_str(&String::from_utf8_lossy(&piece[..read]));
        }
    }
    watchers.iter_mut().for_each(|watcher| read_to(watcher, "event: listed"));
    println!("{count} watchers have the list: {:?}", begin.elapsed());
    let start = Instant::now();
    Client::new(home).must("POST /v1/vms/null-0/pause", "");
    watchers.iter_mut().for_each(|watcher| read_to(watcher, "paused"));
    println!("a change, until all {count} have it: {:?}", start.elapsed());
    Client::new(home).must("POST /v1/vms/null-0/resume", "");
}

/// What hostile clients send: deep JSON, a head that is too large, a request in another one, nonsense.
fn attack(number: usize) -> String {
    let deep = "[".repeat(1 << 20);
    match number {
        0 => format!(
            "POST /v1/vms HTTP/1.1\r\nHost: vivarium\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{deep}",
            deep.len()
        ),
        1 => format!("GET /v1/vms HTTP/1.1\r\nHost: vivarium\r\nX: {}\r\n\r\n", "x".repeat(100_000)),
        2 => "POST /v1/vms HTTP/1.1\r\nHost: vivarium\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x".to_string(),
        _ => "\0\u{1}nonsense\r\n\r\n".to_string(),
    }
}

/// How many kinds of them there are.
const ATTACKS: usize = 4;

/// Does one of them again and again: a process of its own.
fn be_hostile(number: usize, socket: &Path) {
    let attack = attack(number);
    loop {
        let Ok(mut socket) = UnixStream::connect(socket) else { return };
        let _ = socket.write_all(attack.as_bytes()); // it may hang up in the middle
        let _ = socket.read(&mut [0; 1024]);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A hostile client, until it is dropped.
struct Hostile(Child);

impl Hostile {
    fn start(home: &Home, number: usize) -> Hostile {
        let mut command = Command::new(std::env::current_exe().unwrap());
        Hostile(command.args(["hostile", &number.to_string(), &home.path("run/viv.sock")]).spawn().unwrap())
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// Calls beside clients that send nothing, slowly, too much or nonsense.
fn abuse(home: &Home, count: usize) {
    let quiet = calls(home, 2000);
    let _idle: Vec<UnixStream> = (0..count).map(|_| connect(home)).collect();
    let end = AtomicBool::new(false);
    let abused = std::thread::scope(|scope| {
        let _hostile: Vec<Hostile> = (0..ATTACKS).map(|number| Hostile::start(home, number)).collect();
        scope.spawn(|| {
            let mut slow: Vec<UnixStream> = (0..50).map(|_| connect(home)).collect();
            while !end.load(Ordering::Relaxed) {
                slow.iter_mut().for_each(|socket| drop(socket.write_all(b"G")));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        std::thread::sleep(Duration::from_secs(3)); // what they may do at once is over
        let abused = calls(home, 2000);
        end.store(true, Ordering::Relaxed);
        abused
    });
    let ratio = p99(abused.clone()).as_secs_f64() / p99(quiet.clone()).as_secs_f64();
    println!(
        "a call's p99 in peace {:?}, beside {count} idle, 50 slow and {ATTACKS} hostile clients {:?}: {ratio:.1} times (target 2); medians {:?} and {:?}",
        p99(quiet.clone()),
        p99(abused.clone()),
        median(quiet),
        median(abused)
    );
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [word, number, socket] = args.as_slice()
        && word == "hostile"
    {
        return be_hostile(number.parse().expect("a kind of attack"), Path::new(socket));
    }
    let count: usize = args.first().map_or(500, |count| count.parse().expect("a number of VMs"));
    let home = Home::new("service-life");
    let path = PathBuf::from(home.path("kernel"));
    std::fs::write(&path, null_kernel()).unwrap();
    let service = Service::start(&home);
    Client::new(&home).must("POST /v1/limits", r#"{"cpu_ratio": 1000.0, "memory_ratio": 10.0}"#);
    come_and_go(&home, &path, 50);
    let service = adopt(&home, &path, service, count);
    watch(&home, 900);
    abuse(&home, 800);
    let start = Instant::now();
    let mut client = Client::new(&home);
    for number in 0..count {
        client.must(&format!("DELETE /v1/vms/null-{number}?force=true"), "");
    }
    println!("{count} VMs removed one by one: {:.1?}", start.elapsed());
    drop(service);
}
