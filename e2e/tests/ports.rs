//! Ports of VMs with default guests: limits, counters, captures, and other addresses while the guest runs.
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use viv_e2e::{Network, Vm, exec, page_of, run, start, until, viv};

const WAIT: Duration = Duration::from_secs(120);

fn serve_page(vm: &str) {
    let serve = format!(
        "mkdir /www && echo this is {vm} > /www/index.html && dd if=/dev/zero of=/www/large bs=64k count=16 2>/dev/null \
         && httpd -h /www"
    );
    exec(vm, &serve).ok();
}

fn port(vm: &str) -> serde_json::Value {
    serde_json::from_str(&run(&["port", "show", vm, "--json"], "").ok().out).unwrap()
}

/// The card's address and the guest's own, as the guest has them.
fn own_addresses(vm: &str) -> String {
    let command =
        "cat /sys/class/net/eth0/address; ip -4 addr show eth0 | grep -o 'inet [^/]*' | cut -d' ' -f2";
    exec(vm, command).out.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// As the network has them.
fn port_addresses(vm: &str) -> String {
    let port = port(vm);
    format!("{} {}", port["mac"].as_str().unwrap(), port["address"].as_str().unwrap())
}

#[test]
fn a_running_vm_gets_other_addresses_and_so_does_each_that_goes_on_from_it() {
    let network = Network::create("e2e-bind", &[]);
    let _group = Group::create("e2e-bind-web", "in tcp/80");
    let _web = start("e2e-bind-web", &["--net", network.0, "--secgroup", "e2e-bind-web"]);
    let _client = start("e2e-bind-client", &["--net", network.0]);
    serve_page("e2e-bind-web");
    until("a page", WAIT, || page_of("e2e-bind-client", "e2e-bind-web") == "this is e2e-bind-web\n");
    let before = port_addresses("e2e-bind-web");
    assert_eq!(own_addresses("e2e-bind-web"), before);

    let told = run(&["port", "rebind", "e2e-bind-web"], "").ok().out;
    let now = port_addresses("e2e-bind-web");
    assert_eq!(told.trim(), now);
    let differ =
        |one: &str, other: &str| one.split(' ').zip(other.split(' ')).all(|(one, other)| one != other);
    assert!(differ(&before, &now), "{before}, {now}");
    until("the guest's other addresses", WAIT, || own_addresses("e2e-bind-web") == now);
    until("a page by name", WAIT, || page_of("e2e-bind-client", "e2e-bind-web") == "this is e2e-bind-web\n");

    // One that goes on from it has addresses of its own, in the same network and group, and both are reached.
    let _fork = Vm("e2e-bind-fork");
    run(&["fork", "e2e-bind-web", "--name", "e2e-bind-fork"], "").ok();
    let forked = port_addresses("e2e-bind-fork");
    assert!(differ(&forked, &now) && differ(&forked, &port_addresses("e2e-bind-client")), "{forked}");
    until("the fork's own addresses", WAIT, || own_addresses("e2e-bind-fork") == forked);
    exec("e2e-bind-fork", "echo this is the fork > /www/index.html").ok();
    until("the fork's page", WAIT, || page_of("e2e-bind-client", "e2e-bind-fork") == "this is the fork\n");
    assert_eq!(page_of("e2e-bind-client", "e2e-bind-web"), "this is e2e-bind-web\n");
    let groups = run(&["inspect", "e2e-bind-fork"], "").ok().out;
    let groups: serde_json::Value = serde_json::from_str(&groups).unwrap();
    assert_eq!(groups[0]["groups"], serde_json::json!(["e2e-bind-web"]));
    let rules = run(&["secgroup", "show", "e2e-bind-web", "--json"], "").ok().out;
    let rules: serde_json::Value = serde_json::from_str(&rules).unwrap();
    assert!(rules["decided"][0].as_u64().unwrap() > 1, "{rules}");
}

/// Removes a security group when the test ends, however it ends; its VMs must be gone by then.
struct Group(&'static str);

impl Group {
    fn create(name: &'static str, rule: &str) -> Group {
        let _ = run(&["secgroup", "rm", name], "");
        run(&["secgroup", "create", name, rule], "").ok();
        Group(name)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = run(&["secgroup", "rm", self.0], "");
    }
}

/// `viv capture` until the test ends it.
struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    fn of(vm: &str) -> Capture {
        let file = std::env::temp_dir().join(format!("viv-e2e-capture-{}.pcapng", std::process::id()));
        let _ = std::fs::remove_file(&file);
        let child = viv(&["capture", vm, "-w", file.to_str().unwrap()]).spawn().unwrap();
        Capture { child, file }
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.file).unwrap_or_default()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.file);
    }
}

#[test]
fn what_passes_is_limited_counted_and_written_down() {
    let network = Network::create("e2e-port", &[]);
    let _web = start("e2e-port-web", &["--net", "e2e-port,bps=100M,pps=100000"]);
    let _client = start("e2e-port-client", &["--net", network.0]);
    serve_page("e2e-port-web");
    assert_eq!(port("e2e-port-web")["limits"], serde_json::json!({ "bps": 100 << 20, "pps": 100_000 }));
    until("a page", WAIT, || page_of("e2e-port-client", "e2e-port-web") == "this is e2e-port-web\n");

    // Half a MiB a second: a MiB takes two seconds, and no less.
    let large = "timeout 100 wget -qO- http://e2e-port-web/large | wc -c";
    run(&["port", "limit", "e2e-port-web", "bps=512K"], "").ok();
    let begin = Instant::now();
    assert_eq!(exec("e2e-port-client", large).ok().out, "1048576\n");
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(1900), "{took:?}");
    run(&["port", "limit", "e2e-port-web"], "").ok();
    let sent = port("e2e-port-web")["counters"]["sent"]["bytes"].as_u64().unwrap();
    assert!(sent > 1 << 20, "{sent}");
    let stats = run(&["stats", "e2e-port-web", "--json"], "").ok().out;
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert!(stats[0]["network"]["sent"]["bytes"].as_u64().unwrap() >= sent);
    let listed = run(&["port", "ls"], "").ok().out;
    assert!(listed.contains("e2e-port-web") && listed.contains("e2e-port-client"), "{listed}");

    let mut capture = Capture::of("e2e-port-web");
    until("the beginning of the file", WAIT, || capture.bytes().starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]));
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    until("the page in the file", WAIT, || {
        page_of("e2e-port-client", "e2e-port-web");
        has(&capture.bytes(), "this is e2e-port-web\n") && has(&capture.bytes(), "GET / HTTP/1.1")
    });
    let pid = capture.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(capture.child.wait().unwrap().code(), Some(0));
    // Blocks, each with its length on both sides, to the last byte.
    let bytes = capture.bytes();
    let length = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let (mut at, mut blocks) = (0, 0);
    while at < bytes.len() {
        let len = length(at + 4);
        assert_eq!(length(at + len - 4), len, "block {blocks} at {at}");
        (at, blocks) = (at + len, blocks + 1);
    }
    assert!(blocks > 4, "{blocks}");
}

#[test]
fn what_cannot_be_says_so() {
    let _bare = start("e2e-port-bare", &[]);
    let file = "/nonexistent/directory/file.pcapng";
    for (words, status, part) in [
        (vec!["port", "show", "e2e-nobody"], 3, "e2e-nobody"),
        (vec!["port", "show", "e2e-port-bare"], 4, "--net"),
        (vec!["port", "rebind", "e2e-port-bare"], 4, "--net"),
        (vec!["port", "limit", "e2e-port-bare", "bps=0"], 2, "at least 1"),
        (vec!["port", "limit", "e2e-port-bare", "bps=1M"], 4, "--net"),
        (vec!["port", "limit", "e2e-port-bare", "bps=much"], 2, "bps=5000"),
        (vec!["port", "limit", "e2e-port-bare", "speed=9"], 2, "bps=N and pps=N"),
        (vec!["capture", "e2e-port-bare", "-w", file], 4, "--net"),
        (vec!["capture", "e2e-nobody", "-w", file], 3, "e2e-nobody"),
        (vec!["run", "--net", "user,speed=9", "--", "true"], 2, "pps=N"),
        (vec!["run", "--net", "user,bps=0", "--", "true"], 2, "let nothing pass"),
        (vec!["run", "--net", "none,bps=1", "--", "true"], 2, "name a network"),
    ] {
        let done = run(&words, "");
        assert_eq!(done.status, status, "{words:?}: {done:?}");
        assert!(done.err.contains(part), "{words:?}: {done:?}");
    }
}
