//! Networks that VMs share, with default guests.
use std::time::Duration;
use viv_e2e::{Network, Vm, exec, page_of, run, until};

const WAIT: Duration = Duration::from_secs(120);

fn start(name: &'static str, network: &str) -> Vm {
    viv_e2e::start(name, &["--net", network])
}

/// Serves a page that says who it is from.
fn serve_page(vm: &str) {
    exec(vm, &format!("mkdir /www && echo this is {vm} > /www/index.html && httpd -h /www")).ok();
}

#[test]
fn vms_of_a_network_find_each_other_by_name_and_survive_its_switch() {
    let network = Network::create("e2e-shop", &[]);
    let (_web, _db) = (start("e2e-shop-web", network.0), start("e2e-shop-db", network.0));
    serve_page("e2e-shop-db");
    until("a page by name", WAIT, || page_of("e2e-shop-web", "e2e-shop-db") == "this is e2e-shop-db\n");
    until("a page by full name", WAIT, || {
        page_of("e2e-shop-web", "e2e-shop-db.e2e-shop.viv") == "this is e2e-shop-db\n"
    });
    let shown = run(&["network", "show", network.0, "--json"], "").ok();
    let shown: serde_json::Value = serde_json::from_str(&shown.out).unwrap();
    // By IPv6, too: it has an address of the network's prefix, and is found by it.
    let address6 = |vm: &str| {
        let vms = shown["vms"].as_array().unwrap().iter();
        let vm = vms.clone().find(|shown| shown["name"] == vm).unwrap();
        vm["address6"].as_str().unwrap().to_string()
    };
    let (web6, db6) = (address6("e2e-shop-web"), address6("e2e-shop-db"));
    until("its address of IPv6", WAIT, || {
        exec("e2e-shop-web", "ip -6 addr show dev eth0").out.contains(&web6)
    });
    until("a page by IPv6", WAIT, || page_of("e2e-shop-web", &format!("[{db6}]")) == "this is e2e-shop-db\n");
    until("its name's address of IPv6", WAIT, || {
        exec("e2e-shop-web", "nslookup -type=aaaa e2e-shop-db.e2e-shop.viv").out.contains(&db6)
    });
    let connected = shown["vms"].as_array().unwrap().iter().filter(|vm| vm["connected"] == true).count();
    assert_eq!(connected, 2, "{shown}");
    let used = run(&["network", "rm", network.0], "");
    assert_eq!(used.status, 4, "{used:?}");
    assert!(used.err.contains("e2e-shop-web") && used.err.contains("disconnect"), "{used:?}");

    // Its switch dies: VMs live on, and are plugged into the next one.
    let pid = shown["pid"].as_i64().unwrap();
    assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
    let mut now = serde_json::Value::Null;
    until("another switch with both", WAIT, || {
        let shown = run(&["network", "show", "e2e-shop", "--json"], "").ok();
        now = serde_json::from_str(&shown.out).unwrap();
        let vms = now["vms"].as_array().unwrap();
        now["pid"].as_i64().is_some_and(|now| now != pid) && vms.iter().all(|vm| vm["connected"] == true)
    });
    until("a page once more", WAIT, || page_of("e2e-shop-web", "e2e-shop-db") == "this is e2e-shop-db\n");
}

#[test]
fn vms_of_different_networks_never_meet_until_one_moves() {
    let (one, other) = (Network::create("e2e-one", &[]), Network::create("e2e-other", &["--isolated"]));
    let (_web, _db) = (start("e2e-one-web", one.0), start("e2e-other-db", other.0));
    serve_page("e2e-other-db");
    let ip = |vm: &str| {
        let vms = run(&["inspect", vm], "").ok();
        let vms: serde_json::Value = serde_json::from_str(&vms.out).unwrap();
        vms[0]["machine"]["nics"][0]["address"].as_str().unwrap().to_string()
    };
    let db = ip("e2e-other-db");
    // What comes back is an ICMP message, at once: nobody waits.
    let away = exec(
        "e2e-one-web",
        &format!("ping -c 1 -W 5 {db} > /dev/null; echo $?; nslookup e2e-other-db.e2e-other.viv"),
    );
    assert!(away.out.starts_with("1\n") && !away.out.contains(&db), "{away:?}");
    // From an isolated network nothing is reached but its VMs.
    let out =
        exec("e2e-other-db", "timeout 60 wget -qO- http://198.51.100.1/ 2>&1; nslookup example.org 2>&1");
    assert!(out.out.contains("can't connect") && out.out.contains("REFUSED"), "{out:?}");

    // It leaves its network, and with it the card that it had there, and comes into the other one with another.
    run(&["network", "disconnect", one.0, "e2e-one-web"], "").ok();
    until("the card is gone", WAIT, || exec("e2e-one-web", "ls /sys/class/net").out == "lo\n");
    let moved = run(&["network", "connect", other.0, "e2e-one-web"], "").ok();
    assert_eq!(moved.out.trim(), ip("e2e-one-web"));
    until("a page in the new network", WAIT, || {
        page_of("e2e-one-web", "e2e-other-db") == "this is e2e-other-db\n"
    });
    run(&["network", "disconnect", other.0, "e2e-one-web"], "").ok();
    until("the card is gone", WAIT, || exec("e2e-one-web", "ls /sys/class/net").out == "lo\n");
    let again = run(&["network", "disconnect", other.0, "e2e-one-web"], "");
    assert_eq!(again.status, 4, "{again:?}");
}

/// Removes a security group when the test ends, however it ends; its VMs must be gone by then.
struct Group(&'static str);

impl Group {
    fn create(name: &'static str, rules: &[&str]) -> Group {
        let _ = run(&["secgroup", "rm", name], "");
        run(&[&["secgroup", "create", name], rules].concat(), "").ok();
        Group(name)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = run(&["secgroup", "rm", self.0], "");
    }
}

#[test]
fn a_security_group_cuts_exactly_what_it_says_also_what_is_open() {
    let network = Network::create("e2e-sec", &[]);
    let group = Group::create("e2e-sec-db", &["in tcp/80 from label:role=web", "in icmp"]);
    let (_web, _db) = (start("e2e-sec-web", network.0), start("e2e-sec-db", network.0));
    serve_page("e2e-sec-db");
    exec("e2e-sec-db", "nc -ll -p 5432 -e cat > /dev/null 2>&1 &").ok();
    let explain = || run(&["secgroup", "explain", "e2e-sec-web", "e2e-sec-db", "tcp/80"], "").ok().out;
    until("a page", WAIT, || page_of("e2e-sec-web", "e2e-sec-db") == "this is e2e-sec-db\n");
    assert!(explain().starts_with("allowed\n"));

    // A connection that is open while its VM joins the group.
    exec(
        "e2e-sec-web",
        "mkfifo /tmp/ask; (sleep 1000 > /tmp/ask &); nc e2e-sec-db 5432 < /tmp/ask > /tmp/said & echo",
    )
    .ok();
    let echoes = |text: &str| {
        exec("e2e-sec-web", &format!("echo {text} > /tmp/ask")).ok();
        exec("e2e-sec-web", "cat /tmp/said").out.contains(text)
    };
    until("an echo", WAIT, || echoes("before"));
    run(&["secgroup", "join", group.0, "e2e-sec-db"], "").ok();
    let denied = explain();
    assert!(denied.starts_with("denied\n") && denied.contains("e2e-sec-db"), "{denied}");
    let page = exec("e2e-sec-web", "timeout 5 wget -qO- http://e2e-sec-db/");
    assert!(page.status != 0 && page.out.is_empty(), "{page:?}");
    echoes("after");
    exec("e2e-sec-web", "ping -c 5 -W 20 e2e-sec-db").ok();
    // What was allowed all the time has come and gone five times by now.
    let said = exec("e2e-sec-web", "cat /tmp/said").ok().out;
    assert!(said.contains("before") && !said.contains("after"), "the open connection is cut: {said}");

    let rules = run(&["secgroup", "add-rule", group.0, "in", "tcp/80", "from", "group:e2e-sec-db"], "").ok();
    assert!(rules.out.contains("3       allow in tcp/80 from group:e2e-sec-db"), "{rules:?}");
    run(&["secgroup", "join", group.0, "e2e-sec-web"], "").ok();
    until("a page again", WAIT, || page_of("e2e-sec-web", "e2e-sec-db") == "this is e2e-sec-db\n");
    let allowed = explain();
    assert!(allowed.starts_with("allowed\n") && allowed.contains("rule 3 of group e2e-sec-db"), "{allowed}");
    for (words, status, part) in [
        (vec!["secgroup", "rm", group.0], 4, "viv secgroup leave"),
        (vec!["secgroup", "rm-rule", group.0, "4"], 3, "it has 3"),
        (vec!["secgroup", "add-rule", group.0, "deny in icmp"], 4, "opposite"),
        (vec!["secgroup", "add-rule", group.0, "in tcp from group:e2e-nothing"], 3, "e2e-nothing"),
        (vec!["secgroup", "add-rule", group.0, "in tcp/http"], 2, "in tcp/5432"),
        (vec!["secgroup", "explain", "e2e-sec-web", "e2e-sec-db", "tcp"], 2, "tcp/PORT"),
        (
            vec!["run", "--net", network.0, "--secgroup", "e2e-nothing", "--", "true"],
            3,
            "viv secgroup create",
        ),
        (vec!["run", "--label", "role", "--", "true"], 2, "NAME=VALUE"),
    ] {
        let done = run(&words, "");
        assert_eq!(done.status, status, "{words:?}: {done:?}");
        assert!(done.err.contains(part), "{words:?}: {done:?}");
    }
}

#[test]
fn what_cannot_be_says_so() {
    let network = Network::create("e2e-bad", &["--subnet", "10.231.7.0/24"]);
    for (words, status, part) in [
        (vec!["network", "create", "e2e-bad"], 4, "exists already"),
        (vec!["network", "create", "e2e-bad2", "--subnet", "10.231.7.128/25"], 4, "e2e-bad"),
        (vec!["network", "create", "e2e-bad2", "--subnet", "10.231.7.1/24"], 2, "10.231.7.0"),
        (vec!["network", "create", "user"], 2, "user"),
        (vec!["network", "create", "e2e-bad2", "--isolated", "--host", "yes"], 2, "--isolated"),
        (vec!["network", "show", "e2e-nothing"], 3, "viv network create"),
        (vec!["network", "rm", "e2e-nothing"], 3, "viv network ls"),
        (vec!["network", "connect", network.0, "e2e-nobody"], 3, "e2e-nobody"),
        (vec!["run", "--net", "e2e-nothing", "--", "true"], 3, "e2e-nothing"),
        (vec!["run", "--net", "No", "--", "true"], 2, "no network can be called"),
    ] {
        let done = run(&words, "");
        assert_eq!(done.status, status, "{words:?}: {done:?}");
        assert!(done.err.contains(part), "{words:?}: {done:?}");
    }
    // Of its sixteen addresses, eleven are for VMs.
    let small = Network::create("e2e-small", &["--subnet", "10.231.8.0/28"]);
    let names: Vec<String> = (0..12).map(|number| format!("e2e-small-{number}")).collect();
    let create = |name: &String| {
        run(&["create", "-f", "-"], &format!("{{name: {name}, cpus: 1, memory_mib: 64, net: {}}}", small.0))
    };
    let made: Vec<_> = names.iter().map(create).collect();
    for (name, _) in names.iter().zip(&made).filter(|(_, made)| made.status == 0) {
        run(&["rm", name], "").ok();
    }
    let (last, others) = made.split_last().unwrap();
    assert!(others.iter().all(|made| made.status == 0), "{made:?}");
    assert!(last.status == 5 && last.err.contains("is full"), "{last:?}");
}
