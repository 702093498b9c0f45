//! Cards at tap devices and bridges of the host, in network namespaces of the tests' own. They need root, `ip` and `nft`; where one
//! is missing, nothing is tested, which is said.
use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use viv_e2e::{Outcome, run, until, viv};

const WAIT: Duration = Duration::from_secs(120);

/// A network namespace with a home for viv, which has the images of all whole-product tests.
struct Space {
    name: String,
    home: PathBuf,
}

/// Past the test harness, which keeps to itself what tests print that succeed.
fn say(why: &str) {
    let _ =
        writeln!(std::io::stderr(), "!!! NOT TESTED: cards at tap devices and bridges of the host: {why}");
}

fn output(program: &str, words: &[&str]) -> Option<Output> {
    Command::new(program).args(words).stdin(Stdio::null()).output().ok()
}

impl Space {
    /// None, and loudly, where there can be none.
    fn new(test: &str) -> Option<Space> {
        let name = format!("viv-{test}-{}", std::process::id());
        let why = match () {
            () if output("nft", &["--version"]).is_none() => Some("nft is not installed"),
            () if output("ip", &["-V"]).is_none() => Some("ip is not installed"),
            () if !Path::new("/dev/net/tun").exists() => Some("there is no /dev/net/tun"),
            () if !output("ip", &["netns", "add", &name]).is_some_and(|done| done.status.success()) => {
                Some("ip netns add does not succeed: it takes root (CAP_SYS_ADMIN)")
            }
            () => None,
        };
        let home = std::env::temp_dir().join(&name);
        let space = Space { name, home };
        if why.is_none() && !space.ip(&["tuntap", "add", "dev", "probe", "mode", "tap"]).is_empty() {
            say("no tap device can be made here");
            return None;
        }
        if let Some(why) = why {
            say(why);
            return None;
        }
        run(&["run", "--rm", "--accel", "soft", "--", "true"], "").ok();
        let command = viv(&[]);
        let home =
            command.get_envs().find(|(name, _)| *name == "VIV_HOME").and_then(|(_, home)| home).unwrap();
        std::fs::create_dir_all(&space.home).unwrap();
        std::os::unix::fs::symlink(Path::new(home).join("data"), space.home.join("data")).unwrap();
        space.ip(&["link", "set", "lo", "up"]);
        Some(space)
    }

    fn inside(&self, program: &str, words: &[&str]) -> Output {
        let mut all = vec!["netns", "exec", &self.name, program];
        all.extend(words);
        Command::new("ip").args(all).env("VIV_HOME", &self.home).stdin(Stdio::null()).output().unwrap()
    }

    /// What `ip` has to complain about.
    fn ip(&self, words: &[&str]) -> String {
        String::from_utf8_lossy(&self.inside("ip", words).stderr).into_owned()
    }

    fn viv(&self, words: &[&str]) -> Outcome {
        let program = viv(&[]).get_program().to_str().unwrap().to_string();
        let begin = std::time::Instant::now();
        let done = self.inside(&program, words);
        Outcome {
            status: done.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&done.stdout).into_owned(),
            err: String::from_utf8_lossy(&done.stderr).into_owned(),
            took: begin.elapsed(),
        }
    }

    /// In a guest.
    fn exec(&self, vm: &str, command: &str) -> Outcome {
        self.viv(&["exec", vm, "sh", "-c", command])
    }

    /// Gives a guest an address, and has it serve a page that says who it is from, at two ports.
    fn set_up(&self, vm: &str, address: &str) {
        let script = format!(
            "killall udhcpc; ip link set eth0 up; ip addr flush dev eth0; ip addr add {address}/24 dev eth0; mkdir -p /www; \
             echo this is {vm} > /www/index.html; httpd -h /www; httpd -h /www -p 81"
        );
        self.exec(vm, &script).ok();
    }

    /// Whether the page at a port of an address is reached from the host's side.
    fn page(&self, address: &str, port: u16) -> bool {
        let script = format!(
            "exec 3<>/dev/tcp/{address}/{port} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
        );
        let done = self.inside("timeout", &["5", "bash", "-c", &script]);
        String::from_utf8_lossy(&done.stdout).contains("this is")
    }

    fn tables(&self) -> String {
        String::from_utf8_lossy(&self.inside("nft", &["list", "tables"]).stdout).into_owned()
    }

    fn pid(&self, vm: &str) -> String {
        let vm: Value = serde_json::from_str(&self.viv(&["inspect", vm]).ok().out).unwrap();
        vm[0]["pid"].to_string()
    }

    fn service(&self) -> Option<String> {
        let info: Value = serde_json::from_str(&self.viv(&["info", "--json"]).out).ok()?;
        Some(info["service"]["pid"].to_string())
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        if self.home.exists() {
            for name in self.viv(&["ps", "-aq"]).out.lines() {
                self.viv(&["rm", "-f", name]);
            }
            if let Some(pid) = self.service() {
                output("kill", &[&pid]);
            }
        }
        output("ip", &["netns", "del", &self.name]);
        let _ = std::fs::remove_file(self.home.join("data"));
        let _ = std::fs::remove_dir_all(&self.home);
    }
}

fn kill(pids: &[&str]) {
    assert!(output("kill", &[&["-9"], pids].concat()).unwrap().status.success());
}

#[test]
fn a_card_at_a_tap_device_keeps_its_rules_and_leaves_nothing_behind() {
    let Some(space) = Space::new("tap") else { return };
    assert_eq!(space.ip(&["tuntap", "add", "dev", "vt0", "mode", "tap"]), "");
    assert_eq!(space.ip(&["addr", "add", "10.99.0.1/24", "dev", "vt0"]), "");
    space.viv(&["secgroup", "create", "tap-in", "in tcp/80 from 10.99.0.0/24"]).ok();
    let card = "tap:vt0,ip=10.99.0.2,secgroup=tap-in";
    space.viv(&["run", "-d", "--accel", "soft", "--name", "tap-web", "--net", card]).ok();
    space.set_up("tap-web", "10.99.0.2");
    until("a page", WAIT, || space.page("10.99.0.2", 80));
    assert!(!space.page("10.99.0.2", 81), "no rule allows it");
    // It opens what it likes, and is answered; but only as itself.
    space.exec("tap-web", "ping -c 1 -W 20 10.99.0.1").ok();
    let spoofed =
        space.exec("tap-web", "ip addr add 10.99.0.7/24 dev eth0; ping -c 2 -W 2 -I 10.99.0.7 10.99.0.1");
    assert_ne!(spoofed.status, 0, "{spoofed:?}");
    assert_eq!(space.exec("tap-web", "cat /sys/class/net/eth0/mtu").out, "1500\n");

    // A connection that is open while the rules change.
    let rule = "in tcp/80 from 10.99.0.0/24";
    let explain = || space.viv(&["secgroup", "explain", "10.99.0.1", "tap-web", "tcp/80"]).ok().out;
    assert!(explain().starts_with("allowed\n"), "{}", explain());
    space.viv(&["secgroup", "rm-rule", "tap-in", "1"]).ok();
    assert!(explain().starts_with("denied\n") && !space.page("10.99.0.2", 80));
    space.viv(&["secgroup", "add-rule", "tap-in", rule]).ok();
    until("a page again", WAIT, || space.page("10.99.0.2", 80));
    // A group means the addresses of its VMs at other tap devices.
    assert_eq!(space.ip(&["tuntap", "add", "dev", "vt9", "mode", "tap"]), "");
    assert_eq!(space.ip(&["addr", "add", "10.97.0.1/24", "dev", "vt9"]), "");
    space.inside("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
    space.viv(&["secgroup", "create", "tap-friends"]).ok();
    space.viv(&["secgroup", "add-rule", "tap-in", "in tcp/81 from group:tap-friends"]).ok();
    let card = "tap:vt9,ip=10.97.0.2,secgroup=tap-friends";
    space.viv(&["run", "-d", "--accel", "soft", "--name", "tap-friend", "--net", card]).ok();
    space.set_up("tap-friend", "10.97.0.2");
    space.exec("tap-friend", "ip route add default via 10.97.0.1").ok();
    space.exec("tap-web", "ip route add default via 10.99.0.1").ok();
    until("a page for a friend", WAIT, || {
        space.exec("tap-friend", "timeout 20 wget -qO- http://10.99.0.2:81/").out == "this is tap-web\n"
    });
    let page = space.exec("tap-friend", "timeout 5 wget -qO- http://10.99.0.2:80/");
    assert!(page.out.is_empty() && !space.page("10.99.0.2", 81), "{page:?}");
    let explained = |what: &str| space.viv(&["secgroup", "explain", "tap-friend", "tap-web", what]).ok().out;
    assert!(explained("tcp/81").starts_with("allowed\n") && explained("tcp/80").starts_with("denied\n"));
    space.viv(&["rm", "-f", "tap-friend"]).ok();

    let port: Value =
        serde_json::from_str(&space.viv(&["port", "show", "tap-web", "--json"]).ok().out).unwrap();
    assert!(port["connected"] == true && port["counters"]["sent"]["packets"].as_u64() > Some(0), "{port}");

    for (words, status, part) in [
        (vec!["run", "--net", "tap:vt0", "--", "true"], 4, "another VM or program has it"),
        (vec!["run", "--net", "tap:lo", "--", "true"], 2, "another kind"),
        (vec!["run", "--net", "bridge:nothing", "--", "true"], 3, "ip link add nothing"),
        (vec!["run", "--net", "tap:vt1,bps=1M", "--", "true"], 2, "tc qdisc"),
        (vec!["run", "--net", "tap:vt1", "-p", "127.0.0.1:1:1", "--", "true"], 2, "publishes no ports"),
        (vec!["run", "--net", "user,ip=10.0.0.1", "--", "true"], 2, "ip="),
        (vec!["run", "--net", "tap:a/b", "--", "true"], 2, "no interface"),
        (vec!["capture", "tap-web", "-w", "/dev/null"], 4, "tcpdump -i vt0"),
    ] {
        let done = space.viv(&words);
        assert_eq!(done.status, status, "{words:?}: {done:?}");
        assert!(done.err.contains(part), "{words:?}: {done:?}");
    }

    // Nothing is left of it, however it ends: the service sees it, or the next one does.
    assert!(space.tables().contains("viv_"));
    kill(&[&space.pid("tap-web")]);
    until("the end of its rules", WAIT, || !space.tables().contains("viv_"));
    space.viv(&["start", "tap-web"]).ok();
    assert!(space.tables().contains("viv_"));
    kill(&[&space.service().unwrap(), &space.pid("tap-web")]);
    space.viv(&["ps"]).ok();
    until("the end of its rules", WAIT, || !space.tables().contains("viv_"));
}

#[test]
fn cards_in_a_bridge_of_the_host_reach_one_another_as_themselves_only() {
    let Some(space) = Space::new("bridge") else { return };
    assert_eq!(space.ip(&["link", "add", "vb0", "type", "bridge"]), "");
    assert_eq!(space.ip(&["addr", "add", "10.98.0.1/24", "dev", "vb0"]), "");
    assert_eq!(space.ip(&["link", "set", "vb0", "up"]), "");
    for (name, card) in [("br-one", "bridge:vb0,ip=10.98.0.2"), ("br-two", "bridge:vb0")] {
        space.viv(&["run", "-d", "--accel", "soft", "--name", name, "--net", card]).ok();
    }
    space.set_up("br-one", "10.98.0.2");
    space.set_up("br-two", "10.98.0.3");
    until("the page of one", WAIT, || {
        space.exec("br-two", "timeout 20 wget -qO- http://10.98.0.2/").out == "this is br-one\n"
    });
    until("the page of two from the host", WAIT, || space.page("10.98.0.3", 80));
    // As an address that is not its own, and as a card that is not its own.
    let spoofed =
        space.exec("br-one", "ip addr add 10.98.0.7/24 dev eth0; ping -c 2 -W 2 -I 10.98.0.7 10.98.0.3");
    assert_ne!(spoofed.status, 0, "{spoofed:?}");
    space
        .exec(
            "br-two",
            "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99; ip link set eth0 up",
        )
        .ok();
    let spoofed = space.exec("br-two", "ping -c 2 -W 2 10.98.0.2");
    assert_ne!(spoofed.status, 0, "{spoofed:?}");

    // Groups are kept where the kernel follows connections in bridges, and refused where it does not.
    space.viv(&["secgroup", "create", "br-in", "in tcp/80"]).ok();
    let joined = space.viv(&["secgroup", "join", "br-in", "br-one"]);
    match joined.status {
        0 => {
            until("a page of a group", WAIT, || space.page("10.98.0.2", 80));
            assert!(!space.page("10.98.0.2", 81), "no rule allows it");
        }
        _ => {
            assert!(joined.status == 4 && joined.err.contains("nf_conntrack_bridge"), "{joined:?}");
            let vm: Value = serde_json::from_str(&space.viv(&["inspect", "br-one"]).ok().out).unwrap();
            assert_eq!(vm[0]["groups"], serde_json::json!([]), "what was refused is not kept");
        }
    }
    space.viv(&["rm", "-f", "br-one", "br-two"]).ok();
    until("the end of their rules", WAIT, || !space.tables().contains("viv_"));
    let links = String::from_utf8_lossy(&space.inside("ip", &["-o", "link"]).stdout).into_owned();
    assert!(!links.contains(": viv"), "{links}");
}
