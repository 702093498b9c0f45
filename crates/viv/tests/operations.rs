//! Long works: seen, followed, waited for and given up, whoever began them.
mod kit;

use kit::{Home, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

/// The status, the head's lines and the body of an answer.
fn ask(home: &Home, request: &str, body: &str) -> (String, Vec<String>, String) {
    home.viv(&["info"]).ok(); // it is there, or started
    let mut socket = UnixStream::connect(home.dir.join("home/run/viv.sock")).unwrap();
    socket.set_read_timeout(Some(kit::LIMIT)).unwrap();
    write!(
        socket,
        "{request} HTTP/1.0\r\nHost: vivarium\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut reader = BufReader::new(socket);
    let mut head: Vec<String> =
        reader.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()).collect();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    (head.remove(0), head, text)
}

fn operation(home: &Home, number: &str) -> Value {
    home.viv(&["operation", "show", number]).ok().json()[0].clone()
}

/// Begins an import that goes on by itself.
fn import(home: &Home, file: &str, name: &str) -> String {
    let begun = home.viv(&["import", "--detach", "--name", name, file]).ok();
    assert!(begun.err.contains("viv operation wait"), "{begun:?}");
    begun.out.trim().to_string()
}

#[test]
fn a_detached_work_ends_by_itself_and_says_what_it_has_made() {
    let home = Home::new("operations");
    let disk = home.file("box.raw", &vec![7; 3 << 20]);
    let first = import(&home, &disk, "box");
    assert_eq!(first, "1");
    home.viv(&["operation", "wait", &first]).ok();
    let done = operation(&home, &first);
    assert_eq!((&done["state"], &done["kind"]), (&json!("done"), &json!("image-import")), "{done}");
    assert_eq!((&done["detached"], &done["runs"]), (&json!(true), &json!(1)), "{done}");
    assert_eq!(done["result"]["image"]["name"], "box", "{done}");
    assert!(done["ended_at"].is_string() && done["subject"].as_str().unwrap().ends_with("box.raw"), "{done}");
    home.viv(&["image", "show", "box"]).ok();

    // The same name again: it fails, and its end is that of who waits for it.
    let second = import(&home, &disk, "box");
    home.viv(&["operation", "wait", &second]).fails(4, &["box"]);
    assert_eq!(operation(&home, &second)["state"], "failed");
    home.viv(&["operation", "cancel", &second]).fails(4, &["has ended already", "failed"]);
    home.viv(&["operation", "show", "99"]).fails(3, &["99", "viv operation ls"]);
    home.viv(&["operation", "wait", "x"]).fails(2, &["x"]);

    // One that is waited for is an operation too.
    home.viv(&["import", "--name", "other", &disk]).ok();
    let rows = home.viv(&["operation", "ls"]).ok().out;
    assert_eq!(rows.lines().count(), 4, "{rows}");
    assert_eq!(home.viv(&["op", "ls", "-q", "--state", "failed"]).ok().out, format!("{second}\n"));
    assert_eq!(home.viv(&["op", "ls", "-q", "--live"]).ok().out, "");
    home.viv(&["op", "ls", "--state", "gone"]).fails(2, &["gone", "interrupted"]);
    assert_eq!(home.viv(&["--json", "op", "ls"]).ok().json()[2]["detached"], false);
    let events = home.viv(&["events", "--event", "operation"]).ok().out;
    assert_eq!(events.matches("operation.started").count(), 3, "{events}");
    assert!(events.contains("image-import") && events.matches("operation.ended").count() == 3, "{events}");
}

#[test]
fn the_api_answers_at_once_or_line_by_line() {
    let home = Home::new("operations-api");
    let disk = home.file("box.raw", &vec![7; 1 << 20]);
    let body = json!({"path": disk, "name": "one"}).to_string();
    let (status, head, answer) = ask(&home, "POST /v1/images/import?detach=true", &body);
    assert!(status.contains(" 202 "), "{status} {answer}");
    let begun: Value = serde_json::from_str(&answer).unwrap();
    let place = format!("location: /v1/operations/{}", begun["id"]);
    assert!(head.contains(&place), "{head:?}");
    let (_, _, lines) = ask(&home, &format!("GET /v1/operations/{}/lines", begun["id"]), "");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["operation"]["id"], begun["id"], "{lines:?}");
    assert_eq!(lines.last().unwrap()["done"]["name"], "one", "{lines:?}");

    let body = json!({"path": disk, "name": "two"}).to_string();
    let (status, _, lines) = ask(&home, "POST /v1/images/import", &body);
    assert!(status.contains(" 200 "), "{status}");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["operation"]["state"], "running", "{lines:?}");
    assert!(lines.iter().any(|line| line["progress"].is_object()), "{lines:?}");
    assert_eq!(lines.last().unwrap()["done"]["name"], "two", "{lines:?}");

    let (status, head, part) = ask(&home, "GET /v1/operations?limit=1&name=*box.raw", "");
    assert!(status.contains(" 200 ") && head.iter().any(|line| line.starts_with("link: ")), "{head:?}");
    assert_eq!(serde_json::from_str::<Value>(&part).unwrap().as_array().unwrap().len(), 1);
    let (_, _, page) = ask(&home, "GET /metrics", "");
    assert!(page.contains("viv_operations{state=\"running\"} 0"), "{page}");
    for (request, expected) in [
        ("GET /v1/operations/0", " 404 "),
        ("GET /v1/operations/99999999999999999999999", " 404 "),
        ("GET /v1/operations/x/lines", " 404 "),
        ("GET /v1/operations?state=gone", " 400 "),
        ("POST /v1/images/import?job=x", " 400 "),
    ] {
        let (status, _, answer) = ask(&home, request, "");
        assert!(status.contains(expected), "{request}: {status} {answer}");
    }
}

#[test]
fn what_a_killed_service_leaves_goes_on_or_is_told_of() {
    let home = Home::new("operations-killed");
    // A disk that takes a while to read: long enough to be killed in.
    let disk = home.dir.join("big.raw");
    let file = fs::File::create(&disk).unwrap();
    let piece: Vec<u8> = (0..1 << 20).map(|at: u32| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for _ in 0..600 {
        (&file).write_all(&piece).unwrap();
    }
    drop(file);
    let disk = disk.to_str().unwrap();
    let detached = import(&home, disk, "detached");
    let mut attended = home.spawn(&["import", "--name", "attended", disk]);
    until("both go on", || {
        let live = home.viv(&["--json", "op", "ls", "--live"]).ok().json();
        live.as_array().unwrap().iter().filter(|one| one["state"] == "running").count() == 2
    });
    kit::signal(home.service().unwrap(), Signal::KILL);
    assert_ne!(attended.wait().unwrap().code(), Some(0));
    // The next one takes it up.
    let interrupted = operation(&home, "2");
    assert_eq!(interrupted["state"], "interrupted", "{interrupted}");
    assert!(interrupted["fault"]["fix"].is_string(), "{interrupted}");
    assert_eq!(operation(&home, &detached)["runs"], 2);
    home.viv(&["operation", "wait", &detached]).ok();
    assert_eq!(operation(&home, &detached)["state"], "done");
    home.viv(&["image", "show", "detached"]).ok();

    // Given up, by whoever waits for it or by anybody: nothing is left of it.
    let third = import(&home, disk, "third");
    home.viv(&["operation", "cancel", &third]).ok();
    home.viv(&["operation", "wait", &third]).fails(1, &["given up"]);
    assert_eq!(operation(&home, &third)["state"], "cancelled");
    let mut fourth = home.spawn(&["import", "--name", "fourth", disk]);
    until("it goes on", || home.viv(&["op", "ls", "-q", "--live"]).ok().out == "4\n");
    kit::signal(fourth.id(), Signal::INT);
    assert_eq!(fourth.wait().unwrap().code(), Some(130));
    until("it is given up", || operation(&home, "4")["state"] == "cancelled");
    for name in ["third", "fourth", "attended"] {
        home.viv(&["image", "show", name]).fails(3, &[name]);
    }
}
