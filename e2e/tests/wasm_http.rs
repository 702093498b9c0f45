//! Components that handle requests by HTTP, at published ports.
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};
use viv_e2e::{Directory, Home, until};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The component of `server.wat`, made as compilers make theirs.
fn server() -> Vec<u8> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("server.wit", include_str!("wasm_components/server.wit")).unwrap();
    let world = resolve.select_world(&[package], Some("server")).unwrap();
    let mut module = wat::parse_str(include_str!("wasm_components/server.wat")).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    ComponentEncoder::default().module(&module).unwrap().encode().unwrap()
}

/// A home with a server in it that is called `srv` and has these options; the path of its file, and its port.
struct Server {
    home: Home,
    _programs: Directory,
    file: String,
    port: u16,
}

impl Server {
    fn new(name: &str, options: &[&str]) -> Server {
        let programs = Directory::new(&format!("{name}-programs"));
        let file = programs.path("server.wasm");
        fs::write(&file, server()).unwrap();
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let home = Home::bare(name);
        let publish = format!("127.0.0.1:{port}:80");
        let words = [&["run", "-d", "--name", "srv", "-p", &publish], options, &[&file]].concat();
        home.run(&words).ok();
        Server { home, _programs: programs, file, port }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream
    }

    /// The status and the body that a request gets.
    fn ask(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = self.connect();
        let head =
            format!("{method} {path} HTTP/1.0\r\nHost: here\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).unwrap();
        let (mut sender, body) = (stream.try_clone().unwrap(), body.to_vec());
        let sender = thread::spawn(move || sender.write_all(&body));
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        sender.join().unwrap().unwrap();
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer[end + 4..].to_vec())
    }

    fn get(&self, path: &str) -> (u16, String) {
        let (status, body) = self.ask("GET", path, b"");
        (status, String::from_utf8(body).unwrap())
    }

    fn logs(&self) -> String {
        self.home.run(&["logs", "srv"]).ok().out
    }
}

/// Where the host lets a component have a network of its own.
#[test]
fn in_a_network_the_same_port_leads_to_it() {
    if fs::File::options().read(true).write(true).open("/dev/net/tun").is_err() {
        eprintln!("not tried: /dev/net/tun cannot be opened");
        return;
    }
    let srv = Server::new("http-net", &["--net", "user"]);
    for _ in 0..3 {
        assert_eq!(srv.get("/"), (200, "1".into()));
    }
}

#[test]
fn each_request_has_an_instance_of_its_own() {
    let srv = Server::new("http-own", &[]);
    for _ in 0..3 {
        assert_eq!(srv.get("/"), (200, "1".into()));
    }
    // Two on one connection, in chunks.
    let mut stream = srv.connect();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..2 {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| line != "0\r\n") {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            lines.push(line);
        }
        assert!(lines[0].starts_with("HTTP/1.1 200") && lines.contains(&"1\r\n".into()), "{lines:?}");
        reader.read_line(&mut String::new()).unwrap();
    }
    let sent: Vec<u8> = (0..3_000_000u32).map(|number| (number * 7 >> 3) as u8).collect();
    let (status, came) = srv.ask("POST", "/echo", &sent);
    assert!(status == 200 && came == sent, "{status}, {} bytes", came.len());
    let mut nameless = srv.connect();
    nameless.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    nameless.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.0 400"), "{answer}");
    let shown = &srv.home.json(&["inspect", "srv"])[0];
    for word in ["landlock", "seccomp", "no-new-privileges"] {
        assert!(shown["sandbox"].as_array().unwrap().contains(&word.into()), "{shown}");
    }
    // Without a port it serves nobody.
    let refused = srv.home.run(&["run", &srv.file]);
    assert!(refused.status == 126 && refused.err.contains("-p 8080:80"), "{refused:?}");
    let taken = srv.home.run(&["run", "-p", &format!("127.0.0.1:{}:80", srv.port), &srv.file]);
    assert!(taken.status != 0 && taken.err.contains("in use"), "{taken:?}");
}

#[test]
fn what_fails_answers_500_is_logged_and_harms_no_other() {
    let srv = Server::new("http-fails", &["--memory", "4M", "--fuel", "100000000"]);
    let mut logs = String::new();
    for (path, words) in [
        ("/trap?x=1", "GET /trap?x=1: the program trapped"),
        ("/quiet", "GET /quiet: it gave no answer"),
        ("/spin", "GET /spin: the program has used up its fuel of 100000000"),
        ("/bomb", "GET /bomb: the program was refused more memory than its 4 MiB"),
    ] {
        let (status, body) = srv.get(path);
        assert!(status == 500 && body.contains("its log has more"), "{path}: {status} {body}");
        let after = srv.logs();
        let new = after.strip_prefix(&logs).unwrap();
        assert_eq!(new.matches("viv: GET").count(), 1, "{new}");
        assert!(new.contains(words), "{new}");
        logs = after;
        assert_eq!(srv.get("/"), (200, "1".into()));
    }
    let program = &srv.home.json(&["stats", "srv"])[0]["program"];
    assert_eq!(program["memory_bytes"], 0, "all of it has been given back: {program}");
    assert!(program["steps"].as_u64() >= Some(100_000_000), "{program}");
}

#[test]
fn many_come_at_once_and_who_computes_gives_way() {
    let srv = Server::new("http-many", &[]);
    let used = || srv.home.json(&["stats", "srv"])[0]["cpu_ns"].as_u64().unwrap();
    // One that never ends, until its client has gone.
    let mut spins = srv.connect();
    spins.write_all(b"GET /spin HTTP/1.1\r\nHost: here\r\n\r\n").unwrap();
    let before = used();
    until("it computes", Duration::from_secs(10), || used() > before + 100_000_000);
    let begin = Instant::now();
    thread::scope(|scope| {
        let all: Vec<_> = (0..100).map(|_| scope.spawn(|| srv.get("/wait"))).collect();
        for one in all {
            assert_eq!(one.join().unwrap(), (200, "1".into()));
        }
    });
    let took = begin.elapsed();
    assert!(Duration::from_secs(1) <= took && took < Duration::from_secs(10), "{took:?}");
    drop(spins);
    until("it is ended", Duration::from_secs(30), || {
        let before = used();
        thread::sleep(Duration::from_secs(1));
        used() < before + 100_000_000
    });
}

#[test]
fn it_has_the_life_of_any_vm() {
    let srv = Server::new("http-life", &[]);
    srv.home.run(&["pause", "srv"]).ok();
    thread::scope(|scope| {
        let asks = scope.spawn(|| srv.get("/"));
        thread::sleep(Duration::from_secs(1));
        assert!(!asks.is_finished(), "it stands still");
        srv.home.run(&["resume", "srv"]).ok();
        assert_eq!(asks.join().unwrap(), (200, "1".into()));
    });
    let refused = srv.home.run(&["snapshot", "create", "srv", "half"]);
    assert!(refused.status == 4 && refused.err.contains("a component cannot be saved"), "{refused:?}");
    // It stops with somebody still there, and starts again at the same port.
    let _stays = srv.connect();
    let stopped = srv.home.run(&["stop", "srv"]).ok();
    assert!(stopped.took < Duration::from_secs(5), "{stopped:?}");
    TcpStream::connect((Ipv4Addr::LOCALHOST, srv.port)).unwrap_err();
    srv.home.run(&["start", "srv"]).ok();
    assert_eq!(srv.get("/"), (200, "1".into()));
}
