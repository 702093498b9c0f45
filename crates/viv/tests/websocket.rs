//! Consoles and commands over WebSockets: by ticket from a page's place, and on the Unix socket.
mod kit;

use kit::Home;
use kit::lab::Lab;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::HandshakeError;
use tungstenite::http::HeaderValue;
use tungstenite::{Error, Message, WebSocket};

/// Why no WebSocket was opened: the status, and the fault with the head's fields.
type Refused = (u16, String);

/// Opens one, with these fields more in its head, or in the place of what the library says.
fn open<S: Read + Write>(
    url: &str,
    fields: &[(&'static str, String)],
    stream: S,
) -> Result<WebSocket<S>, Refused> {
    let mut request = url.into_client_request().unwrap();
    for (name, value) in fields {
        request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
    }
    match tungstenite::client(request, stream) {
        Ok((socket, _)) => Ok(socket),
        Err(HandshakeError::Failure(Error::Http(answer))) => {
            let body = String::from_utf8(answer.body().clone().unwrap_or_default()).unwrap();
            Err((answer.status().as_u16(), body))
        }
        Err(error) => panic!("{error}"),
    }
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

fn tls(lab: &Lab) -> Tls {
    let mut roots = RootCertStore::empty();
    let ca = std::fs::read(lab.guest.dir.join("ca.pem")).unwrap();
    roots.add(CertificateDer::from_pem_slice(&ca).unwrap()).unwrap();
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let name = "127.0.0.1".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(lab.url.trim_start_matches("https://")).unwrap();
    socket.set_read_timeout(Some(kit::LIMIT)).unwrap();
    StreamOwned::new(connection, socket)
}

/// Opens one over the network.
fn by(lab: &Lab, path: &str, fields: &[(&'static str, String)]) -> Result<WebSocket<Tls>, Refused> {
    open(&format!("{}{path}", lab.url.replace("https:", "wss:")), fields, tls(lab))
}

/// Asks for a ticket.
fn ask(lab: &Lab, token: &str, path: &str) -> (u16, Value) {
    let bearer = format!("Authorization: Bearer {token}");
    let body = json!({ "path": path }).to_string();
    let words = ["-H", &bearer, "-H", "Content-Type: application/json", "-d", &body];
    let (status, answer) = lab.curl(&words, "/v1/tickets");
    (status, serde_json::from_str(&answer).unwrap())
}

fn ticket(lab: &Lab, token: &str, path: &str) -> String {
    let (status, answer) = ask(lab, token, path);
    assert_eq!((status, &answer["expires_s"]), (200, &json!(30)), "{answer}");
    answer["ticket"].as_str().unwrap().to_string()
}

/// Reads binary messages until this was said.
fn until_said<S: Read + Write>(socket: &mut WebSocket<S>, words: &str) {
    let mut said = String::new();
    while !said.contains(words) {
        match socket.read().unwrap() {
            Message::Binary(bytes) => said.push_str(&String::from_utf8_lossy(&bytes)),
            Message::Ping(_) => {}
            other => panic!("{other:?} after {said:?}"),
        }
    }
}

/// Reads up to the close frame.
fn closed<S: Read + Write>(socket: &mut WebSocket<S>) -> (u16, String) {
    loop {
        match socket.read().unwrap() {
            Message::Close(Some(frame)) => return (frame.code.into(), frame.reason.to_string()),
            Message::Close(None) => panic!("no reason"),
            _ => {}
        }
    }
}

const CONSOLE: &str = "/v1/vms/web/console";

fn run_web(home: &Home) {
    let kernel = home.kernel();
    home.viv(&["run", "-d", "--name", "web", "--accel", "soft", "--kernel", &kernel]).ok();
    kit::until("the guest speaks", || home.viv(&["logs", "web"]).ok().out.contains("ready"));
}

/// Whether a file below this directory has these words in it.
fn is_in_a_file(directory: &Path, words: &str) -> bool {
    std::fs::read_dir(directory).unwrap().flatten().any(|entry| {
        let kind = entry.file_type().unwrap();
        let has = |bytes: Vec<u8>| bytes.windows(words.len()).any(|window| window == words.as_bytes());
        kind.is_dir() && is_in_a_file(&entry.path(), words)
            || kind.is_file() && std::fs::read(entry.path()).is_ok_and(has)
    })
}

#[test]
fn a_ticket_opens_one_console_and_nothing_else() {
    let lab = Lab::new("ticket");
    let (operator, viewer) = (lab.token("operator"), lab.token("viewer"));
    run_web(&lab.host);
    let with = |ticket: &str, path: &str| by(&lab, &format!("{path}?ticket={ticket}"), &[]);
    let refused = |ticket: &str, path: &str| {
        let (status, fault) = with(ticket, path).expect_err("it is not opened");
        assert_eq!(status, 401, "{fault}");
        assert!(fault.contains("ticket") && fault.contains("POST /v1/tickets"), "{fault}");
    };
    let used = ticket(&lab, &operator, CONSOLE);
    let mut console = with(&used, CONSOLE).unwrap();
    console.send(Message::binary(&b"hello"[..])).unwrap();
    until_said(&mut console, "hello");
    console.send(Message::text(r#"{"resize": {"rows": 40, "cols": 100}}"#)).unwrap();
    console.send(Message::Ping(b"there?"[..].into())).unwrap();
    assert_eq!(console.read().unwrap(), Message::Pong(b"there?"[..].into()));
    refused(&used, CONSOLE);
    refused("viv_ticket_0", CONSOLE);
    refused("", CONSOLE);
    // Shown for something else it is used up, and so it is if the VM is not there.
    let other = ticket(&lab, &operator, CONSOLE);
    refused(&other, "/v1/vms/web/agent");
    refused(&other, CONSOLE);
    let absent = ticket(&lab, &operator, "/v1/vms/nobody/console");
    assert_eq!(with(&absent, "/v1/vms/nobody/console").err().unwrap().0, 404);
    refused(&absent, "/v1/vms/nobody/console");
    // It is no token, and a request that is no WebSocket uses it, too.
    let plain = ticket(&lab, &operator, CONSOLE);
    assert_eq!(lab.curl(&[], &format!("/v1/vms?ticket={plain}")).0, 401);
    assert_eq!(lab.curl(&["-X", "POST"], &format!("{CONSOLE}?ticket={plain}")).0, 401);
    assert_eq!(lab.curl(&[], &format!("{CONSOLE}?ticket={plain}")).0, 426);
    refused(&plain, CONSOLE);
    // Who may not open it gets none.
    assert_eq!(ask(&lab, &viewer, CONSOLE).0, 403);
    for path in ["/v1/vms/web", "/v1/info", "", "/v1/vms/web/console?wait=1", "https://a/v1/vms/web/console"]
    {
        let (status, fault) = ask(&lab, &operator, path);
        assert_eq!(status, 400, "{path}");
        assert!(fault.to_string().contains("/v1/vms/{vm}/console"), "{fault}");
    }
    // A program shows its token itself.
    let bearer = |token: &str| [("authorization", format!("Bearer {token}"))];
    let mut second = by(&lab, CONSOLE, &bearer(&operator)).unwrap();
    assert_eq!(by(&lab, CONSOLE, &bearer(&viewer)).err().unwrap().0, 403);
    assert_eq!(by(&lab, CONSOLE, &[]).err().unwrap().0, 401);
    second.close(None).unwrap();
    // A page of another site, and one that has another name for this host: whatever they show.
    let own = ("origin", lab.url.clone());
    for (field, status) in [
        (("origin", "https://evil.example".to_string()), 403),
        (("origin", "null".to_string()), 403),
        (("host", "evil.example".to_string()), 421),
    ] {
        let ticket = ticket(&lab, &operator, CONSOLE);
        let answer = by(&lab, &format!("{CONSOLE}?ticket={ticket}"), &[field]);
        assert_eq!(answer.err().unwrap().0, status);
        let [token] = bearer(&operator);
        assert_eq!(
            by(&lab, CONSOLE, &[token, ("origin", "https://evil.example".into())]).err().unwrap().0,
            403
        );
        refused(&ticket, CONSOLE);
    }
    let page = ticket(&lab, &operator, CONSOLE);
    by(&lab, &format!("{CONSOLE}?ticket={page}"), &[own]).unwrap();
    // With the token its tickets go, and they are not of the next one that is called so.
    let orphan = ticket(&lab, &operator, CONSOLE);
    lab.host.viv(&["token", "rm", "operator"]).ok();
    lab.host.viv(&["token", "create", "operator", "--role", "admin"]).ok();
    assert_eq!(with(&orphan, CONSOLE).err().unwrap().0, 401);
    // All of it is written down, but for the tickets.
    let entries = lab.host.viv(&["audit", "ls", "--json"]).ok().json();
    let has = |operation: &str, path: &str, status: u64| {
        entries.as_array().unwrap().iter().any(|entry| {
            entry["who"] == "token:operator"
                && entry["from"] == "127.0.0.1"
                && (&entry["operation"], &entry["path"]) == (&json!(operation), &json!(path))
                && entry["status"] == status
        })
    };
    assert!(has("TicketCreate", "/v1/tickets", 200), "{entries}");
    assert!(has("VmConsoleSocket", CONSOLE, 101), "{entries}");
    assert!(has("VmConsoleSocket", "/v1/vms/nobody/console", 404), "{entries}");
    for ticket in [&used, &page, &orphan] {
        assert!(!is_in_a_file(&lab.host.dir.join("home"), ticket));
    }
    // What is no WebSocket any more is closed, and nobody else notices.
    let mut console =
        by(&lab, CONSOLE, &[("authorization", format!("Bearer {}", lab.token("admin")))]).unwrap();
    console.get_mut().write_all(&[0x82, 1, b'x']).unwrap();
    assert_eq!(closed(&mut console).0, 1002);
    assert_eq!(lab.host.viv(&["ps", "-q"]).ok().out, "web\n");
}

#[test]
fn the_unix_socket_takes_no_tickets_and_says_why_it_ends() {
    let home = Home::new("websocket");
    run_web(&home);
    let open = |path: &str, fields: &[(&'static str, String)]| {
        home.viv(&["info"]).ok(); // it is there, or started
        let stream = UnixStream::connect(home.dir.join("home/run/viv.sock")).unwrap();
        stream.set_read_timeout(Some(kit::LIMIT)).unwrap();
        open(&format!("ws://vivarium{path}"), fields, stream)
    };
    let refused = |path: &str, status: u16, words: &[&str]| {
        let (answer, fault) = open(path, &[]).expect_err("it is not opened");
        assert_eq!(answer, status, "{path}: {fault}");
        words.iter().for_each(|word| assert!(fault.contains(word), "no {word:?} in {fault}"));
    };
    refused("/v1/vms/nobody/console", 404, &["nobody"]);
    refused("/v1/vms/web/console?force=true", 400, &["force", "ticket"]);
    refused("/v1/vms/web/agent", 500, &["agent", "does not answer"]);
    refused("/v1/vms/web/connect/0", 400, &["65535"]);
    refused("/v1/vms/web/connect/80", 409, &["network"]);
    for (field, value, status) in [
        ("origin", "https://evil.example", 403),
        ("sec-websocket-version", "8", 426),
        ("upgrade", "h2c", 426),
        ("connection", "keep-alive", 426),
        ("sec-websocket-key", "c2hvcnQ=", 400),
    ] {
        let (answer, fault) = open(CONSOLE, &[(field, value.to_string())]).err().unwrap();
        assert_eq!(answer, status, "{field}: {fault}");
    }
    // Two see the same console; the end of the VM is told to both.
    let (mut one, mut other) = (open(CONSOLE, &[]).unwrap(), open(CONSOLE, &[]).unwrap());
    one.send(Message::binary(&b"hello"[..])).unwrap();
    until_said(&mut one, "hello");
    one.send(Message::binary(&b"q"[..])).unwrap();
    for console in [&mut one, &mut other] {
        let (code, reason) = closed(console);
        assert!(code == 1001 && reason.contains("it switched itself off"), "{code} {reason}");
    }
    kit::until("it has ended", || home.inspect("web")["state"] == "stopped");
    refused(CONSOLE, 409, &["does not run", "viv start web"]);
    refused("/v1/vms/web/agent", 409, &["does not run"]);
}
