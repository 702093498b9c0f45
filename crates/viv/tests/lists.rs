//! Lists in parts and as they change, and waiting, with a kernel of a hundred bytes.
mod kit;

use kit::{Home, until};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

/// Asks for a path; gives the head's lines and what reads on.
fn get(home: &Home, path: &str) -> (Vec<String>, BufReader<UnixStream>) {
    home.viv(&["info"]).ok(); // it is there, or started
    ask(home, path)
}

/// The same of a service that is there.
fn ask(home: &Home, path: &str) -> (Vec<String>, BufReader<UnixStream>) {
    let mut socket = UnixStream::connect(home.dir.join("home/run/viv.sock")).unwrap();
    socket.set_read_timeout(Some(kit::LIMIT)).unwrap();
    write!(socket, "GET {path} HTTP/1.0\r\nHost: vivarium\r\n\r\n").unwrap();
    let mut reader = BufReader::new(socket);
    let head = reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
    (head, reader)
}

/// The names in an answer, and where its next part is.
fn part(home: &Home, path: &str) -> (Vec<String>, Option<String>) {
    let (head, body) = get(home, path);
    assert!(head[0].contains(" 200 "), "{head:?}");
    let list: Vec<Value> = serde_json::from_reader(body).unwrap();
    let names = list.iter().map(|vm| vm["name"].as_str().unwrap().to_string()).collect();
    let link = head.iter().find_map(|line| line.strip_prefix("link: <")?.strip_suffix(">; rel=\"next\""));
    (names, link.map(str::to_string))
}

/// The next event: its kind, its id and its data.
fn event(stream: &mut impl BufRead) -> (String, Option<u64>, Value) {
    let (mut kind, mut id, mut data) = (String::new(), None, Value::Null);
    for line in stream.lines().map(Result::unwrap) {
        match line.split_once(": ") {
            Some(("event", text)) => kind = text.to_string(),
            Some(("id", text)) => id = Some(text.parse().unwrap()),
            Some(("data", text)) => data = serde_json::from_str(text).unwrap(),
            _ if !kind.is_empty() => return (kind, id, data),
            _ => {}
        }
    }
    panic!("the stream ended");
}

fn describe(home: &Home, name: &str, label: &str) {
    let file = home.dir.join("vm.json");
    let vm = json!({"name": name, "kernel": home.kernel(), "accel": "soft", "labels": [label]});
    std::fs::write(&file, vm.to_string()).unwrap();
    home.viv(&["create", "-f", file.to_str().unwrap()]).ok();
}

#[test]
fn a_list_comes_in_parts_of_what_is_wanted() {
    let home = Home::new("parts");
    for (name, label) in [("a", "tier=front"), ("b", "tier=back"), ("c", "tier=front")] {
        describe(&home, name, label);
    }
    let (first, next) = part(&home, "/v1/vms?limit=2");
    assert_eq!(first, ["a", "b"]);
    home.viv(&["rm", "b"]).ok();
    assert_eq!(part(&home, &next.expect("more follows")), (vec!["c".to_string()], None));
    assert_eq!(
        part(&home, "/v1/vms?label=tier=front&limit=2"),
        (vec!["a".to_string(), "c".to_string()], None)
    );
    home.viv(&["start", "c"]).ok();
    let ps = |words: &[&str]| home.viv(&[&["ps", "-q"], words].concat()).ok().out;
    assert_eq!(ps(&[]), "c\n");
    assert_eq!(ps(&["-f", "state=defined"]), "a\n");
    assert_eq!(ps(&["-a", "-f", "label=tier", "-f", "name=*"]), "a\nc\n");
    assert_eq!(ps(&["-f", "network=lan"]), "");
    home.viv(&["ps", "-f", "color=red"]).fails(2, &["label"]);
    home.viv(&["ps", "-f", "state=gone"]).fails(2, &["gone", "paused"]);
    home.viv(&["rm", "-f", "a", "c"]).ok();
}

#[test]
fn a_watch_tells_what_changes_and_goes_on_where_it_was() {
    let home = Home::new("watch");
    describe(&home, "a", "tier=front");
    let (head, mut stream) = get(&home, "/v1/vms?watch=true&label=tier=front");
    assert!(head.contains(&"content-type: text/event-stream".to_string()), "{head:?}");
    let (kind, id, vm) = event(&mut stream);
    assert_eq!((kind.as_str(), id, &vm["name"], &vm["state"]), ("put", None, &json!("a"), &json!("defined")));
    let (kind, id, _) = event(&mut stream);
    assert_eq!(kind, "listed");
    describe(&home, "other", "tier=back");
    home.viv(&["start", "a"]).ok();
    let states = |stream: &mut BufReader<UnixStream>, last: &str| {
        let mut revision = None;
        loop {
            let (kind, id, data) = event(stream);
            assert_eq!(data["name"], "a", "the other one is not wanted");
            revision = id.or(revision);
            if kind == last || data["state"] == last {
                return revision.unwrap();
            }
        }
    };
    let running = states(&mut stream, "running");
    drop(stream);
    home.viv(&["pause", "a"]).ok();
    let (_, mut stream) = get(&home, &format!("/v1/vms?watch=true&label=tier=front&since={running}"));
    assert!(states(&mut stream, "paused") > id.unwrap());
    home.viv(&["rm", "-f", "a"]).ok();
    states(&mut stream, "delete");
    home.viv(&["rm", "other"]).ok();
}

#[test]
fn somebody_waits_for_what_a_vm_becomes() {
    let home = Home::new("wait");
    describe(&home, "a", "tier=front");
    home.viv(&["wait", "a"]).ok();
    home.viv(&["wait", "nobody"]).fails(3, &["nobody"]);
    home.viv(&["wait", "--state", "dead", "a"]).fails(2, &["healthy"]);
    home.viv(&["wait", "--state", "running", "--timeout", "0", "a"]).fails(7, &["defined", "running"]);
    let wait = |state: &str| {
        let mut command = home.command(&["wait", "--json", "--state", state, "a"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let running = wait("running");
    home.viv(&["start", "a"]).ok();
    let outcome = running.wait_with_output().unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(serde_json::from_slice::<Value>(&outcome.stdout).unwrap()[0]["name"], "a");
    home.viv(&["wait", "--state", "healthy", "a"]).fails(4, &["health check"]);
    let (ended, paused) = (wait("ended"), wait("paused"));
    home.viv(&["pause", "a"]).ok();
    assert!(paused.wait_with_output().unwrap().status.success());
    home.viv(&["resume", "a"]).ok();
    home.viv(&["kill", "a"]).ok();
    assert!(ended.wait_with_output().unwrap().status.success());
    home.viv(&["rm", "a"]).ok();
}

#[test]
fn a_reboot_is_told_when_it_happens() {
    let home = Home::new("reboot");
    home.viv(&[
        "run",
        "-d",
        "--reboot",
        "restart",
        "--name",
        "a",
        "--accel",
        "soft",
        "--kernel",
        &home.kernel(),
    ])
    .ok();
    let told = || home.viv(&["events", "--since", "0", "--event", "vm.rebooted", "a"]).ok().out;
    assert_eq!(told(), "");
    let mut console =
        home.command(&["console", "a"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    console.stdin.as_mut().unwrap().write_all(b"r").unwrap();
    until("the event", || told().lines().count() == 1);
    home.viv(&["rm", "-f", "a"]).ok();
    console.wait().unwrap();
}

#[test]
fn what_is_forgotten_by_force_has_not_failed() {
    let home = Home::new("forced");
    let names: Vec<String> = (0..8).map(|number| format!("vm-{number}")).collect();
    for name in &names {
        describe(&home, name, "a=b");
        home.viv(&["start", name]).ok();
    }
    let words: Vec<&str> = ["rm", "-f"].into_iter().chain(names.iter().map(String::as_str)).collect();
    home.viv(&words).ok();
    let events = home.viv(&["events"]).ok().out;
    for name in &names {
        let of_it: Vec<&str> = events.lines().filter(|line| line.contains(name.as_str())).collect();
        assert!(of_it.last().unwrap().contains("vm.removed"), "{of_it:#?}");
        let running = of_it.iter().filter(|line| line.ends_with("running")).count();
        assert!(running == 1 && !of_it.iter().any(|line| line.contains("failed")), "{of_it:#?}");
    }
}

#[test]
fn a_thousand_watch_and_thousands_wait_and_nobody_is_in_the_way() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).unwrap();
    let home = Home::new("crowd");
    home.viv(&["info"]).ok();
    let socket = home.dir.join("home/run/viv.sock");
    let mut watchers: Vec<_> = (0..1000)
        .map(|number| match number % 2 {
            0 => ask(&home, "/v1/events?follow=true").1,
            _ => ask(&home, "/v1/vms?watch=true").1,
        })
        .collect();
    // More than there are places: who waits longest gives up its own.
    let mut idle: Vec<UnixStream> = (0..3000).map(|_| UnixStream::connect(&socket).unwrap()).collect();
    let mut half = UnixStream::connect(&socket).unwrap();
    half.write_all(b"GET /v1/in").unwrap();
    describe(&home, "seen", "crowd=yes");
    assert_eq!(home.viv(&["ps", "-a", "-q"]).ok().out.lines().count(), 1);
    half.write_all(b"fo HTTP/1.0\r\nHost: vivarium\r\n\r\n").unwrap();
    let mut answer = String::new();
    BufReader::new(half).read_line(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");
    for watcher in &mut watchers {
        assert!(watcher.lines().map(Result::unwrap).any(|line| line.contains("\"seen\"")));
    }
    let first = &mut idle[0];
    first.set_read_timeout(Some(kit::LIMIT)).unwrap();
    assert_eq!(first.read(&mut [0]).unwrap(), 0, "it was given up");
}
