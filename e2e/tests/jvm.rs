//! Java programs, as VMs like any other: what they do, how they end, and what they do not reach.
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};
use viv_e2e::{Directory, Home, tool, until};

/// A home, and a directory with the program compiled, as classes and as an archive.
fn home(name: &str) -> (Home, Directory) {
    let at = Directory::new(&format!("{name}-classes"));
    fs::write(at.path("Main.java"), include_str!("jvm/Main.java")).unwrap();
    let dir = at.0.display().to_string();
    tool("javac", &["--release", "17", "-d", &dir, &at.path("Main.java")]);
    tool("jar", &["--create", "--file", &at.path("app.jar"), "--main-class", "Main", "-C", &dir, "."]);
    (Home::bare(name), at)
}

#[test]
fn a_program_runs_with_our_streams_and_its_own_status() {
    let (home, at) = home("jvm-run");
    let jar = at.path("app.jar");
    let run = |words: &[&str]| home.run(&[&["run", "--rm", &jar], words].concat());
    let squares = "Square[of=0, is=0],Square[of=1, is=1],Square[of=2, is=4],Square[of=3, is=9]";
    assert_eq!(run(&["a b", "c"]).ok().out, format!("{squares}[a b, c]\n"));
    let class = home.run(&["run", "--rm", &at.path("Main.class")]).ok();
    assert_eq!(class.out, format!("{squares}[]\n"), "with the classes beside it");
    assert_eq!(run(&["exit"]).status, 42);
    for (word, text) in [("throw", "IllegalStateException: bad"), ("deep", "StackOverflowError")] {
        let thrown = run(&[word]);
        assert!(thrown.status == 1 && thrown.err.contains(text), "{thrown:?}");
    }
    let mut read = home.viv(&["run", "--rm", &jar, "read"]);
    let mut read = read.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    read.stdin.take().unwrap().write_all(b"over and out").unwrap();
    assert_eq!(read.wait_with_output().unwrap().stdout, b"over and out");
    let told = home.run(&[
        "run",
        "--rm",
        "--java-option",
        "-Dx=y",
        "--java-option",
        "-XshowSettings:properties",
        &jar,
    ]);
    assert!(told.ok().err.contains("x = y"));
}

#[test]
fn limits_bite_and_a_stop_is_heard() {
    let (home, at) = home("jvm-limits");
    let jar = at.path("app.jar");
    let memory = home.run(&["run", "--rm", "--memory", "64M", &jar, "memory"]);
    assert!(memory.status == 137 && memory.err.contains("44 MiB"), "{memory:?}");
    let time = home.run(&["run", "--rm", "--time", "1s", &jar, "loop"]);
    assert!(time.status == 124 && time.took < Duration::from_secs(20), "{time:?}");

    home.run(&["run", "-d", "--name", "hook", &jar, "hook"]).ok();
    let log = || home.run(&["logs", "hook"]).ok().out;
    until("it is ready", Duration::from_secs(30), || log() == "ready\n");
    let shown = home.json(&["inspect", "hook"])[0].clone();
    assert_eq!(shown["kind"], "jvm");
    for word in ["landlock", "seccomp"] {
        assert!(shown["sandbox"].as_array().unwrap().contains(&word.into()), "{shown}");
    }
    assert!(home.json(&["stats", "hook"])[0]["program"]["memory_bytes"].as_u64().unwrap() > 10 << 20);
    home.run(&["pause", "hook"]).ok();
    assert_eq!(home.json(&["inspect", "hook"])[0]["state"], "paused");
    home.run(&["resume", "hook"]).ok();
    home.run(&["exec", "hook", "threads"]).ok();
    until("it shows its threads", Duration::from_secs(30), || log().contains("Full thread dump"));
    assert_eq!(home.run(&["exec", "hook", "ls"]).status, 126);
    home.run(&["stop", "hook"]).ok();
    assert!(log().contains("switched off"), "its hooks ran: {}", log());
    assert_eq!(home.json(&["inspect", "hook"])[0]["end"]["reason"], "power-off");
    // Again, with the classes that the first run has left.
    home.run(&["start", "hook"]).ok();
    until("it is ready", Duration::from_secs(30), || log().matches("ready").count() == 2);
    home.run(&["rm", "-f", "hook"]).ok();

    home.run(&["run", "-d", "--name", "deaf", &jar, "ignore"]).ok();
    until("it is ready", Duration::from_secs(30), || home.run(&["logs", "deaf"]).ok().out == "ready\n");
    let start = Instant::now();
    home.run(&["stop", "--time", "1", "deaf"]).ok();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    assert_eq!(home.json(&["inspect", "deaf"])[0]["state"], "stopped");
}

#[test]
fn it_reaches_its_own_and_nothing_else() {
    let (home, at) = home("jvm-reach");
    let jar = at.path("app.jar");
    let shared = Directory::new("jvm-shared");
    let share = |way: &str| format!("{0}:{0}{way}", shared.0.display());
    let note = shared.path("note");
    let put = |options: &[&str], path: &str| {
        home.run(&[&["run", "--rm"], options, &[jar.as_str(), "files", path]].concat())
    };
    assert_eq!(put(&[], "note").ok().out, "note\n", "its own directory");
    assert_eq!(put(&["-v", &share("")], &note).ok().out, "note\n");
    let denied = [put(&["-v", &share(":ro")], &note), put(&[], &note), put(&[], "/tmp/viv-jvm-out")];
    for outcome in denied {
        assert!(outcome.status == 1 && outcome.err.contains("AccessDenied"), "{outcome:?}");
    }
    assert_eq!(put(&["-v", &format!("{}:/data", shared.0.display())], &note).status, 2);
    let sockets = home.run(&["run", "--rm", &jar, "sockets"]);
    assert!(sockets.status == 1 && sockets.out == "7\n", "itself alone: {sockets:?}");
    assert!(sockets.err.contains("unreachable"), "{sockets:?}");
    let process = home.run(&["run", "--rm", &jar, "process"]);
    assert!(process.status == 1 && process.err.contains("Permission denied"), "{process:?}");
}

/// What an HTTP server sends back for a body.
fn posted(port: u16, body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let length = body.len();
    write!(stream, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end =
        answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(answer.split_off(end + 4))
}

#[test]
fn a_server_is_reached_at_a_published_port() {
    let (home, at) = home("jvm-ports");
    let jar = at.path("app.jar");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publish = format!("127.0.0.1:{port}:8000");
    home.run(&["run", "-d", "--name", "web", "-p", &publish, &jar, "http"]).ok();
    until("it is ready", Duration::from_secs(30), || home.run(&["logs", "web"]).ok().out == "ready\n");
    assert_eq!(posted(port, b"hello").unwrap(), b"hello");
    let long: Vec<u8> = (0..1_000_000_u32).map(|number| (number * 7 >> 3) as u8).collect();
    std::thread::scope(|threads| {
        let all: Vec<_> = (0..20).map(|_| threads.spawn(|| posted(port, &long).unwrap() == long)).collect();
        assert!(all.into_iter().all(|one| one.join().unwrap()), "what comes back is what was sent");
    });
    assert_eq!(home.run(&["port", "web"]).ok().out, format!("8000/tcp -> 127.0.0.1:{port}\n"));
    let taken = home.run(&["run", "-d", "-p", &publish, &jar, "http"]);
    assert!(taken.status == 4 && taken.err.contains("in use"), "{taken:?}");
    let datagrams = home.run(&["run", "-d", "-p", &format!("{publish}/udp"), &jar, "http"]);
    assert!(datagrams.status == 2 && datagrams.err.contains("/udp"), "{datagrams:?}");
    // While it stands still a request waits; afterwards it is answered.
    home.run(&["pause", "web"]).ok();
    std::thread::scope(|threads| {
        let waits = threads.spawn(|| posted(port, b"later"));
        std::thread::sleep(Duration::from_millis(500));
        assert!(!waits.is_finished());
        home.run(&["resume", "web"]).ok();
        assert_eq!(waits.join().unwrap().unwrap(), b"later");
    });
    home.run(&["stop", "web"]).ok();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    home.run(&["start", "web"]).ok();
    until("it answers again", Duration::from_secs(30), || {
        posted(port, b"again").is_ok_and(|body| body == b"again")
    });
}

#[test]
fn what_cannot_be_run_says_why() {
    let (home, at) = home("jvm-refused");
    let class = fs::read(at.path("Main.class")).unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(at.path(name), bytes).unwrap();
    let newer = [&class[..6], &[1, 0], &class[8..]].concat();
    write("newer.class", &newer);
    write("short.class", &class[..class.len() / 2]);
    write("empty.jar", b"");
    write("broken.jar", b"PK\x03\x04 and then something else");
    tool(
        "jar",
        &["--create", "--file", &at.path("bare.jar"), "-C", &at.0.display().to_string(), "Main.class"],
    );
    let elsewhere = Directory::new("jvm-elsewhere");
    fs::create_dir(elsewhere.path("other")).unwrap();
    fs::write(elsewhere.path("other/Other.class"), &class).unwrap();
    for (path, words) in [
        (at.path("newer.class"), "made for Java 212"),
        (at.path("short.class"), "cut off"),
        (at.path("empty.jar"), "empty"),
        (at.path("broken.jar"), "archive"),
        (at.path("bare.jar"), "Main-Class"),
        (at.path("Main$Square.class"), "no method main"),
        (elsewhere.path("other/Other.class"), "does not lie where"),
    ] {
        let refused = home.run(&["run", "--rm", &path]);
        assert!(refused.status == 126 && refused.err.contains(words), "{path}: {refused:?}");
    }
    // The service that a command starts has its environment.
    let other = Home::bare("jvm-without");
    let mut without = other.viv(&["run", "--rm", &at.path("app.jar")]);
    let output = without.env("JAVA_HOME", "/nowhere").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(126) && text.contains("JAVA_HOME is /nowhere"), "{text}");
}
