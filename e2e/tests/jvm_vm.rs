//! Java programs in virtual machines of their own (`--isolation vm`): they run as in a process, and go on from snapshots.
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use viv_e2e::{Directory, Home, tool, until};

/// A guest on the software CPU of a busy machine.
const WAIT: Duration = Duration::from_secs(300);
/// What HotSpot takes of the host, besides itself.
const LIBRARIES: &[&str] = &[
    "libc.so.6",
    "libm.so.6",
    "libz.so.1",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
    "libgcc_s.so.1",
];

/// The programs, compiled, and an image with as much of this host's Java as they need.
struct Java {
    home: Home,
    at: Directory,
}

impl Java {
    fn new(name: &str) -> Java {
        let at = Directory::new(&format!("{name}-classes"));
        let dir = at.path("classes");
        for (file, text) in [
            ("Main.java", include_str!("jvm/Main.java")),
            ("Monitor.java", include_str!("jvm/Monitor.java")),
            ("Links.java", include_str!("engine_kills/Links.java")),
        ] {
            fs::write(at.path(file), text).unwrap();
            tool("javac", &["-g", "--release", "17", "-d", &dir, &at.path(file)]);
        }
        tool("jar", &["--create", "--file", &at.path("app.jar"), "--main-class", "Main", "-C", &dir, "."]);
        let root = at.0.join("root");
        for made in ["bin", "lib/x86_64-linux-gnu", "lib64", "tmp", "etc"] {
            fs::create_dir_all(root.join(made)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "readlink", "kill"] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::copy("/lib64/ld-linux-x86-64.so.2", root.join("lib64/ld-linux-x86-64.so.2")).unwrap();
        for library in LIBRARIES {
            let from = Path::new("/lib/x86_64-linux-gnu").join(library);
            fs::copy(from, root.join("lib/x86_64-linux-gnu").join(library)).unwrap();
        }
        let modules = "java.base,java.management,java.management.rmi,jdk.httpserver,jdk.management.agent,jdk.jdwp.agent";
        let jre = at.path("root/jre");
        tool("jlink", &["--add-modules", modules, "--strip-debug", "--no-man-pages", "--output", &jre]);
        let image = at.path("layout:jre");
        tool("umoci", &["init", "--layout", &at.path("layout")]);
        tool("umoci", &["new", "--image", &image]);
        tool("umoci", &["insert", "--rootless", "--image", &image, &at.path("root"), "/"]);
        tool("umoci", &["config", "--image", &image, "--config.env=PATH=/jre/bin:/bin"]);
        Java { home: Home::new(name), at }
    }

    /// The words that run `file` in a VM.
    fn words(&self, options: &[&str], file: &str, words: &[&str]) -> Vec<String> {
        let image = format!("oci:{}", self.at.path("layout:jre"));
        let vm = ["run", "--isolation", "vm", "--accel", "soft", "--image", &image];
        let file = self.at.path(file);
        let all = [&vm[..], options, &[file.as_str()], words].concat();
        all.into_iter().map(str::to_string).collect()
    }

    fn run(&self, options: &[&str], file: &str, words: &[&str]) -> viv_e2e::Outcome {
        let words = self.words(options, file, words);
        self.home.run(&words.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// What a server sends back for a body.
fn posted(port: u16, body: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let length = body.len();
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(body.1.to_string())
}

#[test]
fn a_program_in_a_vm_is_run_as_in_a_process() {
    let java = Java::new("jvm-vm-run");
    let squares = "Square[of=0, is=0],Square[of=1, is=1],Square[of=2, is=4],Square[of=3, is=9]";
    let jar = java.run(&["--rm"], "app.jar", &["a b", "c"]);
    assert_eq!(jar.ok().out, format!("{squares}[a b, c]\n"));
    for (options, file, status, text) in [
        (&["--time", "1s"][..], "app.jar", 2, "--time"),
        (&["--fuel", "1"], "app.jar", 2, "--fuel"),
        (&["--debug=x"], "app.jar", 2, "--debug"),
        (&[], "classes/Main$Square.class", 126, "no method main"),
    ] {
        let refused = java.run(options, file, &[]);
        assert!(refused.status == status && refused.err.contains(text), "{refused:?}");
    }
    let image = java.home.run(&["run", "--image", "x", &java.at.path("app.jar")]);
    assert!(image.status == 2 && image.err.contains("--isolation vm"), "{image:?}");
}

#[test]
#[ignore = "several boots of Java, which take minutes: cargo xtask nightly"]
fn classes_statuses_and_limits_are_those_of_a_process() {
    let java = Java::new("jvm-vm-ends");
    let class = java.run(&["--rm", "--cpus", "2"], "classes/Main.class", &[]);
    let said = class.ok().out;
    assert!(said.ends_with("Square[of=3, is=9][]\n"), "with the classes beside it: {said}");
    assert_eq!(java.run(&["--rm"], "app.jar", &["exit"]).status, 42);
    let memory = java.run(&["--rm", "--memory", "256M"], "app.jar", &["memory"]);
    assert!(memory.status == 137 && memory.out.contains("OutOfMemoryError"), "{memory:?}");
}

#[test]
#[ignore = "several boots of Java, which take minutes: cargo xtask nightly"]
fn a_warm_server_is_saved_restored_and_forked() {
    let java = Java::new("jvm-vm-warm");
    let home = &java.home;
    let (first, monitor) = (port(), port());
    let (publish, jmx) = (format!("127.0.0.1:{first}:8000"), format!("--jmx={monitor}"));
    let options = ["-d", "--name", "warm", "--cpus", "2", "-p", &publish, &jmx, "--java-option", "-Dmark=x"];
    java.run(&options, "app.jar", &["count"]).ok();
    until("it answers", WAIT, || posted(first, "a").is_ok_and(|answer| answer.starts_with("a ")));
    let count = |port: u16| posted(port, "n").unwrap()[2..].parse::<u32>().unwrap();
    let before = count(first);
    assert!(home.run(&["ps"]).ok().out.contains("app.jar (oci:"), "what it is is shown");
    let mark = tool("java", &["-cp", &java.at.path("classes"), "Monitor", &monitor.to_string()]);
    assert_eq!(mark, "mark=x\n", "a monitor gets in, at one port");

    home.run(&["snapshot", "create", "warm", "ready"]).ok();
    let log = |vm: &str| home.run(&["logs", vm]).ok().out;
    let mut clones = Vec::new();
    for name in ["one", "two", "three"] {
        let port = port();
        let publish = format!("127.0.0.1:{port}:8000");
        home.run(&["restore", "ready", "--name", name, "-p", &publish]).ok();
        clones.push((name, port));
    }
    for (name, port) in clones {
        until("it answers at its own port", WAIT, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        assert_eq!(count(port), before + 1, "{name} goes on with its count");
        assert_eq!(count(port), before + 2);
        home.run(&["rm", "-f", name]).ok();
    }
    assert_eq!(count(first), before + 1, "the source has its own");
    home.run(&["fork", "warm", "--count", "2", "--name", "f"]).ok();
    for name in ["f-1", "f-2"] {
        until("a fork ticks on", WAIT, || log(name).matches("tick").count() > 3);
        let text = log(name);
        assert!(!text.contains("tick 0\n") && !text.contains("ready"), "it began anew: {text}");
        home.run(&["exec", name, "threads"]).ok();
        until("it shows its threads", WAIT, || log(name).contains("Full thread dump"));
        home.run(&["rm", "-f", name]).ok();
    }
    home.run(&["stop", "warm"]).ok();
    // It boots with its program, which is in the VM and not where it was.
    fs::remove_file(java.at.path("app.jar")).unwrap();
    home.run(&["start", "warm"]).ok();
    until("it answers after a boot", WAIT, || posted(first, "a").is_ok_and(|answer| answer == "a 1"));
    home.run(&["rm", "-f", "warm"]).ok();
}

/// The first so many links of the chain of `engine_kills/Links.java`.
fn links(count: usize) -> Vec<String> {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let next = |number: u64| {
        hash = (hash ^ number).wrapping_mul(0x100_0000_01b3).rotate_left(29).wrapping_add(number);
        format!("{number:06} {hash:016x}")
    };
    (1..=count as u64).map(next).collect()
}

#[test]
#[ignore = "several boots of Java, which take minutes: cargo xtask nightly"]
fn a_chain_in_memory_goes_on_where_its_vm_or_the_service_is_killed() {
    let rounds = std::env::var("VIV_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let java = Java::new("jvm-vm-kills");
    let home = &java.home;
    java.run(&["-d", "--name", "vm-0"], "classes/Links.class", &[]).ok();
    // What it has said, and that it is the chain from some link on; gives that link and the last.
    let said = |vm: &str| {
        let log = home.run(&["logs", vm]).ok().out;
        let is_link = |line: &&str| line.len() == 23 && line.as_bytes()[6] == b' ';
        let lines: Vec<&str> = log.lines().map(str::trim_end).filter(is_link).collect();
        let first: usize = lines.first()?[..6].parse().ok()?;
        let last = first + lines.len() - 1;
        assert_eq!(lines, links(last)[first - 1..], "{vm}");
        Some((first, last))
    };
    let mut vm = "vm-0".to_string();
    for round in 0..rounds {
        until("it adds links", WAIT, || said(&vm).is_some_and(|(first, last)| last > first + 5));
        let (snapshot, new) = (format!("s-{round}"), format!("vm-{}", round + 1));
        let before = said(&vm).expect("it has said some").1;
        home.run(&["snapshot", "create", &vm, &snapshot]).ok();
        std::thread::sleep(Duration::from_millis(round * 37 % 200));
        let pid = home.json(&["inspect", &vm])[0]["pid"].to_string();
        match round % 2 {
            0 => tool("kill", &["-9", &pid]),
            _ => tool("kill", &["-9", &home.service()]),
        };
        let after = said(&vm).expect("it has said some").1;
        home.run(&["restore", &snapshot, "--name", &new]).ok();
        until("it goes on", WAIT, || said(&new).is_some());
        let first = said(&new).expect("it goes on").0;
        assert!(
            (before..=after + 2).contains(&first),
            "saved at {before} to {after}, it goes on with {first}"
        );
        println!("{round}: {vm} said {before} to {after}, {new} goes on with {first}");
        home.run(&["rm", "-f", &vm]).ok();
        vm = new;
    }
}

/// The debugger of the JDK, at its prompt.
struct Debugger(Child);

impl Debugger {
    /// Attaches to a port, sends commands, and gives what it says until `word` is there.
    fn talk(port: u16, commands: &str, word: &str) -> String {
        let attach = format!("127.0.0.1:{port}");
        let mut command = Command::new("jdb");
        let command = command.args(["-attach", &attach]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut debugger = Debugger(command.spawn().unwrap());
        let mut input = debugger.0.stdin.take().unwrap();
        input.write_all(commands.as_bytes()).unwrap();
        input.flush().unwrap();
        let (mut text, mut piece) = (String::new(), [0; 4096]);
        let mut output = debugger.0.stdout.take().unwrap();
        let start = Instant::now();
        while !text.contains(word) && start.elapsed() < WAIT {
            let count = output.read(&mut piece).unwrap();
            if count == 0 {
                break;
            }
            text.push_str(&String::from_utf8_lossy(&piece[..count]));
        }
        text
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "several boots of Java, which take minutes: cargo xtask nightly"]
fn debuggers_get_in_where_they_are_let() {
    let java = Java::new("jvm-vm-debug");
    let (debug, served) = (port(), port());
    let (door, publish) = (format!("--debug={debug}"), format!("127.0.0.1:{served}:8000"));
    let breakpoint = "stop in Main.counted\n";
    let check = |vm: &str| {
        until("it answers", WAIT, || posted(served, "a").is_ok_and(|answer| answer.starts_with("a ")));
        let asks = std::thread::spawn(move || {
            // Until one comes after the debugger, which stops the program, or there is none any more.
            for _ in 0..20 {
                std::thread::sleep(Duration::from_secs(3));
                if posted(served, "b").is_err() {
                    return;
                }
            }
        });
        let said = Debugger::talk(debug, breakpoint, "Breakpoint hit");
        assert!(said.contains("Breakpoint hit"), "{vm}: {said}");
        java.home.run(&["rm", "-f", vm]).ok();
        asks.join().unwrap();
    };
    let jar = java.at.path("app.jar");
    java.home.run(&["run", "-d", "--name", "process", &door, "-p", &publish, &jar, "count"]).ok();
    check("process");
    java.run(&["-d", "--name", "vm", &door, "-p", &publish], "app.jar", &["count"]).ok();
    check("vm");
}

#[test]
#[ignore = "builds an image from Debian's packages, which takes minutes: cargo xtask nightly"]
fn the_usual_java_is_built_from_packages() {
    let at = Directory::new("jvm-vm-packages");
    let dir = at.0.display().to_string();
    fs::write(at.path("Main.java"), include_str!("jvm/Main.java")).unwrap();
    tool("javac", &["--release", "17", "-d", &dir, &at.path("Main.java")]);
    let home = Home::new("jvm-vm-usual");
    for _ in 0..2 {
        let words = ["run", "--rm", "--isolation", "vm", &at.path("Main.class"), "x"];
        let outcome = home.run(&words).ok();
        assert!(outcome.out.ends_with("[x]\n"), "{outcome:?}");
        println!("{:?}", outcome.took);
    }
}
