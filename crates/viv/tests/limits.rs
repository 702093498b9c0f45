//! What the operator of a host allows holds for disks, their speed, network cards and ports, when a VM is described and when it grows.
mod kit;

use kit::Home;
use serde_json::{Value, json};

/// What is taken of the quota.
fn taken(home: &Home) -> Value {
    home.viv(&["--json", "limits"]).ok().json()["described"]["taken"].clone()
}

#[test]
fn disks_have_room_and_speed_of_the_quota() {
    let home = Home::new("quota-disks");
    let kernel = home.kernel();
    let disk = |name: &str, mib: u64| {
        let path = home.dir.join(name).to_str().unwrap().to_string();
        std::fs::File::create(&path).unwrap().set_len(mib << 20).unwrap();
        path
    };
    let (small, large, other) = (disk("small", 10), disk("large", 100), disk("other", 30));
    let create = |name: &str, disk: &str, limits: Value| {
        let disks = json!([{"path": disk, "limits": limits}]);
        let text = json!({"name": name, "kernel": kernel, "memory_mib": 32, "net": "none", "disks": disks});
        home.feed(&["create", "-f", "-"], &text.to_string())
    };
    let at_most = |iops: u64| json!({"iops": iops, "bps": 1 << 20});
    home.viv(&["limits", "--disk", "64M", "--disk-iops", "1000", "--disk-bps", "10M"]).ok();
    create("without", &small, json!({}))
        .fails(5, &["requests of disks a second", "without a limit", "iops="]);
    let limited = |disk: &str, iops: u64| format!("{disk},iops={iops},bps=1M");
    create("large", &large, at_most(10)).fails(5, &["100 more MiB of disks", "64"]);
    create("fast", &small, at_most(1001)).fails(5, &["1001 more requests"]);
    create("web", &small, at_most(600)).ok();
    assert_eq!(
        taken(&home),
        json!({"vms": 1, "cpus": 1, "memory_mib": 32, "disk_mib": 10, "disk_iops": 600, "disk_bps": 1 << 20, "net_bps": 0, "ports": 0})
    );
    // What grows needs room, too, and what is refused has changed nothing.
    home.viv(&["attach", "web", &limited(&other, 500)]).fails(5, &["1100 more requests"]);
    home.viv(&["disk", "limit", "web", "0", "iops=1001", "bps=1M"]).fails(5, &["1001"]);
    home.viv(&["disk", "limit", "web", "0"]).fails(5, &["without a limit"]);
    assert_eq!(home.inspect("web")["machine"]["disks"].as_array().unwrap().len(), 1);
    assert_eq!(home.inspect("web")["machine"]["disks"][0]["limits"]["iops"], 600);
    home.viv(&["attach", "web", &limited(&other, 400)]).ok();
    assert_eq!((&taken(&home)["disk_mib"], &taken(&home)["disk_iops"]), (&json!(40), &json!(1000)));
    // A disk that was made larger by itself is looked at again when its VM starts.
    home.viv(&["disk", "resize", &other, "60M"]).ok();
    home.viv(&["start", "web"]).fails(5, &["70 more MiB of disks"]);
    home.viv(&["limits", "--disk", "80M"]).ok();
    // What it has it keeps, whatever the operator says later.
    home.viv(&["limits", "--disk-iops", "10", "--cpus", "0"]).ok();
    home.viv(&["update", "web", "--label", "tier=db"]).ok();
    home.viv(&["disk", "limit", "web", "0", "iops=500", "bps=1M"]).ok();
    home.viv(&["disk", "limit", "web", "0", "iops=600", "bps=1M"]).fails(5, &["1000 more requests"]);
    home.viv(&["start", "web"]).ok();
    home.viv(&["disk", "resize", &other, "+20M"]).fails(5, &["90 more MiB of disks"]);
    home.viv(&["disk", "resize", &other, "+10M"]).ok();
    assert_eq!(taken(&home)["disk_mib"], 80);
    // The next service counts the same.
    let before = taken(&home);
    kit::signal(home.service().unwrap(), rustix::process::Signal::KILL);
    assert_eq!(taken(&home), before);
    home.viv(&["kill", "web"]).ok();
    home.viv(&["detach", "web", "0"]).ok();
    assert_eq!((&taken(&home)["disk_mib"], &taken(&home)["disk_iops"]), (&json!(70), &json!(400)));
    home.viv(&["rm", "web"]).ok();
    assert_eq!(taken(&home)["vms"], 0);
    home.viv(&["limits", "--cpus", "none", "--disk", "none", "--disk-iops", "none", "--disk-bps", "none"])
        .ok();
    create("without", &small, json!({})).ok();
    assert_eq!(taken(&home).get("disk_iops"), None, "it is without a limit");
    home.viv(&["limits", "--disk-ratio", "0"]).fails(2, &["disk_ratio"]);
    assert!(home.viv(&["limits"]).ok().out.contains("no limit"));
}

#[test]
fn cards_and_ports_are_of_the_quota() {
    let home = Home::new("quota-cards");
    let kernel = home.kernel();
    let create = |name: &str, net: &str, bps: Option<u64>, ports: &[&str]| {
        let limits = bps.map_or(json!({}), |bps| json!({"bps": bps}));
        let text = json!({"name": name, "kernel": kernel, "memory_mib": 32, "net": net, "nic_limits": limits, "ports": ports});
        home.feed(&["create", "-f", "-"], &text.to_string())
    };
    home.viv(&["limits", "--net-bps", "10M", "--ports", "2"]).ok();
    create("web", "user", None, &[]).fails(5, &["network cards", "without a limit", "bps="]);
    let ports = ["127.0.0.1:18081:80", "127.0.0.1:18082:81", "127.0.0.1:18083:82"];
    create("web", "user", Some(6 << 20), &ports).fails(5, &["3 more ports"]);
    create("web", "user", Some(6 << 20), &ports[..2]).ok();
    assert_eq!((&taken(&home)["net_bps"], &taken(&home)["ports"]), (&json!(6 << 20), &json!(2)));
    home.viv(&["port", "limit", "web", "bps=11M"]).fails(5, &["network cards"]);
    home.viv(&["port", "limit", "web", "bps=9M"]).ok();
    create("db", "user", Some(2 << 20), &[]).fails(5, &["9437184 of the 10485760"]);
    create("alone", "none", None, &[]).ok();
    home.viv(&["rm", "web"]).ok();
    create("db", "user", Some(2 << 20), &[]).ok();
    assert_eq!((&taken(&home)["net_bps"], &taken(&home)["ports"]), (&json!(2 << 20), &json!(0)));
}
