//! A default guest over WebSockets: its console, commands in it, and a server's port.
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use tungstenite::{Message, WebSocket};
use viv_e2e::{Home, until};

const WAIT: Duration = Duration::from_secs(120);

fn open(home: &Home, path: &str) -> WebSocket<UnixStream> {
    home.service(); // it is there, or started
    let stream = UnixStream::connect(home.path("run/viv.sock")).unwrap();
    stream.set_read_timeout(Some(WAIT)).unwrap();
    tungstenite::client(format!("ws://vivarium{path}"), stream).unwrap().0
}

/// Reads binary messages until this was said.
fn until_said(socket: &mut WebSocket<UnixStream>, words: &str) {
    let mut said = String::new();
    while !said.contains(words) {
        match socket.read().unwrap() {
            Message::Binary(bytes) => said.push_str(&String::from_utf8_lossy(&bytes)),
            Message::Ping(_) => {}
            other => panic!("{other:?} after {said:?}"),
        }
    }
}

/// A command, with nothing said to it yet.
fn exec(home: &Home, vm: &str, exec: serde_json::Value) -> WebSocket<UnixStream> {
    let mut socket = open(home, &format!("/v1/vms/{vm}/agent?wait=60&boot=120"));
    socket.send(Message::text(serde_json::json!({ "exec": exec }).to_string())).unwrap();
    socket
}

/// What a command has said to its end: output, errors, texts, and why the WebSocket was closed.
fn outcome(mut socket: WebSocket<UnixStream>) -> (String, String, Vec<String>, (u16, String)) {
    let (mut out, mut err, mut texts) = (Vec::new(), Vec::new(), Vec::new());
    let end = loop {
        match socket.read().unwrap() {
            Message::Binary(bytes) if bytes[0] == 1 => out.extend_from_slice(&bytes[1..]),
            Message::Binary(bytes) if bytes[0] == 2 => err.extend_from_slice(&bytes[1..]),
            Message::Text(text) => texts.push(text.to_string()),
            Message::Close(Some(frame)) => break (frame.code.into(), frame.reason.to_string()),
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    };
    (String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap(), texts, end)
}

fn stdin(bytes: &[u8]) -> Message {
    Message::binary([b"\0", bytes].concat())
}

#[test]
fn a_guest_is_used_over_websockets() {
    let home = Home::new("websocket");
    home.run(&["run", "-d", "--accel", "soft", "--name", "web", "--net", "user"]).ok();
    // Standard input, its end, both outputs and the status.
    let script = "cat; echo oh >&2; exit 3";
    let mut command = exec(&home, "web", serde_json::json!({"argv": ["sh", "-c", script]}));
    command.send(stdin(b"hello ")).unwrap();
    command.send(stdin(b"guest")).unwrap();
    command.send(stdin(b"")).unwrap();
    let (out, err, texts, end) = outcome(command);
    assert_eq!((out.as_str(), err.as_str()), ("hello guest", "oh\n"));
    assert_eq!((texts, end), (vec![r#"{"exit":3}"#.to_string()], (1000, "exit status 3".to_string())));
    // More than is buffered anywhere, both ways at once.
    let mut command =
        exec(&home, "web", serde_json::json!({"argv": ["sh", "-c", "head -c 1500000 /dev/zero"]}));
    for _ in 0..10 {
        command.send(stdin(&[b'x'; 100_000])).unwrap();
    }
    let (out, ..) = outcome(command);
    assert_eq!(out.len(), 1_500_000);
    // A signal, one that is not there, and a terminal with another size.
    let mut command =
        exec(&home, "web", serde_json::json!({"argv": ["sh", "-c", "echo ready; exec sleep 100"]}));
    until_said(&mut command, "ready");
    command.send(Message::text(r#"{"signal": 15}"#)).unwrap();
    assert_eq!(outcome(command).2, [r#"{"exit":143}"#]);
    let (.., texts, end) = outcome(exec(&home, "web", serde_json::json!({"argv": ["nothing-like-it"]})));
    assert!(texts[0].contains(r#"{"error":""#) && texts[1] == r#"{"exit":127}"#, "{texts:?}");
    assert_eq!(end.0, 1000);
    let mut terminal = exec(&home, "web", serde_json::json!({"argv": ["sh"], "tty": true}));
    terminal.send(Message::text(r#"{"resize": {"rows": 41, "cols": 97}}"#)).unwrap();
    terminal.send(stdin(b"stty size; exit 7\r")).unwrap();
    let (out, _, texts, _) = outcome(terminal);
    assert!(out.contains("41 97") && texts == [r#"{"exit":7}"#], "{out:?} {texts:?}");

    // The console: a command typed, its answer read; and the size of its terminal.
    let mut console = open(&home, "/v1/vms/web/console");
    console.send(Message::text(r#"{"resize": {"rows": 33, "cols": 101}}"#)).unwrap();
    until("the size", WAIT, || {
        home.run(&["exec", "web", "--", "sh", "-c", "stty size < /dev/ttyS0"]).out == "33 101\n"
    });
    console.send(Message::binary(&b"echo answer $((6 * 7))\r"[..])).unwrap();
    until_said(&mut console, "answer 42");

    // A port: a server of the guest that is not published.
    home.run(&[
        "exec",
        "web",
        "--",
        "sh",
        "-c",
        "mkdir /www; echo the page > /www/index.html; httpd -h /www",
    ])
    .ok();
    let mut port = open(&home, "/v1/vms/web/connect/80");
    port.send(Message::binary(&b"GET / HTTP/1.0\r\n\r\n"[..])).unwrap();
    until_said(&mut port, "the page");
    let nothing = outcome(open(&home, "/v1/vms/web/connect/81")).3;
    assert!(nothing.0 == 1000 && nothing.1.contains("nothing listens"), "{nothing:?}");

    // A client that does not read: the guest and the service go on.
    let mut deaf = exec(&home, "web", serde_json::json!({"argv": ["cat", "/dev/zero"]}));
    deaf.get_mut().flush().unwrap();
    deaf.get_mut().read_exact(&mut [0; 1000]).unwrap();
    assert_eq!(home.run(&["exec", "web", "--", "echo", "well"]).ok().out, "well\n");
    home.run(&["kill", "web"]).ok();
    let end = closed(console);
    assert!(end.0 == 1001 && end.1.contains("has ended"), "{end:?}");
    drop(deaf);
}

fn closed(mut console: WebSocket<UnixStream>) -> (u16, String) {
    loop {
        if let Message::Close(Some(frame)) = console.read().unwrap() {
            return (frame.code.into(), frame.reason.to_string());
        }
    }
}

/// A program as a VM: its standard streams are what a command without words is.
#[test]
fn a_program_is_talked_to_over_a_websocket() {
    let home = Home::bare("websocket-program");
    let file = home.path("echo.wat");
    std::fs::write(&file, include_str!("wasm/echo.wat")).unwrap();
    home.service(); // it is there, or started
    // It has an input as somebody waits for it: this test.
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let start_ticks: u64 = after_name.split_whitespace().nth(19).unwrap().parse().unwrap(); // starttime: proc_pid_stat(5)
    let ask = serde_json::json!({
        "name": "echo", "program": {"kind": "wasm", "file": file}, "start": true,
        "attended_by": {"pid": std::process::id(), "start_ticks": start_ticks},
    });
    let made = home.ask("POST /v1/vms", "", &ask.to_string());
    assert_eq!(made.status, 200, "{made:?}");
    let mut program = exec(&home, "echo", serde_json::json!({"argv": []}));
    program.send(stdin(b"to a program")).unwrap();
    until_said(&mut program, "to a program");
    program.send(stdin(b"")).unwrap();
    let (.., texts, end) = outcome(program);
    assert_eq!((texts, end.0), (vec![r#"{"exit":0}"#.to_string()], 1000));
}
