//! What programs cost: `cargo run --release -p viv-e2e --example program_load [ROUNDS]`, after `cargo build --release` of `viv`,
//! `viv-wasm` and `viv-jvm`.
//!
//! Whole commands beside node's and java's, in turns: medians and their ratio. Then tasks by the API: created, started, waited for
//! and removed.
use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use viv_e2e::client::{Client, Service};
use viv_e2e::{Directory, Home};

const HELLO: &str = include_str!("../tests/wasm/hello.wat");
const FIB: &str = "(module (func $fib (export \"fib\") (param i32) (result i32)
    (if (result i32) (i32.lt_s (local.get 0) (i32.const 2)) (then (local.get 0)) (else (i32.add
        (call $fib (i32.sub (local.get 0) (i32.const 1))) (call $fib (i32.sub (local.get 0) (i32.const 2))))))))";
const NODE_FIB: &str = "const fib = n => n < 2 ? n : fib(n - 1) + fib(n - 2); console.log(fib(35))";
const JAVA: &str =
    "public class Hello { public static void main(String[] a) { System.out.println(\"Hello, world\"); } }";

/// How long a command takes that must end well.
fn took(command: &mut Command) -> Duration {
    let start = Instant::now();
    let done = command.stdin(Stdio::null()).output().expect("it starts");
    let took = start.elapsed();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    took
}

fn median(mut all: Vec<Duration>) -> f64 {
    all.sort();
    all[all.len() / 2].as_secs_f64() * 1000.0
}

/// Medians of ours and of the peer's, in turns.
fn beside(
    what: &str,
    rounds: usize,
    ours: impl Fn() -> Duration,
    peer: (&str, Option<&dyn Fn() -> Duration>),
) {
    let (mut mine, mut theirs) = (Vec::new(), Vec::new());
    ours();
    for _ in 0..rounds {
        mine.push(ours());
        theirs.extend(peer.1.map(|peer| peer()));
    }
    let mine = median(mine);
    if theirs.is_empty() {
        println!("{what}: {mine:.1} ms ({} is not here)", peer.0);
    } else {
        let theirs = median(theirs);
        println!("{what}: {mine:.1} ms; {} {theirs:.1} ms; ratio {:.2}", peer.0, mine / theirs);
    }
}

/// What node does, if it is here.
fn node(does: &dyn Fn() -> Duration) -> (&'static str, Option<&dyn Fn() -> Duration>) {
    ("node", has("node").then_some(does))
}

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// Tasks by so many clients for so long.
fn tasks(home: &Home, file: &str, clients: usize, limit: Duration) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let start = Instant::now();
    let one = |client: &mut Client| {
        let name = format!("task-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let start = Instant::now();
        let vm = serde_json::json!({"name": name, "program": {"kind": "wasm", "file": file}});
        client.must("POST /v1/vms", &vm.to_string());
        client.must(&format!("POST /v1/vms/{name}/start"), "{}");
        client.must(&format!("GET /v1/vms/{name}/wait"), "");
        client.must(&format!("DELETE /v1/vms/{name}"), "");
        start.elapsed()
    };
    let each = || {
        let mut client = Client::new(home);
        std::iter::from_fn(|| (start.elapsed() < limit).then(|| one(&mut client))).collect::<Vec<_>>()
    };
    let all: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(each)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a client")).collect()
    });
    let rate = all.len() as f64 / start.elapsed().as_secs_f64();
    println!("tasks by the API, {clients} clients: {rate:.0} a second, {:.1} ms each (median)", median(all));
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(20, |rounds| rounds.parse().expect("a number of rounds"));
    let home = Home::bare("program-load");
    let _service = Service::start(&home);
    let at = Directory::new("program-load-files");
    for (name, text) in [("hello.wat", HELLO), ("fib.wat", FIB), ("Hello.java", JAVA)] {
        fs::write(at.path(name), text).expect("a file");
    }
    let viv = |words: &[&str]| took(&mut home.viv(&[&["run", "--rm"], words].concat()));
    let (hello, fib) = (at.path("hello.wat"), at.path("fib.wat"));

    let node_hello = || took(Command::new("node").args(["-e", "console.log('Hello, world')"]));
    let node_fib = || took(Command::new("node").args(["-e", NODE_FIB]));
    beside("hello, warm", rounds, || viv(&[&hello]), node(&node_hello));
    let number = std::cell::Cell::new(0);
    let cold = || {
        // Another program each time, of which no code is kept.
        number.set(number.get() + 1);
        let text = HELLO.replace("world", &format!("{:05}", number.get()));
        let path = at.path("cold.wat");
        fs::write(&path, text).expect("a file");
        viv(&[&path])
    };
    beside("hello, cold", rounds, cold, node(&node_hello));
    beside("fib(35)", rounds, || viv(&["--invoke", "fib", &fib, "35"]), node(&node_fib));
    let metered = || viv(&["--fuel", "10000000000", "--invoke", "fib", &fib, "35"]);
    beside("fib(35), fuel counted", rounds, metered, node(&node_fib));

    if has("javac") {
        let compiled = Command::new("javac").arg("Hello.java").current_dir(&at.0).status();
        assert!(compiled.is_ok_and(|status| status.success()), "javac");
        let class = at.path("Hello.class");
        let java = || took(Command::new("java").args(["-cp", ".", "Hello"]).current_dir(&at.0));
        beside("Java hello", rounds, || viv(&[&class]), ("java", Some(&java)));
    }
    for clients in [1, 4, 16] {
        tasks(&home, &hello, clients, Duration::from_secs(5));
    }
}
