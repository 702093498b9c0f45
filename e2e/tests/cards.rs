//! VMs with several network cards, with default guests.
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use viv_e2e::{Network, Vm, exec, inspect, page_of, run, start, until};

const WAIT: Duration = Duration::from_secs(120);

fn serve_page(vm: &str) {
    exec(vm, &format!("mkdir -p /www && echo this is {vm} > /www/index.html && httpd -h /www")).ok();
}

fn field(vm: &str, card: usize, name: &str) -> String {
    inspect(vm)["machine"]["nics"][card][name].as_str().unwrap_or_default().to_string()
}

/// The guest's addresses of all cards, in their order.
fn addresses(vm: &str) -> Vec<String> {
    let command = "ip -4 -o addr show | grep -o 'inet [^/]*' | cut -d' ' -f2 | grep -v 127.0.0.1";
    exec(vm, command).out.split_whitespace().map(str::to_string).collect()
}

fn expected(vm: &str) -> Vec<String> {
    let count = inspect(vm)["machine"]["nics"].as_array().map_or(0, Vec::len);
    (0..count).map(|card| field(vm, card, "address")).collect()
}

/// Removes a security group when the test ends, however it ends; its VMs must be gone by then.
struct Group(&'static str);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = run(&["secgroup", "rm", self.0], "");
    }
}

#[test]
fn a_vm_has_a_card_in_each_of_its_networks() {
    let (front, back) = (Network::create("e2e-front", &[]), Network::create("e2e-back", &["--isolated"]));
    let _ = run(&["secgroup", "rm", "e2e-cards-in"], "");
    run(&["secgroup", "create", "e2e-cards-in", "in tcp/80"], "").ok();
    let _group = Group("e2e-cards-in");
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    // Both versions of IP: no address is named.
    let published = format!("{port}:80");
    // The first is isolated, so that the published port leads to the second.
    let both = ["--net", "e2e-back,bps=50M", "--net", "e2e-front,secgroup=e2e-cards-in", "-p", &published];
    let _gate = start("e2e-gate", &both);
    let _db = start("e2e-gate-db", &["--net", back.0]);
    let _web = start("e2e-gate-web", &["--net", front.0]);
    serve_page("e2e-gate");
    serve_page("e2e-gate-db");
    serve_page("e2e-gate-web");
    until("an address of each", WAIT, || addresses("e2e-gate") == expected("e2e-gate"));
    let nics = inspect("e2e-gate")["machine"]["nics"].clone();
    assert_ne!(nics[0]["mac"], nics[1]["mac"]);
    let cards = exec("e2e-gate", "cat /sys/class/net/eth0/address /sys/class/net/eth1/address").ok().out;
    let macs: Vec<Vec<u8>> = cards
        .lines()
        .map(|mac| mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect())
        .collect();
    for (card, mac) in macs.iter().enumerate() {
        assert_eq!(
            inspect("e2e-gate")["machine"]["nics"][card]["mac"],
            serde_json::json!(mac),
            "card {card}"
        );
    }
    // The isolated network leads nowhere: there is one default route.
    let routes = exec("e2e-gate", "ip -4 route show default").ok().out;
    assert!(routes.lines().count() == 1 && routes.contains("dev eth1"), "{routes}");

    // It reaches both by name, and those never meet.
    for (from, to, page) in [
        ("e2e-gate", "e2e-gate-db.e2e-back.viv", "this is e2e-gate-db\n"),
        ("e2e-gate", "e2e-gate-web.e2e-front.viv", "this is e2e-gate-web\n"),
        ("e2e-gate-db", "e2e-gate", "this is e2e-gate\n"),
        ("e2e-gate-web", "e2e-gate", "this is e2e-gate\n"),
    ] {
        until(&format!("the page of {to} for {from}"), WAIT, || page_of(from, to) == page);
    }
    let away = exec("e2e-gate-web", &format!("ping -c 1 -W 5 {}", field("e2e-gate-db", 0, "address")));
    assert_ne!(away.status, 0, "{away:?}");

    // The published port leads to the card that can; the group is one card's alone.
    let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
    let hosts = [v4, v6].into_iter().filter(|host| UdpSocket::bind((*host, 0)).is_ok());
    let page = |host: IpAddr| {
        let Ok(mut stream) = TcpStream::connect((host, port)) else { return false };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        let _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let mut text = String::new();
        stream.read_to_string(&mut text).is_ok() && text.contains("this is e2e-gate")
    };
    for host in hosts {
        until(&format!("a page through the published port of {host}"), WAIT, || page(host));
    }
    let explain = |from: &str| run(&["secgroup", "explain", from, "e2e-gate", "tcp/23"], "").ok().out;
    let (web, db) = (explain("e2e-gate-web"), explain("e2e-gate-db"));
    assert!(web.starts_with("denied\n") && db.starts_with("allowed\n"), "{web}{db}");
    run(&["secgroup", "join", "e2e-cards-in", "e2e-gate", "--net", back.0], "").ok();
    assert!(explain("e2e-gate-db").starts_with("denied\n"));
    run(&["secgroup", "leave", "e2e-cards-in", "e2e-gate", "--net", back.0], "").ok();
    run(&["port", "limit", "e2e-gate", "--net", front.0, "bps=30M"], "").ok();
    let limits: Vec<Value> =
        (0..2).map(|card| inspect("e2e-gate")["machine"]["nics"][card]["limits"]["bps"].clone()).collect();
    assert_eq!(limits, [50 << 20, 30 << 20]);
    let shown = run(&["port", "show", "e2e-gate"], "").ok().out;
    assert!(shown.contains("e2e-front") && shown.contains("e2e-back"), "{shown}");

    // What goes on from it has both, with addresses of its own.
    let _fork = Vm("e2e-gate-fork");
    run(&["fork", "e2e-gate", "--name", "e2e-gate-fork"], "").ok();
    let theirs = expected("e2e-gate-fork");
    assert!(theirs.len() == 2 && theirs.iter().all(|address| !expected("e2e-gate").contains(address)));
    until("the fork's addresses", WAIT, || addresses("e2e-gate-fork") == theirs);
    for who in ["e2e-gate-db", "e2e-gate-web"] {
        until("the fork's page", WAIT, || page_of(who, "e2e-gate-fork") == "this is e2e-gate\n");
    }

    // Another one like it, from its document.
    let _two = Vm("e2e-gate-two");
    let _ = run(&["rm", "-f", "e2e-gate-two"], "");
    let document = run(&["inspect", "e2e-gate"], "").ok().out;
    run(&["create", "-f", "-", "--name", "e2e-gate-two"], &document).ok();
    let (gate, two) = (inspect("e2e-gate"), inspect("e2e-gate-two"));
    assert_eq!(gate["spec"]["nics"].as_array().unwrap().len(), 2, "{document}");
    for part in ["nics", "ports", "net"] {
        assert_eq!(gate["spec"][part], two["spec"][part], "{part}");
    }
}

#[test]
fn a_further_card_comes_and_goes_while_the_guest_runs() {
    let (one, other) = (Network::create("e2e-come", &[]), Network::create("e2e-came", &[]));
    let _vm = start("e2e-comer", &["--net", one.0]);
    let _db = start("e2e-comer-db", &["--net", other.0]);
    serve_page("e2e-comer-db");
    until("an address", WAIT, || addresses("e2e-comer") == expected("e2e-comer"));
    for _ in 0..2 {
        let address = run(&["network", "connect", other.0, "e2e-comer"], "").ok().out;
        assert_eq!(address.trim(), field("e2e-comer", 1, "address"));
        until("an address of each", WAIT, || addresses("e2e-comer") == expected("e2e-comer"));
        until("a page in the other network", WAIT, || {
            page_of("e2e-comer", "e2e-comer-db.e2e-came.viv") == "this is e2e-comer-db\n"
        });
        let route = exec("e2e-comer", "ip -4 route get 198.51.100.1").ok().out;
        assert!(route.contains("dev eth0"), "the first card's default route: {route}");
        let twice = run(&["network", "connect", other.0, "e2e-comer"], "");
        assert!(twice.status == 4 && twice.err.contains("already"), "{twice:?}");
        run(&["network", "disconnect", other.0, "e2e-comer"], "").ok();
        assert_eq!(expected("e2e-comer").len(), 1);
        assert_eq!(exec("e2e-comer", "ls /sys/class/net").out, "eth0\nlo\n");
    }
    // It is there after a reboot, too.
    run(&["network", "connect", other.0, "e2e-comer"], "").ok();
    exec("e2e-comer", "reboot");
    until("the second boot", WAIT, || inspect("e2e-comer")["boots"] == 2);
    until("both cards", WAIT, || {
        addresses("e2e-comer") == expected("e2e-comer") && expected("e2e-comer").len() == 2
    });
}

#[test]
fn what_cannot_be_says_so() {
    let network = Network::create("e2e-twice", &[]);
    let nine: Vec<&str> = ["--net", "none"].repeat(9);
    for (words, status, part) in [
        (vec!["--net", network.0, "--net", network.0], 4, "another network"),
        (vec!["--net", "user", "--net", "user,host"], 4, "another network"),
        (vec!["--net", network.0, "--net", "e2e-nothing"], 3, "e2e-nothing"),
        (vec!["--net", "e2e-twice,secgroup=e2e-nothing"], 3, "viv secgroup create"),
        (vec!["--net", "none,secgroup=e2e-nothing"], 2, "name a network"),
        (vec!["--net", "none", "--net", "none", "-p", "127.0.0.1:9:9"], 2, "leave out -p"),
        (nine, 2, "up to 8 times"),
    ] {
        let done = run(&[&["run", "-d", "--name", "e2e-never"], words.as_slice()].concat(), "");
        assert_eq!(done.status, status, "{words:?}: {done:?}");
        assert!(done.err.contains(part), "{words:?}: {done:?}");
    }
    for (words, status, part) in [
        (vec!["network", "disconnect", network.0, "e2e-never"], 3, "e2e-never"),
        (vec!["port", "show", "e2e-never", "--net", network.0], 3, "e2e-never"),
    ] {
        let done = run(&words, "");
        assert!(done.status == status && done.err.contains(part), "{words:?}: {done:?}");
    }
}
