//! WebAssembly programs that listen at published ports, and components in networks.
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};
use viv_e2e::registry::Registry;
use viv_e2e::{Directory, Home, tool, until};

/// How long anything may take on a busy machine.
const LONG: Duration = Duration::from_secs(60);
/// Connections of a program at one time.
const CONNECTIONS_MAX: usize = 256;

/// A home, and a directory with the programs.
fn home(name: &str) -> (Home, Directory) {
    let programs = Directory::new(&format!("{name}-programs"));
    let texts = [
        ("one", include_str!("wasm/echo_one.wat")),
        ("many", include_str!("wasm/echo_many.wat")),
        ("hello", include_str!("wasm/hello.wat")),
    ];
    for (name, text) in texts {
        fs::write(programs.path(&format!("{name}.wat")), text).unwrap();
    }
    (Home::bare(name), programs)
}

/// A port that nobody has.
fn free() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// Sends this, and gets as much back.
fn says(mut stream: &TcpStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).unwrap();
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    back
}

/// Starts one in the background that is published at a free port.
fn start(home: &Home, name: &str, options: &[&str], file: &str) -> u16 {
    let port = free();
    let publish = format!("127.0.0.1:{port}:7");
    home.run(&[&["run", "-d", "--name", name, "-p", &publish], options, &[file]].concat()).ok();
    port
}

#[test]
fn a_module_serves_one_connection_after_the_other() {
    let (home, at) = home("net-one");
    let port = start(&home, "one", &["--memory", "1M"], &at.path("one.wat"));
    assert_eq!(says(&connect(port), b"hello"), b"hello");
    // Much of it, both ways at once, and an end that is told each way.
    let mut client = connect(port);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number * 7 >> 3) as u8).collect();
    let (mut sender, bytes) = (client.try_clone().unwrap(), sent.clone());
    let sender = thread::spawn(move || {
        sender.write_all(&bytes).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    assert!(back == sent, "{} bytes", back.len());
    // One who does not read makes it wait: it can be paused, and ended.
    let mut silent = connect(port);
    silent.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
    let full = loop {
        if let Err(error) = silent.write(&[7; 65536]) {
            break error.kind();
        }
    };
    assert!(matches!(full, ErrorKind::WouldBlock | ErrorKind::TimedOut), "{full:?}");
    let cpu = || home.json(&["stats", "one"])[0]["cpu_ns"].as_u64().unwrap();
    let before = cpu();
    thread::sleep(Duration::from_millis(500));
    assert!(cpu() - before < 200_000_000, "who waits uses no processor");
    home.run(&["pause", "one"]).ok();
    home.run(&["resume", "one"]).ok();
    drop(silent);
    assert_eq!(says(&connect(port), b"again"), b"again");
    // One who says nothing ends it with its own status.
    drop(connect(port));
    until("it ends", LONG, || home.json(&["inspect", "one"])[0]["state"] == "stopped");
    assert_eq!(home.json(&["inspect", "one"])[0]["end"]["status"], 7);
    // It starts again, at the same port.
    home.run(&["start", "one"]).ok();
    assert_eq!(says(&connect(port), b"anew"), b"anew");
    let stop = Instant::now();
    home.run(&["stop", "one"]).ok();
    assert!(stop.elapsed() < Duration::from_secs(5), "also while it waits for a client");
}

#[test]
fn what_waits_for_a_client_comes_to_the_end_of_its_time_and_what_cannot_serve_is_refused() {
    let (home, at) = home("net-refused");
    let publish = format!("127.0.0.1:{}:7", free());
    for name in ["one.wat", "many.wat"] {
        let late = home.run(&["run", "--rm", "--time", "300ms", "-p", &publish, &at.path(name)]);
        assert!(late.status == 124 && late.took < Duration::from_secs(10), "{late:?}");
    }
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let in_use = format!("127.0.0.1:{}:7", taken.local_addr().unwrap().port());
    let (one, hello) = (at.path("one.wat"), at.path("hello.wat"));
    for (words, status, text) in [
        (vec!["-p", &publish, &hello], 126, "sock_accept"),
        (vec!["-p", "1234:7/udp", &one], 2, "no datagrams"),
        (vec!["-p", &in_use, &one], 4, "in use"),
        (vec!["-p", &publish, "--deterministic", &one], 126, "deterministic"),
        (vec!["--net", "user", &one], 126, "preview 1"),
        (vec!["--secgroup", "default", &one], 2, "--net user"),
    ] {
        let refused = home.run(&[vec!["run", "--rm"], words.clone()].concat());
        assert!(refused.status == status && refused.err.contains(text), "{words:?}: {refused:?}");
    }
    // Without a port it has no socket: what is no descriptor is none.
    assert_eq!(home.run(&["run", "--rm", &one]).status, 108);
}

#[test]
fn many_connections_at_once_and_one_flood() {
    let (home, at) = home("net-many");
    let port = start(&home, "many", &[], &at.path("many.wat"));
    let clients: Vec<TcpStream> = (0..50).map(|_| connect(port)).collect();
    // One that never reads hinders nobody.
    let mut deaf = connect(port);
    deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    while deaf.write(&[7; 65536]).is_ok() {}
    for round in 0..5 {
        for (number, client) in clients.iter().enumerate() {
            let text = format!("{round} of {number}");
            assert_eq!(says(client, text.as_bytes()), text.as_bytes());
        }
    }
    drop((clients, deaf));
    // More than it takes at a time: the others wait for their turn.
    let flood: Vec<TcpStream> = (0..CONNECTIONS_MAX + 100).map(|_| connect(port)).collect();
    let (first, others) = flood.split_at(CONNECTIONS_MAX);
    first.iter().for_each(|client| assert_eq!(says(client, b"first"), b"first"));
    let mut late = others.last().unwrap();
    late.write_all(b"late").unwrap();
    late.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    late.read(&mut [0; 4]).unwrap_err();
    first.iter().for_each(|client| client.shutdown(Shutdown::Both).unwrap());
    late.set_read_timeout(Some(LONG)).unwrap();
    late.read_exact(&mut [0; 4]).unwrap();
    assert_eq!(home.json(&["inspect", "many"])[0]["state"], "running");
}

#[test]
fn connections_stay_behind_if_that_is_said() {
    let (home, at) = home("net-saved");
    let port = start(&home, "many", &[], &at.path("many.wat"));
    let client = connect(port);
    assert_eq!(says(&client, b"before"), b"before");
    for words in [vec!["snapshot", "create", "many", "never"], vec!["fork", "many"]] {
        let refused = home.run(&words);
        assert!(refused.status == 4 && refused.err.contains("--drop-sockets"), "{refused:?}");
    }
    home.run(&["snapshot", "create", "--drop-sockets", "many", "live"]).ok();
    assert_eq!(says(&client, b"after"), b"after", "it goes on with its connections");
    // Where it goes on they are reset, and it listens where it is said.
    let other = free();
    let publish = format!("127.0.0.1:{other}:7");
    home.run(&["restore", "live", "--name", "other", "-p", &publish]).ok();
    assert_eq!(says(&connect(other), b"other"), b"other");
    assert_eq!(says(&client, b"still"), b"still");
    // Without a port it lives, and nobody comes.
    home.run(&["fork", "--drop-sockets", "many", "--name", "alone"]).ok();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(home.json(&["inspect", "alone"])[0]["state"], "running");
    let refused = home.run(&["restore", "live", "-p", &publish, "-p", &format!("127.0.0.1:{}:8", free())]);
    assert!(refused.status == 2 && refused.err.contains("1 ports"), "{refused:?}");
    // With no connection there is nothing to leave behind, and the same VM goes back to that.
    drop(client);
    let mut saved = home.run(&["snapshot", "create", "many", "quiet"]);
    until("it has seen that its client is gone", LONG, || {
        saved.status == 0 || {
            saved = home.run(&["snapshot", "create", "many", "quiet"]);
            false
        }
    });
    home.run(&["rollback", "many", "quiet"]).ok();
    assert_eq!(says(&connect(port), b"back"), b"back");
}

#[test]
fn a_program_goes_to_a_registry_and_runs_from_there() {
    let (home, at) = home("net-push");
    let file = at.path("hello.wasm");
    fs::write(&file, wat::parse_str(include_str!("wasm/hello.wat")).unwrap()).unwrap();
    let registry = Registry::start(&at);
    let name = |tag: &str| format!("localhost:{}/me/hello:{tag}", registry.1);
    let push = |what: &str, to: &str| home.json(&["push", "--insecure", what, to]);
    let pushed = push(&file, &name("1"));
    assert_eq!((&pushed["reference"], &pushed["known_layers"]), (&name("1").into(), &0.into()));
    assert_eq!(home.run(&["run", "--rm", "--insecure", &name("1")]).ok().out, "Hello, world\n");
    let again = push(&file, &name("1"));
    assert_eq!((&again["sent_bytes"], &again["digest"]), (&0.into(), &pushed["digest"]));
    // One that was pulled goes elsewhere, and is the same.
    assert_eq!(push(&name("1"), &name("2"))["digest"], pushed["digest"]);
    let seen =
        tool("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{}", name("2"))]);
    let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
    assert_eq!(seen["layers"][0]["mediaType"], "application/wasm");
    assert_eq!(seen["config"]["mediaType"], "application/vnd.wasm.config.v0+json");
    let (text, none) = (at.path("hello.wat"), at.path("none.wasm"));
    fs::write(&none, "root:x:0:0").unwrap();
    for (words, text) in [
        (vec!["push", &text, &name("3")], "binary form"),
        (vec!["push", &none, &name("3")], "binary form"),
        (vec!["push", &file], "REGISTRY/NAME:TAG"),
        (vec!["push", &file, "nowhere"], "names no registry"),
    ] {
        let refused = home.run(&words);
        assert!(refused.status == 2 && refused.err.contains(text), "{words:?}: {refused:?}");
    }
}

/// What `net.rs` says in this home with these options.
fn told(home: &Home, options: &[&str], file: &str, words: &[&str]) -> Vec<String> {
    let told = home.run(&[&["run", "--rm"], options, &[file], words].concat()).ok();
    told.out.lines().map(str::to_string).collect()
}

/// `VIV_WASIP2=1`, and `rustup target add wasm32-wasip2` before it: a component as Rust makes it, by its standard library.
#[test]
fn a_component_made_by_rust_is_in_its_network_and_reaches_no_more() {
    if std::env::var_os("VIV_WASIP2").is_none() {
        return;
    }
    let (home, at) = home("net-component");
    let file = at.path("net.wasm");
    tool(
        "rustc",
        &["--edition=2024", "-O", "--target=wasm32-wasip2", "tests/wasm_components/net.rs", "-o", &file],
    );
    // Somebody on this host, at all its addresses.
    let server = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    thread::spawn(move || server.incoming().for_each(drop));
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let own = probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()).map(|own| own.ip());
    let own = own.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let hosts: Vec<String> =
        ["127.0.0.1", "10.0.2.2", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "0.0.0.0"]
            .iter()
            .map(|host| format!("{host}:{port}"))
            .chain([format!("{own}:{port}")])
            .collect();
    let tries: Vec<&str> = ["tries"].into_iter().chain(hosts.iter().map(String::as_str)).collect();
    for options in [&[][..], &["--net", "user"]] {
        let told = told(&home, options, &file, &tries);
        assert!(
            told.len() == hosts.len() && told.iter().all(|line| !line.ends_with("connected")),
            "{told:?}"
        );
    }
    assert!(told(&home, &[], &file, &["tries", "192.0.2.1:9"])[0].ends_with("PermissionDenied"));
    let host = format!("10.0.2.2:{port}");
    assert_eq!(told(&home, &["--net", "user,host"], &file, &["tries", &host]), [format!("{host} connected")]);
    assert_eq!(told(&home, &[], &file, &["names", "localhost"]), ["localhost unknown"]);

    // It listens at a port of its own, to which one of the host's leads.
    let outside = free();
    let publish = format!("127.0.0.1:{outside}:80");
    home.run(&["run", "-d", "--name", "srv", "--net", "user", "-p", &publish, &file, "serve", "80"]).ok();
    let says_it = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, outside)).ok()?;
        stream.set_read_timeout(Some(LONG)).ok()?;
        stream.write_all(b"x").ok()?;
        stream.read_exact(&mut [0]).ok()
    };
    until("it listens", LONG, || says_it().is_some());
    let mut client = connect(outside);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|number| (number * 7 >> 3) as u8).collect();
    let (mut sender, bytes) = (client.try_clone().unwrap(), sent.clone());
    let sender = thread::spawn(move || {
        sender.write_all(&bytes).unwrap();
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    assert!(back == sent, "{} bytes", back.len());
    home.run(&["rm", "-f", "srv"]).ok();

    // In a network of VMs it is one of them, by the rules of its groups.
    home.run(&["network", "create", "inside"]).ok();
    home.run(&["secgroup", "create", "web", "in tcp/80"]).ok();
    home.run(&["run", "-d", "--name", "web", "--net", "inside", "--secgroup", "web", &file, "serve", "80"])
        .ok();
    let name = &told(&home, &["--net", "inside"], &file, &["names", "web"])[0];
    let address = name.split(' ').nth(1).unwrap().to_string();
    let open = format!("{address}:80");
    assert_eq!(told(&home, &["--net", "inside"], &file, &["tries", &open]), [format!("{open} connected")]);
    // What no rule allows is dropped.
    let closed = format!("{address}:81");
    let waits = home.run(&["run", "--rm", "--net", "inside", "--time", "3s", &file, "tries", &closed]);
    assert!(waits.status == 124 && waits.out.is_empty(), "{waits:?}");

    // Whoever takes all the sockets that there are comes to the end of what one program holds.
    let all = home.run(&["run", "--rm", "--net", "user", &file, "exhaust"]);
    assert!(all.status == 134 || all.out.trim().parse::<u32>().is_ok(), "{all:?}");
}
