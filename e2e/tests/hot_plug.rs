//! Directories and network cards that come and go while the default guest runs; disks are in `lifecycle.rs`.
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;
use viv_e2e::{Outcome, Vm, inspect, run, until};

const LIMIT: Duration = Duration::from_secs(120);

fn start(name: &'static str) -> Vm {
    let _ = run(&["rm", "-f", name], "");
    run(&["run", "-d", "--accel", "soft", "--name", name], "").ok();
    Vm(name)
}

fn shell(name: &str, script: &str) -> Outcome {
    run(&["exec", name, "sh", "-ec", script], "")
}

/// A directory that goes away with its test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Place {
        let path = std::env::temp_dir().join(format!("viv-e2e-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(path.join("src dir")).unwrap();
        fs::create_dir_all(path.join("read")).unwrap();
        fs::write(path.join("src dir/file"), "from the host\n").unwrap();
        Place(path)
    }

    fn at(&self, name: &str, target: &str) -> String {
        format!("{}:{target}", self.0.join(name).display())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn directories_come_and_go() {
    const NAME: &str = "e2e-dirs";
    let place = Place::new("dirs");
    let _vm = start(NAME);
    let attach = |share: &str| run(&["attach", NAME, "-v", share], "");
    // It may be booting still: its agent is waited for.
    attach(&place.at("src dir", "/a b/src")).ok();
    attach(&place.at("read", "/read:ro")).ok();
    let seen = shell(
        NAME,
        "cat '/a b/src/file'; echo from the guest > '/a b/src/new'; touch /read/x || echo read-only",
    )
    .ok();
    assert_eq!(seen.out, "from the host\nread-only\n");
    assert_eq!(fs::read_to_string(place.0.join("src dir/new")).unwrap(), "from the guest\n");
    let shares = inspect(NAME)["machine"]["shares"].clone();
    assert_eq!(
        (&shares[0]["target"], &shares[1]["read_only"]),
        (&Value::from("/a b/src"), &Value::from(true))
    );

    // What cannot be: each says why, and nothing of it is left.
    for (share, status, words) in [
        (place.at("missing", "/x"), 3, "mkdir -p"),
        (place.at("read", "/read"), 2, "a path of its own"),
        (place.at("read", "/etc/passwd/x"), 1, "the guest cannot mount"),
        (place.at("read", "/.."), 2, "goes up"),
    ] {
        let refused = attach(&share);
        assert!(refused.status == status && refused.err.contains(words), "{share}: {refused:?}");
    }
    assert_eq!(inspect(NAME)["machine"]["shares"].as_array().unwrap().len(), 2);

    // One that is used stays, unless it is taken away.
    shell(NAME, "cd '/a b/src'; sleep 100000 < /dev/null > /dev/null 2>&1 &").ok();
    let busy = run(&["detach", NAME, "-v", "/a b/src"], "");
    assert!(busy.status == 4 && busy.err.contains("(sleep)") && busy.err.contains("--force"), "{busy:?}");
    assert_eq!(shell(NAME, "cat '/a b/src/file'").ok().out, "from the host\n");
    run(&["detach", NAME, "-v", &place.at("read", "/read")], "").ok();
    run(&["detach", NAME, "--force", "-v", "/a b/src"], "").ok();
    let left = shell(NAME, "grep -c virtiofs /proc/mounts || true; ls -A '/a b/src'").ok();
    assert_eq!(left.out, "0\n");
    assert_eq!(run(&["detach", NAME, "-v", "/read"], "").status, 3);

    // What is there stays over a reboot, and over the VM's next start.
    attach(&place.at("src dir", "/src")).ok();
    shell(NAME, "reboot");
    until("the second boot", LIMIT, || inspect(NAME)["boots"] == 2);
    until("the directory", LIMIT, || shell(NAME, "cat /src/file").out == "from the host\n");
    run(&["stop", "--time", "100", NAME], "").ok();
    attach(&place.at("read", "/read")).ok();
    run(&["start", NAME], "").ok();
    until("both directories", LIMIT, || {
        shell(NAME, "cat /src/file; grep -q ' /read virtiofs' /proc/mounts").status == 0
    });
}

#[test]
fn a_network_card_comes_and_goes() {
    const NAME: &str = "e2e-card";
    let _vm = start(NAME);
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let published = format!("127.0.0.1:{port}:80");
    shell(NAME, "mkdir /www; echo a page > /www/index.html; httpd -h /www").ok();
    let page = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.contains("a page").then_some(())
    };
    for _ in 0..2 {
        run(&["attach", NAME, "--net", "user,host", "-p", &published], "").ok();
        let address = "ip -4 addr show eth0 | grep -o 'inet [^ ]*'";
        until("an address", LIMIT, || shell(NAME, address).out == "inet 10.0.2.15/24\n");
        until("a page through the published port", LIMIT, || page().is_some());
        let twice = run(&["attach", NAME, "--net", "user"], "");
        assert!(twice.status == 4 && twice.err.contains("viv detach"), "{twice:?}");
        assert_eq!(inspect(NAME)["machine"]["nics"][0]["net"], "user,host");
        run(&["detach", NAME, "--net", "user,host"], "").ok();
        assert!(shell(NAME, "ip link show eth0").status != 0 && page().is_none());
        until("the end of its DHCP client", LIMIT, || shell(NAME, "pidof udhcpc").status != 0);
        assert_eq!(inspect(NAME)["machine"]["nics"], Value::Null);
    }
    assert_eq!(run(&["detach", NAME, "--net", "user"], "").status, 3);
    assert_eq!(run(&["attach", NAME, "--net", "e2e-no-such-network"], "").status, 3);
    assert_eq!(inspect(NAME)["machine"]["nics"], Value::Null, "nothing is left of it");
    // One that is attached is there after a reboot too.
    run(&["attach", NAME, "--net", "user"], "").ok();
    shell(NAME, "reboot");
    until("the second boot", LIMIT, || inspect(NAME)["boots"] == 2);
    until("the card", LIMIT, || shell(NAME, "ip -4 addr show eth0 | grep -q 10.0.2.15").status == 0);
}
