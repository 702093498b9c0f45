//! The host service: what it remembers, tells, allows and starts again, also after it was killed.
use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::Duration;
use viv_e2e::{Home, tool, until};

const WAIT: Duration = Duration::from_secs(120);

/// A VM of the default guest that is described, with what else is said.
fn described(name: &str, more: &str) -> String {
    format!(r#"{{"name": "{name}", "image": "default", "accel": "soft"{more}}}"#)
}

fn state(home: &Home, vm: &str) -> String {
    let shown = home.json(&["inspect", vm]);
    shown[0]["state"].as_str().unwrap_or_default().to_string()
}

/// What `viv events` prints of VMs: kind, name and state.
fn told(text: &str) -> Vec<(String, String, String)> {
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let word = |event: &serde_json::Value, key: &str| event[key].as_str().unwrap_or_default().to_string();
    events.map(|event| (word(&event, "event"), word(&event, "name"), word(&event, "state"))).collect()
}

#[test]
fn events_are_followed_over_the_death_of_the_service() {
    let home = Home::new("events");
    let service = home.service();
    let mut child = home
        .viv(&["events", "-f", "--since", "0", "--event", "vm", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (line, lines) = mpsc::channel();
    let output = child.stdout.take().unwrap();
    std::thread::spawn(move || {
        for text in BufReader::new(output).lines().map_while(Result::ok) {
            let _ = line.send(text);
        }
    });
    let mut seen = Vec::new();
    let mut until_told = |kind: &str, name: &str, state: &str| {
        let is = |(a, b, c): &(String, String, String)| a == kind && b == name && c == state;
        until(&format!("{kind} {name} {state}"), WAIT, || {
            seen.extend(lines.try_iter());
            told(&seen.join("\n")).iter().any(is)
        });
    };
    home.run(&["run", "-d", "--accel", "soft", "--name", "web"]).ok();
    until_told("vm.created", "web", "");
    until_told("vm.state", "web", "running");
    home.run(&["pause", "web"]).ok();
    until_told("vm.state", "web", "paused");
    // While no service is there, its process is ended.
    tool("kill", &["-9", &service]);
    let pid = std::fs::read_to_string(home.path(&format!("state/vms/{}/runner.lock", id_of(&home, "web"))))
        .unwrap();
    let pid = serde_json::from_str::<serde_json::Value>(&pid).unwrap()["pid"].to_string();
    tool("kill", &["-9", &pid]);
    until_told("vm.state", "web", "failed");
    home.run(&["rm", "web"]).ok();
    until_told("vm.removed", "web", "");
    child.kill().unwrap();
    child.wait().unwrap();

    let revision = |line: &String| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["revision"].as_u64().unwrap()
    };
    let numbers: Vec<u64> = seen.iter().map(revision).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next), "each once, in order: {numbers:?}");
    let all = home.run(&["events", "--since", "0", "--event", "vm", "--json"]).ok().out;
    assert_eq!(all.lines().collect::<Vec<_>>(), seen, "the one who followed has missed nothing");
    let some = home.run(&["events", "--since", &numbers[1].to_string(), "web", "--json"]).ok().out;
    assert_eq!(some.lines().count(), seen.len() - 2);
    assert_eq!(home.run(&["events", "--event", "vm.exploded"]).status, 2);
}

fn id_of(home: &Home, vm: &str) -> String {
    home.json(&["inspect", vm])[0]["id"].as_str().unwrap().to_string()
}

fn pid_of(home: &Home, vm: &str) -> String {
    home.json(&["inspect", vm])[0]["pid"].to_string()
}

#[test]
fn what_should_run_is_started_again() {
    let home = Home::new("restart");
    let run = |name: &str, policy: &str, more: &[&str]| {
        let words = ["run", "-d", "--accel", "soft", "--name", name, "--restart", policy];
        home.run(&[&words, more].concat()).ok();
    };
    // Its command fails each time: twice more, and then no more.
    run("tries", "on-failure:2", &["--", "false"]);
    let restarts =
        || home.run(&["events", "--event", "vm.restarting", "tries", "--json"]).ok().out.lines().count();
    until("its last end", WAIT, || restarts() == 2 && state(&home, "tries") == "stopped");
    // One whose command succeeds is done.
    run("once", "on-failure", &["--", "true"]);
    until("its end", WAIT, || state(&home, "once") == "stopped");

    run("web", "unless-stopped", &[]);
    let first = pid_of(&home, "web");
    tool("kill", &["-9", &first]);
    let runs_not_as = |pid: &str| {
        let shown = home.json(&["inspect", "web"])[0].clone();
        shown["state"] == "running" && shown["pid"].as_u64().is_some_and(|now| pid.parse() != Ok(now))
    };
    until("another process", WAIT, || runs_not_as(&first));
    // Also when the service is killed at the same time: the next one does it.
    let second = pid_of(&home, "web");
    tool("kill", &["-9", &home.service(), &second]);
    until("one more", WAIT, || runs_not_as(&second));
    assert_eq!(home.run(&["exec", "web", "echo", "well"]).ok().out, "well\n");
    home.run(&["kill", "web"]).ok();
    tool("kill", &["-9", &home.service()]);
    assert_eq!(state(&home, "web"), "stopped", "its user has stopped it");
    assert_eq!(restarts(), 2);
    assert_eq!(home.json(&["inspect", "web"])[0]["spec"]["restart"], "unless-stopped");

    // After a boot of the host: the store was used in another one.
    run("always", "always", &["--", "true"]);
    home.run(&["stop", "always"]);
    tool("kill", &["-9", &home.service()]);
    until("its end", WAIT, || state(&home, "always") != "running");
    for refused in [
        vec!["run", "--restart", "always", "--", "true"],
        vec!["run", "-d", "--rm", "--restart", "always"],
        vec!["run", "-d", "--restart", "sometimes"],
    ] {
        assert_eq!(home.run(&refused).status, 2, "{refused:?}");
    }
}

#[test]
fn running_vms_are_found_again_by_the_next_service() {
    let home = Home::new("adopt");
    let names = ["one", "two", "three"];
    for name in names {
        home.run(&["run", "-d", "--accel", "soft", "--memory", "128M", "--name", name]).ok();
    }
    let pids: Vec<String> = names.iter().map(|name| pid_of(&home, name)).collect();
    let service = home.service();
    tool("kill", &["-9", &service]);
    let took = home.run(&["ps"]).ok().took;
    println!("the next service has found {} VMs after {took:?}", names.len());
    assert_ne!(home.service(), service);
    for (name, pid) in names.iter().zip(&pids) {
        assert_eq!((state(&home, name), &pid_of(&home, name)), ("running".to_string(), pid));
        assert_eq!(home.run(&["exec", name, "echo", name]).ok().out, format!("{name}\n"));
    }
    let taken = home.json(&["limits"])["running"]["taken"].clone();
    assert_eq!((&taken["vms"], &taken["memory_mib"]), (&3.into(), &384.into()), "what they have counts");
}

#[test]
fn a_vm_that_hangs_is_shown_so_and_is_gone_within_a_second() {
    let home = Home::new("hangs");
    for name in ["hangs", "well"] {
        home.run(&["run", "-d", "--accel", "soft", "--memory", "128M", "--name", name]).ok();
    }
    tool("kill", &["-STOP", &pid_of(&home, "hangs")]);
    let listed = home.run(&["ps"]).ok();
    assert!(listed.out.contains("running (hangs)"), "{listed:?}");
    assert!(listed.took < Duration::from_secs(8), "{listed:?}");
    let shown = home.json(&["inspect", "hangs"])[0].clone();
    assert_eq!((&shown["state"], &shown["answers"]), (&"running".into(), &false.into()));
    // A busy host takes its time; alone it is less than one second.
    let removed = home.run(&["rm", "-f", "hangs"]).ok();
    println!("removed by force after {:?}", removed.took);
    assert!(removed.took < Duration::from_secs(8), "{removed:?}");
    assert_eq!(home.run(&["ps", "-a", "-q"]).ok().out, "well\n");
    assert_eq!(home.run(&["exec", "well", "echo", "yes"]).ok().out, "yes\n");
}

#[test]
fn a_crowd_gets_what_there_is_and_no_more() {
    let home = Home::new("crowd");
    home.service();
    home.run(&["limits", "--vms", "20", "--memory", "none"]).ok();
    let made = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for client in 0..16 {
            let (home, made) = (&home, &made);
            scope.spawn(move || {
                for number in 0..10 {
                    let ask = described(&format!("vm-{client}-{number}"), "");
                    let answer = home.ask("POST /v1/vms", "", &ask);
                    match answer.status {
                        200 => drop(made.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
                        507 => assert!(answer.body["error"]["message"].as_str().unwrap().contains("quota")),
                        status => panic!("{status}: {answer:?}"),
                    }
                }
            });
        }
    });
    assert_eq!(made.into_inner(), 20);
    assert_eq!(home.json(&["ps", "-a"]).as_array().unwrap().len(), 20);
    let refused = home.run(&["run", "-d", "--name", "one-more"]);
    assert_eq!(refused.status, 5, "{refused:?}");
    let one = home.run(&["ps", "-a", "-q"]).ok().out.lines().next().unwrap().to_string();
    home.run(&["rm", &one]).ok();
    // The limits are remembered, and so is what counts.
    tool("kill", &["-9", &home.service()]);
    assert_eq!(home.json(&["limits"])["described"]["taken"]["vms"], 19);
    assert_eq!(home.ask("POST /v1/vms", "", &described("last", "")).status, 200);
    assert_eq!(home.ask("POST /v1/vms", "", &described("too-many", "")).status, 507);
    let huge = described("huge", r#", "memory_mib": 1000000000"#);
    assert_eq!(home.ask("POST /v1/vms", "", &huge).status, 507);
    assert_eq!(home.run(&["limits", "--cpu-ratio", "0"]).status, 2);
    // Of those that run, no more than the host may have.
    home.run(&["limits", "--vms", "none", "--cpu-ratio", "0.1"]).ok(); // one vCPU
    home.run(&["start", "last"]).ok();
    let second = home.run(&["run", "-d", "--accel", "soft", "--name", "second"]);
    assert!(second.status == 5 && second.err.contains("vCPUs"), "{second:?}");
    home.run(&["kill", "last"]).ok();
    home.run(&["run", "-d", "--accel", "soft", "--name", "second"]).ok();
}

#[test]
fn a_request_can_be_repeated_tried_and_bound_to_what_was_seen() {
    let home = Home::new("requests");
    home.service();
    let ask = |name: &str| home.ask("POST /v1/vms", "Idempotency-Key: k-1\r\n", &described(name, ""));
    let first = ask("web");
    assert_eq!(first.status, 200, "{first:?}");
    let again = ask("web");
    assert_eq!((again.status, &again.body["id"]), (200, &first.body["id"]));
    tool("kill", &["-9", &home.service()]);
    home.service();
    assert_eq!(ask("web").body["id"], first.body["id"], "also by another service");
    assert_eq!(ask("other").status, 409, "another request with its key");
    let ids: std::collections::HashSet<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| home.ask("POST /v1/vms", "Idempotency-Key: k-2\r\n", &described("db", "")))
            })
            .collect();
        let answers = threads.into_iter().map(|thread| thread.join().unwrap());
        answers.map(|answer| answer.body["id"].to_string()).collect()
    });
    assert_eq!(ids.len(), 1, "all at once are answered with the one VM: {ids:?}");

    let trial = home.ask("POST /v1/vms?dry-run=true", "", &described("tried", r#", "memory_mib": 256"#));
    assert_eq!((trial.status, &trial.body["machine"]["memory_mib"]), (200, &256.into()));
    assert_eq!(home.ask("GET /v1/vms/tried", "", "").status, 404);
    assert_eq!(home.ask("POST /v1/vms?dry-run=true", "", &described("web", "")).status, 409);
    let left = std::fs::read_dir(home.path("state/vms")).unwrap().count();
    assert_eq!(left, 2, "a trial leaves nothing");

    let tag = |answer: &viv_e2e::Answer| {
        let field = answer.head.lines().find(|line| line.to_lowercase().starts_with("etag:"));
        field.unwrap().split_once(": ").unwrap().1.to_string()
    };
    let seen = tag(&home.ask("GET /v1/vms/web", "", ""));
    let disk = format!(r#"{{"path": "{}", "format": "raw"}}"#, home.path("disk.raw"));
    std::fs::write(home.path("disk.raw"), vec![0; 1 << 20]).unwrap();
    let attach = |tag: &str| home.ask("POST /v1/vms/web/disks", &format!("If-Match: {tag}\r\n"), &disk);
    let attached = attach(&seen);
    assert_eq!(attached.status, 200, "{attached:?}");
    let stale = home.ask("DELETE /v1/vms/web", &format!("If-Match: {seen}\r\n"), "");
    assert_eq!(stale.status, 409, "{stale:?}");
    let now = tag(&home.ask("GET /v1/vms/web", "", ""));
    assert_ne!(now, seen);
    assert_eq!(home.ask("DELETE /v1/vms/web", "If-Match: nonsense\r\n", "").status, 400);
    assert_eq!(home.ask("DELETE /v1/vms/web", &format!("If-Match: {now}\r\n"), "").status, 200);
}

#[test]
fn one_service_for_a_store_and_none_for_a_broken_one() {
    let home = Home::new("store");
    let service = home.service();
    let second = home.run(&["serve"]);
    assert!(second.status == 4 && second.err.contains(&format!("process {service}")), "{second:?}");
    home.run(&["run", "-d", "--accel", "soft", "--name", "web"]).ok();
    // One that replaces it, as at an upgrade, has the VM too.
    let pid = pid_of(&home, "web");
    let mut next = home.viv(&["serve", "--replace"]).spawn().unwrap();
    until("the other service", WAIT, || home.service() == next.id().to_string());
    assert_eq!(pid_of(&home, "web"), pid);
    assert_eq!(home.run(&["exec", "web", "echo", "well"]).ok().out, "well\n");
    tool("kill", &["-TERM", &next.id().to_string()]);
    assert!(next.wait().unwrap().success(), "told to end, it ends well");
    home.run(&["kill", "web"]).ok();
    tool("kill", &["-9", &home.service()]);
    let store = home.path("state/state.db");
    for ending in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{store}{ending}"));
    }
    std::fs::write(&store, "no database at all").unwrap();
    let refused = home.run(&["ps"]);
    assert_ne!(refused.status, 0);
    assert!(refused.err.contains("damaged"), "{refused:?}");
    assert_eq!(std::fs::read(&store).unwrap(), b"no database at all");
    // The way out that is named.
    assert!(refused.err.contains("state.db.copy"), "{refused:?}");
    std::fs::copy(format!("{store}.copy"), &store).unwrap();
    home.run(&["ps"]).ok();
}
