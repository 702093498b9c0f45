//! The service is killed at one system call after the other of fifteen changes: what it had acknowledged is there, and the one that it
//! was at is done or not, but never by half.
//!
//! CI does 24 of the some thousand points; `VIV_KILL_POINTS=1000 cargo test --release -p viv-e2e --test kill_points` any number.
use serde_json::{Value, json};
use std::collections::BTreeSet;
use viv_e2e::Home;
use viv_e2e::null_kernel::null_kernel;
use viv_e2e::traced::{NOTHING, Traced, What, Whom};

/// The changes; KERNEL and DISK are files.
const CHANGES: [(&str, &str); 15] = [
    ("POST /v1/vms", r#"{"name": "web", "kernel": "KERNEL", "accel": "soft", "memory_mib": 16, "nics": []}"#),
    (
        "POST /v1/vms",
        r#"{"name": "db", "kernel": "KERNEL", "accel": "soft", "memory_mib": 16, "labels": ["a=b"]}"#,
    ),
    ("POST /v1/vms/web/update", r#"{"labels": ["tier=web"], "memory_mib": 32}"#),
    ("POST /v1/vms/web/disks", r#"{"path": "DISK"}"#),
    ("POST /v1/vms/web/start", "{}"),
    ("POST /v1/vms/web/pause", ""),
    ("POST /v1/limits", r#"{"vms": 7}"#),
    ("POST /v1/secgroups", r#"{"name": "front", "rules": []}"#),
    ("POST /v1/secgroups/front/rules", r#"{"rule": "in tcp/80"}"#),
    ("POST /v1/networks", r#"{"name": "blue", "subnet": "10.77.0.0/24"}"#),
    ("POST /v1/vms/web/resume", ""),
    ("POST /v1/vms/web/kill", "{}"),
    ("DELETE /v1/vms/web/disks/0", ""),
    ("DELETE /v1/vms/db", ""),
    ("DELETE /v1/networks/blue", ""),
];
/// The change that starts a VM: half of it is a VM that was started and has no process, which is shown as that.
const START: usize = 4;

/// Makes the changes until the service is gone; gives how many it has acknowledged, and what was seen after each.
fn change(home: &Home, look: bool) -> (usize, Vec<Value>) {
    let (kernel, disk) = (home.path("kernel"), home.path("disk"));
    let mut seen = Vec::new();
    for (number, (request, body)) in CHANGES.iter().enumerate() {
        let body = body.replace("KERNEL", &kernel).replace("DISK", &disk);
        match home.try_ask(request, "", &body) {
            Some(answer) => assert_eq!(answer.status, 200, "{request}: {answer:?}"),
            None => return (number, seen),
        }
        if look {
            seen.push(state(home));
        }
    }
    (CHANGES.len(), seen)
}

/// All that the changes are about.
fn state(home: &Home) -> Value {
    let get = |path: &str| {
        let answer = home.ask(&format!("GET {path}"), "", "");
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        answer.body
    };
    let of = |list: Value, fields: &[&str]| -> Vec<Value> {
        let pick = |item: &Value| Value::from_iter(fields.iter().map(|field| item.pointer(field).cloned()));
        let mut items: Vec<Value> = list.as_array().unwrap().iter().map(pick).collect();
        items.sort_by_key(Value::to_string);
        items
    };
    let vm = ["/name", "/state", "/labels", "/machine/memory_mib", "/machine/disks/0/path"];
    let state = json!({
        "vms": of(get("/v1/vms"), &vm),
        "limit": get("/v1/limits")["limits"]["vms"],
        "taken": get("/v1/limits")["described"]["taken"],
        "groups": of(get("/v1/secgroups"), &["/name", "/rules"]),
        "networks": of(get("/v1/networks"), &["/name", "/subnet"]),
    });
    serde_json::from_str(&state.to_string().replace(&home.path(""), "/")).unwrap()
}

fn home(name: &str) -> Home {
    let home = Home::bare(name);
    std::fs::write(home.path("kernel"), null_kernel()).unwrap();
    std::fs::write(home.path("disk"), vec![0; 1 << 20]).unwrap();
    home
}

/// What VMs have is what there is: a process for each that lives, and no directory for one that is not remembered.
fn is_real(home: &Home) {
    let vms = home.ask("GET /v1/vms", "", "").body;
    let mut known = BTreeSet::new();
    for vm in vms.as_array().unwrap() {
        known.insert(vm["id"].as_str().unwrap().to_string());
        let lives = ["running", "paused"].contains(&vm["state"].as_str().unwrap());
        let process = vm["pid"].as_u64();
        let is_there = process.is_some_and(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert_eq!(lives, is_there, "{vm}");
    }
    let directories = std::fs::read_dir(home.path("state/vms")).into_iter().flatten().flatten();
    let left: Vec<String> = directories
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !known.contains(name))
        .collect();
    assert!(left.is_empty(), "directories of VMs that nobody remembers: {left:?}");
}

#[test]
fn killed_at_any_system_call_it_has_done_all_or_nothing() {
    let points: u64 = std::env::var("VIV_KILL_POINTS").map_or(24, |points| points.parse().expect("a number"));
    let whole = home("kill-points");
    let service = Traced::service(&whole, Whom::Itself, NOTHING);
    let before = state(&whole);
    let (done, after) = change(&whole, true);
    assert_eq!(done, CHANGES.len());
    service.end();
    drop(whole);
    let whole = home("kill-points");
    let service = Traced::service(&whole, Whom::Itself, NOTHING);
    assert_eq!(change(&whole, false).0, CHANGES.len());
    let stops = service.end();
    drop(whole);
    let states: Vec<Value> = std::iter::once(before).chain(after).collect();
    let mut cut = BTreeSet::new();
    for point in 0..points {
        let last = 1 + point * stops / points;
        let home = home(&format!("kill-point-{point}"));
        let service = Traced::service(&home, Whom::Itself, What::Kill(last));
        let (done, _) = change(&home, false);
        service.end();
        cut.insert(done);
        // The next one finds what is left by itself.
        let _next = viv_e2e::client::Service::start(&home);
        let found = state(&home);
        let mut may_be = states.iter().skip(done).take(2).cloned().collect::<Vec<_>>();
        if done == START {
            let mut half = states[START + 1].clone();
            for vm in half["vms"].as_array_mut().unwrap() {
                if vm[1] == "running" {
                    vm[1] = "failed".into();
                }
            }
            may_be.push(half);
        }
        assert!(
            may_be.contains(&found),
            "killed at {last} of {stops}, after {done} changes: {found:#}\nand not one of {may_be:#?}"
        );
        is_real(&home);
    }
    println!("{points} of {stops} points, in {} of {} changes", cut.len(), CHANGES.len());
}
